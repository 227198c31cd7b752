"""What adapting to a target without labels gained, of what labels of the target would have, and what was chosen."""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
import pandas as pd

from medclr.evaluation.cells import Arm, Cell, drawn, run_cells
from medclr.evaluation.efficiency import label_efficiency
from medclr.evaluation.estimates import LEVEL, Chance, Outcome, Truth, outcomes
from medclr.evaluation.shots import ADAPTED, BOTH, Shots, shot_curve
from medclr.metrics import interval

SOURCE_ONLY, AUTO, TARGET_TRAINED = "source-only", "auto", "target-trained"
LEAST_GAP = 0.03  # of AUROC, below which there is too little to regain for a share of it to mean anything

UNJUDGED = "no volume of the target has a label"

_DIFFERENCES = ["method", "difference", "low", "high", "p_holm", "detectable", "reason"]
_REGAINED = ["method", "gap", "gap_low", "gap_high", "share", "low", "high", "reason"]
_CHOICES = ["method", "n", "of", "left"]
_JUDGED = {"at_home": "at home", "entropy": "entropy"}  # columns, and what cells call them


@dataclass(frozen=True, eq=False)
class Adaptation:
    """What was found. Where a row has a `reason`, there is no number, and it says why. Intervals are of 95%.

    `points`: a row for each method: AUROC on the target's volumes, each scored by an adaptation to other patients; and
    what it could be chosen by without labels of these, NaN of a method that cannot: `at_home`, its AUROC in the source
    by patients held out, and `entropy`, how unsure it is of its answers in the target, from 0 to 1.

    `differences`: of each method from source-only, with p, and p after Holm over all of these rows. That of
    target-trained, the upper bound, is the gap that there is.

    `regained`: by method, the share of that gap which it closes: (method - source-only) / (target-trained -
    source-only), of AUROCs averaged over draws and encoders. None where the gap is below LEAST_GAP.

    `choices`: what auto chose: in how many of all halves, and the distance of the domains that it left there, on
    average, as a multiple of what chance makes. Of a target without labels, in how many of all encoders.

    `oracle`: the method with the highest AUROC on the target, which nobody knows without its labels.

    `shots`: what a few labels of the target give, with and without adaptation before them; None where not asked for.
    """

    points: pd.DataFrame
    differences: pd.DataFrame
    regained: pd.DataFrame
    choices: pd.DataFrame
    oracle: str
    shots: Shots | None = None

    def frame(self) -> pd.DataFrame:
        return self.points


def domain_adaptation(
    y_source: np.ndarray,
    patients_source: np.ndarray,
    y_target: np.ndarray,
    patients_target: np.ndarray,
    arms: Mapping[str, Sequence[Arm]],
    draws: int,
    resamples: int,
    seed: int,
    done: Mapping[str, Cell] | None = None,
    on_cell: Callable[[Cell], None] | None = None,
    kind: str = "binary",
    shots: Mapping[str, Sequence[Arm]] = MappingProxyType({}),
) -> Adaptation:
    """Run every method on the same random halves of the target, and measure all of them on all of its volumes.

    Args:
        y_source, patients_source, y_target, patients_target: (n, K) of 0, 1 and NaN, and (n,) keys; see
            `label_efficiency`, of whose grid this is the last column: all labels of the source, `draws` times.
        arms: by method, among them SOURCE_ONLY and TARGET_TRAINED, one Arm for each encoder; what AUTO's chooses is
            written by `choice_text`.
        resamples: of the target's patients; seed: of halves, fits and resamples; done, on_cell: cells that exist, and
            who is told of new ones; kind: "binary", "multiclass" or "multilabel".
        shots: arms that learn a few labels of the target, as `shot_name` calls them; they are no part of the other
            tables, nor of their correction.
    """
    if shots:  # side by side with the others, since they share what is computed for a draw
        halves = drawn(y_source, patients_source, {1.0: draws}, seed)
        cells = run_cells(
            y_source, patients_source, y_target, patients_target, {**arms, **shots}, halves, seed, kind, done or {},
            on_cell or (lambda cell: None), None,
        )  # fmt: skip
        done = {cell.id: cell for cell in cells}
    curve = label_efficiency(
        y_source, patients_source, y_target, patients_target, arms, {1.0: draws}, resamples, seed, done, on_cell,
        (SOURCE_ONLY,), kind,
    )  # fmt: skip
    # Counts of a curve are of what was learned from, which is the same source for all.
    points = curve.points.rename(columns={"arm": "method"}).drop(
        columns=["fraction", "n_patients", "n_positive", "n_negative"]
    )
    for column, word in _JUDGED.items():
        points[column] = [_told(curve.cells, method, word) for method in points["method"]]
    differences = curve.differences[curve.differences["versus"] == SOURCE_ONLY]
    differences = differences.rename(columns={"arm": "method"}).drop(columns=["fraction", "baseline"])
    truth = Truth.of(y_target, patients_target, kind)
    chance = Chance(draws, max(map(len, arms.values())), resamples, seed)
    found = {one.arm: one for one in outcomes(curve.cells, truth, chance)}
    known = points[(points["reason"] == "") & ~points["method"].isin([AUTO, TARGET_TRAINED])]
    oracle = str(known.sort_values("auroc", ascending=False, kind="stable")["method"].iloc[0]) if len(known) else ""
    return Adaptation(
        points,
        differences.reset_index(drop=True),
        pd.DataFrame(_regained(found, truth, chance), columns=_REGAINED),
        _choices(curve.cells),
        oracle,
        shot_curve(cells, {BOTH: SOURCE_ONLY, ADAPTED: AUTO}, truth, draws, resamples, seed) if shots else None,
    )


def unjudged_adaptation(
    methods: Sequence[str], judged: Mapping[str, Sequence[tuple[float, float]]], choices: Sequence[tuple[str, float]]
) -> Adaptation:
    """What can be told of methods where no volume of the target has a label: what they can be chosen by.

    Args:
        methods: all that may be chosen or asked for.
        judged: by method of each encoder its AUROC in the source and its entropy, where it has them.
        choices: of AUTO for each encoder the method and what it left.
    """
    points = pd.DataFrame({"method": list(methods)}).assign(**dict.fromkeys(("auroc", "low", "high"), math.nan))
    means = {name: np.mean(values, axis=0) for name, values in judged.items()}
    for place, column in enumerate(_JUDGED):
        points[column] = [float(means[name][place]) if name in means else math.nan for name in methods]
    differences, regained = (pd.DataFrame(columns=columns) for columns in (_DIFFERENCES, _REGAINED))
    return Adaptation(points.assign(reason=UNJUDGED), differences, regained, _counted(choices), "")


def choice_text(chosen: Sequence[tuple[str, float]]) -> str:
    """Methods and what they left, one pair for each half, as a cell's `choice` has them."""
    return ", ".join(f"{method} left {left:.4f}" for method, left in chosen)


def judged_text(at_home: float, entropy: float) -> str:
    """What a method may be chosen by without labels of the target, as a cell's `choice` has it."""
    values = zip(_JUDGED.values(), (at_home, entropy), strict=True)
    return ", ".join(f"{word} {value:.4f}" for word, value in values)


def _told(cells: Sequence[Cell], method: str, word: str) -> float:
    """The mean over cells of what `judged_text` has after this word; NaN where there is none."""
    found = [re.search(rf"{word} ([\d.]+)", cell.choice) for cell in cells if cell.arm == method]
    return float(np.mean([float(one[1]) for one in found if one])) if any(found) else math.nan


def _choices(cells: Sequence[Cell]) -> pd.DataFrame:
    """Of AUTO, over all halves."""
    texts = [cell.choice for cell in cells if cell.arm == AUTO]
    return _counted([pair for text in texts for pair in re.findall(r"(\S+) left (\S+?)(?:,|$)", text)])


def _counted(pairs: Sequence[tuple[str, str | float]]) -> pd.DataFrame:
    """Methods and what they left, from most to least often."""
    frame = pd.DataFrame(pairs, columns=["method", "left"]).astype({"left": float})
    counted = frame.groupby("method", sort=False)["left"].agg(n="size", left="mean").reset_index()
    return counted.assign(of=len(pairs)).sort_values("n", ascending=False, kind="stable")[_CHOICES]


def _regained(found: Mapping[str, Outcome], truth: Truth, chance: Chance) -> list[dict[str, Any]]:
    """The share of the gap, and its interval from the same resamples above and below the line."""
    source, bound = found[SOURCE_ONLY].auroc, found[TARGET_TRAINED].auroc
    if source is None or bound is None:
        return []
    n = truth.rarer(truth.judged)
    gap = chance.estimate(bound, n, source)
    rows = []
    for method, outcome in found.items():
        if method in (SOURCE_ONLY, TARGET_TRAINED) or outcome.auroc is None:
            continue
        row = {"method": method, "gap": gap.value, "gap_low": gap.low, "gap_high": gap.high, "reason": ""}
        row |= dict.fromkeys(("share", "low", "high"), math.nan)
        if gap.value < LEAST_GAP:
            row["reason"] = f"the gap to labels of the target is below {LEAST_GAP:g}"
        elif not gap.low > 0:
            row["reason"] = "the gap to labels of the target is not resolved"
        else:
            gain = chance.estimate(outcome.auroc, n, source)
            # A resample without a gap says no more than on which side the gain is.
            shares = gain.resampled / np.maximum(gap.resampled, 1e-6)
            low, high = interval(shares, LEVEL)
            row |= {"share": gain.value / gap.value, "low": low, "high": high}
        rows.append(row)
    return rows
