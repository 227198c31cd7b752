"""AUROC with patient-clustered resamples, Holm's correction, kNN scores, and how well an embedding is spread."""

from collections.abc import Callable

import numpy as np

_CHUNK = 2**21  # numbers in one block of resampled weights or similarities: 16 MB, so memory does not grow with data
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

    below = np.zeros((len(weights), len(negative) + 1))  # weight of the j lowest negatives
    np.cumsum(weights[:, negative], axis=1, out=below[:, 1:])
    above = weights[:, positive].astype(np.float64)
    # Negatives below `first` lose to the positive, those from there to `last` tie with it.
    wins = np.einsum("rp,rp->r", above, below[:, first] + below[:, last]) / 2
    pairs = above.sum(axis=1) * below[:, -1]
    aurocs: np.ndarray = np.divide(wins, pairs, out=np.full(len(weights), np.nan), where=pairs > 0)
    return aurocs


def patient_weights(patients: np.ndarray, y: np.ndarray, resamples: int, rng: np.random.Generator) -> np.ndarray:
    """How often each row occurs when patients are drawn with replacement, all rows of a patient together.

    Stratified: patients with any positive row are drawn from among themselves, and so are the others. A stratum of
    one patient therefore never varies, and one of few varies too little.

    patients: (n,) keys. y: (n,) of 0 and 1. Returns (resamples, n) counts as float64.
    """
    _, code = np.unique(patients, return_inverse=True)
    has_positive = np.bincount(code, weights=y) > 0
    counts = np.empty((resamples, len(has_positive)))
    for stratum in (np.flatnonzero(has_positive), np.flatnonzero(~has_positive)):
        if len(stratum):
            each = np.full(len(stratum), 1 / len(stratum))
            counts[:, stratum] = rng.multinomial(len(stratum), each, size=resamples)
    return counts[:, code]


def bootstrap_auroc(
    y: np.ndarray, scores: np.ndarray, patients: np.ndarray, resamples: int, rng: np.random.Generator
) -> np.ndarray:
    """AUROC of several sets of scores on the same resamples of patients, so that their differences are paired.

    y, patients: (n,). scores: (S, n). Returns (S, resamples). Memory beyond that is bounded.
    """
    out = np.empty((len(scores), resamples))
    step = max(1, _CHUNK // len(y))
    for start in range(0, resamples, step):
        stop = min(start + step, resamples)
        weights = patient_weights(patients, y, stop - start, rng)
        for row, one in zip(out, scores, strict=True):
            row[start:stop] = weighted_auroc(y, one, weights)
    return out


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


def knn_scores(
    train_z: np.ndarray, train_y: np.ndarray, test_z: np.ndarray, k: int = 20, temperature: float = 0.1
) -> np.ndarray:
    """Share of positives among the k training rows nearest by cosine, each weighted by exp(cosine / temperature).

    The weighted kNN of Wu et al. (2018, section 3.4). train_z: (n, D), train_y: (n,) of 0 and 1, test_z: (m, D).
    Where there are fewer than k training rows, all of them vote. Returns (m,) in [0, 1].
    """
    train = _unit(train_z)
    k = min(k, len(train))

    def vote(block: np.ndarray) -> np.ndarray:
        cosine = block @ train.T
        near = np.argpartition(-cosine, k - 1, axis=1)[:, :k]
        cosine = np.take_along_axis(cosine, near, axis=1)
        # Relative to the nearest, or exp would overflow at a small temperature.
        weight = np.exp((cosine - cosine.max(axis=1, keepdims=True)) / temperature)
        votes: np.ndarray = (weight * train_y[near]).sum(axis=1) / weight.sum(axis=1)
        return votes

    return _by_rows(vote, _unit(test_z), len(train))


def alignment(z1: np.ndarray, z2: np.ndarray) -> float:
    """Mean squared distance between the two views of a pair on the unit sphere: 0 is best, 2 is chance.

    Wang & Isola (2020), equation of section 4.1 with alpha = 2. z1, z2: (n, D), of any length.
    """
    return float(np.mean(np.sum((_unit(z1) - _unit(z2)) ** 2, axis=1)))


def similarities(z1: np.ndarray, z2: np.ndarray, groups: np.ndarray) -> tuple[float, float]:
    """Mean cosine of the two views of a pair, and of views of different groups: what NT-Xent pulls and pushes.

    z1, z2: (n, D), of any length. groups: (n,), equal where two pairs are no negatives of each other (a patient).
    The second is NaN where there is one group only.
    """
    first, second = _unit(z1), _unit(z2)
    _, group = np.unique(groups, return_inverse=True)
    z, group = np.concatenate([first, second]), np.concatenate([group, group])
    sums = np.zeros((group.max() + 1, z.shape[1]))
    np.add.at(sums, group, z)
    # The cosines of all pairs of rows add up to the squared length of their sum, and so do those within a group.
    between = np.sum(sums.sum(axis=0) ** 2) - np.sum(sums**2)
    n_between = len(z) ** 2 - int(np.sum(np.bincount(group) ** 2))
    return float(np.mean(np.sum(first * second, axis=1))), float(between / n_between) if n_between else float("nan")


def uniformity(z: np.ndarray) -> float:
    """Log of the mean Gaussian potential over pairs of rows on the unit sphere: 0 is collapsed, lower is better.

    Wang & Isola (2020), equation of section 4.1 with t = 2. z: (n, D) with n of 2 or more, of any length.
    """
    unit = _unit(z)
    n = len(unit)
    # On the sphere the squared distance is 2 - 2 cosine.
    potential = _by_rows(lambda block: np.exp(4 * (block @ unit.T) - 4).sum(axis=1), unit, n)
    return float(np.log((potential.sum() - n) / (n * (n - 1))))  # a row is at distance 0 from itself


def rankme(z: np.ndarray) -> float:
    """Effective number of dimensions in use, between 1 and min(n, D): Garrido et al. (2023), equation 1.

    z: (n, D) embeddings, as they are.
    """
    singular = np.linalg.svd(z.astype(np.float64), compute_uv=False)
    p = singular / (singular.sum() + _TINY) + 1e-7
    return float(np.exp(-np.sum(p * np.log(p))))


def _unit(z: np.ndarray) -> np.ndarray:
    z = z.astype(np.float64)
    unit: np.ndarray = z / np.maximum(np.linalg.norm(z, axis=1, keepdims=True), _TINY)
    return unit


def _by_rows(function: Callable[[np.ndarray], np.ndarray], z: np.ndarray, width: int) -> np.ndarray:
    """Apply a function of rows that needs `width` numbers for each of them to blocks of bounded size."""
    step = max(1, _CHUNK // width)
    return np.concatenate([function(z[start : start + step]) for start in range(0, len(z), step)])
