"""What a domain shift report says, and its page."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

import pandas as pd
from markupsafe import Markup

from medclr.reporting.console import counted
from medclr.reporting.figures import shift_svg
from medclr.reporting.findings import ALPHA, Answer, cut, unlike
from medclr.reporting.html import FOREST_PX, TEMPLATES, forest
from medclr.reporting.numbers import count, listed, number, p_equals, percent, span

_MISJUDGED = 0.1  # difference of mean prediction and share of positives from which a reader is told
_READABLE = 0.7  # AUROC above which a domain is said to show in the features
_CONFOUNDED = 0.05  # AUROC that a classifier loses between volumes alike in an attribute, before a reader is told
_CLASSIFIER, _OWN, _JOINT = "classifier", "labels of the domain", "labels of all domains"

Row = Mapping[Any, Any]


class Shift(Protocol):
    """What a page needs of `medclr.evaluation.shift.Shift`."""

    @property
    def sources(self) -> Mapping[str, str]: ...

    @property
    def domains(self) -> pd.DataFrame: ...

    @property
    def differences(self) -> pd.DataFrame: ...

    @property
    def heads(self) -> pd.DataFrame: ...

    @property
    def probes(self) -> pd.DataFrame: ...

    @property
    def distances(self) -> pd.DataFrame: ...

    @property
    def shortcuts(self) -> pd.DataFrame: ...

    @property
    def thresholds(self) -> Mapping[str, float]: ...


def shift_page(shift: Shift, context: Mapping[str, Any]) -> str:
    """The domain shift report as HTML.

    shift: its tables. context: title, command_line, phantoms, task (kind, columns, outputs), classes, classifiers (each
    method and fingerprint), learned (on how many volumes they were trained), test (n, n_patients, n_trained,
    n_uncheckable, n_pretrained), trained (counts by column and domain, of patients who were learned from), known,
    resamples, versions and hardware. Nothing in it may name a patient.
    """
    domains = shift.domains.assign(learned=[_learned(row, context) for row in shift.domains.to_dict("records")])
    overall = domains[domains["is_source"]].set_index("column")["auroc"]
    domains = forest(domains.assign(source=domains["column"].map(overall)), "auroc", zero="source")
    return TEMPLATES.get_template("shift.html").render(
        context,
        machine={**context["versions"], **context["hardware"]},
        answers=shift_findings(shift, context),
        figure=Markup(shift_svg(shift.domains)),
        narrow_figure=Markup(shift_svg(shift.domains, narrow=True)),
        domains=_by_column(domains),
        differences=_by_column(forest(shift.differences, "difference", zero=0.0)),
        heads=_by_column(_with_gains(shift.heads)),
        probes=_by_column(shift.probes),
        distances=_by_column(shift.distances),
        shortcuts=_by_column(shift.shortcuts),
        thresholds=shift.thresholds,
        sources=shift.sources,
        methods=_methods(shift, context),
        forest_px=FOREST_PX,
    )


def shift_findings(shift: Shift, context: Mapping[str, Any]) -> list[Answer]:
    """Answers to what a reader asks first. No fall is called one that Holm's correction does not leave standing."""
    return [
        _lost(shift),
        _carried(shift),
        _why(shift),
        _leans(shift),
        _excluded(shift, context),
    ]


def _lost(shift: Shift) -> Answer:
    question = "Where does the classifier do worst?"
    rows = shift.differences.to_dict("records")
    tested = [row for row in rows if not row["reason"]]
    fallen = [row for row in tested if row["p_holm"] < ALPHA and row["difference"] < 0]
    risen = [row for row in tested if row["p_holm"] < ALPHA and row["difference"] > 0]
    known = shift.domains[shift.domains["reason"] == ""]
    value = known.set_index(["column", "domain"])
    more = []
    for row in fallen + risen:
        own, source = (value.loc[(row["column"], row[name])] for name in ("domain", "source"))
        more.append(
            f"{row['column']}: AUROC {number(own['auroc'])} in {row['domain']}, {number(source['auroc'])} in "
            f"{row['source']}; difference {number(row['difference'], sign=True)} "
            f"({span(row['low'], row['high'], sign=True)}), p {p_equals(row['p_holm'])} after Holm's correction."
        )
    below = [row for row in known.to_dict("records") if row["high"] < 0.5]
    more += [f"In {row['domain']} ({row['column']}) it ranks worse than chance: {_value(row)}." for row in below]
    open_ = [row for row in tested if row not in fallen + risen]
    if open_:
        seen = max(row["detectable"] for row in open_)
        power = f" A true difference below {number(seen)} would often have gone unseen there (80% power, tested alone)."
        more.append(f"Not resolved: {_all_named(open_)}.{power if seen == seen else ''}")
    more += [f"{_named(row)}: n/a, {row['reason']}." for row in rows if row["reason"]]
    ranked = known.sort_values("auroc", kind="stable").to_dict("records")
    short = [_lowest(ranked[0], tested, fallen, risen)] if len(ranked) > 1 else []
    if not tested:
        why = "".join(f" ({_named(row)}: {row['reason']})" for row in rows[:1])
        short.append(f"Not known: no domain could be compared with its source{why}.")
    elif not fallen:
        short.append("In no domain is a fall shown.")
    elif others := [row for row in fallen if not _same(row, ranked[0])]:
        too = " too" * (len(others) < len(fallen))
        short.append(f"A fall against the source is shown in {_all_named(others)}{too}.")
    return Answer(question, " ".join(short), cut(more))


def _lowest(worst: Row, tested: Sequence[Row], fallen: Sequence[Row], risen: Sequence[Row]) -> str:
    """The domain with the lowest AUROC, and whether it is shown to be lower than the source, or than the others."""
    said = f"In {_named(worst)}: AUROC {_value(worst)}"
    if worst["is_source"]:
        above = [row for row in risen if row["column"] == worst["column"]]
        shown = f"shown to be lower than {_all_named(above)}" if above else "not shown to be lower than any other"
        return f"{said}. It is the source, and {shown}."
    found = next((row for row in tested if _same(row, worst)), None)
    if found is None:
        return f"{said}; there is no figure of its source."
    if any(_same(row, worst) for row in fallen):
        return f"{said}, which is shown to be lower than in {found['source']}, by {number(-found['difference'])}."
    return f"{said}; that this is lower than in {found['source']} is not shown."


def _same(row: Row, other: Row) -> bool:
    return bool(row["column"] == other["column"] and row["domain"] == other["domain"])


def _carried(shift: Shift) -> Answer:
    question = "Can its probabilities and its threshold be carried over?"
    rows = shift.domains[(shift.domains["reason"] == "") & shift.domains["sensitivity"].notna()].to_dict("records")
    source = {row["column"]: row for row in rows if row["is_source"]}
    others = [row for row in rows if not row["is_source"]]
    if not others:
        return Answer(question, "Not known: it takes a single label, and both classes in the source and elsewhere.", [])
    more, moved = [], []
    for row in others:
        own = source[row["column"]]
        what = [_value(row, name, f"{name}_") for name in ("sensitivity", "specificity")]
        more.append(
            f"{_named(row)}: sensitivity {what[0]} and specificity {what[1]} at the threshold of {own['domain']}, "
            f"which has {number(own['sensitivity'])} and {number(own['specificity'])} there."
        )
        if min(row["sensitivity_p"], row["specificity_p"]) < ALPHA:
            moved.append(row)
    short = (
        f"The threshold not to {_all_named(moved)}: sensitivity or specificity are others than in the source."
        if moved
        else "Nothing shows that sensitivity and specificity are others than in the source."
    )
    said, evidence = _misjudged([row for row in rows if row["column"] in {other["column"] for other in others}], source)
    return Answer(question, f"{short} {said}", cut(evidence + more))


def _misjudged(rows: Sequence[Row], source: Mapping[str, Row]) -> tuple[str, list[str]]:
    """Where the mean prediction is shown to be off, and whether by more than in the source; and the evidence.

    Where the source itself is off, that a domain is too says nothing of the domain.
    """
    home: list[Row] = []
    lost: list[Row] = []
    alike: list[Row] = []
    for row in rows:
        own = source[row["column"]]
        further = abs(row["gap"]) > abs(own["gap"]) and row["gap_change_p"] < ALPHA
        if row["gap_p"] < ALPHA and (abs(row["gap"]) > _MISJUDGED or further):
            at_home = own["gap_p"] < ALPHA and abs(own["gap"]) > _MISJUDGED
            (home if row["is_source"] else lost if further or not at_home else alike).append(row)
    evidence = []
    for row in lost + home + alike:
        change = f"; against {source[row['column']]['domain']} {_value(row, 'gap_change', 'gap_change_', True)}"
        evidence.append(
            f"{_named(row)}: it predicts {number(row['predicted'])} on average, and {number(row['observed'])} are "
            f"positive: {_value(row, 'gap', 'gap_', True)}, p {p_equals(row['gap_p'])} after Holm's correction"
            f"{'' if row['is_source'] else change}."
        )
    said = []
    if lost:
        said.append(
            f"The probabilities not to {_all_named(lost)}: on average they are too far from the share of positives."
        )
    if home:
        said.append(f"The probabilities are off in the source itself: {_all_named(home)}.")
    if alike:
        said.append(f"They are not shown to be further off in {_all_named(alike)}.")
    if not said:
        said.append(
            f"Nothing shows that probabilities are off on average by more than {_MISJUDGED}, or further than in the "
            "source."
        )
    return " ".join(said), evidence


def _why(shift: Shift) -> Answer:
    """The evidence, for each domain that falls: what the features hold, and whether one rule could serve both."""
    question = "Where may the loss come from?"
    # What is easier there can hide a loss: a domain without a fall, where labels of its own bring more.
    own = {
        (row["column"], row["domain"]): row
        for row in shift.heads[(shift.heads["head"] == _OWN) & (shift.heads["reason"] == "")].to_dict("records")
    }
    there = {
        column: max(0.0, own[at]["gain"]) for column, domain in shift.sources.items() if (at := (column, domain)) in own
    }
    short = {at for at, row in own.items() if row["gain_low"] > 0 and row["gain"] > 2 * there.get(at[0], 0.0)}
    tested = [row for row in shift.differences.to_dict("records") if not row["reason"]]
    fallen = [row for row in tested if row["p_holm"] < ALPHA and row["difference"] < 0]
    hidden = [row for row in tested if row not in fallen and (row["column"], row["domain"]) in short]
    more: list[str] = []
    causes: dict[str, list[Row]] = {}
    for row in fallen + hidden:
        found = _cause(shift, row)
        if found:
            causes.setdefault(found[0], []).append(row)
            more += found[1]
    for column, rows in shift.probes.groupby("column", sort=False):
        known = {row["among"]: row for row in rows.to_dict("records") if not row["reason"]}
        if "all" in known and known["all"]["auroc"] > _READABLE:
            alike = [f"{number(row['auroc'])} among {name}" for name, row in known.items() if name != "all"]
            more.append(
                f"The features show the {column}: a linear head reads it with AUROC {_value(known['all'])}"
                + (f", {listed(alike)}." if alike else ".")
            )
    more += prevalences(shift)
    if not fallen + hidden:
        return Answer(question, "No fall is shown that would have to be explained.", cut(more))
    if not causes:
        return Answer(question, "Not known: too few labels to fit a head to.", cut(more))
    said = [f"{_all_named(rows)}: {cause}." for cause, rows in causes.items()]
    if hidden:
        more.insert(0, f"No fall is shown in {_all_named(hidden)}, and yet labels of its own bring more there.")
    return Answer(question, " ".join(said), cut(more))


def _cause(shift: Shift, row: Row) -> tuple[str, list[str]] | None:
    """In words, and the evidence; None where no head could be fitted."""
    heads = {
        (head["domain"], head["head"]): head
        for head in shift.heads.to_dict("records")
        if head["column"] == row["column"] and not head["reason"]
    }
    at = row["domain"]
    if (at, _OWN) not in heads:
        return None
    own, joint = heads[at, _OWN], heads[at, _JOINT]
    evidence = [
        f"{at}: on the same features a head with labels of its own reaches {_value(own)}, {_gain(own)} over the "
        f"classifier; one head with labels of all domains {_value(joint)}, {_gain(joint)}."
    ]
    # What labels bring in the source too, or take from it, is no matter of the domain.
    own_there, joint_there = (heads.get((row["source"], head)) for head in (_OWN, _JOINT))
    if own_there and joint_there:
        evidence.append(f"In {row['source']} the gains of these are {_gain(own_there)} and {_gain(joint_there)}.")
    if not own["gain_low"] > 0:
        return (
            "even with labels of its own the features are not shown to give more: a harder or noisier task, or "
            "features that have lost it",
            evidence,
        )
    if own_there and own_there["gain_low"] > 0 and 2 * own_there["gain"] > own["gain"]:
        return f"labels of its own bring more, but so they do in {row['source']}: too few were learned from", evidence
    if heads[at, _CLASSIFIER]["high"] < 0.5:
        evidence.append(
            f"In {at} what the classifier takes for a sign is commoner among negatives: the label goes with other "
            "things there, as where it is defined in another way, or confounded."
        )
    if not joint["gain_low"] > 0:
        rule = "no one rule is shown to serve both"
    elif joint_there and joint_there["gain_high"] < 0:
        rule = f"one rule for all domains serves it at the cost of {row['source']}"
    else:
        served = "both" if joint_there and 2 * joint["gain"] > own["gain"] else "it in part"
        rule = f"with labels of all domains, one rule is found that serves {served}"
    return (
        f"the features still hold what the label asks for, but the classifier's rule does not read it; {rule}. Without "
        "labels of the target nothing can tell which rule is right there",
        evidence,
    )


def prevalences(shift: Shift) -> list[str]:
    """Where so many more or fewer are positive that labels may not mean the same, or patients are chosen otherwise."""
    said = []
    for column, rows in shift.domains.groupby("column", sort=False):
        known = rows[rows["n_positive"].notna()]
        share = known["n_positive"] / (known["n_positive"] + known["n_negative"])
        own = share[known["is_source"]]
        if len(own):
            for name, value in zip(known["domain"], share, strict=True):
                if unlike(value, own.iloc[0]):
                    said.append(
                        f"{column}: {percent(value)} are positive in {name}, {percent(own.iloc[0])} in "
                        f"{shift.sources[str(column)]}: the label may mean something else there, or other patients "
                        "are scanned."
                    )
    return said


def _leans(shift: Shift) -> Answer:
    question = "What betrays the label without any pixel?"
    rows = shift.shortcuts[shift.shortcuts["reason"] == ""].drop_duplicates(["domain", "attribute"])
    telling = rows[(rows["p_holm"] < ALPHA) & (rows["auroc"] > 0.5)].sort_values("auroc", ascending=False)
    more = []
    for row in telling.to_dict("records"):
        alone = f"{row['attribute']} alone tells the label with AUROC {_value(row)} in {row['domain']}"
        inner = (
            f"; between volumes alike in it, the classifier has {_value(row, 'within', 'within_')}, overall "
            f"{number(row['classifier'])}"
        )
        lean = ": part of what it shows is that" if row["lost"] > _CONFOUNDED and row["lost_low"] > 0 else ""
        more.append(f"{alone}{inner if row['within'] == row['within'] else ''}{lean}.")
    if not len(rows):
        return Answer(question, "Not known: nothing is on record that differs between volumes of a domain.", more)
    names = list(dict.fromkeys(telling["attribute"]))
    short = f"{listed(names)}." if names else "Nothing that is on record is shown to."
    return Answer(question, short[0].upper() + short[1:], cut(more))


def _excluded(shift: Shift, context: Mapping[str, Any]) -> Answer:
    question = "What was left out, or could have leaked?"
    test = context["test"]
    more = []
    if test["n_pretrained"]:
        more.append(
            f"Pre-training saw {count(test['n_pretrained'])} of the {count(test['n'])} volumes or their patients, "
            "without labels: results there are transductive, and may be better than on new patients."
        )
    if test["n_uncheckable"]:
        more.append(
            f"Of {count(test['n_uncheckable'])} volumes it is not checkable whether the classifier learned from their "
            "patients, as they were named under another key, or by nobody."
        )
    if not context["known"]:
        more.append("Not every file names its patient: intervals are image-level, and may be too narrow.")
    for column in shift.sources:
        n = test["n"] - int(shift.domains.loc[shift.domains["column"] == column, "n"].sum())
        if n > 0:
            more.append(f"{column}: {counted(n, 'volume')} of no known domain, or of one with fewer than 5 patients.")
    short = (
        f"The {count(test['n_trained'])} volumes that the classifier learned from, and others of their patients; "
        f"{counted(test['n'], 'volume')} of {counted(test['n_patients'], 'patient')} are left to judge by."
    )
    return Answer(question, short, more)


def _methods(shift: Shift, context: Mapping[str, Any]) -> list[str]:
    n = len(context["classifiers"])
    several = f"All figures are means over {n} classifiers. " if n > 1 else ""
    over = "patients and classifiers together" if n > 1 else "patients; all is conditional on one classifier"
    unit = "" if context["known"] else " (images, where nobody names the patient)"
    return [
        f"{several}Intervals are of 95%, over {over}{unit}: {count(context['resamples'])} bootstrap resamples of "
        "patients, the same for all domains, stratified by class and domain; those of an AUROC are on the logit scale. "
        "Differences have Student's t and, over all domains, Holm's correction.",
        "The source of a column is the domain that was named, or that with most volumes that the classifier learned "
        "from. Its threshold is the lowest with a specificity of 90% among its volumes here, chosen anew on each "
        "resample. That sensitivity or specificity differ from the source's is said where Holm's correction over all "
        "of these leaves it standing. The lowest AUROC of several domains is by chance lower than it truly is.",
        "The gap of mean prediction and share of positives is calibration-in-the-large (Van Calster et al. 2019). For "
        "it patients are resampled by domain alone, as how many are positive is random there too. Probabilities are "
        "called off where Holm's correction over all gaps and their differences leaves the gap standing, and it is "
        f"above {_MISJUDGED} or shown to be further from 0 than that of the source.",
        "Heads are logistic regressions on the features that the classifier's own head is given, each scored on "
        "patients that it was not fitted on (five folds by patient, regularised by cross-validation within; rows are "
        "ranked within their fold). Their intervals are over those who are judged, not over those who were learned "
        "from.",
        "Distances are unbiased squared maximum mean discrepancies with five Gaussian kernels (Gretton et al. 2012), "
        "and CORAL (Sun and Saenko 2016), of features scaled by their standard deviation, of 1,000 volumes a domain "
        "at most.",
        "An attribute's AUROC is that of such a head on its values alone; it is said to tell the label where Holm's "
        "correction, over all attributes and domains, leaves that standing. “Alike in it” counts pairs of a positive "
        "and a negative that share the value.",
    ]


def _learned(row: Row, context: Mapping[str, Any]) -> int:
    return int(context["trained"].get(row["column"], {}).get(row["domain"], 0))


def _with_gains(heads: pd.DataFrame) -> pd.DataFrame:
    """With the places of the gains and their intervals, not of the AUROCs."""
    gains = forest(heads.assign(low=heads["gain_low"], high=heads["gain_high"]), "gain", zero=0.0)
    return gains.assign(low=heads["low"], high=heads["high"])


def _all_named(rows: Iterable[Row]) -> str:
    """Domains of one column together: PA and AP (view)."""
    found: dict[str, list[str]] = {}
    for row in rows:
        found.setdefault(row["column"], []).append(row["domain"])
    return listed([f"{listed(domains)} ({column})" for column, domains in found.items()])


def _named(row: Row) -> str:
    return f"{row['domain']} ({row['column']})"


def _gain(head: Row) -> str:
    return f"{number(head['gain'], sign=True)} ({span(head['gain_low'], head['gain_high'], sign=True)})"


def _value(row: Row, name: str = "auroc", prefix: str = "", sign: bool = False) -> str:
    """A value with its interval, if it has one."""
    low = row[f"{prefix}low"]
    return number(row[name], sign) + (f" ({span(low, row[f'{prefix}high'], sign)})" if low == low else "")


def _by_column(frame: pd.DataFrame) -> list[tuple[str, list[dict[Any, Any]]]]:
    return [(str(column), rows.to_dict("records")) for column, rows in frame.groupby("column", sort=False)]
