"""kNN scores, and how well an embedding is spread."""

from collections.abc import Callable

import numpy as np

_CHUNK = 2**21  # numbers in one block of similarities: 16 MB, so memory does not grow with data
_TINY = np.finfo(np.float64).tiny


def knn_scores(
    train_z: np.ndarray, train_y: np.ndarray, test_z: np.ndarray, k: int = 20, temperature: float = 0.1
) -> np.ndarray:
    """Share of positives among the k training rows nearest by cosine, each weighted by exp(cosine / temperature).

    The weighted kNN of Wu et al. (2018). train_z: (n, D), train_y: (n,) or (n, K) of 0, 1 and NaN
    (unknown, no vote), test_z: (m, D). Where there are fewer than k training rows, all of them vote. Returns (m,) or
    (m, K) in [0, 1]; 0.5 where none of the nearest is known.
    """
    train = _unit(train_z)
    k = min(k, len(train))
    known = ~np.isnan(train_y)
    positive = np.where(known, train_y, 0.0)

    def vote(block: np.ndarray) -> np.ndarray:
        cosine = block @ train.T
        near = np.argpartition(-cosine, k - 1, axis=1)[:, :k]
        cosine = np.take_along_axis(cosine, near, axis=1)
        # Relative to the nearest, or exp would overflow at a small temperature.
        weight = np.exp((cosine - cosine.max(axis=1, keepdims=True)) / temperature)
        cast = np.einsum("mk,mk...->m...", weight, known[near].astype(float))
        won = np.einsum("mk,mk...->m...", weight, positive[near])
        votes: np.ndarray = np.divide(won, cast, out=np.full(won.shape, 0.5), where=cast > 0)
        return votes

    return _by_rows(vote, _unit(test_z), len(train))


def alignment(z1: np.ndarray, z2: np.ndarray) -> float:
    """Mean squared distance between the two views of a pair on the unit sphere: 0 is best, 2 is chance.

    Wang & Isola (2020), with alpha = 2. z1, z2: (n, D), of any length.
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

    Wang & Isola (2020), with t = 2. z: (n, D) with n of 2 or more, of any length.
    """
    unit = _unit(z)
    n = len(unit)
    # On the sphere the squared distance is 2 - 2 cosine.
    potential = _by_rows(lambda block: np.exp(4 * (block @ unit.T) - 4).sum(axis=1), unit, n)
    return float(np.log((potential.sum() - n) / (n * (n - 1))))  # a row is at distance 0 from itself


def rankme(z: np.ndarray) -> float:
    """Effective number of dimensions in use, between 1 and min(n, D): Garrido et al. (2023).

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
