"""What a report says of a few labels is as strong as its numbers."""

import html
import math
import re
from types import SimpleNamespace

import pandas as pd
import pytest

from medclr.reporting.figures import shots_figure
from medclr.reporting.shots_page import MEANINGS, shots_answer, shots_section

WHY = "n/a in 5 of 5 draws: a half of the target has 12 patients of a class, and 50 are asked for"


def worth(labels, low, high, reason=""):
    return SimpleNamespace(labels=labels, low=low, high=high, most=50, reason=reason)


def curve(effects=None, its_worth=None, missing=()):
    """effects: difference from source+target and Holm's p, by method and shots; missing: points without a result."""
    effects = effects or {("adapted+target", 5): (0.04, 0.01), ("adapted+target", 50): (0.002, 0.9)}
    points, differences = [], []
    base = {0: 0.6, 5: 0.7, 50: 0.8}
    of = {("source+target", n): value for n, value in base.items()} | {("adapted+target", 0): 0.65}
    of |= {key: base[key[1]] + value for key, (value, _) in effects.items()}
    for (method, shots), value in sorted(of.items(), key=lambda item: (list(MEANINGS).index(item[0][0]), item[0][1])):
        there = shots not in missing
        numbers = {"auroc": value, "low": value - 0.03, "high": value + 0.03}
        numbers = numbers if there else dict.fromkeys(numbers, math.nan)
        points.append({"method": method, "shots": shots, **numbers, "reason": "" if there else WHY})
    for (method, shots), (value, p) in effects.items():
        there = shots not in missing
        numbers = {"difference": value, "low": value - 0.02, "high": value + 0.02, "p_holm": p, "detectable": 0.031}
        numbers = numbers if there else dict.fromkeys(numbers, math.nan)
        differences.append({"method": method, "shots": shots, **numbers, "reason": "" if there else WHY})
    return SimpleNamespace(points=pd.DataFrame(points), differences=pd.DataFrame(differences), worth=its_worth)


@pytest.mark.parametrize(
    ("its", "said"),
    [
        (worth(7.2, 2.0, 21.5), "About 8 per class (2 to 22)."),
        (worth(7.2, 2.0, math.inf), "About 8 per class (2 to more than 50)."),
        (worth(7.2, 0.0, 21.5), "None is shown: about 8 per class (none to 22)."),
        (worth(math.inf, 21.5, math.inf), "More than 50 per class (22 to more than 50)."),
        (worth(math.inf, 0.0, math.inf), "Not known: it may be none, or more than 50 per class."),
        (worth(0.0, 0.0, 3.0), "None is shown: without any label, adaptation is not above source-only (none to 3)."),
        (worth(0.0, 0.0, 0.0), "None: without any label, adaptation is not above source-only."),
        (worth(7.2, math.nan, math.nan), "None is shown: about 8 per class."),
        (worth(*[math.nan] * 3, reason=WHY), f"Not known: {WHY}."),
        (None, "Not known: auto was not run."),
    ],
)
def test_worth_is_said_with_its_open_ends(its, said):
    assert shots_answer(curve(its_worth=its)).short == said


def test_what_is_above_below_or_not_told_apart():
    effects = {
        ("adapted+target", 5): (0.04, 0.01),
        ("adapted+target", 50): (0.002, 0.9),
        ("lp-ft", 5): (-0.05, 0.001),
        ("lp-ft", 50): (0.01, 0.051),
    }
    said = shots_answer(curve(effects, worth(7.0, 2.0, 21.0))).more
    assert said == [
        "Without adaptation, AUROC by labels per class of the target: 0.600 (0.570 to 0.630) with 0 and 0.800 (0.770 "
        "to 0.830) with 50.",
        "adapted+target: above source+target by +0.040 (+0.020 to +0.060, p = 0.010) with 5; not told apart from it: "
        "+0.002 with 50.",
        "lp-ft: below source+target by −0.050 (−0.070 to −0.030, p = 0.001) with 5; not told apart from it: +0.010 "
        "with 50.",
    ]


def test_what_could_not_be_drawn_is_said_and_marked():
    one = curve(its_worth=worth(3.0, 1.0, 4.0), missing=(50,))
    said = shots_answer(one).more
    assert said[0].endswith("with 0 and 0.700 (0.670 to 0.730) with 5.")
    assert said[-1] == f"With 50 per class: {WHY}."
    page = shots_section(one, 0.85)
    assert page.count("n/a<sup>1</sup>") == 2
    assert f"<li>{WHY}</li>" in page
    assert not re.search(r"\bnan\b", page)


def test_the_section_has_every_number_and_a_legend():
    page = html.unescape(shots_section(curve(its_worth=worth(3.0, 1.0, 4.0)), 0.85))
    for text in ("0.700", "0.670 to 0.730", "+0.040", "+0.020 to +0.060", "0.010", "0.031", "target-trained"):
        assert text in page
    for method in ("source+target", "adapted+target"):
        assert MEANINGS[method] in page
    assert MEANINGS["lp-ft"] not in page
    assert page.count('class="swatch"') == 2
    assert page.count("<svg class=") >= 2
    assert "target-trained" not in shots_section(curve(), math.nan).split("<figcaption>")[0]


def test_the_figure_is_the_same_every_time(tmp_path):
    for name in ("a.png", "b.png", "a.svg", "a.pdf"):
        shots_figure(curve().points, 0.85, "Title", [tmp_path / name])
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    assert b"Title" in (tmp_path / "a.svg").read_bytes()
    shots_figure(curve(missing=(0, 5, 50)).points, math.nan, "Title", [tmp_path / "none.png"])
