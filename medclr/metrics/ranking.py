"""How well scores rank positives above negatives: AUROC, average precision, sensitivity; one label or many."""

from typing import NamedTuple

import numpy as np


def auroc(y: np.ndarray, scores: np.ndarray) -> float:
    """Area under the ROC curve: how often a positive scores above a negative, ties counting half.

    y: (n,) of 0 and 1. scores: (n,), higher for positive. NaN where a class is absent or a score is NaN.
    """
    return float(weighted_auroc(y, scores, np.ones((1, len(y))))[0])


def weighted_auroc(y: np.ndarray, scores: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """AUROC of one set of scores under many weightings of its rows; with counts as weights, it is exact.

    y: (n,) of 0 and 1. scores: (n,). weights: (R, n), not negative. Returns (R,), NaN where a class has no weight
    or a score is NaN.
    """
    if np.isnan(scores).any():
        return np.full(len(weights), np.nan)
    positive, negative = np.flatnonzero(y == 1), np.flatnonzero(y == 0)
    # Sorting makes the lookups below walk through memory instead of jumping.
    positive = positive[np.argsort(scores[positive])]
    negative = negative[np.argsort(scores[negative])]
    first = np.searchsorted(scores[negative], scores[positive], side="left")
    last = np.searchsorted(scores[negative], scores[positive], side="right")

    below = np.zeros((len(weights), len(negative) + 1))  # weight of the j lowest negatives
    np.cumsum(weights[:, negative], axis=1, out=below[:, 1:])
    above = weights[:, positive].astype(np.float64)
    # Negatives below `first` lose to the positive, those from there to `last` tie with it.
    wins = np.einsum("rp,rp->r", above, below[:, first] + below[:, last]) / 2
    pairs = above.sum(axis=1) * below[:, -1]
    aurocs: np.ndarray = np.divide(wins, pairs, out=np.full(len(weights), np.nan), where=pairs > 0)
    return aurocs


def average_precision(y: np.ndarray, scores: np.ndarray) -> float:
    """Area under the precision-recall curve as average precision, tied scores called positive together.

    The sum of precision over the steps of recall, without interpolation between them, which would be optimistic
    (Davis & Goadrich 2006). What no information gives is the share of positives, so it is to be read beside that.

    y: (n,) of 0 and 1. scores: (n,), higher for positive. NaN where a class is absent or a score is NaN.
    """
    return float(weighted_average_precision(y, scores, np.ones((1, len(y))))[0])


def weighted_average_precision(y: np.ndarray, scores: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Average precision under many weightings of the rows; takes and returns what `weighted_auroc` does."""
    if np.isnan(scores).any():
        return np.full(len(weights), np.nan)
    true, false = _called(y, scores, weights)
    precision = np.divide(true, true + false, out=np.zeros_like(true), where=true > 0)[:, 1:]
    return _share(np.einsum("rg,rg->r", np.diff(true, axis=1), precision), true[:, -1], where=false[:, -1] > 0)


def sensitivity_at(y: np.ndarray, scores: np.ndarray, specificity: float) -> float:
    """The highest sensitivity that scores reach while their specificity is at least this.

    The threshold is one of the scores, and is chosen on these very rows: nothing is interpolated, and where a
    negative ties with positives at the threshold, it is a false positive or all of them are missed. For a threshold
    chosen elsewhere, see `threshold_at`.

    y: (n,) of 0 and 1. scores: (n,), higher for positive. specificity: from 0 to 1; with m negatives, above
    1 - 1 / m it asks for no false positive at all. NaN where a class is absent or a score is NaN.
    """
    return float(weighted_sensitivity_at(y, scores, np.ones((1, len(y))), specificity)[0])


def weighted_sensitivity_at(y: np.ndarray, scores: np.ndarray, weights: np.ndarray, specificity: float) -> np.ndarray:
    """Sensitivity at a specificity under many weightings of the rows, each with its own threshold.

    Takes and returns what `weighted_auroc` does.
    """
    if np.isnan(scores).any():
        return np.full(len(weights), np.nan)
    true, false = _called(y, scores, weights)
    allowed = _within(false, specificity).sum(axis=1) - 1  # the last group that may still be called positive
    return _share(true[np.arange(len(true)), allowed], true[:, -1], where=false[:, -1] > 0)


def threshold_at(y: np.ndarray, scores: np.ndarray, specificity: float) -> float:
    """The lowest score from which on rows may be called positive while specificity is at least this.

    inf where even the highest score may not, as too many negatives have it. y, scores, specificity, and NaN, as for
    `sensitivity_at`.
    """
    if np.isnan(scores).any() or not (np.any(y == 1) and np.any(y == 0)):
        return float("nan")
    _, false = _called(y, scores, np.ones((1, len(y))))
    descending = np.append(np.inf, np.unique(scores)[::-1])
    return float(descending[_within(false, specificity).sum() - 1])


class LabelAurocs(NamedTuple):
    """AUROC of each label, NaN where its `reasons` is not empty, and the mean over those that have one."""

    by_label: np.ndarray
    mean: float
    reasons: tuple[str, ...]


def label_aurocs(y: np.ndarray, scores: np.ndarray) -> LabelAurocs:
    """AUROC of every label, or of every class against the rest, and their unweighted (macro) mean.

    A label of which only one class is known has no AUROC, says so, and is left out of the mean. A NaN among the
    scores leaves its label without one, and all of them without a mean.

    y: (n, L) of 0, 1 and NaN (unknown), or (n,) of classes 0 to L - 1. scores: (n, L).
    """
    y = _columns(y, scores)
    by_label = weighted_label_aurocs(y, scores, np.ones((1, len(y))))[0]
    reasons = []
    for column, of_label in zip(y.T, scores.T, strict=True):
        known = ~np.isnan(column)
        absent = [word for value, word in ((1, "positive"), (0, "negative")) if not np.any(column == value)]
        if np.isnan(of_label[known]).any():
            reasons.append("a score is NaN")
        else:
            reasons.append(f"no {' and no '.join(absent)} among {known.sum()} known" if absent else "")
    return LabelAurocs(by_label, float(_mean(y, scores, by_label[None])[0]), tuple(reasons))


def weighted_label_aurocs(y: np.ndarray, scores: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """AUROC of every label under many weightings of the rows: (R, L), NaN where `weighted_auroc` is.

    y, scores: as for `label_aurocs`. weights: (R, n).
    """
    out = np.empty((len(weights), scores.shape[1]))
    for label, (column, of_label) in enumerate(zip(_columns(y, scores).T, scores.T, strict=True)):
        known = ~np.isnan(column)
        out[:, label] = weighted_auroc(column[known], of_label[known], weights[:, known])
    return out


def weighted_mean_auroc(y: np.ndarray, scores: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Mean AUROC over the labels, or macro one-vs-rest AUROC, under many weightings of the rows: (R,).

    Where a weighting leaves a label with one class, the mean is over the others: to drop the whole resample would
    leave almost none where many labels are rare. y, scores: as for `label_aurocs`. weights: (R, n).
    """
    return _mean(_columns(y, scores), scores, weighted_label_aurocs(y, scores, weights))


def _called(y: np.ndarray, scores: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Weight of positives, and of negatives, that have one of the g highest distinct scores: both (R, groups + 1)."""
    order = np.argsort(-scores, kind="stable")
    ordered = scores[order]
    last = np.flatnonzero(np.append(ordered[1:] != ordered[:-1], True)[: len(order)])
    positive = y[order] == 1
    counts = []
    for of_class in (positive, ~positive):
        # Only the rows of the class: the others would add zeros.
        below = np.zeros((len(weights), of_class.sum() + 1))
        np.cumsum(weights[:, order[of_class]], axis=1, out=below[:, 1:])
        counts.append(below[:, np.append(0, np.cumsum(of_class)[last])])
    return counts[0], counts[1]


def _within(false: np.ndarray, specificity: float) -> np.ndarray:
    if not 0 <= specificity <= 1:
        raise ValueError(f"specificity {specificity:g}: must be from 0 to 1")
    # The slack is for rounding: of 10 negatives, a specificity of 0.9 allows one to be called positive.
    within: np.ndarray = false <= (1 - specificity + 1e-9) * false[:, -1:]
    return within


def _share(part: np.ndarray, of: np.ndarray, where: np.ndarray) -> np.ndarray:
    shares: np.ndarray = np.divide(part, of, out=np.full(len(of), np.nan), where=where & (of > 0))
    return shares


def _columns(y: np.ndarray, scores: np.ndarray) -> np.ndarray:
    columns: np.ndarray = (y[:, None] == np.arange(scores.shape[1])).astype(np.float64) if y.ndim == 1 else y
    return columns


def _mean(y: np.ndarray, scores: np.ndarray, by_label: np.ndarray) -> np.ndarray:
    if np.isnan(scores[~np.isnan(y)]).any():
        return np.full(len(by_label), np.nan)
    there = ~np.isnan(by_label)
    return _share(np.where(there, by_label, 0).sum(axis=1), there.sum(axis=1), where=there.any(axis=1))
