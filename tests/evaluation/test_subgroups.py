import math
import re

import numpy as np
import pandas as pd
import pytest
from scipy.special import expit, logit
from sklearn.metrics import roc_auc_score

from medclr.evaluation.cells import Cell
from medclr.evaluation.estimates import Chance, Outcome, Truth, outcomes
from medclr.evaluation.subgroups import age_bands, quartile_bands, subgroups
from medclr.metrics import bootstrap_auroc, interval

PATIENTS = np.repeat(np.arange(60), 2)
Y = (PATIENTS % 3 == 0).astype(float)[:, None]


def cells(arm: str, fraction: float, draws: int, reason: str = "") -> list[Cell]:
    def scores(draw: int) -> np.ndarray:
        return Y + np.random.default_rng([len(arm), draw]).normal(size=Y.shape)

    return [
        Cell(arm, fraction, draw, 0, 60, 40, 80, 0.5, None if reason else scores(draw), None, "", reason, 0.0)
        for draw in range(draws)
    ]


def table(groups: dict[str, object], some: list[Cell], kind: str = "binary", y: np.ndarray = Y) -> pd.DataFrame:
    truth, chance = Truth.of(y, PATIENTS, kind), Chance(3, 1, 4000, 0)
    found: list[Outcome] = outcomes(some, truth, chance)
    return subgroups(found, truth, chance, kind, pd.DataFrame(groups))


def test_each_group_has_its_own_auroc_interval_or_reason() -> None:
    view = np.array(["PA"] * 80 + ["AP"] * 20 + [None] * 12 + [math.nan, ""] + ["LL"] * 6, dtype=object)
    some = cells("scratch", 0.1, 1) + cells("scratch", 1.0, 1) + cells("simclr-full", 1.0, 3)
    found = table({"view": view, "site": "one"}, some)
    assert set(found.column) == {"view"}  # one site tells nothing
    assert set(found.fraction) == {1.0}
    assert found.arm.tolist() == ["scratch"] * 4 + ["simclr-full"] * 4
    of_arm = found[found.arm == "scratch"].set_index("group")
    assert of_arm.index.tolist() == ["AP", "LL", "PA", "unknown"]
    assert of_arm.loc["PA", ["n", "n_patients", "n_positive", "n_negative"]].tolist() == [80, 40, 28, 52]
    assert of_arm["n"].sum() == 120
    own, scores = view == "PA", some[1].scores
    assert scores is not None
    assert of_arm.loc["PA", "auroc"] == pytest.approx(roc_auc_score(Y[own, 0], scores[own, 0]))
    drawn = bootstrap_auroc(Y[own, 0], scores[None, own, 0], PATIENTS[own], 4000, np.random.default_rng(1))
    widened = 1.12  # for the 14 patients with a positive: sqrt(14 / 13) t / z
    value = of_arm.loc["PA", "auroc"]
    low, high = expit(logit(value) + widened * (np.array(interval(drawn)) - value) / (value * (1 - value))).tolist()
    assert (of_arm.loc["PA", "low"], of_arm.loc["PA", "high"]) == pytest.approx((low, high), abs=0.02)
    assert of_arm.loc["PA", "reason"] == ""
    assert of_arm.loc["AP", "reason"] == "only 3 patients with a positive (fewer than 5)"
    assert of_arm.loc["LL", "reason"] == "only 1 patient with a positive (fewer than 5)"
    assert of_arm.loc[["AP", "LL"], ["auroc", "low", "high"]].isna().all(axis=None)
    several = found[found.arm == "simclr-full"].set_index("group").loc["PA"]
    expected = [roc_auc_score(Y[own, 0], c.scores[own, 0]) for c in some[2:] if c.scores is not None]
    assert several.auroc == pytest.approx(np.mean(expected))


def test_one_class_or_no_result_is_a_reason() -> None:
    sex = np.where(Y[:, 0] == 1, "F", "M").astype(object)
    sex[:60] = "O"
    some = cells("scratch", 1.0, 2) + cells("pca", 1.0, 2, "training diverged")
    found = table({"sex": sex}, some)
    assert found[found.arm == "scratch"].reason.tolist() == ["no negative", "no positive", ""]
    assert set(found[found.arm == "pca"].reason) == {"n/a in 2 of 2 draws: training diverged"}
    assert found[found.reason != ""][["auroc", "low", "high"]].isna().all(axis=None)


def test_too_many_values_are_said_and_not_compared() -> None:
    found = table({"model": PATIENTS % 13, "vendor": PATIENTS % 2}, cells("scratch", 1.0, 1))
    assert found.column.tolist() == ["model", "vendor", "vendor"]
    assert found.reason[0] == "13 values are too many to compare (more than 12)"
    assert math.isnan(found.auroc[0])


def test_no_groups_give_an_empty_table_with_its_columns() -> None:
    found = table({}, cells("scratch", 1.0, 1))
    assert found.empty
    assert found.columns.tolist()[:4] == ["arm", "fraction", "column", "group"]


def test_a_group_that_lacks_one_of_several_outputs_has_no_mean() -> None:
    y = np.concatenate([Y, (PATIENTS % 2 == 0)[:, None]], axis=1)
    some = [
        Cell(
            "scratch", 1.0, 0, 0, 60, 40, 80, 0.5, y + np.random.default_rng(0).normal(size=y.shape), None, "", "", 0.0
        )
    ]
    even = np.where(PATIENTS % 2 == 0, "even", np.where(PATIENTS < 30, "odd", "rest"))
    found = table({"half": PATIENTS < 30, "even": even}, some, "multilabel", y).set_index("group")
    assert found.loc["even", "reason"] == "no negative"
    assert found.loc["True", "reason"] == ""
    assert found.loc["True", "n_positive"] == (y[PATIENTS < 30] == 1).any(axis=1).sum()


def test_age_bands() -> None:
    years = np.array([0, 17.9, 18, 39.9, 40, 59.9, 60, 101, -1, math.nan])
    bands = ["0-17", "0-17", "18-39", "18-39", "40-59", "40-59", "60+", "60+", "unknown", "unknown"]
    assert age_bands(years).tolist() == bands


def test_quartile_bands_hold_as_many_and_stand_in_their_order() -> None:
    rng = np.random.default_rng(0)
    values = np.append(rng.permutation(np.linspace(5, 200, 80)), [np.nan] * 3)
    bands = quartile_bands(values)
    counts = bands.value_counts()
    assert counts.tolist() == [20, 20, 20, 20, 3]
    assert counts.index[-1] == "unknown"
    for name in counts.index[:4]:
        inside = values[np.asarray(bands == name)]
        bounds = [float(number) for number in re.findall(r"[\d.]+", name)]
        assert name.startswith("below") or inside.min() == bounds[0]
        assert name.endswith("above") or inside.max() < bounds[-1]
    named = [float(number) for name in counts.index for number in re.findall(r"[\d.]+", name)]
    assert 5 < min(named) < max(named) < 200


@pytest.mark.parametrize(
    ("values", "names"),
    [
        ([0] * 9 + [1, 2.5], ["below 1", "1 and above"]),
        ([0] * 3 + [4, 4, 4, 7, 7, 7, 9], ["below 4", "4 to below 7", "7 and above"]),
        ([1, 1 + 1e-12], ["below 1.000000000001", "1.000000000001 and above"]),
    ],
)
def test_where_quartiles_meet_there_are_fewer_bands(values: list[float], names: list[str]) -> None:
    bands = quartile_bands(np.array(values))
    assert list(bands.categories) == [*names, "unknown"]
    assert set(bands) == set(names)


def test_groups_keep_the_order_of_categories() -> None:
    names = ["below 9", "9 to below 10", "10 and above"]
    column = pd.Categorical(np.resize(names, len(Y)), [*names, "unknown"], ordered=True)
    found = table({"dose": column}, cells("scratch", 1.0, 2))
    assert found["group"].tolist() == names
