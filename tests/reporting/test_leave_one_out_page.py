"""The words of a report on domains that were left out are as strong as its numbers."""

import math
import re
from types import SimpleNamespace

import pandas as pd
import pytest

from medclr.reporting.leave_one_out_page import left_out_findings, left_out_page

CONTEXT = {
    "title": "Leave one domain out: pneumonia by room",
    "command_line": "medclr adapt --labels LABELS --target room",
    "column": "room",
    "phantoms": False,
    "transductive": False,
    "balance": False,
    "leakage": "No test patient was seen.",
    "task": {"kind": "binary", "columns": ["pneumonia"], "outputs": ["1"]},
    "encoders": [{"method": "SimCLR", "seed": 0, "fingerprint": "abcd"}],
    "training": {"steps": 200, "batch_size": 64, "lr": 1e-3, "weight_decay": 0.01, "alignment": 0.5},
    "n_unknown": 0,
    "n_several": 0,
    "known": True,
    "draws": 5,
    "resamples": 2000,
    "versions": {"medclr": "0"},
    "hardware": {"cores": 2},
}
NUMBERS = ("difference", "low", "high", "p_holm", "detectable")
OWN = "target-trained"
AT_HOME = {"coral": 0.92, "pseudo": 0.9}  # of source-only .91


def found(domains, choices=(("a", "coral", 10),)):
    """domains: of each the AUROC of source-only, its interval ± .03, and of methods difference and p; or a reason."""
    points, differences, rows = [], [], []
    methods = next(list(effects) for _, effects in domains.values() if effects)
    for name, (base, effects) in domains.items():
        reason = base if isinstance(base, str) else ""
        value = math.nan if reason else base
        points.append({"domain": name, "method": "source-only", **around(value), "reason": reason, "at_home": 0.91})
        for method in methods:
            effect, p = effects.get(method, (math.nan, math.nan))
            at_home = AT_HOME.get(method, math.nan)
            points.append({
                "domain": name, "method": method, **around(value + effect), "reason": reason, "at_home": at_home
            })  # fmt: skip
            numbers = (effect, effect - 0.02, effect + 0.02, p, 0.031)
            row = {"domain": name, "method": method, **dict(zip(NUMBERS, numbers, strict=True)), "reason": reason}
            differences.append(row)
        between = {"source-only": 0.0} | {method: effect for method, (effect, _) in effects.items() if method != OWN}
        rows.append({"domain": name, "oracle": "" if reason else max(between, key=between.get), "reason": reason})
    chosen = [{"domain": d, "method": m, "n": n, "of": 10, "left": 0.01} for d, m, n in choices]
    return SimpleNamespace(
        points=pd.DataFrame(points),
        differences=pd.DataFrame(differences),
        choices=pd.DataFrame(chosen, columns=["domain", "method", "n", "of", "left"]),
        domains=pd.DataFrame(rows),
    )


def around(value):
    return {"auroc": value, "low": value - 0.03, "high": value + 0.03}


def context(result, **given):
    names = list(result.domains["domain"])
    one = {"n": 100, "n_patients": 80, "shares": {"1": 0.5}, "others": {"1": 0.48}}
    domains = {name: one | {"report": f"room-{place}/report.html"} for place, name in enumerate(names)}
    for row in result.domains.to_dict("records"):
        if row["reason"]:
            domains[row["domain"]]["report"] = None
    return CONTEXT | {"domains": domains} | given


def answer(which, domains, choices=(("a", "coral", 10),), **given):
    result = found(domains, choices)
    return left_out_findings(result, context(result, **given))[which]


def effects(coral=(0.01, 0.9), own=(0.02, 0.9)):
    return {"coral": coral, "auto": (0.0, 0.9), OWN: own}


def test_the_worst_domain_is_named_and_whether_that_may_be_chance():
    apart = answer(0, {"a": (0.8, effects()), "b": (0.65, effects()), "c": (0.75, effects())})
    assert apart.short == "Room b, with an AUROC of 0.650 (0.620 to 0.680)."
    near = answer(0, {"a": (0.8, effects()), "b": (0.7, effects()), "c": (0.75, effects())})
    assert near.short.endswith(" But its interval overlaps with that of c: the order may be chance.")
    assert "that of all others" in answer(0, {name: (0.7, effects()) for name in "abc"}).short
    assert apart.more == []


def test_what_is_no_better_than_chance_is_said():
    said = answer(0, {"a": (0.45, effects()), "b": (0.51, effects()), "c": (0.75, effects())})
    assert said.more[0].startswith("a: 0.450 (0.420 to 0.480) is worse than chance: ")
    assert said.more[1] == "b: 0.510 (0.480 to 0.540) is not shown to be better than chance."


def test_labels_that_may_mean_other_things_are_warned_of():
    result = found({"a": (0.8, effects()), "b": (0.7, effects())})
    own = context(result)
    own["domains"]["b"] = own["domains"]["b"] | {"shares": {"1": 0.7}, "others": {"1": 0.45}}
    (line,) = left_out_findings(result, own)[0].more
    assert line.startswith("Of b 70% are positive, of the others 45%: the label may mean something else there")


def test_a_loss_is_one_only_after_holms_correction():
    said = answer(1, {"a": (0.7, effects(own=(0.05, 0.01))), "b": (0.7, effects(own=(0.08, 0.02)))})
    assert said.short == "0.080 AUROC in room b and 0.050 in a, against a head that has learned labels of the domain."
    assert said.more[0] == (
        "a: 0.700 with labels of the others, 0.750 with its own; difference +0.050 (+0.030 to +0.070), p = 0.010 after "
        "Holm's correction."
    )
    none = answer(1, {"a": (0.7, effects(own=(0.05, 0.06))), "b": (0.7, effects(own=(-0.08, 0.02)))})
    assert none.short == "No loss is shown: labels of a domain's own are not shown to give more."
    assert none.more[1] == "For b labels of the others are better than those of half of its own patients."
    assert none.more[2].startswith("Not resolved: a +0.050 (+0.030 to +0.070). A true difference below 0.031")


def test_gains_and_losses_of_methods_are_named_by_domain():
    said = answer(2, {"a": (0.7, effects(coral=(0.05, 0.01))), "b": (0.7, effects(coral=(-0.03, 0.02)))})
    assert said.short == "In room a by coral (+0.050). Worse than source-only: in room b by coral (−0.030)."
    assert said.more[0].startswith("coral in a: +0.050 (+0.030 to +0.070), p = 0.010")
    assert "Mean difference over domains: coral +0.010 and auto +0.000." in said.more
    assert said.more[-1].startswith("2 differences of 4 not resolved. A true difference below 0.031")
    assert OWN not in str(said)
    none = answer(2, {"a": (0.7, effects(coral=(0.05, 0.06))), "b": (0.7, effects())})
    assert none.short == "In none is a gain shown."


def test_the_choice_of_auto_stands_beside_that_of_the_oracle():
    domains = {"a": (0.7, effects(coral=(0.05, 0.01))), "b": (0.7, effects(coral=(-0.03, 0.02)))}
    choices = (("a", "coral", 8), ("a", "source-only", 2), ("b", "coral", 10))
    said = answer(3, domains, choices)
    assert said.short == "coral, but only in 18 of 20 halves of all domains."
    assert said.more == [
        "a: auto has 0.700, most often by coral (8 of 10 halves); the oracle's choice, which takes them, is coral with "
        "0.750, and that of source validation coral with 0.750.",
        "b: auto has 0.700, most often by coral (10 of 10 halves); the oracle's choice, which takes them, is "
        "source-only with 0.700, and that of source validation coral with 0.670.",
    ]
    without = {name: (0.7, {"coral": (0.01, 0.9), OWN: (0.02, 0.9)}) for name in "ab"}
    assert answer(3, without, ()).short == "Not known: auto was not run."
    assert answer(3, domains, (("a", "coral", 10), ("b", "coral", 10))).short == (
        "coral, in all 20 halves of all domains."
    )


@pytest.fixture
def lacking():
    why = "only 2 patients with a positive (fewer than 5)"
    return found({"a": (0.7, effects(own=(0.05, 0.01))), "<i>": (why, {}), "b": (0.8, effects(coral=(0.03, 0.01)))})


def test_what_was_left_out_and_what_was_seen(lacking):
    given = {"transductive": True, "n_unknown": 7, "n_several": 1, "known": False}
    said = left_out_findings(lacking, context(lacking, **given))[4]
    assert said.short.endswith("2 domains of 3 left out in turn and adapted to by halves.")
    assert said.more == [
        "<i> could not be judged, and is only learned from: only 2 patients with a positive (fewer than 5).",
        "7 volumes without a known room.",
        "No test patient was seen.",
        "So results are transductive, of all methods alike: new patients may be classified less well.",
        "1 patient has volumes in more than one domain; those in the source were left out wherever that patient was "
        "scored.",
        "Not every file names its patient: intervals are image-level, and may be too narrow.",
    ]
    whole = answer(4, {"a": (0.7, effects()), "b": (0.7, effects())})
    assert whole.short.endswith("; each of 2 domains left out in turn and adapted to by halves.")
    assert whole.more == ["No test patient was seen."]


def test_the_page_has_every_number_and_escapes_what_it_is_given(lacking):
    page = left_out_page(lacking, context(lacking, transductive=True))
    for text in ("0.750", "+0.050", "+0.030 to +0.070", "0.670 to 0.730", "n/a, because only 2 patients", "0.50 pos"):
        assert text in page
    assert page.index('class="group">a<') < page.index('class="group">b<') < page.index('class="group">&lt;i&gt;<')
    assert "<i>" not in page
    assert re.findall(r'<a href="([^"]+)"', page) == ["room-0/report.html", "room-2/report.html"]
    assert '<td class="n claim">+0.030' in page
    assert page.count("claim") == 1 + page.count(".claim")
    assert page.count("<strong>Transductive.") == 1
    assert "larger domains count more" in page
    assert not re.search(r"\bnan\b", page)
    equal = left_out_page(lacking, context(lacking, balance=True))
    assert "larger domains count more" not in equal
    assert "Domains of the source count the same" in equal


def test_a_page_of_several_classes_or_without_auto():
    domains = {name: (0.7, {"coral": (0.01, 0.9), OWN: (0.02, 0.9)}) for name in "ab"}
    result = found(domains, ())
    own = context(result, task={"kind": "multiclass", "columns": ["kind"], "outputs": ["x", "y"]})
    for one in own["domains"].values():
        one |= {"shares": {"x": 0.25, "y": 0.75}, "others": {"x": 0.5}}
    page = left_out_page(result, own)
    assert "Shares of labels" in page
    assert "0.25" in page
    assert "What auto chose" not in page
    assert "Of a 25% are x" in page
    assert not re.search(r"\bnan\b", page)
