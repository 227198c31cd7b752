import numpy as np
import pandas as pd
import pytest
from scipy.special import expit
from sklearn.metrics import average_precision_score, roc_auc_score

from medclr.evaluation.single import auroc_of, judge
from medclr.metrics import delong, paired_difference


def task(n=400, seed=0):
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 2, n)
    y = (rng.random(n) < expit(logits)).astype(float)
    return y[:, None], np.arange(n).astype(str).astype(object), 3 * logits[:, None], rng  # three times too sure


def test_one_classifier_is_measured_as_an_arm_is():
    y, patients, scores, rng = task()
    sex = pd.DataFrame({"sex": rng.choice(["F", "M"], len(y))})
    y_other, _, other, _ = task(n=2000, seed=1)
    found = judge(y, patients, scores, "binary", ["sick"], 300, 0, other, y_other, sex)
    values = found.measures.set_index("measure")["value"]
    assert values["average precision"] == pytest.approx(average_precision_score(y[:, 0], scores[:, 0]))
    assert values["temperature"] == pytest.approx(3, rel=0.1)
    assert values["ECE after temperature scaling"] < 0.6 * values["ECE"]
    assert set(found.calibration["scaled"]) == {False, True}
    for row in found.subgroups.itertuples():
        own = (sex["sex"] == row.group).to_numpy()
        assert row.auroc == pytest.approx(roc_auc_score(y[own, 0], scores[own, 0]))
        assert row.low < row.auroc < row.high
    assert "arm" not in found.measures


def test_without_other_rows_there_is_no_temperature():
    y, patients, scores, _ = task()
    found = judge(y, patients, scores, "binary", ["sick"], 100, 0)
    row = found.measures.set_index("measure").loc["temperature"]
    assert np.isnan(row["value"])
    assert row["reason"] == "n/a: no out-of-fold predictions"
    assert found.subgroups.empty


def test_of_one_class_there_is_nothing_to_say():
    y, patients, scores, _ = task(n=20)
    assert all(table.empty for table in judge(np.ones_like(y), patients, scores, "binary", ["sick"], 100, 0))


def test_an_auroc_has_an_interval_that_a_perfect_ranking_of_few_does_not_make_certain():
    y = np.repeat([0.0, 1.0], 6)[:, None]
    patients = np.arange(12).astype(str).astype(object)
    found = auroc_of(y, patients, y + 0.1, "binary", 200, 0)
    assert found.value == found.high == 1
    assert 0.2 < found.low < 0.025 ** (1 / 6)  # that of six disjoint pairs, and wider for want of patients
    few = auroc_of(y[4:], patients[4:], y[4:], "binary", 200, 0)
    assert few.reason == "only 2 patients with a negative (fewer than 5)"
    assert np.isnan([few.value, few.low, few.high]).all()


def test_a_difference_of_two_classifiers_is_paired():
    y, patients, scores, rng = task()
    worse = scores + rng.normal(0, 3, scores.shape)
    found = auroc_of(y, patients, scores, "binary", 400, 0, worse)
    assert found.value == pytest.approx(roc_auc_score(y, scores) - roc_auc_score(y, worse))
    closed = paired_difference(delong(y[:, 0], np.stack([scores[:, 0], worse[:, 0]])), 0, 1)
    assert (found.low, found.high) == pytest.approx((closed.low, closed.high), abs=0.006)
