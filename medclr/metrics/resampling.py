"""Resamples of patients, what is made of them, and Holm's correction."""

from collections.abc import Callable

import numpy as np

from medclr.metrics.ranking import weighted_auroc

_CHUNK = 2**21  # numbers in one block of resampled weights: 16 MB, so memory does not grow with data

Statistic = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]
"""Of y, one set of scores and (R, n) weights of the rows: a value for each weighting, (R,)."""


def patient_weights(patients: np.ndarray, y: np.ndarray, resamples: int, rng: np.random.Generator) -> np.ndarray:
    """How often each row occurs when patients are drawn with replacement, all rows of a patient together.

    Stratified: patients with any positive row are drawn from among themselves, and so are the others; of several
    classes, those with the same highest one. A stratum of one patient therefore never varies, and one of few varies
    too little.

    patients: (n,) keys. y: (n,) of classes from 0. Returns (resamples, n) counts as float64.
    """
    _, code = np.unique(patients, return_inverse=True)
    highest = np.zeros(code.max() + 1)
    np.maximum.at(highest, code, y)
    counts = np.empty((resamples, len(highest)))
    for of_class in np.unique(highest)[::-1]:
        stratum = np.flatnonzero(highest == of_class)
        each = np.full(len(stratum), 1 / len(stratum))
        counts[:, stratum] = rng.multinomial(len(stratum), each, size=resamples)
    return counts[:, code]


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

    statistic: `weighted_auroc` or another of its kind. y: (n,), or (n, L) of labels with NaN where unknown; patients
    with any positive label are then one stratum. scores: (S, n), or (S, n, L). patients: (n,). Returns
    (S, resamples). Memory beyond that is bounded.
    """
    stratum = y if y.ndim == 1 else np.fmax.reduce(y, axis=1, initial=0)
    out = np.empty((len(scores), resamples))
    step = max(1, _CHUNK // len(y))
    for start in range(0, resamples, step):
        stop = min(start + step, resamples)
        weights = patient_weights(patients, stratum, stop - start, rng)
        for row, one in zip(out, scores, strict=True):
            row[start:stop] = statistic(y, one, weights)
    return out


def bootstrap_auroc(
    y: np.ndarray, scores: np.ndarray, patients: np.ndarray, resamples: int, rng: np.random.Generator
) -> np.ndarray:
    """AUROC of several sets of scores on the same resamples of patients: `bootstrap` of `weighted_auroc`."""
    return bootstrap(weighted_auroc, y, scores, patients, resamples, rng)


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
