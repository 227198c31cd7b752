import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import ndtr
from sklearn.metrics import roc_auc_score
from sklearn.neighbors import KNeighborsClassifier

from medclr import metrics
from medclr.metrics import (
    alignment,
    auroc,
    bootstrap_auroc,
    holm,
    interval,
    knn_scores,
    patient_weights,
    rankme,
    similarities,
    uniformity,
    weighted_auroc,
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


def test_patients_are_drawn_whole_and_within_their_stratum() -> None:
    patients = np.array(["b", "a", "b", "c", "d", "d", "e"])
    y = np.array([1, 0, 0, 0, 1, 1, 0])  # b and d have a positive; a, c and e have none
    weights = patient_weights(patients, y, 400, np.random.default_rng(0))
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
    monkeypatch.setattr(metrics, "_CHUNK", 30 * 7)  # 7 resamples a block, and 50 is no multiple of it
    out = bootstrap_auroc(y, np.stack([scores[0], scores[1], scores[0] * 2]), patients, 50, np.random.default_rng(1))
    assert out.shape == (3, 50)
    assert (out[0] == out[2]).all()
    assert not (out[0] == out[1]).all()

    rng = np.random.default_rng(1)
    blocks = [patient_weights(patients, y, size, rng) for size in (7,) * 7 + (1,)]
    expected = [roc_auc_score(y, scores[0], sample_weight=row) for row in np.concatenate(blocks)]
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


def test_knn_votes_by_cosine_and_temperature(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    train, test, y = rng.normal(size=(40, 5)), rng.normal(size=(11, 5)), rng.integers(0, 2, 40)
    expected = []
    for z in test:
        cosine = train @ z / np.linalg.norm(train, axis=1) / np.linalg.norm(z)
        near = np.argsort(-cosine)[:7]
        votes = np.exp(cosine[near] / 0.2)
        expected.append(votes[y[near] == 1].sum() / votes.sum())
    monkeypatch.setattr(metrics, "_CHUNK", 40 * 4)  # several blocks
    np.testing.assert_allclose(knn_scores(train, y, test, k=7, temperature=0.2), expected, atol=1e-12)
    # So warm that every neighbour has one vote.
    plain = KNeighborsClassifier(7, metric="cosine").fit(train, y).predict_proba(test)[:, 1]
    np.testing.assert_allclose(knn_scores(train, y, test, k=7, temperature=1e9), plain, atol=1e-6)


def test_knn_with_few_rows_or_a_tiny_temperature() -> None:
    train, y = np.eye(3), np.array([1, 0, 0])
    assert knn_scores(train, y, 5 * np.ones((1, 3)))[0] == pytest.approx(1 / 3)
    np.testing.assert_allclose(knn_scores(train, y, np.eye(3), temperature=1e-4), [1, 0, 0], atol=1e-12)


def test_alignment_closed_forms() -> None:
    z = np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32)
    assert alignment(z, 3 * z) == pytest.approx(0, abs=1e-12)
    assert alignment(z, -z) == pytest.approx(4)
    assert alignment(np.eye(4)[:2], np.eye(4)[2:]) == pytest.approx(2)


def test_similarities_closed_forms_and_transcription() -> None:
    own = np.arange(4)
    assert similarities(np.ones((4, 3)), 2 * np.ones((4, 3)), own) == pytest.approx((1, 1))
    assert similarities(np.eye(4), 3 * np.eye(4), own) == pytest.approx((1, 0))
    assert similarities(np.eye(4)[:2], np.eye(4)[2:], own[:2]) == pytest.approx((0, 0))
    positive, negative = similarities(np.ones((3, 2)), np.ones((3, 2)), np.zeros(3))
    assert positive == pytest.approx(1)
    assert np.isnan(negative)
    rng = np.random.default_rng(0)
    z1, z2, groups = rng.normal(size=(7, 3)), rng.normal(size=(7, 3)), np.array(list("aabcccd"))
    unit = np.concatenate([z1, z2]) / np.linalg.norm(np.concatenate([z1, z2]), axis=1, keepdims=True)
    both = np.tile(groups, 2)
    cosines = [unit[i] @ unit[j] for i in range(14) for j in range(14) if both[i] != both[j]]
    assert similarities(z1, z2, groups) == pytest.approx(
        (np.mean([unit[i] @ unit[i + 7] for i in range(7)]), np.mean(cosines))
    )
    # Of unit vectors, distance and similarity are one thing.
    assert alignment(z1, z2) == pytest.approx(2 - 2 * similarities(z1, z2, groups)[0])


def test_uniformity_closed_forms_and_transcription(monkeypatch: pytest.MonkeyPatch) -> None:
    assert uniformity(np.array([[2.0, 0], [-1, 0]])) == pytest.approx(-8)
    assert uniformity(np.eye(5)) == pytest.approx(-4)
    assert uniformity(np.ones((4, 3))) == pytest.approx(0)

    z = np.random.default_rng(0).normal(size=(20, 4))
    unit = z / np.linalg.norm(z, axis=1, keepdims=True)
    pairs = [np.exp(-2 * np.sum((unit[i] - unit[j]) ** 2)) for i in range(20) for j in range(i)]
    monkeypatch.setattr(metrics, "_CHUNK", 20 * 3)
    assert uniformity(z) == pytest.approx(np.log(np.mean(pairs)))


def test_rankme_counts_the_dimensions_in_use() -> None:
    assert rankme(np.eye(6)) == pytest.approx(6, rel=1e-4)
    assert rankme(np.ones((8, 4))) == pytest.approx(1, abs=1e-4)
    assert rankme(np.zeros((8, 4))) == pytest.approx(1, abs=1e-4)
    z = np.random.default_rng(0).normal(size=(30, 5)) * [1, 1, 1, 1e-9, 1e-9]
    assert 2.5 < rankme(z) < 3.001
    s = np.array([3.0, 1.0])
    p = s / 4
    assert rankme(np.diag(s)) == pytest.approx(np.exp(-(p * np.log(p)).sum()), rel=1e-5)
