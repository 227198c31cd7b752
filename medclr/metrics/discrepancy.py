"""How far apart the features of two groups of patients lie, and how far chance would put them."""

import numpy as np

REGROUPINGS = 200  # of patients, at random
WIDTHS = (0.25, 0.5, 1.0, 2.0, 4.0)  # of the kernels, times the median squared distance


def discrepancy(
    features: np.ndarray, of_source: np.ndarray, patients: np.ndarray, rng: np.random.Generator
) -> tuple[float, float]:
    """The unbiased squared MMD, under Gaussian kernels, of some rows from the others; and its noise.

    That is the 95th percentile over regroupings of the patients (Gretton et al. 2012, section 5).

    Args:
        features: (n, F) in units that compare; of_source: (n,) bool, of two patients or more on either side.
        patients: (n,) keys.
    """
    kernel = _kernel(features)
    noise = np.quantile(_mmd(kernel, _regrouped(patients, of_source, rng)), 0.95)
    return float(_mmd(kernel, of_source[:, None])[0]), float(noise)


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
