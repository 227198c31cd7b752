import math

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from medclr.evaluation.subgroups import age_bands, subgroup_aurocs
from medclr.metrics import bootstrap_auroc, interval


def test_each_group_has_its_own_auroc_interval_or_reason() -> None:
    rng = np.random.default_rng(0)
    patients = np.repeat(np.arange(60), 2)
    y = (patients % 3 == 0).astype(int)
    scores = y + rng.normal(size=120)
    view = np.array(["PA"] * 80 + ["AP"] * 20 + [None] * 12 + [math.nan, ""] + ["LL"] * 6, dtype=object)
    table = subgroup_aurocs(y, scores, patients, view, 200, np.random.default_rng(1)).set_index("group")
    assert table.index.tolist() == ["AP", "LL", "PA", "unknown"]
    assert table.loc["PA", ["n", "n_patients", "n_positive", "n_negative"]].tolist() == [80, 40, 28, 52]
    assert table["n"].sum() == 120
    own = view == "PA"
    assert table.loc["PA", "auroc"] == pytest.approx(roc_auc_score(y[own], scores[own]))
    assert table.loc["PA", "low"] < table.loc["PA", "auroc"] < table.loc["PA", "high"]
    expected = interval(bootstrap_auroc(y[own], scores[None, own], patients[own], 200, np.random.default_rng(1)))
    assert (table.loc["PA", "low"], table.loc["PA", "high"]) == expected
    assert table.loc["PA", "reason"] == ""
    assert table.loc["AP", "reason"] == "only 3 patients with a positive (fewer than 5)"
    assert table.loc["LL", "reason"] == "only 1 patient with a positive (fewer than 5)"
    assert table.loc[["AP", "LL"], ["auroc", "low", "high"]].isna().all(axis=None)


def test_one_class_or_a_nan_score_is_a_reason() -> None:
    y, scores, patients = np.tile([0, 1], 20), np.arange(40.0), np.arange(40)
    sex = np.where(y == 1, "F", "M")
    sex[:20] = "O"
    scores[0] = math.nan
    table = subgroup_aurocs(y, scores, patients, sex, 50, np.random.default_rng(0))
    assert table["reason"].tolist() == ["no negative", "no positive", "a score is NaN"]
    assert table[["auroc", "low", "high"]].isna().all(axis=None)


def test_age_bands() -> None:
    years = np.array([0, 17.9, 18, 39.9, 40, 59.9, 60, 101, -1, math.nan])
    bands = ["0-17", "0-17", "18-39", "18-39", "40-59", "40-59", "60+", "60+", "unknown", "unknown"]
    assert age_bands(years).tolist() == bands
