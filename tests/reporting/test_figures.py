import re
import xml.etree.ElementTree as ET
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from medclr.errors import MedclrError
from medclr.reporting.figures import efficiency_figure, efficiency_svg


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
    paths = [tmp_path / "curve.png", tmp_path / "curve.svg"]
    efficiency_figure(points(), "Label efficiency: $a_b$", paths)
    first = [path.read_bytes() for path in paths]
    efficiency_figure(points(), "Label efficiency: $a_b$", paths)
    assert [path.read_bytes() for path in paths] == first
    assert set(tmp_path.iterdir()) == set(paths)
    with Image.open(paths[0]) as image:
        assert image.size == (1440, 920)
        assert image.getpixel((2, 2)) == (255, 255, 255, 255)
        assert not {"Software", "Creation Time"} & image.info.keys()
    assert b"dc:date" not in first[1]
    ET.fromstring(first[1])


def test_drawing_changes_nothing_global(tmp_path: Path) -> None:
    before = dict(matplotlib.rcParams)
    efficiency_figure(points(), "x", [tmp_path / "curve.png"])
    assert dict(matplotlib.rcParams) == before


def test_the_axis_names_shares_patients_and_arms() -> None:
    shown = texts(efficiency_svg(points()))
    assert {"1%", "10%", "100%", "n = 4", "n = 38", "n = 1,388", "chance"} <= {*shown}
    assert {"scratch", "simclr-linear", "pca"} <= {*shown}


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


def test_text_is_escaped() -> None:
    svg = efficiency_svg(points(("<script>alert(1)</script>", "a&b", "$x^2$")))
    assert "<script" not in svg
    assert {"<script>alert(1)</script>", "a&b", "$x^2$"} <= {*texts(svg)}


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
    assert {*arms} <= {*texts(efficiency_svg(points(arms)))}


def test_what_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(MedclrError, match="cannot write"):
        efficiency_figure(points(), "x", [tmp_path / "absent" / "curve.png"])
    with pytest.raises(ValueError, match="gif"):
        efficiency_figure(points(), "x", [tmp_path / "curve.gif"])
