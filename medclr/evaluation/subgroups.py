"""AUROC within parts of a test set: by sex, age, view or scanner."""

import math
from collections.abc import Sequence
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
        One row for each arm, column and group, groups sorted by name with "unknown" last: arm, fraction, column, group,
        n (rows), n_patients, n_positive and n_negative (rows with any positive and with none known; NaN of several
        classes), auroc, low, high, reason.
    """
    largest = max((outcome.fraction for outcome in outcomes), default=math.nan)
    last = [outcome for outcome in outcomes if outcome.fraction == largest]
    rows: list[dict[str, Any]] = []
    for column in groups.columns:
        names = np.array([UNKNOWN if pd.isna(value) or value == "" else str(value) for value in groups[column]])
        distinct = sorted(set(names.tolist()), key=lambda name: (name == UNKNOWN, name))
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
