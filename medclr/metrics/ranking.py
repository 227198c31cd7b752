"""How well scores rank positives above negatives: AUROC, average precision, sensitivity; one label or many."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

_BLOCK = 2**17  # numbers in one block of weights: 1 MB, which a processor has at hand
_TINY = np.finfo(np.float64).tiny


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

    wins, pairs = np.zeros(len(weights)), np.zeros(len(weights))
    step = max(1, _BLOCK // max(len(y), 1))
    for start in range(0, len(weights), step):
        block = slice(start, start + step)
        of_rows = weights.T[:, block]  # so that whatever runs along the rows does so for all weightings at once
        below = np.zeros((len(negative) + 1, of_rows.shape[1]))  # weight of the j lowest negatives
        np.cumsum(of_rows[negative], axis=0, out=below[1:])
        above = of_rows[positive].astype(np.float64)
        # Negatives below `first` lose to the positive, those from there to `last` tie with it.
        beaten = (below[first] + below[last]) / 2 if (first < last).any() else below[first]
        wins[block] = np.einsum("pr,pr->r", above, beaten)
        pairs[block] = above.sum(axis=0) * below[-1]
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
    averages: np.ndarray = weighted_operating(y, scores, weights)[0]
    return averages


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
    sensitivities: np.ndarray = weighted_operating(y, scores, weights, (specificity,))[1]
    return sensitivities


def weighted_operating(
    y: np.ndarray, scores: np.ndarray, weights: np.ndarray, specificities: Sequence[float] = ()
) -> np.ndarray:
    """Average precision, and the sensitivity at each specificity, from one pass: (1 + specificities, R).

    y, scores, weights: as for `weighted_auroc`. It is quickest where `weights.T` is contiguous.
    """
    for specificity in specificities:
        _check(specificity)
    out = np.full((1 + len(specificities), len(weights)), np.nan)
    if np.isnan(scores).any():
        return out
    order = np.argsort(-scores, kind="stable")
    ordered, positive = scores[order], y[order] == 1
    # Equal scores are called positive together: after each such group, so many positives and negatives have been.
    ends = np.flatnonzero(np.append(ordered[1:] != ordered[:-1], True)[: len(order)])
    positives, negatives = (np.append(0, np.cumsum(of_class)[ends]) for of_class in (positive, ~positive))
    group = 1 + np.searchsorted(ends, np.flatnonzero(positive))
    # Of the groups after which as many negatives have been called, the last has the most positives.
    last = np.flatnonzero(np.append(np.diff(negatives) > 0, True))
    step = max(1, _BLOCK // max(len(order), 1))
    for start in range(0, len(weights), step):
        block = slice(start, start + step)
        of_rows = weights.T[:, block]
        of_positives = of_rows[order[positive]]
        true = np.zeros((len(of_positives) + 1, of_rows.shape[1]))
        np.cumsum(of_positives, axis=0, out=true[1:])
        false = np.zeros((len(order) - len(of_positives) + 1, of_rows.shape[1]))
        np.cumsum(of_rows[order[~positive]], axis=0, out=false[1:])

        there = (true[-1] > 0) & (false[-1] > 0)
        called = true[positives[group]]
        precision = called / np.maximum(called + false[negatives[group]], _TINY)
        averaged = np.einsum("pr,pr->r", of_positives, precision)
        np.divide(averaged, true[-1], out=out[0, block], where=there)
        for found, specificity in zip(out[1:], specificities, strict=True):
            within = false[negatives[last]] <= _allowed(specificity, false[-1])
            sensitive = true[positives[last][within.sum(axis=0) - 1], np.arange(within.shape[1])]
            np.divide(sensitive, true[-1], out=found[block], where=there)
    return out


def threshold_at(y: np.ndarray, scores: np.ndarray, specificity: float) -> float:
    """The lowest score from which on rows may be called positive while specificity is at least this.

    inf where even the highest score may not, as too many negatives have it. y, scores, specificity, and NaN, as for
    `sensitivity_at`.
    """
    return float(weighted_threshold_at(y, scores, np.ones((1, len(y))), specificity)[0])


def weighted_threshold_at(y: np.ndarray, scores: np.ndarray, weights: np.ndarray, specificity: float) -> np.ndarray:
    """`threshold_at` under many weightings of the rows; takes and returns what `weighted_auroc` does."""
    _check(specificity)
    if np.isnan(scores).any() or not len(scores):
        return np.full(len(weights), np.nan)
    negative, order = np.flatnonzero(y == 0), np.argsort(scores)
    negative = negative[np.argsort(scores[negative])]
    ascending, first = np.unique(scores[order], return_index=True)
    there = np.add.reduceat(weights[:, order], first, axis=1) > 0
    below = np.zeros((len(weights), len(negative) + 1))
    np.cumsum(weights[:, negative], axis=1, out=below[:, 1:])
    total = below[:, -1:]
    false = total - below[:, np.searchsorted(scores[negative], ascending)]
    within = there & (false <= _allowed(specificity, total))
    lowest = np.where(within.any(axis=1), ascending[within.argmax(axis=1)], np.inf)
    both = (total[:, 0] > 0) & (weights[:, y == 1].sum(axis=1) > 0)
    thresholds: np.ndarray = np.where(both, lowest, np.nan)
    return thresholds


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


def _check(specificity: float) -> None:
    if not 0 <= specificity <= 1:
        raise ValueError(f"specificity {specificity:g}: must be from 0 to 1")


def _allowed(specificity: float, negatives: Any) -> Any:
    # The slack is for rounding: of 10 negatives, a specificity of 0.9 allows one to be called positive.
    return (1 - specificity + 1e-9) * negatives


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
