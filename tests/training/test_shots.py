"""A few labels of the target: which volumes they are of, and what a head makes of them."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from medclr.training.probe import fit_linear
from medclr.training.shots import few_shot, shots_in_order


def rows(n, seed, sign=1.0, features=4):
    """Features of which the first says something of the label; half of the rows are positive."""
    rng = np.random.default_rng(seed)
    y = (np.arange(n) % 2).astype(float)
    x = rng.normal(size=(n, features))
    x[:, 0] += sign * 2.5 * y
    return x, y[:, None]


def one_hot(labels, classes=3):
    return np.eye(classes)[labels]


@pytest.mark.parametrize("exclusive", [False, True])
def test_shots_are_volumes_of_their_class_and_of_patients_of_their_own(exclusive):
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3 if exclusive else 2, 90)
    y = one_hot(labels) if exclusive else labels[:, None].astype(float)
    patients = np.array([f"p{i % 40}" for i in range(90)], dtype=object)
    orders = shots_in_order(y, patients, exclusive, 5)
    assert len(orders) == (3 if exclusive else 2)
    for label, order in enumerate(orders):
        assert (labels[order] == label).all()
    taken = np.concatenate(orders)
    assert sorted(patients[taken]) == sorted(set(patients))
    again, other = shots_in_order(y, patients, exclusive, 5), shots_in_order(y, patients, exclusive, 6)
    assert all((one == two).all() for one, two in zip(orders, again, strict=True))
    assert any(one.tolist() != two.tolist() for one, two in zip(orders, other, strict=True))


def test_the_volume_of_a_patient_is_any_of_them():
    y, patients = np.array([[0.0], [1.0], [1.0], [0.0]]), np.array(["a", "a", "b", "c"], dtype=object)
    first = {int(shots_in_order(y, patients, False, seed)[1][0]) for seed in range(40)}
    assert first == {1, 2}
    assert {len(shots_in_order(y, patients, False, seed)[0]) for seed in range(40)} == {1, 2}


def test_a_class_that_is_not_there_has_no_volume():
    y = one_hot(np.array([0, 0, 2]))
    assert [len(of) for of in shots_in_order(y, np.array(["a", "b", "c"], dtype=object), True, 0)] == [2, 0, 1]


def naive(x, y, xt, yt, strength):
    """Both domains half of the weight, each class half of its domain's; the features over the largest deviation."""
    every, labels = np.concatenate([x, xt]), np.concatenate([y, yt])[:, 0]
    weight = [
        0.5 * len(labels) * 0.5 / (own[:, 0] == label[0]).sum() for own in (y, yt) for label in own
    ]  # of each row, in order
    mean, scale = every.mean(axis=0), every.std(axis=0).max()
    model = LogisticRegression(C=strength, solver="newton-cholesky", max_iter=1000)
    model.fit((every - mean) / scale, labels, sample_weight=weight)
    return lambda new: model.decision_function((new - mean) / scale)


def test_both_domains_and_in_each_both_classes_count_the_same():
    x, y = rows(200, 0)
    keep = np.flatnonzero((y[:, 0] == 1) | (np.arange(200) < 60))  # fewer negatives
    x, y = x[keep], y[keep]
    xt, yt = rows(10, 1)
    new = np.random.default_rng(2).normal(size=(50, 4))
    head = few_shot(x, y, xt, yt, False, 0.1, 0)
    np.testing.assert_allclose(head.scores(new)[:, 0], naive(x, y, xt, yt, 0.1)(new), rtol=1e-6)


def test_a_source_whose_rule_is_the_other_way_round_is_left_out():
    x, y = rows(200, 0, sign=-1)
    xt, yt = rows(50, 1)
    head, alone = few_shot(x, y, xt, yt, False, 0.1, 0), fit_linear(xt, yt, np.arange(50).astype(object), 0)
    np.testing.assert_array_equal(head.weight, alone.weight)
    assert head.weight[0, 0] > 0


def test_chance_does_not_leave_the_source_out():
    """Of ten labels under the same rule, in nineteen of twenty draws."""
    x, y = rows(200, 0)
    kept = 0
    for seed in range(1, 21):
        xt, yt = rows(10, seed)
        new = np.random.default_rng(2).normal(size=(50, 4))
        kept += np.allclose(few_shot(x, y, xt, yt, False, 0.1, 0).scores(new)[:, 0], naive(x, y, xt, yt, 0.1)(new))
    assert kept >= 19


def test_one_label_of_a_class_leaves_nothing_to_choose_by():
    x, y = rows(200, 0, sign=-1)
    xt, yt = rows(2, 1)
    new = np.random.default_rng(2).normal(size=(50, 4))
    head = few_shot(x, y, xt, yt, False, 0.1, 0)
    np.testing.assert_allclose(head.scores(new)[:, 0], naive(x, y, xt, yt, 0.1)(new), rtol=1e-6)


def test_several_classes():
    rng = np.random.default_rng(0)
    labels, few = np.arange(150) % 3, np.arange(15) % 3
    centres = 3 * np.eye(3)
    x, xt = centres[labels] + rng.normal(size=(150, 3)), centres[few] + rng.normal(size=(15, 3))
    test = np.arange(90) % 3
    scores = few_shot(x, one_hot(labels), xt, one_hot(few), True, 1.0, 0).scores(
        centres[test] + rng.normal(size=(90, 3))
    )
    assert (scores.argmax(axis=1) == test).mean() > 0.8
    swapped = few_shot(x, one_hot((labels + 1) % 3), xt, one_hot(few), True, 1.0, 0)
    alone = fit_linear(xt, one_hot(few), np.arange(15).astype(object), 0, exclusive=True)
    np.testing.assert_array_equal(swapped.weight, alone.weight)
