"""Arms against baselines: paired differences, Holm's correction, and what may be claimed."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from medclr.evaluation.estimates import LEVEL, Chance, Outcome
from medclr.evaluation.labels_needed import LabelsNeeded, labels_needed
from medclr.evaluation.second_opinion import Means
from medclr.metrics import holm

BASELINES = ("scratch", "pca")
BETTER = "better baseline"
_DELONG = ("delong_low", "delong_high", "delong_p")
_NUMBERS = ("difference", "low", "high", "p", "p_holm", "detectable", *_DELONG)
_COLUMNS = ["arm", "versus", "baseline", "fraction", *_NUMBERS, "reason"]


def differences_of(
    outcomes: Sequence[Outcome],
    chance: Chance,
    n_patients: float,
    baselines: Sequence[str],
    second: Mapping[float, Means],
    scarce: str = "",
) -> pd.DataFrame:
    """`Curve.differences`.

    second: `delong_means` of the outcomes; scarce: why the training pool bears no claim, "" if it does.
    """
    known = {(outcome.arm, outcome.fraction): outcome for outcome in outcomes}
    rows: list[dict[str, Any]] = []
    for outcome in outcomes:
        for versus in baselines:
            if outcome.arm in baselines or (versus, outcome.fraction) not in known:
                continue
            baseline = known[versus, outcome.fraction]
            row: dict[str, Any] = {"arm": outcome.arm, "versus": versus, "baseline": versus}
            row |= {"fraction": outcome.fraction, **dict.fromkeys(_NUMBERS, math.nan)}
            row["reason"] = outcome.reason or (baseline.reason and f"{versus} is {baseline.reason}") or scarce
            if not row["reason"] and outcome.auroc is not None and baseline.auroc is not None:
                found = chance.estimate(outcome.auroc, n_patients, baseline.auroc)
                row |= {"difference": found.value, "low": found.low, "high": found.high}
                row |= {"p": found.p, "detectable": found.detectable}
                if outcome.fraction in second:
                    _, _, *delong = second[outcome.fraction].difference(outcome.arm, versus)
                    row |= dict(zip(_DELONG, delong, strict=True))
            rows.append(row)

    tested = [row for row in rows if not row["reason"]]
    for row, adjusted in zip(tested, holm(np.array([row["p"] for row in tested])), strict=True):
        row["p_holm"] = float(adjusted)
    for arm, fraction in dict.fromkeys((row["arm"], row["fraction"]) for row in rows):
        rows.append(against_better([row for row in rows if (row["arm"], row["fraction"]) == (arm, fraction)]))
    return pd.DataFrame(rows, columns=_COLUMNS)


def against_better(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Of an arm's rows at a fraction, one for each baseline: that of the better baseline, with the p of its claim."""
    unknown = [row for row in rows if row["reason"]]
    if unknown:
        return unknown[0] | {"versus": BETTER, "baseline": ""} | dict.fromkeys(_NUMBERS, math.nan)
    nearest = min(rows, key=lambda row: row["difference"])
    row = nearest | {"versus": BETTER}
    if nearest["difference"] > 0:
        row |= {name: float(np.max([one[name] for one in rows])) for name in ("p", "p_holm", "delong_p")}
    return row


def needed_of(
    outcomes: Sequence[Outcome], points: pd.DataFrame, resampled: Mapping[tuple[str, float], np.ndarray]
) -> dict[str, LabelsNeeded]:
    """`Curve.needed`. resampled: AUROC of each arm and fraction that has one, on resamples."""
    goal = resampled.get(("scratch", 1.0))
    fractions = sorted({outcome.fraction for outcome in outcomes})
    if goal is None or len(fractions) < 2:
        return {}
    (target,) = points.loc[(points["arm"] == "scratch") & (points["fraction"] == 1.0), "auroc"]
    missing = np.full(len(goal), math.nan)
    found = {}
    for arm, rows in points.groupby("arm", sort=False):
        curve = rows.sort_values("fraction")
        of_arm = np.stack([resampled.get((str(arm), fraction), missing) for fraction in fractions], axis=1)
        patients, mean = curve["n_patients"].to_numpy(float), curve["auroc"].to_numpy(float)
        found[str(arm)] = labels_needed(patients, mean, float(target), of_arm, goal, LEVEL)
    return found


def verdict_of(points: pd.DataFrame, differences: pd.DataFrame) -> str:
    """`Curve.verdict`."""
    rows = differences[differences["versus"] == BETTER]
    arms = points["arm"].unique()
    baselines = [arm for arm in arms if arm in BASELINES]
    if not len(rows):
        missing = "baseline (scratch, pca)" if len(baselines) < len(arms) else "pre-trained arm"
        return f"Whether pre-training helped is not known: the grid has no {missing} to compare."
    absent = [arm for arm in BASELINES if arm not in baselines]
    helps = "helps" if not absent else f"is ahead (no claim that it helps, for {absent[0]} was not run)"
    n = int(((differences["versus"] != BETTER) & (differences["reason"] == "")).sum())
    said = [f"{arm} {_claims(of_arm, helps, not absent)}" for arm, of_arm in rows.groupby("arm", sort=False)]
    against = f"the better of {' and '.join(baselines)}" if not absent else baselines[0]
    return f"In AUROC against {against}, with Holm's correction over {n} comparisons: {'; '.join(said)}."


def _claims(rows: pd.DataFrame, helps: str, several: bool) -> str:
    """several: there are two baselines, so that the p of a gain is the larger one, whichever is nearer."""
    claims: dict[str, list[str]] = {}
    for row in rows.to_dict("records"):
        where = f"{100 * row['fraction']:g}%"
        effect = f"{row['difference']:+.3f}, {row['low']:+.3f} to {row['high']:+.3f}".replace("-", "−")
        chance = "< 0.001" if row["p_holm"] < 0.001 else f"= {row['p_holm']:.3f}"
        if row["reason"]:
            claim, where = "is not compared", f"{where} ({row['reason']})"
        else:
            whose = " of both" if several and row["difference"] > 0 else ""
            where = f"{where} ({effect} against {row['baseline']}, Holm's p{whose} {chance})"
            if row["p_holm"] >= 1 - LEVEL:
                claim = "shows no difference that these data can resolve"
            else:
                claim = helps if row["difference"] > 0 else "hurts"
                if row["difference"] > 0 and row["delong_p"] >= 1 - LEVEL:
                    where += f", where DeLong's second opinion does not leave out 0 (p = {row['delong_p']:.3f})"
        claims.setdefault(claim, []).append(where)
    return ", and ".join(f"{claim} at {', '.join(where)}" for claim, where in claims.items())
