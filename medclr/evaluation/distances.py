"""How far apart the features of two domains lie."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

MOST_ROWS = 1000  # of each domain, as a distance takes the square of their number
SPLITS = 200  # of the source's patients into halves
WIDTHS = (0.25, 0.5, 1.0, 2.0, 4.0)  # of the kernels, times the median squared distance


def distances_of(
    features: np.ndarray,
    domain: np.ndarray,
    patients: np.ndarray,
    source: str,
    others: Sequence[str],
    seed: int,
) -> pd.DataFrame:
    """Each of some domains from the source.

    Features are divided by their standard deviations over all rows, so that no unit of them counts more.

    Args:
        features: (n, F); domain, patients: (n,).
        source, others: values of domain.
        seed: of the halves, and of the MOST_ROWS rows of a domain that has more.

    Returns:
        Columns domain, versus (the source), mmd, noise, coral; see `Shift.distances`.
    """
    rng = np.random.default_rng(seed)
    scaled = features - features.mean(axis=0, dtype=np.float64)
    scaled = scaled / np.maximum(scaled.std(axis=0), 1e-12)
    at = {name: _at_most(np.flatnonzero(domain == name), rng) for name in (source, *others)}
    rows = []
    for name in others:
        both = np.concatenate([at[source], at[name]])
        kernel, n = _kernel(scaled[both]), len(at[source])
        of_source = np.arange(len(both)) < n
        halves = [_mmd(kernel[:n, :n], half) for half in _halves(patients[at[source]], rng)]
        rows.append(
            {
                "domain": name,
                "versus": source,
                "mmd": _mmd(kernel, of_source),
                "noise": float(np.quantile(halves, 0.95)),
                "coral": _coral(scaled[at[source]], scaled[at[name]]),
            }
        )
    return pd.DataFrame(rows)


def _at_most(rows: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return rows if len(rows) <= MOST_ROWS else np.sort(rng.choice(rows, MOST_ROWS, replace=False))


def _halves(patients: np.ndarray, rng: np.random.Generator) -> list[np.ndarray]:
    """Which rows are in the first half of the patients, split at random again and again."""
    names, code = np.unique(patients, return_inverse=True)
    return [rng.permutation(len(names))[code] < len(names) // 2 for _ in range(SPLITS)]


def _kernel(x: np.ndarray) -> np.ndarray:
    """The mean of Gaussian kernels of several widths (Gretton et al. 2012; Long et al. 2015)."""
    length = np.sum(x**2, axis=1)
    squared = np.maximum(length[:, None] + length - 2 * x @ x.T, 0)
    median = float(np.median(squared[np.triu_indices(len(x), 1)])) or 1.0
    kernel: np.ndarray = np.mean([np.exp(-squared / (width * median)) for width in WIDTHS], axis=0)
    return kernel


def _mmd(kernel: np.ndarray, first: np.ndarray) -> float:
    """Unbiased squared maximum mean discrepancy (Gretton et al. 2012, equation 3) of some rows from the others."""
    a, b = first.astype(np.float64), (~first).astype(np.float64)
    to_a, to_b, own = kernel @ a, kernel @ b, np.diag(kernel)
    n, m = a.sum(), b.sum()
    between = a @ to_b / (n * m)
    return float((a @ to_a - own @ a) / (n * (n - 1)) + (b @ to_b - own @ b) / (m * (m - 1)) - 2 * between)


def _coral(first: np.ndarray, second: np.ndarray) -> float:
    """Distance of the second moments: Sun and Saenko 2016, equation 1."""
    gap = np.cov(first.T) - np.cov(second.T)
    return float(np.sum(gap**2) / (4 * first.shape[1] ** 2))
