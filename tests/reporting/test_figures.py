import os
import re
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from PIL import Image

from medclr.errors import MedclrError
from medclr.evaluation.plot import arm_styles, draw_curve
from medclr.reporting.figures import arm_swatches, efficiency_figure, efficiency_svg


def points(arms: tuple[str, ...] = ("scratch", "simclr-linear", "pca")) -> pd.DataFrame:
    rows = [
        {"arm": arm, "fraction": fraction, "n_patients": n, "auroc": 0.6 + 0.1 * i + 0.03 * j, "reason": ""}
        for j, arm in enumerate(arms)
        for i, (fraction, n) in enumerate([(0.01, 4), (0.1, 38), (1.0, 1388)])
    ]
    frame = pd.DataFrame(rows)
    return frame.assign(low=frame["auroc"] - 0.05, high=frame["auroc"] + 0.05)


def texts(svg: str) -> list[str]:
    return [element.text or "" for element in ET.fromstring(svg).iter() if element.tag.endswith("text")]


def test_files_are_pictures_and_the_same_each_time(tmp_path: Path) -> None:
    paths = [tmp_path / f"curve.{kind}" for kind in ("png", "svg", "pdf")]
    efficiency_figure(points(), "Label efficiency: $a_b$", paths)
    first = [path.read_bytes() for path in paths]
    efficiency_figure(points(), "Label efficiency: $a_b$", paths)
    assert [path.read_bytes() for path in paths] == first
    assert set(tmp_path.iterdir()) == set(paths)
    with Image.open(paths[0]) as image:
        assert image.size[0] == 3.5 * 300
        assert image.getpixel((2, 2)) == (255, 255, 255, 255)
        assert image.info["Title"] == "Label efficiency: $a_b$"
        assert not {"Software", "Creation Time"} & image.info.keys()
    assert b"dc:date" not in first[1]
    ET.fromstring(first[1])
    assert b"/FontFile2" in first[2]  # embedded, as TrueType
    assert b"/Type3" not in first[2]
    assert b"/Title (Label efficiency: $a_b$)" in first[2]
    for name in (b"/CreationDate", b"/Producer", b"/Creator"):
        assert name not in first[2]


def test_bytes_do_not_hang_on_the_order_of_sets(tmp_path: Path) -> None:
    names = ["x.pdf", "x.svg"]
    code = f"from test_figures import *; efficiency_figure(points(), 'x', [Path(name) for name in {names}])"
    path = os.pathsep.join([str(Path(__file__).parent), *filter(None, sys.path)])
    other = str(1 + int(os.environ.get("PYTHONHASHSEED", "0").replace("random", "0")))
    environment = os.environ | {"PYTHONHASHSEED": other, "PYTHONPATH": path}
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, check=True)
    theirs = [(tmp_path / name).read_bytes() for name in names]
    efficiency_figure(points(), "x", [tmp_path / name for name in names])
    assert [(tmp_path / name).read_bytes() for name in names] == theirs


TEN = tuple(f"{group}-{way}" for group in ("simclr", "moco") for way in ("linear", "knn", "lp-ft", "full"))
TEN = ("scratch", "pca", *TEN)


def test_many_arms_take_two_columns_of_a_paper(tmp_path: Path) -> None:
    efficiency_figure(points(TEN), "x", [tmp_path / "a.png"])
    with Image.open(tmp_path / "a.png") as image:
        assert image.size[0] == 7.2 * 300


def test_arms_are_told_apart_without_colour() -> None:
    styles = arm_styles((*TEN, "simclr-auto", "my-net-lp-ft", "else"))
    assert len({(style.marker, style.dash, style.filled) for style in styles.values()}) == len(styles)
    assert styles["simclr-full"].colour == styles["moco-full"].colour
    assert styles["simclr-full"][1:] == ("o", "-", True)
    assert styles["moco-full"][1:] == ("o", "--", False)
    assert styles["my-net-lp-ft"].dash == "-."
    assert styles["pca"].dash == ":"


def test_points_of_arms_stand_apart_and_never_reach_the_next_fraction() -> None:
    axes = Figure().add_subplot()
    frame = points(TEN)
    draw_curve(axes, frame.assign(fraction=frame["fraction"].replace({0.01: 0.07})))
    x = np.array([line.get_xdata() for line in axes.get_lines() if line.get_label() in TEN])
    assert len(np.unique(x)) == len(TEN) * 3
    assert x[:, 0].max() < np.sqrt(0.07 * 0.1) < x[:, 1].min()
    assert axes.get_xlim()[0] < x.min()
    assert x.max() < axes.get_xlim()[1]


def test_a_swatch_shows_the_line_and_the_marker_of_its_arm() -> None:
    swatches = arm_swatches(TEN)
    for arm in TEN:
        ET.fromstring(swatches[arm])
    assert "var(--blue)" in swatches["simclr-full"]
    assert swatches["simclr-full"] != swatches["moco-full"]
    assert 'fill="var(--paper)"' in swatches["moco-full"]
    assert "C" in swatches["simclr-full"]  # a circle is of curves
    assert "C" not in swatches["simclr-linear"]


def test_drawing_changes_nothing_global(tmp_path: Path) -> None:
    before = dict(matplotlib.rcParams)
    efficiency_figure(points(), "x", [tmp_path / "curve.png"])
    assert dict(matplotlib.rcParams) == before


def test_the_axis_names_shares_patients_and_arms() -> None:
    shown = texts(efficiency_svg(points()))
    assert {"1%", "10%", "100%", "n = 4", "n = 38", "n = 1,388", "chance"} <= {*shown}
    assert not {"scratch", "simclr-linear", "pca"} & {*shown}  # the page has the legend


@pytest.mark.parametrize("narrow", [False, True])
def test_in_a_page_it_takes_the_colours_and_the_font_of_the_page(narrow: bool) -> None:
    svg = efficiency_svg(points(), narrow)
    for name in ("currentColor", "var(--rule)", "var(--grey)", "var(--vermilion)", "var(--green)"):
        assert name in svg
    assert not re.search(r"#[0-9a-f]{6}", svg)  # ink on a dark page would be lost
    assert "font-family" not in svg
    assert "<style" not in svg
    assert "<rect" not in re.sub(r"<clipPath.*?</clipPath>", "", svg, flags=re.DOTALL)  # no background


def test_two_figures_in_a_page_share_no_id() -> None:
    ids = re.findall(r'\bid="([^"]+)"', efficiency_svg(points()) + efficiency_svg(points(), narrow=True))
    assert ids
    assert len(ids) == len(set(ids))


def test_names_are_drawn_as_they_are(tmp_path: Path) -> None:
    arms = ("<script>alert(1)</script>", "a&b", "$x^2$")
    axes = Figure().add_subplot()
    draw_curve(axes, points(arms))
    assert tuple(text.get_text() for text in axes.get_legend().get_texts()) == arms
    efficiency_figure(points(arms), "<b>", [tmp_path / "a.svg"])
    assert b"<script" not in (tmp_path / "a.svg").read_bytes()
    assert "<script" not in efficiency_svg(points(arms)) + "".join(arm_swatches(arms).values())


def test_a_point_without_a_number_is_left_out_and_says_nothing_false() -> None:
    frame = points(("scratch",))
    frame.loc[0, ["auroc", "low", "high"]] = np.nan
    markers = re.findall("<use ", efficiency_svg(frame))
    assert len(markers) == len(re.findall("<use ", efficiency_svg(points(("scratch",))))) - 1
    assert "1%" in texts(efficiency_svg(frame))


def test_nothing_to_show_says_so() -> None:
    frame = points().assign(auroc=np.nan, low=np.nan, high=np.nan)
    assert "no point could be computed" in texts(efficiency_svg(frame))
    assert "no point could be computed" in texts(efficiency_svg(frame.iloc[:0]))


def test_one_fraction_and_values_below_chance() -> None:
    frame = points().query("fraction == 1").assign(auroc=0.3, low=0.11, high=0.5)
    shown = texts(efficiency_svg(frame))
    assert "100%" in shown
    assert "0.2" in shown


def test_more_arms_than_styles_can_still_be_drawn() -> None:
    arms = tuple(f"arm {i}" for i in range(9))
    assert len(arm_swatches(arms)) == 9
    assert len(re.findall("<use ", efficiency_svg(points(arms)))) == 27


def test_what_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(MedclrError, match="cannot write"):
        efficiency_figure(points(), "x", [tmp_path / "absent" / "curve.png"])
    with pytest.raises(ValueError, match="gif"):
        efficiency_figure(points(), "x", [tmp_path / "curve.gif"])
