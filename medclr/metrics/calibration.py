"""Whether predicted probabilities can be taken at their word, and the one number that brings them nearer to it."""

import math
from typing import NamedTuple

import numpy as np
from scipy.optimize import brentq
from scipy.special import ndtri, softmax

LEAST_IN_BIN = 5


class Bin(NamedTuple):
    """Rows of like predictions: their mean, the share that came true, its Wilson interval, and how many there are."""

    predicted: float
    observed: float
    low: float
    high: float
    n: int


class Calibration(NamedTuple):
    """Expected calibration error, Brier score and the bins of the first. Where `reason` is not empty, NaN and none."""

    ece: float
    brier: float
    bins: tuple[Bin, ...]
    reason: str


def calibration(y: np.ndarray, probabilities: np.ndarray, bins: int = 10) -> Calibration:
    """Reliability of predicted probabilities in bins of equal mass, their ECE, and their Brier score.

    The ECE is the mean over rows of |predicted - observed| of their bin (Naeini et al. 2015), with bins that hold
    equally many rows (Nguyen & O'Connor 2015; Roelofs et al. 2022 find them less biased than bins of equal width).
    Equal predictions share a bin, so the order of rows plays no part. It is biased upwards, the more the fewer rows a
    bin has: perfect predictions have an ECE above 0 too, and with fewer than 5 rows a bin there is none.

    Of a binary label it is about the probability of the positive; of several classes, about the probability of the
    class that was predicted ("top label", Guo et al. 2017). The Brier score is the mean squared error of the
    probability of the positive; of several classes, that summed over the classes (Brier 1950).

    Wilson intervals take rows as independent: where patients repeat they are too narrow.

    y: (n,) of 0 and 1, or of classes 0 to C - 1. probabilities: (n,), or (n, C).
    """
    reason = "" if len(y) >= LEAST_IN_BIN * bins else f"{len(y)} rows are too few for {bins} bins of {LEAST_IN_BIN}"
    if not ((probabilities >= 0) & (probabilities <= 1)).all():
        reason = "a prediction is no probability"
    if reason:
        return Calibration(math.nan, math.nan, (), reason)
    if probabilities.ndim == 1:
        outcome, predicted = y == 1, probabilities
    else:
        outcome, predicted = probabilities.argmax(axis=1) == y, probabilities.max(axis=1)
    table = _bins(outcome, predicted, bins)
    ece = sum(one.n * abs(one.predicted - one.observed) for one in table) / len(y)
    return Calibration(ece, brier_score(y, probabilities), table, "")


def brier_score(y: np.ndarray, probabilities: np.ndarray) -> float:
    """Mean squared error of the probability of the positive, or that summed over classes (Brier 1950).

    y: (n,) of 0 and 1, or of classes 0 to C - 1. probabilities: (n,), or (n, C).
    """
    if probabilities.ndim == 1:
        return float(np.mean((probabilities - (y == 1)) ** 2))
    return float(np.mean(np.sum((probabilities - _one_hot(y, probabilities.shape[1])) ** 2, axis=1)))


class Temperature(NamedTuple):
    """By what to divide logits. Where `reason` is not empty it is NaN, and they are best left as they are."""

    value: float
    reason: str

    @property
    def divisor(self) -> float:
        """By what logits are divided all the same: 1 where there is no value."""
        return 1.0 if self.reason else self.value


def fit_temperature(y: np.ndarray, logits: np.ndarray) -> Temperature:
    """The temperature with the least negative log-likelihood of softmax(logits / T): Guo et al. (2017).

    It changes no predicted class, and of a binary label no ranking. It is a fit, so the logits must be of rows that
    the model was not trained on (out-of-fold), and of others than those to be judged. inf, and so equal
    probabilities throughout, where the logits favour the wrong classes on average. None where the logits predict
    no row wrong: the likelihood then rises without end as T falls to 0.

    y: (n,) of 0 and 1, or of classes 0 to C - 1. logits: (n,) of the positive against the negative, or (n, C).
    """
    if not np.isfinite(logits).all():
        return Temperature(math.nan, "a logit is not finite")
    if len(np.unique(y)) < 2:
        return Temperature(math.nan, f"the {len(y)} rows have no two classes")
    z = np.stack([np.zeros(len(y)), logits], axis=1) if logits.ndim == 1 else logits.astype(np.float64)
    true = _one_hot(y, z.shape[1]) == 1
    # Of each row as its largest distance from the right class, so that neither scale nor offset matters below.
    z = z - z[true][:, None]
    scale = np.abs(z).max()
    if z.max() <= 0:
        return Temperature(math.nan, f"none of the {len(y)} rows is predicted wrong")
    z /= scale

    def slope(inverse: float) -> float:
        """Of the negative log-likelihood, which is convex in the inverse of the temperature."""
        return float(np.mean(np.sum(softmax(inverse * z, axis=1) * z, axis=1)))

    if slope(0.0) >= 0:
        return Temperature(math.inf, "")
    high = 1.0
    while slope(high) <= 0:
        high *= 2
    return Temperature(float(scale / brentq(slope, 0.0, high, xtol=1e-12, rtol=1e-12)), "")


def wilson_interval(k: np.ndarray, n: np.ndarray, level: float = 0.95) -> tuple[np.ndarray, np.ndarray]:
    """Interval of a share of k among n (Wilson 1927), which stays within 0 and 1 and holds at 0 and n too.

    k, n: of one shape, n of 1 or more.
    """
    z = float(ndtri((1 + level) / 2))
    share = k / n
    centre = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z * np.sqrt(share * (1 - share) / n + z**2 / (4 * n**2)) / (1 + z**2 / n)
    return np.maximum(centre - half, 0), np.minimum(centre + half, 1)


def _bins(outcome: np.ndarray, predicted: np.ndarray, bins: int) -> tuple[Bin, ...]:
    ordered = np.sort(predicted)
    # The middle of its ties is the place of a prediction: 0 to n - 1 where there are none.
    place = np.searchsorted(ordered, predicted, side="left") + np.searchsorted(ordered, predicted, side="right") - 1
    _, of_row = np.unique(place * bins // (2 * len(predicted)), return_inverse=True)
    n = np.bincount(of_row)
    true = np.bincount(of_row, weights=outcome)
    low, high = wilson_interval(true, n)
    columns = (np.bincount(of_row, weights=predicted) / n, true / n, low, high, n)
    return tuple(Bin(*row) for row in zip(*(column.tolist() for column in columns), strict=True))


def _one_hot(y: np.ndarray, classes: int) -> np.ndarray:
    one_hot: np.ndarray = (y[:, None] == np.arange(classes)).astype(np.float64)
    return one_hot
