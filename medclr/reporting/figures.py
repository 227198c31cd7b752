"""The label-efficiency figure: as a file for a manuscript, and as SVG that takes its colours from the page around it.

Nothing here touches matplotlib's global state, and the same points give the same bytes.
"""

import io
import re
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from medclr.reporting.run import write_atomic, writing

# Okabe and Ito's palette, told apart by any eye; shape and dash tell the arms apart without colour too.
_STYLES: dict[str, tuple[str, str, str]] = {
    "simclr-full": ("#0072b2", "o", "-"),
    "simclr-linear": ("#d55e00", "s", "-"),
    "simclr-lp-ft": ("#cc79a7", "v", "-."),
    "scratch": ("#606060", "^", "--"),
    "pca": ("#009e73", "D", ":"),
}
_SPARE_STYLES = [("#56b4e9", "P", "-"), ("#e69f00", "X", "--"), ("#8a7f00", "*", ":")]
_INK, _RULE = "#1b1f24", "#d9dce1"
# In a page each colour is a property of its style sheet, so that a dark page lightens it.
_PAGE_COLOURS = {
    _INK: "currentColor",
    _RULE: "var(--rule)",
    "#0072b2": "var(--blue)",
    "#d55e00": "var(--vermilion)",
    "#606060": "var(--grey)",
    "#009e73": "var(--green)",
}


def efficiency_figure(points: pd.DataFrame, title: str, paths: list[Path]) -> None:
    """AUROC against the share of labelled patients, one line per arm with its 95% intervals, written to files.

    points: columns arm, fraction, n_patients, auroc, low, high (`Curve.points`; a point without a number is left
    out); title: plain text; paths: each .png or .svg. Raises MedclrError where a file cannot be written.
    """
    for path in paths:
        with writing(path.parent):
            write_atomic(path, _rendered(points, title, (7.2, 4.6), path.suffix.lstrip("."), text_as_shapes=True))


def efficiency_svg(points: pd.DataFrame, narrow: bool = False) -> str:
    """The same figure as an <svg> element for a page that defines --rule, --blue, --vermilion, --grey and --green.

    narrow: drawn for the width of a phone. Text stays text, in the page's own font and colour.
    """
    size = (3.6, 3.9) if narrow else (7.4, 4.3)
    text = _rendered(points, "", size, "svg", text_as_shapes=False).decode()
    text = text[text.index("<svg") :]
    for colour, name in _PAGE_COLOURS.items():
        text = text.replace(colour, name)
    text = text.replace(" font-family: 'DejaVu Sans';", "")
    text = text.replace("xlink:href", "href")
    text = re.sub(r'<g id="[^"]*"', "<g", text)  # two figures in one page would repeat these
    text = re.sub(r"\s*<defs>\s*<style.*?</style>\s*</defs>", "", text, flags=re.DOTALL)  # it would style the page
    kind = "narrow" if narrow else "wide"
    return re.sub(
        r'<svg [^>]*?(viewBox="[^"]+")[^>]*>',
        rf'<svg class="{kind}" \1 role="img" aria-label="AUROC against the share of labelled patients; '
        'the numbers are in the table that follows">',
        text,
        count=1,
    )


def _rendered(points: pd.DataFrame, title: str, size: tuple[float, float], suffix: str, text_as_shapes: bool) -> bytes:
    if suffix not in ("png", "svg"):
        raise ValueError(f"figure of kind {suffix!r}; png and svg are known")
    settings: dict[Any, Any] = {
        "font.family": "DejaVu Sans",
        "font.size": 9.5,
        "svg.fonttype": "path" if text_as_shapes else "none",
        "svg.hashsalt": f"medclr {size[0]:g}",  # ids that are the same every time, and other in each figure of a page
        "text.color": _INK,
        "axes.edgecolor": _INK,
        "axes.labelcolor": _INK,
        "xtick.color": _INK,
        "ytick.color": _INK,
        "text.parse_math": False,
    }
    with matplotlib.rc_context(settings):
        figure = Figure(figsize=size, layout="constrained")
        _draw(figure, points, title, narrow=size[0] < 5)
        buffer = io.BytesIO()
        if suffix == "png":
            figure.set_facecolor("white")
            FigureCanvasAgg(figure).print_figure(buffer, format="png", dpi=200, metadata={"Software": None})
        else:
            figure.patch.set_visible(text_as_shapes)
            metadata = {"Date": None, "Creator": None, "Format": None, "Type": None}
            FigureCanvasSVG(figure).print_figure(buffer, format="svg", metadata=metadata)
        return buffer.getvalue()


def _draw(figure: Figure, points: pd.DataFrame, title: str, narrow: bool) -> None:
    axes = figure.add_subplot()
    axes.patch.set_visible(False)
    known = points.dropna(subset=["auroc"])
    arms = list(dict.fromkeys(points["arm"]))
    fractions = sorted(set(points["fraction"]))
    styles = _styles(arms)
    # Side by side, a hair apart, so that intervals can be read where arms agree.
    step = 0.02 * max(np.log10(fractions[-1] / fractions[0]), 0.6) if fractions else 0.0
    for place, arm in enumerate(arms):
        rows = known[known["arm"] == arm].sort_values("fraction")
        colour, marker, dash = styles[arm]
        x = rows["fraction"].to_numpy(float) * 10 ** ((place - (len(arms) - 1) / 2) * step)
        y, low, high = (rows[name].to_numpy(float) for name in ("auroc", "low", "high"))
        axes.vlines(x, low, high, color=colour, linewidth=1.6, alpha=0.55)
        axes.plot(
            x, y, color=colour, marker=marker, linestyle=dash, linewidth=1.9, markersize=6,
            label=arm,
        )  # fmt: skip
    _axes_of(axes, points, known, fractions, narrow)
    if title:
        figure.suptitle(textwrap.fill(title, 80), x=0.02, ha="left", fontsize=11, fontweight="bold")
    if arms:
        axes.legend(
            loc="lower left", bbox_to_anchor=(-0.01, 1.01), ncols=2 if narrow else 4, frameon=False, handlelength=2.4,
            columnspacing=1.5, borderaxespad=0, fontsize=9 if narrow else 9.5,
        )  # fmt: skip


def _axes_of(axes: Any, points: pd.DataFrame, known: pd.DataFrame, fractions: Sequence[float], narrow: bool) -> None:
    axes.set_xscale("log")
    axes.set_xticks(fractions, [f"{100 * fraction:g}%" for fraction in fractions])
    for fraction in fractions:
        # Its own text, not a second line of the tick: SVG then centres it in whatever font the page has.
        axes.annotate(
            _number(points, fraction), (fraction, 0), xycoords=("data", "axes fraction"), xytext=(0, -28),
            textcoords="offset points", ha="center",
        )  # fmt: skip
    axes.minorticks_off()
    if fractions:
        margin = (fractions[-1] / fractions[0]) ** 0.07 if len(fractions) > 1 else 2.0
        axes.set_xlim(fractions[0] / margin, fractions[-1] * margin)
    lows = known[["auroc", "low"]].to_numpy(float)
    lowest = float(np.nanmin(lows)) if np.isfinite(lows).any() else 0.5
    # Chance stays in sight: an axis cut off above it makes small gains look large.
    axes.set_ylim(max(0.0, min(0.48, np.floor(lowest * 20) / 20 - 0.02)), 1.005)
    axes.axhline(0.5, color=_INK, linewidth=0.8, linestyle=(0, (1, 3)))
    axes.annotate(
        "chance", (1, 0.5), xycoords=("axes fraction", "data"), xytext=(-2, 3), textcoords="offset points",
        ha="right", fontsize=8.5,
    )  # fmt: skip
    if known.empty:
        axes.text(0.5, 0.6, "no point could be computed", transform=axes.transAxes, ha="center")
    label = "labelled training patients" if narrow else "labelled training patients: share and number"
    axes.set_xlabel(label, labelpad=20)
    axes.set_ylabel("AUROC on test patients")
    axes.grid(axis="y", color=_RULE, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(length=0, pad=5)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_linewidth(0.8)


def _number(points: pd.DataFrame, fraction: float) -> str:
    counts = points.loc[points["fraction"] == fraction, "n_patients"].dropna()
    return "" if counts.empty else f"n = {counts.iloc[0]:,.0f}"


def _styles(arms: Sequence[str]) -> dict[str, tuple[str, str, str]]:
    others = [arm for arm in arms if arm not in _STYLES]
    return _STYLES | {arm: _SPARE_STYLES[i % len(_SPARE_STYLES)] for i, arm in enumerate(others)}
