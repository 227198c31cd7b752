import numpy as np
import pandas as pd
import pytest
from scipy.special import expit
from sklearn.metrics import average_precision_score, roc_auc_score

from medclr.evaluation.single import judge


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
