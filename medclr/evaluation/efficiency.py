"""The label-efficiency curve: every arm at every fraction, draw and encoder, and what that can and cannot tell."""

import math
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from medclr.evaluation.cells import Arm, Cell, Scores, drawn, run_cells, unjudged
from medclr.evaluation.comparison import BASELINES, BETTER, differences_of, needed_of, verdict_of
from medclr.evaluation.estimates import Chance, Estimate, Outcome, Truth, outcomes
from medclr.evaluation.labels_needed import LabelsNeeded
from medclr.evaluation.measures import measure
from medclr.evaluation.plot import draw_curve
from medclr.evaluation.second_opinion import Means, delong_means
from medclr.evaluation.subgroups import subgroups

if TYPE_CHECKING:  # matplotlib is loaded by those who draw
    from matplotlib.axes import Axes

__all__ = ["BASELINES", "BETTER", "Arm", "Cell", "Curve", "Scores", "label_efficiency"]


@dataclass(frozen=True, eq=False)
class Curve:
    """A finished grid. Where a row of its tables has a `reason`, there is no number, and it says why.

    `points`: one row per arm and fraction: AUROC averaged over draws and encoders, its 95% interval, and counts of
    labelled patients and volumes (their rounded mean over draws; of several classes, volumes are not counted). Where
    any cell has no result the point has none either: an average over the others would hide it. `delong_low` and
    `delong_high` are a second opinion, over test patients alone, with draws and encoders as given: the interval in
    closed form (DeLong; Obuchowski where patients repeat) on the logit scale.

    `differences`: one row per pre-trained arm, fraction and baseline (`versus`): AUROC of the arm minus that of the
    baseline, its 95% interval, p, and p after Holm over all of these rows. One more row per arm and fraction has
    `versus` "better baseline": the difference from the baseline that did best there, which `baseline` names. Its
    `p_holm` is that of the claim it makes: if ahead, the largest over all baselines, as to beat the better one is
    to beat each; if behind, that of the better baseline. So choosing the baseline after the fact costs no validity.
    `detectable` is the smallest true difference that a test of this comparison alone would find with 80% power; NaN
    where the two rank all rows alike. `delong_low`, `delong_high` and `delong_p`, not corrected, are the second opinion
    of this difference; the p of a claim to be ahead is again the largest.

    `measures`, `calibration`: see `medclr.evaluation.measures`. `subgroups`: see `medclr.evaluation.subgroups`.

    `needed`: by arm, the labelled patients with which it matches scratch with all of them, with a 95% interval over
    test patients, draws and encoders; empty without scratch at fraction 1, and without a smaller fraction.
    """

    cells: list[Cell]
    points: pd.DataFrame
    differences: pd.DataFrame
    measures: pd.DataFrame
    calibration: pd.DataFrame
    subgroups: pd.DataFrame
    needed: dict[str, LabelsNeeded]

    def frame(self) -> pd.DataFrame:
        return self.points

    def plot(self, axes: "Axes | None" = None) -> "Axes":
        """Draw the curve on these matplotlib Axes, or on those of a new figure (`.figure`), and return them."""
        if axes is None:
            from matplotlib.figure import Figure

            axes = Figure(figsize=(7.2, 4.6), layout="constrained").add_subplot()
        draw_curve(axes, self.points)
        return axes

    def verdict(self) -> str:
        """Whether pre-training helped, in one sentence.

        To pick the arm that did best and test that one would be optimistic, so every pre-trained arm is named, at
        every fraction. An arm "helps" only where it beats every baseline, and "hurts" only where it falls behind
        the better one, at 5% after Holm over arms x baselines x fractions; anything else is no difference that these
        data can resolve. Without both baselines nothing is said to help.
        """
        return verdict_of(self.points, self.differences)


def label_efficiency(
    y_train: np.ndarray,
    patients_train: np.ndarray,
    y_test: np.ndarray,
    patients_test: np.ndarray,
    arms: Mapping[str, Sequence[Arm]],
    n_draws: Mapping[float, int],
    resamples: int,
    seed: int,
    done: Mapping[str, Cell] | None = None,
    on_cell: Callable[[Cell], None] | None = None,
    baselines: Sequence[str] = BASELINES,
    kind: str = "binary",
    groups: pd.DataFrame | None = None,
    pool: Executor | None = None,
    outputs: Sequence[str] = (),
) -> Curve:
    """Run every arm on the same nested draws of labelled patients, and measure all of them on the same test rows.

    A cell is not run where its draw has no output of both classes. An output that fewer than 5 test patients with a
    positive, or with a negative, could judge is left out of the mean AUROC of all cells, and `measures` says so;
    without any other, no cell is run.

    Intervals and tests are over test patients, draws and encoders together, the same for all arms and fractions, so
    that differences are paired: patients by a bootstrap (stratified by class, or by whether they have a positive),
    draws and encoders by the variance between them; see `Chance.estimate`. With one draw or encoder they are
    conditional on it; always, on the labelled pool.

    Args:
        y_train: (n, K) of 0, 1 and NaN (unknown): one column of a binary label, one a class, or one a label.
        patients_train: (n,) keys.
        y_test, patients_test: the same of the test rows.
        arms: of each name, one Arm for each encoder (pre-training seed); a baseline has one. Arms of as many encoders
            are paired, encoder by encoder.
        n_draws: how many draws at each fraction of the labelled patients. At fraction 1 they hold the same rows and
            differ in the seed alone.
        resamples: of test patients.
        seed: of draws, fits and resamples.
        done: cells of an earlier call by their id, which are not run again.
        on_cell: called here with each new cell as soon as it exists.
        baselines: those that every other arm is compared with.
        kind: "binary", "multiclass" or "multilabel".
        groups: columns of the test rows, in their order, for subgroups.
        pool: runs cells at once. Where one fails, those that have not begun are cancelled, and what is finished by
            then is still handed to `on_cell`.
        outputs: names of the K columns; without them, their numbers.

    Raises:
        DataError: a cell in `done` belongs to other labels or patients.
        Exception: what an arm raises.
    """
    draws = drawn(y_train, patients_train, n_draws, seed)
    cells = run_cells(
        y_train,
        patients_train,
        y_test,
        patients_test,
        arms,
        draws,
        seed,
        kind,
        done or {},
        on_cell or (lambda cell: None),
        pool,
    )
    names = outputs or [str(1 + column) for column in range(y_test.shape[1])]
    truth = Truth.of(y_test, patients_test, kind)
    chance = Chance(max(n_draws.values()), max(map(len, arms.values())), resamples, seed)
    results = outcomes(cells, truth, chance)
    n_patients = truth.rarer(truth.judged) if truth.judged else math.nan
    estimates = {
        (one.arm, one.fraction): chance.estimate(one.auroc, n_patients) for one in results if one.auroc is not None
    }
    y_of = {key: y_train[rows] for key, rows in draws.items()}
    second = delong_means(results, truth)
    points = _points(results, estimates, second)
    measures, calibration = measure(results, truth, chance, kind, names, y_of)
    return Curve(
        cells,
        points,
        differences_of(results, chance, n_patients, baselines, second, _scarce(y_train, patients_train)),
        measures,
        calibration,
        subgroups(results, truth, chance, kind, pd.DataFrame() if groups is None else groups),
        needed_of(results, points, {key: found.resampled for key, found in estimates.items()}),
    )


def _scarce(y_train: np.ndarray, patients_train: np.ndarray) -> str:
    """Why nothing can be claimed of arms: their pool has so few of a class that all draws hold the same ones.

    What another few would have taught is then in no interval.
    """
    reasons = unjudged(y_train, patients_train)
    return f"the training pool has {reasons[0]}" if all(reasons) else ""


def _points(
    results: Sequence[Outcome], estimates: Mapping[tuple[str, float], Estimate], second: Mapping[float, Means]
) -> pd.DataFrame:
    rows: list[dict[str, Any]] = []
    for one in results:
        row: dict[str, Any] = {"arm": one.arm, "fraction": one.fraction}
        for name in ("n_patients", "n_positive", "n_negative"):
            counts = [getattr(cell, name) for cell in one.cells]
            row[name] = math.nan if None in counts else round(np.mean(counts))
        row |= {"n_draws": one.n_draws, "n_encoders": one.n_encoders}
        found = estimates.get((one.arm, one.fraction))
        row |= dict(zip(("auroc", "low", "high"), found[:3] if found else (math.nan,) * 3, strict=True))
        delong = second[one.fraction].interval(one.arm) if found and one.fraction in second else (math.nan,) * 2
        row |= dict(zip(("delong_low", "delong_high"), delong, strict=True))
        rows.append(row | {"reason": one.reason})
    return pd.DataFrame(rows)
