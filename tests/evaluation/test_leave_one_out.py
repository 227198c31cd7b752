"""Tables of domains that were left out in turn, against those of each alone."""

import math

import numpy as np
import pandas as pd
import pytest

from medclr.evaluation.adaptation import Adaptation
from medclr.evaluation.leave_one_out import left_out_in_turn

METHODS = ["source-only", "coral", "auto", "target-trained"]


def adaptation(values, oracle="coral", choices=(("coral", 4),), reason=""):
    """values: AUROC and p of each method."""
    points = [{"method": name, "auroc": auroc, "reason": ""} for name, (auroc, _) in values.items()]
    base = values["source-only"][0]
    differences = [
        {"method": name, "difference": auroc - base, "p": p, "p_holm": 0.5, "reason": reason if p != p else ""}
        for name, (auroc, p) in values.items()
        if name != "source-only"
    ]
    regained = [{"method": name, "share": 0.1, "reason": ""} for name in values if name in ("coral", "auto")]
    chosen = [{"method": name, "n": n, "of": 4, "left": 0.01} for name, n in choices]
    columns = ["method", "n", "of", "left"]
    frames = (pd.DataFrame(points), pd.DataFrame(differences), pd.DataFrame(regained))
    return Adaptation(*frames, pd.DataFrame(chosen, columns=columns), oracle)


A = {"source-only": (0.7, math.nan), "coral": (0.72, 0.01), "auto": (0.71, 0.02), "target-trained": (0.8, 0.001)}
B = {"source-only": (0.6, math.nan), "coral": (0.59, 0.03), "auto": (0.6, 0.9), "target-trained": (0.7, 0.004)}
FEW = "only 2 patients with a positive (fewer than 5)"


@pytest.fixture
def found():
    return left_out_in_turn({"a": adaptation(A), "few": FEW, "b": adaptation(B, "source-only", ())}, METHODS)


def test_each_table_has_the_rows_of_each_domain_in_order(found):
    assert list(found.points["domain"]) == ["a"] * 4 + ["few"] * 4 + ["b"] * 4
    assert list(found.points["method"]) == METHODS * 3
    judged = found.points[found.points["domain"] != "few"]
    np.testing.assert_allclose(judged["auroc"], [auroc for one in (A, B) for auroc, _ in one.values()])
    assert list(found.choices["domain"]) == ["a"]
    assert found.domains.to_dict("records") == [
        {"domain": "a", "oracle": "coral", "reason": ""},
        {"domain": "few", "oracle": "", "reason": FEW},
        {"domain": "b", "oracle": "source-only", "reason": ""},
    ]
    assert found.frame() is found.points


def test_the_correction_is_over_all_domains_and_methods(found):
    """Holm 1979: the i-th smallest of m, times m - i + 1, and never below that before it."""
    rows = found.differences[found.differences["reason"] == ""]
    ordered = sorted(rows.to_dict("records"), key=lambda row: row["p"])
    least = 0.0
    for place, row in enumerate(ordered):
        least = max(least, min(1.0, row["p"] * (len(ordered) - place)))
        assert row["p_holm"] == pytest.approx(least)
    assert len(ordered) == 6
    assert rows.set_index(["domain", "method"]).loc[("a", "target-trained"), "p_holm"] == pytest.approx(0.006)
    assert rows.set_index(["domain", "method"]).loc[("b", "target-trained"), "p_holm"] == pytest.approx(0.02)


def test_what_could_not_be_judged_has_a_reason_and_no_number(found):
    for name, n in (("points", 4), ("differences", 3), ("regained", 2)):
        rows = getattr(found, name).query("domain == 'few'")
        assert len(rows) == n
        assert (rows["reason"] == FEW).all()
        assert rows.drop(columns=["domain", "method", "reason"]).isna().all(axis=None)


def test_a_comparison_that_failed_is_not_corrected_for():
    lacking = adaptation(A | {"coral": (math.nan, math.nan)}, reason="n/a in 1 of 4 draws")
    rows = left_out_in_turn({"a": lacking, "b": adaptation(B)}, METHODS).differences.set_index(["domain", "method"])
    assert math.isnan(rows.loc[("a", "coral"), "p_holm"])
    assert rows.loc[("a", "target-trained"), "p_holm"] == pytest.approx(0.001 * 5)
