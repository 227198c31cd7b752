"""Slices of volumes as what an encoder learns from: which of them to keep, and a table with a row for each."""

import numpy as np
import pandas as pd
from numpy.typing import NDArray

AIR = 0.1  # of the range of a volume's grey values; what is above is something
EMPTY = 0.005  # a slice with less than this share of something is air alone
ALIKE = 0.98  # correlation above which two slices of a volume show the same


def kept_slices(array: NDArray[np.generic], low: float, high: float, spacing_mm: float, step_mm: float) -> list[int]:
    """Which slices stand for a volume: neither empty nor nearly the same as another.

    From the first one on that is not empty, a slice is kept where it lies at least `step_mm` from the last that was
    kept, and correlates with it by ALIKE or less. Of a volume that is empty throughout the middle slice is kept, so
    that no volume is left without.

    Args:
        array: (C, slices, *plane), as the store keeps it.
        low, high: what `statistics` says of it.
        spacing_mm: between slices; NaN where unknown, and then correlation alone decides.
        step_mm: 0 or more.

    Returns:
        Their numbers, rising.
    """
    kept: list[int] = []
    last = np.empty(0)
    for index in range(array.shape[1]):
        plane = array[:, index].astype(np.float64).ravel()
        if np.mean(plane > low + AIR * (high - low)) < EMPTY:
            continue
        # A thousandth for rounding, since spacings are decimals.
        if kept and ((index - kept[-1]) * spacing_mm < step_mm - 1e-3 or _alike(last, plane)):
            continue
        kept.append(index)
        last = plane
    return kept or [array.shape[1] // 2]


def by_slice(rows: pd.DataFrame) -> pd.DataFrame:
    """Prepared volumes to their kept slices: a row each, with the volume's columns and `slice`, in order."""
    counts = rows["slices"].map(len).to_numpy()
    each = rows.drop(columns="slices").iloc[np.repeat(np.arange(len(rows)), counts)].reset_index(drop=True)
    return each.assign(slice=np.concatenate(rows["slices"].to_list()).astype(int))


def _alike(one: NDArray[np.float64], other: NDArray[np.float64]) -> bool:
    if not (np.ptp(one) and np.ptp(other)):  # a plane of one grey value has no correlation
        return np.array_equal(one, other)
    return float(np.corrcoef(one, other)[0, 1]) > ALIKE
