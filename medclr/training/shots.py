"""A few labels of the target, n volumes of each class: which volumes, and the heads that learn from them."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from medclr.training.adapt import Features
from medclr.training.probe import FOLDS, Linear, Scores, fit_linear, inner_folds, out_of_fold

Rows = NDArray[np.intp]


def shots_in_order(y: Scores, patients: NDArray[np.object_], exclusive: bool, seed: int) -> list[Rows]:
    """For each class the positions of volumes in random order, of which there may be none: the first n are n per class.

    So fewer lie within more. Of each patient there is one volume, the first in that order, for a second one says less.

    Args:
        y: (n, K) of 0, 1 and NaN; K is 1 unless exclusive: the columns are classes, of which each row has one.
        patients: (n,) keys; seed: of the order.
    """
    order = np.random.default_rng(seed).permutation(len(y))
    order = order[np.sort(np.unique(patients[order], return_index=True)[1])]
    classes = y if exclusive else np.concatenate([1 - y, y], axis=1)
    return [order[column[order] == 1] for column in classes.T]


def few_shot(
    source: Features,
    y_source: Scores,
    target: Features,
    y_target: Scores,
    exclusive: bool,
    strength: float,
    seed: int,
) -> Linear:
    """A head of the source's labels and a few of the target's, or of these alone.

    Both domains count the same, and within each all classes. Where the rule of the source does not hold in the target
    its labels do harm, however many there are; so the head learns from the target alone where that has the lower
    cross-entropy on the target's labels, each predicted without its own, by more than a standard error (Breiman et al.
    1984, section 3.4.3): few labels choose badly. One of a class leaves nothing to choose by: then both count.

    Args:
        source, y_source: (m, F) and (m, K) of 0, 1 and NaN.
        target, y_target: (n, F) and (n, K), each row of a patient of its own.
        exclusive: the K columns are classes, of which each row has one.
        strength: that of a head of the source; seed: of folds.
    """
    keys = np.arange(len(y_target)).astype(object)
    alone = fit_linear(target, y_target, keys, seed, exclusive=exclusive)

    def of_both(x: Features, y: Scores) -> Linear:
        weight = np.concatenate([_alike(part, exclusive) for part in (y_source, y)])
        features, labels = np.concatenate([source, x]), np.concatenate([y_source, y])
        none = np.zeros(len(labels), dtype=object)  # the strength is given, so that no patient is asked for
        return fit_linear(features, labels, none, seed, strength, exclusive, weight=weight * len(labels) / 2)

    def of_target(x: Features, y: Scores) -> Linear:
        return fit_linear(x, y, keys[: len(y)], seed, alone.strength, exclusive)

    def losses(learn: Callable[[Features, Scores], Linear]) -> Scores:
        def scores_of(own: Rows, held: Rows) -> Scores:
            return learn(target[own], y_target[own]).scores(target[held])

        return _cross_entropies(out_of_fold(scores_of, y_target, folds), y_target, exclusive)

    fewest = int(min(np.unique(_classes(y_target, exclusive), return_counts=True)[1]))
    if fewest > 1:
        folds = inner_folds(y_target, keys, seed, min(FOLDS, fewest))
        less = losses(of_both) - losses(of_target)
        if less.mean() > less.std(ddof=1) / np.sqrt(len(less)):
            return alone
    return of_both(target, y_target)


def _alike(y: Scores, exclusive: bool) -> Scores:
    """Weights (n,) of rows under which all classes count the same; their sum is 1."""
    _, of_row, counts = np.unique(_classes(y, exclusive), return_inverse=True, return_counts=True)
    return np.asarray(1 / (len(counts) * counts[of_row]))


def _classes(y: Scores, exclusive: bool) -> NDArray[np.generic]:
    return y.argmax(axis=1) if exclusive else y[:, 0]


def _cross_entropies(scores: Scores, y: Scores, exclusive: bool) -> Scores:
    """(n,) of scores (n, K): log-probabilities of classes, or the logits of one label."""
    if exclusive:
        return np.asarray(-(scores * y).sum(axis=1))
    return np.asarray(np.logaddexp(0, -(2 * y - 1) * scores)[:, 0])
