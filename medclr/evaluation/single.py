"""One classifier on one set of labelled rows, measured as the arms of a curve are."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from medclr.evaluation.cells import Cell
from medclr.evaluation.estimates import Chance, Truth, outcomes
from medclr.evaluation.measures import measure
from medclr.evaluation.subgroups import subgroups


class Auroc(NamedTuple):
    """A mean AUROC, or a difference of two, with its 95% interval; or the reason why there is none."""

    value: float
    low: float
    high: float
    reason: str


def auroc_of(
    y: np.ndarray,
    patients: np.ndarray,
    scores: np.ndarray,
    kind: str,
    resamples: int,
    seed: int,
    versus: np.ndarray | None = None,
) -> Auroc:
    """Mean AUROC over the outputs that these rows can judge, or its difference from that of `versus`.

    The interval is over patients, as that of a curve with one draw and one encoder: see `Chance.estimate`.

    Args:
        y: (n, K) of 0, 1 and NaN; patients: (n,) keys; scores, versus: (n, K) logits.
        kind, resamples, seed: as for `judge`.
    """
    truth, chance = Truth.of(y, patients, kind), Chance(1, 1, resamples, seed)
    if not truth.judged:
        return Auroc(math.nan, math.nan, math.nan, truth.reasons[0])
    cells = [_cell("", scores)] + ([] if versus is None else [_cell("versus", versus)])
    one, *other = (found.auroc for found in outcomes(cells, truth, chance))
    assert one
    found = chance.estimate(one, truth.rarer(truth.judged), *other)
    return Auroc(found.value, found.low, found.high, "")


class Judgement(NamedTuple):
    """Tables as those of `Curve` of the same names, without the columns that tell arms and fractions apart."""

    measures: pd.DataFrame
    calibration: pd.DataFrame
    subgroups: pd.DataFrame


def judge(
    y: np.ndarray,
    patients: np.ndarray,
    scores: np.ndarray,
    kind: str,
    outputs: Sequence[str],
    resamples: int,
    seed: int,
    held_out: np.ndarray | None = None,
    y_held_out: np.ndarray | None = None,
    groups: pd.DataFrame | None = None,
) -> Judgement:
    """Average precision, sensitivity, calibration and subgroups of one classifier.

    Args:
        y: (n, K) of 0, 1 and NaN; patients: (n,) keys; scores: (n, K) logits.
        kind: "binary", "multiclass" or "multilabel"; outputs: names of the K columns.
        resamples: of patients; seed: of these.
        held_out, y_held_out: logits and labels of other rows that the classifier was not fitted on, by which the
            temperature is fitted; None where there are none.
        groups: columns of the rows, in their order, for subgroups.
    """
    truth, chance = Truth.of(y, patients, kind), Chance(1, 1, resamples, seed)
    if not truth.judged:
        nothing = pd.DataFrame()
        return Judgement(nothing, nothing, nothing)
    found = outcomes([_cell("", scores, held_out)], truth, chance)
    fitted_by = np.empty((0, y.shape[1])) if y_held_out is None else y_held_out
    measures, calibration = measure(found, truth, chance, kind, outputs, {(1.0, 0): fitted_by})
    tables = measures, calibration, subgroups(found, truth, chance, kind, pd.DataFrame() if groups is None else groups)
    return Judgement(*(table.drop(columns=["arm", "fraction"]) for table in tables))


def _cell(name: str, scores: np.ndarray, held_out: np.ndarray | None = None) -> Cell:
    return Cell(name, 1.0, 0, 0, 0, None, None, math.nan, scores, held_out, "", "", 0.0)
