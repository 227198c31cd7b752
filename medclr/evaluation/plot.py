"""The label-efficiency curve, drawn on matplotlib Axes that the caller has; no global state is read or set."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

if TYPE_CHECKING:  # matplotlib is loaded by those who draw
    from matplotlib.axes import Axes

INK, RULE = "#1b1f24", "#d9dce1"
# Okabe and Ito's palette, told apart by any eye; shape and dash tell the arms apart without colour too.
_STYLES: dict[str, tuple[str, str, str]] = {
    "simclr-full": ("#0072b2", "o", "-"),
    "simclr-linear": ("#d55e00", "s", "-"),
    "simclr-lp-ft": ("#cc79a7", "v", "-."),
    "scratch": ("#606060", "^", "--"),
    "pca": ("#009e73", "D", ":"),
}
_SPARE_STYLES = [("#56b4e9", "P", "-"), ("#e69f00", "X", "--"), ("#8a7f00", "*", ":")]


def draw_curve(axes: "Axes", points: pd.DataFrame, narrow: bool = False) -> None:
    """AUROC against the share of labelled patients, one line per arm with its 95% intervals, and a legend above.

    axes: empty ones, of their own figure; points: columns arm, fraction, n_patients, auroc, low, high (`Curve.points`;
    a point without a number is left out); narrow: the axes are no wider than a phone.
    """
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
    _frame(axes, points, known, fractions, narrow)
    if arms:
        axes.legend(
            loc="lower left", bbox_to_anchor=(-0.01, 1.01), ncols=2 if narrow else 4, frameon=False, handlelength=2.4,
            columnspacing=1.5, borderaxespad=0, fontsize=9 if narrow else 9.5,
        )  # fmt: skip


def _frame(axes: "Axes", points: pd.DataFrame, known: pd.DataFrame, fractions: Sequence[float], narrow: bool) -> None:
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
    axes.axhline(0.5, color=INK, linewidth=0.8, linestyle=(0, (1, 3)))
    axes.annotate(
        "chance", (1, 0.5), xycoords=("axes fraction", "data"), xytext=(-2, 3), textcoords="offset points",
        ha="right", fontsize=8.5,
    )  # fmt: skip
    if known.empty:
        axes.text(0.5, 0.6, "no point could be computed", transform=axes.transAxes, ha="center")
    label = "labelled training patients" if narrow else "labelled training patients: share and number"
    axes.set_xlabel(label, labelpad=20)
    axes.set_ylabel("AUROC on test patients")
    axes.grid(axis="y", color=RULE, linewidth=0.8)
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
