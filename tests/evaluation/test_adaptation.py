"""What adapting gained, against numbers worked out by hand from the same scores."""

import math

import numpy as np
import pytest

from medclr.evaluation.adaptation import LEAST_GAP, choice_text, domain_adaptation, judged_text
from medclr.evaluation.cells import Scores
from medclr.metrics import auroc

N = 200
Y = (np.arange(N) % 2).astype(float)[:, None]
KEYS = np.array([f"p{i}" for i in range(N)], dtype=object)


def method(signal, choice=""):
    """An arm whose scores hold so much of the label; noise is the same for all, but for a little by seed."""

    def arm(drawn, seed):
        noise = np.random.default_rng(0).normal(size=(N, 1)) + 0.1 * np.random.default_rng(seed).normal(size=(N, 1))
        return Scores(signal * Y + noise, None, choice)

    return [arm]


ARMS = {"source-only": 0.3, "coral": 1.0, "pseudo": 0.28, "target-trained": 2.0}


def found(arms=ARMS, **given):
    every = {name: method(signal) if isinstance(signal, float) else signal for name, signal in arms.items()}
    settings = {"draws": 4, "resamples": 500, "seed": 0} | given
    return domain_adaptation(Y[:40], KEYS[:40], Y, KEYS, every, **settings)


def mean_auroc(signal):
    return np.mean([auroc(Y[:, 0], method(signal)[0](None, seed).test[:, 0]) for seed in range(4)])


def test_regained_is_the_share_of_the_gap_that_a_method_closes():
    result = found()
    of = {name: mean_auroc(signal) for name, signal in ARMS.items()}
    rows = result.regained.set_index("method")
    assert list(rows.index) == ["coral", "pseudo"]
    gap = of["target-trained"] - of["source-only"]
    for name, row in rows.iterrows():
        assert row["gap"] == pytest.approx(gap)
        assert row["share"] == pytest.approx((of[name] - of["source-only"]) / gap)
        assert row["low"] < row["share"] < row["high"]
        assert row["reason"] == ""
    assert rows.loc["coral", "low"] > 0.3
    assert rows.loc["coral", "high"] < 1
    assert rows.loc["pseudo", "high"] < 0.05
    np.testing.assert_allclose(result.points.set_index("method")["auroc"], [of[name] for name in ARMS])
    assert result.frame() is result.points


def test_a_method_as_good_as_labels_regains_all_of_the_gap():
    """Above and below the line stand the same resamples: the interval is but a point."""
    (row,) = found({"source-only": 0.3, "coral": 2.0, "target-trained": 2.0}).regained.to_dict("records")
    assert (row["share"], row["low"], row["high"]) == pytest.approx((1, 1, 1))


def test_shares_have_intervals_that_cover():
    """Of samples from a population in which half of the gap is regained, 95 in 100; 4 sd of 60 are .11."""
    covered = 0
    for sample in range(60):
        rng = np.random.default_rng(sample)
        noise = rng.normal(size=(N, 1))
        arms = {
            name: [lambda drawn, seed, scores=signal * Y + noise: Scores(scores, None)]
            for name, signal in (("source-only", 0.0), ("coral", 0.7), ("target-trained", 1.7))
        }
        (row,) = found(arms, draws=1, resamples=300).regained.to_dict("records")
        true = [0.5 + math.erf(signal / 2) / 2 for signal in (0.0, 0.7, 1.7)]
        covered += row["low"] < (true[1] - true[0]) / (true[2] - true[0]) < row["high"]
    assert covered >= 50


def test_without_a_gap_there_is_no_share():
    (row,) = found({"source-only": 1.0, "coral": 1.1, "target-trained": 1.05}).regained.to_dict("records")
    assert row["gap"] < LEAST_GAP
    assert row["reason"] == "the gap to labels of the target is below 0.03"
    assert math.isnan(row["share"])


def test_a_gap_that_may_be_none_is_not_divided_by():
    other = np.random.default_rng(3).normal(size=(N, 1))
    arms = {"source-only": 0.3, "coral": 0.4, "target-trained": [lambda drawn, seed: Scores(0.6 * Y + other, None)]}
    (row,) = found(arms).regained.to_dict("records")
    assert row["gap"] > LEAST_GAP > 0 > row["gap_low"]
    assert row["reason"] == "the gap to labels of the target is not resolved"
    assert math.isnan(row["share"])


def test_differences_are_from_source_only_with_holm_over_all_of_them():
    rows = found().differences.set_index("method")
    assert list(rows.index) == ["coral", "pseudo", "target-trained"]
    assert set(rows["versus"]) == {"source-only"}
    assert rows.loc["target-trained", "p_holm"] == pytest.approx(3 * rows.loc["target-trained", "p"])
    assert rows.loc["pseudo", "p_holm"] == pytest.approx(rows.loc["pseudo", "p"])


def test_what_a_method_may_be_chosen_by_stands_beside_what_it_has_on_the_target():
    arms = {"source-only": method(0.3, judged_text(0.9, 0.5)), "coral": method(1.0, judged_text(0.8127, 0.031))}
    points = found({**arms, "target-trained": 2.0}).points.set_index("method")
    assert points.loc[["source-only", "coral"], "at_home"].tolist() == [0.9, 0.8127]
    assert points.loc[["source-only", "coral"], "entropy"].tolist() == [0.5, 0.031]
    assert points.loc["target-trained", ["at_home", "entropy"]].isna().all()


def test_the_oracle_is_the_highest_method_and_never_auto_or_the_upper_bound():
    assert found().oracle == "coral"
    assert found({**ARMS, "auto": 1.5}).oracle == "coral"
    assert found({"source-only": 0.3, "coral": 0.1, "target-trained": 2.0}).oracle == "source-only"


def test_choices_are_counted_over_halves_and_draws():
    halves = iter([[("coral", 0.2), ("pseudo", 0.04)], [("coral", 0.1), ("coral", -0.0)]] * 2)
    arms = {**ARMS, "auto": [lambda drawn, seed: Scores(Y, None, choice_text(next(halves)))]}
    rows = found(arms).choices.to_dict("records")
    assert rows == [
        {"method": "coral", "n": 6, "of": 8, "left": pytest.approx(0.1)},
        {"method": "pseudo", "n": 2, "of": 8, "left": pytest.approx(0.04)},
    ]
    assert found().choices.empty


def test_what_a_choice_left_may_not_be_known():
    arms = {**ARMS, "auto": [lambda drawn, seed: Scores(Y, None, choice_text([("source-only", math.nan)] * 2))]}
    (row,) = found(arms).choices.to_dict("records")
    assert (row["n"], row["of"]) == (8, 8)
    assert math.isnan(row["left"])


def test_finished_cells_are_not_run_again():
    cells = {}
    before = found(on_cell=lambda cell: cells.update({cell.id: cell}))
    assert len(cells) == 4 * 4
    after = found({name: [None] for name in ARMS}, done=cells)
    assert after.points.equals(before.points)
    assert after.regained.equals(before.regained)
