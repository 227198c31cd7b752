"""Figures, drawn on matplotlib Axes that the caller has; no global state is read or set."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pandas as pd

if TYPE_CHECKING:  # matplotlib is loaded by those who draw
    from matplotlib.axes import Axes

INK, RULE, PAPER = "#1b1f24", "#d9dce1", "#ffffff"
PRETRAINED_METHODS = ("linear", "knn", "attention", "lp-ft", "full", "distill", "auto")
# By method, after Okabe and Ito's palette; shapes differ too, so that print without colour and any eye tell them apart.
_METHODS = {
    "linear": ("#d55e00", "s"),
    "knn": ("#8a7100", "P"),
    "attention": ("#6f5bc9", "<"),
    "lp-ft": ("#b0568a", "v"),
    "full": ("#0072b2", "o"),
    "distill": ("#2c7da0", "d"),
    "auto": (INK, "X"),
    "scratch": ("#606060", "^"),
    "pca": ("#007a5a", "D"),
}
_MOST_LETTERS = 20  # of a name beside an axis
_DASHES = ("-", "--", "-.")  # by group of encoders
_SPARE = [("#56a0d8", "p"), ("#b07000", "*"), ("#707000", "h")]


class Style(NamedTuple):
    """How an arm is drawn: colour and marker by its method, dash and filling by its group of encoders."""

    colour: str
    marker: str
    dash: str
    filled: bool


# Of `draw_shots`. What has no adaptation before it is hollow.
SHOT_STYLES = {
    "source+target": Style(*_METHODS["linear"], "-", False),
    "adapted+target": Style(*_METHODS["full"], "-", True),
    "target-alone": Style(*_METHODS["pca"], ":", False),
    "lp-ft": Style(*_METHODS["lp-ft"], "--", True),
}


def arm_styles(arms: Sequence[str]) -> dict[str, Style]:
    """A style for each arm: baselines are dotted, the first group of encoders solid and filled, the second dashed."""
    parts = {arm: group_and_method(arm) for arm in arms}
    groups = list(dict.fromkeys(group for group, method in parts.values() if group))
    others = [arm for arm, (_, method) in parts.items() if method not in _METHODS]
    styles = {}
    for arm, (group, method) in parts.items():
        place = groups.index(group) if group else 0
        colour, marker = _METHODS[method] if method in _METHODS else _SPARE[others.index(arm) % len(_SPARE)]
        dash = ":" if arm in _METHODS else _DASHES[place % len(_DASHES)]
        styles[arm] = Style(colour, marker, dash, filled=place % 2 == 0)
    return styles


def group_and_method(arm: str) -> tuple[str, str]:
    """("simclr", "lp-ft") of simclr-lp-ft; ("", the arm) of a baseline."""
    for method in PRETRAINED_METHODS:
        if arm.endswith(f"-{method}"):
            return arm.removesuffix(f"-{method}"), method
    return "", arm


def draw_curve(axes: "Axes", points: pd.DataFrame, narrow: bool = False) -> None:
    """AUROC against the share of labelled patients, one line per arm with its 95% intervals, and a legend above.

    axes: empty ones, of their own figure; points: columns arm, fraction, n_patients, auroc, low, high (`Curve.points`;
    a point without a number is left out); narrow: the axes are no wider than a phone.
    """
    axes.patch.set_visible(False)
    known = points.dropna(subset=["auroc"])
    arms = list(dict.fromkeys(points["arm"]))
    fractions = sorted(set(points["fraction"]))
    styles = arm_styles(arms)
    shifts = _shifts(fractions, len(arms))
    for arm, shift in zip(arms, shifts, strict=True):
        rows = known[known["arm"] == arm].sort_values("fraction")
        _line(axes, rows["fraction"].to_numpy(float) * 10**shift, rows, styles[arm], arm)
    _frame(axes, points, known, fractions, narrow)
    if fractions:
        margin = shifts.max() + max(0.04 * np.log10(fractions[-1] / fractions[0]), 0.03)
        axes.set_xlim(fractions[0] / 10**margin, fractions[-1] * 10**margin)
    if arms:
        size = 7.5 if narrow else 8.5
        fits = (42 if narrow else 84) // (max(map(len, arms)) + 7)
        axes.legend(
            loc="lower left", bbox_to_anchor=(-0.01, 1.01), ncols=min(max(fits, 1), 4), frameon=False, handlelength=2.6,
            columnspacing=1.5, borderaxespad=0, fontsize=size,
        )  # fmt: skip


def draw_shots(axes: "Axes", points: pd.DataFrame, bound: float) -> None:
    """AUROC against labels per class of the target, one line per method with its 95% intervals, and a legend above.

    axes: empty ones, of their own figure; points: columns method, shots, auroc, low, high (`Shots.points`); bound:
    AUROC with the labels of a whole half, or NaN.
    """
    axes.patch.set_visible(False)
    known = points.dropna(subset=["auroc"])
    methods, shots = list(dict.fromkeys(points["method"])), np.array(sorted(set(points["shots"])))
    # On the logarithm of one label more than there are: there is a point without any.
    places = np.log10(1 + shots)
    shifts = _shifts(list(1 + shots), len(methods))
    for method, shift in zip(methods, shifts, strict=True):
        rows = known[known["method"] == method].sort_values("shots")
        _line(axes, np.log10(1 + rows["shots"].to_numpy(float)) + shift, rows, SHOT_STYLES[method], method)
    if np.isfinite(bound):
        axes.axhline(bound, color=INK, linewidth=0.8, linestyle=(0, (4, 3)))
        axes.annotate(
            "target-trained", (0, bound), xycoords=("axes fraction", "data"), xytext=(2, 3),
            textcoords="offset points", fontsize="smaller",
        )  # fmt: skip
    axes.set_xticks(places, [str(number) for number in shots])
    axes.set_xlim(places[0] - shifts.max() - 0.05, places[-1] + shifts.max() + 0.05)
    axes.set_xlabel("labels per class of the target")
    axes.set_ylabel("AUROC on the target")
    _auroc_axis(axes, known)
    axes.legend(
        loc="lower left", bbox_to_anchor=(-0.01, 1.01), ncols=2, frameon=False, handlelength=2.6, columnspacing=1.5,
        borderaxespad=0, fontsize=7.5,
    )  # fmt: skip


def draw_domains(axes: "Axes", domains: pd.DataFrame, dotted: str = "source") -> None:
    """AUROC of each domain with its 95% interval, a line each under the name of its column; the source is filled.

    axes: empty ones, of their own figure; domains: columns column, domain, is_source, auroc, low, high
    (`Shift.domains`; one without a number has its line, and nothing on it); dotted: what the source is called.
    """
    axes.patch.set_visible(False)
    place, places, names = 0, [], []
    for column, rows in domains.groupby("column", sort=False):
        places.append(place)
        names.append(_short(str(column)))
        source = rows.loc[rows["is_source"], "auroc"].to_numpy(float)
        axes.vlines(source[np.isfinite(source)], place, place + len(rows), color=INK, linewidth=0.8, linestyle=":")
        for row in rows.to_dict("records"):
            place += 1
            places.append(place)
            names.append(f"   {_short(row['domain'])}")
            colour = _METHODS["full" if row["is_source"] else "linear"][0]
            axes.hlines(place, row["low"], row["high"], color=colour, linewidth=1.4)
            fill = colour if row["is_source"] else PAPER
            axes.plot(row["auroc"], place, marker="o", color=colour, markerfacecolor=fill, markersize=5)
        place += 1
    axes.set_yticks(places, names)
    axes.set_ylim(place - 0.4, -0.6)
    known = domains[["auroc", "low"]].to_numpy(float)
    lowest = float(np.nanmin(known)) if np.isfinite(known).any() else 0.5
    axes.set_xlim(max(0.0, min(0.48, lowest - 0.02)), 1.005)
    axes.axvline(0.5, color=INK, linewidth=0.8, linestyle=(0, (1, 3)))
    axes.set_xlabel(f"AUROC (dotted: {dotted}, chance)")
    axes.grid(axis="x", color=RULE, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(length=0, pad=5)
    axes.spines[["top", "right", "left"]].set_visible(False)


def _short(name: str) -> str:
    """A name that leaves room for the axes: of a long one the beginning and the end, by which like ones differ."""
    return name if len(name) <= _MOST_LETTERS else f"{name[: _MOST_LETTERS // 2]}…{name[1 - _MOST_LETTERS // 2 :]}"


def _shifts(fractions: Sequence[float], n_arms: int) -> np.ndarray:
    """How far (in decades) each arm stands from its fraction: a hair, so that intervals stay apart where arms agree."""
    gaps = np.diff(np.log10(fractions))
    step = min(0.02 * max(gaps.sum(), 0.6), 0.7 * gaps.min() / n_arms) if len(gaps) else 0.02
    return step * (np.arange(n_arms) - (n_arms - 1) / 2)


def _frame(axes: "Axes", points: pd.DataFrame, known: pd.DataFrame, fractions: Sequence[float], narrow: bool) -> None:
    axes.set_xscale("log")
    axes.set_xticks(fractions, [f"{100 * fraction:g}%" for fraction in fractions])
    for fraction in fractions:
        # Its own text, not a second line of the tick: SVG then centres it in whatever font the page has.
        axes.annotate(
            _number(points, fraction, narrow), (fraction, 0), xycoords=("data", "axes fraction"), xytext=(0, -2.8),
            textcoords="offset fontsize", ha="center",
        )  # fmt: skip
    axes.minorticks_off()
    axes.set_xlabel(f"labelled {'' if narrow else 'training '}patients: share and number")
    axes.xaxis.labelpad = 2 * float(axes.xaxis.label.get_fontsize())  # below the numbers
    axes.set_ylabel("AUROC on test patients")
    _auroc_axis(axes, known)


def _line(axes: "Axes", x: np.ndarray, rows: pd.DataFrame, style: Style, label: str) -> None:
    """Points at x, in the order of the rows (columns auroc, low, high), with their intervals."""
    colour, marker, dash, filled = style
    y, low, high = (rows[name].to_numpy(float) for name in ("auroc", "low", "high"))
    axes.vlines(x, low, high, color=colour, linewidth=1.2, alpha=0.5)
    axes.plot(
        x, y, color=colour, marker=marker, linestyle=dash, linewidth=1.3, markersize=5, label=label,
        markerfacecolor=colour if filled else PAPER, markeredgecolor=PAPER if filled else colour,
        markeredgewidth=0.5 if filled else 1.1,
    )  # fmt: skip


def _auroc_axis(axes: "Axes", known: pd.DataFrame) -> None:
    """The vertical axis of points that are known, chance, and what frames them."""
    lows = known[["auroc", "low"]].to_numpy(float)
    lowest = float(np.nanmin(lows)) if np.isfinite(lows).any() else 0.5
    # Chance stays in sight: an axis cut off above it makes small gains look large.
    axes.set_ylim(max(0.0, min(0.48, np.floor(lowest * 20) / 20 - 0.02)), 1.005)
    axes.axhline(0.5, color=INK, linewidth=0.8, linestyle=(0, (1, 3)))
    axes.annotate(
        "chance", (1, 0.5), xycoords=("axes fraction", "data"), xytext=(-2, 3), textcoords="offset points",
        ha="right", fontsize="smaller",
    )  # fmt: skip
    if known.empty:
        axes.text(0.5, 0.6, "no point could be computed", transform=axes.transAxes, ha="center")
    axes.grid(axis="y", color=RULE, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(length=0, pad=5)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_linewidth(0.8)


def _number(points: pd.DataFrame, fraction: float, narrow: bool) -> str:
    counts = points.loc[points["fraction"] == fraction, "n_patients"].dropna()
    return "" if counts.empty else f"{'' if narrow else 'n = '}{counts.iloc[0]:,.0f}"
