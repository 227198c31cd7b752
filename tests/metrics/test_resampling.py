import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import ndtr
from sklearn.metrics import average_precision_score, roc_auc_score

from medclr.metrics import (
    Resamples,
    bootstrap,
    bootstrap_auroc,
    bootstrap_mean_auroc,
    holm,
    interval,
    resampling,
    weighted_average_precision,
    weighted_mean_auroc,
)


def patient_weights(patients: np.ndarray, strata: np.ndarray, resamples: int, seed: int) -> np.ndarray:
    drawn = Resamples(patients, strata, resamples, np.random.default_rng(seed))
    return np.concatenate([weights for _, weights in drawn.weights()])


def test_patients_are_drawn_whole_and_within_their_stratum() -> None:
    patients = np.array(["b", "a", "b", "c", "d", "d", "e"])
    y = np.array([1, 0, 0, 0, 1, 1, 0])  # b and d have a positive; a, c and e have none
    weights = patient_weights(patients, y, 400, 0)
    assert weights.shape == (400, 7)
    assert (weights[:, 0] == weights[:, 2]).all()
    assert (weights[:, 4] == weights[:, 5]).all()
    assert (weights[:, 0] + weights[:, 4] == 2).all()
    assert (weights[:, [1, 3, 6]].sum(axis=1) == 3).all()
    # With replacement from three: twice or more at 7/27, never at 8/27.
    assert np.mean(weights[:, 1] >= 2) == pytest.approx(7 / 27, abs=0.08)
    assert np.mean(weights[:, 1] == 0) == pytest.approx(8 / 27, abs=0.08)


def test_resampling_in_blocks_pairs_all_scores_on_the_same_patients(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    y, patients = np.tile([0, 1, 0], 10), np.repeat(np.arange(15), 2)
    scores = rng.normal(size=(2, 30)) + y
    monkeypatch.setattr(resampling, "_CHUNK", 30 * 7)  # 7 resamples a block, and 50 is no multiple of it
    out = bootstrap_auroc(y, np.stack([scores[0], scores[1], scores[0] * 2]), patients, 50, np.random.default_rng(1))
    assert out.shape == (3, 50)
    assert (out[0] == out[2]).all()
    assert not (out[0] == out[1]).all()

    monkeypatch.undo()
    expected = [roc_auc_score(y, scores[0], sample_weight=row) for row in patient_weights(patients, y, 50, 1)]
    np.testing.assert_allclose(out[0], expected, atol=1e-12)


def test_interval_leaves_out_nan_and_is_nan_where_nothing_is_left() -> None:
    samples = np.append(np.arange(101.0), math.nan)
    assert interval(samples) == pytest.approx((2.5, 97.5))
    assert interval(samples, 0.5) == pytest.approx((25, 75))
    assert np.isnan(interval(np.full(3, math.nan))).all()


def test_patient_clustered_intervals_cover_and_naive_ones_do_not() -> None:
    """60 patients of 8 scans, intraclass correlation .5: over 300 cohorts .94 and .68 were covered."""
    rng = np.random.default_rng(0)
    patients = np.repeat(np.arange(60), 8)
    y = patients % 2
    truth = ndtr(1.2 / math.sqrt(2))
    covered = {"patient": 0, "image": 0}
    for _ in range(100):
        scores = 1.2 * y + math.sqrt(0.5) * (np.repeat(rng.normal(size=60), 8) + rng.normal(size=480))
        for unit, keys in (("patient", patients), ("image", np.arange(480))):
            low, high = interval(bootstrap_auroc(y, scores[None], keys, 300, rng))
            covered[unit] += low < truth < high
    assert covered["patient"] > 85
    assert covered["image"] < 80


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_is_the_step_down_procedure(p: list[float]) -> None:
    adjusted = holm(np.array(p))
    for level in (0.01, 0.05, 0.3):
        rejected = set()
        for step, i in enumerate(sorted(range(len(p)), key=lambda i: p[i])):
            if p[i] * (len(p) - step) > level:
                break
            rejected.add(i)
        assert {i for i in range(len(p)) if adjusted[i] <= level} == rejected
    assert (adjusted >= p).all()
    assert (adjusted <= 1).all()


def test_holm_in_figures() -> None:
    np.testing.assert_allclose(holm(np.array([0.04, 0.01, 0.03])), [0.06, 0.03, 0.06])
    assert holm(np.array([])).shape == (0,)


def test_other_statistics_see_the_same_resamples_under_the_same_seed() -> None:
    rng = np.random.default_rng(0)
    y, patients = np.tile([0, 1, 0], 10), np.repeat(np.arange(15), 2)
    scores = rng.normal(size=(2, 30)).round(1) + y
    weights = patient_weights(patients, y, 8, 1)
    for statistic, oracle in (
        (weighted_average_precision, average_precision_score),
        (lambda y, s, w: weighted_mean_auroc(y, np.stack([-s, s], axis=1), w), roc_auc_score),
    ):
        out = bootstrap(statistic, y, scores, patients, 8, np.random.default_rng(1))
        expected = [[oracle(y, one, sample_weight=row) for row in weights] for one in scores]
        np.testing.assert_allclose(out, expected, atol=1e-12)


def test_several_classes_and_labels_are_resampled_within_their_strata() -> None:
    patients = np.array(list("aabcdeff"))
    y = np.array([2, 0, 2, 1, 1, 1, 0, 0])  # a and b have a 2; c, d and e a 1; f neither
    weights = patient_weights(patients, y, 200, 0)
    assert (weights[:, 0] == weights[:, 1]).all()
    assert (weights[:, 0] + weights[:, 2] == 2).all()
    assert (weights[:, 3:6].sum(axis=1) == 3).all()
    assert (weights[:, 6:] == 1).all()
    assert weights[:, 3].std() > 0

    # Of several labels, any positive counts, and an unknown does not.
    labels = np.array([[0, 1], [math.nan, 1], [1, 0], [0, math.nan], [0, 0], [0, 0]])
    drawn = bootstrap(
        lambda y, scores, weights: weights @ scores[:, 0],
        labels,
        np.array([[1, 1, 1, 0, 0, 0], [0, 0, 0, 1, 1, 1], [1, 0, 0, 0, 0, 0]])[:, :, None] * np.ones(2),
        np.arange(6),
        90,
        np.random.default_rng(0),
    )
    assert (drawn[:2] == 3).all()
    assert drawn[2].std() > 0


def test_the_mean_auroc_is_that_of_each_set_of_scores(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    y, patients = np.tile([0.0, 1, 0, math.nan], 10), np.repeat(np.arange(20), 2)
    scores = (rng.normal(size=(3, 40)) + np.nan_to_num(y)).round(1)  # with ties
    known = ~np.isnan(y)
    drawn = Resamples(patients, np.nan_to_num(y), 60, np.random.default_rng(1))
    weights = np.concatenate([block for _, block in drawn.weights()])[:, known]
    expected = np.mean([[roc_auc_score(y[known], s[known], sample_weight=w) for w in weights] for s in scores], axis=0)
    np.testing.assert_allclose(bootstrap_mean_auroc(y, scores, drawn), expected, atol=1e-12)
    monkeypatch.setattr(resampling, "_CHUNK", 70)  # several blocks of positives, and of resamples
    np.testing.assert_allclose(bootstrap_mean_auroc(y, scores, drawn), expected, atol=1e-12)
    lone = Resamples(np.arange(3), np.zeros(3), 50, rng)
    assert np.isnan(bootstrap_mean_auroc(np.array([1.0, 0, 0]), np.ones((1, 3)), lone)).any()
