import numpy as np
import pandas as pd
import pytest

from medclr.evaluation import distances as module
from medclr.evaluation.distances import distances_of
from medclr.metrics.discrepancy import WIDTHS, _regrouped


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def found(*parts: np.ndarray, per_patient: int = 1) -> pd.DataFrame:
    """Distances of domains b, c, … from a, whose features are given in turn."""
    domain = np.repeat([*"abcd"[: len(parts)]], [len(part) for part in parts]).astype(object)
    patients = np.arange(len(domain)) // per_patient
    return distances_of(np.concatenate(parts), domain, patients, "a", [*"bcd"[: len(parts) - 1]], 0)


def test_they_are_those_of_a_naive_transcription(rng: np.random.Generator) -> None:
    a, b = rng.normal(size=(13, 3)).astype(np.float32), rng.normal(1, 2, (9, 3)).astype(np.float32)
    row = found(a, b).loc[0]
    x = np.concatenate([a, b]).astype(float) / np.concatenate([a, b]).astype(float).std(axis=0)
    apart = [[np.sum((one - other) ** 2) for other in x] for one in x]
    median = np.median([apart[i][j] for i in range(22) for j in range(i)])

    def mean(rows: range, columns: range) -> float:
        pairs = [(i, j) for i in rows for j in columns if i != j]
        return float(np.mean([np.mean([np.exp(-apart[i][j] / (w * median)) for w in WIDTHS]) for i, j in pairs]))

    of_a, of_b = range(13), range(13, 22)
    assert row["mmd"] == pytest.approx(mean(of_a, of_a) + mean(of_b, of_b) - 2 * mean(of_a, of_b), abs=1e-12)
    gap = np.cov(x[:13], rowvar=False) - np.cov(x[13:], rowvar=False)
    assert row["coral"] == pytest.approx(np.linalg.norm(gap, "fro") ** 2 / (4 * 3**2))
    assert row[["domain", "versus"]].tolist() == ["b", "a"]


def test_domains_alike_are_no_further_apart_than_noise_however_small_one_is(rng: np.random.Generator) -> None:
    """The unbiased estimate is about 0, and above its noise in 5 of 100."""
    for n in (80, 8):
        rows = pd.concat([found(rng.normal(size=(80, 4)), rng.normal(size=(n, 4))) for _ in range(60)])
        assert abs(rows["mmd"].mean()) < 3 * rows["mmd"].std() / np.sqrt(len(rows))
        assert (rows["mmd"] > rows["noise"]).sum() < 9  # of 60 at 5%, nearly always (99.4%)


def test_patients_of_many_scans_are_noise_and_no_shift(rng: np.random.Generator) -> None:
    def of_patients(n: int) -> np.ndarray:
        return np.repeat(rng.normal(size=(n, 4)), 6, axis=0) + 0.1 * rng.normal(size=(6 * n, 4))

    rows = pd.concat([found(of_patients(30), of_patients(8), per_patient=6) for _ in range(40)])
    assert rows["mmd"].mean() > 0.02  # scans of one patient are alike, which makes any two groups differ
    assert (rows["mmd"] > rows["noise"]).sum() < 7


@pytest.mark.parametrize(("change", "far"), [(0.0, False), (0.7, True)])
def test_of_patients_who_are_in_both_domains_what_changes_within_them_counts(
    rng: np.random.Generator, change: float, far: bool
) -> None:
    both = np.tile(np.arange(40), 2)
    anatomy = rng.normal(size=(40, 4))
    features = np.concatenate([anatomy, anatomy + change]) + 0.2 * rng.normal(size=(80, 4))
    row = distances_of(features, np.repeat(["a", "b"], 40).astype(object), both, "a", ["b"], 0).loc[0]
    assert (row["mmd"] > row["noise"]) == far
    groups = _regrouped(both, np.arange(80) < 40, rng)
    assert (groups[:40] ^ groups[40:]).all()  # each patient stays in both
    assert 0.4 < groups[:40].mean() < 0.6


@pytest.mark.parametrize("change", [lambda x: x + 1, lambda x: 3 * x])
def test_another_mean_or_another_spread_is_far(rng: np.random.Generator, change: object) -> None:
    a, b, c = (rng.normal(size=(80, 4)) for _ in "abc")
    far, near = found(a, change(b), c).to_dict("records")
    assert far["mmd"] > 5 * far["noise"]
    assert near["mmd"] < 2 * near["noise"]
    assert found(a, 3 * b)["coral"][0] > 5 * found(a, c)["coral"][0]


def test_of_many_rows_some_are_taken_and_units_do_not_matter(
    rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b = rng.normal(size=(90, 2)), rng.normal(1, 1, (70, 2))
    whole = found(a, b)
    pd.testing.assert_frame_equal(found(a * [1, 1000], b * [1, 1000]), whole)
    monkeypatch.setattr(module, "MOST_ROWS", 50)
    part = found(a, b)
    assert part["mmd"][0] != whole["mmd"][0]
    assert part["mmd"][0] == pytest.approx(whole["mmd"][0], abs=0.1)


def test_features_that_do_not_vary_and_domains_of_a_row_have_no_distance_that_is_made_up(
    rng: np.random.Generator,
) -> None:
    same = np.ones((8, 2))
    assert found(same, same)[["mmd", "noise", "coral"]].to_numpy().tolist() == [[0, 0, 0]]
    one = rng.normal(size=(1, 2))
    for parts in ((one, same), (same, one)):
        assert found(*parts)[["mmd", "coral"]].isna().all(axis=None)
