import numpy as np
import pytest
from sklearn.neighbors import KNeighborsClassifier

from medclr.metrics import alignment, embedding, knn_scores, rankme, similarities, uniformity


def test_knn_votes_by_cosine_and_temperature(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    train, test, y = rng.normal(size=(40, 5)), rng.normal(size=(11, 5)), rng.integers(0, 2, 40)
    expected = []
    for z in test:
        cosine = train @ z / np.linalg.norm(train, axis=1) / np.linalg.norm(z)
        near = np.argsort(-cosine)[:7]
        votes = np.exp(cosine[near] / 0.2)
        expected.append(votes[y[near] == 1].sum() / votes.sum())
    monkeypatch.setattr(embedding, "_CHUNK", 40 * 4)  # several blocks
    np.testing.assert_allclose(knn_scores(train, y, test, k=7, temperature=0.2), expected, atol=1e-12)
    # So warm that every neighbour has one vote.
    plain = KNeighborsClassifier(7, metric="cosine").fit(train, y).predict_proba(test)[:, 1]
    np.testing.assert_allclose(knn_scores(train, y, test, k=7, temperature=1e9), plain, atol=1e-6)


def test_knn_with_few_rows_or_a_tiny_temperature() -> None:
    train, y = np.eye(3), np.array([1, 0, 0])
    assert knn_scores(train, y, 5 * np.ones((1, 3)))[0] == pytest.approx(1 / 3)
    np.testing.assert_allclose(knn_scores(train, y, np.eye(3), temperature=1e-4), [1, 0, 0], atol=1e-12)


def test_knn_of_several_labels_leaves_unknown_ones_out() -> None:
    rng = np.random.default_rng(0)
    train, test = rng.normal(size=(30, 5)), rng.normal(size=(8, 5))
    y = rng.integers(0, 2, (30, 3)).astype(float)
    np.testing.assert_allclose(
        knn_scores(train, y, test, k=9), np.column_stack([knn_scores(train, column, test, k=9) for column in y.T])
    )
    y[::2, 1], y[:, 2] = np.nan, np.nan
    votes = knn_scores(train, y, test, k=9)
    for m, z in enumerate(test):
        cosine = train @ z / np.linalg.norm(train, axis=1) / np.linalg.norm(z)
        known = [n for n in np.argsort(-cosine)[:9] if n % 2]
        weight = np.exp(cosine[known] / 0.1)
        assert votes[m, 1] == pytest.approx(weight @ y[known, 1] / weight.sum())
    assert (votes[:, 2] == 0.5).all()


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
    monkeypatch.setattr(embedding, "_CHUNK", 20 * 3)
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
