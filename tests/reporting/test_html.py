import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from html import escape, unescape
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from medclr.evaluation.comparison import BETTER
from medclr.evaluation.efficiency import Curve, Scores, label_efficiency
from medclr.reporting import html as html_module
from medclr.reporting.figures import efficiency_svg
from medclr.reporting.html import efficiency_page

VOID = {"meta", "br", "path", "use", "line", "circle", "rect", "g", "link"}
ARMS = {"scratch": 0.6, "pca": 1.6, "simclr-linear": 1.7, "simclr-full": 8.0, "moco-full": 0.5}
OUTPUTS = ["mass", "nodule", "effusion"]


def made(kind: str = "binary", arms: Any = None, n_draws: Any = None, groups: bool = True) -> Curve:
    """A curve of 60 patients, whose arms see the truth through noise; scratch has no out-of-fold scores."""
    rng = np.random.default_rng(0)
    classes = np.tile([0, 1, 2], 20)
    y = np.eye(3)[classes] if kind != "binary" else (classes == 2).astype(float)[:, None]
    if kind == "multilabel":
        y[:4, 1] = np.nan
    patients = np.array([f"p{i}" for i in range(60)])

    def arm(name: str, gain: float) -> Any:
        scores = (np.nan_to_num(y) - 0.5) * gain + rng.standard_normal(y.shape)

        def one(rows: np.ndarray, seed: int) -> Scores:
            test = scores + 0.1 * np.random.default_rng(seed).random(y.shape)
            return Scores(test, None if name == "scratch" else test[rows])

        return [one] * (2 if name == "moco-full" else 1)

    columns = pd.DataFrame({"sex": np.tile(["F", "M"], 30), "view": ["PA"] * 57 + ["AP"] * 3})
    given = {name: arm(name, gain) for name, gain in (arms or ARMS).items()}
    return label_efficiency(
        y, patients, y, patients, given, n_draws or {0.1: 3, 1.0: 3}, 100, 0, kind=kind,
        groups=columns if groups else None, outputs=OUTPUTS if kind != "binary" else ["lesion"],
    )  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def _each_figure_is_drawn_once() -> Iterator[None]:
    drawn: dict[tuple[str, bool], str] = {}

    def once(points: pd.DataFrame, narrow: bool = False) -> str:
        key = points.to_csv(), narrow
        drawn[key] = drawn.get(key) or efficiency_svg(points, narrow)
        return drawn[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(html_module, "efficiency_svg", once)
        yield


@pytest.fixture(scope="module")
def curve() -> Curve:
    return made()


@pytest.fixture(scope="module")
def plain(curve: Curve) -> str:
    return efficiency_page(curve, context())


def context(kind: str = "binary", **changes: Any) -> dict[str, Any]:
    return {
        "title": "Label efficiency: lesion",
        "command": "efficiency",
        "command_line": "medclr efficiency --labels LABELS",
        "phantoms": False,
        "leakage": "No test patient was seen in pre-training.",
        "transductive": False,
        "task": {
            "kind": kind,
            "columns": OUTPUTS if kind == "multilabel" else ["finding"],
            "outputs": ["lesion"] if kind == "binary" else OUTPUTS,
        },
        "classes": {"binary": ["none", "lesion"], "multiclass": OUTPUTS, "multilabel": []}[kind],
        "test": {"n_patients": 1060, "n_positive": 20, "n_negative": 1040},
        "train": {"n_patients": 60, "n_positive": 20, "n_negative": 40},
        "encoders": [{"group": "simclr", "method": "SimCLR", "seed": 3, "fingerprint": "4f2a90b1"}],
        "methods": ["Drawn twice.", "Resampled 100 times."],
        "cite": ["Cite this."],
        "versions": {"medclr": "0.1.0"},
        "hardware": {"cores": 2},
        "notes": [],
        "near_duplicates": {"test_images": 0, "sentence": "No near-duplicate."},
        "caveats": [],
        "examples": None,
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


def test_the_page_answers_first_and_is_whole(curve: Curve) -> None:
    page = Page(efficiency_page(curve, context(phantoms=True, notes=["Beware."])))
    parts = [
        "Label efficiency: lesion",
        "generated phantoms, not patients",
        "Which arm to use?",
        "With how many labels?",
        "How sure?",
        "What leaked, was left out, or could not be computed?",
        "No test patient was seen",
        "Beware.",
        "The best pre-trained arm against the better baseline",
        "1,060 20 positive volumes, 1,040 negative volumes",
        "positive: lesion, negative: none",
        "AUROC on the same test patients",
        "AUROC by share of labels",
        "Labels needed",
        "Paired differences",
        "Against each baseline",
        "Formal statement",
        curve.verdict(),
        "Calibration",
        "Other measures",
        "Subgroups",
        "no test of a difference",
        "No test patient was seen",
        "Drawn twice. Resampled 100 times.",
        "Encoder of simclr: SimCLR, seed 3, fingerprint 4f2a90b1",
        "Beware.",
        "How to cite Cite this.",
        "medclr efficiency --labels LABELS",
        "0.1.0",
        "What to run next",
        "medclr pretrain --data SCANS",
    ]
    place = page.text.index("Label-efficiency report")
    for part in parts:
        place = page.text.index(part, place) + len(part)
    assert [attributes["class"] for tag, attributes in page.tags if tag == "svg"][:2] == ["wide", "narrow"]


def rows_of(html: str, label: str) -> list[list[str]]:
    """The text of each cell of a table, row by row, by the label of its region."""
    (table,) = re.findall(rf'aria-label="{re.escape(escape(label))}">\s*<table>(.*?)</table>', html, flags=re.DOTALL)
    rows = re.findall(r"<tr[^>]*>(.*?)</tr>", table, flags=re.DOTALL)
    cells = [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row, flags=re.DOTALL) for row in rows]
    return [[re.sub(r"\s+", " ", unescape(re.sub(r"<[^>]*>", " ", cell))).strip() for cell in row] for row in cells]


def shown(row: Any, value: str = "auroc", sign: str = "") -> str:
    said = f"{row[value]:{sign}.3f} {row['low']:{sign}.3f} to {row['high']:{sign}.3f}"
    return said.replace("-", "−")


def test_every_auroc_stands_in_its_row_and_column_with_what_it_was_learned_from(curve: Curve, plain: str) -> None:
    head, *rows = rows_of(plain, "AUROC by share of labels")
    assert head == ["Arm", "10%", "100%"]
    points = {(row["arm"], row["fraction"]): row for row in curve.points.to_dict("records")}
    for arm in ARMS:
        assert rows.pop(0) == [arm, shown(points[arm, 0.1]), shown(points[arm, 1.0])]
    counts = [[str(points["pca", f][name]) for f in (0.1, 1.0)] for name in ("n_patients", "n_positive", "n_negative")]
    assert rows == [
        ["Labelled patients", *counts[0]], ["Positive volumes", *counts[1]], ["Negative volumes", *counts[2]],
        ["Draws", "3", "3"],
    ]  # fmt: skip


def test_every_difference_is_shown_with_its_reading(curve: Curve) -> None:
    turned = curve.differences.copy()  # moco-full hurts; and the other way round at one fraction
    at = (turned["arm"] == "moco-full") & (turned["fraction"] == 1)
    turned.loc[at, ["difference", "low", "high"]] = -turned.loc[at, ["difference", "high", "low"]].to_numpy()
    html = efficiency_page(replace(curve, differences=turned), context())

    def flat(label: str) -> str:
        return " | ".join(cell for row in rows_of(html, label) for cell in row)

    better, each = flat("Differences from the better baseline"), flat("Differences from each baseline")
    for row in turned.to_dict("records"):
        p = "< 0.001" if row["p_holm"] < 0.001 else f"{row['p_holm']:.3f}"
        reading = ""
        if row["versus"] == BETTER:
            resolved = row["p_holm"] < 0.05 and not row["low"] <= 0 <= row["high"]
            reading = f" | {('helps' if row['difference'] > 0 else 'hurts') if resolved else 'not resolved'}"
        detectable = f"{row['detectable']:.3f}"
        wanted = f"{row['baseline']} | {shown(row, 'difference', '+')} |  | {p}{reading} | {detectable}"
        assert wanted in (better if row["versus"] == BETTER else each)
    assert "| helps |" in better
    assert "| hurts |" in better
    assert "moco-full, with 100% of the labels." in Page(html).text


def test_the_second_opinion_is_folded_and_says_where_it_differs(curve: Curve, plain: str) -> None:
    assert "<details>\n<summary>Second opinion: DeLong, over test patients alone</summary>" in plain
    assert "Obuchowski" in efficiency_page(curve, context(test={"n_patients": 9, "n_positive": 5, "n_negative": 5}))
    rows = [" | ".join(row) for row in rows_of(plain, "Second opinion on the differences")]
    compared = curve.differences[curve.differences["versus"] != BETTER].to_dict("records")
    assert len(rows) == 1 + len(compared)
    for row in compared:
        p = "< 0.001" if row["delong_p"] < 0.001 else f"{row['delong_p']:.3f}"
        theirs = f"{row['delong_low']:+.3f} to {row['delong_high']:+.3f} | {p}"
        wanted = f"{row['baseline']} | {row['difference']:+.3f} | {theirs} | ".replace("-", "−")
        assert any(wanted in found for found in rows)
    point = curve.points.set_index(["arm", "fraction"]).loc[("moco-full", 1.0)]
    aurocs = [" ".join(row) for row in rows_of(plain, "AUROC by the second opinion")]
    assert any(f"{point['delong_low']:.3f} to {point['delong_high']:.3f}" in row for row in aurocs)

    ends = {"both": (1, 2), "neither": (-1, 1), "DeLong alone": (1, 2), "this report alone": (-1, 1)}
    for said, (low, high) in ends.items():
        ours = (1, 2) if said in ("both", "this report alone") else (-1, 1)
        changed = curve.differences.assign(low=ours[0], high=ours[1], delong_low=low, delong_high=high)
        html = efficiency_page(replace(curve, differences=changed), context())
        assert {row[-1] for row in rows_of(html, "Second opinion on the differences")[1:]} == {said}


def test_a_claim_that_the_second_opinion_does_not_share_is_marked(curve: Curve, plain: str) -> None:
    assert "not by DeLong" not in plain
    ahead = curve.differences.assign(difference=0.1, low=0.05, high=0.2, p_holm=0.01, delong_p=0.2)
    html = efficiency_page(replace(curve, differences=ahead), context())
    helps = len(re.findall(r'class="claim">helps', html.split("Paired differences")[1]))
    assert html.count("<small>not by DeLong</small>") == helps > 0


def test_labels_needed_are_shown_for_all_arms_but_the_goal(curve: Curve, plain: str) -> None:
    _, *rows = rows_of(plain, "Labels needed")
    assert dict(rows) == {arm: str(needed) for arm, needed in curve.needed.items() if arm != "scratch"}
    assert len(rows) == 4


def test_a_row_spans_what_it_heads(curve: Curve, plain: str) -> None:
    for table in re.findall(r"<table>.*?</table>", plain, flags=re.DOTALL):
        for body in re.findall(r"<tbody.*?</tbody>", table, flags=re.DOTALL):
            spans = [int(n) for n in re.findall(r'<th scope="rowgroup"[^>]*rowspan="(\d+)"', body)]
            assert spans in ([], [body.count("<tr")])
    arms = [int(n) for n in re.findall(r'<th scope="row" class="arm" rowspan="(\d+)"', plain)]
    # Three arms at two fractions: against the better baseline, against each, and each again by the second opinion.
    assert arms == [1] * 6 + [2] * 6 + [2] * 6


def drawn(html: str, label: str) -> np.ndarray:
    """Of each little plot of a table: zero, low, high and value, in px."""
    (table,) = re.findall(rf'aria-label="{label}">\s*<table>(.*?)</table>', html, flags=re.DOTALL)
    pattern = r'<line class="zero" x1="([\d.]+)".*?<line x1="([\d.]+)" x2="([\d.]+)".*?cx="([\d.]+)"'
    return np.array(re.findall(pattern, table), dtype=float)


def test_intervals_are_drawn_on_one_scale_with_zero_in_its_place(curve: Curve, plain: str) -> None:
    both = ("Differences from the better baseline", "Differences from each baseline")
    places = np.concatenate([drawn(plain, label) for label in both])
    rows = curve.differences.sort_values("fraction", kind="stable")
    rows = pd.concat([rows[rows["versus"] == BETTER], rows[rows["versus"] != BETTER]])
    values = np.column_stack([np.zeros(len(rows)), rows[["low", "high", "difference"]].to_numpy(float)])
    assert places.shape == values.shape
    slope, start = np.polyfit(values.ravel(), places.ravel(), 1)
    np.testing.assert_allclose(places, slope * values + start, atol=0.11)
    assert 0 <= places.min() < 7 < 97 < places.max() <= 104


def test_subgroups_stand_beside_the_whole_and_say_how_many_they_are(curve: Curve, plain: str) -> None:
    open_part, folded = plain[plain.index("<h2>Subgroups") :].split("<details>")[:2]
    assert len(rows_of(open_part, "AUROC by view")) == 1 + 2 * 2  # of the arm to use and the better baseline
    assert len(rows_of(folded, "AUROC by view")) == 1 + 2 * 3
    assert "only 1 patient with a positive (fewer than 5)" in open_part
    _, first, second, *_ = rows_of(open_part, "AUROC by sex")
    assert first[0] == "F 30 volumes of 30 patients 10 positive volumes, 20 negative volumes"
    assert [first[1], second[0]] == ["pca", "simclr-full"]
    rows = curve.subgroups[(curve.subgroups["group"] == "F") & curve.subgroups["arm"].isin(["pca", "simclr-full"])]
    for cells, row in zip((first[2:4], second[1:3]), rows.to_dict("records"), strict=True):
        assert cells == [f"{row['auroc']:.3f}", f"{row['low']:.3f} to {row['high']:.3f}"]
    overall = curve.points[curve.points["fraction"] == 1].set_index("arm")["auroc"]
    values = np.column_stack([overall[rows["arm"]], rows[["low", "high", "auroc"]].to_numpy(float)])
    places = drawn(open_part, "AUROC by sex")[:2]
    slope, start = np.polyfit(values.ravel(), places.ravel(), 1)
    np.testing.assert_allclose(places, slope * values + start, atol=0.11)


def test_reliability_is_drawn_to_scale_or_says_why_not(curve: Curve, plain: str) -> None:
    bins = curve.calibration[curve.calibration["fraction"] == 1]
    for arm in ARMS:
        panel = re.findall(rf"diagram of {arm}:.*?</svg>", plain, flags=re.DOTALL)[0]
        for scaled, side in ((False, "before"), (True, "after")):
            own = bins[(bins["arm"] == arm) & (bins["scaled"] == scaled)]
            group = panel.split(f'class="{side}"')[1].split("</g>")[0]
            circles = np.array(re.findall(r'cx="([\d.]+)" cy="([\d.]+)"', group), dtype=float).reshape(-1, 2)
            wanted = np.column_stack([100 * own["predicted"], 100 * (1 - own["observed"])])
            np.testing.assert_allclose(circles, wanted, atol=0.051)
    assert set(bins.loc[bins["scaled"], "arm"]) == {"pca", "simclr-linear", "moco-full"}
    cells = rows_of(plain, "Expected calibration error")
    assert cells[0] == ["Arm", "ECE as trained", "ECE after scaling", "Temperature"]
    assert cells[1][0] == "scratch"
    assert cells[1][2].startswith("n/a")
    assert "no out-of-fold predictions" in plain
    few = replace(curve, calibration=curve.calibration.iloc[:0], measures=curve.measures.assign(reason="too few rows"))
    assert efficiency_page(few, context()).count("n/a, because too few rows</p>") == len(ARMS)


def test_average_precision_stands_beside_the_prevalence(curve: Curve, plain: str) -> None:
    assert "average precision is 0.019, the prevalence in the test set" in Page(plain).text  # 20 of 1,060
    head, *rows = rows_of(plain, "Other measures")
    assert head == ["Measure", "Arm", "10%", "100%"]
    assert [row[0] for row in rows if len(row) == 4] == [
        "average precision", "sensitivity at 90% specificity", "sensitivity at 95% specificity"
    ]  # fmt: skip
    assert len(rows) == 3 * 2  # of the arm to use and the better baseline; the others are folded
    assert len(rows_of(plain, "Other measures of the other arms")) == 1 + 3 * 3


def test_notices_stand_only_where_they_are_true(curve: Curve, plain: str) -> None:
    assert "phantoms" not in plain
    assert "Transductive" not in plain
    assert "medclr finetune --labels LABELS.csv" in plain
    assert "Transductive result" in efficiency_page(curve, context(transductive=True))


def test_what_has_no_number_says_why(curve: Curve) -> None:
    nothing = {"auroc": np.nan, "low": np.nan, "high": np.nan, "reason": "n/a in 1 of 2 cells: it diverged"}
    numbers = ["difference", "low", "high", "p", "p_holm", "detectable", "delong_low", "delong_high", "delong_p"]
    differences = curve.differences.assign(reason="it diverged")
    differences[numbers] = np.nan
    html = efficiency_page(
        replace(
            curve,
            points=curve.points.assign(**nothing),
            differences=differences,
            measures=curve.measures.assign(value=np.nan, low=np.nan, high=np.nan, reason=nothing["reason"]),
            calibration=curve.calibration.iloc[:0],
            subgroups=curve.subgroups.assign(**nothing),
        ),
        context(),
    )
    page = Page(html)
    assert page.cells.count("n/a, because it diverged") == len(differences)
    assert "n/a in 1 of 2 cells: it diverged" in page.text
    assert "10 of 10 points of the curve are missing." in page.text
    assert "Not known: there is nothing to compare." in page.text
    assert not re.search(r"\bnan\b", re.sub(r"<style>.*?</style>", "", html, flags=re.DOTALL))


@pytest.mark.parametrize(
    ("arms", "n_draws"),
    [({"scratch": 1.0}, {1.0: 2}), ({"pca": 1.0, "simclr-full": 2.0}, {0.5: 1}), ({"mine": 1.0}, {0.1: 1, 1.0: 1})],
)
def test_a_curve_of_little_makes_a_page(arms: dict[str, float], n_draws: dict[float, int]) -> None:
    few = made(arms=arms, n_draws=n_draws, groups=False)
    page = Page(efficiency_page(few, context()))
    assert "Subgroups" not in page.text
    assert ("Paired differences" in page.text) == (len(arms) == 2)
    assert few.verdict() in page.text
    assert "nan" not in page.text


@pytest.mark.parametrize("kind", ["multiclass", "multilabel"])
def test_several_outputs_each_have_their_auroc(kind: str) -> None:
    several = made(kind)
    html = efficiency_page(several, context(kind))
    page = Page(html)
    _, *rows = rows_of(html, "AUROC of each output")
    assert [row[0] for row in rows if len(row) == 4] == OUTPUTS
    (one,) = several.measures.query("measure == 'AUROC mass' and fraction == 1 and arm == 'pca'").to_dict("records")
    assert shown(one, "value") in [cell for row in rows for cell in row]
    assert "sensitivity at" not in page.text  # of a single binary label only, so not missing here
    assert ("average precision is 0.333" in page.text) == (kind == "multiclass")
    assert ("Volumes with any positive" in page.text) == (kind == "multilabel")
    assert "mass, nodule and effusion" in page.text
    assert "nan" not in page.text


EVIL = "<script>alert(1)</script>\"'><img src=x onerror=alert(1)>{{ 7 * 7 }}$"


def test_everything_is_escaped(curve: Curve) -> None:
    arm, same = f"{EVIL}-full", {"simclr-full": f"{EVIL}-full"}
    changed = replace(
        curve,
        points=curve.points.replace(same),
        differences=curve.differences.replace(same).assign(reason=EVIL),
        measures=curve.measures.replace(same).replace({"average precision": EVIL}),
        calibration=curve.calibration.replace(same),
        subgroups=curve.subgroups.replace(same).replace({"sex": EVIL, "F": EVIL}),
        needed={EVIL: EVIL},
    )
    task = {"kind": "binary", "columns": [EVIL], "outputs": [EVIL]}
    encoders = [dict.fromkeys(("group", "method", "seed", "fingerprint"), EVIL)]
    words = {name: [EVIL] for name in ("methods", "notes", "cite")}
    given = context(
        title=EVIL, command_line=EVIL, leakage=EVIL, versions={EVIL: EVIL}, hardware={"gpu": EVIL}, task=task,
        classes=[EVIL, EVIL], encoders=encoders, **words,
    )  # fmt: skip
    html = efficiency_page(changed, given)
    assert EVIL in Page(html).text
    assert arm in Page(html).text
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


def test_it_is_the_same_each_time_and_knows_dark_phones_and_paper(curve: Curve, plain: str) -> None:
    assert plain == efficiency_page(curve, context())
    for rule in ("screen and (prefers-color-scheme: dark)", "screen and (max-width: 600px)", "media print", "viewport"):
        assert rule in plain
    for name in re.findall(r"var\((--[a-z-]+)\)", plain):
        assert f"{name}:" in plain


def test_headings_are_in_order_and_tables_and_drawings_have_names(plain: str) -> None:
    page = Page(plain)
    levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))
    assert all(a.get("scope") in ("col", "row", "rowgroup") for tag, a in page.tags if tag == "th")
    for tag, attributes in page.tags:
        if tag == "svg":
            assert attributes.get("aria-hidden") == "true" or (attributes["role"] == "img" and attributes["aria-label"])


def test_text_has_contrast_in_light_and_in_dark(plain: str) -> None:
    def luminance(colour: str) -> float:
        parts = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
        parts = np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)
        return float(parts @ [0.2126, 0.7152, 0.0722])

    schemes = re.findall(r":root \{(.*?)\}", plain, flags=re.DOTALL)[:2]
    for scheme in schemes:
        colours = dict(re.findall(r"--([a-z-]+): (#[0-9a-f]{6})", scheme))
        for text, paper, least in [
            ("ink", "paper", 4.5), ("muted", "paper", 4.5), ("ink", "card", 4.5), ("amber", "amber-paper", 4.5),
            ("ink", "amber-paper", 4.5), ("blue", "paper", 4.5),
            *((name, "paper", 3) for name in ("vermilion", "grey", "green", "purple", "ochre")),  # lines
        ]:  # fmt: skip
            light, dark = sorted((luminance(colours[text]), luminance(colours[paper])), reverse=True)
            assert (light + 0.05) / (dark + 0.05) >= least, (text, paper)


WIDTHS = (390, 860)
PROBE = """
{frames}<pre id="out"></pre><script>
onload = () => out.textContent = JSON.stringify([...document.querySelectorAll('iframe')].map(frame => {{
  const page = frame.contentDocument, apart = e => e.closest('.scroll, svg');
  const right = [...page.querySelectorAll('main *')].filter(e => !apart(e)).map(e => e.getBoundingClientRect().right);
  return {{
    scroll: page.documentElement.scrollWidth, right: Math.max(...right), text: page.body.innerText.length,
    loaded: frame.contentWindow.performance.getEntriesByType('resource').length,
  }};
}}));
</script>
"""


@pytest.mark.skipif(not shutil.which("chromium"), reason="no chromium to look with")
def test_in_a_browser_nothing_overflows_and_nothing_is_loaded(curve: Curve, tmp_path: Path) -> None:
    long = "an_encoder_of_a_user_whose_name_is_long_"
    arms = {"simclr-full": f"{long}-full", "simclr-linear": f"{long}-linear"}
    frames = {name: getattr(curve, name).replace(arms) for name in ("points", "differences", "measures", "calibration")}
    groups = curve.subgroups.replace(arms).replace({"sex": long, "F": long * 2})
    needed = {arms.get(arm, arm): count for arm, count in curve.needed.items()}
    given = context(title=long, cite=[long * 3])
    html = efficiency_page(replace(curve, **frames, subgroups=groups, needed=needed), given)
    page = escape(html.replace("<details>", "<details open>"))
    inside = [f'<iframe width="{width}" height="900" srcdoc="{page}"></iframe>' for width in WIDTHS]
    (tmp_path / "probe.html").write_text(PROBE.format(frames="".join(inside)))
    command = [
        "chromium",
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--no-first-run",
        "--virtual-time-budget=5000",
    ]
    command += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
    command += [f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", (tmp_path / "probe.html").as_uri()]
    dumped = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = json.loads(re.findall(r'<pre id="out">(.*?)</pre>', dumped, flags=re.DOTALL)[0])
    for width, one in zip(WIDTHS, found, strict=True):
        assert one["text"] > 3000
        assert one["scroll"] <= width
        assert one["right"] <= width
        assert one["loaded"] == 0
