import math

import numpy as np
import pytest
from scipy.special import logit, ndtr

from medclr.evaluation.efficiency import BETTER, Curve, Scores, label_efficiency
from medclr.metrics import auroc, delong

N = 60
PATIENTS = np.repeat([f"p{i}" for i in range(N)], 2)
RNG = np.random.default_rng(0)
Y = (RNG.random(2 * N) < 0.4).astype(float)[:, None]  # some patients have both classes
NOISE = {"scratch": 2.0, "pca": 1.5, "simclr-linear": 1.0}
SCORES = {
    (name, e, d): Y + noise * RNG.standard_normal(Y.shape)
    for name, noise in NOISE.items()
    for e in (0, 1)
    for d in range(3)
}


def made(y: np.ndarray = Y, kind: str = "binary") -> Curve:
    def arm(name: str, encoder: int) -> object:
        return lambda rows, seed: Scores(np.tile(SCORES[name, encoder, seed], y.shape[1]), None)

    arms = {"scratch": [arm("scratch", 0)], "pca": [arm("pca", 0)]}
    arms["simclr-linear"] = [arm("simclr-linear", 0), arm("simclr-linear", 1)]
    return label_efficiency(y, PATIENTS, y, PATIENTS, arms, {1.0: 3}, 200, 0, kind=kind)


@pytest.fixture(scope="module")
def curve() -> Curve:
    return made()


def mean_and_variance(means: dict[str, list[tuple[int, int]]]) -> tuple[float, float]:
    """Of the mean over cells of simclr-linear, less that of pca if it has any, by deleting a patient at a time."""

    def difference(rows: np.ndarray) -> float:
        of = {name: [auroc(Y[rows, 0], SCORES[name, e, d][rows, 0]) for e, d in cells] for name, cells in means.items()}
        return float(np.mean(of["simclr-linear"]) - np.mean(of.get("pca", 0)))

    without = np.array([difference(np.flatnonzero(patient != PATIENTS)) for patient in np.unique(PATIENTS)])
    return difference(np.arange(2 * N)), float((N - 1) / N * ((without - without.mean()) ** 2).sum())


CELLS = {"simclr-linear": [(e, d) for e in range(2) for d in range(3)], "pca": [(0, d) for d in range(3)]}


def test_a_difference_of_means_has_the_variance_that_a_jackknife_of_patients_finds(curve: Curve) -> None:
    (row,) = curve.differences.query("versus == 'pca'").itertuples()
    difference, variance = mean_and_variance(CELLS)
    half = (row.delong_high - row.delong_low) / 2
    assert row.difference == pytest.approx(difference)
    assert (row.delong_high + row.delong_low) / 2 == pytest.approx(difference)
    assert half == pytest.approx(1.96 * math.sqrt(variance), rel=0.05)
    assert row.delong_p == pytest.approx(2 * ndtr(-difference / (half / 1.959964)), rel=1e-3)


def test_a_point_has_its_interval_on_the_logit_scale(curve: Curve) -> None:
    (point,) = curve.points.query("arm == 'simclr-linear'").itertuples()
    mean, variance = mean_and_variance({"simclr-linear": CELLS["simclr-linear"]})
    assert logit(point.delong_low) + logit(point.delong_high) == pytest.approx(2 * logit(mean))
    half = (logit(point.delong_high) - logit(point.delong_low)) / 2
    assert half == pytest.approx(1.96 * math.sqrt(variance) / (mean * (1 - mean)), rel=0.05)


def test_of_one_cell_it_is_that_of_delong() -> None:
    def one(rows: np.ndarray, seed: int) -> Scores:
        return Scores(SCORES["scratch", 0, 0], None)

    curve = label_efficiency(Y, PATIENTS, Y, PATIENTS, {"scratch": [one]}, {1.0: 3}, 200, 0)
    (variance,) = np.diag(delong(Y[:, 0], SCORES["scratch", 0, 0].T, PATIENTS).covariance)
    (point,) = curve.points.itertuples()
    width = logit(point.delong_high) - logit(point.delong_low)
    assert width == pytest.approx(2 * 1.959964 * math.sqrt(variance) / (point.auroc * (1 - point.auroc)), rel=1e-5)


def test_the_better_baseline_has_the_opinion_on_it_and_the_larger_p(curve: Curve) -> None:
    rows = curve.differences.set_index("versus")
    better = rows.loc[BETTER]
    columns = ["delong_low", "delong_high"]
    assert better[columns].tolist() == rows.loc[better["baseline"], columns].tolist()
    assert better["delong_p"] == rows["delong_p"].max()


def test_of_several_outputs_it_is_of_those_that_can_be_judged() -> None:
    alone = np.zeros_like(Y)
    alone[0] = 1  # one patient: too few to judge by
    several, single = made(np.hstack([Y, alone]), "multilabel"), made()
    columns = ["auroc", "delong_low", "delong_high"]
    np.testing.assert_allclose(several.points[columns].astype(float), single.points[columns].astype(float))
    two = made(np.hstack([Y, np.roll(Y, 7)]), "multilabel")
    assert two.differences[["delong_low", "delong_high", "delong_p"]].notna().all(axis=None)
