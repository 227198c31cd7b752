"""AUROC within parts of a test set: by sex, age, view or scanner."""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd

from medclr.evaluation.estimates import Chance, Outcome, Truth, aurocs

MOST_GROUPS = 12
UNKNOWN = "unknown"
_NUMBERS = ("auroc", "low", "high")
_COUNTS = ("n", "n_patients", "n_positive", "n_negative")
_COLUMNS = ["arm", "fraction", "column", "group", *_COUNTS, *_NUMBERS, "reason"]


def subgroups(
    outcomes: Sequence[Outcome], truth: Truth, chance: Chance, kind: str, groups: pd.DataFrame
) -> pd.DataFrame:
    """AUROC of each arm at its largest fraction, within each group of test rows.

    Intervals are over the group's patients, draws and encoders (`Chance.estimate`). A group with a class from fewer
    than 5 patients has no AUROC, and `reason` then says so; nor where that is so of any output of several, as a mean
    over the others would not be that of other groups. The groups are looked at one by one; that one interval
    leaves out the AUROC of another is no test of a difference.

    A column with a single value tells nothing and is left out. One with more than 12 has a single row, whose `reason`
    says so.

    Args:
        outcomes: of all arms and fractions.
        truth: of the test rows.
        chance: behind the intervals.
        kind: "binary", "multiclass" or "multilabel".
        groups: columns of the test rows; values that are None, NaN or "" are one group, "unknown".

    Returns:
        One row for each arm, column and group, groups in the order of a column's categories, if it has any, else by
        name, with "unknown" last: arm, fraction, column, group, n (rows), n_patients, n_positive and n_negative (rows
        with any positive and with none known; NaN of several classes), auroc, low, high, reason.
    """
    largest = max((outcome.fraction for outcome in outcomes), default=math.nan)
    last = [outcome for outcome in outcomes if outcome.fraction == largest]
    rows: list[dict[str, Any]] = []
    for column in groups.columns:
        values = groups[column]
        names = np.array([UNKNOWN if pd.isna(value) or value == "" else str(value) for value in values])
        present = set(names.tolist())
        ordered = isinstance(values.dtype, pd.CategoricalDtype)
        places = list(values.cat.categories if ordered else sorted(present - {UNKNOWN}))
        distinct = [name for name in dict.fromkeys([*places, UNKNOWN]) if name in present]
        if len(distinct) > MOST_GROUPS:
            reason = f"{len(distinct)} values are too many to compare (more than {MOST_GROUPS})"
            empty = {"group": "", **dict.fromkeys((*_COUNTS, *_NUMBERS), math.nan), "reason": reason}
            rows += [{"arm": one.arm, "fraction": largest, "column": column} | empty for one in last]
        elif len(distinct) > 1:
            for name in distinct:
                for row in _group(last, truth, chance, kind, np.flatnonzero(names == name)):
                    rows.append({"fraction": largest, "column": column, "group": name} | row)
    order = {outcome.arm: place for place, outcome in enumerate(last)}
    rows.sort(key=lambda row: order[row["arm"]])
    return pd.DataFrame(rows, columns=_COLUMNS)


def age_bands(years: np.ndarray) -> np.ndarray:
    """Ages as children, younger, middle and older adults: 0-17, 18-39, 40-59, 60+, or "unknown".

    Few and wide, so that each holds enough patients to say something and none gives an age away. years: (n,), NaN
    where unknown; below 0 is unknown too. Returns (n,) text.
    """
    names = np.array(["0-17", "18-39", "40-59", "60+", UNKNOWN], dtype=object)
    return np.asarray(names[np.where(years >= 0, np.digitize(years, [18, 40, 60]), 4)])


def quartile_bands(values: np.ndarray) -> "pd.Categorical[str]":
    """Numbers as four bands of about as many rows each, by their quartiles: "below 61", "61 to below 72", ....

    The least and the greatest are not named, as they are of single patients. Fewer bands where values repeat so much
    that quartiles meet. values: (n,), NaN where unknown; at least two must differ.
    """
    known = values[~np.isnan(values)]
    quartiles = np.quantile(known, (0.25, 0.5, 0.75), method="higher")
    above = known[known > known.min()]  # where more than three quarters are the least: those, and the others
    bounds = np.unique(quartiles[quartiles > known.min()] if quartiles[2] > known.min() else above.min())
    text = [str(float(bound)).removesuffix(".0") for bound in bounds]
    names = [f"below {text[0]}", *(f"{a} to below {b}" for a, b in pairwise(text)), f"{text[-1]} and above"]
    bands = np.array([*names, UNKNOWN], dtype=object)
    place = np.where(np.isnan(values), len(names), np.searchsorted(bounds, values, side="right"))
    return pd.Categorical(bands[place], bands, ordered=True)


def _group(
    outcomes: Sequence[Outcome], whole: Truth, chance: Chance, kind: str, rows: np.ndarray
) -> list[dict[str, Any]]:
    """Of each arm: the counts of these test rows, and its AUROC there."""
    truth = Truth.of(whole.y[rows], whole.patients[rows], kind)
    positive = (truth.y == 1).any(axis=1)
    known = ~np.isnan(truth.y).all(axis=1)
    counts: dict[str, Any] = {"n": len(rows), "n_patients": len(np.unique(truth.patients))}
    counts |= {"n_positive": int(positive.sum()), "n_negative": int((known & ~positive).sum())}
    if kind == "multiclass":
        counts |= {"n_positive": math.nan, "n_negative": math.nan}
    lacking = next(filter(None, (truth.reasons[output] for output in whole.judged)), "")
    found = []
    for outcome in outcomes:
        row = {"arm": outcome.arm, **counts, **dict.fromkeys(_NUMBERS, math.nan)}
        row["reason"] = outcome.reason or lacking
        if not row["reason"]:
            mean, _ = aurocs(outcome, truth, chance, chance.patients(truth.patients, truth.strata), rows)
            row |= dict(zip(_NUMBERS, chance.estimate(mean, truth.rarer(truth.judged))[:3], strict=True))
        found.append(row)
    return found
