"""What a report on domains that were left out in turn says, and its page."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import pandas as pd
from markupsafe import Markup

from medclr.reporting.adapt_page import AUTO, MEANINGS, SOURCE_ONLY, TARGET_TRAINED, methods_of
from medclr.reporting.console import counted
from medclr.reporting.figures import left_out_svg
from medclr.reporting.findings import ALPHA, Answer, unlike
from medclr.reporting.html import FOREST_PX, TEMPLATES, forest
from medclr.reporting.numbers import listed, number, p_equals, percent, span

Row = Mapping[Any, Any]


class LeaveOneOut(Protocol):
    """What a page needs of `medclr.evaluation.leave_one_out.LeaveOneOut`."""

    @property
    def points(self) -> pd.DataFrame: ...

    @property
    def differences(self) -> pd.DataFrame: ...

    @property
    def choices(self) -> pd.DataFrame: ...

    @property
    def domains(self) -> pd.DataFrame: ...


def left_out_page(found: LeaveOneOut, context: Mapping[str, Any]) -> str:
    """The report on domains that were left out in turn, as HTML.

    found: its tables. context: that of `adapt_page` but for source, target and n_both, with column; domains, by name
    (each n, n_patients, shares, others, which are the shares of all other domains, and report, the path of its own page
    or None); n_unknown, volumes of no known domain; n_several, patients in more than one. Nothing in it may name a
    patient.
    """
    points, differences = found.points, found.differences
    own = points[points["method"] == TARGET_TRAINED].set_index("domain")["auroc"]
    lost = differences[differences["method"] == TARGET_TRAINED]
    base = points[points["method"] == SOURCE_ONLY]
    oracle = found.domains.set_index("domain")["oracle"]
    rows = forest(lost, "difference", zero=0.0).merge(base, on="domain", suffixes=("", "_base"))
    rows = rows.assign(own=rows["domain"].map(own), oracle=rows["domain"].map(oracle))
    between = [name for name in dict.fromkeys(points["method"]) if name not in (SOURCE_ONLY, TARGET_TRAINED)]
    return TEMPLATES.get_template("leave_one_out.html").render(
        context,
        machine={**context["versions"], **context["hardware"]},
        answers=left_out_findings(found, context),
        figure=Markup(left_out_svg(points)),
        narrow_figure=Markup(left_out_svg(points, narrow=True)),
        rows=rows.sort_values("auroc", kind="stable").to_dict("records"),
        between=between,
        gains=_by_domain(differences[differences["method"].isin(between) & (differences["reason"] == "")]),
        means=_means(differences),
        alpha=ALPHA,
        chosen=list(dict.fromkeys(found.choices["method"])),
        choices=_by_domain(found.choices),
        meanings={name: MEANINGS[name] for name in dict.fromkeys(points["method"])},
        methods=_methods(points, context),
        forest_px=FOREST_PX,
    )


def left_out_findings(found: LeaveOneOut, context: Mapping[str, Any]) -> list[Answer]:
    """Answers to what a reader asks first. What Holm's correction does not leave standing is no difference."""
    return [
        _worst(found, context),
        _lost(found, context["column"]),
        _gained(found, context["column"]),
        _chosen(found),
        _excluded(found, context),
    ]


def _worst(found: LeaveOneOut, context: Mapping[str, Any]) -> Answer:
    question = "Which domain fares worst when it is left out?"
    rows = [row for row in _of(found.points, SOURCE_ONLY) if not row["reason"]]
    worst, *others = sorted(rows, key=lambda row: row["auroc"])
    alike = [row["domain"] for row in others if row["low"] <= worst["high"]]
    more = []
    for row in rows:
        what = f"{row['domain']}: {number(row['auroc'])} ({span(row['low'], row['high'])})"
        if row["high"] < 0.5:
            more.append(
                f"{what} is worse than chance: what is a sign elsewhere is commoner among negatives there, as where "
                "the label is defined in another way, or confounded."
            )
        elif row["low"] <= 0.5:
            more.append(f"{what} is not shown to be better than chance.")
    more += _prevalences(context)
    interval = span(worst["low"], worst["high"])
    short = f"{context['column']} {worst['domain']}, with an AUROC of {number(worst['auroc'])} ({interval})"
    if alike:
        some = "all others" if len(alike) == len(others) > 1 else listed(alike)
        short += f". But its interval overlaps with that of {some}: the order may be chance"
    return Answer(question, f"{short[0].upper()}{short[1:]}.", more)


def _lost(found: LeaveOneOut, column: str) -> Answer:
    question = "What does leaving a domain out cost?"
    base = {row["domain"]: row["auroc"] for row in _of(found.points, SOURCE_ONLY)}
    rows = [row for row in _of(found.differences, TARGET_TRAINED) if not row["reason"]]
    clear = [row for row in rows if row["p_holm"] < ALPHA]
    lost = sorted((row for row in clear if row["difference"] > 0), key=lambda row: -row["difference"])
    more = [
        f"{row['domain']}: {number(base[row['domain']])} with labels of the others, "
        f"{number(base[row['domain']] + row['difference'])} with its own; difference {_difference(row)}, p "
        f"{p_equals(row['p_holm'])} after Holm's correction."
        for row in clear
    ]
    if better := [row["domain"] for row in clear if row["difference"] < 0]:
        more.append(f"For {listed(better)} labels of the others are better than those of half of its own patients.")
    if still := [row for row in rows if row not in clear]:
        more.append(f"Not resolved: {listed([_with_difference(row, 'domain') for row in still])}.{_power(still)}")
    if not rows:
        return Answer(question, "Not known: nothing could be compared.", more)
    if not lost:
        return Answer(question, "No loss is shown: labels of a domain's own are not shown to give more.", more)
    first = f"{number(lost[0]['difference'])} AUROC in {column} {lost[0]['domain']}"
    rest = [f"{number(row['difference'])} in {row['domain']}" for row in lost[1:]]
    return Answer(question, f"{listed([first, *rest])}, against a head that has learned labels of the domain.", more)


def _gained(found: LeaveOneOut, column: str) -> Answer:
    question = "Where does a method gain over source-only?"
    rows = found.differences[found.differences["method"] != TARGET_TRAINED]
    tested = rows[rows["reason"] == ""].to_dict("records")
    clear = [row for row in tested if row["p_holm"] < ALPHA]
    more = [
        f"{row['method']} in {row['domain']}: {_difference(row)}, p {p_equals(row['p_holm'])} after Holm's correction."
        for row in clear
    ]
    if not tested:
        return Answer(question, "Not known: no method could be compared.", more)
    means = _means(pd.DataFrame(tested))
    each = listed([f"{method} {number(value, sign=True)}" for method, value in means.items()])
    more.append(f"Mean difference over domains: {each}.")
    if still := [row for row in tested if row not in clear]:
        more.append(f"{counted(len(still), 'difference')} of {len(tested)} not resolved.{_power(still)}")
    gained, fell = ([row for row in clear if sign * row["difference"] > 0] for sign in (1, -1))
    short = f"In {column} {_named(gained)}." if gained else "In none is a gain shown."
    return Answer(question, short + (f" Worse than source-only: in {column} {_named(fell)}." if fell else ""), more)


def _chosen(found: LeaveOneOut) -> Answer:
    question = "What is chosen without labels of the domain?"
    choices, points = found.choices, {(row["domain"], row["method"]): row for row in found.points.to_dict("records")}
    oracles = {row["domain"]: row["oracle"] for row in found.domains.to_dict("records") if row["oracle"]}
    more = []
    for domain, oracle in oracles.items():
        best = f"the oracle's choice, which takes them, is {oracle} with {number(points[domain, oracle]['auroc'])}"
        rows = choices[choices["domain"] == domain].to_dict("records")
        judged = [row for (of, _), row in points.items() if of == domain and row["at_home"] == row["at_home"]]
        if len(judged) > 1:
            kept = max(judged, key=lambda row: row["at_home"])
            best += f", and that of source validation {kept['method']} with {number(kept['auroc'])}"
        if rows:
            most = f"auto has {number(points[domain, AUTO]['auroc'])}, most often by {rows[0]['method']}"
            more.append(f"{domain}: {most} ({rows[0]['n']} of {rows[0]['of']} halves); {best}.")
        else:
            more.append(f"{domain}: {best}.")
    if not len(choices):
        return Answer(question, "Not known: auto was not run.", more)
    halves = choices.groupby("method", sort=False)["n"].sum().sort_values(ascending=False, kind="stable")
    first, n, of = str(halves.index[0]), int(halves.iloc[0]), int(halves.sum())
    picked = f"in all {of} halves of all domains" if n == of else f"but only in {n} of {of} halves of all domains"
    return Answer(question, f"{first}, {picked}.", more)


def _excluded(found: LeaveOneOut, context: Mapping[str, Any]) -> Answer:
    question = "What was left out, or could have leaked?"
    lacking = [row for row in found.domains.to_dict("records") if row["reason"]]
    more = [f"{row['domain']} could not be judged, and is only learned from: {row['reason']}." for row in lacking]
    if context["n_unknown"]:
        more.append(f"{counted(context['n_unknown'], 'volume')} without a known {context['column']}.")
    more.append(context["leakage"])
    if context["transductive"]:
        more.append("So results are transductive, of all methods alike: new patients may be classified less well.")
    if context["n_several"]:
        more.append(
            f"{counted(context['n_several'], 'patient')} {'has' if context['n_several'] == 1 else 'have'} volumes in "
            "more than one domain; those in the source were left out wherever that patient was scored."
        )
    if not context["known"]:
        more.append("Not every file names its patient: intervals are image-level, and may be too narrow.")
    n = len(found.domains) - len(lacking)
    each = f"{counted(n, 'domain')} of {len(found.domains)}" if lacking else f"each of {counted(n, 'domain')}"
    return Answer(
        question,
        f"No adaptation that scored a volume saw its patient; {each} left out in turn and adapted to by halves.",
        more,
    )


def _prevalences(context: Mapping[str, Any]) -> list[str]:
    """Where so many more or fewer are positive that labels may not mean the same, or patients are chosen otherwise."""
    binary = context["task"]["kind"] == "binary"
    return [
        f"Of {name} {percent(share)} are {'positive' if binary else output}, of the others "
        f"{percent(one['others'][output])}: the label may mean something else there, or other patients are scanned."
        for name, one in context["domains"].items()
        for output, share in one["shares"].items()
        if output in one["others"] and unlike(share, one["others"][output])
    ]


def _methods(points: pd.DataFrame, context: Mapping[str, Any]) -> list[str]:
    column = context["column"]
    larger = "" if context["balance"] else " Volumes of the source count the same, so that larger domains count more."
    return [
        f"Each domain by {column} is the target once, and all others together are its source.{larger} Holm's "
        "correction is over all domains and methods together.",
        *methods_of(points, context),
    ]


def _means(differences: pd.DataFrame) -> dict[str, float]:
    """Of each method, over the domains that have a figure."""
    known = differences[(differences["reason"] == "") & (differences["method"] != TARGET_TRAINED)]
    return {str(name): float(value) for name, value in known.groupby("method", sort=False)["difference"].mean().items()}


def _by_domain(rows: pd.DataFrame) -> dict[str, dict[str, Row]]:
    found: dict[str, dict[str, Row]] = {}
    for row in rows.to_dict("records"):
        found.setdefault(row["domain"], {})[row["method"]] = row
    return found


def _named(rows: Sequence[Row]) -> str:
    """Domains with their methods, and by how much: 60+ by coral, 0.031, and auto, 0.020."""
    found: dict[str, list[str]] = {}
    for row in rows:
        found.setdefault(row["domain"], []).append(f"{row['method']} ({number(row['difference'], sign=True)})")
    return "; ".join(f"{domain} by {listed(methods)}" for domain, methods in found.items())


def _of(frame: pd.DataFrame, method: str) -> list[dict[Any, Any]]:
    return frame[frame["method"] == method].to_dict("records")


def _power(rows: list[dict[Any, Any]]) -> str:
    seen = max(row["detectable"] for row in rows)
    said = f" A true difference below {number(seen)} would often have gone unseen (80% power, tested alone)."
    return said if seen == seen else ""


def _difference(row: Row) -> str:
    return f"{number(row['difference'], sign=True)} ({span(row['low'], row['high'], sign=True)})"


def _with_difference(row: Row, name: str) -> str:
    return f"{row[name]} {_difference(row)}"
