import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import isotonic_regression

from medclr.evaluation.labels_needed import LabelsNeeded, isotonic, labels_needed

LABELS = np.array([10.0, 100, 1000])
NO_RESAMPLES = np.empty((0, 3)), np.empty(0)


def needed(curve: list[float], target: float, labels: np.ndarray = LABELS) -> float:
    return labels_needed(labels, np.array(curve), target, np.empty((0, len(curve))), np.empty(0)).labels


@settings(max_examples=40, deadline=None)
@given(st.lists(st.lists(st.integers(0, 20), min_size=6, max_size=6), min_size=1, max_size=4))
def test_isotonic_agrees_with_scipy_and_keeps_what_is_monotone(curves: list[list[int]]) -> None:
    given_ = np.array(curves) / 20
    expected = [isotonic_regression(curve).x for curve in given_]
    np.testing.assert_allclose(isotonic(given_), expected, atol=1e-12)
    np.testing.assert_allclose(isotonic(np.sort(given_, axis=1)), np.sort(given_, axis=1), atol=1e-12)


def test_a_curve_is_read_between_fractions_by_the_logarithm() -> None:
    assert needed([0.7, 0.8, 0.9], 0.85) == pytest.approx(10**2.5)
    assert needed([0.7, 0.8, 0.9], 0.72) == pytest.approx(10**1.2)
    assert needed([0.7, 0.8, 0.9], 0.8) == pytest.approx(100)
    assert needed([0.7, 0.8, 0.9], 0.9) == pytest.approx(1000)
    assert needed([0.7, 0.8, 0.8], 0.8) == pytest.approx(100)
    # A dip is averaged with what came before it: .7, .8, .8.
    assert needed([0.7, 0.85, 0.75], 0.78) == pytest.approx(10**1.8)
    assert needed([0.7, 0.85, 0.75], 0.82) == math.inf
    assert needed([0.9, 0.7, 0.8], 0.8) == 0
    # Any base of the logarithm gives the same, and labels scale with their unit.
    assert needed([0.7, 0.8, 0.9], 0.85, 7 * LABELS) == pytest.approx(7 * 10**2.5)


def test_out_of_reach_and_reached_from_the_start_are_open() -> None:
    assert needed([0.7, 0.8, 0.9], 0.91) == math.inf
    assert needed([0.7, 0.8, 0.9], 0.7) == 0
    assert needed([0.7, 0.8, 0.9], 0.2) == 0
    assert needed([0.7], 0.7, LABELS[:1]) == 0
    assert needed([0.7], 0.71, LABELS[:1]) == math.inf
    # Rounding in a mean does not put a curve's own end out of its reach.
    mean = float(np.mean([0.1 + 0.2, 0.3, 0.3]))
    assert needed([0.1, 0.3, mean], math.nextafter(mean, 1)) == pytest.approx(100)


def test_the_interval_carries_the_open_ends() -> None:
    curve = np.array([0.7, 0.8, 0.9])
    shift = np.linspace(-0.1, 0.1, 41)
    resampled = curve + shift[:, None]
    found = labels_needed(LABELS, curve, 0.85, resampled, np.full(41, 0.85))
    assert found.labels == pytest.approx(10**2.5)
    assert found.low == pytest.approx(10 ** (2.5 - 0.95))
    assert found.high == math.inf
    assert (found.least, found.most, found.reason) == (10, 1000, "")
    assert str(found) == "reached with 317 labelled patients (36 to not reached): 68% of labels saved (none to 96%)"
    # The same of a target that moves along with the curve: paired, so that nothing is uncertain.
    paired = labels_needed(LABELS, curve, 0.85, resampled, 0.85 + shift)
    assert (paired.low, paired.high) == pytest.approx((10**2.5, 10**2.5))
    low = labels_needed(LABELS, curve, 0.75, resampled, np.full(41, 0.75))
    assert (low.low, low.high) == pytest.approx((0, 10 ** (1.5 + 0.95)))
    said = "reached with 32 labelled patients (10 or fewer to 282): 97% of labels saved (72% to 99% or more)"
    assert str(low) == said
    # The ends are those of sorted resamples, which at 50% lie a quarter in.
    half = labels_needed(LABELS, curve, 0.85, resampled, np.full(41, 0.85), level=0.5)
    assert (half.low, half.high) == pytest.approx((10**2, 10**3))


def test_said_in_words() -> None:
    say = lambda *ends: str(LabelsNeeded(*ends, least=60, most=4708, every=4708, reason=""))  # noqa: E731
    reached, saved = "reached with", "of labels saved"
    n, most = "labelled patients", "99% or more"
    assert say(470.2, 210.0, math.inf) == f"{reached} 471 {n} (210 to not reached): 90% {saved} (none to 96%)"
    assert say(0.0, 0.0, 471.0) == f"{reached} 60 {n} or fewer (60 or fewer to 471): {most} {saved} (90% to {most})"
    assert say(0.0, 0.0, 0.0) == f"{reached} 60 {n} or fewer (60 or fewer throughout the interval): {most} {saved}"
    assert (
        say(math.inf, 1234.5, math.inf) == f"not {reached} 4,708 {n} (1,235 to not reached): none {saved} (none to 74%)"
    )
    assert say(*[math.inf] * 3) == f"not {reached} 4,708 {n} (not reached throughout the interval): none {saved}"
    assert f": none {saved}" in say(4708 * (1 - 1e-12), 100.0, 4708.0)
    assert say(100.0, math.nan, math.nan) == f"{reached} 100 {n} (no interval): 98% {saved}"
    assert say(4708.0, 4708.0, math.inf) == f"{reached} 4,708 {n} (4,708 to not reached): none {saved} (none to none)"


def test_labels_are_saved_of_all_though_the_last_fraction_has_no_result() -> None:
    found = labels_needed(LABELS, np.array([0.7, 0.9, math.nan]), 0.9, *NO_RESAMPLES)
    assert str(found) == "reached with 100 labelled patients (no interval): 90% of labels saved"


def test_what_has_no_result_is_left_out_or_said() -> None:
    nan = math.nan
    resampled = np.array([[nan, 0.8, 0.9], [nan, 0.7, 0.8], [nan, nan, 0.9], [nan, 0.8, 0.9]])
    target = np.array([0.85, 0.75, 0.7, nan])
    found = labels_needed(LABELS, np.array([nan, 0.8, 0.9]), 0.85, resampled, target)
    assert found.labels == pytest.approx(10**2.5)
    assert (found.least, found.most) == (100, 1000)
    assert (found.low, found.high) == pytest.approx((10**2.5, 10**2.5))
    none = labels_needed(LABELS, np.array([0.7, 0.8, 0.9]), 0.85, *NO_RESAMPLES)
    assert math.isnan(none.low)
    assert math.isnan(none.high)
    assert str(labels_needed(LABELS, np.full(3, nan), 0.8, *NO_RESAMPLES)) == "n/a, because no fraction has a result"
    lost = labels_needed(LABELS, np.array([0.7, 0.8, 0.9]), nan, *NO_RESAMPLES)
    assert str(lost) == "n/a, because the target has no result"
    assert math.isnan(lost.labels)
