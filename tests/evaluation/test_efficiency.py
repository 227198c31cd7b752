import json
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy.stats import norm, t
from sklearn.metrics import roc_auc_score

from medclr.errors import DataError
from medclr.evaluation import efficiency
from medclr.evaluation.efficiency import BETTER, Arm, Cell, Curve, label_efficiency
from medclr.metrics import holm

FRACTIONS = (0.1, 1.0)


class Grid:
    """80 labelled and 60 test patients of two scans, and arms whose noise is known; counts what was run."""

    def __init__(self) -> None:
        self.patients = {"train": np.repeat([f"a{i}" for i in range(80)], 2)}
        self.patients["test"] = np.repeat([f"b{i}" for i in range(60)], 2)
        self.y = {split: np.repeat(np.arange(len(keys) // 2) % 2, 2) for split, keys in self.patients.items()}
        self.runs: list[tuple[str, int, tuple[int, ...]]] = []

    def arm(self, name: str, noise: float) -> Arm:
        def scores(rows: np.ndarray, seed: int) -> np.ndarray:
            self.runs.append((name, seed, tuple(rows)))
            rng = np.random.default_rng([seed, len(rows), len(name)])
            # float32, as a network gives them
            return (self.y["test"] + noise * rng.normal(size=len(self.y["test"]))).astype(np.float32)

        return scores

    def arms(self, **noise: float) -> dict[str, Arm]:
        return {name.replace("_", "-"): self.arm(name, sd) for name, sd in noise.items()}

    def run(self, arms: dict[str, Arm], **changed: Any) -> Curve:
        given: dict[str, Any] = {
            "y_train": self.y["train"],
            "patients_train": self.patients["train"],
            "y_test": self.y["test"],
            "patients_test": self.patients["test"],
            "fractions": FRACTIONS,
            "n_draws": 3,
            "resamples": 200,
            "seed": 0,
        }
        return label_efficiency(arms=arms, **given | changed)


def the(frame: pd.DataFrame, **where: Any) -> pd.Series:
    (_, row), *others = frame[np.logical_and.reduce([frame[k] == v for k, v in where.items()])].iterrows()
    assert not others
    return row


@pytest.fixture
def grid() -> Grid:
    return Grid()


def test_every_arm_gets_the_same_nested_draws_and_seeds(grid: Grid) -> None:
    grid.run(grid.arms(scratch=1, pca=1, simclr_full=1))
    by_arm = {name: [run[1:] for run in grid.runs if run[0] == name] for name in ("scratch", "pca", "simclr_full")}
    assert by_arm["scratch"] == by_arm["pca"] == by_arm["simclr_full"]
    small, full = by_arm["scratch"][:3], by_arm["scratch"][3:]
    assert [seed for seed, _ in full] == [0, 1, 2]
    assert all(len(rows) == 16 for _, rows in small)
    assert all(rows == tuple(range(160)) for _, rows in full)
    assert len({rows for _, rows in small}) == 3


def test_runs_under_other_seeds_share_no_fine_tuning_seed(grid: Grid) -> None:
    grid.run(grid.arms(scratch=1))
    grid.run(grid.arms(scratch=1), seed=1)
    assert len({seed for _, seed, _ in grid.runs}) == 6


def test_a_point_is_the_mean_over_draws_with_its_counts(grid: Grid) -> None:
    curve = grid.run(grid.arms(scratch=1.5))
    row = the(curve.frame(), arm="scratch", fraction=0.1)
    cells = [cell for cell in curve.cells if cell.fraction == 0.1]
    assert [cell.draw for cell in cells] == [0, 1, 2]
    assert [cell.auroc for cell in cells] == [pytest.approx(roc_auc_score(grid.y["test"], c.scores)) for c in cells]
    assert row.auroc == pytest.approx(np.mean([cell.auroc for cell in cells]))
    assert (row.n_patients, row.n_positive, row.n_negative, row.n_draws) == (8, 8, 8, 3)
    assert 0 <= row.low < row.auroc < row.high <= 1
    assert row.reason == ""


def test_cells_are_resumed_and_come_back_from_json_to_the_bit(grid: Grid) -> None:
    arms = grid.arms(scratch=1.5, pca=1.4, simclr_linear=1)
    stored: list[str] = []
    whole = grid.run(arms, on_cell=lambda cell: stored.append(json.dumps(cell.to_dict(), allow_nan=False)))
    assert len(stored) == len(grid.runs) == 18

    done = {cell.id: cell for cell in (Cell.from_dict(json.loads(text)) for text in stored[:11])}
    assert "scratch|0.1|0" in done
    grid.runs.clear()
    fresh: list[Cell] = []
    resumed = grid.run(arms, done=done, on_cell=fresh.append)
    assert len(grid.runs) == len(fresh) == 7
    assert [cell.id for cell in resumed.cells] == [cell.id for cell in whole.cells]
    pd.testing.assert_frame_equal(resumed.points, whole.points, check_exact=True)
    pd.testing.assert_frame_equal(resumed.differences, whole.differences, check_exact=True)


def test_a_stored_cell_of_other_labels_is_refused(grid: Grid) -> None:
    arms = grid.arms(scratch=1)
    done = {cell.id: cell for cell in grid.run(arms).cells}
    for split in ("train", "test"):
        with pytest.raises(DataError, match=r"scratch\|0\.1\|0 was made with other labels"):
            grid.run(arms, done=done, **{f"y_{split}": 1 - grid.y[split]})
        with pytest.raises(DataError, match="or patients; use another --out"):
            grid.run(arms, done=done, **{f"patients_{split}": np.char.add(grid.patients[split], "x")})


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_single_class_is_not_run_and_says_so(grid: Grid, split: str) -> None:
    arms = grid.arms(scratch=1, simclr_full=1)
    cells: list[Cell] = []
    curve = grid.run(arms, **{f"y_{split}": np.zeros_like(grid.y[split])}, on_cell=cells.append)
    assert not grid.runs
    where = {"train": "draw of 16 volumes", "test": "test set of 120 volumes"}[split]
    assert cells[0].reason == f"the {where} holds no positive"
    assert cells[0].to_dict()["auroc"] is None
    assert math.isnan(Cell.from_dict(cells[0].to_dict()).auroc)
    assert curve.points[["auroc", "low", "high"]].isna().all(axis=None)
    assert curve.differences[["difference", "low", "high", "p", "p_holm"]].isna().all(axis=None)
    assert curve.points["reason"][0] == f"n/a in 3 of 3 draws: the {where} holds no positive"
    assert "simclr-full is not compared at 10% (n/a in 3 of 3 draws" in curve.verdict()


@pytest.mark.parametrize(("lost", "left"), [("scratch", "pca"), ("pca", "scratch")])
def test_a_draw_without_result_is_never_averaged_away(grid: Grid, lost: str, left: str) -> None:
    arms = grid.arms(scratch=1, pca=1, simclr_full=0.3)
    sound = arms[lost]
    arms[lost] = lambda rows, seed: sound(rows, seed) * (math.nan if seed == 1 and len(rows) < 20 else 1)
    curve = grid.run(arms)
    row = the(curve.points, arm=lost, fraction=0.1)
    assert math.isnan(row.auroc)
    assert row.reason == "n/a in 1 of 3 draws: training diverged: scores are not finite"
    # The better baseline is not known without it, even though the other has a result.
    row = the(curve.differences, versus=BETTER, fraction=0.1)
    assert math.isnan(row.difference)
    assert row.reason.startswith(f"{lost} is n/a in 1 of 3 draws")
    assert the(curve.differences, versus=left, fraction=0.1).difference > 0
    assert the(curve.differences, versus=BETTER, fraction=1.0).difference > 0
    assert "over 3 comparisons" in curve.verdict()


def test_differences_are_paired_between_arms(grid: Grid) -> None:
    def close(rows: np.ndarray, seed: int) -> np.ndarray:
        scores = base(rows, seed)
        return np.asarray(scores + 0.02 * grid.y["test"])

    base = grid.arm("scratch", 2)
    curve = grid.run({"scratch": base, "simclr-full": close, "simclr-same": lambda rows, seed: base(rows, seed) * 3})
    point = the(curve.points, arm="scratch", fraction=1.0)
    row = the(curve.differences, arm="simclr-full", versus="scratch", fraction=1.0)
    assert 0 < row.high - row.low < (point.high - point.low) / 5
    row = the(curve.differences, arm="simclr-same", versus="scratch", fraction=1.0)
    assert (row.difference, row.low, row.high, row.p) == (0, 0, 0, 1)


def test_the_better_baseline_is_the_one_with_the_higher_auroc(grid: Grid) -> None:
    curve = grid.run(grid.arms(scratch=2, pca=1, simclr_linear=0.8))
    better = the(curve.differences, versus=BETTER, fraction=1.0)
    assert better.baseline == "pca"
    assert better.difference == the(curve.differences, versus="pca", fraction=1.0).difference
    single = curve.differences[curve.differences.versus != BETTER]
    np.testing.assert_array_equal(single.p_holm, holm(single.p.to_numpy()))
    assert (single.p_holm > single.p).any()
    behind = grid.run(grid.arms(scratch=2, pca=0.6, simclr_linear=1.2))
    better = the(behind.differences, versus=BETTER, fraction=1.0)
    assert better.difference < 0
    assert better.p_holm == the(behind.differences, versus="pca", fraction=1.0).p_holm


def test_labels_needed_to_match_scratch_with_all_of_them(grid: Grid) -> None:
    needed = grid.run(grid.arms(scratch=1, pca=8, simclr_linear=0.3)).needed
    assert list(needed) == ["scratch", "pca", "simclr-linear"]
    assert str(needed["simclr-linear"]) == "reached with 8 labels or fewer (8 or fewer throughout the interval)"
    assert str(needed["pca"]).startswith("not reached with 80 labels")
    own = needed["scratch"]
    assert (own.least, own.most) == (8, 80)
    assert 0 <= own.low <= own.labels <= 80
    assert grid.run(grid.arms(pca=1, simclr_linear=0.3)).needed == {}
    assert grid.run(grid.arms(scratch=1), fractions=[1.0]).needed == {}


def test_what_could_have_been_detected_follows_from_the_standard_error(grid: Grid) -> None:
    curve = grid.run(grid.arms(scratch=2, simclr_linear=1.5))
    row = the(curve.differences, arm="simclr-linear", versus="scratch", fraction=1.0)
    z = abs(row.difference) / (row.detectable / (1.959964 + 0.841621))
    assert row.p > 2 * norm.sf(z)  # few draws: the tails are those of t
    assert row.p < 2 * t.sf(z, 2)


def test_any_arm_can_be_what_the_others_are_compared_with(grid: Grid) -> None:
    arms = grid.arms(scratch=2, default=1, other=0.5)
    differences = grid.run(arms, baselines=["default"]).differences
    assert set(zip(differences.arm, differences.baseline, strict=True)) == {
        ("scratch", "default"),
        ("other", "default"),
    }
    assert (differences[differences.arm == "scratch"].difference < 0).all()


def test_to_beat_the_better_baseline_is_to_beat_each() -> None:
    def row(versus: str, difference: float, p: float) -> dict[str, Any]:
        return {"versus": versus, "difference": difference, "p": p, "p_holm": 2 * p, "reason": ""}

    ahead = efficiency._against_better([row("scratch", 0.2, 0.3), row("pca", 0.1, 0.01)])
    assert (ahead["difference"], ahead["p_holm"]) == (0.1, 0.6)
    behind = efficiency._against_better([row("scratch", 0.2, 0.3), row("pca", -0.1, 0.01)])
    assert (behind["difference"], behind["p_holm"]) == (-0.1, 0.02)


def test_two_draws_give_an_interval_within_the_scale(grid: Grid) -> None:
    points = grid.run(grid.arms(scratch=2, pca=0.8), n_draws=2, fractions=(1.0, 0.1, 0.1)).points
    assert list(points.fraction) == [0.1, 0.1, 1.0, 1.0]
    assert points.low.min() == 0
    assert points.high.max() == 1


def test_verdict_names_every_arm_and_claims_only_what_holds(grid: Grid) -> None:
    said = grid.run(grid.arms(scratch=2, pca=2, simclr_linear=0.3, simclr_full=2)).verdict()
    assert said.startswith("In AUROC against the better of scratch and pca, with Holm's correction over 8 comparisons:")
    linear, full = said.split("; ")
    assert "simclr-linear helps at 10% (+0." in linear
    assert "100% (+0." in linear
    assert "resolve" not in linear
    assert full.startswith("simclr-full shows no difference that these data can resolve at 10% (")
    assert "helps" not in full
    hurt = grid.run(grid.arms(scratch=2, pca=0.4, simclr_full=1)).verdict()
    assert "simclr-full hurts at 10% (-0." in hurt
    assert "against pca), 100%" in hurt


@pytest.mark.parametrize(
    ("low", "p_holm", "claim"), [(0.01, 0.01, "helps"), (-0.01, 0.01, "no difference"), (0.01, 0.06, "no difference")]
)
def test_a_claim_must_pass_the_test_and_the_interval(grid: Grid, low: float, p_holm: float, claim: str) -> None:
    curve = grid.run(grid.arms(scratch=2, pca=2, simclr_full=1))
    rows = curve.differences.assign(difference=0.05, low=low, high=0.1, p_holm=p_holm)
    said = replace(curve, differences=rows).verdict()
    assert claim in said
    assert ("no difference" in said) == (claim == "no difference")


def test_verdict_does_not_call_a_win_over_one_baseline_help(grid: Grid) -> None:
    said = grid.run(grid.arms(scratch=2, simclr_full=0.5)).verdict()
    assert "simclr-full is ahead (no claim that it helps, for pca was not run) at 10%" in said
    assert "helps at" not in said
    assert "no baseline (scratch, pca)" in grid.run(grid.arms(simclr_full=0.5)).verdict()
    assert "no pre-trained arm" in grid.run(grid.arms(scratch=1, pca=1)).verdict()


def test_one_draw_is_allowed(grid: Grid) -> None:
    curve = grid.run(grid.arms(scratch=2, pca=2, simclr_full=0.5), n_draws=1)
    row = the(curve.points, arm="scratch", fraction=1.0)
    assert row.low < row.auroc < row.high
    assert "simclr-full helps" in curve.verdict()


def draws_and_patients(rng: np.random.Generator, of_draws: float, of_patients: float) -> tuple[np.ndarray, np.ndarray]:
    """Five draws of a difference that is truly 0, and its resamples."""
    by_draw = of_draws * rng.normal(size=5) + of_patients * rng.normal()
    return by_draw, by_draw[:, None] + of_patients * rng.normal(size=300)


@pytest.mark.parametrize(("of_draws", "of_patients"), [(0.04, 0.001), (0.02, 0.02)])
def test_intervals_of_five_draws_cover(of_draws: float, of_patients: float) -> None:
    """A plain bootstrap of five draws covers .85 of the time where draws dominate; the bound is 4 sd off .94."""
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(600):
        by_draw, resampled = draws_and_patients(rng, of_draws, of_patients)
        _, low, high = efficiency._estimate(by_draw, resampled, efficiency._draw_shares(5, 300, rng), lowest=-1.0)
        covered += low < 0 < high
    assert 0.9 < covered / 600 < 0.985


@pytest.mark.parametrize(("of_draws", "of_patients"), [(0.04, 0.001), (0.02, 0.02)])
def test_p_is_uniform_where_nothing_differs_even_far_out(of_draws: float, of_patients: float) -> None:
    rng = np.random.default_rng(0)
    p = np.array([efficiency._test(*draws_and_patients(rng, of_draws, of_patients))[0] for _ in range(3000)])
    for level in (0.5, 0.05, 0.01):
        assert np.mean(p < level) == pytest.approx(level, abs=5 * math.sqrt(level * (1 - level) / 3000))


def test_p_where_nothing_varies() -> None:
    def p(value: float) -> float:
        return efficiency._test(np.full(3, value), np.full((3, 9), value))[0]

    assert p(0.0) == 1
    assert p(0.25) == 0
