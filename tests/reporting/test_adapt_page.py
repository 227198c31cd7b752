"""The words of a domain adaptation report are as strong as its numbers."""

import html
import math
import re
from types import SimpleNamespace

import pandas as pd
import pytest

from medclr.reporting.adapt_page import MEANINGS, adapt_findings, adapt_page

SIDES = {
    "source": {
        "name": "view PA",
        "n": 433,
        "n_patients": 384,
        "n_rest": 0,
        "n_rest_there": 0,
        "n_positive": 217,
        "shares": {"1": 0.5},
    },
    "target": {
        "name": "view AP",
        "n": 567,
        "n_patients": 340,
        "n_rest": 0,
        "n_rest_there": 0,
        "n_positive": 283,
        "shares": {"1": 0.52},
    },
}
CONTEXT = {
    **SIDES,
    "title": "Domain adaptation: pneumonia, view PA to view AP",
    "command_line": "medclr adapt --labels LABELS",
    "phantoms": False,
    "transductive": False,
    "leakage": "No test patient was seen.",
    "task": {"kind": "binary", "columns": ["pneumonia"], "outputs": ["1"]},
    "n_both": 42,
    "n_copies": 0,
    "encoders": [{"method": "SimCLR", "seed": 0, "fingerprint": "abcd"}],
    "training": {
        "steps": 200,
        "batch_size": 64,
        "lr": 1e-3,
        "weight_decay": 0.01,
        "alignment": 0.5,
        "negatives": "within",
    },
    "known": True,
    "balance": False,
    "draws": 5,
    "resamples": 2000,
    "classifier": "coral",
    "versions": {"medclr": "0"},
    "hardware": {"cores": 2},
}
UNJUDGED_WHY = "no volume of the target has a label"
UNJUDGED = {"at_home": math.nan, "entropy": math.nan}
Effects = dict[str, tuple[float, float] | str]  # difference from source-only and Holm's p, or why there is none


def found(effects, base=0.70, shares=None, choices=(("coral", 10, 0.05),), reason="", judged=None):
    """Intervals of AUROCs are ± .03; shares: by method with low and high; choices: method, halves, left; judged: by
    method what it has without labels of the target."""
    judged = {"source-only": {"at_home": 0.91, "entropy": 0.8}} | (judged or {})
    points, differences = [{"method": "source-only", **around(base), "reason": "", **judged["source-only"]}], []
    for method, effect in effects.items():
        if isinstance(effect, str):
            nothing = dict.fromkeys(("auroc", "low", "high"), math.nan)
            points.append({"method": method, **nothing, "reason": effect})
            row = dict.fromkeys(("difference", "low", "high", "p_holm", "detectable"), math.nan)
            differences.append({"method": method, **row, "reason": effect})
            continue
        value, p = effect
        points.append({"method": method, **around(base + value), "reason": "", **judged.get(method, UNJUDGED)})
        row = {"difference": value, "low": value - 0.02, "high": value + 0.02, "p_holm": p, "detectable": 0.031}
        differences.append({"method": method, **row, "reason": ""})
    gap = {"gap": 0.1, "gap_low": 0.06, "gap_high": 0.14}
    regained = [
        {"method": name, **gap, **dict(zip(("share", "low", "high"), share, strict=True)), "reason": reason}
        for name, share in (shares or {}).items()
    ]
    known = [row for row in points if not row["reason"] and row["method"] not in ("auto", "target-trained")]
    return SimpleNamespace(
        points=pd.DataFrame(points),
        differences=pd.DataFrame(differences),
        regained=pd.DataFrame(regained, columns=["method", *gap, "share", "low", "high", "reason"]),
        choices=pd.DataFrame(
            [{"method": m, "n": n, "of": sum(c[1] for c in choices), "left": left} for m, n, left in choices],
            columns=["method", "n", "of", "left"],
        ),
        oracle=max(known, key=lambda row: row["auroc"])["method"],
        shots=None,
    )


def around(value):
    return {"auroc": value, "low": value - 0.03, "high": value + 0.03}


BOUND = {"target-trained": (0.10, 0.001)}


def answer(which, *given, **named):
    context = CONTEXT | named.pop("context", {})
    return adapt_findings(found(*given, **named), context)[which]


def test_a_gain_is_one_only_after_holms_correction():
    clear = answer(0, {"coral": (0.06, 0.01), "pseudo": (0.04, 0.06), **BOUND})
    assert clear.short == "Yes: coral, by 0.060 AUROC."
    assert clear.more[0] == "coral: +0.060 (+0.040 to +0.080) against source-only, p = 0.010 after Holm's correction."
    assert clear.more[1].startswith("Not resolved: pseudo +0.040 (+0.020 to +0.060). A true difference below 0.031")
    assert answer(0, {"coral": (0.06, 0.051), **BOUND}).short == "No gain is shown."
    two = answer(0, {"coral": (0.06, 0.01), "auto": (0.07, 0.01), **BOUND})
    assert two.short == "Yes: coral and auto, the most auto, by 0.070 AUROC."


def test_a_loss_is_said_too_and_the_upper_bound_is_no_method():
    lost = answer(0, {"coral": (-0.06, 0.01), **BOUND})
    assert lost.short == "No gain is shown. Worse than source-only: coral."
    assert "target-trained" not in str(lost)


def test_a_classifier_that_is_worse_than_none_is_not_commended():
    """It is made by what auto chose, or without auto by what was asked for; no figure of the target decides that."""
    warned = " classifier/ is made by coral: rather take one of medclr finetune."
    effects = {"coral": (-0.06, 0.01), "auto": (-0.05, 0.01), **BOUND}
    assert answer(0, effects).short == f"No gain is shown. Worse than source-only: coral and auto.{warned}"
    assert warned not in answer(0, effects | {"auto": (-0.05, 0.2)}).short
    alone = {"coral": (-0.06, 0.01), "pseudo": (-0.06, 0.01), **BOUND}
    assert answer(0, alone, choices=()).short.endswith(f"coral and pseudo.{warned}")
    assert warned not in answer(0, alone, choices=(), context={"classifier": "histogram"}).short


def test_a_gain_that_stays_at_chance_is_called_that():
    low = answer(0, {"coral": (0.05, 0.001), **BOUND}, base=0.45)
    assert low.short == "Yes: coral, by 0.050 AUROC."
    assert low.more[1] == "With an AUROC of 0.500 (0.470 to 0.530), coral is not shown to rank better than chance."
    assert "chance" not in str(answer(0, {"coral": (0.05, 0.001), **BOUND}))


def test_what_could_not_be_computed_is_not_passed_over():
    lacking = answer(0, {"coral": "training diverged", **BOUND})
    assert lacking.short == "Not known: no method could be compared."
    assert lacking.more == ["coral: n/a, training diverged."]


@pytest.mark.parametrize(
    ("shares", "short"),
    [
        ({"coral": (0.5, 0.2, 0.8), "auto": (0.4, 0.1, 0.7)}, "By auto 40% (10% to 70%)."),
        ({"coral": (0.5, 0.2, 0.8), "auto": (0.1, -0.1, 0.3)}, "None is shown: by auto 10% (−10% to 30%)."),
        ({"coral": (0.5, 0.2, 0.8), "pseudo": (0.1, -0.1, 0.2)}, "By coral 50% (20% to 80%)."),
        ({"pseudo": (0.1, -0.1, 0.2)}, "None is shown."),
    ],
)
def test_the_share_is_that_of_auto_and_none_is_said_where_it_may_be_nothing(shares, short):
    said = answer(1, dict.fromkeys(shares, (0.05, 0.01)) | BOUND, shares=shares)
    assert said.short == short
    assert said.more[0] == (
        "Source-only has 0.700, a head with labels of the target on the encoder's features 0.800: a gap of +0.100 "
        "(+0.060 to +0.140)."
    )


def test_without_a_gap_there_is_no_share_to_tell():
    why = "the gap to labels of the target is below 0.03"
    said = answer(1, {"coral": (0.05, 0.01), **BOUND}, shares={"coral": (math.nan,) * 3}, reason=why)
    assert said.short == f"There is no share to tell: {why}."
    assert "nan" not in str(said)
    assert answer(1, {"coral": "diverged", **BOUND}).short.startswith("Not known")


def test_the_choice_of_auto_stands_beside_that_of_the_oracle():
    effects = {"coral": (0.06, 0.01), "pseudo": (0.01, 0.5), "auto": (0.05, 0.01), **BOUND}
    judged = {"coral": {"at_home": 0.9, "entropy": 0.9}}
    same = answer(2, effects, judged=judged)
    assert same.short == "coral, in all 10 halves."
    assert same.more[0] == "The oracle's choice, which takes labels of the target, is coral with 0.760; auto has 0.750."
    split = answer(2, effects, choices=(("coral", 7, 0.84), ("source-only", 3, 0.6)), judged=judged)
    assert split.short == "coral, but only in 7 of 10 halves."
    assert same.more[1] == (
        "The source-validation choice, by patients of the source alone, is source-only: 0.910 there, 0.700 on the "
        "target."
    )
    assert same.more[2] == (
        "The choice by entropy, surest of its answers in the target, is source-only: 0.800 of 1, 0.700 on the target."
    )
    assert split.more[3:] == [
        "coral in 7 of 10 halves, where the domains are then 0.8 times what chance makes apart.",
        "source-only in 3 of 10 halves, where the domains are then 0.6 times what chance makes apart.",
    ]
    assert answer(2, effects, choices=(("coral", 10, 3.2),)).more[-1].endswith("and the choice is less sure.")
    assert answer(2, {"coral": (0.06, 0.01), **BOUND}, choices=()).short == "Not known: auto was not run."


def test_source_validation_and_entropy_may_choose_differently():
    judged = {"coral": {"at_home": 0.9, "entropy": 0.5}, "pseudo": {"at_home": 0.92, "entropy": 0.6}}
    more = answer(2, {"coral": (0.06, 0.01), "pseudo": (0.01, 0.5), **BOUND}, judged=judged).more
    assert "is pseudo: 0.920 there, 0.710 on the target." in more[1]
    assert "is coral: 0.500 of 1, 0.760 on the target." in more[2]
    unknown = answer(2, {"coral": "diverged", **BOUND}, judged={"source-only": UNJUDGED}).more
    assert not [line for line in unknown if "nan" in line]
    alone = answer(2, {"dann": (0.06, 0.01), "mmd": (0.01, 0.5), **BOUND}, choices=()).more
    assert not [line for line in alone if "choice by entropy" in line or "source-validation" in line]
    assert "dann and mmd learned all labels of the source, by which nothing can choose them then." in alone


def test_where_classes_are_shared_otherwise_a_choice_is_doubted():
    target = {**CONTEXT["target"], "shares": {"1": 0.2}}
    doubt = "No distance sees that classes are shared otherwise in the target, as they are: do not rely on it."
    effects = {"coral": (0.06, 0.01), "auto": (0.06, 0.01), **BOUND}
    assert answer(2, effects, context={"target": target}).more[-1] == doubt
    assert doubt not in answer(2, effects).more


def test_of_a_target_without_labels_nothing_is_claimed():
    empty = {"name": "view AP", "n": 0, "n_patients": 0, "n_rest": 500, "n_rest_there": 567, "shares": {}}
    judged = {"source-only": {"at_home": 0.92, "entropy": 0.6}, "coral": {"at_home": 0.9, "entropy": 0.5}}
    bare = found({"coral": UNJUDGED_WHY}, judged=judged, choices=(("coral", 2, 0.8), ("source-only", 1, 3.0)))
    bare.oracle, bare.points = "", bare.points.assign(auroc=math.nan, **{"at_home": [0.92, 0.9], "entropy": [0.6, 0.5]})
    gained, chosen, excluded = adapt_findings(bare, CONTEXT | {"target": empty})
    assert gained.short == "Not known: no volume of view AP has a label."
    assert chosen.short == "coral, but only in 2 of 3 encoders."
    assert chosen.more[:2] == [
        "The source-validation choice, by patients of the source alone, is source-only: 0.920 there.",
        "The choice by entropy, surest of its answers in the target, is coral: 0.500 of 1.",
    ]
    assert "500 volumes without a label, drawn at random from 567" in excluded.short
    bare.choices = bare.choices.iloc[:1].assign(n=1, of=1)
    one = adapt_findings(bare, CONTEXT | {"target": empty})[1]
    assert one.short == "coral."
    assert "coral leaves the domains 0.8 times what chance makes apart." in one.more


def test_what_is_left_to_labels():
    assert answer(3, {"coral": (0.06, 0.01), **BOUND}).short == (
        "0.040 AUROC between coral, the highest, and a head with labels of the target: that is left to labels, or to "
        "what changes the encoder."
    )
    assert answer(3, {"coral": (0.06, 0.01), "target-trained": (0.1, 0.06)}).short == (
        "Nothing is shown to be left: labels of the target are not shown to give more."
    )
    assert answer(3, {"coral": (0.1, 0.01), **BOUND}).short == (
        "Nothing: coral is not below a head with labels of the target."
    )
    assert answer(3, {"coral": (0.1, 0.01), "target-trained": "diverged"}).short == "Not known."


def test_labels_that_may_mean_other_things_are_warned_of():
    assert answer(3, {"coral": (0.06, 0.01), **BOUND}).more == []
    worse = answer(3, {"coral": (0.06, 0.01), **BOUND}, base=0.44)
    assert worse.more[0].startswith("On the target source-only ranks worse than chance, 0.440 (0.410 to 0.470): ")
    other = SIDES["target"] | {"shares": {"1": 0.61}}
    (rarer,) = answer(3, {"coral": (0.06, 0.01), **BOUND}, context={"target": other}).more
    assert rarer.startswith("Of the target 61% are positive, of the source 50%: the label may mean something else")
    several = {"kind": "multilabel", "columns": ["1"], "outputs": ["1"]}
    (of_label,) = answer(3, {"coral": (0.06, 0.01), **BOUND}, context={"target": other, "task": several}).more
    assert of_label.startswith("Of the target 61% are 1,")


def test_what_was_left_out_and_what_was_seen():
    said = answer(4, {"coral": (0.06, 0.01), **BOUND})
    assert said.short == (
        "No adaptation that scored a volume saw its patient: 567 volumes of 340 patients of view AP, adapted to by "
        "halves from 433 labelled volumes of view PA."
    )
    assert said.more == [
        "No test patient was seen.",
        "42 patients of the target have volumes in the source too, which were left out wherever that patient was "
        "scored.",
    ]
    seen = answer(4, {"coral": (0.06, 0.01), **BOUND}, context={"transductive": True, "n_both": 0, "known": False})
    assert [line.split()[0] for line in seen.more] == ["No", "So", "Not"]


def test_the_page_has_every_number_and_escapes_what_it_is_given():
    effects = {
        "adabn": "training diverged",
        "coral": (0.06, 0.01),
        "pseudo": (0.01, 0.9),
        "histogram": (0.01, 0.9),
        "fourier": (0.0, 0.9),
        "auto": (0.05, 0.02),
        **BOUND,
    }
    result = found(effects, shares={"coral": (0.6, 0.2, 0.9), "auto": (0.5, 0.1, 0.8)})
    side = SIDES["target"] | {"name": "view <b>AP</b>"}
    page = adapt_page(result, CONTEXT | {"target": side, "transductive": True})
    for text in ("0.760", "0.730 to 0.790", "0.60", "0.20 to 0.90", "+0.060", "10 of 10", "n/a, because training"):
        assert text in page
    assert "<b>AP" not in page
    assert "view &lt;b&gt;AP&lt;/b&gt;" in page
    assert page.count("<strong>Transductive.") == 1
    assert "phantoms" not in page
    assert not re.search(r"\bnan\b", page)
    assert all(
        meaning in html.unescape(page) for name, meaning in MEANINGS.items() if name in {*effects, "source-only"}
    )
    assert "The encoder is frozen. " in page
    assert "conditional on one encoder" in page
    assert "means over 2 encoders" in adapt_page(result, CONTEXT | {"encoders": CONTEXT["encoders"] * 2})


def test_a_page_says_how_networks_were_trained():
    effects = {name: (0.01, 0.9) for name in MEANINGS if name not in ("source-only", "target-trained")} | BOUND
    page = html.unescape(adapt_page(found(effects), CONTEXT))
    assert all(meaning in page for meaning in MEANINGS.values())
    assert "frozen but for simclr-target, simclr-both, finetuned, deep-coral, mmd and dann." in page
    assert "200 steps by AdamW of batches of 64" in page
    assert "the second loss with weight 0.5. Negatives are of the same domain. There is no" in page
    assert "the second loss" not in adapt_page(found({"simclr-both": (0.01, 0.9), **BOUND}), CONTEXT)
    assert answer(3, {"coral": (0.06, 0.01), **BOUND}).short.endswith("to labels, or to what changes the encoder.")
    assert answer(3, {"dann": (0.06, 0.01), **BOUND}).short.endswith("that is left to labels.")


def test_a_page_without_auto_or_a_gap():
    why = "the gap to labels of the target is not resolved"
    result = found(
        {"coral": (0.01, 0.9), "target-trained": (0.04, 0.2)}, choices=(), shares={"coral": (math.nan,) * 3}, reason=why
    )
    page = adapt_page(result, CONTEXT)
    assert "What auto chose" not in page
    assert "grouped at random" not in page
    assert not re.search(r"\bnan\b", page)
