"""The label-efficiency figure: as a file for a manuscript, and as SVG that takes its colours from the page around it.

Nothing here touches matplotlib's global state, and the same points give the same bytes.
"""

import io
import re
import textwrap
from pathlib import Path
from typing import Any

import matplotlib
import pandas as pd
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from medclr.evaluation.plot import INK, RULE, draw_curve
from medclr.reporting.run import write_atomic, writing

# In a page each colour is a property of its style sheet, so that a dark page lightens it.
_PAGE_COLOURS = {
    INK: "currentColor",
    RULE: "var(--rule)",
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
        "text.color": INK,
        "axes.edgecolor": INK,
        "axes.labelcolor": INK,
        "xtick.color": INK,
        "ytick.color": INK,
        "text.parse_math": False,
    }
    with matplotlib.rc_context(settings):
        figure = Figure(figsize=size, layout="constrained")
        draw_curve(figure.add_subplot(), points, narrow=size[0] < 5)
        if title:
            figure.suptitle(textwrap.fill(title, 80), x=0.02, ha="left", fontsize=11, fontweight="bold")
        buffer = io.BytesIO()
        if suffix == "png":
            figure.set_facecolor("white")
            FigureCanvasAgg(figure).print_figure(buffer, format="png", dpi=200, metadata={"Software": None})
        else:
            figure.patch.set_visible(text_as_shapes)
            metadata = {"Date": None, "Creator": None, "Format": None, "Type": None}
            FigureCanvasSVG(figure).print_figure(buffer, format="svg", metadata=metadata)
        return buffer.getvalue()
