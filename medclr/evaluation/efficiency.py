"""The label-efficiency grid: every arm at every fraction and draw, and what the curve can and cannot tell."""

import hashlib
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from scipy.special import ndtri, stdtr, stdtrit

from medclr.data.labels import nested_draws
from medclr.errors import DataError
from medclr.evaluation.labels_needed import LabelsNeeded, labels_needed
from medclr.metrics import auroc, bootstrap_auroc, detectable, holm, interval

Arm = Callable[[np.ndarray, int], np.ndarray]
"""A way of making a classifier: (positions of the training rows to use, seed) -> scores of all test rows."""

BASELINES = ("scratch", "pca")
BETTER = "better baseline"
_LEVEL = 0.95


@dataclass(frozen=True, eq=False)
class Cell:
    """One arm at one fraction and draw. `n_positive` and `n_negative` count volumes, not patients.

    Where there is no result, `reason` says why, `auroc` is NaN and `scores` is None. `data` identifies the labels
    and patients behind the cell, so that it is never taken for a result on others.
    """

    arm: str
    fraction: float
    draw: int
    n_patients: int
    n_positive: int
    n_negative: int
    auroc: float
    scores: np.ndarray | None
    reason: str
    seconds: float
    data: str = ""

    @property
    def id(self) -> str:
        return f"{self.arm}|{self.fraction:g}|{self.draw}"

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types, with null for NaN; `from_dict` gives the same cell back, to the bit."""
        return {
            **asdict(self),
            "auroc": None if math.isnan(self.auroc) else self.auroc,
            "scores": None if self.scores is None else self.scores.tolist(),
        }

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> "Cell":
        score, scores = stored["auroc"], stored["scores"]
        return cls(
            **{
                **stored,
                "auroc": math.nan if score is None else score,
                "scores": None if scores is None else np.array(scores, dtype=np.float64),
            }
        )


@dataclass(frozen=True, eq=False)
class Curve:
    """A finished grid.

    `points`: one row per arm and fraction: AUROC averaged over draws, its 95% interval, and counts of labelled
    patients and volumes (their rounded mean over draws). Where any draw has no result the point has none either,
    and `reason` says why: an average over the other draws would hide it.

    `differences`: one row per pre-trained arm, fraction and baseline (`versus`): AUROC of the arm minus that of the
    baseline, its 95% interval, p, and p after Holm over all of these rows. One more row per arm and fraction has
    `versus` "better baseline": the difference from the baseline that did best there, which `baseline` names. Its
    `p_holm` is that of the claim it makes: if ahead, the largest over all baselines, as to beat the better one is
    to beat each; if behind, that of the better baseline. So choosing the baseline after the fact costs no validity.
    `detectable` is the smallest true difference that a test of this comparison alone would find with 80% power. Where
    `reason` is not empty, there is no number.

    `needed`: by arm, the labelled patients with which it matches scratch with all of them, with a 95% interval over
    test patients and draws; empty without scratch at fraction 1, and without a smaller fraction.
    """

    cells: list[Cell]
    points: pd.DataFrame
    differences: pd.DataFrame
    needed: dict[str, LabelsNeeded]

    def frame(self) -> pd.DataFrame:
        return self.points

    def verdict(self) -> str:
        """Whether pre-training helped, in one sentence.

        To pick the arm that did best and test that one would be optimistic, so every pre-trained arm is named, at
        every fraction. An arm "helps" only where it beats every baseline, and "hurts" only where it falls behind
        the better one, at 5% after Holm over arms x baselines x fractions and with an interval that leaves out 0;
        anything else is no difference that these data can resolve. The interval, for one comparison, and the test
        are two computations, and a claim must pass both. Without both baselines nothing is said to help.
        """
        rows = self.differences[self.differences["versus"] == BETTER]
        arms = self.points["arm"].unique()
        baselines = [arm for arm in arms if arm in BASELINES]
        if not len(rows):
            missing = "baseline (scratch, pca)" if len(baselines) < len(arms) else "pre-trained arm"
            return f"Whether pre-training helped is not known: the grid has no {missing} to compare."
        absent = [arm for arm in BASELINES if arm not in baselines]
        helps = "helps" if not absent else f"is ahead (no claim that it helps, for {absent[0]} was not run)"
        n = int(((self.differences["versus"] != BETTER) & (self.differences["reason"] == "")).sum())
        said = [f"{arm} {_claims(of_arm, helps)}" for arm, of_arm in rows.groupby("arm", sort=False)]
        against = f"the better of {' and '.join(baselines)}" if not absent else baselines[0]
        return f"In AUROC against {against}, with Holm's correction over {n} comparisons: {'; '.join(said)}."


def label_efficiency(
    y_train: np.ndarray,
    patients_train: np.ndarray,
    y_test: np.ndarray,
    patients_test: np.ndarray,
    arms: Mapping[str, Arm],
    fractions: Sequence[float],
    n_draws: int,
    resamples: int,
    seed: int,
    done: Mapping[str, Cell] | None = None,
    on_cell: Callable[[Cell], None] | None = None,
    baselines: Sequence[str] = BASELINES,
) -> Curve:
    """Run every arm on the same nested draws of labelled patients, and measure all of them on the same test rows.

    y_*: (n,) of 0 and 1. patients_*: (n,) keys. arms: name -> Arm; each is compared with those named in `baselines`.
    At fraction 1 the draws hold the same rows and differ in the seed alone. done: cells of an earlier call by their
    id, which are not run again. on_cell: called with each new cell as soon as it exists.

    A cell is not run where its draw or the test set holds a single class.

    Intervals come from one bootstrap of test patients (stratified by whether they have a positive) and of draws
    together, the same for all arms and fractions, so that differences are paired. Few draws resampled as they are
    vary too little: their deviations are widened as in Hesterberg's (2015, section 3.3) expanded percentile
    interval, by sqrt(k / (k - 1)) t/z for k draws. With one draw the intervals are conditional on it; always, on
    the labelled pool, and on the encoder.

    Raises DataError where a cell in `done` belongs to other labels or patients.
    """
    fractions = sorted(set(fractions))
    draws = nested_draws(y_train, patients_train, fractions, n_draws, seed)
    cells = []
    for fraction in fractions:
        for draw in range(n_draws):
            rows = draws[fraction, draw]
            todo = Cell(
                arm="",
                fraction=fraction,
                draw=draw,
                n_patients=len(np.unique(patients_train[rows])),
                n_positive=int(np.sum(y_train[rows] == 1)),
                n_negative=int(np.sum(y_train[rows] == 0)),
                auroc=math.nan,
                scores=None,
                reason=_single_class(y_test, "test set") or _single_class(y_train[rows], "draw"),
                seconds=0.0,
                data=_digest(y_train[rows], patients_train[rows], y_test, patients_test),
            )
            for name, arm in arms.items():
                cell = replace(todo, arm=name)
                if done and cell.id in done:
                    if done[cell.id].data != cell.data:
                        raise DataError(f"cell {cell.id} was made with other labels or patients; use another --out")
                    cells.append(done[cell.id])
                    continue
                if not cell.reason:
                    # Far apart, so that runs under neighbouring seeds share none.
                    cell = _run(cell, arm, rows, 1000 * seed + draw, y_test)
                cells.append(cell)
                if on_cell:
                    on_cell(cell)
    rng = np.random.default_rng(seed)
    shares = _draw_shares(n_draws, resamples, rng)
    outcomes = _outcomes(cells, y_test, patients_test, resamples, rng)
    points = _points(outcomes, shares)
    return Curve(cells, points, _differences(outcomes, shares, baselines), _needed(outcomes, points, shares))


def _single_class(y: np.ndarray, where: str) -> str:
    for value, word in ((1, "positive"), (0, "negative")):
        if not np.any(y == value):
            return f"the {where} of {len(y)} volumes holds no {word}"
    return ""


def _digest(*columns: np.ndarray) -> str:
    text = "\n\n".join("\n".join(map(str, column.tolist())) for column in columns)
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def _run(cell: Cell, arm: Arm, rows: np.ndarray, seed: int, y_test: np.ndarray) -> Cell:
    start = time.perf_counter()
    scores = np.asarray(arm(rows, seed), dtype=np.float64)
    cell = replace(cell, seconds=time.perf_counter() - start)
    if not np.isfinite(scores).all():
        return replace(cell, reason="training diverged: scores are not finite")
    return replace(cell, scores=scores, auroc=auroc(y_test, scores))


def _draw_shares(n_draws: int, resamples: int, rng: np.random.Generator) -> np.ndarray:
    """The share of each draw in the mean of each resample, (resamples, n_draws); rows sum to 1."""
    counts = rng.multinomial(n_draws, np.full(n_draws, 1 / n_draws), size=resamples)
    if n_draws == 1:
        return counts.astype(np.float64)
    tail = (1 + _LEVEL) / 2
    expansion = math.sqrt(n_draws / (n_draws - 1)) * stdtrit(n_draws - 1, tail) / ndtri(tail)
    return np.asarray(1 / n_draws + expansion * (counts - 1) / n_draws)


@dataclass(frozen=True, eq=False)
class _Outcome:
    """An arm at a fraction: its cells in the order of draws, and their AUROC resampled, or why there is no result."""

    cells: list[Cell]
    reason: str
    resampled: np.ndarray  # (draws, resamples)

    @property
    def by_draw(self) -> np.ndarray:
        return np.array([cell.auroc for cell in self.cells])


def _outcomes(
    cells: list[Cell], y_test: np.ndarray, patients_test: np.ndarray, resamples: int, rng: np.random.Generator
) -> dict[tuple[str, float], _Outcome]:
    scored = {cell.id: cell.scores for cell in cells if cell.scores is not None}
    resampled: dict[str, np.ndarray] = {}
    if scored:
        table = bootstrap_auroc(y_test, np.stack(list(scored.values())), patients_test, resamples, rng)
        resampled = dict(zip(scored, table, strict=True))

    groups: dict[tuple[str, float], list[Cell]] = {}
    for cell in cells:
        groups.setdefault((cell.arm, cell.fraction), []).append(cell)
    outcomes = {}
    for key, group in groups.items():
        missing = [cell.reason for cell in group if cell.reason]
        if missing:
            reason = f"n/a in {len(missing)} of {len(group)} draws: {missing[0]}"
            outcomes[key] = _Outcome(group, reason, np.empty(0))
        else:
            outcomes[key] = _Outcome(group, "", np.stack([resampled[cell.id] for cell in group]))
    return outcomes


def _estimate(
    by_draw: np.ndarray, resampled: np.ndarray, shares: np.ndarray, lowest: float
) -> tuple[float, float, float]:
    """Mean over draws, and its interval over resamples of draws and patients together, within lowest and 1."""
    low, high = interval(np.einsum("rd,dr->r", shares, resampled), _LEVEL)
    # The widening for few draws can reach past what an AUROC, or a difference of two, can be.
    return float(by_draw.mean()), max(low, lowest), min(high, 1.0)


def _needed(
    outcomes: Mapping[tuple[str, float], _Outcome], points: pd.DataFrame, shares: np.ndarray
) -> dict[str, LabelsNeeded]:
    fractions = sorted({fraction for _, fraction in outcomes})
    goal = outcomes.get(("scratch", 1.0))
    if goal is None or goal.reason or len(fractions) < 2:
        return {}

    def resampled(outcome: _Outcome) -> np.ndarray:
        missing = np.full(len(shares), math.nan)
        return missing if outcome.reason else np.einsum("rd,dr->r", shares, outcome.resampled)

    found = {}
    for arm, rows in points.groupby("arm", sort=False):
        curve = rows.sort_values("fraction")
        resamples = np.stack([resampled(outcomes[str(arm), fraction]) for fraction in fractions], axis=1)
        patients, mean = curve["n_patients"].to_numpy(float), curve["auroc"].to_numpy(float)
        found[str(arm)] = labels_needed(patients, mean, float(goal.by_draw.mean()), resamples, resampled(goal), _LEVEL)
    return found


def _test(by_draw: np.ndarray, resampled: np.ndarray) -> tuple[float, float]:
    """Two-sided p of a mean difference over draws being 0, and the standard error of that mean.

    t test whose variance is that between draws plus the bootstrap's between patients, and whose degrees of freedom
    follow from which of them dominates (Satterthwaite 1946; that of patients is taken as known). Holm asks for p
    far below 5%, where few draws make the tails heavy and a percentile bootstrap of them finds far too much.
    """
    n_draws = len(by_draw)
    difference = float(by_draw.mean())
    of_draws = float(by_draw.var(ddof=1)) / n_draws if n_draws > 1 else 0.0
    variance = of_draws + float(np.nanvar(resampled.mean(axis=0)))
    if variance == 0:
        return float(difference == 0), 0.0
    freedom = (n_draws - 1) * (variance / of_draws) ** 2 if of_draws else math.inf
    return float(2 * stdtr(freedom, -abs(difference) / math.sqrt(variance))), math.sqrt(variance)


def _points(outcomes: Mapping[tuple[str, float], _Outcome], shares: np.ndarray) -> pd.DataFrame:
    rows = []
    for (arm, fraction), outcome in outcomes.items():
        counts = {
            name: round(np.mean([getattr(cell, name) for cell in outcome.cells]))
            for name in ("n_patients", "n_positive", "n_negative")
        }
        row = {"arm": arm, "fraction": fraction, **counts, "n_draws": len(outcome.cells)}
        if outcome.reason:
            row |= dict.fromkeys(("auroc", "low", "high"), math.nan)
        else:
            value, low, high = _estimate(outcome.by_draw, outcome.resampled, shares, lowest=0.0)
            # Widened draws can step over the ends of the scale.
            row |= {"auroc": value, "low": max(low, 0.0), "high": min(high, 1.0)}
        rows.append(row | {"reason": outcome.reason})
    return pd.DataFrame(rows)


def _differences(
    outcomes: Mapping[tuple[str, float], _Outcome], shares: np.ndarray, baselines: Sequence[str]
) -> pd.DataFrame:
    rows: list[dict[str, Any]] = []
    for (arm, fraction), outcome in outcomes.items():
        for versus in baselines:
            if arm in baselines or (versus, fraction) not in outcomes:
                continue
            baseline = outcomes[versus, fraction]
            row = {"arm": arm, "versus": versus, "baseline": versus, "fraction": fraction}
            reason = outcome.reason or (baseline.reason and f"{versus} is {baseline.reason}")
            if reason:
                row |= dict.fromkeys(("difference", "low", "high", "p", "p_holm", "detectable"), math.nan)
            else:
                by_draw = outcome.by_draw - baseline.by_draw
                resampled = outcome.resampled - baseline.resampled
                value, low, high = _estimate(by_draw, resampled, shares, lowest=-1.0)
                p, error = _test(by_draw, resampled)
                row |= {"difference": value, "low": low, "high": high, "p": p, "detectable": detectable(error, _LEVEL)}
            rows.append(row | {"reason": reason})

    tested = [row for row in rows if not row["reason"]]
    for row, adjusted in zip(tested, holm(np.array([row["p"] for row in tested])), strict=True):
        row["p_holm"] = float(adjusted)
    for arm, fraction in dict.fromkeys((row["arm"], row["fraction"]) for row in rows):
        rows.append(_against_better([row for row in rows if (row["arm"], row["fraction"]) == (arm, fraction)]))
    columns = ["arm", "versus", "baseline", "fraction", "difference", "low", "high", "p", "p_holm"]
    columns += ["detectable", "reason"]
    return pd.DataFrame(rows, columns=columns)


def _against_better(rows: list[dict[str, Any]]) -> dict[str, Any]:
    unknown = [row for row in rows if row["reason"]]
    if unknown:
        return unknown[0] | {"versus": BETTER, "baseline": ""}
    nearest = min(rows, key=lambda row: row["difference"])
    row = nearest | {"versus": BETTER}
    if nearest["difference"] > 0:
        row |= {name: max(one[name] for one in rows) for name in ("p", "p_holm")}
    return row


def _claims(rows: pd.DataFrame, helps: str) -> str:
    claims: dict[str, list[str]] = {}
    for row in rows.to_dict("records"):
        where = f"{100 * row['fraction']:g}%"
        effect = f"{row['difference']:+.3f}, {row['low']:+.3f} to {row['high']:+.3f}"
        if row["reason"]:
            claim, where = "is not compared", f"{where} ({row['reason']})"
        else:
            where = f"{where} ({effect} against {row['baseline']})"
            if row["p_holm"] >= 1 - _LEVEL or row["low"] <= 0 <= row["high"]:
                claim = "shows no difference that these data can resolve"
            else:
                claim = helps if row["difference"] > 0 else "hurts"
        claims.setdefault(claim, []).append(where)
    return ", and ".join(f"{claim} at {', '.join(where)}" for claim, where in claims.items())
