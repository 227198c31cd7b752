import json
import math
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from sklearn.metrics import roc_auc_score

from medclr.errors import DataError
from medclr.evaluation.comparison import against_better
from medclr.evaluation.efficiency import BETTER, Arm, Cell, Curve, Scores, label_efficiency
from medclr.metrics import holm

DRAWS = {0.1: 3, 1.0: 3}
Arms = dict[str, list[Arm]]


class Grid:
    """80 labelled and 60 test patients of two scans, and arms whose noise is known; counts what was run."""

    def __init__(self) -> None:
        self.patients = {"train": np.repeat([f"a{i}" for i in range(80)], 2)}
        self.patients["test"] = np.repeat([f"b{i}" for i in range(60)], 2)
        self.y = {
            split: np.repeat(np.arange(len(keys) // 2) % 2, 2)[:, None] + 0.0 for split, keys in self.patients.items()
        }
        self.runs: list[tuple[str, int, tuple[int, ...]]] = []

    def arm(self, name: str, noise: float, encoder: int = 0) -> Arm:
        def scores(rows: np.ndarray, seed: int) -> Scores:
            self.runs.append((name, seed, tuple(rows)))
            rng = np.random.default_rng([seed, len(rows), len(name), encoder])
            # float32, as a network gives them
            test, own = (y + noise * rng.normal(size=y.shape) for y in (self.y["test"], self.y["train"][rows]))
            return Scores(test.astype(np.float32), own, f"noise {noise}")

        return scores

    def arms(self, encoders: int = 1, **noise: float) -> Arms:
        """Baselines have one encoder."""
        return {
            name.replace("_", "-"): [self.arm(name, sd, e) for e in range(encoders if "simclr" in name else 1)]
            for name, sd in noise.items()
        }

    def run(self, arms: Arms, **changed: Any) -> Curve:
        given: dict[str, Any] = {
            "y_train": self.y["train"],
            "patients_train": self.patients["train"],
            "y_test": self.y["test"],
            "patients_test": self.patients["test"],
            "n_draws": DRAWS,
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
    assert cells[0].choice == "noise 1.5"
    assert row.auroc == pytest.approx(np.mean([cell.auroc for cell in cells]))
    assert (row.n_patients, row.n_positive, row.n_negative, row.n_draws, row.n_encoders) == (8, 8, 8, 3, 1)
    assert 0 <= row.low < row.auroc < row.high <= 1
    assert row.reason == ""


def test_cells_are_resumed_and_come_back_from_json_to_the_bit(grid: Grid) -> None:
    arms = grid.arms(encoders=2, scratch=1.5, pca=1.4, simclr_linear=1)
    stored: list[str] = []
    whole = grid.run(arms, on_cell=lambda cell: stored.append(json.dumps(cell.to_dict(), allow_nan=False)))
    assert len(stored) == len(grid.runs) == 24

    done = {cell.id: cell for cell in (Cell.from_dict(json.loads(text)) for text in stored[:11])}
    assert {"scratch|0.1|0", "simclr-linear|0.1|0", "simclr-linear|0.1|0|1"} <= set(done)
    grid.runs.clear()
    fresh: list[Cell] = []
    resumed = grid.run(arms, done=done, on_cell=fresh.append)
    assert len(grid.runs) == len(fresh) == 13
    assert [cell.id for cell in resumed.cells] == [cell.id for cell in whole.cells]
    for table in ("points", "differences", "measures", "calibration", "subgroups"):
        pd.testing.assert_frame_equal(getattr(resumed, table), getattr(whole, table), check_exact=True)


def test_a_stored_cell_of_other_labels_is_refused(grid: Grid) -> None:
    arms = grid.arms(scratch=1)
    done = {cell.id: cell for cell in grid.run(arms).cells}
    for split in ("train", "test"):
        with pytest.raises(DataError, match=r"scratch\|0\.1\|0 was made with other labels"):
            grid.run(arms, done=done, **{f"y_{split}": 1 - grid.y[split]})
        with pytest.raises(DataError, match="or patients, or by another version of medclr; use another --out"):
            grid.run(arms, done=done, **{f"patients_{split}": np.char.add(grid.patients[split], "x")})


def test_a_stored_cell_of_another_protocol_is_refused(grid: Grid, monkeypatch: pytest.MonkeyPatch) -> None:
    arms = grid.arms(scratch=1)
    done = {cell.id: cell for cell in grid.run(arms).cells}
    monkeypatch.setattr("medclr.evaluation.cells.PROTOCOL", 1)
    with pytest.raises(DataError, match="by another version of medclr"):
        grid.run(arms, done=done)


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
    (sound,) = arms[lost]

    def diverging(rows: np.ndarray, seed: int) -> Scores:
        scores = sound(rows, seed)
        return scores._replace(test=scores.test * (math.nan if seed == 1 and len(rows) < 20 else 1))

    arms[lost] = [diverging]
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
    def close(rows: np.ndarray, seed: int) -> Scores:
        return Scores(base(rows, seed).test + 0.02 * grid.y["test"], None)

    def same(rows: np.ndarray, seed: int) -> Scores:
        return Scores(base(rows, seed).test * 3, None)

    base = grid.arm("scratch", 2)
    curve = grid.run({"scratch": [base], "simclr-full": [close], "simclr-same": [same]})
    point = the(curve.points, arm="scratch", fraction=1.0)
    row = the(curve.differences, arm="simclr-full", versus="scratch", fraction=1.0)
    assert 0 < row.high - row.low < (point.high - point.low) / 5
    row = the(curve.differences, arm="simclr-same", versus="scratch", fraction=1.0)
    assert (row.difference, row.low, row.high, row.p) == (0, 0, 0, 1)
    assert math.isnan(row.detectable)


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


def test_fractions_that_differ_in_the_last_digits_are_two(grid: Grid) -> None:
    curve = grid.run(grid.arms(scratch=1), n_draws={0.33333331: 2, 0.33333339: 2, 1.0: 2})
    assert len({cell.id for cell in curve.cells}) == 6
    assert {cell.id.split("|")[1] for cell in curve.cells} == {"0.33333331", "0.33333339", "1"}


def test_labels_needed_to_match_scratch_with_all_of_them(grid: Grid) -> None:
    needed = grid.run(grid.arms(scratch=1, pca=8, simclr_linear=0.3)).needed
    assert list(needed) == ["scratch", "pca", "simclr-linear"]
    assert (
        str(needed["simclr-linear"])
        == "reached with 8 labelled patients or fewer (8 or fewer throughout the interval): 90% or more of labels saved"
    )
    assert str(needed["pca"]).startswith("not reached with 80 labelled patients")
    own = needed["scratch"]
    assert (own.least, own.most) == (8, 80)
    assert 0 <= own.low <= own.labels <= 80
    assert grid.run(grid.arms(pca=1, simclr_linear=0.3)).needed == {}
    assert grid.run(grid.arms(scratch=1), n_draws={1.0: 3}).needed == {}


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
        return {"versus": versus, "difference": difference, "p": p, "p_holm": 2 * p, "delong_p": p / 2, "reason": ""}

    ahead = against_better([row("scratch", 0.2, 0.3), row("pca", 0.1, 0.01)])
    assert (ahead["difference"], ahead["p_holm"], ahead["delong_p"]) == (0.1, 0.6, 0.15)
    behind = against_better([row("scratch", 0.2, 0.3), row("pca", -0.1, 0.01)])
    assert (behind["difference"], behind["p_holm"], behind["delong_p"]) == (-0.1, 0.02, 0.005)


def test_two_draws_give_an_interval_within_the_scale(grid: Grid) -> None:
    points = grid.run(grid.arms(scratch=8, pca=0.8), n_draws={1.0: 2, 0.1: 2}).points
    assert list(points.fraction) == [0.1, 0.1, 1.0, 1.0]
    assert points.low.min() > 0.2
    assert 0.95 < points.high.max() < 1


def test_verdict_names_every_arm_and_claims_only_what_holds(grid: Grid) -> None:
    said = grid.run(grid.arms(scratch=2, pca=2, simclr_linear=0.3, simclr_full=2)).verdict()
    assert said.startswith("In AUROC against the better of scratch and pca, with Holm's correction over 8 comparisons:")
    linear, full = said.split("; ")
    assert "simclr-linear helps at 10% (+0." in linear
    assert "100% (+0." in linear
    assert "resolve" not in linear
    assert "Holm's p of both = 0.0" in linear
    assert full.startswith("simclr-full shows no difference that these data can resolve at 10% (")
    assert "helps" not in full
    hurt = grid.run(grid.arms(scratch=2, pca=0.4, simclr_full=1)).verdict()
    assert "simclr-full hurts at 10% (−0." in hurt
    assert "against pca, Holm's p = 0.002), 100%" in hurt


@pytest.mark.parametrize(("p_holm", "claim"), [(0.01, "helps"), (0.06, "no difference")])
def test_a_claim_must_pass_the_corrected_test(grid: Grid, p_holm: float, claim: str) -> None:
    curve = grid.run(grid.arms(scratch=2, pca=2, simclr_full=1))
    rows = curve.differences.assign(difference=0.05, low=0.01, high=0.1, p_holm=p_holm)
    said = replace(curve, differences=rows).verdict()
    assert claim in said
    assert "DeLong" not in said
    doubted = replace(curve, differences=rows.assign(delong_p=0.07)).verdict()
    assert ("where DeLong's second opinion does not leave out 0 (p = 0.070)" in doubted) == (claim == "helps")
    assert ("no difference" in said) == (claim == "no difference")


def test_verdict_does_not_call_a_win_over_one_baseline_help(grid: Grid) -> None:
    said = grid.run(grid.arms(scratch=2, simclr_full=0.5)).verdict()
    assert "simclr-full is ahead (no claim that it helps, for pca was not run) at 10%" in said
    assert "helps at" not in said
    assert "no baseline (scratch, pca)" in grid.run(grid.arms(simclr_full=0.5)).verdict()
    assert "no pre-trained arm" in grid.run(grid.arms(scratch=1, pca=1)).verdict()


@pytest.mark.parametrize(("lesions", "compared"), [(4, False), (5, True)])
def test_nothing_is_claimed_of_a_pool_with_few_of_a_class(grid: Grid, lesions: int, compared: bool) -> None:
    """All draws hold the same ones, so that no interval has what others would have taught."""
    of = np.repeat(np.arange(80) < lesions, 2)[:, None] + 0.0
    curve = grid.run(grid.arms(scratch=2, pca=2, simclr_full=0.3), y_train=of)
    assert (curve.points["reason"] == "").all()
    assert (curve.differences["reason"] == "").all() == compared
    assert ("simclr-full helps at" in curve.verdict()) == compared
    if not compared:
        why = "the training pool has only 4 patients with a positive (fewer than 5)"
        assert set(curve.differences["reason"]) == {why}
        assert curve.differences["p"].isna().all()
        assert f"simclr-full is not compared at 10% ({why}), 100% ({why})" in curve.verdict()


def test_one_draw_is_allowed(grid: Grid) -> None:
    curve = grid.run(grid.arms(scratch=2, pca=2, simclr_full=0.5), n_draws={0.1: 1, 1.0: 1})
    row = the(curve.points, arm="scratch", fraction=1.0)
    assert row.low < row.auroc < row.high
    assert "simclr-full helps" in curve.verdict()


def test_each_fraction_has_its_own_number_of_draws(grid: Grid) -> None:
    curve = grid.run(grid.arms(scratch=2, simclr_full=1), n_draws={1.0: 2, 0.1: 4})
    assert curve.points.n_draws.tolist() == [4, 4, 2, 2]
    shorter = grid.run(grid.arms(scratch=2, simclr_full=1), n_draws={0.1: 2, 1.0: 2})
    assert {cell.id: cell.auroc for cell in shorter.cells}.items() <= {c.id: c.auroc for c in curve.cells}.items()


def test_encoders_are_averaged_and_make_intervals_wider(grid: Grid) -> None:
    arms = grid.arms(encoders=3, scratch=2, simclr_full=1)
    good = arms["simclr-full"][0]
    arms["simclr-full"] = [good, *(grid.arm("simclr-full", noise, 1) for noise in (1.5, 2))]
    curve = grid.run(arms)
    row = the(curve.points, arm="simclr-full", fraction=1.0)
    cells = [cell for cell in curve.cells if (cell.arm, cell.fraction) == ("simclr-full", 1.0)]
    assert (row.n_encoders, row.n_draws, len(cells)) == (3, 3, 9)
    assert row.auroc == pytest.approx(np.mean([cell.auroc for cell in cells]))
    alone = the(grid.run(arms | {"simclr-full": [good]}).points, arm="simclr-full", fraction=1.0)
    assert row.high - row.low > 2 * (alone.high - alone.low)
    assert the(curve.differences, versus="scratch", fraction=1.0).p > 0.05


def test_few_test_patients_give_a_reason_and_nothing_is_run(grid: Grid) -> None:
    few = slice(0, 10)  # 5 patients, of whom 2 are positive
    changed = {"y_test": grid.y["test"][few], "patients_test": grid.patients["test"][few]}
    curve = grid.run(grid.arms(scratch=1, simclr_full=1), **changed)
    assert not grid.runs
    reason = "the test set of 10 volumes holds only 2 patients with a positive (fewer than 5)"
    assert set(curve.points.reason) == {f"n/a in 3 of 3 draws: {reason}"}
    numbers = curve.measures[["value", "low", "high"]]
    assert numbers.isna().all(axis=None)
    assert curve.measures.reason.str.contains("fewer than 5").all()
    assert curve.needed == {} or str(curve.needed["simclr-full"]).startswith("n/a")


def test_a_perfect_ranking_is_not_certain(grid: Grid) -> None:
    row = the(grid.run(grid.arms(scratch=0.01)).points, fraction=1.0)
    assert (row.auroc, row.high) == (1, 1)
    assert 0.8 < row.low < 0.025 ** (1 / 30)  # of 30 patients with a positive


class Labels:
    """90 training and 60 test patients of one scan, with y (n, 3), and an arm whose logits follow it."""

    def __init__(self, kind: str) -> None:
        rng = np.random.default_rng(0)
        self.kind = kind
        n = {"train": 90, "test": 60}
        if kind == "multiclass":
            self.y = {split: np.eye(3)[np.arange(count) % 3] for split, count in n.items()}
        else:
            self.y = {split: (rng.random((count, 3)) < [0.5, 0.3, 0.4]) + 0.0 for split, count in n.items()}
            self.y["test"][::7, 0] = math.nan
            self.y["train"][::5, 1] = math.nan

    def arm(self, noise: float) -> Arm:
        def scores(rows: np.ndarray, seed: int) -> Scores:
            rng = np.random.default_rng([seed, len(rows)])
            test, own = (
                np.nan_to_num(y) + noise * rng.normal(size=y.shape) for y in (self.y["test"], self.y["train"][rows])
            )
            return Scores(2 * test, 2 * own)

        return scores

    def run(self) -> Curve:
        return label_efficiency(
            self.y["train"],
            np.arange(90),
            self.y["test"],
            np.arange(60),
            {"scratch": [self.arm(1)], "simclr-full": [self.arm(0.5)] * 2},
            {0.5: 2, 1.0: 2},
            200,
            0,
            kind=self.kind,
            outputs=["a", "b", "c"],
        )


@pytest.mark.parametrize("kind", ["multiclass", "multilabel"])
def test_several_outputs_are_averaged_and_measured_each(kind: str) -> None:
    labels = Labels(kind)
    curve = labels.run()
    row = the(curve.points, arm="simclr-full", fraction=1.0)
    assert row.n_patients == 90
    assert math.isnan(row.n_positive) == (kind == "multiclass")
    each = [the(curve.measures, arm="simclr-full", fraction=1.0, measure=f"AUROC {name}") for name in "abc"]
    assert row.auroc == pytest.approx(np.mean([one.value for one in each]))
    y, cells = labels.y["test"], [c for c in curve.cells if (c.arm, c.fraction) == ("simclr-full", 1.0)]
    known = ~np.isnan(y[:, 0])
    expected = np.mean([roc_auc_score(y[known, 0], cell.scores[known, 0]) for cell in cells if cell.scores is not None])
    assert each[0].value == pytest.approx(expected)
    assert each[0].low < each[0].value < each[0].high
    sensitivity = the(curve.measures, arm="simclr-full", fraction=1.0, measure="sensitivity at 90% specificity")
    assert sensitivity.reason == "n/a: of a single binary label only"
    assert the(curve.differences, versus="scratch", fraction=1.0).difference > 0


def test_an_output_that_the_test_set_cannot_judge_is_left_out_and_says_so() -> None:
    labels = Labels("multilabel")
    labels.y["test"][:, 1] = 0
    curve = labels.run()
    row = the(curve.measures, arm="scratch", fraction=1.0, measure="AUROC b")
    assert math.isnan(row.value)
    assert row.reason == "n/a: the test set holds no positive; left out of the mean AUROC"
    others = [the(curve.measures, arm="scratch", fraction=1.0, measure=f"AUROC {name}").value for name in "ac"]
    assert the(curve.points, arm="scratch", fraction=1.0).auroc == pytest.approx(np.mean(others))


def test_one_class_of_several_in_the_draw_is_not_run() -> None:
    labels = Labels("multiclass")
    labels.y["train"][:] = [1, 0, 0]
    curve = labels.run()
    assert {cell.reason for cell in curve.cells} == {
        "the draw of 45 volumes holds no two classes",
        "the draw of 90 volumes holds no two classes",
    }


def test_a_pool_gives_the_same_cells_in_the_same_order(grid: Grid) -> None:
    arms = grid.arms(encoders=2, scratch=1, simclr_full=1)
    alone = grid.run(arms)
    with ThreadPoolExecutor(3) as pool:
        pooled = grid.run(arms, pool=pool)
    assert [cell.id for cell in pooled.cells] == [cell.id for cell in alone.cells]
    pd.testing.assert_frame_equal(pooled.points, alone.points, check_exact=True)


class Lazy(Executor):
    """Begins nothing until it is waited for: then a job fails, after one that succeeds."""

    def __init__(self) -> None:
        self.futures: list[Future[Any]] = []

    def submit(self, function: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        self.futures.append(Future())
        if len(self.futures) == 1:
            self.futures[0].set_result(function(*args))
        if len(self.futures) == 2:
            self.futures[1].set_exception(DataError("a cell failed"))
        return self.futures[-1]


def test_where_a_cell_fails_in_a_pool_what_is_finished_is_kept(grid: Grid) -> None:
    kept: list[Cell] = []
    pool = Lazy()
    with pytest.raises(DataError, match="a cell failed"):
        grid.run(grid.arms(scratch=1, simclr_full=1), pool=pool, on_cell=kept.append)
    assert [cell.id for cell in kept] == ["scratch|0.1|0"]
    assert len(pool.futures) == 12
    assert all(future.cancelled() for future in pool.futures[2:])


def test_where_the_caller_is_stopped_no_other_cell_of_a_pool_begins(grid: Grid) -> None:
    def stop(cell: Cell) -> None:
        raise KeyboardInterrupt

    pool = Lazy()
    with pytest.raises(KeyboardInterrupt):
        grid.run(grid.arms(scratch=1, simclr_full=1), pool=pool, on_cell=stop)
    assert all(future.cancelled() for future in pool.futures[2:])


def test_plot_draws_on_given_axes_or_on_its_own(grid: Grid) -> None:
    curve = grid.run(grid.arms(scratch=1, simclr_full=1))
    axes = curve.plot()
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["scratch", "simclr-full"]
    other = Figure().add_subplot()
    assert curve.plot(other) is other
    assert len(other.get_lines()) == len(axes.get_lines()) > 2
