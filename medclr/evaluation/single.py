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
    cell = Cell("", 1.0, 0, 0, 0, None, None, math.nan, scores, held_out, "", "", 0.0)
    truth, chance = Truth.of(y, patients, kind), Chance(1, 1, resamples, seed)
    if not truth.judged:
        nothing = pd.DataFrame()
        return Judgement(nothing, nothing, nothing)
    found = outcomes([cell], truth, chance)
    fitted_by = np.empty((0, y.shape[1])) if y_held_out is None else y_held_out
    measures, calibration = measure(found, truth, chance, kind, outputs, {(1.0, 0): fitted_by})
    tables = measures, calibration, subgroups(found, truth, chance, kind, pd.DataFrame() if groups is None else groups)
    return Judgement(*(table.drop(columns=["arm", "fraction"]) for table in tables))
