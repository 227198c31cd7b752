"""What a few labels of the target gave, as a domain adaptation report says it."""

import math
from collections.abc import Mapping
from typing import Any, Protocol

import pandas as pd
from markupsafe import Markup

from medclr.reporting.figures import shot_swatches, shots_svg
from medclr.reporting.findings import ALPHA, Answer
from medclr.reporting.html import FOREST_PX, TEMPLATES, forest
from medclr.reporting.numbers import because, listed, number, p_equals, span

BOTH, ADAPTED = "source+target", "adapted+target"
MEANINGS = {
    BOTH: "a linear head that learned the source's labels and these; at 0 it is source-only",
    ADAPTED: "the same on features as auto adapts them; at 0 it is auto",
    "target-alone": "a linear head that learned these labels and none of the source",
    "lp-ft": "the whole network, trained on these labels from the head of source+target",
}

Row = Mapping[Any, Any]


class Worth(Protocol):
    """What words need of `medclr.evaluation.shots.Worth`."""

    @property
    def labels(self) -> float: ...

    @property
    def low(self) -> float: ...

    @property
    def high(self) -> float: ...

    @property
    def most(self) -> int: ...

    @property
    def reason(self) -> str: ...


class Shots(Protocol):
    """What words need of `medclr.evaluation.shots.Shots`."""

    @property
    def points(self) -> pd.DataFrame: ...

    @property
    def differences(self) -> pd.DataFrame: ...

    @property
    def worth(self) -> Worth | None: ...


def shots_section(shots: Shots, bound: float) -> Markup:
    """The section of the page; bound: AUROC of target-trained, or NaN."""
    points, differences = shots.points, shots.differences
    methods = list(dict.fromkeys(points["method"]))
    rows = {method: points[points["method"] == method].set_index("shots").to_dict("index") for method in methods}
    reasons = list(dict.fromkeys(points.loc[points["reason"] != "", "reason"]))
    text = TEMPLATES.get_template("shots.html").render(
        figure=Markup(shots_svg(points, bound)),
        narrow_figure=Markup(shots_svg(points, bound, narrow=True)),
        swatches={method: Markup(swatch) for method, swatch in shot_swatches(methods).items()},
        meanings={method: MEANINGS[method] for method in methods},
        shots=sorted(set(points["shots"])),
        rows=rows,
        reasons=reasons,
        differences=[group.to_dict("records") for _, group in forest(differences, "difference", 0.0).groupby("shots")],
        forest_px=FOREST_PX,
    )
    return Markup(text)


def shots_answer(shots: Shots) -> Answer:
    """How many labels of the target adaptation is worth, and what it still gives beside them."""
    question = "How many labels of the target is adaptation worth?"
    rows, more = shots.points.to_dict("records"), []
    known = {(row["method"], row["shots"]): row for row in rows if not row["reason"]}
    most = max((number for method, number in known if method == BOTH), default=0)
    if most:
        ends = [known[BOTH, n] for n in (0, most) if (BOTH, n) in known]
        said = [f"{number(row['auroc'])} ({span(row['low'], row['high'])}) with {row['shots']}" for row in ends]
        more.append(f"Without adaptation, AUROC by labels per class of the target: {listed(said)}.")
    tested = [row for row in shots.differences.to_dict("records") if not row["reason"]]
    for method in dict.fromkeys(row["method"] for row in tested):
        more.append(_compared(method, [row for row in tested if row["method"] == method]))
    for reason, group in shots.points[shots.points["reason"] != ""].groupby("reason", sort=False):
        numbers = [str(n) for n in sorted(set(group["shots"]))]
        more.append(f"With {listed(numbers)} per class: {because(str(reason))}.")
    return Answer(question, _worth(shots.worth), more)


def _worth(worth: Worth | None) -> str:
    if worth is None:
        return "Not known: auto was not run."
    if worth.reason:
        return f"Not known: {worth.reason}."
    if worth.low == worth.high == 0:
        return "None: without any label, adaptation is not above source-only."
    ends = [_labels(end, worth.most) for end in (worth.low, worth.high) if not math.isnan(end)]
    interval = f" ({listed(ends, 'to')})" if ends else ""
    if math.isinf(worth.labels) and not worth.low > 0:
        return f"Not known: it may be none, or {_labels(worth.labels, worth.most)} per class."
    if not worth.labels:
        return f"None is shown: without any label, adaptation is not above source-only{interval}."
    short = f"{'' if math.isinf(worth.labels) else 'about '}{_labels(worth.labels, worth.most)} per class{interval}."
    return short[0].upper() + short[1:] if worth.low > 0 else f"None is shown: {short}"


def _labels(value: float, most: int) -> str:
    return f"more than {most}" if math.isinf(value) else "none" if value == 0 else str(math.ceil(value - 1e-9))


def _compared(method: str, rows: list[Row]) -> str:
    """One method against source+target at equal labels."""
    clear = [row for row in rows if row["p_holm"] < ALPHA]
    said = []
    for word, those in (
        ("above", [row for row in clear if row["difference"] > 0]),
        ("below", [row for row in clear if row["difference"] < 0]),
    ):
        if those:
            effects = [
                f"{number(row['difference'], sign=True)} ({span(row['low'], row['high'], sign=True)}, p "
                f"{p_equals(row['p_holm'])}) with {row['shots']}"
                for row in those
            ]
            said.append(f"{word} {BOTH} by {listed(effects)}")
    if still := [row for row in rows if row not in clear]:
        effects = [f"{number(row['difference'], sign=True)} with {row['shots']}" for row in still]
        said.append(f"not told apart from it: {listed(effects)}")
    return f"{method}: {'; '.join(said)}."
