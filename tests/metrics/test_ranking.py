import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve

from medclr.metrics import (
    auroc,
    average_precision,
    label_aurocs,
    sensitivity_at,
    threshold_at,
    weighted_auroc,
    weighted_average_precision,
    weighted_label_aurocs,
    weighted_mean_auroc,
    weighted_sensitivity_at,
    weighted_threshold_at,
)


@st.composite
def scored(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    """Labels of both classes and scores with many ties."""
    n = draw(st.integers(2, 30))
    y = draw(st.lists(st.integers(0, 1), min_size=n, max_size=n).filter(lambda y: 0 < sum(y) < len(y)))
    scores = draw(st.lists(st.integers(-4, 4), min_size=n, max_size=n))
    return np.array(y), np.array(scores) / 4


@settings(max_examples=30, deadline=None)
@given(scored(), st.integers(0, 2**32 - 1))
def test_auroc_agrees_with_scikit_learn_and_with_counting_pairs(case: tuple[np.ndarray, np.ndarray], seed: int) -> None:
    y, scores = case
    pairs = [(p > q) + (p == q) / 2 for p in scores[y == 1] for q in scores[y == 0]]
    assert auroc(y, scores) == pytest.approx(np.mean(pairs), abs=1e-12)
    assert auroc(y, scores) == pytest.approx(roc_auc_score(y, scores), abs=1e-12)

    weights = np.random.default_rng(seed).integers(0, 4, size=(7, len(y)))
    for value, row in zip(weighted_auroc(y, scores, weights), weights, strict=True):
        if row[y == 1].any() and row[y == 0].any():
            assert value == pytest.approx(roc_auc_score(y, scores, sample_weight=row), abs=1e-12)
        else:
            assert math.isnan(value)


@settings(max_examples=30, deadline=None)
@given(scored(), st.randoms(use_true_random=False))
def test_auroc_invariants(case: tuple[np.ndarray, np.ndarray], random: object) -> None:
    y, scores = case
    value = auroc(y, scores)
    assert auroc(y, np.exp(scores)) == value
    assert auroc(y, 3 * scores - 7) == value
    assert auroc(1 - y, scores) == pytest.approx(1 - value, abs=1e-12)
    assert auroc(y, -scores) == pytest.approx(1 - value, abs=1e-12)
    order = list(range(len(y)))
    random.shuffle(order)  # type: ignore[attr-defined]
    assert auroc(y[order], scores[order]) == value


def test_a_count_as_weight_is_the_row_repeated() -> None:
    rng = np.random.default_rng(0)
    y, scores = np.tile([0, 1], 20), rng.normal(size=40).round(1)
    counts = rng.integers(0, 5, size=40)
    assert weighted_auroc(y, scores, counts[None])[0] == auroc(np.repeat(y, counts), np.repeat(scores, counts))


def test_auroc_is_nan_without_both_classes_or_with_a_nan_score() -> None:
    assert math.isnan(auroc(np.ones(3), np.arange(3.0)))
    assert math.isnan(auroc(np.zeros(3), np.arange(3.0)))
    assert math.isnan(auroc(np.array([0, 1, 1]), np.array([0.1, math.nan, 0.3])))
    assert auroc(np.array([0, 1, 1]), np.array([-math.inf, 0.2, math.inf])) == 1


@settings(max_examples=15, deadline=None)
@given(scored(), st.integers(0, 2**32 - 1))
def test_average_precision_agrees_with_scikit_learn_ties_and_weights_included(
    case: tuple[np.ndarray, np.ndarray], seed: int
) -> None:
    y, scores = case
    assert average_precision(y, scores) == pytest.approx(average_precision_score(y, scores), abs=1e-12)
    weights = np.random.default_rng(seed).integers(0, 4, size=(7, len(y)))
    for value, row in zip(weighted_average_precision(y, scores, weights), weights, strict=True):
        if row[y == 1].any() and row[y == 0].any():
            expected = average_precision_score(np.repeat(y, row), np.repeat(scores, row))
            assert value == pytest.approx(expected, abs=1e-12)
        else:
            assert math.isnan(value)


def test_average_precision_closed_forms() -> None:
    y = np.array([1, 0, 1, 0])
    assert average_precision(y, np.array([4.0, 3, 2, 1])) == pytest.approx((1 + 2 / 3) / 2)
    assert average_precision(y, np.zeros(4)) == 0.5
    assert average_precision(y, np.array([math.inf, 0, math.inf, 1])) == 1
    assert average_precision(y, np.array([-math.inf, -math.inf, 1, -math.inf])) == pytest.approx(3 / 4)


@settings(max_examples=15, deadline=None)
@given(scored(), st.sampled_from([0.0, 0.5, 0.8, 0.9, 0.95, 1.0]), st.integers(0, 2**32 - 1))
def test_sensitivity_at_a_specificity_is_the_best_of_the_thresholds_that_keep_it(
    case: tuple[np.ndarray, np.ndarray], specificity: float, seed: int
) -> None:
    y, scores = case
    false, true, _ = roc_curve(y, scores, drop_intermediate=False)
    value = sensitivity_at(y, scores, specificity)
    assert value == pytest.approx(true[false <= 1 - specificity + 1e-12].max())
    threshold = threshold_at(y, scores, specificity)
    assert np.mean(scores[y == 1] >= threshold) == pytest.approx(value)
    assert np.mean(scores[y == 0] < threshold) >= specificity - 1e-12
    # The next lower score would break it.
    lower = scores[scores < threshold]
    assert not len(lower) or np.mean(scores[y == 0] < lower.max()) < specificity

    weights = np.random.default_rng(seed).integers(0, 4, size=(7, len(y)))
    limits = weighted_threshold_at(y, scores, weights, specificity)
    found = weighted_sensitivity_at(y, scores, weights, specificity)
    for weighted, limit, row in zip(found, limits, weights, strict=True):
        repeated = np.repeat(y, row), np.repeat(scores, row)
        assert weighted == pytest.approx(sensitivity_at(*repeated, specificity), nan_ok=True)
        assert limit == pytest.approx(threshold_at(*repeated, specificity), nan_ok=True)
        assert math.isnan(weighted) == (len(set(repeated[0])) < 2)


def test_sensitivity_in_figures() -> None:
    # Of 10 negatives one may be positive at .9, whatever 1 - .9 is in floating point, and two tie below it.
    y = np.repeat([0, 1], [10, 4])
    scores = np.array([0, 0, 0, 0, 0, 0, 0, 5, 5, 8, 5, 6, 7, 9.0])
    assert sensitivity_at(y, scores, 0.9) == 0.75
    assert threshold_at(y, scores, 0.9) == 6
    assert sensitivity_at(y, scores, 0.7) == 1
    assert sensitivity_at(y, scores, 0.91) == 0.25
    assert sensitivity_at(y, np.zeros(14), 0.9) == 0
    assert threshold_at(y, np.zeros(14), 0.9) == math.inf
    with pytest.raises(ValueError, match="specificity 90: must be from 0 to 1"):
        sensitivity_at(y, scores, 90)


@pytest.mark.parametrize(
    "statistic", [average_precision, lambda y, s: sensitivity_at(y, s, 0.9), lambda y, s: threshold_at(y, s, 0.9)]
)
def test_without_both_classes_or_with_a_nan_there_is_no_figure(statistic: object) -> None:
    scores = np.arange(3.0)
    for y in (np.ones(3), np.zeros(3)):
        assert math.isnan(statistic(y, scores))
    assert math.isnan(statistic(np.array([0, 1, 1]), np.array([0.1, math.nan, 0.3])))
    assert math.isnan(statistic(np.repeat([1, 0], [2, 20]), np.append(np.arange(21.0), math.nan)))
    assert math.isnan(statistic(np.zeros(0), np.zeros(0)))


def test_macro_auroc_agrees_with_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    y, scores = np.tile([0, 1, 2], 20), rng.dirichlet(np.ones(3), 60).round(1) + 0.1
    scores /= scores.sum(axis=1, keepdims=True)
    found = label_aurocs(y, scores)
    assert found.mean == pytest.approx(roc_auc_score(y, scores, multi_class="ovr"), abs=1e-12)
    assert found.by_label == pytest.approx([roc_auc_score(y == k, scores[:, k]) for k in range(3)], abs=1e-12)
    assert found.reasons == ("", "", "")

    weights = rng.integers(0, 3, size=(5, 60))
    expected = [roc_auc_score(np.repeat(y, row), np.repeat(scores, row, axis=0), multi_class="ovr") for row in weights]
    assert weighted_mean_auroc(y, scores, weights) == pytest.approx(expected, abs=1e-12)


def test_labels_that_are_unknown_or_of_one_class_are_left_out_and_named() -> None:
    nan = math.nan
    y = np.array([[1, 0, 1, nan], [0, 0, nan, nan], [nan, 0, 0, nan], [1, nan, 1, nan]])
    scores = np.array([[3, 1, 1, nan], [2, 2, nan, nan], [nan, 3, 1, nan], [1, 4, 2, nan]])
    found = label_aurocs(y, scores)
    np.testing.assert_array_equal(found.by_label, [0.5, nan, 0.75, nan])
    assert found.mean == 0.625
    assert found.reasons == ("", "no positive among 3 known", "", "no positive and no negative among 0 known")
    # A weighting that takes a label's last negative leaves the mean to the other.
    weights = np.array([[1, 1, 0, 1], [1, 0, 1, 1], [1, 0, 0, 1], [0, 2, 1, 1]])
    by_label = weighted_label_aurocs(y, scores, weights)
    np.testing.assert_array_equal(by_label[:, 0], [0.5, nan, nan, 0])
    np.testing.assert_array_equal(by_label[:, 2], [nan, 0.75, nan, 1])
    np.testing.assert_array_equal(weighted_mean_auroc(y, scores, weights), [0.5, 0.75, nan, 0.5])


def test_a_nan_among_the_scores_of_a_known_label_leaves_no_mean() -> None:
    y, scores = np.array([[1, 0], [0, 1], [0, 0]]), np.array([[1, 0.5], [0, math.nan], [0, 0]])
    found = label_aurocs(y, scores)
    assert found.by_label[0] == 1
    assert math.isnan(found.mean)
    assert found.reasons == ("", "a score is NaN")
    assert np.isnan(weighted_mean_auroc(y, scores, np.ones((2, 3)))).all()
    absent = label_aurocs(np.array([0, 1, 1, 0]), np.random.default_rng(0).random((4, 3)))
    assert absent.reasons == ("", "", "no positive among 4 known")
