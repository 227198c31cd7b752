"""The label-efficiency curve on the target: a few labels per class, with and without adaptation before them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from medclr.evaluation.cells import Cell
from medclr.evaluation.estimates import Chance, Estimate, Outcome, Truth, outcomes
from medclr.evaluation.labels_needed import labels_needed
from medclr.metrics import holm

BOTH, ADAPTED, ALONE, LP_FT = "source+target", "adapted+target", "target-alone", "lp-ft"
SHOT_METHODS = (BOTH, ADAPTED, ALONE, LP_FT)

_POINTS = ["method", "shots", "auroc", "low", "high", "n_draws", "n_encoders", "reason"]
_NUMBERS = ("difference", "low", "high", "p", "p_holm", "detectable")
_DIFFERENCES = ["method", "versus", "shots", *_NUMBERS, "reason"]


@dataclass(frozen=True)
class Worth:
    """How many labels per class BOTH takes to rank as adaptation does without any; its interval may be open.

    0: adaptation is not above what is there without it; inf: more than `most`. NaN where `reason` says why.
    """

    labels: float
    low: float
    high: float
    most: int
    reason: str = ""


@dataclass(frozen=True, eq=False)
class Shots:
    """What a few labels of the target gave. Where a row has a `reason`, there is no number. Intervals are of 95%.

    `points`: a row for each of SHOT_METHODS and number of labels per class; 0 is the method without any: source-only
    for BOTH, auto for ADAPTED.

    `differences`: from BOTH at as many labels, with p, and p after Holm over all of these rows.

    `worth`: of adaptation, in labels per class; None where it was not run.
    """

    points: pd.DataFrame
    differences: pd.DataFrame
    worth: Worth | None

    def frame(self) -> pd.DataFrame:
        return self.points


def shot_name(method: str, shots: int) -> str:
    """Of an arm of the grid; `shot_curve` reads it."""
    return f"{method}-{shots}"


def shot_curve(
    cells: Sequence[Cell], start: dict[str, str], truth: Truth, draws: int, resamples: int, seed: int
) -> Shots:
    """The curve from the cells of a grid.

    Args:
        cells: of arms that `shot_name` names, and of those that `start` does.
        start: by method, the arm that has its place where there is no label of the target.
        truth: of the target; draws, resamples, seed: as for `domain_adaptation`.
    """
    chance = Chance(draws, 1 + max(cell.encoder for cell in cells), resamples, seed)
    by_arm = {one.arm: one for one in outcomes(cells, truth, chance)}
    found = {(method, 0): by_arm[arm] for method, arm in start.items() if arm in by_arm}
    for arm, outcome in by_arm.items():
        method, _, shots = arm.rpartition("-")
        if method in SHOT_METHODS and shots.isdigit():
            found[method, int(shots)] = outcome
    found = dict(sorted(found.items(), key=lambda item: (SHOT_METHODS.index(item[0][0]), item[0][1])))
    n = truth.rarer(truth.judged) if truth.judged else math.nan
    estimates = {key: chance.estimate(one.auroc, n) for key, one in found.items() if one.auroc is not None}
    return Shots(
        pd.DataFrame([_point(*key, one, estimates.get(key)) for key, one in found.items()], columns=_POINTS),
        pd.DataFrame(_differences(found, chance, n), columns=_DIFFERENCES),
        _worth(found, estimates),
    )


def _point(method: str, shots: int, outcome: Outcome, estimate: Estimate | None) -> dict[str, Any]:
    row: dict[str, Any] = {"method": method, "shots": shots}
    row |= dict(zip(("auroc", "low", "high"), estimate[:3] if estimate else (math.nan,) * 3, strict=True))
    return row | {"n_draws": outcome.n_draws, "n_encoders": outcome.n_encoders, "reason": outcome.reason}


def _differences(found: dict[tuple[str, int], Outcome], chance: Chance, n: float) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for (method, shots), outcome in found.items():
        if method == BOTH or not shots:  # that of adaptation without labels has been tested as such
            continue
        without = found[BOTH, shots]
        row: dict[str, Any] = {"method": method, "versus": BOTH, "shots": shots, **dict.fromkeys(_NUMBERS, math.nan)}
        row["reason"] = outcome.reason or without.reason
        if outcome.auroc is not None and without.auroc is not None:
            one = chance.estimate(outcome.auroc, n, without.auroc)
            row |= {"difference": one.value, "low": one.low, "high": one.high, "p": one.p, "detectable": one.detectable}
        rows.append(row)
    tested = [row for row in rows if not row["reason"]]
    for row, adjusted in zip(tested, holm(np.array([row["p"] for row in tested])), strict=True):
        row["p_holm"] = float(adjusted)
    return rows


def _worth(found: dict[tuple[str, int], Outcome], estimates: dict[tuple[str, int], Estimate]) -> Worth | None:
    """Where the curve of BOTH first reaches ADAPTED at 0, read on the logarithm of 1 + labels, as it has a point at 0.

    A curve that falls at first has reached what it was before: nobody has to learn labels that do harm.
    """
    if (ADAPTED, 0) not in found:
        return None
    shots = [number for method, number in found if method == BOTH]
    nothing = Worth(math.nan, math.nan, math.nan, shots[-1])
    for key in ((ADAPTED, 0), (BOTH, 0)):
        if key not in estimates:
            return replace(nothing, reason=found[key].reason)
    known = [number for number in shots if (BOTH, number) in estimates]
    if len(known) < 2:
        return replace(nothing, reason=found[BOTH, shots[-1]].reason)
    goal, curve = estimates[ADAPTED, 0], [estimates[BOTH, number] for number in known]
    needed = labels_needed(
        np.array(known) + 1.0,
        np.maximum.accumulate([one.value for one in curve]),
        goal.value,
        np.maximum.accumulate(np.stack([one.resampled for one in curve], axis=1), axis=1),
        goal.resampled,
    )
    # Of one more than there are: 0 of them, "the first or fewer", is no label at all.
    labels, low, high = (max(value - 1, 0) for value in (needed.labels, needed.low, needed.high))
    return Worth(labels, low, high, known[-1])
