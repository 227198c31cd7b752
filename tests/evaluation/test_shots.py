"""The curve of a few labels of the target, against numbers worked out by hand from the same scores."""

import math

import numpy as np
import pytest

from medclr.evaluation.adaptation import domain_adaptation
from medclr.evaluation.cells import Scores
from medclr.evaluation.shots import Shots, Worth, shot_name
from medclr.metrics import auroc, holm

N, DRAWS = 200, 4
Y = (np.arange(N) % 2).astype(float)[:, None]
KEYS = np.array([f"p{i}" for i in range(N)], dtype=object)
ARMS = {"source-only": 0.3, "coral": 1.0, "auto": 0.8, "target-trained": 2.0}
CURVE = {
    ("source+target", 5): 0.6,
    ("source+target", 20): 1.1,
    ("adapted+target", 5): 0.9,
    ("adapted+target", 20): 1.1,
    ("target-alone", 5): 0.2,
    ("lp-ft", 20): 1.2,
}


def method(signal):
    """One arm whose scores hold so much of the label; noise is the same for all, but for a little by seed."""

    def arm(drawn, seed):
        noise = np.random.default_rng(0).normal(size=(N, 1)) + 0.1 * np.random.default_rng(seed).normal(size=(N, 1))
        return Scores(signal * Y + noise, None)

    return [arm if isinstance(signal, float) else lambda drawn, seed: Scores(np.empty(0), None, reason=signal)]


def found(curve=CURVE, arms=ARMS, **given):
    arms = {name: method(signal) for name, signal in arms.items()}
    shots = {shot_name(*key): method(signal) for key, signal in curve.items()}
    settings = {"draws": DRAWS, "resamples": 500, "seed": 0} | given
    return domain_adaptation(Y[:40], KEYS[:40], Y, KEYS, arms, shots=shots, **settings)


def mean_auroc(signal):
    return np.mean([auroc(Y[:, 0], method(signal)[0](None, seed).test[:, 0]) for seed in range(DRAWS)])


def test_a_curve_begins_at_what_there_is_without_labels():
    shots = found().shots
    assert isinstance(shots, Shots)
    assert shots.frame() is shots.points
    expected = {("source+target", 0): 0.3, ("adapted+target", 0): 0.8, **CURVE}
    rows = {(row["method"], row["shots"]): row for row in shots.points.to_dict("records")}
    assert set(rows) == set(expected)
    assert list(rows) == sorted(rows, key=lambda key: (list(dict.fromkeys(m for m, _ in rows)).index(key[0]), key[1]))
    for key, signal in expected.items():
        row = rows[key]
        assert row["auroc"] == pytest.approx(mean_auroc(signal))
        assert row["low"] < row["auroc"] < row["high"]
        assert (row["n_draws"], row["n_encoders"], row["reason"]) == (DRAWS, 1, "")


def test_differences_are_from_as_many_labels_without_adaptation_with_holm_over_all_of_them():
    rows = found().shots.differences
    assert list(zip(rows["method"], rows["shots"], strict=True)) == [
        ("adapted+target", 5),
        ("adapted+target", 20),
        ("target-alone", 5),
        ("lp-ft", 20),
    ]
    assert set(rows["versus"]) == {"source+target"}
    for row in rows.to_dict("records"):
        signal, without = CURVE[row["method"], row["shots"]], CURVE["source+target", row["shots"]]
        assert row["difference"] == pytest.approx(mean_auroc(signal) - mean_auroc(without))
        assert row["low"] <= row["difference"] <= row["high"]
    np.testing.assert_allclose(rows["p_holm"], holm(rows["p"].to_numpy()))


def test_the_other_tables_and_their_correction_know_nothing_of_shots():
    with_shots, without = found(), found({})
    assert without.shots is None
    for name in ("points", "differences", "regained"):
        assert getattr(with_shots, name).equals(getattr(without, name))
    assert with_shots.oracle == without.oracle


def test_worth_is_where_the_curve_without_adaptation_reaches_adaptation_without_labels():
    worth = found().shots.worth
    low, high, goal = mean_auroc(0.6), mean_auroc(1.1), mean_auroc(0.8)
    expected = math.exp(math.log(6) + (goal - low) / (high - low) * (math.log(21) - math.log(6))) - 1
    assert worth.labels == pytest.approx(expected)
    assert 0 < worth.low < worth.labels < worth.high
    assert (worth.most, worth.reason) == (20, "")


def test_worth_below_the_fewest_labels_is_read_from_none_on():
    worth = found(CURVE | {("source+target", 5): 1.0}).shots.worth
    low, high, goal = mean_auroc(0.3), mean_auroc(1.0), mean_auroc(0.8)
    assert worth.labels == pytest.approx(math.exp((goal - low) / (high - low) * math.log(6)) - 1)


@pytest.mark.parametrize(("auto", "labels"), [(0.2, 0.0), (0.3, 0.0), (3.0, math.inf)])
def test_worth_is_censored_at_nothing_and_at_the_most_labels(auto, labels):
    worth = found(arms=ARMS | {"auto": auto}).shots.worth
    assert (worth.labels, worth.low, worth.high) == (labels, labels, labels)


def test_a_curve_that_falls_at_first_has_reached_what_it_was():
    worth = found(CURVE | {("source+target", 5): 0.1}, ARMS | {"source-only": 0.5, "auto": 0.4}).shots.worth
    assert (worth.labels, worth.low, worth.high) == (0, 0, 0)


def test_without_auto_there_is_no_worth():
    arms = {name: signal for name, signal in ARMS.items() if name != "auto"}
    curve = {key: signal for key, signal in CURVE.items() if key[0] != "adapted+target"}
    shots = found(curve, arms).shots
    assert shots.worth is None
    assert "adapted+target" not in set(shots.points["method"])


def test_too_few_of_a_class_leaves_a_marked_cell_and_the_rest_of_the_curve():
    why = "a half of the target has 12 patients of a class, and 20 are asked for"
    cells = []
    shots = found({**CURVE, **{key: why for key in CURVE if key[1] == 20}}, on_cell=cells.append).shots
    rows = shots.points[shots.points["shots"] == 20]
    assert set(rows["reason"]) == {f"n/a in 4 of 4 draws: {why}"}
    assert rows["auroc"].isna().all()
    assert [cell.reason for cell in cells if cell.arm == "lp-ft-20"] == [why] * DRAWS
    known = shots.differences[shots.differences["reason"] == ""]
    assert set(known["shots"]) == {5}
    np.testing.assert_allclose(known["p_holm"], holm(known["p"].to_numpy()))
    assert shots.worth.most == 5
    assert shots.worth.labels == math.inf
    nothing = found(dict.fromkeys(CURVE, why)).shots.worth
    assert isinstance(nothing, Worth)
    assert (math.isnan(nothing.labels), nothing.reason) == (True, f"n/a in 4 of 4 draws: {why}")


def test_finished_cells_are_not_run_again():
    cells = {}
    before = found(on_cell=lambda cell: cells.update({cell.id: cell}))
    assert len(cells) == DRAWS * (len(ARMS) + len(CURVE))
    arms = {name: [None] for name in ARMS}
    shots = {shot_name(*key): [None] for key in CURVE}
    after = domain_adaptation(
        Y[:40], KEYS[:40], Y, KEYS, arms, draws=DRAWS, resamples=500, seed=0, done=cells, shots=shots
    )
    assert after.shots.points.equals(before.shots.points)
    assert after.shots.differences.equals(before.shots.differences)
    assert after.shots.worth == before.shots.worth
    assert after.points.equals(before.points)
