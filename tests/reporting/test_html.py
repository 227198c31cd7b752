import re
from dataclasses import replace
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pytest

from medclr.evaluation.efficiency import Curve, label_efficiency
from medclr.reporting.html import efficiency_page

VOID = {"meta", "br", "path", "use", "line", "circle", "rect", "g", "link"}


@pytest.fixture(scope="module")
def curve() -> Curve:
    rng = np.random.default_rng(0)
    y = np.tile([0, 0, 1], 20)
    patients = np.array([f"p{i}" for i in range(60)])

    def arm(gain: float) -> Any:
        scores = y * gain + rng.standard_normal(60)
        return lambda rows, seed: scores + 0.1 * np.random.default_rng(seed).random(60)

    arms = {"scratch": arm(0.2), "simclr-full": arm(3.0), "pca": arm(2.4), "simclr-linear": arm(2.0)}
    return label_efficiency(y, patients, y, patients, arms, [0.1, 1.0], 2, 200, 0)


@pytest.fixture(scope="module")
def plain(curve: Curve) -> str:
    return efficiency_page(curve, context())


def test_labels_needed_are_shown_for_all_arms_but_the_goal(curve: Curve, plain: str) -> None:
    cells = Page(plain).cells
    start = cells.index("Matches scratch with all labels") + 1
    shown = dict(zip(cells[start : start + 6 : 2], cells[start + 1 : start + 6 : 2], strict=True))
    assert shown == {arm: str(needed) for arm, needed in curve.needed.items() if arm != "scratch"}
    assert len(shown) == 3


def context(**changes: Any) -> dict[str, Any]:
    return {
        "title": "Label efficiency: lesion",
        "command": "efficiency",
        "command_line": "medclr efficiency --labels LABELS",
        "phantoms": False,
        "leakage": "No test patient was seen in pre-training.",
        "transductive": False,
        "test": {"n_patients": 1060, "n_positive": 20, "n_negative": 1040},
        "train": {"n_patients": 60, "n_positive": 20, "n_negative": 40},
        "methods": ["Drawn twice.", "Resampled 200 times."],
        "versions": {"medclr": "0.1.0"},
        "notes": [],
    } | changes


class Page(HTMLParser):
    """Text, headings, and whether every tag is closed."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.cells: list[str] = []
        self.text = ""
        self.feed(html)
        self.close()
        assert not self.open
        self.text = re.sub(r"\s+", " ", self.text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID - {"g"}:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID - {"g"}:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.text += data
        if self.open and self.open[-1] in ("td", "th"):
            self.cells.append(data.strip())


def test_the_page_is_in_order_and_whole(curve: Curve) -> None:
    page = Page(efficiency_page(curve, context(phantoms=True, notes=["Beware."])))
    parts = [
        "Label efficiency: lesion",
        curve.verdict(),
        "generated phantoms, not patients",
        "AUROC on the same test patients",
        "AUROC by share of labels",
        "Paired differences",
        "No test patient was seen",
        "Drawn twice. Resampled 200 times.",
        "Beware.",
        "medclr efficiency --labels LABELS",
        "0.1.0",
        "What to run next",
        "medclr pretrain --data SCANS",
    ]
    places = [page.text.index(part, page.text.index("Label-efficiency report")) for part in parts]
    assert places == sorted(places)
    assert [attributes["class"] for tag, attributes in page.tags if tag == "svg"][:2] == ["wide", "narrow"]


def test_every_number_of_the_curve_is_in_the_tables(curve: Curve, plain: str) -> None:
    cells = Page(plain).cells
    for row in curve.points.to_dict("records"):
        assert f"{row['auroc']:.3f}" in cells
        assert f"{row['low']:.3f} to {row['high']:.3f}" in cells
    for row in curve.differences.to_dict("records"):
        assert f"{row['difference']:+.3f}".replace("-", "−") in cells
        assert f"{row['low']:+.3f} to {row['high']:+.3f}".replace("-", "−") in cells
        assert ("< 0.001" if row["p_holm"] < 0.001 else f"{row['p_holm']:.3f}") in cells


def test_a_row_spans_what_it_heads(curve: Curve, plain: str) -> None:
    tables = re.findall(r"<table>.*?</table>", plain, flags=re.DOTALL)
    for table, frame in zip(tables[::2], (curve.points, curve.differences), strict=True):
        spans = [int(n) for n in re.findall(r'<th scope="rowgroup" rowspan="(\d+)"', table)]
        assert spans == list(frame.groupby("fraction").size())
    arms = [int(n) for n in re.findall(r'<td class="arm" rowspan="(\d+)"', tables[2])]
    assert arms == [3, 3, 3, 3]  # two arms at two fractions, against two baselines and the better of them


def test_intervals_are_drawn_on_one_scale_with_zero_in_its_place(curve: Curve, plain: str) -> None:
    drawn = re.findall(r'<line class="zero" x1="([\d.]+)".*?<line x1="([\d.]+)" x2="([\d.]+)".*?cx="([\d.]+)"', plain)
    rows = curve.differences.sort_values(["fraction", "arm"], kind="stable")
    assert len(drawn) == len(rows)
    zeros = {float(zero) for zero, *_ in drawn}
    assert len(zeros) == 1
    ends = np.array([[float(x) for x in row[1:]] for row in drawn]) - zeros.pop()
    values = rows[["low", "high", "difference"]].to_numpy(float)
    scale = np.polyfit(values.ravel(), ends.ravel(), 1)
    np.testing.assert_allclose(ends, np.polyval(scale, values), atol=0.11)
    assert abs(scale[1]) < 0.1


def test_notices_stand_only_where_they_are_true(curve: Curve, plain: str) -> None:
    assert "phantoms" not in plain
    assert "Transductive" not in plain
    assert "medclr finetune --labels LABELS.csv" in plain
    assert "Transductive result" in efficiency_page(curve, context(transductive=True))


def test_what_has_no_number_says_why(curve: Curve) -> None:
    points, differences = curve.points.copy(), curve.differences.copy()
    points.loc[0, ["auroc", "low", "high"]] = np.nan
    points.loc[0, "reason"] = "n/a in 1 of 2 draws: it diverged"
    differences[["difference", "low", "high", "p", "p_holm"]] = np.nan
    differences["reason"] = "scratch is n/a in 1 of 2 draws"
    html = efficiency_page(replace(curve, points=points, differences=differences), context())
    cells = Page(html).cells
    assert "n/a in 1 of 2 draws: it diverged" in cells
    assert cells.count("n/a, because scratch is n/a in 1 of 2 draws") == len(differences)
    assert "nan" not in Page(html).text


def test_without_anything_to_compare_there_is_no_table_of_differences(curve: Curve) -> None:
    html = efficiency_page(replace(curve, differences=curve.differences.iloc[:0]), context())
    assert "Paired differences" not in html
    Page(html)


EVIL = "<script>alert(1)</script>\"'><img src=x onerror=alert(1)>{{ 7 * 7 }}$"


def test_everything_is_escaped(curve: Curve) -> None:
    frames = {
        "points": curve.points.replace("pca", "<img>"),
        "differences": curve.differences.replace("pca", "<img>").assign(reason=EVIL, difference=np.nan),
    }
    changed = context(
        title=EVIL, command_line=EVIL, leakage=EVIL, methods=[EVIL], notes=[EVIL], versions={EVIL: EVIL},
        hardware={"gpu": EVIL}, label={"column": EVIL, "negative": EVIL, "positive": EVIL},
    )  # fmt: skip
    html = efficiency_page(replace(curve, **frames), changed)
    assert EVIL in Page(html).text
    assert not re.search(r"<(script|img)", html)


def test_it_loads_nothing_and_a_browser_is_told_so(plain: str) -> None:
    page = Page(plain)
    policy = [a["content"] for tag, a in page.tags if tag == "meta" and a.get("http-equiv")]
    assert policy == ["default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"]
    assert not {tag for tag, _ in page.tags} & {"script", "link", "img", "iframe", "object", "form"}
    assert not [a for _, a in page.tags for name in ("src", "action", "srcset", "data") if name in a]
    references = [a["href"] for _, a in page.tags if "href" in a] + re.findall(r"url\(([^)]*)\)", plain)
    assert references
    assert all(str(reference).startswith("#") for reference in references)
    assert "@import" not in plain


def test_it_is_the_same_each_time_and_fits_dark_phones_and_paper(curve: Curve, plain: str) -> None:
    assert plain == efficiency_page(curve, context())
    for rule in ("screen and (prefers-color-scheme: dark)", "screen and (max-width: 600px)", "media print", "viewport"):
        assert rule in plain
    for name in re.findall(r"var\((--[a-z-]+)\)", plain):
        assert f"{name}:" in plain
