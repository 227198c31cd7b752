"""What else is measured of each arm at each fraction: precision, sensitivity, calibration, and each output's AUROC.

The table of measures has columns arm, fraction, measure, value, low, high, reason. Values are means over draws and
encoders. Average precision, sensitivity and AUROC have intervals as AUROC has in the curve (`Chance.estimate`); the
threshold of a sensitivity is chosen on the test rows of each cell, and of each resample anew.

Calibration has values without intervals (low and high are NaN). An ECE is biased upwards, and a resample of rows adds
as much bias again, so that percentile intervals often lie above the value itself; how sure the calibration is shows in
the bins of the reliability diagram. The temperature of a cell is fitted to its out-of-fold logits alone.

The table of calibration has those bins, from the predictions of all cells of an arm at a fraction together: columns
arm, fraction, scaled (whether by temperature), predicted, observed, low, high, n (rows of a cell, on average). Its
Wilson intervals count patients, not rows, and only as many as fall into the bin in one cell, for all cells have the
same patients.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy.special import expit, softmax

from medclr.evaluation.cells import Cell
from medclr.evaluation.estimates import Chance, Estimate, Outcome, Sample, Truth, mean_of
from medclr.metrics import (
    LEAST_IN_BIN,
    Resamples,
    Temperature,
    calibration,
    fit_temperature,
    weighted_operating,
    wilson_interval,
)

PRECISION = "average precision"
SPECIFICITIES = {"sensitivity at 90% specificity": 0.9, "sensitivity at 95% specificity": 0.95}
ECE, SCALED_ECE, TEMPERATURE = "ECE", "ECE after temperature scaling", "temperature"
_MEASURES = ["arm", "fraction", "measure", "value", "low", "high", "reason"]
N_BINS = 10
_BINS = ["arm", "fraction", "scaled", "predicted", "observed", "low", "high", "n"]


def measure(
    outcomes: Sequence[Outcome],
    truth: Truth,
    chance: Chance,
    kind: str,
    outputs: Sequence[str],
    y_of: Mapping[tuple[float, int], np.ndarray],
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The tables of measures and of calibration.

    kind: "binary", "multiclass" or "multilabel". outputs: names of the columns of y. y_of: labels of the training rows
    of each (fraction, draw), by which temperatures are fitted.
    """
    rows: list[dict[str, Any]] = []
    bins: list[dict[str, Any]] = []
    resamples = chance.patients(truth.patients, truth.strata)
    for outcome in outcomes:
        fits = [temperature_of(cell.held_out, y_of[cell.fraction, cell.draw], kind) for cell in outcome.cells]
        found = _ranking(outcome, truth, chance, outputs, resamples) | _calibrated(outcome, truth, kind, fits)
        where = {"arm": outcome.arm, "fraction": outcome.fraction}
        for name, (value, low, high, reason) in found.items():
            rows.append(where | {"measure": name, "value": value, "low": low, "high": high, "reason": reason})
        for scaled in (False, True):
            bins += [where | {"scaled": scaled} | one for one in _bins(outcome, truth, kind, fits if scaled else None)]
    return pd.DataFrame(rows, columns=_MEASURES), pd.DataFrame(bins, columns=_BINS)


_Found = dict[str, tuple[float, float, float, str]]


def _none(reason: str) -> tuple[float, float, float, str]:
    return math.nan, math.nan, math.nan, reason


def _ranking(outcome: Outcome, truth: Truth, chance: Chance, outputs: Sequence[str], resamples: Resamples) -> _Found:
    names = [f"AUROC {name}" for name in outputs] if len(outputs) > 1 else []
    if outcome.reason:
        return dict.fromkeys([PRECISION, *SPECIFICITIES, *names], _none(outcome.reason))
    found: _Found = {}
    samples = [_operating(outcome, truth, output, len(outputs) == 1, resamples) for output in truth.judged]
    precision = mean_of([of_output[0] for of_output in samples])
    found[PRECISION] = (*_spread(chance.estimate(precision, truth.rarer(truth.judged))), "")
    for place, name in enumerate(SPECIFICITIES):
        if len(outputs) == 1:
            found[name] = (*_spread(chance.estimate(samples[0][1 + place], truth.rarer([0]))), "")
        else:
            found[name] = _none("n/a: of a single binary label only")
    for output, name in enumerate(names):
        if truth.reasons[output]:
            found[name] = _none(f"n/a: the test set holds {truth.reasons[output]}; left out of the mean AUROC")
        else:
            found[name] = (*chance.estimate(outcome.by_output[output], truth.rarer([output]))[:3], "")
    return found


def _spread(found: Estimate) -> tuple[float, float, float]:
    """A value and its interval; none where no resample varies, which is not certainty but too few patients."""
    return (found.value, math.nan, math.nan) if found.low == found.high else (found.value, found.low, found.high)


def _operating(outcome: Outcome, truth: Truth, output: int, single: bool, resamples: Resamples) -> list[Sample]:
    """Average precision of one output, and its sensitivities where it is the only one."""
    known = np.flatnonzero(~np.isnan(truth.y[:, output]))
    y = truth.y[known, output]
    at = list(SPECIFICITIES.values()) if single else []
    values = np.empty((1 + len(at), len(outcome.cells)))
    resampled = np.zeros((1 + len(at), len(resamples)))
    scores = [cell.scores[known, output] for cell in outcome.cells if cell.scores is not None]
    for place, one in enumerate(scores):
        values[:, place] = weighted_operating(y, one, np.ones((1, len(y))), at)[:, 0]
    for rows, weights in resamples.weights():
        transposed = np.ascontiguousarray(weights[:, known].T)
        for one in scores:
            resampled[:, rows] += weighted_operating(y, one, transposed.T, at) / len(scores)
    return [Sample(outcome.by_cell(list(of_cells)), one) for of_cells, one in zip(values, resampled, strict=True)]


def temperature_of(held_out: np.ndarray | None, y: np.ndarray, kind: str) -> Temperature:
    """From logits (n, K) of rows that were not fitted on, and their labels; of several labels, one for all of them."""
    if held_out is None:
        return Temperature(math.nan, "no out-of-fold predictions")
    if kind == "multiclass":
        fit = fit_temperature(y.argmax(axis=1), held_out)
    else:
        known = ~np.isnan(y)
        fit = fit_temperature(y[known], held_out[known])
    return (
        Temperature(math.nan, "the logits that it would be fitted to favour the wrong class")
        if math.isinf(fit.value)
        else fit
    )


def _calibrated(outcome: Outcome, truth: Truth, kind: str, fits: Sequence[Temperature]) -> _Found:
    if outcome.reason:
        return dict.fromkeys([ECE, SCALED_ECE, TEMPERATURE], _none(outcome.reason))
    before = [_ece(cell, truth, kind, 1.0) for cell in outcome.cells]
    after = [
        (math.nan, fit.reason) if fit.reason else _ece(cell, truth, kind, fit.value)
        for cell, fit in zip(outcome.cells, fits, strict=True)
    ]
    return {ECE: _mean(outcome, before), SCALED_ECE: _mean(outcome, after), TEMPERATURE: _mean(outcome, fits)}


def _mean(outcome: Outcome, found: Sequence[tuple[float, str]]) -> tuple[float, float, float, str]:
    reasons = {reason for _, reason in found}
    if len(reasons) == 1 and reasons != {""}:
        return _none(f"n/a: {reasons.pop()}")
    if reason := outcome.missing([reason for _, reason in found]):
        return _none(reason)
    return float(np.mean([value for value, _ in found])), math.nan, math.nan, ""


def _ece(cell: Cell, truth: Truth, kind: str, temperature: float) -> tuple[float, str]:
    """Of one cell; of several labels, the mean over those that can be judged."""
    found = [
        calibration(outcome, predicted, N_BINS) for predicted, outcome in _predictions(cell, truth, kind, temperature)
    ]
    reasons = [one.reason for one in found if one.reason]
    return (math.nan, reasons[0]) if reasons else (float(np.mean([one.ece for one in found])), "")


def _predictions(cell: Cell, truth: Truth, kind: str, temperature: float) -> list[tuple[np.ndarray, np.ndarray]]:
    """Probabilities and whether they came true: of each label that can be judged; of classes, of the one predicted."""
    assert cell.scores is not None
    logits = cell.scores / temperature
    if kind == "multiclass":
        probabilities = softmax(logits, axis=1)
        return [(probabilities.max(axis=1), truth.y[np.arange(len(logits)), probabilities.argmax(axis=1)])]
    known = {output: ~np.isnan(truth.y[:, output]) for output in truth.judged}
    return [(expit(logits[rows, output]), truth.y[rows, output]) for output, rows in known.items()]


def _bins(outcome: Outcome, truth: Truth, kind: str, fits: Sequence[Temperature] | None) -> list[dict[str, Any]]:
    """Of the predictions of all cells together, as they are or scaled; none where a cell has none or too few."""
    if outcome.reason or (fits and any(fit.reason for fit in fits)):
        return []
    temperatures = [fit.value for fit in fits] if fits else [1.0] * len(outcome.cells)
    pairs = [
        pair
        for cell, temperature in zip(outcome.cells, temperatures, strict=True)
        for pair in _predictions(cell, truth, kind, temperature)
    ]
    predicted, came_true = (np.concatenate(column) for column in zip(*pairs, strict=True))
    if len(predicted) < LEAST_IN_BIN * N_BINS * len(outcome.cells):
        return []
    n_patients = len(np.unique(truth.patients))
    rows = []
    for one in calibration(came_true, predicted, N_BINS).bins:
        patients = np.array(n_patients * one.n / len(predicted))
        low, high = wilson_interval(one.observed * patients, patients)
        row = {"predicted": one.predicted, "observed": one.observed, "low": float(low), "high": float(high)}
        rows.append(row | {"n": one.n / len(outcome.cells)})
    return rows
