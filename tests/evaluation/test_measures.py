import math
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy.special import expit
from sklearn.metrics import average_precision_score, roc_curve

from medclr.evaluation.cells import Cell
from medclr.evaluation.estimates import Chance, Truth, outcomes
from medclr.evaluation.measures import measure
from medclr.metrics import calibration, fit_temperature, wilson_interval

PATIENTS = np.repeat(np.arange(60), 2)
Y = np.repeat(np.arange(60) % 2, 2)[:, None] + 0.0


def cell(encoder: int, draw: int, **changed: Any) -> Cell:
    rng = np.random.default_rng([encoder, draw])
    return Cell(
        **{
            "arm": "simclr-linear",
            "fraction": 1.0,
            "draw": draw,
            "encoder": encoder,
            "n_patients": 60,
            "n_positive": 60,
            "n_negative": 60,
            "auroc": 0.5,
            "scores": 4 * (Y - 0.5) + 3 * rng.normal(size=Y.shape),
            "held_out": 4 * (Y - 0.5) + 3 * rng.normal(size=Y.shape),
            "choice": "",
            "reason": "",
            "seconds": 0.0,
            **changed,
        }
    )


CELLS = [cell(encoder, draw) for encoder in range(2) for draw in range(3)]


def measured(cells: list[Cell], y: np.ndarray = Y, kind: str = "binary") -> tuple[pd.DataFrame, pd.DataFrame]:
    truth, chance = Truth.of(y, PATIENTS, kind), Chance(3, 2, 200, 0)
    outputs = [str(column) for column in range(y.shape[1])]
    y_of = {(1.0, draw): y for draw in range(3)}
    found, bins = measure(outcomes(cells, truth, chance), truth, chance, kind, outputs, y_of)
    return found.set_index("measure"), bins


def scores_of(cells: list[Cell]) -> list[np.ndarray]:
    return [one.scores for one in cells if one.scores is not None]


def test_precision_and_sensitivity_are_means_over_cells_with_intervals() -> None:
    found, _ = measured(CELLS)
    y = Y[:, 0]
    precision = np.mean([average_precision_score(y, one[:, 0]) for one in scores_of(CELLS)])
    row = found.loc["average precision"]
    assert row.value == pytest.approx(precision)
    assert row.low < row.value < row.high
    for name, specificity in (("sensitivity at 90% specificity", 0.9), ("sensitivity at 95% specificity", 0.95)):
        curves = [roc_curve(y, one[:, 0], drop_intermediate=False) for one in scores_of(CELLS)]
        expected = np.mean([tpr[1 - fpr >= specificity - 1e-9].max() for fpr, tpr, _ in curves])
        assert found.loc[name].value == pytest.approx(expected)
        assert found.loc[name].low < expected < found.loc[name].high


def test_what_no_resample_moves_has_no_interval() -> None:
    perfect = [cell(0, draw, scores=Y) for draw in range(3)]
    found, _ = measured(perfect)
    for name in ("average precision", "sensitivity at 90% specificity", "sensitivity at 95% specificity"):
        assert found.loc[name].value == 1
        assert found.loc[name, ["low", "high"]].isna().all()


def test_calibration_before_and_after_a_temperature_of_the_held_out_logits() -> None:
    found, bins = measured(CELLS)
    fits = [fit_temperature(Y[:, 0], one.held_out[:, 0]).value for one in CELLS if one.held_out is not None]
    assert found.loc["temperature"].value == pytest.approx(np.mean(fits))
    before = [calibration(Y[:, 0], expit(one[:, 0])).ece for one in scores_of(CELLS)]
    after = [calibration(Y[:, 0], expit(one[:, 0] / t)).ece for one, t in zip(scores_of(CELLS), fits, strict=True)]
    assert found.loc["ECE"].value == pytest.approx(np.mean(before))
    assert found.loc["ECE after temperature scaling"].value == pytest.approx(np.mean(after))
    assert math.isnan(found.loc["ECE"].low)
    assert found.reason.eq("").all()

    pooled = calibration(np.tile(Y[:, 0], 6), np.concatenate([expit(one[:, 0]) for one in scores_of(CELLS)])).bins
    plain = bins[~bins.scaled]
    assert plain.predicted.tolist() == [one.predicted for one in pooled]
    assert plain.observed.tolist() == [one.observed for one in pooled]
    assert plain.n.sum() == pytest.approx(120)
    low, high = wilson_interval(np.array(pooled[4].observed * 6), np.array(6.0))  # 60 patients over 10 bins
    assert (plain.low.iloc[4], plain.high.iloc[4]) == pytest.approx((low, high))
    assert len(bins[bins.scaled]) == 10
    assert not np.allclose(bins.predicted[bins.scaled], plain.predicted)


@pytest.mark.parametrize(
    ("held_out", "reason"),
    [
        (None, "no out-of-fold predictions"),
        (4 * (Y - 0.5), "none of the 120 rows is predicted wrong"),
        (-4 * (Y - 0.5), "the logits that it would be fitted to favour the wrong class"),
    ],
)
def test_without_a_temperature_there_is_a_reason(held_out: np.ndarray | None, reason: str) -> None:
    found, bins = measured([cell(0, draw, held_out=held_out) for draw in range(3)])
    for name in ("temperature", "ECE after temperature scaling"):
        assert math.isnan(found.loc[name].value)
        assert found.loc[name].reason == f"n/a: {reason}"
    assert found.loc["ECE"].value > 0
    assert not bins.scaled.any()
    found, _ = measured([cell(0, 0, held_out=held_out), cell(0, 1)])
    assert found.loc["temperature"].reason == f"n/a in 1 of 2 draws: {reason}"


def test_a_cell_without_result_leaves_none_of_the_measures() -> None:
    found, bins = measured([*CELLS[:5], cell(1, 2, scores=None, auroc=math.nan, reason="training diverged")])
    assert found[["value", "low", "high"]].isna().all(axis=None)
    assert set(found.reason) == {"n/a in 1 of 6 cells: training diverged"}
    assert bins.empty


def test_few_rows_have_no_calibration() -> None:
    few = slice(0, 40)
    truth, chance = Truth.of(Y[few], PATIENTS[few], "binary"), Chance(1, 1, 50, 0)
    one = cell(0, 0, scores=CELLS[0].scores[few] if CELLS[0].scores is not None else None)
    found, bins = measure(outcomes([one], truth, chance), truth, chance, "binary", ["1"], {(1.0, 0): Y})
    assert found.set_index("measure").loc["ECE"].reason == "n/a: 40 rows are too few for 10 bins of 5"
    assert bins.empty


def test_several_labels_are_calibrated_each_and_classes_by_the_one_predicted() -> None:
    rng = np.random.default_rng(0)
    y = (rng.random((120, 2)) < 0.5) + 0.0
    y[::9, 1] = math.nan
    logits = np.nan_to_num(2 * y - 1) + rng.normal(size=y.shape)
    one = cell(0, 0, scores=logits, held_out=logits)
    found, bins = measured([one], y, "multilabel")
    known = ~np.isnan(y)
    eces = [calibration(y[k, i], expit(logits[k, i])).ece for i, k in enumerate(known.T)]
    assert found.loc["ECE"].value == pytest.approx(np.mean(eces))
    assert found.loc["temperature"].value == pytest.approx(fit_temperature(y[known], logits[known]).value)
    assert bins[~bins.scaled].n.sum() == known.sum()
    precision = np.mean([average_precision_score(y[k, i], logits[k, i]) for i, k in enumerate(known.T)])
    assert found.loc["average precision"].value == pytest.approx(precision)

    classes = np.eye(3)[np.arange(120) // 2 % 3]
    logits = classes + rng.normal(size=classes.shape)
    logits -= np.log(np.exp(logits).sum(axis=1, keepdims=True))
    found, bins = measured([cell(0, 0, scores=logits, held_out=logits)], classes, "multiclass")
    expected = calibration(classes.argmax(axis=1), np.exp(logits))
    assert found.loc["ECE"].value == pytest.approx(expected.ece)
    np.testing.assert_allclose(bins[~bins.scaled].predicted, [one.predicted for one in expected.bins])
    expected_t = fit_temperature(classes.argmax(axis=1), logits).value
    assert found.loc["temperature"].value == pytest.approx(expected_t)
