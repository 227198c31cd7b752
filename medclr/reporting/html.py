"""Reports as one self-contained page: it loads nothing, runs nothing, and escapes all that it is given."""

import math
from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any, Protocol

import jinja2
import numpy as np
import pandas as pd
from markupsafe import Markup

from medclr.reporting.figures import efficiency_svg

_MEANINGS = {
    "scratch": "the same network trained from random weights",
    "simclr-linear": "logistic regression on the frozen features of the encoder",
    "simclr-lp-ft": "the whole network fine-tuned from the encoder and the head of simclr-linear",
    "simclr-full": "the whole network fine-tuned from the encoder",
    "pca": "logistic regression on principal components of the pixels, without any network",
}
_FOREST_WIDTH = 104  # of the little interval plots in the table of differences, in px


class Curve(Protocol):
    """What a page needs of `medclr.evaluation.efficiency.Curve`."""

    @property
    def points(self) -> pd.DataFrame: ...

    @property
    def differences(self) -> pd.DataFrame: ...

    @property
    def needed(self) -> Mapping[str, object]: ...

    def verdict(self) -> str: ...


def efficiency_page(curve: Curve, context: Mapping[str, Any]) -> str:
    """The label-efficiency report as HTML.

    curve: points and differences as tables, labels needed by arm, and the verdict. context: title, command_line,
    phantoms, leakage, transductive, test and train (each n_patients, n_positive, n_negative), methods and notes (lists
    of sentences), versions; and, where known, hardware and label (column, negative, positive). Nothing in it may name
    a patient.
    """
    arms = list(dict.fromkeys(curve.points["arm"]))
    return TEMPLATES.get_template("efficiency.html").render(
        context,
        label=context.get("label"),
        machine={**context["versions"], **context.get("hardware", {})},
        verdict=curve.verdict(),
        # The one thing that is not escaped here: matplotlib has escaped its texts.
        figure=Markup(efficiency_svg(curve.points)),
        narrow_figure=Markup(efficiency_svg(curve.points, narrow=True)),
        arms=[(arm, _MEANINGS[arm]) for arm in arms if arm in _MEANINGS],
        points=_by_fraction(curve.points),
        differences=_by_fraction(_forest(curve.differences)),
        needed={arm: str(needed) for arm, needed in curve.needed.items() if arm != "scratch"},
        forest_width=_FOREST_WIDTH,
    )


def _by_fraction(frame: pd.DataFrame) -> list[list[dict[Hashable, Any]]]:
    return [group.to_dict("records") for _, group in frame.groupby("fraction", sort=True)]


def _forest(differences: pd.DataFrame) -> pd.DataFrame:
    """The differences, arm by arm, with the places (px) of zero and of their ends on one scale."""
    arms = list(dict.fromkeys(differences["arm"]))
    rows = differences.sort_values("arm", key=lambda column: column.map(arms.index), kind="stable")
    names = ["low", "high", "difference"]
    ends = rows[names].to_numpy(float)
    known = np.append(ends[np.isfinite(ends)], 0.0)
    pixels = (_FOREST_WIDTH - 12) / (np.ptp(known) or 1.0)
    places = np.column_stack([ends, np.zeros(len(ends))])
    places = np.round(6 + pixels * (places - known.min()), 1)
    return rows.assign(**{f"{name}_px": places[:, i] for i, name in enumerate([*names, "zero"])})


def _number(value: float, sign: bool = False) -> str:
    """Three decimals, as AUROC is usually given; a true minus, so that signs line up."""
    return f"{value:{'+' if sign else ''}.3f}".replace("-", "−")


def _p(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def _share(fraction: float) -> str:
    return f"{100 * fraction:g}%"


def _count(n: float) -> str:
    return f"{n:,.0f}"


def _because(reason: str) -> str:
    return reason if reason.startswith("n/a") else f"n/a, because {reason}"


TEMPLATES = jinja2.Environment(
    loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
TEMPLATES.filters |= {"number": _number, "p": _p, "share": _share, "count": _count, "because": _because}
TEMPLATES.tests["nan"] = math.isnan
