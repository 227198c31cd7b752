import json
import re
import shutil
import subprocess
from html import escape, unescape
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from medclr.evaluation import shift as evaluation
from medclr.reporting import shift_page as module
from medclr.reporting.findings import Answer
from medclr.reporting.html import FOREST_PX
from medclr.reporting.shift_page import shift_findings, shift_page

NAN = float("nan")
PLAIN: dict[str, Any] = {
    "auroc": 0.9, "half": 0.03, "p": 0.6, "n": 100, "positive": 40, "predicted": 0.42, "observed": 0.4,
    "sensitivity": 0.8, "specificity": 0.9, "moved": 1.0, "off": 1.0, "further": 1.0, "own": (0.0, 0.02),
    "joint": (0.0, 0.02), "reason": "",
}  # fmt: skip
FALLEN = {"auroc": 0.7, "p": 0.001}


def made(**domains: Any) -> Any:
    """What a classifier with an AUROC of 0.9 in PA shows elsewhere; PA itself may be given too."""
    given = {name: PLAIN | changes for name, changes in ({"PA": {}} | domains).items()}
    rows: dict[str, list[dict[str, Any]]] = {name: [] for name in evaluation._COLUMNS}
    for name, one in given.items():
        place = {"column": "view", "domain": name, "reason": one["reason"]}
        interval = {"low": one["auroc"] - one["half"], "high": one["auroc"] + one["half"]}
        counts = {"n": one["n"], "n_patients": one["n"], "n_positive": one["positive"]}
        counts |= {"n_negative": one["n"] - one["positive"], "is_source": name == "PA"}
        called = {what: one[what] for what in ("sensitivity", "specificity", "predicted", "observed")} | {"ece": 0.04}
        apart = one["predicted"] - one["observed"]
        called |= {"gap": apart, "gap_low": apart - 0.05, "gap_high": apart + 0.05, "gap_p": one["off"]}
        if name != "PA":
            change = apart - given["PA"]["predicted"] + given["PA"]["observed"]
            called |= {"gap_change": change, "gap_change_low": change - 0.08, "gap_change_high": change + 0.08}
            called |= {"gap_change_p": one["further"]}
        for what in ("sensitivity", "specificity"):
            called |= {f"{what}_low": one[what] - 0.05, f"{what}_high": one[what] + 0.05, f"{what}_p": one["moved"]}
        rows["domains"].append(place | counts | ({} if one["reason"] else {"auroc": one["auroc"]} | interval | called))
        if name != "PA":
            apart = {"column": "view", "domain": name, "versus": "PA", "mmd": 0.1, "noise": 0.01, "coral": 0.2}
            rows["distances"].append(apart)
            gap = one["auroc"] - given["PA"]["auroc"]
            numbers = {"difference": gap, "low": gap - 0.05, "high": gap + 0.05, "p_holm": one["p"], "detectable": 0.06}
            rows["differences"].append(place | {"source": "PA"} | ({} if one["reason"] else numbers))
        rows["heads"].append(place | {"head": evaluation.CLASSIFIER, "auroc": one["auroc"]} | interval)
        for head, (gain, half) in {evaluation.OWN: one["own"], evaluation.JOINT: one["joint"]}.items():
            gains = {"auroc": one["auroc"] + gain, "gain": gain, "gain_low": gain - half, "gain_high": gain + half}
            rows["heads"].append(place | interval | {"head": head} | gains)
    for among, auroc in (("all", 0.95), ("negatives", 0.94), ("positives", NAN)):
        reason = "" if auroc == auroc else "too few"
        rows["probes"].append(
            {"column": "view", "among": among, "n": 50, "auroc": auroc, "low": 0.9, "high": 0.97, "reason": reason}
        )
    frames = {name: pd.DataFrame(table, columns=evaluation._COLUMNS[name]) for name, table in rows.items()}
    return SimpleNamespace(**frames, sources={"view": "PA"}, thresholds={"view": 0.37})


def shortcut(domain: str, attribute: str, **changes: Any) -> dict[str, Any]:
    found = {"column": "view", "domain": domain, "attribute": attribute, "groups": 2, "reason": "", "p_holm": 0.9}
    found |= {"auroc": 0.6, "low": 0.5, "high": 0.7, "within": 0.88, "within_low": 0.8, "within_high": 0.9}
    return found | {"classifier": 0.9, "lost": 0.02, "lost_low": -0.01, "lost_high": 0.05} | changes


def context(**changes: Any) -> dict[str, Any]:
    test = {"n": 200, "n_patients": 180, "n_trained": 50, "n_uncheckable": 0, "n_pretrained": 0}
    return {
        "title": "Domain shift: pneumonia", "command": "shift", "command_line": "medclr shift --by view",
        "phantoms": False, "task": {"kind": "binary", "columns": ["pneumonia"], "outputs": ["1"]},
        "classes": ["0", "1"],
        "classifiers": [{"method": "linear", "fingerprint": "4f2a90b1"}], "learned": [1289], "known": True,
        "resamples": 2000,
        "test": test | changes.pop("test", {}), "trained": {"view": {"PA": 50}}, "versions": {"medclr": "0.1.0"},
        "hardware": {"cores": 2},
    } | changes  # fmt: skip


def answers(shift: Any, **changes: Any) -> list[Answer]:
    return shift_findings(shift, context(**changes))


def test_the_constants_are_those_of_the_evaluation() -> None:
    assert (module._CLASSIFIER, module._OWN, module._JOINT) == (evaluation.CLASSIFIER, evaluation.OWN, evaluation.JOINT)


def test_a_fall_is_one_where_holm_leaves_it_standing() -> None:
    found = answers(made(AP=FALLEN, LL={"auroc": 0.6, "p": 0.06}, OB={"auroc": 0.8, "p": 0.02}))[0]
    assert found.short == (
        "In LL (view): AUROC 0.600 (0.570 to 0.630); that this is lower than in PA is not shown. A fall against the "
        "source is shown in AP and OB (view)."
    )
    assert found.more[:2] == [
        f"view: AUROC {auroc} in {name}, 0.900 in PA; difference {said} after Holm's correction."
        for auroc, name, said in (
            ("0.700", "AP", "−0.200 (−0.250 to −0.150), p = 0.001"),
            ("0.800", "OB", "−0.100 (−0.150 to −0.050), p = 0.020"),
        )
    ]
    assert found.more[2] == (
        "Not resolved: LL (view). A true difference below 0.060 would often have gone unseen there (80% power, tested "
        "alone)."
    )


def test_without_a_fall_none_is_said_nor_that_there_is_none() -> None:
    lost, _, why, *_ = answers(made(AP={"auroc": 0.7, "p": 0.051}))
    open_ = "In AP (view): AUROC 0.700 (0.670 to 0.730); that this is lower than in PA is not shown."
    assert lost.short == f"{open_} In no domain is a fall shown."
    assert why.short == "No fall is shown that would have to be explained."
    better = answers(made(AP={"auroc": 0.97, "p": 0.001}))[0]
    assert better.short == (
        "In PA (view): AUROC 0.900 (0.870 to 0.930). It is the source, and shown to be lower than AP (view). In no "
        "domain is a fall shown."
    )
    assert "difference +0.070" in better.more[0]
    nothing = answers(made(AP={"reason": "no positive"}))[0]
    assert nothing.short == "Not known: no domain could be compared with its source (AP (view): no positive)."
    assert nothing.more == ["AP (view): n/a, no positive."]
    same = made(AP={"auroc": 0.9, "p": 1.0})
    same.differences["detectable"] = NAN  # of scores that are all alike
    assert answers(same)[0].more == ["Not resolved: AP (view)."]


def test_the_lowest_domain_is_always_named_and_whether_it_is_shown_to_be_that() -> None:
    """The lowest, which need not be the one that is furthest below its own source."""
    assert answers(made(AP=FALLEN))[0].short == (
        "In AP (view): AUROC 0.700 (0.670 to 0.730), which is shown to be lower than in PA, by 0.200."
    )
    short = answers(made(AP=FALLEN, LL=FALLEN | {"auroc": 0.8}))[0].short
    assert short.endswith("by 0.200. A fall against the source is shown in LL (view) too.")
    source = answers(made(AP={"auroc": 0.95, "p": 0.2}))[0].short
    assert source.startswith("In PA (view): AUROC 0.900 (0.870 to 0.930). It is the source, and not shown to be lower ")
    shift = made(PA={"reason": "no positive"}, AP={"auroc": 0.7}, LL={})
    shift.differences["reason"], shift.domains["sensitivity"] = "the source has no positive", NAN
    assert answers(shift)[0].short == (
        "In AP (view): AUROC 0.700 (0.670 to 0.730); there is no figure of its source. Not known: no domain could be "
        "compared with its source (AP (view): the source has no positive)."
    )
    # Of two columns whose domains have the same names: furthest from its source is the first AP, lowest the second.
    shift, other = made(AP=FALLEN), made(PA={"auroc": 0.65}, AP={"auroc": 0.6, "p": 0.01})
    for name in ("domains", "differences"):
        two = getattr(other, name).replace({"column": {"view": "sex"}})
        setattr(shift, name, pd.concat([getattr(shift, name), two], ignore_index=True))
    shift.sources = {"view": "PA", "sex": "PA"}
    assert answers(shift)[0].short == (
        "In AP (sex): AUROC 0.600 (0.570 to 0.630), which is shown to be lower than in PA, by 0.050. A fall against "
        "the source is shown in AP (view) too."
    )


def test_worse_than_chance_is_said_where_the_interval_is_below_it() -> None:
    said = "In AP (view) it ranks worse than chance: 0.300 (0.270 to 0.330)."
    assert said in answers(made(AP={"auroc": 0.3, "p": 0.001}))[0].more
    assert "chance" not in " ".join(answers(made(AP={"auroc": 0.48, "p": 0.001}))[0].more)


def test_a_threshold_is_not_to_be_carried_over_where_that_is_shown() -> None:
    found = answers(made(AP={"sensitivity": 0.5, "moved": 0.01}, LL={"sensitivity": 0.6, "moved": 0.2}))[1]
    sound = " Nothing shows that probabilities are off on average by more than 0.1, or further than in the source."
    assert found.short == (
        f"The threshold not to AP (view): sensitivity or specificity are others than in the source.{sound}"
    )
    assert found.more[0] == (
        "AP (view): sensitivity 0.500 (0.450 to 0.550) and specificity 0.900 (0.850 to 0.950) at the threshold of PA, "
        "which has 0.800 and 0.900 there."
    )
    unmoved = answers(made(AP={"sensitivity": 0.5, "moved": 0.2}))[1]
    assert unmoved.short == f"Nothing shows that sensitivity and specificity are others than in the source.{sound}"


OFF = {"predicted": 0.65, "off": 0.001}
NOT_TO = "The probabilities not to {} (view): on average they are too far from the share of positives."


def test_probabilities_are_off_where_that_is_shown_and_matters() -> None:
    found = answers(made(AP=OFF | {"further": 0.04}, LL=OFF | {"off": 0.06}, OB={"predicted": 0.45, "off": 0.01}))[1]
    assert found.short.endswith(f". {NOT_TO.format('AP')}")
    assert found.more[0] == (
        "AP (view): it predicts 0.650 on average, and 0.400 are positive: +0.250 (+0.200 to +0.300), p = 0.001 after "
        "Holm's correction; against PA +0.230 (+0.150 to +0.310)."
    )
    assert not any("LL (view): it predicts" in sentence for sentence in found.more)
    # A little off, yet shown to be further than the source.
    further = answers(made(AP={"predicted": 0.45, "off": 0.01, "further": 0.04}))[1]
    assert further.short.endswith(NOT_TO.format("AP"))
    # Another way off, but not further.
    nearer = answers(made(PA={"predicted": 0.47}, AP={"predicted": 0.35, "off": 0.01, "further": 0.04}))[1]
    assert nearer.short.endswith("or further than in the source.")


def test_that_the_source_is_off_itself_is_no_matter_of_a_domain() -> None:
    found = answers(made(PA=OFF, AP=OFF, LL={"predicted": 0.9, "off": 0.001, "further": 0.01}, OB={}))[1]
    assert found.short.endswith(
        f". {NOT_TO.format('LL')} The probabilities are off in the source itself: PA (view). They are not shown to be "
        "further off in AP (view)."
    )
    said = [sentence.split(" (")[0] for sentence in found.more if "predicts" in sentence]
    assert said == ["LL", "PA", "AP"]
    assert found.more[1].endswith("p = 0.001 after Holm's correction.")  # there is nothing to hold the source against


@pytest.mark.parametrize(
    "shift",
    [
        made(AP={"reason": "no positive"}),
        made(PA={"reason": "no positive"}, AP={"reason": ""} | {"sensitivity": NAN}),
        made(AP={"sensitivity": NAN}),
    ],
)
def test_a_threshold_that_met_no_other_domain_is_not_said_to_hold(shift: Any) -> None:
    assert (
        answers(shift)[1].short == "Not known: it takes a single label, and both classes in the source and elsewhere."
    )


def test_without_an_interval_none_is_written() -> None:
    shift = made(AP={})
    shift.domains[["sensitivity_low", "sensitivity_high"]] = NAN
    assert "sensitivity 0.800 and specificity 0.900 (0.850 to 0.950)" in answers(shift)[1].more[0]


GAIN, LITTLE, LOSS = (0.2, 0.05), (0.02, 0.05), (-0.2, 0.05)


@pytest.mark.parametrize(
    ("own", "joint", "there", "words"),
    [
        (LITTLE, LITTLE, LITTLE, "even with labels of its own the features are not shown to give more"),
        (GAIN, LITTLE, LITTLE, "the classifier's rule does not read it; no one rule is shown to serve both"),
        (GAIN, GAIN, LITTLE, "with labels of all domains, one rule is found that serves both"),
        (GAIN, (0.09, 0.02), LITTLE, "with labels of all domains, one rule is found that serves it in part"),
        (GAIN, GAIN, LOSS, "one rule for all domains serves it at the cost of PA"),
    ],
)
def test_what_the_features_hold(own: Any, joint: Any, there: Any, words: str) -> None:
    found = answers(made(PA={"joint": there}, AP=FALLEN | {"own": own, "joint": joint}))[2]
    assert found.short.startswith("AP (view): ")
    assert words in found.short
    assert ("Without labels of the target nothing can tell" in found.short) == (own is GAIN)
    assert found.more[0].startswith("AP: on the same features a head with labels of its own reaches 0.")
    assert found.more[1].startswith("In PA the gains of these are +0.000 (−0.020 to +0.020) and ")


def test_what_is_easier_does_not_hide_a_loss() -> None:
    lost, _, why, *_ = answers(made(AP={"own": GAIN, "joint": GAIN}))
    assert lost.short.endswith(" In no domain is a fall shown.")
    assert why.short.startswith("AP (view): the features still hold what the label asks for")
    assert why.more[0] == "No fall is shown in AP (view), and yet labels of its own bring more there."
    alike = answers(made(PA={"own": GAIN, "joint": GAIN}, AP={"own": GAIN, "joint": GAIN}))[2]
    assert alike.short == "No fall is shown that would have to be explained."


def test_many_domains_are_told_by_column_and_no_more_than_a_reader_takes_in() -> None:
    found = answers(made(**{f"D{i}": FALLEN | {"own": GAIN, "joint": GAIN} for i in range(9)}))
    assert found[2].short.startswith("D0, D1, D2, D3, D4, D5, D6, D7 and D8 (view): the features still hold")
    assert len(found[2].more) == 8
    assert found[2].more[-1] == "12 more; each stands where its number would, below."


def test_labels_that_bring_as_much_in_the_source_are_no_sign_of_another_rule() -> None:
    found = answers(made(PA={"own": GAIN, "joint": GAIN}, AP=FALLEN | {"own": GAIN, "joint": GAIN}))[2]
    assert found.short == "AP (view): labels of its own bring more, but so they do in PA: too few were learned from."


def test_a_rule_that_points_the_wrong_way_is_named() -> None:
    wrong = {"auroc": 0.3, "p": 0.001, "own": (0.5, 0.1)}
    said = "commoner among negatives"
    assert any(said in sentence for sentence in answers(made(AP=wrong))[2].more)
    assert not any(said in sentence for sentence in answers(made(AP=wrong | {"auroc": 0.49}))[2].more)
    shift = made(AP=wrong)
    shift.heads.loc[shift.heads["head"] != evaluation.CLASSIFIER, "reason"] = "too few"
    assert answers(shift)[2].short == "Not known: too few labels to fit a head to."


def test_a_domain_that_shows_in_the_features_and_other_prevalences_are_said() -> None:
    more = answers(made(AP={"positive": 60}, LL={"positive": 45}))[2].more
    assert more == [
        "The features show the view: a linear head reads it with AUROC 0.950 (0.900 to 0.970), 0.940 among negatives.",
        "view: 60% are positive in AP, 40% in PA: the label may mean something else there, or other patients are "
        "scanned.",
    ]
    hidden = made(AP={})
    hidden.probes["auroc"] = 0.6
    assert answers(hidden)[2].more == []


def test_shortcuts_are_named_where_holm_leaves_them_standing() -> None:
    shift = made(AP={})
    assert answers(shift)[3].short.startswith("Not known: nothing is on record")
    rows = [
        shortcut("AP", "sex", low=0.55, p_holm=0.2),
        shortcut("AP", "age", auroc=0.8, p_holm=0.01, lost=0.2, lost_low=0.1),
        shortcut("PA", "age", auroc=0.7, p_holm=0.01, lost=0.2, lost_low=-0.1),
        shortcut("PA", "kernel", auroc=0.75, p_holm=0.02, within=NAN, within_low=NAN, lost=NAN, lost_low=NAN),
        shortcut("PA", "model", auroc=0.2, p_holm=0.001),
        shortcut("PA", "site", reason="no positive", auroc=NAN, p_holm=NAN),
    ]
    shift.shortcuts = pd.DataFrame(rows)
    found = answers(shift)[3]
    assert found.short == "Age and kernel."
    alike = "; between volumes alike in it, the classifier has 0.880 (0.800 to 0.900), overall 0.900"
    assert found.more == [
        f"age alone tells the label with AUROC 0.800 (0.500 to 0.700) in AP{alike}: part of what it shows is that.",
        "kernel alone tells the label with AUROC 0.750 (0.500 to 0.700) in PA.",
        f"age alone tells the label with AUROC 0.700 (0.500 to 0.700) in PA{alike}.",
    ]
    shift.shortcuts = pd.DataFrame(rows[:1])
    assert answers(shift)[3].short == "Nothing that is on record is shown to."


def test_what_was_left_out_and_what_may_have_leaked() -> None:
    left = answers(made(AP={}))[4]
    assert "50 volumes" in left.short
    assert left.short.endswith("200 volumes of 180 patients are left to judge by.")
    assert left.more == []
    test = {"n": 203, "n_pretrained": 7, "n_uncheckable": 5}
    more = answers(made(AP={}), test=test, known=False)[4].more
    assert [sentence.split()[:4] for sentence in more] == [
        ["Pre-training", "saw", "7", "of"], ["Of", "5", "volumes", "it"], ["Not", "every", "file", "names"],
        ["view:", "3", "volumes", "of"],
    ]  # fmt: skip


class Page(HTMLParser):
    """Its tags and text; every tag is closed."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(html)
        self.close()
        assert not self.open
        self.text = re.sub(r"\s+", " ", self.text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in {"meta", "br", "path", "use", "line", "circle", "rect", "link"}:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if tag not in {"meta", "br", "path", "use", "line", "circle", "rect", "link"}:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.text += data


@pytest.fixture(scope="module")
def fallen() -> Any:
    shift = made(PA={"joint": LOSS}, AP=FALLEN | {"own": GAIN, "joint": GAIN}, LL={"reason": "no positive"})
    shift.shortcuts = pd.DataFrame([shortcut("AP", "age"), shortcut("PA", "site", reason="only 3 patients")])
    return shift


@pytest.fixture(scope="module")
def plain(fallen: Any) -> str:
    return shift_page(fallen, context())


def test_the_page_answers_first_and_is_whole(fallen: Any, plain: str) -> None:
    page = Page(plain)
    parts = ["Domain shift report", "Domain shift: pneumonia"]
    for answer in answers(fallen):
        parts += [answer.question, answer.short, *answer.more]
    parts += [
        "By domain", "PA (source)", "100 volumes of 100 patients", "40 positive volumes, 60 negative volumes",
        "learned from: 50 volumes", "n/a, because no positive", "Probabilities",
        "not to be compared between domains of", "Differences from the source", "0.001",
        "What the features hold", "was trained on 1,289; whichever has fewer may rank lower",
        "How far apart the domains lie", "MMD²", "Shortcuts",
        "n/a, because only 3 patients", "Methods", "Classifier: linear, fingerprint 4f2a90b1",
        "Threshold of PA (view): probability 0.370", "medclr shift --by view", "0.1.0", "medclr efficiency --labels",
    ]  # fmt: skip
    place = 0
    for part in parts:
        assert part in page.text[place:], part
        place = page.text.index(part, place) + len(part)
    assert "phantoms" not in page.text
    assert "Transductive" not in page.text
    assert not re.search(r"\bnan\b", re.sub(r"<style>.*?</style>", "", plain, flags=re.DOTALL))
    assert plain == shift_page(fallen, context())


def test_notices_stand_where_they_are_true(fallen: Any) -> None:
    page = Page(shift_page(fallen, context(phantoms=True, test={"n_pretrained": 7}))).text
    assert "generated phantoms, not patients" in page
    assert "Transductive in part. Pre-training saw 7 of these 200 volumes" in page


def test_a_table_has_the_numbers_of_its_frame(fallen: Any, plain: str) -> None:
    (table,) = re.findall(r'aria-label="Results by view">(.*?)</table>', plain, flags=re.DOTALL)
    rows = [unescape(re.sub(r"<[^>]*>", " ", row)) for row in re.findall(r"<tr>(.*?)</tr>", table, flags=re.DOTALL)]
    numbers = [re.findall(r"\d\.\d{3}", row) for row in rows[1:]]
    aurocs, rates = ["0.900", "0.870", "0.930"], ["0.800", "0.750", "0.850", "0.900", "0.850", "0.950"]
    assert numbers[0] == [*aurocs, *rates]
    assert numbers[1][:3] == ["0.700", "0.670", "0.730"]
    assert numbers[2] == []
    (table,) = re.findall(r'aria-label="Probabilities">(.*?)</table>', plain, flags=re.DOTALL)
    rows = [unescape(re.sub(r"<[^>]*>", " ", row)) for row in re.findall(r"<tr>(.*?)</tr>", table, flags=re.DOTALL)]
    numbers = [re.findall(r"[+−]?\d\.\d{3}", row) for row in rows[1:]]
    assert numbers[0] == ["0.420", "0.400", "+0.020", "−0.030", "+0.070", "1.000", "0.040"]
    assert numbers[1] == [*numbers[0][:-1], "+0.000", "−0.080", "+0.080", "1.000", "0.040"]
    assert numbers[2] == []


def places(html: str, label: str) -> np.ndarray:
    """Of each little plot of a table: zero, low, high and value, in px."""
    (table,) = re.findall(rf'aria-label="{label}">\s*<table>(.*?)</table>', html, flags=re.DOTALL)
    pattern = r'<line class="zero" x1="([\d.]+)".*?<line x1="([\d.]+)" x2="([\d.]+)".*?cx="([\d.]+)"'
    return np.array(re.findall(pattern, table), dtype=float)


@pytest.mark.parametrize(
    ("label", "frame", "zero", "columns"),
    [
        ("Results by view", "domains", 0.9, ["low", "high", "auroc"]),
        ("Differences from the source", "differences", 0.0, ["low", "high", "difference"]),
        ("Heads by view", "heads", 0.0, ["gain_low", "gain_high", "gain"]),
    ],
)
def test_intervals_are_drawn_on_one_scale(
    fallen: Any, plain: str, label: str, frame: str, zero: float, columns: list[str]
) -> None:
    table = getattr(fallen, frame)
    values = table.loc[table["reason"] == "", columns].dropna().to_numpy(float)
    values = np.column_stack([np.full(len(values), zero), values])
    found = places(plain, label)
    assert found.shape == values.shape
    slope, start = np.polyfit(values.ravel(), found.ravel(), 1)
    assert slope > 0
    np.testing.assert_allclose(found, slope * values + start, atol=0.11)
    assert 0 <= found.min() < found.max() <= FOREST_PX


@pytest.mark.parametrize("kind", ["multiclass", "multilabel"])
def test_of_several_outputs_there_is_no_threshold(kind: str) -> None:
    shift = made(AP=FALLEN)
    none = ["sensitivity", "specificity", "gap", "gap_change", "predicted", "observed", "ece"]
    shift.domains[[f"{what}{end}" for what in none[:4] for end in ("", "_low", "_high", "_p")] + none[4:]] = NAN
    shift.thresholds = {"view": NAN}
    if kind == "multiclass":
        shift.domains[["n_positive", "n_negative"]] = NAN
    page = Page(shift_page(shift, context(task={"kind": kind, "columns": ["a"], "outputs": ["a", "b", "c"]}))).text
    assert "Sensitivity" not in page
    assert "Threshold of" not in page
    assert "Predicted" not in page
    assert "In AP (view): AUROC 0.700" in page
    assert ("any positive" in page) == (kind == "multilabel")
    assert "nan" not in page


def test_a_shift_of_little_makes_a_page() -> None:
    """No figure in any domain, and no domain beside the source."""
    lost = {"reason": "no positive"}
    for shift in (made(), made(PA=lost, AP=lost)):
        for name in ("probes", "shortcuts", "distances"):
            setattr(shift, name, getattr(shift, name).iloc[:0])
        page = Page(shift_page(shift, context())).text
        assert "Not known: no domain could be compared with its source" in page
        assert "nan" not in page


def test_intervals_that_are_missing_are_not_drawn() -> None:
    """As of scores that are all alike."""
    shift = made(AP={"auroc": 0.5})
    shift.domains[["low", "high"]] = NAN
    shift.heads[["gain_low", "gain_high"]] = NAN
    shift.domains["sensitivity"] = NAN
    assert "nan" not in Page(shift_page(shift, context())).text
    assert '"nan"' not in shift_page(shift, context())


EVIL = "<script>alert(1)</script>\"'><img src=x onerror=alert(1)>{{ 7 * 7 }}$"


def test_everything_is_escaped_and_nothing_is_loaded() -> None:
    shift = made(**{EVIL: FALLEN | {"own": GAIN}, "LL": {"reason": EVIL}})
    shift.shortcuts = pd.DataFrame([shortcut(EVIL, EVIL, p_holm=0.01), shortcut("PA", "age", reason=EVIL)])
    for name in ("domains", "differences", "heads", "probes", "distances", "shortcuts"):
        setattr(shift, name, getattr(shift, name).replace({"column": {"view": EVIL}}))
    shift.sources, shift.thresholds = {EVIL: "PA"}, {EVIL: 0.4}
    classifiers = [{"method": EVIL, "fingerprint": EVIL}]
    html = shift_page(shift, context(title=EVIL, command_line=EVIL, classifiers=classifiers, trained={EVIL: {EVIL: 3}}))
    page = Page(html)
    assert EVIL in page.text
    assert not {tag for tag, _ in page.tags} & {"script", "link", "img", "iframe", "object", "form"}
    assert not [a for _, a in page.tags for name in ("src", "action", "srcset", "data", "onerror") if name in a]
    policy = [a["content"] for tag, a in page.tags if tag == "meta" and a.get("http-equiv")]
    assert policy == ["default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"]
    references = [a["href"] for _, a in page.tags if "href" in a] + re.findall(r"url\(([^)]*)\)", html)
    assert references
    assert all(str(reference).startswith("#") for reference in references)


WIDTHS = (390, 860)
PROBE = """
{frames}<pre id="out"></pre><script>
onload = () => out.textContent = JSON.stringify([...document.querySelectorAll('iframe')].map(frame => {{
  const page = frame.contentDocument, apart = e => e.closest('.scroll, svg');
  const right = [...page.querySelectorAll('main *')].filter(e => !apart(e)).map(e => e.getBoundingClientRect().right);
  return {{
    scroll: page.documentElement.scrollWidth, right: Math.max(...right), text: page.body.innerText.length,
    loaded: frame.contentWindow.performance.getEntriesByType('resource').length,
    texts: [...page.querySelectorAll('figure svg')].filter(e => e.getBoundingClientRect().width).map(svg =>
      [...svg.querySelectorAll('text')].map(e => e.getBoundingClientRect()).flatMap(e => [e.left, e.right])),
  }};
}}));
</script>
"""


@pytest.mark.skipif(not shutil.which("chromium"), reason="no chromium to look with")
def test_in_a_browser_nothing_overflows_and_nothing_is_loaded(tmp_path: Path) -> None:
    long = "a_column_of_a_user_whose_name_is_long_"
    shift = made(**{long * 2: FALLEN | {"own": GAIN, "joint": GAIN}, "LL": {"reason": f"{long * 3} is missing"}})
    shift.shortcuts = pd.DataFrame([shortcut(long * 2, long, p_holm=0.01), shortcut("PA", long * 3, reason=long * 3)])
    for name in ("domains", "differences", "heads", "probes", "distances", "shortcuts"):
        setattr(shift, name, getattr(shift, name).replace({"column": {"view": long}}))
    shift.sources, shift.thresholds = {long: "PA"}, {long: 0.4}
    html = shift_page(shift, context(title=long * 2, trained={}, command_line=f"medclr shift --by {long * 4}"))
    inside = [f'<iframe width="{width}" height="900" srcdoc="{escape(html)}"></iframe>' for width in WIDTHS]
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
    found = json.loads(unescape(re.findall(r'<pre id="out">(.*?)</pre>', dumped, flags=re.DOTALL)[0]))
    for width, one in zip(WIDTHS, found, strict=True):
        assert one["text"] > 3000
        assert one["scroll"] <= width
        assert one["right"] <= width
        (places,) = one["texts"]  # of the figure, of which one of two forms is shown
        assert 0 <= min(places) < max(places) <= width
        assert one["loaded"] == 0
