"""Reports as one self-contained page: it loads nothing, runs nothing, and escapes all that it is given."""

import math
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import pandas as pd
from markupsafe import Markup

from medclr.evaluation.plot import group_and_method
from medclr.reporting.figures import arm_swatches, efficiency_svg
from medclr.reporting.findings import BASELINES, BETTER, Curve, applicable, doubted, findings, with_claims
from medclr.reporting.numbers import because, count, listed, number, p, share, span

_MEANINGS = {
    "scratch": "the same network trained from random weights",
    "pca": "logistic regression on principal components of the pixels, without any network",
    "linear": "logistic regression on the frozen features of the encoder",
    "knn": "the nearest labelled neighbours in the frozen features of the encoder",
    "attention": "a linear head on the frozen features, with learned weights of the crops or slices of a volume",
    "lp-ft": "the whole network fine-tuned from the encoder and the head of the linear arm",
    "full": "the whole network fine-tuned from the encoder",
    "distill": "the whole network, taught by the linear arm what volumes without labels show",
    "auto": "whichever of these ways cross-validation inside the draw chose",
}
_CALIBRATION = {"ECE": "as trained", "ECE after temperature scaling": "after scaling", "temperature": "temperature"}
FOREST_PX = 104  # the width of the little interval plots in tables
_PANEL_PX = 100  # the side of a reliability diagram, without its margins

Records = list[dict[Hashable, Any]]


def efficiency_page(curve: Curve, context: Mapping[str, Any]) -> str:
    """The label-efficiency report as HTML.

    curve: its tables, labels needed by arm, and the verdict. context: title, command_line, phantoms, leakage,
    transductive, task (kind, columns, outputs), classes, test and train (each n_patients, n_positive, n_negative),
    encoders (each group, method, seed, fingerprint), methods, notes and cite (lists of sentences), versions and
    hardware. Nothing in it may name a patient.
    """
    points = curve.points
    arms, top = list(dict.fromkeys(points["arm"])), points["fraction"].max()
    found = findings(curve, context)
    first = _first_arms(points[points["fraction"] == top], found.arm)
    differences = forest(_by_arm(curve.differences), "difference", zero=0.0)
    subgroups = forest(_by_arm(_with_overall(curve.subgroups, points)), "auroc", zero="overall")
    measures, outputs = _measures(applicable(curve.measures, context))
    return TEMPLATES.get_template("efficiency.html").render(
        context,
        machine={**context["versions"], **context["hardware"]},
        found=found,
        verdict=curve.verdict(),
        # What is not escaped here holds no text, or matplotlib has escaped it.
        figure=Markup(efficiency_svg(points)),
        narrow_figure=Markup(efficiency_svg(points, narrow=True)),
        swatches={arm: Markup(svg) for arm, svg in arm_swatches(arms).items()},
        meanings=_meanings(arms),
        top=top,
        # One row of each fraction, for what all arms share there.
        draws=points.drop_duplicates("fraction").sort_values("fraction").to_dict("records"),
        heads={fraction: share(fraction) for fraction in points["fraction"]},
        encoders_differ=points["n_encoders"].max() > 1,
        aurocs=_grid(points.rename(columns={"auroc": "value"}).assign(measure="AUROC")),
        needed={arm: str(needed) for arm, needed in curve.needed.items() if arm != "scratch"},
        better=_by_fraction(with_claims(differences, points)),
        each=_by_fraction(differences[differences["versus"] != BETTER]),
        second=_second(points) if differences["delong_p"].notna().any() else None,
        panels=_panels(curve.calibration[curve.calibration["fraction"] == top], curve.measures, arms, top),
        ece=_at_top(curve.measures, top),
        calibrations=_grid(curve.measures[curve.measures["measure"].isin(_CALIBRATION)]),
        measures=[_grid(rows) for rows in _split(measures, first)],
        outputs=[_grid(rows) for rows in _split(outputs, first)],
        thresholds=measures["measure"].str.startswith("sensitivity").any(),
        prevalence=_prevalence(context),
        subgroups=[_by_column(rows) for rows in _split(subgroups, first)],
        forest_px=FOREST_PX,
        panel_px=_PANEL_PX,
    )


def _meanings(arms: Sequence[str]) -> list[tuple[list[str], str]]:
    """Arms of one method together, with what they do."""
    found: dict[str, list[str]] = {}
    for arm in arms:
        found.setdefault(_MEANINGS.get(group_and_method(arm)[1], ""), []).append(arm)
    return [(names, meaning) for meaning, names in found.items()]


def _first_arms(at_top: pd.DataFrame, arm: str) -> list[str]:
    """Arms whose details stand open: all where they are few, else the one to use and the better baseline."""
    if len(at_top) <= 3:
        return list(at_top["arm"])
    baselines = at_top[at_top["arm"].isin(BASELINES)].sort_values("auroc", kind="stable", na_position="first")
    return list(dict.fromkeys([arm, *baselines["arm"].iloc[-1:]]) if arm else at_top["arm"])


def _split(rows: pd.DataFrame, first: Sequence[str]) -> tuple[pd.DataFrame, pd.DataFrame]:
    of_first = rows["arm"].isin(first)
    return rows[of_first], rows[~of_first]


def _measures(measures: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """All but calibration: those of the task, and the AUROCs of single outputs."""
    others = measures[~measures["measure"].isin(_CALIBRATION)]
    single = others["measure"].str.startswith("AUROC ")
    return others[~single], others[single].assign(measure=others.loc[single, "measure"].str.removeprefix("AUROC "))


def _prevalence(context: Mapping[str, Any]) -> float:
    """The mean share of positives of the outputs: the average precision of chance. NaN of several labels."""
    kind, test = context["task"]["kind"], context["test"]
    if kind == "binary":
        return float(test["n_positive"] / (test["n_positive"] + test["n_negative"]))
    return 1 / len(context["task"]["outputs"]) if kind == "multiclass" else math.nan


def _grid(frame: pd.DataFrame, across: str = "fraction") -> dict[str, Any]:
    """Values by measure (groups of rows) and arm (rows), across fractions, or `across` something else.

    Reasons are gathered and numbered, as a cell has no room for them.
    """
    keys = sorted(set(frame[across])) if across == "fraction" else list(dict.fromkeys(frame[across]))
    reasons = {reason: i + 1 for i, reason in enumerate(filter(None, dict.fromkeys(frame["reason"])))}
    groups: dict[str, dict[str, dict[Any, Any]]] = {}
    for cell in frame.to_dict("records"):
        rows = groups.setdefault(cell["measure"], {})
        rows.setdefault(cell["arm"], {})[cell[across]] = cell | {"mark": reasons.get(cell["reason"])}
    return {"keys": keys, "groups": groups, "reasons": reasons}


def _second(points: pd.DataFrame) -> dict[str, Any]:
    """AUROCs with the intervals of the second opinion."""
    own = {"auroc": "value", "delong_low": "low", "delong_high": "high"}
    return _grid(points.drop(columns=["low", "high"]).rename(columns=own).assign(measure="AUROC"))


def _at_top(measures: pd.DataFrame, top: float) -> dict[str, Any]:
    """Calibration before and after, side by side, with all labels that there were."""
    rows = measures[(measures["fraction"] == top) & measures["measure"].isin(_CALIBRATION)]
    return _grid(rows.assign(across=rows["measure"].map(_CALIBRATION), measure="ECE"), "across")


def _panels(bins: pd.DataFrame, measures: pd.DataFrame, arms: Sequence[str], top: float) -> list[dict[str, Any]]:
    """A reliability diagram for each arm: its bins in px, or why it has none."""
    ece = measures[(measures["fraction"] == top) & (measures["measure"] == "ECE")].set_index("arm")["reason"]
    places = bins.assign(
        x=(_PANEL_PX * bins["predicted"]).round(1),
        **{name: (_PANEL_PX * (1 - bins[name])).round(1) for name in ("observed", "low", "high")},
        bar=(12 * bins["n"] / max(bins["n"].max(), 1)).round(1),
    )
    found = []
    for arm in arms:
        own = places[places["arm"] == arm]
        sides = [(scaled, own[own["scaled"] == scaled].to_dict("records")) for scaled in (False, True)]
        found.append({"arm": arm, "sides": sides, "n": sorted(set(own["n"].round())), "reason": ece[arm]})
    return found


def _by_fraction(frame: pd.DataFrame) -> list[Records]:
    return [group.to_dict("records") for _, group in frame.groupby("fraction", sort=True)]


def _by_column(subgroups: pd.DataFrame) -> list[tuple[str, list[Records]]]:
    """By column, and in it by group."""
    return [
        (str(column), [rows.to_dict("records") for _, rows in of_column.groupby("group", sort=False)])
        for column, of_column in subgroups.groupby("column", sort=False)
    ]


def _by_arm(frame: pd.DataFrame) -> pd.DataFrame:
    arms = list(dict.fromkeys(frame["arm"]))
    return frame.sort_values("arm", key=lambda column: column.map(arms.index), kind="stable")


def _with_overall(subgroups: pd.DataFrame, points: pd.DataFrame) -> pd.DataFrame:
    """With the AUROC of the same arm and fraction on all test rows."""
    overall = points.set_index(["arm", "fraction"])["auroc"]
    keys = pd.MultiIndex.from_frame(subgroups[["arm", "fraction"]])
    return subgroups.assign(overall=overall.reindex(keys).to_numpy(float))


def forest(rows: pd.DataFrame, value: str, zero: float | str) -> pd.DataFrame:
    """With the places (px) of low, high, value and of the line to read them against, on one scale for all rows.

    zero: where that line stands, or the column that says so.
    """
    line = rows[zero].to_numpy(float) if isinstance(zero, str) else np.full(len(rows), zero)
    ends = np.column_stack([rows[["low", "high", value]].to_numpy(float), line])
    known = ends[np.isfinite(ends)]
    if not len(known):
        return rows.assign(low_px=math.nan, high_px=math.nan, value_px=math.nan, zero_px=math.nan)
    pixels = (FOREST_PX - 12) / (np.ptp(known) or 1.0)
    places = np.round(6 + pixels * (ends - known.min()), 1)
    return rows.assign(**{f"{name}_px": places[:, i] for i, name in enumerate(("low", "high", "value", "zero"))})


TEMPLATES = jinja2.Environment(
    loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
TEMPLATES.filters |= {
    "number": number, "span": span, "p": p, "share": share, "count": count, "because": because, "listed": listed
}  # fmt: skip
TEMPLATES.tests |= {"nan": math.isnan, "doubted": doubted}
