import math

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar
from scipy.special import expit, log_softmax, logit, softmax
from scipy.stats import binomtest
from sklearn.calibration import calibration_curve
from sklearn.metrics import brier_score_loss

from medclr.metrics import brier_score, calibration, fit_temperature, wilson_interval


def predictions(n: int = 103, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    p = rng.random(n)
    return (rng.random(n) < p**2).astype(int), p


def test_bins_hold_equal_numbers_and_the_ece_is_their_mean_gap() -> None:
    y, p = predictions()
    found = calibration(y, p, bins=7)
    order = np.argsort(p)
    parts = [order[[7 * i // 103 == b for i in range(103)]] for b in range(7)]
    assert [one.n for one in found.bins] == [len(part) for part in parts]
    assert {one.n for one in found.bins} == {14, 15}
    assert [one.predicted for one in found.bins] == pytest.approx([p[part].mean() for part in parts])
    assert [one.observed for one in found.bins] == pytest.approx([y[part].mean() for part in parts])
    gaps = [len(part) / 103 * abs(p[part].mean() - y[part].mean()) for part in parts]
    assert found.ece == pytest.approx(sum(gaps))
    assert found.brier == pytest.approx(brier_score_loss(y, p))
    assert found.reason == ""
    for one in found.bins:
        low, high = binomtest(round(one.observed * one.n), one.n).proportion_ci(method="wilson")
        assert (one.low, one.high) == pytest.approx((low, high))
    # Where the number is a multiple of the bins, scikit-learn's quantiles cut at the same places.
    observed, predicted = calibration_curve(y[:100], p[:100], n_bins=10, strategy="quantile")
    tens = calibration(y[:100], p[:100]).bins
    assert [one.observed for one in tens] == pytest.approx(observed)
    assert [one.predicted for one in tens] == pytest.approx(predicted)


@settings(max_examples=20, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 1), st.integers(0, 4)), min_size=25, max_size=60), st.integers(0, 99))
def test_equal_predictions_share_a_bin_whatever_their_order(rows: list[tuple[int, int]], seed: int) -> None:
    y, p = np.array(rows).T / [[1], [4]]
    found = calibration(y, p, bins=5)
    order = np.random.default_rng(seed).permutation(len(y))
    shuffled = calibration(y[order], p[order], bins=5)
    assert [one.n for one in shuffled.bins] == [one.n for one in found.bins]
    assert shuffled.ece == pytest.approx(found.ece)
    assert sum(one.n for one in found.bins) == len(y)
    # Each distinct prediction lies in one bin, so the bins' ranges follow one another.
    ends = np.cumsum([0] + [one.n for one in found.bins])
    ordered = np.sort(p)
    assert all(ordered[end - 1] < ordered[end] for end in ends[1:-1])


def test_calibration_closed_forms() -> None:
    y = np.tile([1, 0, 0, 0], 20)
    found = calibration(y, np.full(80, 0.25))
    assert (found.ece, found.brier, len(found.bins)) == pytest.approx((0, 0.25 * 0.75, 1))
    assert calibration(y, np.full(80, 0.95)).ece == pytest.approx(0.7)
    assert calibration(y, y).ece == calibration(y, y).brier == 0


def test_of_several_classes_the_predicted_one_counts() -> None:
    rng = np.random.default_rng(0)
    p = rng.dirichlet(np.ones(3), 90)
    y = rng.integers(0, 3, 90)
    found = calibration(y, p, bins=6)
    top = calibration((p.argmax(axis=1) == y).astype(int), p.max(axis=1), bins=6)
    assert (found.ece, found.bins) == (top.ece, top.bins)
    expected = np.mean([sum((p[i, k] - (y[i] == k)) ** 2 for k in range(3)) for i in range(90)])
    assert found.brier == brier_score(y, p) == pytest.approx(expected)
    # Two classes as columns: twice the score of one.
    assert brier_score(y == 1, np.stack([1 - p[:, 0], p[:, 0]], axis=1)) == pytest.approx(
        2 * brier_score(y == 1, p[:, 0])
    )


def test_without_enough_sound_predictions_there_is_no_calibration() -> None:
    y, p = predictions()
    for rows, values, reason in (
        (y[:5], p[:5], "5 rows are too few for 10 bins of 5"),
        (y[:49], p[:49], "49 rows are too few for 10 bins of 5"),
        (y[:0], p[:0], "0 rows are too few for 10 bins of 5"),
        (y, np.where(p > 0.5, math.nan, p), "a prediction is no probability"),
        (y, 2 * p, "a prediction is no probability"),
        (y, p - 0.1, "a prediction is no probability"),
    ):
        found = calibration(rows, values)
        assert found.reason == reason
        assert math.isnan(found.ece)
        assert math.isnan(found.brier)
        assert found.bins == ()
    assert calibration(y[:50], p[:50]).reason == ""


def test_wilson_interval_agrees_with_scipy() -> None:
    k, n = np.array([0, 1, 5, 9, 9]), np.array([1, 7, 9, 9, 400])
    low, high = wilson_interval(k, n, 0.9)
    exact = [binomtest(int(a), int(b)).proportion_ci(0.9, method="wilson") for a, b in zip(k, n, strict=True)]
    np.testing.assert_allclose(low, [one.low for one in exact], atol=1e-12)
    np.testing.assert_allclose(high, [one.high for one in exact], atol=1e-12)


def test_the_temperature_of_two_values_has_a_closed_form() -> None:
    # Logits of +a and -a that are right with share q: sigmoid(a / T) is best at q.
    y = np.tile([1, 1, 1, 0, 0, 0, 0, 1], 5)
    logits = np.tile([6.0, 6, 6, 6, -6, -6, -6, -6], 5)
    assert fit_temperature(y, logits).value == pytest.approx(6 / logit(0.75))
    assert fit_temperature(y, 1e6 * logits).value == pytest.approx(6e6 / logit(0.75))
    assert fit_temperature(y, 1e-6 * logits).value == pytest.approx(6e-6 / logit(0.75))


def test_calibrated_logits_have_temperature_one_and_tripled_ones_three() -> None:
    # Each row of probabilities occurs with its classes in exactly these shares.
    shares = np.array([[5, 3, 2], [1, 8, 1], [2, 2, 6]])
    p = np.repeat(shares / 10, 10, axis=0)
    y = np.concatenate([np.repeat(np.arange(3), row) for row in shares])
    found = fit_temperature(y, np.log(p) + np.arange(30)[:, None])
    assert found.value == pytest.approx(1)
    assert found.reason == ""
    assert fit_temperature(y, 3 * np.log(p)).value == pytest.approx(3)
    # Sampled, of two classes.
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 2, 5_000)
    y = (rng.random(5_000) < expit(logits)).astype(int)
    assert fit_temperature(y, logits).value == pytest.approx(1, abs=0.07)
    tripled = fit_temperature(y, 3 * logits).value
    assert tripled == pytest.approx(3 * fit_temperature(y, logits).value)
    # Two columns are the same as their difference.
    assert fit_temperature(y, np.stack([-logits, 2 * logits], axis=1)).value == pytest.approx(tripled)
    before, after = (calibration(y, expit(3 * logits / t)).ece for t in (1, tripled))
    assert after < 0.03 < 0.08 < before


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_no_other_temperature_is_more_likely(seed: int) -> None:
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 3, 40)
    logits = rng.uniform(0.5, 5) * (rng.normal(0, 1.5, (40, 3)) + (y[:, None] == np.arange(3)))
    fitted = fit_temperature(y, logits)
    assume(0 < fitted.value < math.inf)
    loss = lambda beta: -log_softmax(beta * logits, axis=1)[np.arange(40), y].mean()  # noqa: E731
    best = minimize_scalar(loss, bounds=(0, 50), method="bounded", options={"xatol": 1e-10})
    assert loss(1 / fitted.value) <= best.fun + 1e-9
    assert softmax(logits / fitted.value, axis=1).argmax(axis=1).tolist() == logits.argmax(axis=1).tolist()


def test_where_no_temperature_is_best_it_says_so() -> None:
    y = np.array([0, 1, 1, 0, 1])
    for rows, logits, reason in (
        (y, 2.0 * y - 1, "none of the 5 rows is predicted wrong"),
        (np.ones(5), np.arange(5.0) - 2, "the 5 rows have no two classes"),
        (y[:0], np.zeros(0), "the 0 rows have no two classes"),
        (y, np.array([1, math.nan, 0, 0, 0]), "a logit is not finite"),
        (y, np.array([1, math.inf, 0, 0, 0]), "a logit is not finite"),
    ):
        found = fit_temperature(rows, logits)
        assert math.isnan(found.value)
        assert found.reason == reason
    assert fit_temperature(y, 1.0 - 2 * y).value == math.inf
    assert fit_temperature(y, np.zeros(5)).reason == "none of the 5 rows is predicted wrong"
