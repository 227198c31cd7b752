"""AUROC within parts of a test set: by sex, age, view or scanner."""

import math
from typing import Any

import numpy as np
import pandas as pd

from medclr.metrics import auroc, bootstrap_auroc, interval

LEAST_PATIENTS = 5
UNKNOWN = "unknown"
_COLUMNS = ["group", "n", "n_patients", "n_positive", "n_negative", "auroc", "low", "high", "reason"]


def subgroup_aurocs(
    y: np.ndarray,
    scores: np.ndarray,
    patients: np.ndarray,
    groups: np.ndarray,
    resamples: int,
    rng: np.random.Generator,
    level: float = 0.95,
) -> pd.DataFrame:
    """AUROC of one set of scores within each group, with its interval over resamples of the group's patients.

    A group of one class has none, nor has one with a class from fewer than 5 patients: resamples of so few vary too
    little, and their interval would look certain. `reason` then says so. The groups are looked at one by one; that
    one interval leaves out the AUROC of another is no test of a difference.

    Args:
        y: (n,) 0 or 1.
        scores: (n,) higher for positive.
        patients: (n,) keys.
        groups: (n,) values of a column, any of which may be None, NaN or "": they are one group, "unknown".
        resamples: how many times patients are drawn.
        rng: by which.
        level: of the intervals.

    Returns:
        One row a group, sorted by name with "unknown" last: group, n (rows), n_patients, n_positive and n_negative
        (rows), auroc, low, high, reason.
    """
    names = np.array(
        [UNKNOWN if pd.isna(value) or value == "" else str(value) for value in groups.tolist()], dtype=object
    )
    rows: list[dict[str, Any]] = []
    for name in sorted(set(names), key=lambda name: (name == UNKNOWN, name)):
        own = names == name
        of_class = {word: own & (y == value) for value, word in ((1, "positive"), (0, "negative"))}
        row = {"group": name, "n": int(own.sum()), "n_patients": len(np.unique(patients[own]))}
        row |= {f"n_{word}": int(where.sum()) for word, where in of_class.items()}
        reason = _reason({word: len(np.unique(patients[where])) for word, where in of_class.items()})
        if np.isnan(scores[own]).any():
            reason = "a score is NaN"
        if reason:
            row |= dict.fromkeys(("auroc", "low", "high"), math.nan)
        else:
            resampled = bootstrap_auroc(y[own], scores[None, own], patients[own], resamples, rng)
            low, high = interval(resampled, level)
            row |= {"auroc": auroc(y[own], scores[own]), "low": low, "high": high}
        rows.append(row | {"reason": reason})
    return pd.DataFrame(rows, columns=_COLUMNS)


def age_bands(years: np.ndarray) -> np.ndarray:
    """Ages as children, younger, middle and older adults: 0-17, 18-39, 40-59, 60+, or "unknown".

    Few and wide, so that each holds enough patients to say something and none gives an age away. years: (n,), NaN
    where unknown; below 0 is unknown too. Returns (n,) text.
    """
    names = np.array(["0-17", "18-39", "40-59", "60+", UNKNOWN], dtype=object)
    return np.asarray(names[np.where(years >= 0, np.digitize(years, [18, 40, 60]), 4)])


def _reason(patients_of: dict[str, int]) -> str:
    for word, count in patients_of.items():
        if count < LEAST_PATIENTS:
            few = f"only {count} patient{'s' if count > 1 else ''} with a {word} (fewer than {LEAST_PATIENTS})"
            return few if count else f"no {word}"
    return ""
