"""Resamples of patients, what is made of them, and Holm's correction."""

from collections.abc import Callable, Iterator

import numpy as np

from medclr.metrics.ranking import weighted_auroc

_CHUNK = 2**21  # numbers in one block of resampled weights: 16 MB, so memory does not grow with data

Statistic = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]
"""Of y, one set of scores and (R, n) weights of the rows: a value for each weighting, (R,)."""


class Resamples:
    """Patients drawn with replacement, so many times; what is computed on the same resamples is paired.

    Stratified: patients whose rows have the same highest stratum are drawn from among themselves. A stratum of one
    patient therefore never varies, and one of few varies too little.

    patients: (n,) keys. strata: (n,) numbers, such as 1 where a row has any positive. resamples: how many. rng: by
    which they are drawn.
    """

    def __init__(self, patients: np.ndarray, strata: np.ndarray, resamples: int, rng: np.random.Generator) -> None:
        _, self._code = np.unique(patients, return_inverse=True)
        highest = np.full(self._code.max() + 1, -np.inf)
        np.maximum.at(highest, self._code, strata)
        self._counts = np.empty((resamples, len(highest)), dtype=np.int32)
        for stratum in np.unique(highest)[::-1]:
            of_stratum = np.flatnonzero(highest == stratum)
            n, step = len(of_stratum), max(1, _CHUNK // len(of_stratum))
            for start in range(0, resamples, step):
                block = self._counts[start : start + step]
                drawn = rng.integers(n, size=(len(block), n)) + n * np.arange(len(block))[:, None]
                block[:, of_stratum] = np.bincount(drawn.ravel(), minlength=n * len(block)).reshape(-1, n)

    def __len__(self) -> int:
        return len(self._counts)

    def weights(self) -> Iterator[tuple[slice, np.ndarray]]:
        """How often each row occurs, all rows of a patient together: block by block, (r, n) as float64."""
        step = max(1, _CHUNK // len(self._code))
        for start in range(0, len(self), step):
            rows = slice(start, min(start + step, len(self)))
            yield rows, self._counts[rows].astype(np.float64)[:, self._code]


def bootstrap(
    statistic: Statistic,
    y: np.ndarray,
    scores: np.ndarray,
    patients: np.ndarray,
    resamples: int,
    rng: np.random.Generator,
) -> np.ndarray:
    """A statistic of several sets of scores on the same resamples of patients, so that their differences are paired.

    Under generators of the same seed, other statistics of the same rows are paired with it too.

    statistic: `weighted_auroc` or another of its kind. y: (n,) of classes from 0, each a stratum of patients; or
    (n, L) of labels with NaN where unknown, and patients with any positive label are a stratum. scores: (S, n), or
    (S, n, L). patients: (n,). Returns (S, resamples). Memory beyond that and the patients of all resamples is bounded.
    """
    strata = y if y.ndim == 1 else np.fmax.reduce(y, axis=1, initial=0)
    out = np.empty((len(scores), resamples))
    for rows, weights in Resamples(patients, strata, resamples, rng).weights():
        for row, one in zip(out, scores, strict=True):
            row[rows] = statistic(y, one, weights)
    return out


def bootstrap_auroc(
    y: np.ndarray, scores: np.ndarray, patients: np.ndarray, resamples: int, rng: np.random.Generator
) -> np.ndarray:
    """AUROC of several sets of scores on the same resamples of patients: `bootstrap` of `weighted_auroc`."""
    return bootstrap(weighted_auroc, y, scores, patients, resamples, rng)


def bootstrap_mean_auroc(y: np.ndarray, scores: np.ndarray, resamples: Resamples) -> np.ndarray:
    """The mean AUROC of several sets of scores on each resample: the mean of `bootstrap_auroc` over them, but quicker.

    An AUROC is a sum over pairs of a positive and a negative, and on a resample all sets have the same pairs: so those
    that each set orders rightly are added up first, and resampled once.

    y: (n,) of 0, 1 and NaN (unknown, left out). scores: (S, n), without NaN. Returns (R,), NaN where a resample has a
    single class.
    """
    positive, negative = np.flatnonzero(y == 1), np.flatnonzero(y == 0)
    wins, pairs = np.zeros(len(resamples)), np.zeros(len(resamples))
    step = max(1, _CHUNK // max(len(negative), 1))
    for start in range(0, len(positive), step):
        block = positive[start : start + step]
        twice = np.zeros((len(block), len(negative)))  # so that ties, which count half, stay whole numbers
        for one in scores:
            above, below = one[block, None], one[negative]
            twice += above > below
            twice += above >= below
        for rows, weights in resamples.weights():
            wins[rows] += np.einsum("rp,rp->r", weights[:, block], weights[:, negative] @ twice.T)
            pairs[rows] += weights[:, block].sum(axis=1) * weights[:, negative].sum(axis=1)
    means: np.ndarray = np.divide(wins, 2 * len(scores) * pairs, out=np.full(len(resamples), np.nan), where=pairs > 0)
    return means


def interval(samples: np.ndarray, level: float = 0.95) -> tuple[float, float]:
    """Percentile interval of bootstrap samples (any shape), leaving out NaN; NaN where nothing is left."""
    samples = samples[~np.isnan(samples)]
    if not len(samples):
        return float("nan"), float("nan")
    low, high = np.quantile(samples, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def holm(p: np.ndarray) -> np.ndarray:
    """Holm's (1979) adjusted p: claims below a level together hold a false one with at most that probability."""
    order = np.argsort(p)
    adjusted = np.empty(len(p))
    adjusted[order] = np.maximum.accumulate(np.minimum(1, p[order] * np.arange(len(p), 0, -1)))
    return adjusted
