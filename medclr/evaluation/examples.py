"""Which volumes a classifier gets most wrong, for whoever wants to look at them."""

from typing import NamedTuple

import numpy as np


class Errors(NamedTuple):
    """Positions of the negatives with the highest probability, and of the positives with the lowest, worst first."""

    false_positives: np.ndarray
    false_negatives: np.ndarray


def most_confident_errors(y: np.ndarray, probability: np.ndarray, most: int) -> Errors:
    """The errors of which a classifier is surest, whatever the threshold.

    y: (n,) of 0, 1 and NaN (unknown, which is no error). probability: (n,) of a positive. most: of each kind. Those
    that no threshold between them could make errors are left out: a negative below all positives, and a positive
    above all negatives.
    """
    positive, negative = np.flatnonzero(y == 1), np.flatnonzero(y == 0)
    if not len(positive) or not len(negative):
        return Errors(positive[:0], negative[:0])
    above = negative[probability[negative] >= probability[positive].min()]
    below = positive[probability[positive] <= probability[negative].max()]
    return Errors(
        above[np.argsort(-probability[above], kind="stable")[:most]],
        below[np.argsort(probability[below], kind="stable")[:most]],
    )
