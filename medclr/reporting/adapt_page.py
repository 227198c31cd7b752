"""What a domain adaptation report says, and its page."""

import math
from collections.abc import Mapping
from typing import Any, Protocol

import pandas as pd
from markupsafe import Markup

from medclr.reporting.console import counted
from medclr.reporting.figures import adapt_svg
from medclr.reporting.findings import ALPHA, Answer, unlike
from medclr.reporting.html import FOREST_PX, TEMPLATES, forest
from medclr.reporting.numbers import count, listed, number, p_equals, percent, span
from medclr.reporting.shots_page import Shots, shots_answer, shots_section

SOURCE_ONLY, AUTO, TARGET_TRAINED = "source-only", "auto", "target-trained"
MEANINGS = {
    SOURCE_ONLY: "a linear head that learned the source's labels, used on the target as it is",
    "adabn": "the same, with batch-norm statistics of the target for its features",
    "adabn-coral": "the same, with both of adabn and coral",
    "coral": "the same, learned on source features that were given the target's mean and covariance",
    "pseudo": "the same, taught further by its own surest answers on the target",
    "simclr-target": "the same, on an encoder that has gone on with SimCLR on the target",
    "simclr-both": "the same, on an encoder that has gone on with SimCLR on source and target",
    "finetuned": "the whole network, fine-tuned on the source's labels alone",
    "deep-coral": "finetuned, with features whose covariances become alike in both domains",
    "mmd": "finetuned, with features whose distributions become alike in both domains",
    "dann": "finetuned, with features by which a critic learns that it cannot tell the domains apart",
    "histogram": "the same, taught also by the source's images with the grey values of the target's",
    "fourier": "the same, taught also by the source's images with the amplitudes of the target's",
    AUTO: "the one of these that was chosen without a label of the target",
    TARGET_TRAINED: "the upper bound: a linear head that learned the target's own labels",
}

Row = Mapping[Any, Any]


class Adaptation(Protocol):
    """What a page needs of `medclr.evaluation.adaptation.Adaptation`."""

    @property
    def points(self) -> pd.DataFrame: ...

    @property
    def differences(self) -> pd.DataFrame: ...

    @property
    def regained(self) -> pd.DataFrame: ...

    @property
    def choices(self) -> pd.DataFrame: ...

    @property
    def oracle(self) -> str: ...

    @property
    def shots(self) -> Shots | None: ...


def adapt_page(found: Adaptation, context: Mapping[str, Any]) -> str:
    """The domain adaptation report as HTML.

    found: its tables. context: title, command_line, phantoms, transductive, leakage, task (kind, columns, outputs),
    source and target (each name, n, n_patients, n_positive, shares), n_both, n_copies, encoders (each method, seed,
    fingerprint), training (steps, batch_size, lr, weight_decay, alignment, negatives), balance, known, draws,
    resamples, classifier (the method that it is made by), versions and hardware. Nothing in it may name a patient.
    """
    value = found.points.set_index("method")["auroc"]
    points = forest(found.points.assign(base=value.get(SOURCE_ONLY)), "auroc", zero="base")
    share = found.regained.set_index("method")
    differences = forest(found.differences, "difference", zero=0.0)
    return TEMPLATES.get_template("adapt.html").render(
        context,
        machine={**context["versions"], **context["hardware"]},
        answers=adapt_findings(found, context),
        figures=[Markup(adapt_svg(found.points, narrow=narrow)) for narrow in (False, True) if context["target"]["n"]],
        points=points.to_dict("records"),
        differences=differences.to_dict("records"),
        regained={str(name): row.to_dict() for name, row in share.iterrows()},
        choices=found.choices.to_dict("records"),
        meanings=MEANINGS,
        methods=methods_of(found.points, context, context["target"]["n"] > 0),
        forest_px=FOREST_PX,
        shots="" if found.shots is None else shots_section(found.shots, value.get(TARGET_TRAINED, math.nan)),
    )


def adapt_findings(found: Adaptation, context: Mapping[str, Any]) -> list[Answer]:
    """Answers to what a reader asks first. No gain is called one that Holm's correction does not leave standing."""
    if not context["target"]["n"]:
        return [_unknown(context), _chosen(found, context), _excluded(context)]
    few = [] if found.shots is None else [shots_answer(found.shots)]
    return [
        _gained(found, context["classifier"]),
        _regained(found),
        _chosen(found, context),
        _left(found, context),
        *few,
        _excluded(context),
    ]


_DID_ANY_GAIN = "Did any method gain over source-only?"


def _unknown(context: Mapping[str, Any]) -> Answer:
    more = [
        "Methods can harm as well as help, and nothing without labels tells which. Five patients of either class, "
        "drawn at random, are the fewest that can be judged; some fifty show a difference that is worth having."
    ]
    return Answer(_DID_ANY_GAIN, f"Not known: no volume of {context['target']['name']} has a label.", more)


def _gained(found: Adaptation, kept: str) -> Answer:
    question = _DID_ANY_GAIN
    rows = [row for row in found.differences.to_dict("records") if row["method"] != TARGET_TRAINED]
    tested = [row for row in rows if not row["reason"]]
    clear = [row for row in tested if row["p_holm"] < ALPHA]
    better = [row for row in clear if row["difference"] > 0]
    worse = [row for row in clear if row["difference"] < 0]
    more = [
        f"{row['method']}: {_difference(row)} against source-only, p {p_equals(row['p_holm'])} after Holm's correction."
        for row in better + worse
    ]
    if still := [row for row in tested if row not in clear]:
        seen = max(row["detectable"] for row in still)
        power = f" A true difference below {number(seen)} would often have gone unseen (80% power, tested alone)."
        more.append(f"Not resolved: {listed([_with_difference(row) for row in still])}.{power if seen == seen else ''}")
    more += [f"{row['method']}: n/a, {row['reason']}." for row in rows if row["reason"]]
    if not tested:
        return Answer(question, "Not known: no method could be compared.", more)
    fell = f" Worse than source-only: {listed([row['method'] for row in worse])}." if worse else ""
    if any(row["method"] == (AUTO if len(found.choices) else kept) for row in worse):
        fell += f" classifier/ is made by {kept}: rather take one of medclr finetune."
    if better:
        best = max(better, key=lambda row: row["difference"])
        names, own = [row["method"] for row in better], _by_method(found.points)[best["method"]]
        most = f"the most {best['method']}, " if len(names) > 1 else ""
        if not own["low"] > 0.5:
            interval = f"{number(own['auroc'])} ({span(own['low'], own['high'])})"
            more.append(f"With an AUROC of {interval}, {best['method']} is not shown to rank better than chance.")
        return Answer(question, f"Yes: {listed(names)}, {most}by {number(best['difference'])} AUROC.{fell}", more)
    return Answer(question, f"No gain is shown.{fell}", more)


def _regained(found: Adaptation) -> Answer:
    question = "How much of the gap to labels of the target was regained?"
    rows, points = found.regained.to_dict("records"), _by_method(found.points)
    if not rows:
        return Answer(question, "Not known: there is no figure of source-only, or of target-trained.", [])
    first = rows[0]
    more = [
        f"Source-only has {number(points[SOURCE_ONLY]['auroc'])}, a head with labels of the target on the encoder's "
        f"features {number(points[TARGET_TRAINED]['auroc'])}: a gap of {number(first['gap'], sign=True)} "
        f"({span(first['gap_low'], first['gap_high'], sign=True)})."
    ]
    if first["reason"]:
        return Answer(question, f"There is no share to tell: {first['reason']}.", more)
    more += [f"{row['method']}: {_share(row)}." for row in rows]
    one = next((row for row in rows if row["method"] == AUTO), None)
    if one is not None:
        return Answer(question, f"{'B' if one['low'] > 0 else 'None is shown: b'}y auto {_share(one)}.", more)
    some = [f"{row['method']} {_share(row)}" for row in rows if row["low"] > 0]
    return Answer(question, f"By {listed(some)}." if some else "None is shown.", more)


def _chosen(found: Adaptation, context: Mapping[str, Any]) -> Answer:
    unit = "halves" if context["target"]["n"] else "encoders"
    question = "Which method is chosen without labels of the target?"
    points, rows, more = _by_method(found.points), found.choices.to_dict("records"), []
    if found.oracle:
        its = f"is {found.oracle} with {number(points[found.oracle]['auroc'])}"
        own = f"; auto has {number(points[AUTO]['auroc'])}" if AUTO in points else ""
        more.append(f"The oracle's choice, which takes labels of the target, {its}{own}.")
    judged = [row for row in points.values() if row["entropy"] == row["entropy"]]
    if len(judged) > 1:
        best = max(judged, key=lambda row: row["at_home"])
        more.append(
            f"The source-validation choice, by patients of the source alone, is {best['method']}: "
            f"{number(best['at_home'])} there{_on_the_target(best)}."
        )
        surest = min(judged, key=lambda row: row["entropy"])
        more.append(
            f"The choice by entropy, surest of its answers in the target, is {surest['method']}: "
            f"{number(surest['entropy'])} of 1{_on_the_target(surest)}."
        )
    if trained := [name for name in points if name in LEARNED]:
        more.append(f"{listed(trained)} learned all labels of the source, by which nothing can choose them then.")
    if not rows:
        return Answer(question, "Not known: auto was not run.", more)
    first, n = rows[0], rows[0]["of"]
    for row in rows:
        where = f"in {row['n']} of {n} {unit}, where the domains are then" if n > 1 else "leaves the domains"
        more.append(f"{row['method']} {where} {row['left']:.1f} times what chance makes apart.")
    if any(row["left"] > 1 for row in rows):
        more.append("Where that is above 1, none of these brings the domains together, and the choice is less sure.")
    if _prevalences(context):
        more.append("No distance sees that classes are shared otherwise in the target, as they are: do not rely on it.")
    elif not context["target"]["n"]:
        more.append("No distance sees whether classes are shared otherwise in the target: if they are, it may do harm.")
    if first["n"] == n:
        return Answer(question, f"{first['method']}, in all {n} {unit}." if n > 1 else f"{first['method']}.", more)
    return Answer(question, f"{first['method']}, but only in {first['n']} of {n} {unit}.", more)


def _on_the_target(row: Row) -> str:
    return f", {number(row['auroc'])} on the target" if row["auroc"] == row["auroc"] else ""


def _left(found: Adaptation, context: Mapping[str, Any]) -> Answer:
    """What remains between the best method and the upper bound, and what hints that labels do not mean the same."""
    question = "What did no method close?"
    points, more = _by_method(found.points), doubts(found, context)
    bound = points[TARGET_TRAINED]
    if not found.oracle or bound["reason"]:
        return Answer(question, "Not known.", more)
    gap = _by_method(found.differences)[TARGET_TRAINED]
    if not (gap["p_holm"] < ALPHA and gap["difference"] > 0):
        return Answer(question, "Nothing is shown to be left: labels of the target are not shown to give more.", more)
    rest = bound["auroc"] - points[found.oracle]["auroc"]
    if rest <= 0:
        return Answer(question, f"Nothing: {found.oracle} is not below a head with labels of the target.", more)
    other = "" if _TRAINED & set(points) else ", or to what changes the encoder"
    short = (
        f"{number(rest)} AUROC between {found.oracle}, the highest, and a head with labels of the target: that is left "
        f"to labels{other}."
    )
    return Answer(question, short, more)


def doubts(found: Adaptation, context: Mapping[str, Any]) -> list[str]:
    """What hints that labels do not mean the same in source and target."""
    base = _by_method(found.points)[SOURCE_ONLY]
    if not base["high"] < 0.5:
        return _prevalences(context)
    return [
        *_prevalences(context),
        f"On the target source-only ranks worse than chance, {number(base['auroc'])} "
        f"({span(base['low'], base['high'])}): what is a sign in the source is commoner among negatives there, as "
        "where the label is defined in another way, or confounded. Nothing without labels can show that.",
    ]


def _excluded(context: Mapping[str, Any]) -> Answer:
    question = "What was left out, or could have leaked?"
    source, target = context["source"], context["target"]
    more = [context["leakage"]]
    if context["transductive"]:
        more.append("So results are transductive, of all methods alike: new patients may be classified less well.")
    if context["n_both"]:
        more.append(
            f"{counted(context['n_both'], 'patient')} of the target {'has' if context['n_both'] == 1 else 'have'} "
            "volumes in the source too, which were left out wherever that patient was scored."
        )
    if context["n_copies"]:
        copies = counted(context["n_copies"], "volume")
        more.append(
            f"{copies} of the source {'has' if context['n_copies'] == 1 else 'have'} the very pixels of one of the "
            "target under another patient's name, and were left out wherever that one was scored."
        )
    if not context["known"] and target["n"]:
        more.append("Not every file names its patient: intervals are image-level, and may be too narrow.")
    without = f"{counted(target['n_rest'], 'volume')} without a label"
    if target["n_rest_there"] > target["n_rest"]:
        without += f", drawn at random from {count(target['n_rest_there'])}"
    learned = f"{counted(source['n'], 'labelled volume')} of {source['name']}"
    if not target["n"]:
        short = f"Nothing was scored: {target['name']} is adapted to by {without}, from {learned}."
        return Answer(question, short, [line for line in more if line])
    if target["n_rest"]:
        more.append(f"Both halves adapt to {without}, too, but for those of patients who are scored.")
    short = (
        f"No adaptation that scored a volume saw its patient: {counted(target['n'], 'volume')} of "
        f"{counted(target['n_patients'], 'patient')} of {target['name']}, adapted to by halves from {learned}."
    )
    return Answer(question, short, more)


def _prevalences(context: Mapping[str, Any]) -> list[str]:
    """Where so many more or fewer are positive that labels may not mean the same, or patients are chosen otherwise."""
    source, target = context["source"], context["target"]
    return [
        f"Of the target {percent(share)} are {_called(output, context)}, of the source "
        f"{percent(source['shares'][output])}: the label may mean something else there, or other patients are scanned."
        for output, share in target["shares"].items()
        if output in source["shares"] and unlike(share, source["shares"][output])
    ]


def _called(output: str, context: Mapping[str, Any]) -> str:
    """What a volume is that has an output."""
    return "positive" if context["task"]["kind"] == "binary" else output


def methods_of(points: pd.DataFrame, context: Mapping[str, Any], judged: bool = True) -> list[str]:
    """How it was done, in sentences. points: of `Adaptation`; context: as for `adapt_page`; judged: by labels."""
    n, methods = len(context["encoders"]), set(points["method"])
    several = ["halvings"] * (context["draws"] > 1) + ["encoders"] * (n > 1)
    over = f"{listed(['patients', *several])} together" if several else "patients, and conditional on one halving"
    between = f", with the variance between {listed(several)} added" if several else ""
    said = [f"All figures are means over {n} encoders."] if n > 1 else ["All is conditional on one encoder."]
    halved = (
        f"The target's patients are halved at random {counted(context['draws'], 'time')}, stratified by class. Each "
        "method adapts to one half without its labels and scores the other, and the reverse; volumes of the source are "
        "left out where their patient is scored. Labels of the target are used to measure, to balance the halves, and "
        f"by {TARGET_TRAINED}, which learns those of the half that the methods adapt to."
    )
    heads = (
        f"{_frozen(methods)}. Heads are logistic regressions that count all classes the same, their regularisation "
        "chosen by patient-grouped cross-validation in the source."
    )
    ranked = (
        " Scores are in deviations of those that a head gives the half adapted to, so that both halves are ranked "
        "together."
    )
    said += [
        halved if judged else "Each method learns from all of the source and adapts to these volumes of the target."
    ]
    said += [heads + ranked * judged]
    if context["balance"]:
        said.append(
            "Domains of the source count the same in all that is learned from it: volumes of the smaller ones are "
            "drawn several times."
        )
    if methods & _TRAINED:
        said.append(_training(context["training"], methods))
    said += [sentence for name, sentence in _HOW.items() if name in methods]
    if not judged:
        return said
    unit = "" if context["known"] else " (images, where nobody names the patient)"
    return [
        *said,
        f"Intervals are of 95%, over {over}{unit}: {count(context['resamples'])} bootstrap resamples of the target's "
        f"patients, the same for all methods{between}. Differences have Student's t and Holm's correction over all of "
        "them.",
    ]


def _frozen(methods: set[str]) -> str:
    trained = [name for name in MEANINGS if name in methods & _TRAINED]
    return f"The encoder is frozen but for {listed(trained)}" if trained else "The encoder is frozen"


def _training(settings: Mapping[str, Any], methods: set[str]) -> str:
    weight = (
        f", the second loss with weight {settings['alignment']:g}" if methods & {"deep-coral", "mmd", "dann"} else ""
    )
    told = {"all": "", "within": " Negatives are of the same domain.", "across": " Negatives are of the other domain."}
    apart = told[settings["negatives"]] if "simclr-both" in methods else ""
    return (
        f"Networks are trained anew each time, {count(settings['steps'])} steps by AdamW of batches of "
        f"{settings['batch_size']} (of each domain where labels are learned, of all together in SimCLR), with a peak "
        f"learning rate of {settings['lr']:g} and a weight decay of {settings['weight_decay']:g}{weight}.{apart} There "
        "is no stopping rule."
    )


LEARNED = {"finetuned", "deep-coral", "mmd", "dann"}
_TRAINED = LEARNED | {"simclr-target", "simclr-both"}
_HOW = {
    "adabn": "adabn: batch-norm statistics are estimated anew, of the source from its own volumes, of the target from "
    "those adapted to (Li et al. 2016).",
    "adabn-coral": "adabn-coral: coral on the features of adabn.",
    "coral": "coral: Sun, Feng and Saenko 2016, algorithm 1, on features divided by the root of the mean of "
    "their variances in both domains, with means aligned.",
    "pseudo": "pseudo: self-training on the surest 20, then 35 and 50% of the target's volumes of each class that it "
    "tells, so that the shares of classes stay as they were told (Zou et al. 2018).",
    "simclr-target": "simclr-target: SimCLR goes on, from the encoder and its projector, on what is adapted to; the "
    "head is learned on the frozen result (Azizi et al. 2023).",
    "simclr-both": "simclr-both: the same, on batches of which the source has one half.",
    "finetuned": "finetuned: encoder and head are trained together from the linear head on (Kumar et al. 2022), on "
    "augmented images of the source; it is what the next are to be compared with.",
    "deep-coral": "deep-coral: finetuned with the squared distance of the covariances of both domains' standardised "
    "features, times their number (Sun and Saenko 2016).",
    "mmd": "mmd: finetuned with the squared maximum mean discrepancy of both domains' standardised features, by five "
    "Gaussian kernels (Long et al. 2015).",
    "dann": "dann: finetuned against a critic of the domain with one hidden layer, its gradient reversed ever more "
    "strongly (Ganin et al. 2016).",
    "histogram": "histogram: the head learns from each image of the source twice, as it is and with the grey values "
    "of one of the target's images, drawn at random from those adapted to.",
    "fourier": "fourier: the head learns from each image of the source twice, as it is and with the amplitudes of one "
    "of the target's images, drawn likewise, and phases of its own (Yang & Soatto 2020).",
    AUTO: "auto: the first method, from the least change on, after which the features of both domains lie no further "
    "apart (maximum mean discrepancy) than those of patients who are grouped at random, or else the one that leaves "
    "the least; not one that costs more than .05 of the AUROC in the source, by patients held out. An error in the "
    "target is at most that in the source and the distance, and what no one rule could tell in both (Ben-David et al. "
    "2010), which nothing without labels shows.",
}


def _by_method(frame: pd.DataFrame) -> dict[str, Row]:
    return {row["method"]: row for row in frame.to_dict("records")}


def _share(row: Row) -> str:
    share, low, high = (f"{round(100 * row[name])}%".replace("-", "−") for name in ("share", "low", "high"))
    return f"{share} ({low} to {high})"


def _difference(row: Row) -> str:
    return f"{number(row['difference'], sign=True)} ({span(row['low'], row['high'], sign=True)})"


def _with_difference(row: Row) -> str:
    return f"{row['method']} {_difference(row)}"
