"""What a label-efficiency curve says, in plain words: which arm, with how many labels, how sure, and what is missing.

No claim here is stronger than that of the verdict: an arm helps only where it beats every baseline, after Holm's
correction and by its interval; without both baselines nothing helps.
"""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple, Protocol

import numpy as np
import pandas as pd

from medclr.reporting.console import counted
from medclr.reporting.numbers import count, listed, number, p, p_equals, share, span

BASELINES = ("scratch", "pca")
BETTER = "better baseline"
HELPS, AHEAD, HURTS, OPEN, MISSING = "helps", "is ahead", "hurts", "not resolved", "n/a"
ALPHA = 1 - 0.95  # to the bit as the verdict has it
_MOST_ITEMS = 8


class Curve(Protocol):
    """What a page needs of `medclr.evaluation.efficiency.Curve`."""

    @property
    def points(self) -> pd.DataFrame: ...

    @property
    def differences(self) -> pd.DataFrame: ...

    @property
    def measures(self) -> pd.DataFrame: ...

    @property
    def calibration(self) -> pd.DataFrame: ...

    @property
    def subgroups(self) -> pd.DataFrame: ...

    @property
    def needed(self) -> Mapping[str, object]: ...

    def verdict(self) -> str: ...


class Answer(NamedTuple):
    """A question of every reader: its answer in a line, and what a careful one adds."""

    question: str
    short: str
    more: list[str]

    @property
    def line(self) -> str:
        """As a terminal has it."""
        return f"{self.question} {self.short}"


def unlike(share: float, other: float) -> bool:
    """Whether shares of positives differ so much that labels may not mean the same, and a reader is told.

    By a tenth of all volumes, or threefold: where few are positive, no difference is large.
    """
    return abs(share - other) > 0.1 or max(share, other) > 3 * min(share, other)


class Findings(NamedTuple):
    answers: list[Answer]
    glance: list[dict[str, Any]]  # by fraction: the highest pre-trained arm against the better baseline
    arm: str  # of which details are shown first: the one to use, else the highest with most labels; "" without a result


def findings(curve: Curve, context: Mapping[str, Any]) -> Findings:
    """Answers to what a reader asks first, computed from the tables of a curve.

    context: as `efficiency_page` takes it.
    """
    points, claims = curve.points, with_claims(curve.differences, curve.points)
    known = points[points["reason"] == ""]
    helping = set(claims.loc[claims["claim"] == HELPS, ["arm", "fraction"]].itertuples(index=False, name=None))
    helps = [key in helping for key in zip(known["arm"], known["fraction"], strict=True)]
    best = _highest(known[~known["arm"].isin(BASELINES)]) | _highest(known.loc[np.array(helps, dtype=bool)])
    glance = _glance(points, claims, best, _highest(known[known["arm"].isin(BASELINES)]))
    chosen = _chosen(claims, points)
    arms = list(chosen) or [best[max(best)]["arm"]] if best else []
    answers = [
        _which(curve, claims, chosen, glance),
        _how_many(curve, chosen, arms),
        _how_sure(curve, claims, chosen, context),
        _left_out(curve, context),
    ]
    return Findings(answers, glance, arms[0] if arms else "")


def cut(sentences: list[str]) -> list[str]:
    """As many as a reader takes in."""
    n = len(sentences) - _MOST_ITEMS + 1
    return sentences if n < 2 else [*sentences[:-n], f"{n} more; each stands where its number would, below."]


def applicable(measures: pd.DataFrame, context: Mapping[str, Any]) -> pd.DataFrame:
    """Without what only a single binary label has, where there are more: it is not missing, it does not exist."""
    single = measures["measure"].str.startswith("sensitivity")
    return measures if context["task"]["kind"] == "binary" else measures[~single]


def with_claims(differences: pd.DataFrame, points: pd.DataFrame) -> pd.DataFrame:
    """The differences from the better baseline, with a column `claim`: helps, is ahead, hurts, not resolved or n/a."""
    rows = differences[differences["versus"] == BETTER]
    ahead = HELPS if set(BASELINES) <= set(points["arm"]) else AHEAD
    claims = [_claim(row, ahead) for row in rows.to_dict("records")]
    return rows.assign(claim=pd.Series(claims, index=rows.index, dtype=object))


def doubted(row: Mapping[Any, Any]) -> bool:
    """Whether a claim to be ahead is one that the second opinion, over test patients alone, does not share."""
    return bool(row["claim"] in (HELPS, AHEAD) and row["delong_p"] >= ALPHA)


def _claim(row: Mapping[Any, Any], ahead: str) -> str:
    if row["reason"]:
        return MISSING
    if row["p_holm"] >= ALPHA:
        return OPEN
    return ahead if row["difference"] > 0 else HURTS


def _highest(rows: pd.DataFrame) -> dict[float, dict[Any, Any]]:
    """By fraction, the row with the highest AUROC."""
    return {row["fraction"]: row for row in rows.sort_values("auroc", kind="stable").to_dict("records")}


def _glance(
    points: pd.DataFrame, claims: pd.DataFrame, best: Mapping[float, Any], baseline: Mapping[float, Any]
) -> list[dict[str, Any]]:
    compared = {(row["arm"], row["fraction"]): row for row in claims.to_dict("records")}
    rows = []
    for fraction, of_fraction in points.groupby("fraction", sort=True):
        arm = best.get(float(fraction))  # type: ignore[arg-type]
        rows.append(
            {
                "fraction": fraction,
                "n_patients": of_fraction["n_patients"].iloc[0],
                "arm": arm,
                "baseline": baseline.get(float(fraction)),  # type: ignore[arg-type]
                "difference": compared.get((arm["arm"], fraction)) if arm else None,
            }
        )
    return rows


def _chosen(claims: pd.DataFrame, points: pd.DataFrame) -> dict[str, list[float]]:
    """As few arms as cover every fraction at which any helps: the one that helps at most fractions comes first."""
    auroc = points.set_index(["arm", "fraction"])["auroc"]
    helping = claims[claims["claim"] == HELPS]
    left: set[float] = set(helping["fraction"])
    chosen: dict[str, list[float]] = {}
    while left:
        gains = helping[helping["fraction"].isin(left)].groupby("arm")["fraction"].agg(sorted)
        arm = max(gains.index, key=lambda name: (len(gains[name]), auroc[name][gains[name]].mean()))
        chosen[str(arm)] = gains[arm]
        left -= set(gains[arm])
    return chosen


def _which(
    curve: Curve, claims: pd.DataFrame, chosen: Mapping[str, list[float]], glance: list[dict[str, Any]]
) -> Answer:
    question = "Which arm to use?"
    arms = list(curve.points["arm"].unique())
    baselines = [arm for arm in BASELINES if arm in arms]
    n_compared = len(set(claims.loc[claims["claim"] != MISSING, "arm"]))
    more = []
    if chosen:
        short = f"{'; '.join(f'{arm}, with {_shares(where)} of the labels' for arm, where in chosen.items())}."
        there = "There it" if len(chosen) == 1 else "There each"
        more.append(f"{there} beats {' and '.join(BASELINES)}, after Holm's correction.")
        more += _others(chosen, claims)
    elif not n_compared:
        short = "Not known: there is nothing to compare."
    elif len(baselines) < len(BASELINES):
        absent = next(arm for arm in BASELINES if arm not in baselines)
        short = f"Not known: {absent} was not run, so nothing is said to help."
        ahead = claims[claims["claim"] == AHEAD]
        more += [
            f"{row['arm']} is ahead of {row['baseline']} with {share(row['fraction'])}."
            for row in ahead.to_dict("records")
        ]
    else:
        short = "Undecided: no pre-trained arm is shown to beat the better baseline."
        more += _undecided(curve, glance)
    covered = {fraction for where in chosen.values() for fraction in where}
    rest = [row["fraction"] for row in glance if row["fraction"] not in covered]
    if chosen and rest:
        more.append(f"With {_shares(rest)} no pre-trained arm is shown to beat the better baseline.")
        better = _baselines([row for row in glance if row["fraction"] in rest])
        more += [f"The better baseline is {better}."] if better else []
    if n_compared > 1:
        more.append(
            f"The figures of the highest of {n_compared} arms are optimistic, because the same test set ranked them; "
            "the claims are corrected for all comparisons, the AUROCs are not. Expect a little less on new patients."
        )
    if any(arm.endswith("-auto") for arm in arms):
        more.append("An auto arm chose its way of training inside each draw, without the test set.")
    return Answer(question, short, more)


def _undecided(curve: Curve, glance: list[dict[str, Any]]) -> list[str]:
    """What the best pre-trained arms are above nevertheless, and what to take meanwhile."""
    said = []
    compared = [row for row in glance if row["difference"] and not row["difference"]["reason"]]
    above = [row for row in compared if row["difference"]["difference"] > 0]
    if above:
        ends = sorted({number(row["difference"]["difference"], sign=True) for row in above})
        where = _shares([row["fraction"] for row in above])
        names = {row["arm"]["arm"] for row in compared}
        who = names.pop() if len(names) == 1 else "The best pre-trained arm"
        said.append(
            f"{who} is above the better baseline with {where}, by "
            f"{listed(ends[:: len(ends) - 1 or 1], 'to')}, which is not resolved."
        )
    each = curve.differences
    beaten = each[(each["versus"] != BETTER) & (each["p_holm"] < ALPHA) & (each["difference"] > 0)]
    for (arm, versus), rows in beaten.groupby(["arm", "versus"], sort=False):
        said.append(f"{arm} does beat {versus} with {_shares(rows['fraction'])}, after Holm's correction.")
    if better := _baselines(glance):
        said.append(
            f"Until that is settled, the baseline with the higher AUROC is {better}; the baselines are not tested "
            "against each other."
        )
    return said


def _others(chosen: Mapping[str, list[float]], claims: pd.DataFrame) -> list[str]:
    """Where else arms help, and where those to use fall behind."""
    said = []
    for arm, rows in claims[claims["claim"] == HELPS].groupby("arm", sort=False):
        where = sorted(set(rows["fraction"]) - set(chosen.get(str(arm), ())))
        said += [f"{arm} with {_shares(where)}"] if where else []
    found = [f"So {'do' if len(said) > 1 else 'does'} {listed(said)}."] if said else []
    for arm, rows in claims[(claims["claim"] == HURTS) & claims["arm"].isin(list(chosen))].groupby("arm", sort=False):
        found.append(f"{arm} falls behind the better baseline with {_shares(list(rows['fraction']))}.")
    return found


def _baselines(glance: list[dict[str, Any]]) -> str:
    """Which baseline is the better one at which fractions; "" where none has a result."""
    where: dict[str, list[float]] = {}
    for row in glance:
        if row["baseline"]:
            where.setdefault(row["baseline"]["arm"], []).append(row["fraction"])
    return listed([f"{arm} with {_shares(fractions)}" for arm, fractions in where.items()])


def _how_many(curve: Curve, chosen: Mapping[str, list[float]], arms: list[str]) -> Answer:
    question = "With how many labels?"
    points = {(row["arm"], row["fraction"]): row for row in curve.points.to_dict("records")}
    more = []
    for arm in arms:
        if arm in curve.needed:
            more.append(f"To match scratch with all labels, {arm}: {curve.needed[arm]}.")
    if not curve.needed:
        more.append(
            "Labels needed to match scratch with all of them are not known: the curve has no AUROC of scratch with all "
            "labels, or no smaller share."
        )
    if not chosen:
        if more and curve.needed:
            more.append(
                "That is where two mean curves are level, read between the fractions that were run. It does not show "
                "that pre-training helps, and where its interval has “none”, not that labels are saved."
            )
        return Answer(question, "No number of labels is shown at which pre-training helps.", more)
    said = []
    for arm, fractions in chosen.items():
        rows = [points[arm, fraction] for fraction in fractions]
        patients = listed([count(row["n_patients"]) for row in rows])
        said.append(f"{arm} helps with {patients} labelled patients ({_shares(fractions)})")
        aurocs = [
            f"{number(row['auroc'])} ({span(row['low'], row['high'])}) with {share(row['fraction'])}" for row in rows
        ]
        more.insert(len(said) - 1, f"AUROC of {arm}: {listed(aurocs)}.")
    return Answer(question, f"{'; '.join(said)}.", more)


def _how_sure(
    curve: Curve, claims: pd.DataFrame, chosen: Mapping[str, list[float]], context: Mapping[str, Any]
) -> Answer:
    question, points = "How sure?", curve.points
    compared = claims[claims["claim"] != MISSING]
    more = []
    for row in compared[compared["claim"] == HELPS].to_dict("records"):
        if row["fraction"] in chosen.get(row["arm"], ()):
            effect = f"{number(row['difference'], sign=True)} ({span(row['low'], row['high'], sign=True)})"
            against = f"against {row['baseline']}, Holm's p of both {p_equals(row['p_holm'])}"
            more.append(f"{row['arm']} with {share(row['fraction'])}: {effect} {against}.")
            if doubted(row):
                more.append(
                    f"DeLong's second opinion does not share that: its p for {row['arm']} with "
                    f"{share(row['fraction'])} is {p(row['delong_p'])}, so read this claim with care."
                )
    if len(compared):
        counts = compared["claim"].value_counts()
        whole = "all " if len(counts) == 1 < len(compared) else ""
        said = [f"{_COUNTED[claim]} in {whole}{counts[claim]}" for claim in _COUNTED if claim in counts]
        short = f"Of {counted(len(compared), 'comparison')} with the better baseline, {listed(said)}."
    else:
        short = "No comparison could be made."
    tested = int(((curve.differences["versus"] != BETTER) & (curve.differences["reason"] == "")).sum())
    if tested > 1:
        more.append(f"Holm's correction is for all {tested} comparisons of an arm with a baseline.")
    detectable = compared[compared["claim"] == OPEN].groupby("fraction")["detectable"].max().dropna()
    if len(detectable):
        most = zip(detectable.index, detectable, strict=True)
        below = [f"{number(value)} with {share(fraction)}" for fraction, value in most]
        more.append(
            f"Not resolved is not equal: a true difference below {listed(below)} would often have gone unseen (80% "
            "power, tested alone)."
        )
    more += context["caveats"]
    encoders = sorted(set(points.loc[~points["arm"].isin(BASELINES), "n_encoders"]))
    of_encoders = f", and {listed([str(n) for n in encoders], 'or')} encoders" if max(encoders, default=0) > 1 else ""
    more.append(
        f"Intervals are 95%, over {count(context['test']['n_patients'])} test patients and "
        f"{listed([str(n) for n in sorted(set(points['n_draws']))], 'or')} draws of labels{of_encoders}."
    )
    if 1 in encoders:
        more.append("Results of a single encoder are conditional on it: another pre-training may do better or worse.")
    return Answer(question, short, more)


_COUNTED = {
    HELPS: "pre-training helps",
    AHEAD: "pre-training is ahead",
    HURTS: "pre-training hurts",
    OPEN: "the difference is not resolved",
}


def _left_out(curve: Curve, context: Mapping[str, Any]) -> Answer:
    question = "What leaked, was left out, or could not be computed?"
    missing = curve.points[curve.points["reason"] != ""]
    more = list(context["notes"])
    for reason, rows in missing.groupby("reason", sort=False):
        where = rows.groupby("arm", sort=False)["fraction"].agg(_shares)
        alike = where.reset_index().groupby("fraction", sort=False)
        said = [f"{_arms(arms)} with {fractions}" for fractions, arms in alike]
        more.append(f"AUROC of {listed(said)}: {reason}.")
    known = curve.points.loc[curve.points["reason"] == "", ["arm", "fraction"]]
    measures = applicable(curve.measures, context)
    measures = measures[measures["reason"] != ""].merge(known)
    for reason, rows in measures.groupby("reason", sort=False):
        names = list(dict.fromkeys(rows["measure"]))
        more.append(f"{listed(names)} of {_arms(rows)} with {_shares(sorted(set(rows['fraction'])))}: {reason}.")
    for reason, rows in curve.subgroups[curve.subgroups["reason"] != ""].groupby("reason", sort=False):
        groups = list(dict.fromkeys(f"{row.column} {row.group}" for row in rows.itertuples()))
        more.append(f"Subgroup {listed(groups)} ({_arms(rows)}): {reason}.")
    more = cut(more)
    n = len(curve.points)
    there = f"{len(missing)} of {n} points of the curve are missing" if len(missing) else f"All {n} points are there"
    return Answer(question, f"{context['leakage']} {there}.", more)


def _arms(rows: pd.DataFrame) -> str:
    arms = list(dict.fromkeys(rows["arm"]))
    return listed(arms) if len(arms) <= 3 else f"{len(arms)} arms"


def _shares(fractions: Iterable[float]) -> str:
    return listed([share(fraction) for fraction in sorted(fractions)])
