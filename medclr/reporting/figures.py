"""Figures of reports: as files for a paper, and as SVG that takes its colours from the page around it.

Nothing here touches matplotlib's global state, and the same points give the same bytes.
"""

import io
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backend_bases import FigureCanvasBase
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_pdf import FigureCanvasPdf
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.markers import MarkerStyle
from matplotlib.path import Path as Outline
from matplotlib.transforms import Affine2D

from medclr.evaluation.plot import (
    INK,
    PAPER,
    RULE,
    SHOT_STYLES,
    Style,
    arm_styles,
    draw_curve,
    draw_domains,
    draw_shots,
)
from medclr.reporting.run import write_atomic, writing

Draw = Callable[[Axes], None]

# In a page each colour is a property of its style sheet, so that a dark page lightens it.
_PAGE_COLOURS = {
    INK: "currentColor",
    RULE: "var(--rule)",
    PAPER: "var(--paper)",
    "#0072b2": "var(--blue)",
    "#d55e00": "var(--vermilion)",
    "#606060": "var(--grey)",
    "#007a5a": "var(--green)",
    "#b0568a": "var(--purple)",
    "#8a7100": "var(--ochre)",
}
_COLUMN, _PAGE = 3.5, 7.2  # inches: one and two columns of most journals
_MOST_IN_COLUMN = 6  # arms
_SOURCE_ONLY, _AUTO, _TARGET_TRAINED = "source-only", "auto", "target-trained"


def efficiency_figure(points: pd.DataFrame, title: str, paths: list[Path]) -> None:
    """AUROC against the share of labelled patients, one line per arm with its 95% intervals, written to files.

    As wide as one column of a paper, or as two where there are more than 6 arms; its title is in the metadata, for a
    paper has captions.

    points: columns arm, fraction, n_patients, auroc, low, high (`Curve.points`; a point without a number is left
    out); title: plain text; paths: each .png, .svg or .pdf. Raises MedclrError where a file cannot be written.
    """
    arms = points["arm"].unique()
    # A row of the legend takes room of its own.
    size = (_COLUMN, 3.0 + 0.13 * len(arms)) if len(arms) <= _MOST_IN_COLUMN else (_PAGE, 4.4)
    _write(partial(draw_curve, points=points, narrow=size[0] == _COLUMN), title, size, paths)


def efficiency_svg(points: pd.DataFrame, narrow: bool = False) -> str:
    """The same figure as an <svg> element for a page that defines the colours of `_PAGE_COLOURS`; without a legend.

    narrow: drawn for the width of a phone. Text stays text, in the page's own font and colour.
    """
    what = "AUROC against the share of labelled patients"
    return _svg(partial(draw_curve, points=points, narrow=narrow), (3.6, 3.6) if narrow else (7.4, 4.0), narrow, what)


def shift_figure(domains: pd.DataFrame, title: str, paths: list[Path]) -> None:
    """AUROC of each domain with its 95% interval, written to files as wide as one column of a paper.

    domains: `Shift.domains`; title, paths: as for `efficiency_figure`.
    """
    _write(partial(draw_domains, domains=domains), title, (_COLUMN, _height(domains)), paths)


def shift_svg(domains: pd.DataFrame, narrow: bool = False) -> str:
    """The same figure as an <svg> element for a page, as `efficiency_svg` is."""
    size = (3.6 if narrow else 7.4, 1.15 * _height(domains))
    return _svg(partial(draw_domains, domains=domains), size, narrow, "AUROC of each domain")


def adapt_figure(points: pd.DataFrame, title: str, paths: list[Path]) -> None:
    """AUROC of each method on the target with its 95% interval, drawn as domains are; source-only is filled.

    points: `Adaptation.points`; title, paths: as for `efficiency_figure`.
    """
    draw, height = _methods(points)
    _write(draw, title, (_COLUMN, height), paths)


def adapt_svg(points: pd.DataFrame, narrow: bool = False) -> str:
    """The same figure as an <svg> element for a page, as `efficiency_svg` is."""
    draw, height = _methods(points)
    return _svg(draw, (3.6 if narrow else 7.4, 1.15 * height), narrow, "AUROC of each method on the target")


def shots_figure(points: pd.DataFrame, bound: float, title: str, paths: list[Path]) -> None:
    """AUROC against labels per class of the target, as wide as one column of a paper.

    points, bound: as for `draw_shots`; title, paths: as for `efficiency_figure`.
    """
    _write(partial(draw_shots, points=points, bound=bound), title, (_COLUMN, 3.2), paths)


def shots_svg(points: pd.DataFrame, bound: float, narrow: bool = False) -> str:
    """The same figure as an <svg> element for a page, as `efficiency_svg` is; `shot_swatches` are its legend."""
    draw, size = partial(draw_shots, points=points, bound=bound), (3.6, 3.6) if narrow else (7.4, 4.0)
    return _svg(draw, size, narrow, "AUROC against labels per class of the target")


def shot_swatches(methods: Sequence[str]) -> dict[str, str]:
    """As `arm_swatches`, of the methods of `shots_svg`."""
    return _swatches({method: SHOT_STYLES[method] for method in methods})


def left_out_figure(points: pd.DataFrame, title: str, paths: list[Path]) -> None:
    """AUROC on each domain, left out in turn, by source-only and what it is to be compared with.

    points: `LeaveOneOut.points`; title, paths: as for `efficiency_figure`.
    """
    draw, height = _left_out(points)
    _write(draw, title, (_COLUMN, height), paths)


def left_out_svg(points: pd.DataFrame, narrow: bool = False) -> str:
    """The same figure as an <svg> element for a page, as `efficiency_svg` is."""
    draw, height = _left_out(points)
    return _svg(draw, (3.6 if narrow else 7.4, 1.15 * height), narrow, "AUROC on each domain, left out in turn")


def _left_out(points: pd.DataFrame) -> tuple[Draw, float]:
    """How to draw them, and how many inches high: all methods, or of those between the one that was chosen."""
    known = points[points["reason"] == ""]
    if _AUTO in set(known["method"]):
        known = known[known["method"].isin([_SOURCE_ONLY, _AUTO, _TARGET_TRAINED])]
    rows = pd.DataFrame({"column": known["domain"], "domain": known["method"]}).join(known[["auroc", "low", "high"]])
    rows["is_source"] = rows["domain"] == _SOURCE_ONLY
    return partial(draw_domains, domains=rows, dotted=_SOURCE_ONLY), _height(rows)


def _methods(points: pd.DataFrame) -> tuple[Draw, float]:
    """How to draw them, and how many inches high."""
    rows = points.rename(columns={"method": "domain"})
    rows = rows.assign(column="on the target", is_source=rows["domain"] == _SOURCE_ONLY)
    return partial(draw_domains, domains=rows, dotted=_SOURCE_ONLY), _height(rows)


def _height(domains: pd.DataFrame) -> float:
    """Inches: a line for each domain, and one above those of a column."""
    return 0.75 + 0.2 * (len(domains) + domains["column"].nunique())


def arm_swatches(arms: Sequence[str]) -> dict[str, str]:
    """Of each arm a piece of its line with its marker, as <svg> for the same page: the legend of `efficiency_svg`."""
    return _swatches(arm_styles(arms))


def _swatches(styles: Mapping[str, Style]) -> dict[str, str]:
    swatches = {}
    for arm, (colour, marker, dash, filled) in styles.items():
        shape = MarkerStyle(marker)
        path = shape.get_path().transformed(shape.get_transform() + Affine2D().scale(7.5, -7.5).translate(18, 6))
        outline = "".join(
            f"{_SVG_STEPS[code]}{' '.join(f'{value:.1f}' for value in ends)}" for ends, code in path.iter_segments()
        )
        ink = _PAGE_COLOURS.get(colour, colour)
        swatches[arm] = (
            f'<svg class="swatch" width="36" height="12" aria-hidden="true"><path d="M1 6H35" stroke="{ink}" '
            f'stroke-width="1.7" stroke-dasharray="{_SVG_DASHES[dash]}"/><path d="{outline}" stroke="{ink}" '
            f'stroke-width="1.4" fill="{ink if filled else _PAGE_COLOURS[PAPER]}"/></svg>'
        )
    return swatches


_SVG_STEPS = {
    Outline.MOVETO: "M",
    Outline.LINETO: "L",
    Outline.CURVE3: "Q",
    Outline.CURVE4: "C",
    Outline.CLOSEPOLY: "Z",
}
_SVG_DASHES = {"-": "none", "--": "6 3", "-.": "7 3 1.5 3", ":": "1.5 2.5"}


def _write(draw: Draw, title: str, size: tuple[float, float], paths: list[Path]) -> None:
    for path in paths:
        with writing(path.parent):
            write_atomic(path, _rendered(draw, title, size, path.suffix.lstrip(".")))


def _svg(draw: Draw, size: tuple[float, float], narrow: bool, what: str) -> str:
    text = _rendered(draw, "", size, "").decode()
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
        rf'<svg class="{kind}" \1 role="img" aria-label="{what}; the numbers are in the table that follows">',
        text,
        count=1,
    )


def _rendered(draw: Draw, title: str, size: tuple[float, float], kind: str) -> bytes:
    """kind: png, svg or pdf: of a file; empty: SVG for a page."""
    if kind not in ("png", "svg", "pdf", ""):
        raise ValueError(f"figure of kind {kind!r}; png, svg and pdf are known")
    narrow = size[0] < 5
    settings: dict[Any, Any] = {
        "font.family": "DejaVu Sans",
        "font.size": 7.5 if narrow and kind else 8.5 if kind else 9.5,
        "svg.fonttype": "path" if kind else "none",
        "svg.hashsalt": f"medclr {size[0]:g}",  # ids that are the same every time, and other in each figure of a page
        "pdf.fonttype": 42,  # TrueType, embedded: journals refuse Type 3
        "text.color": INK,
        "axes.edgecolor": INK,
        "axes.labelcolor": INK,
        "xtick.color": INK,
        "ytick.color": INK,
        "text.parse_math": False,
    }
    with matplotlib.rc_context(settings):
        figure = Figure(figsize=size, layout="constrained", facecolor="white")
        axes = figure.add_subplot()
        draw(axes)
        if not kind:
            figure.patch.set_visible(False)
            if legend := axes.get_legend():
                legend.remove()
        buffer = io.BytesIO()
        canvas, dpi, metadata = _FORMATS[kind]
        named = {"Title": title} if title else {}
        canvas(figure).print_figure(buffer, format=kind or "svg", dpi=dpi, facecolor="auto", metadata=metadata | named)
        return buffer.getvalue()


_NO_SVG_DATES = {"Date": None, "Creator": None, "Format": None, "Type": None}
_FORMATS: dict[str, tuple[type[FigureCanvasBase], float, dict[str, Any]]] = {
    "png": (FigureCanvasAgg, 300, {"Software": None}),
    "svg": (FigureCanvasSVG, 72, _NO_SVG_DATES),
    "pdf": (FigureCanvasPdf, 72, {"CreationDate": None, "Creator": None, "Producer": None}),
    "": (FigureCanvasSVG, 72, _NO_SVG_DATES),
}
