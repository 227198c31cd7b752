import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from MLstatkit import Delong_test
from scipy.special import logit
from scipy.stats import norm

from medclr.metrics import (
    PairedDifference,
    auroc,
    auroc_interval,
    bootstrap_auroc,
    delong,
    detectable,
    hanley_mcneil_se,
    paired_difference,
)


def cohort(seed: int, n: int = 40, patients: int = 15) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Labels, ties among three sets of scores, and patients, of whom some have both classes."""
    rng = np.random.default_rng(seed)
    y = np.append([0, 0, 1, 1], rng.integers(0, 2, n - 4))
    scores = (rng.normal(size=(3, n)) + rng.normal(size=n) + y).round(1)
    return y, scores, np.append([0, 1, 2, 3], rng.integers(0, patients, n - 4))


def obuchowski(y: np.ndarray, scores: np.ndarray, patients: np.ndarray) -> np.ndarray:
    """The paper's sums, one patient and one pair of rows at a time."""
    psi = lambda x, z: float(x > z) + float(x == z) / 2  # noqa: E731
    pos, neg = np.flatnonzero(y == 1), np.flatnonzero(y == 0)
    v10 = [{i: np.mean([psi(s[i], s[j]) for j in neg]) for i in pos} for s in scores]
    v01 = [{j: np.mean([psi(s[i], s[j]) for i in pos]) for j in neg} for s in scores]
    area = [np.mean(list(v.values())) for v in v10]
    both, with_pos, with_neg = set(patients), set(patients[pos]), set(patients[neg])

    def part(v: dict[int, float], a: float, patient: object) -> float:
        return sum(value - a for row, value in v.items() if patients[row] == patient)

    out = np.empty((len(scores), len(scores)))
    for r in range(len(scores)):
        for s in range(len(scores)):
            x = {c: (part(v10[r], area[r], c), part(v10[s], area[s], c)) for c in both}
            z = {c: (part(v01[r], area[r], c), part(v01[s], area[s], c)) for c in both}
            s10 = len(with_pos) / ((len(with_pos) - 1) * len(pos)) * sum(x[c][0] * x[c][1] for c in with_pos)
            s01 = len(with_neg) / ((len(with_neg) - 1) * len(neg)) * sum(z[c][0] * z[c][1] for c in with_neg)
            s11 = len(both) / (len(both) - 1) * sum(x[c][0] * z[c][1] + z[c][0] * x[c][1] for c in both)
            out[r, s] = s10 / len(pos) + s01 / len(neg) + s11 / (len(pos) * len(neg))
    return out


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_the_clustered_covariance_is_the_papers_sums(seed: int) -> None:
    y, scores, patients = cohort(seed, n=20, patients=8)
    result = delong(y, scores, patients)
    np.testing.assert_allclose(result.aurocs, [auroc(y, one) for one in scores], atol=1e-12)
    np.testing.assert_allclose(result.covariance, obuchowski(y, scores, patients), atol=1e-12)
    assert np.linalg.eigvalsh(result.covariance).min() > -1e-12


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_with_a_row_for_each_patient_it_is_delongs(seed: int) -> None:
    y, scores, _ = cohort(seed)
    result = delong(y, scores)
    np.testing.assert_allclose(delong(y, scores, np.random.default_rng(seed).permutation(40))[1], result.covariance)
    # The sample covariances of the placements, from all pairs.
    wins = np.array([(s[y == 1][:, None] > s[y == 0]) + (s[y == 1][:, None] == s[y == 0]) / 2 for s in scores])
    expected = np.cov(wins.mean(axis=2)) / (y == 1).sum() + np.cov(wins.mean(axis=1)) / (y == 0).sum()
    np.testing.assert_allclose(result.covariance, expected, atol=1e-12)


@pytest.mark.parametrize("kind", ["labels", "classes"])
def test_of_several_outputs_it_is_what_a_jackknife_of_patients_finds(kind: str) -> None:
    rng = np.random.default_rng(1)
    patients = np.sort(rng.integers(0, 120, 240))
    y = np.eye(3)[rng.choice(3, 240, p=[0.5, 0.3, 0.2])] if kind == "classes" else (rng.random((240, 3)) < 0.4) * 1.0
    if kind == "labels":
        y[rng.random(y.shape) < 0.2] = np.nan
    scores = np.nan_to_num(y) + rng.normal(size=(2, 240, 3)) + rng.normal(size=(1, 240, 1))

    def mean_auroc(rows: np.ndarray, one: np.ndarray) -> float:
        known = [rows[~np.isnan(column[rows])] for column in y.T]
        return float(np.mean([auroc(y[at, k], one[at, k]) for k, at in enumerate(known)]))

    result = delong(y, scores, patients)
    everyone = np.unique(patients)
    without = np.array([[mean_auroc(np.flatnonzero(patients != one), s) for one in everyone] for s in scores])
    jackknife = np.cov(without) * (len(everyone) - 1) ** 2 / len(everyone)
    np.testing.assert_allclose(result.aurocs, [mean_auroc(np.arange(240), s) for s in scores])
    np.testing.assert_allclose(result.covariance, jackknife, rtol=0.06, atol=5e-6)


def test_a_rare_output_has_its_own_correction() -> None:
    """Of independent outputs the variance of the mean is the sum of theirs, over the square of how many there are."""
    rng = np.random.default_rng(2)
    y, scores = np.full((400, 2), np.nan), rng.normal(size=(1, 400, 2))
    y[:200, 0], y[200:, 1] = rng.random(200) < 0.4, np.arange(200) < 5
    parts = [delong(y[at, k], scores[:, at, k]).covariance.item() for k, at in ((0, slice(200)), (1, slice(200, 400)))]
    assert delong(y, scores).covariance.item() == pytest.approx(sum(parts) / 4)
    y[201:, 1] = np.where(np.isnan(y[201:, 1]), np.nan, 0)
    assert np.isnan(delong(y, scores).covariance.item())


def test_an_output_twice_is_that_output() -> None:
    y, scores, patients = cohort(5)
    once, twice = delong(y, scores, patients), delong(np.stack([y, y], 1), np.stack([scores, scores], 2), patients)
    np.testing.assert_allclose(twice.aurocs, once.aurocs)
    np.testing.assert_allclose(twice.covariance, once.covariance)


def test_the_test_agrees_with_mlstatkit() -> None:
    y, scores, _ = cohort(3)
    result = delong(y, scores)
    z, p, (low, high), _, first, second, info = Delong_test(y, scores[0], scores[1])
    assert info["method"] == "delong"
    found = paired_difference(result, 0, 1)
    assert found.difference == pytest.approx(first - second)
    assert found.se == pytest.approx(math.sqrt(info["var_diff"]))
    assert found.difference / found.se == pytest.approx(-z)
    assert found.p == pytest.approx(p)
    assert norm.sf(0, *found[:2]) == pytest.approx(norm.cdf(-z))
    assert (found.low + found.high) / 2 == pytest.approx(found.difference)
    assert (found.high - found.low) / 2 == pytest.approx(norm.ppf(0.975) * found.se)
    # It has the same interval of one AUROC but for the scale.
    assert (high - low) / 2 == pytest.approx(norm.ppf(0.975) * math.sqrt(result.covariance[0, 0]))
    swapped = paired_difference(result, 1, 0)
    assert (swapped.difference, swapped.low, swapped.p) == pytest.approx((-found.difference, -found.high, found.p))


def test_rows_of_a_patient_count_as_one_where_they_are_copies() -> None:
    y, scores, _ = cohort(0)
    copied = delong(np.repeat(y, 3), np.repeat(scores, 3, axis=1), np.repeat(np.arange(40), 3))
    np.testing.assert_allclose(copied.covariance, delong(y, scores).covariance, atol=1e-12)


def test_the_clustered_variance_is_near_that_of_the_bootstrap() -> None:
    rng = np.random.default_rng(0)
    patients = np.repeat(np.arange(150), 4)
    y = (patients % 3 == 0).astype(int)
    scores = y + np.repeat(rng.normal(size=(2, 150)), 4, axis=1) + rng.normal(size=(2, 600))
    resampled = bootstrap_auroc(y, scores, patients, 1000, rng)
    np.testing.assert_allclose(np.cov(resampled), delong(y, scores, patients).covariance, rtol=0.15, atol=1e-4)


def test_the_interval_is_symmetric_on_the_logit_scale() -> None:
    low, high = auroc_interval(0.9, 0.03**2)
    assert logit(high) - logit(0.9) == pytest.approx(logit(0.9) - logit(low))
    assert logit(high) - logit(low) == pytest.approx(2 * norm.ppf(0.975) * 0.03 / (0.9 * 0.1))
    assert auroc_interval(0.9, 0.03**2, 0.5)[0] > low
    assert auroc_interval(0.5, 0.01) == pytest.approx((1 - auroc_interval(0.5, 0.01)[1], auroc_interval(0.5, 0.01)[1]))
    assert 0 <= auroc_interval(0.9999, 0.25)[0] < auroc_interval(0.9999, 0.25)[1] <= 1
    for value, variance in ((1, 0.0), (0, 0.0), (0.5, 0.0), (math.nan, math.nan), (0.8, math.nan)):
        assert np.isnan(auroc_interval(value, variance)).all()


def test_without_two_patients_of_a_class_there_is_no_variance() -> None:
    scores = np.array([[0.1, 0.2, 0.3, 0.4, 0.5], [5, 4, 3, 2, 1]])
    for y in (np.ones(5), np.zeros(5)):
        result = delong(y, scores)
        assert np.isnan(result.aurocs).all()
        assert np.isnan(result.covariance).all()
    y, patients = np.array([0, 0, 0, 1, 1]), np.array([0, 1, 2, 3, 3])
    result = delong(y, scores, patients)
    assert result.aurocs.tolist() == [1, 0]
    assert np.isnan(result.covariance).all()
    found = paired_difference(result, 0, 1)
    assert found.difference == 1
    assert np.isnan(found[1:]).all()


def test_a_nan_score_spoils_its_own_set_alone() -> None:
    y, scores, patients = cohort(1)
    spoilt = scores.copy()
    spoilt[1, 7] = math.nan
    result, sound = delong(y, spoilt, patients), delong(y, scores, patients)
    np.testing.assert_array_equal(np.isnan(result.aurocs), [False, True, False])
    assert np.isnan(result.covariance[1]).all()
    np.testing.assert_allclose(result.covariance[::2, ::2], sound.covariance[::2, ::2])
    assert math.isnan(paired_difference(result, 0, 1).p)


def test_equals_do_not_differ_and_certainties_are_not_compared() -> None:
    y, scores, patients = cohort(2)
    alike = delong(y, np.stack([scores[0], np.exp(scores[0])]), patients)
    assert paired_difference(alike, 0, 1) == PairedDifference(0, 0, 0, 0, 1)
    # Nothing varies where all positives are above, or below, all negatives: neither 0 nor 1 is known of the p.
    perfect = delong(y, np.stack([y, 2 * y, -y]), patients)
    assert perfect.aurocs.tolist() == [1, 1, 0]
    assert np.isnan(paired_difference(perfect, 0, 1)[1:]).all()
    assert np.isnan(paired_difference(perfect, 0, 2)[1:]).all()


def test_detectable_is_found_with_its_power() -> None:
    assert detectable(0.01) == pytest.approx(0.0280158, abs=1e-6)
    difference = detectable(0.02, level=0.9, power=0.7)
    assert norm.sf(norm.ppf(0.95), loc=difference / 0.02) == pytest.approx(0.7)


def test_hanley_and_mcneil_in_figures() -> None:
    # A .5 without ties is the rank-sum statistic, whose variance under no difference is (m + n + 1) / (12 m n).
    assert hanley_mcneil_se(0.5, 20, 30) == pytest.approx(math.sqrt(51 / (12 * 20 * 30)))
    # Exponential scores, for which the formula is exact.
    rng = np.random.default_rng(0)
    y = np.repeat([0, 1], [30, 20])
    sampled = [auroc(y, rng.exponential(1 + 3 * y)) for _ in range(800)]
    assert np.mean(sampled) == pytest.approx(0.8, abs=0.012)
    assert hanley_mcneil_se(0.8, 20, 30) == pytest.approx(np.std(sampled), rel=0.1)
    assert hanley_mcneil_se(1, 20, 30) == 0
    assert math.isnan(hanley_mcneil_se(0.8, 0, 30))
