import math
import re
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medclr.evaluation.comparison import BASELINES, BETTER, verdict_of
from medclr.reporting import findings as module
from medclr.reporting.findings import Findings, findings, unlike, with_claims

FRACTIONS = (0.01, 0.1, 1.0)
CONTEXT: dict[str, Any] = {
    "task": {"kind": "binary"},
    "test": {"n_patients": 624},
    "leakage": "No test patient was seen.",
    "notes": ["A note."],
    "caveats": ["A caveat."],
}
Effect = tuple[float, float, float] | str  # difference, half of its interval, p after Holm; or why there is none


def curve(effects: dict[tuple[str, float], Effect], baselines: tuple[str, ...] = BASELINES, **changes: Any) -> Any:
    """A curve whose pre-trained arms differ as given from the better baseline, whose AUROC is 0.8 throughout."""
    arms = list(dict.fromkeys(arm for arm, _ in effects))
    points, differences = [], []
    for arm in (*baselines, *arms):
        for fraction in FRACTIONS:
            effect = effects.get((arm, fraction), (0.0, 0.1, 1.0))
            point = {"arm": arm, "fraction": fraction, "n_patients": round(400 * fraction), "reason": ""}
            point |= {"n_positive": 1, "n_negative": 1, "n_draws": 10 if fraction == 0.01 else 5, "n_encoders": 1}
            value = 0.8 - 0.1 * (arm == "scratch")
            row = {"arm": arm, "versus": BETTER, "baseline": "pca", "fraction": fraction, "reason": ""}
            if isinstance(effect, str):
                point |= {"auroc": math.nan, "low": math.nan, "high": math.nan, "reason": effect}
                row |= dict.fromkeys(("difference", "low", "high", "p_holm", "detectable", "delong_p"), math.nan)
                row["reason"] = effect
            else:
                difference, half, p_holm = effect
                if arm not in baselines:
                    value += difference
                point |= {"auroc": value, "low": value - 0.01, "high": value + 0.01}
                row |= {"difference": difference, "low": difference - half, "high": difference + half}
                row |= {"p_holm": p_holm, "detectable": 1.4 * half, "delong_p": p_holm if half < 0.03 else 0.2}
            points.append(point)
            if arm not in baselines and baselines:
                # Ahead of scratch, which is the worse of the two, every difference is larger, and resolved.
                ahead = {} if isinstance(effect, str) else {"difference": effect[0] + 0.1, "p_holm": 0.001}
                each = {"scratch": ahead, "pca": {}}
                differences += [row | {"versus": name, "baseline": name} | each[name] for name in baselines]
                differences.append(row)
    empty = pd.DataFrame(columns=["arm", "fraction", "measure", "column", "group", "reason"])
    columns = ["arm", "versus", "baseline", "fraction", "difference", "low", "high", "p_holm", "detectable", "delong_p"]
    columns += ["reason"]
    given: dict[str, Any] = {
        "points": pd.DataFrame(points),
        "differences": pd.DataFrame(differences, columns=columns),
        "measures": empty,
        "calibration": empty,
        "subgroups": empty,
        "needed": {arm: f"{arm} is reached with 12 labels" for arm in arms},
    }
    return SimpleNamespace(**given | changes)


def said(found: Findings) -> str:
    return " ".join(" ".join([answer.short, *answer.more]) for answer in found.answers)


HELPS, OPEN, HURTS = (0.05, 0.02, 0.001), (0.05, 0.08, 0.2), (-0.05, 0.02, 0.001)


def test_the_constants_are_those_of_the_evaluation() -> None:
    assert module.BASELINES == BASELINES
    assert module.BETTER == BETTER


def test_an_arm_that_helps_is_named_where_it_helps_and_nowhere_else() -> None:
    arms = {("a-full", 0.01): HELPS, ("a-full", 0.1): HELPS, ("a-full", 1.0): OPEN}
    which, many, sure, left = findings(curve(arms), CONTEXT).answers
    assert which.short == "a-full, with 1% and 10% of the labels."
    assert which.more[0].startswith("There it beats scratch and pca, after Holm's correction.")
    assert "With 100% no pre-trained arm is shown to beat the better baseline." in which.more
    assert "The better baseline is pca with 100%." in which.more
    assert many.short == "a-full helps with 4 and 40 labelled patients (1% and 10%)."
    assert "0.850 (0.840 to 0.860) with 1% and 0.850 (0.840 to 0.860) with 10%" in many.more[0]
    assert "a-full is reached with 12 labels" in many.more[1]
    assert sure.short == (
        "Of 3 comparisons with the better baseline, pre-training helps in 2 and the difference is not resolved in 1."
    )
    assert "a-full with 10%: +0.050 (+0.030 to +0.070) against pca, Holm's p of both = 0.001." in sure.more
    assert any("below 0.112 with 100% would" in sentence for sentence in sure.more)
    assert any("624 test patients and 5 or 10 draws" in sentence for sentence in sure.more)
    assert any("conditional" in sentence for sentence in sure.more)
    assert "Holm's correction is for all 6 comparisons of an arm with a baseline." in sure.more
    assert "A caveat." in sure.more
    assert left.short == "No test patient was seen. All 9 points are there."
    assert left.more == ["A note."]


def test_a_claim_that_the_second_opinion_does_not_share_says_so() -> None:
    shared, doubted = HELPS, (0.05, 0.04, 0.001)
    sure = findings(
        curve({("a-full", 0.1): shared, ("a-full", 1.0): doubted, ("a-full", 0.01): OPEN}), CONTEXT
    ).answers[2]
    (sentence,) = [sentence for sentence in sure.more if "DeLong" in sentence]
    assert "a-full with 100% is 0.200" in sentence
    place = sure.more.index(sentence)
    assert sure.more[place - 1].startswith("a-full with 100%: +0.050")


def test_labels_needed_say_what_they_lack() -> None:
    many = findings(curve({("a-full", fraction): HELPS for fraction in FRACTIONS}, needed={}), CONTEXT).answers[1]
    assert any(sentence.endswith("no AUROC of scratch with all labels, or no smaller share.") for sentence in many.more)


def test_few_arms_cover_all_fractions_and_the_others_are_named_too() -> None:
    better = (0.08, 0.02, 0.001)
    arms = {
        ("a-linear", 0.01): HELPS, ("a-linear", 0.1): HELPS, ("a-linear", 1.0): HURTS,
        ("a-full", 0.01): better, ("a-full", 0.1): OPEN, ("a-full", 1.0): OPEN,
        ("b-auto", 0.01): OPEN, ("b-auto", 0.1): OPEN, ("b-auto", 1.0): HELPS,
    }  # fmt: skip
    found = findings(curve(arms), CONTEXT)
    which = found.answers[0]
    assert which.short == "a-linear, with 1% and 10% of the labels; b-auto, with 100% of the labels."
    assert "So does a-full with 1%." in which.more
    assert "a-linear falls behind the better baseline with 100%." in which.more
    assert any("highest of 3 arms are optimistic" in sentence for sentence in which.more)
    assert any("auto" in sentence and "without the test set" in sentence for sentence in which.more)
    assert found.arm == "a-linear"


def test_the_best_of_a_fraction_is_one_that_helps_even_where_another_is_higher() -> None:
    arms = {("a-full", 0.1): (0.09, 0.2, 0.9), ("a-linear", 0.1): HELPS, ("a-knn", 0.1): (0.01, 0.1, 1.0)}
    glance = {row["fraction"]: row for row in findings(curve(arms), CONTEXT).glance}
    assert glance[0.1]["arm"]["arm"] == "a-linear"
    assert glance[0.1]["difference"]["claim"] == "helps"
    assert glance[0.1]["baseline"]["arm"] == "pca"
    none = {arm: effect for arm, effect in arms.items() if arm[0] != "a-linear"}
    assert findings(curve(none), CONTEXT).glance[1]["arm"]["arm"] == "a-full"


def test_without_help_the_baseline_is_named_and_nothing_is_claimed() -> None:
    which, many, sure, _ = findings(curve({("a-full", fraction): OPEN for fraction in FRACTIONS}), CONTEXT).answers
    assert which.short == "Undecided: no pre-trained arm is shown to beat the better baseline."
    assert which.more[:3] == [
        "a-full is above the better baseline with 1%, 10% and 100%, by +0.050, which is not resolved.",
        "a-full does beat scratch with 1%, 10% and 100%, after Holm's correction.",
        "Until that is settled, the baseline with the higher AUROC is pca with 1%, 10% and 100%; the baselines are not "
        "tested against each other.",
    ]
    assert sure.short == "Of 3 comparisons with the better baseline, the difference is not resolved in all 3."
    assert "does not show that pre-training helps" in many.more[-1]
    assert not any("optimistic" in sentence for sentence in which.more)  # one arm is not picked
    assert many.short == "No number of labels is shown at which pre-training helps."
    assert any(sentence.startswith("Not resolved is not equal") for sentence in sure.more)


def test_without_a_baseline_nothing_helps() -> None:
    arms: dict[tuple[str, float], Effect] = {("a-full", fraction): HELPS for fraction in FRACTIONS}
    which, many, sure, _ = findings(curve(arms, ("pca",)), CONTEXT).answers
    assert which.short == "Not known: scratch was not run, so nothing is said to help."
    assert "a-full is ahead of pca with 10%." in which.more
    assert many.short == "No number of labels is shown at which pre-training helps."
    assert "pre-training is ahead in all 3" in sure.short
    alone = findings(curve(arms, ()), CONTEXT)
    assert alone.answers[0].short == "Not known: there is nothing to compare."
    assert alone.arm == "a-full"


def test_what_is_missing_is_gathered_by_reason_and_leakage_is_never_cut_off() -> None:
    arms: dict[tuple[str, float], Effect] = {("a-full", 0.1): "it diverged", ("b-full", 0.1): "it diverged"}
    measures = [
        {"arm": arm, "fraction": 1.0, "measure": name, "reason": "no out-of-fold predictions"}
        for arm in ("scratch", "pca", "a-full", "b-full")
        for name in ("ECE after temperature scaling", "temperature")
    ]
    measures.append({"arm": "a-full", "fraction": 0.1, "measure": "ECE", "reason": "it diverged"})
    subgroups = [
        {"arm": "pca", "fraction": 1.0, "column": "view", "group": str(i), "reason": f"{i} is too few"}
        for i in range(9)
    ]
    found = findings(curve(arms, measures=pd.DataFrame(measures), subgroups=pd.DataFrame(subgroups)), CONTEXT)
    left = found.answers[3]
    assert left.short == "No test patient was seen. 2 of 12 points of the curve are missing."
    assert left.more[:3] == [
        "A note.",
        "AUROC of a-full and b-full with 10%: it diverged.",
        "ECE after temperature scaling and temperature of 4 arms with 100%: no out-of-fold predictions.",
    ]
    assert left.more[3] == "Subgroup view 0 (pca): 0 is too few."
    assert len(left.more) == 8
    assert left.more[-1].startswith("5 more")


@pytest.mark.parametrize("kind", ["binary", "multilabel"])
def test_what_the_task_cannot_have_is_not_missing(kind: str) -> None:
    rows = [{"arm": "pca", "fraction": 1.0, "measure": "sensitivity at 90% specificity", "reason": "of one label only"}]
    made = curve({("a-full", 1.0): OPEN}, measures=pd.DataFrame(rows))
    left = findings(made, CONTEXT | {"task": {"kind": kind}}).answers[3]
    assert any("of one label only" in sentence for sentence in left.more) == (kind == "binary")


effects = st.one_of(
    st.sampled_from(["it diverged"]),
    st.tuples(
        st.sampled_from([-0.05, -0.01, 0.01, 0.05]), st.sampled_from([0.01, 0.02]), st.sampled_from([0.04, 0.05])
    ),
)


@settings(max_examples=15, deadline=None)
@given(
    st.lists(effects, min_size=6, max_size=6),
    st.sampled_from([BASELINES, ("pca",), ("scratch",)]),
)
def test_no_claim_is_stronger_than_that_of_the_verdict(drawn: list[Effect], baselines: tuple[str, ...]) -> None:
    cells = [(arm, fraction) for arm in ("a-full", "b-full") for fraction in FRACTIONS]
    made = curve(dict(zip(cells, drawn, strict=True)), baselines)
    verdict = verdict_of(made.points, made.differences)
    words = {
        "helps": "helps", "is ahead": "is ahead", "hurts": "hurts",
        "shows no difference": "not resolved", "is not compared": "n/a",
    }  # fmt: skip
    claimed = {}
    for arm in ("a-full", "b-full"):
        (of_arm,) = re.findall(rf"{arm} (.*?)(?:; b-full|\.$)", verdict)
        for part in of_arm.split(", and "):
            claim = next(claim for start, claim in words.items() if part.startswith(start))
            for where in re.findall(r"([\d.]+)% \(", part):
                claimed[arm, float(where) / 100] = claim
    claims = with_claims(made.differences, made.points)
    assert dict(zip(zip(claims["arm"], claims["fraction"], strict=True), claims["claim"], strict=True)) == claimed

    which, many, *_ = findings(made, CONTEXT).answers
    helping = {where for where, claim in claimed.items() if claim == "helps"}
    named = {
        (arm, float(share) / 100)
        for arm, shares in re.findall(r"(\w-full), with ([^;]*?) of the labels", which.short)
        for share in re.findall(r"([\d.]+)%", shares)
    }
    assert named <= helping
    assert {fraction for _, fraction in named} == {fraction for _, fraction in helping}
    assert ("helps with" in many.short) == bool(helping)


def test_nan_is_never_said() -> None:
    made = curve({("a-full", 0.1): (0.0, 0.0, 1.0), ("a-full", 1.0): "it diverged"})
    made.differences["detectable"] = np.nan
    assert "nan" not in said(findings(made, CONTEXT))


@pytest.mark.parametrize(
    ("share", "other", "told"),
    [(0.3, 0.39, False), (0.3, 0.41, True), (0.01, 0.04, True), (0.01, 0.025, False), (0.02, 0.0, True), (0, 0, False)],
)
def test_shares_of_positives_are_unlike_by_a_tenth_or_threefold(share, other, told):
    assert unlike(share, other) == unlike(other, share) == told
