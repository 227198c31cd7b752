import math

import numpy as np
import pytest
from scipy.special import expit, logit
from scipy.stats import t, ttest_1samp

from medclr.evaluation.estimates import Chance, Sample, Truth, mean_of
from medclr.evaluation.single import auroc_of

MANY = 10**9  # patients, so that theirs is no small sample


def sample(
    rng: np.random.Generator, of_encoders: float, of_draws: float, of_patients: float, encoders: int = 3, draws: int = 5
) -> Sample:
    """A difference that is truly 0, of encoders and draws, and its resamples."""
    by_cell = of_encoders * rng.normal(size=(encoders, 1)) + of_draws * rng.normal(size=draws)
    by_cell = by_cell + of_patients * rng.normal()
    return Sample(by_cell, by_cell.mean() + of_patients * rng.normal(size=300))


def nothing(like: Sample) -> Sample:
    """What to compare with for a difference that is `like` itself."""
    return Sample(np.zeros_like(like.by_cell), np.zeros_like(like.resampled))


SOURCES = pytest.mark.parametrize(
    ("of_encoders", "of_draws", "of_patients"),
    [(0.03, 0.001, 0.001), (0.02, 0.04, 0.001), (0.02, 0.03, 0.02)],
)


@SOURCES
def test_intervals_cover_and_agree_with_the_test(of_encoders: float, of_draws: float, of_patients: float) -> None:
    """Whatever dominates of 3 encoders, 5 draws and patients; the bounds are 4 sd off .95."""
    rng = np.random.default_rng(0)
    p, held = [], []
    for seed in range(600):
        one = sample(rng, of_encoders, of_draws, of_patients)
        found = Chance(5, 3, 300, seed).estimate(one, MANY, nothing(one))
        held.append(found.low < 0 < found.high)
        p.append(found.p)
    assert np.mean(held) == pytest.approx(0.95, abs=4 * math.sqrt(0.95 * 0.05 / 600))
    for level in (0.5, 0.05, 0.01):
        assert np.mean(np.array(p) < level) == pytest.approx(level, abs=5 * math.sqrt(level * (1 - level) / 600))
    assert ((np.array(p) >= 0.05) == held).all()


def test_what_differs_by_encoder_and_draw_at_once_errs_on_the_wide_side() -> None:
    rng = np.random.default_rng(0)
    held = 0
    for seed in range(200):
        by_cell = rng.normal(size=(3, 5)) / 20
        one = Sample(by_cell, np.full(300, by_cell.mean()))
        found = Chance(5, 3, 300, seed).estimate(one, MANY, nothing(one))
        held += found.low < 0 < found.high
    assert held > 188


@pytest.mark.parametrize("axis", [0, 1])
def test_draws_or_encoders_alone_give_students_test_and_interval(axis: int) -> None:
    values = np.array([0.02, -0.01, 0.03, 0.05])
    by_cell = np.expand_dims(values, axis)
    one = Sample(by_cell, np.full(40000, values.mean()))
    found = Chance(4, 4, 40000, 0).estimate(one, MANY, nothing(one))
    oracle = ttest_1samp(values, 0)
    assert found.p == pytest.approx(oracle.pvalue)
    low, high = oracle.confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((low, high), abs=0.0015)
    error = values.std(ddof=1) / 2
    assert found.detectable == pytest.approx((t.ppf(0.975, 3) + t.ppf(0.8, 3)) * error)
    assert found.resampled.std() == pytest.approx(error * t.ppf(0.975, 3) / 1.959964, rel=0.02)


def test_the_detectable_difference_is_one_that_two_aurocs_can_have() -> None:
    two = np.array([[0.1, 0.9]])
    found = Chance(2, 1, 300, 0).estimate(Sample(two, np.full(300, 0.5)), MANY, Sample(two[:, ::-1], np.full(300, 0.5)))
    assert (found.low, found.high) == (-1, 1)
    assert found.detectable == 1


def test_variances_of_all_sources_add_up() -> None:
    rng = np.random.default_rng(0)
    by_cell, noise = rng.normal(size=(3, 5)) / 20, rng.normal(size=100000)
    noise = (noise - noise.mean()) / noise.std()
    one = Sample(by_cell, by_cell.mean() + 0.02 * noise)
    found = Chance(5, 3, 100000, 0).estimate(one, 20, nothing(one))
    parts = np.array([0.0004 * 20 / 19, by_cell.mean(axis=0).var(ddof=1) / 5, by_cell.mean(axis=1).var(ddof=1) / 3])
    freedom = parts.sum() ** 2 / (parts**2 / [19, 4, 2]).sum()
    assert found.p == pytest.approx(2 * t.sf(abs(by_cell.mean()) / math.sqrt(parts.sum()), freedom))
    half = t.ppf(0.975, freedom) * math.sqrt(parts.sum())
    assert (found.low, found.high) == pytest.approx((by_cell.mean() - half, by_cell.mean() + half), abs=0.03 * half)


def test_encoders_are_paired_with_as_many_and_apart_from_others() -> None:
    chance = Chance(2, 3, 1000, 0)
    still = np.zeros(1000)
    three = Sample(np.repeat([[0.1], [0.2], [0.4]], 2, axis=1), still + 0.7 / 3)
    found = chance.estimate(three, MANY, Sample(three.by_cell - 0.05, three.resampled - 0.05))
    assert (found.low, found.high) == pytest.approx((0.05, 0.05))
    one = chance.estimate(three, MANY, Sample(np.zeros((1, 2)), still))
    assert one.p == pytest.approx(ttest_1samp([0.1, 0.2, 0.4], 0).pvalue)
    two = chance.estimate(three, MANY, Sample(np.array([[0.1, 0.1], [-0.1, -0.1]]), still))
    assert two.p > one.p
    assert two.detectable > one.detectable


@pytest.mark.parametrize("value", [0.6, 0.99])
def test_the_interval_of_a_mean_is_symmetric_on_the_logit_scale(value: float) -> None:
    by_draw = value + np.array([0.004, -0.006, 0.002])
    found = Chance(3, 1, 40000, 0).estimate(Sample(by_draw[None], np.full(40000, value)), MANY)
    half = t.ppf(0.975, 2) * by_draw.std(ddof=1) / math.sqrt(3) / (value * (1 - value))
    assert found.value == pytest.approx(value)
    assert logit([found.low, found.high]) - logit(value) == pytest.approx([-half, half], rel=0.03)
    assert np.quantile(found.resampled, 0.5) == pytest.approx(expit(logit(value)), abs=0.001)


def test_an_interval_stays_within_the_scale_and_holds_its_estimate() -> None:
    chance = Chance(2, 1, 1000, 0)
    wide = chance.estimate(Sample(np.array([[0.5, 0.9]]), np.full(1000, 0.7)), MANY)
    assert 0 <= wide.low < 0.1
    assert 0.99 < wide.high <= 1
    one = Sample(np.array([[0.5, 0.9]]), np.full(1000, 0.7))
    apart = chance.estimate(one, MANY, Sample(np.array([[0.6, 0.2]]), np.full(1000, 0.4)))
    assert (apart.low, apart.high) == (-1, 1)
    biased = chance.estimate(Sample(np.array([[0.7]]), np.linspace(0.71, 0.8, 1000)), MANY)
    assert biased.low == 0.7
    # A mean of 1 has no logit; its resamples are those of `Chance.perfect`, as they are.
    perfect = chance.estimate(Sample(np.ones((1, 1)), np.linspace(0.8, 1, 1001)), MANY)
    assert (perfect.low, perfect.high) == pytest.approx((0.805, 1), abs=0.001)


def test_where_nothing_varies() -> None:
    def found(value: float) -> tuple[float, float, float]:
        estimate = Chance(3, 1, 9, 0).estimate(Sample(np.full((1, 3), value), np.full(9, value)), 10)
        assert math.isnan(estimate.detectable)
        return estimate.low, estimate.high, estimate.p

    assert found(0.0) == (0, 0, 1)
    assert found(0.25) == (0.25, 0.25, 0)


def test_of_scores_that_never_vary_no_difference_is_judged() -> None:
    one, other = (Sample(np.full((1, 3), value), np.full(9, value)) for value in (0.5, 0.0))
    found = Chance(3, 1, 9, 0).estimate(one, 10, other)
    assert found[:4] == (0.5, -1, 1, 1)
    assert Chance(3, 1, 9, 0).estimate(one, 10, one)[:4] == (0, 0, 0, 1)


def test_an_auroc_of_0_is_as_uncertain_as_one_of_1() -> None:
    y = np.repeat([0.0, 1.0], 6)[:, None]
    patients = np.arange(12)
    high, low = (auroc_of(y, patients, sign * y, "binary", 4000, 0) for sign in (1, -1))
    assert (high.value, low.value) == (1, 0)
    assert (high.low, low.high) == pytest.approx((1 - low.high, 1 - high.low))
    assert 0.3 < low.high < 0.7


def test_few_patients_widen_an_interval() -> None:
    rng = np.random.default_rng(0)
    one = Sample(np.full((1, 1), 0.8), 0.8 + 0.03 * rng.normal(size=1000))
    few, many = (Chance(1, 1, 1000, 0).estimate(one, patients) for patients in (6, MANY))
    expected = math.sqrt(6 / 5) * t.ppf(0.975, 5) / 1.959964
    widths = [np.ptp(logit([found.low, found.high])) for found in (few, many)]
    assert widths[0] == pytest.approx(expected * widths[1])


def test_what_a_perfect_ranking_may_truly_be() -> None:
    values = Chance(1, 1, 40000, 0).perfect(30)
    assert np.quantile(values, 0.025) == pytest.approx(0.025 ** (1 / 30), abs=0.003)
    assert values.max() <= 1


def test_a_mean_over_outputs_is_over_those_that_a_resample_has() -> None:
    one = Sample(np.array([[0.2]]), np.array([0.2, math.nan, math.nan]))
    other = Sample(np.array([[0.6]]), np.array([0.4, 0.5, math.nan]))
    mean = mean_of([one, other])
    assert mean.by_cell.tolist() == [[0.4]]
    np.testing.assert_allclose(mean.resampled, [0.3, 0.5, math.nan])


def test_patients_of_the_rarer_class() -> None:
    y = np.array([[1, 1], [1, 0], [0, 0], [0, 0], [1, math.nan]])
    truth = Truth.of(y, np.array(list("aabcd")), "multilabel")
    assert truth.rarer([0]) == 2
    assert truth.rarer([1]) == 1
    assert truth.rarer([0, 1]) == pytest.approx(2 / (1 / 2 + 1))
    assert truth.strata.tolist() == [1, 1, 0, 0, 1]
    assert Truth.of(np.eye(3), np.arange(3), "multiclass").strata.tolist() == [0, 1, 2]
    assert truth.reasons[0] == "only 2 patients with a positive (fewer than 5)"
