"""How far apart the features of two domains lie."""

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd

MOST_ROWS = 1000  # of each domain, as a distance takes the square of their number
REGROUPINGS = 200  # of patients, at random
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
        seed: of the regroupings, and of the MOST_ROWS rows of a domain that has more.

    Returns:
        Columns domain, versus (the source), mmd, noise, coral; see `Shift.distances`. NaN of a single patient.
    """
    rng = np.random.default_rng(seed)
    scaled = features - features.mean(axis=0, dtype=np.float64)
    scaled = scaled / np.maximum(scaled.std(axis=0), 1e-12)
    at = {name: _at_most(np.flatnonzero(domain == name), rng) for name in (source, *others)}
    rows = []
    for name in others:
        both = np.concatenate([at[source], at[name]])
        of_source = np.arange(len(both)) < len(at[source])
        row = {"domain": name, "versus": source, "mmd": math.nan, "noise": math.nan, "coral": math.nan}
        if min(len(np.unique(patients[at[each]])) for each in (source, name)) > 1:
            kernel, regrouped = _kernel(scaled[both]), _regrouped(patients[both], of_source, rng)
            row["mmd"] = float(_mmd(kernel, of_source[:, None])[0])
            row["noise"] = float(np.quantile(_mmd(kernel, regrouped), 0.95))
            row["coral"] = _coral(scaled[at[source]], scaled[at[name]])
        rows.append(row)
    return pd.DataFrame(rows)


def _at_most(rows: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return rows if len(rows) <= MOST_ROWS else np.sort(rng.choice(rows, MOST_ROWS, replace=False))


def _regrouped(patients: np.ndarray, of_source: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Which rows (n, REGROUPINGS) would be of the source if it did not matter which patients are: as many of them.

    Of a patient who is in both domains, the rows change places or stay.
    """
    names, code = np.unique(patients, return_inverse=True)
    in_source, in_other = (np.isin(names, patients[rows]) for rows in (of_source, ~of_source))
    one = in_source ^ in_other
    groups = np.empty((len(patients), REGROUPINGS), dtype=bool)
    for column in groups.T:
        drawn = rng.random(len(names)) < 0.5
        drawn[one] = rng.permutation(in_source[one])
        column[:] = np.where(one[code], drawn[code], of_source ^ drawn[code])
    return groups


def _kernel(x: np.ndarray) -> np.ndarray:
    """The mean of Gaussian kernels of several widths (Gretton et al. 2012; Long et al. 2015)."""
    length = np.sum(x**2, axis=1)
    squared = np.maximum(length[:, None] + length - 2 * x @ x.T, 0)
    median = float(np.median(squared[np.triu_indices(len(x), 1)])) or 1.0
    kernel: np.ndarray = np.mean([np.exp(-squared / (width * median)) for width in WIDTHS], axis=0)
    return kernel


def _mmd(kernel: np.ndarray, first: np.ndarray) -> np.ndarray:
    """Unbiased squared maximum mean discrepancy (Gretton et al. 2012, equation 3) of some rows from the others.

    first: (n, G), a column for each way of taking some. Returns (G,).
    """
    a = first.astype(np.float64)
    n, m, own = a.sum(axis=0), (1 - a).sum(axis=0), np.diag(kernel)
    to_a = kernel @ a
    within = np.sum(a * to_a, axis=0)
    between = np.sum((1 - a) * to_a, axis=0)
    others = kernel.sum() - within - 2 * between
    of_a, of_b = (within - own @ a) / (n * (n - 1)), (others - own @ (1 - a)) / (m * (m - 1))
    squared: np.ndarray = of_a + of_b - 2 * between / (n * m)
    return squared


def _coral(first: np.ndarray, second: np.ndarray) -> float:
    """Distance of the second moments: Sun and Saenko 2016, equation 1."""
    gap = np.cov(first.T) - np.cov(second.T)
    return float(np.sum(gap**2) / (4 * first.shape[1] ** 2))
