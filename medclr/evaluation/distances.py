"""How far apart the features of two domains lie."""

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd

from medclr.metrics import discrepancy

MOST_ROWS = 1000  # of each domain, as a distance takes the square of their number


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
            row["mmd"], row["noise"] = discrepancy(scaled[both], of_source, patients[both], rng)
            row["coral"] = _coral(scaled[at[source]], scaled[at[name]])
        rows.append(row)
    return pd.DataFrame(rows)


def _at_most(rows: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return rows if len(rows) <= MOST_ROWS else np.sort(rng.choice(rows, MOST_ROWS, replace=False))


def _coral(first: np.ndarray, second: np.ndarray) -> float:
    """Distance of the second moments: Sun and Saenko 2016, equation 1."""
    gap = np.cov(first.T) - np.cov(second.T)
    return float(np.sum(gap**2) / (4 * first.shape[1] ** 2))
