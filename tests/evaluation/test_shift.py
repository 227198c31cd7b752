import math
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy.special import expit, logit, ndtr, stdtr
from sklearn.metrics import roc_auc_score

from medclr.evaluation.shift import ALL, CLASSIFIER, JOINT, OWN, Judged, Shift, domain_shift
from medclr.metrics import holm, interval, threshold_at


def heads(features: np.ndarray, y: np.ndarray, patients: np.ndarray, exclusive: bool) -> tuple[np.ndarray, np.ndarray]:
    """Least squares in two folds of patients: crude, and quick."""
    scores = np.zeros(y.shape)
    second = np.unique(patients, return_inverse=True)[1] % 4 < 2  # both classes of `made` in each
    x = np.column_stack([features - features.mean(axis=0), np.ones(len(y))])
    for held in (second, ~second):
        for of_label, label in zip(scores.T, y.T, strict=True):
            own = ~held & ~np.isnan(label)
            of_label[held] = x[held] @ np.linalg.lstsq(x[own], label[own], rcond=None)[0]
    return scores, second.astype(int)


def of_each_head(y: np.ndarray, scores: np.ndarray, head: np.ndarray) -> float:
    """AUROC over the pairs that one head has scored."""
    y, scores = y.ravel(), scores.ravel()
    ranked = {one: roc_auc_score(y[head == one], scores[head == one]) for one in set(head)}
    pairs = {one: (y[head == one] == 1).sum() * (y[head == one] == 0).sum() for one in ranked}
    return sum(ranked[one] * pairs[one] for one in ranked) / sum(pairs.values())


class Made:
    """Patients of two scans, the first half in domain A and the others in B; every other one is positive."""

    def __init__(self, patients: int = 80, seed: int = 0) -> None:
        self.rng = np.random.default_rng(seed)
        self.patients = np.repeat([f"p{number:03d}" for number in range(patients)], 2).astype(object)
        self.y = np.repeat(np.arange(patients) % 2, 2)[:, None].astype(float)
        self.domain = np.repeat(["A", "B"], patients).astype(object)
        self.features = self.rng.normal(size=(2 * patients, 3)) + [1.5, 0, 0] * self.y
        self.scores = [self.features[:, :1] - 0.75]
        self.attributes: dict[str, Any] = {}
        self.kind, self.temperatures = "binary", [1.0]

    @property
    def b(self) -> np.ndarray:
        return self.domain == "B"

    def found(self, source: str = "A", resamples: int = 150) -> Shift:
        judged = Judged(
            self.y, self.kind, self.patients, self.scores, self.temperatures, [self.features] * len(self.scores),
            pd.DataFrame({"place": self.domain}), pd.DataFrame({"place": self.domain} | self.attributes),
        )  # fmt: skip
        return domain_shift(judged, {"place": source}, heads, resamples, 0)


@pytest.fixture
def made() -> Made:
    return Made()


def the(frame: pd.DataFrame, **where: Any) -> pd.Series:
    (_, row), *others = frame[np.logical_and.reduce([frame[k] == v for k, v in where.items()])].iterrows()
    assert not others
    return row


def test_each_domain_has_its_own_auroc_and_counts(made: Made) -> None:
    found = made.found()
    assert found.sources == {"place": "A"}
    pd.testing.assert_frame_equal(found.frame(), found.domains)
    assert found.domains[["domain", "is_source"]].to_numpy().tolist() == [["A", True], ["B", False]]
    for name in "AB":
        own, row = made.domain == name, the(found.domains, domain=name)
        assert row["auroc"] == pytest.approx(roc_auc_score(made.y[own, 0], made.scores[0][own, 0]))
        assert 0 < row["low"] < row["auroc"] < row["high"] < 1
        assert row[["n", "n_patients", "n_positive", "n_negative"]].tolist() == [80, 40, 40, 40]
        p = expit(made.scores[0][own, 0])
        assert (row["predicted"], row["observed"]) == (pytest.approx(p.mean()), 0.5)
        assert 0 < row["ece"] < 0.3
    difference = the(found.differences, domain="B")
    assert difference["difference"] == pytest.approx(found.domains["auroc"][1] - found.domains["auroc"][0])
    assert difference["low"] < difference["difference"] < difference["high"]
    assert (difference["source"], difference["p"]) == ("A", difference["p_holm"])
    pd.testing.assert_frame_equal(made.found().differences, found.differences)


def test_of_several_classifiers_all_figures_are_means(made: Made) -> None:
    made.scores = [made.scores[0] + noise * made.rng.normal(size=made.y.shape) for noise in (0.1, 0.8, 0.5)]
    made.temperatures = [1.0, 2.0, 0.5]
    found = made.found()
    for name in "AB":
        own, row = made.domain == name, the(found.domains, domain=name)
        y = made.y[own, 0]
        assert row["auroc"] == pytest.approx(np.mean([roc_auc_score(y, one[own, 0]) for one in made.scores]))
        probabilities = [expit(one[own] / t).mean() for one, t in zip(made.scores, made.temperatures, strict=True)]
        assert row["predicted"] == pytest.approx(np.mean(probabilities))
        # Over classifiers too: by as much as they differ the interval is wider.
        assert row["gap_high"] - row["gap_low"] > 2 * 1.96 * np.std(probabilities, ddof=1) / math.sqrt(3)
    limits = [threshold_at(made.y[~made.b, 0], one[~made.b, 0], 0.9) for one in made.scores]
    called = [
        made.y[made.b & (one[:, 0] >= limit), 0].sum() / 40 for one, limit in zip(made.scores, limits, strict=True)
    ]
    assert the(found.domains, domain="B")["sensitivity"] == pytest.approx(np.mean(called))
    as_probabilities = [expit(limit / t) for limit, t in zip(limits, made.temperatures, strict=True)]
    assert found.thresholds == {"place": pytest.approx(np.mean(as_probabilities))}


def naive_gaps(made: Made, resamples: int) -> np.ndarray:
    """(resamples, 2): mean prediction less the share of positives in A and in B, of patients drawn within these."""
    rng, off = np.random.default_rng(1), (expit(np.mean(made.scores, axis=0)) - made.y)[:, 0]
    sums = [
        np.array([(off[own].sum(), own.sum()) for own in (made.patients == p for p in np.unique(made.patients[rows]))])
        for rows in (~made.b, made.b)
    ]
    drawn = [one[rng.integers(len(one), size=(resamples, len(one)))].sum(axis=1) for one in sums]
    return np.stack([one[:, 0] / one[:, 1] for one in drawn], axis=1)


def test_a_gap_of_predictions_and_what_is_true_has_the_interval_of_its_patients(made: Made) -> None:
    """Who is positive is drawn too: predictions that are all alike are not certain to be right."""
    made.scores[0][made.b] += 1.4
    for constant in (False, True):
        if constant:
            made.scores = [np.where(made.b, 1.0, 0.0)[:, None]]
        found = made.found(resamples=1000)
        a, b = (the(found.domains, domain=name) for name in "AB")
        drawn = naive_gaps(made, 4000)
        for row, values in ((a, drawn[:, 0]), (b, drawn[:, 1])):
            assert row["gap"] == pytest.approx(row["predicted"] - row["observed"])
            t, n = 2.093, 20  # patients of the rarer class
            half = t * values.std() * math.sqrt(n / (n - 1))
            assert (row["gap_low"], row["gap_high"]) == pytest.approx((row["gap"] - half, row["gap"] + half), rel=0.1)
        assert b["gap_change"] == pytest.approx(b["gap"] - a["gap"])
        half = t * (drawn[:, 1] - drawn[:, 0]).std() * math.sqrt(n / (n - 1))
        low, high = b["gap_change"] - half, b["gap_change"] + half
        assert (b["gap_change_low"], b["gap_change_high"]) == pytest.approx((low, high), rel=0.1)
        assert math.isnan(a["gap_change_p"])
        assert b["gap_p"] < 0.05 < a["gap_p"]


def test_gaps_are_corrected_together_and_apart_from_thresholds(made: Made) -> None:
    made.scores[0][made.b] += 0.9
    found, alone = made.found(resamples=400), {}
    for domain, what in (("A", "gap"), ("B", "gap"), ("B", "gap_change")):
        row = the(found.domains, domain=domain)
        error = (row[f"{what}_high"] - row[f"{what}_low"]) / 2 / 2.093
        # The t of its interval, for 20 patients of a class.
        alone[domain, what] = 2 * stdtr(19, -abs(row[what]) / error)
    corrected = dict(zip(alone, holm(np.array(list(alone.values()))), strict=True))
    for (domain, what), p in corrected.items():
        assert the(found.domains, domain=domain)[f"{what}_p"] == pytest.approx(p, rel=1e-3)


def test_patients_who_are_in_both_domains_make_differences_surer(made: Made) -> None:
    """One scan of each patient in each domain, of much the same look."""
    anatomy = np.repeat(made.rng.normal(size=(80, 1)), 2, axis=0)
    made.scores = [1.2 * made.y + anatomy + 0.2 * made.rng.normal(size=made.y.shape)]
    made.domain = np.tile(["A", "B"], 80).astype(object)
    paired = made.found().differences.loc[0]
    made.patients = np.array([f"{patient}{place}" for patient, place in zip(made.patients, made.domain, strict=True)])
    apart = made.found().differences.loc[0]
    assert paired["difference"] == apart["difference"]
    assert paired["high"] - paired["low"] < 0.5 * (apart["high"] - apart["low"])


def test_intervals_of_a_difference_cover_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("medclr.evaluation.shift.distances_of", lambda *_: pd.DataFrame(columns=["domain", "versus"]))
    covered, claimed = [], []
    for seed in range(80):
        made = Made(60, seed)
        anatomy = np.repeat(made.rng.normal(size=(60, 1)), 2, axis=0)
        gain = np.where(made.b, 0.6, 1.8)[:, None]
        made.scores = [gain * made.y + 0.8 * anatomy + 0.6 * made.rng.normal(size=made.y.shape)]
        row = made.found(resamples=100).differences.loc[0]
        covered.append(row["low"] < ndtr(0.6 / math.sqrt(2)) - ndtr(1.8 / math.sqrt(2)) < row["high"])
        claimed.append(row["p"] < 0.05)
        assert claimed[-1] == (not row["low"] <= 0 <= row["high"])
    assert np.mean(covered) > 0.87  # of 80, .95 is nearly always (99.7%)
    assert np.mean(claimed) > 0.5


def test_intervals_of_a_gap_cover_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of predictions that are right on average, in cohorts whose shares of positives differ by chance."""
    monkeypatch.setattr("medclr.evaluation.shift.distances_of", lambda *_: pd.DataFrame(columns=["domain", "versus"]))
    covered = []
    for seed in range(80):
        made = Made(60, seed)
        likely = np.repeat(made.rng.normal(scale=0.7, size=60), 2)
        made.y = np.repeat(made.rng.random(60) < expit(likely[::2]), 2)[:, None].astype(float)
        made.scores = [likely[:, None]]
        covered.append(the(made.found(resamples=100).domains, domain="B")[["gap_low", "gap_high"]].tolist())
    low, high = np.array(covered).T
    assert 0.87 < np.mean((low < 0) & (high > 0)) < 1


def naive(made: Made, resamples: int) -> dict[str, np.ndarray]:
    """Sensitivity and specificity in B at the threshold of A, on the data and then on resamples of patients."""
    rng, score, y = np.random.default_rng(1), made.scores[0][:, 0], made.y[:, 0]
    rows_of = {patient: np.flatnonzero(made.patients == patient) for patient in np.unique(made.patients)}
    strata = [
        [p for p, rows in rows_of.items() if (made.domain[rows[0]], y[rows[0]]) == (d, c)] for d in "AB" for c in (0, 1)
    ]
    found = []
    for number in range(resamples):
        drawn = [p for s in strata for p in (s if number == 0 else rng.choice(s, len(s)))]
        rows = np.concatenate([rows_of[patient] for patient in drawn])
        source, own = rows[~made.b[rows]], rows[made.b[rows]]
        negative = score[source][y[source] == 0]
        limit = min((t for t in score[source] if np.mean(negative < t) >= 0.9), default=math.inf)
        found.append([np.mean(score[own][y[own] == 1] >= limit), np.mean(score[own][y[own] == 0] < limit)])
    return dict(zip(("sensitivity", "specificity"), np.array(found).T, strict=True))


def test_a_threshold_that_is_carried_over_is_wrong_where_scores_have_moved() -> None:
    """By the same amount for all, so that the AUROC says nothing of it."""
    made = Made(160)
    before = made.found()
    made.scores[0][made.b] += 1.4
    found = made.found(resamples=1000)
    assert found.differences["difference"][0] == before.differences["difference"][0]
    row, source = the(found.domains, domain="B"), the(found.domains, domain="A")
    assert row["predicted"] > row["observed"] + 0.05
    for what, values in naive(made, 1000).items():
        value, drawn = values[0], values[1:]
        assert row[what] == pytest.approx(value)
        widened = 1.046  # for the 40 patients of a class: sqrt(40 / 39) t / z
        low, high = expit(logit(value) + widened * (np.array(interval(drawn)) - value) / (value * (1 - value)))
        assert (row[f"{what}_low"], row[f"{what}_high"]) == pytest.approx((low, high), abs=0.04)
    assert source["specificity"] == 0.9
    assert row["sensitivity"] > source["sensitivity"]
    assert row["specificity"] < source["specificity"]
    assert math.isnan(source["specificity_p"])
    assert row["specificity_p"] < 0.05 < the(before.domains, domain="B")["specificity_p"]
    limit = threshold_at(made.y[~made.b, 0], made.scores[0][~made.b, 0], 0.9)
    assert found.thresholds["place"] == pytest.approx(expit(limit))


def test_heads_tell_a_rule_that_points_the_wrong_way_from_features_that_have_lost_it(made: Made) -> None:
    made.features[made.b, 0] *= -1  # a sign of the finding in A, of its absence in B
    made.scores = [made.features[:, :1].copy()]
    table = made.found().heads
    value = {(row["domain"], row["head"]): row for row in table.to_dict("records")}
    assert value["B", CLASSIFIER]["high"] < 0.5
    assert math.isnan(value["B", CLASSIFIER]["gain"])
    assert value["B", OWN]["auroc"] > 0.75
    assert value["B", OWN]["gain_low"] > 0.3
    assert value["B", OWN]["gain"] == pytest.approx(value["B", OWN]["auroc"] - value["B", CLASSIFIER]["auroc"])
    assert value["B", JOINT]["auroc"] < value["B", OWN]["auroc"] - 0.15  # no one rule serves both
    own = heads(made.features[made.b], made.y[made.b], made.patients[made.b], False)
    assert value["B", OWN]["auroc"] == pytest.approx(of_each_head(made.y[made.b], *own))
    assert abs(value["A", OWN]["gain"]) < 0.1
    made.features[made.b] = made.rng.normal(size=(80, 3))
    made.scores = [made.features[:, :1].copy()]
    lost = the(made.found().heads, domain="B", head=OWN)
    assert not lost["gain_low"] > 0


@pytest.mark.parametrize(("seen", "low", "high"), [(3.0, 0.92, 1), (0.0, 0.3, 0.7)])
def test_a_domain_is_read_where_the_features_show_it(made: Made, seen: float, low: float, high: float) -> None:
    made.features[:, 2] += seen * made.b
    found = made.found()
    assert found.probes["among"].tolist() == [ALL, "negatives", "positives"]
    assert found.probes["n"].tolist() == [160, 80, 80]
    assert found.probes["auroc"].between(low, high).all()
    assert (found.probes["high"] - found.probes["low"] < 0.4).all()
    row = found.distances.loc[0]
    assert row[["domain", "versus"]].tolist() == ["B", "A"]
    assert (row["mmd"] > row["noise"]) == bool(seen)


def test_what_betrays_the_label(made: Made) -> None:
    """A view that goes with the label, and a classifier that reads it instead of the finding, or not."""
    flipped = made.rng.random(160) < 0.2
    view = np.where((made.y[:, 0] == 1) ^ flipped, "AP", "PA").astype(object)
    view[:6] = ""
    coin, code = made.rng.choice(["head", "tail"], 160).astype(object), np.where(made.y[:, 0] == 1, "C34", "Z00")
    made.attributes = {"view": view, "coin": coin, "code": code, "one": "same"}
    sound = made.found().shortcuts
    made.scores = [made.features[:, 1:2] + 3.0 * (view == "AP")[:, None]]
    leaning = made.found().shortcuts
    assert set(leaning["attribute"]) == {"view", "coin", "code", "place"}
    assert set(leaning[leaning["attribute"] == "place"]["domain"]) == {ALL}
    for table, lean in ((sound, False), (leaning, True)):
        row = the(table, domain="B", attribute="view")
        alone = roc_auc_score(made.y[made.b, 0], view[made.b] == "AP")
        assert row["auroc"] == pytest.approx(alone, abs=0.06)
        assert row["low"] > 0.5
        assert row["p_holm"] < 0.01
        assert row["lost"] == pytest.approx(row["classifier"] - row["within"])
        assert (row["lost_low"] > 0.02) == lean
        coin = the(table, domain="B", attribute="coin")
        assert coin["p_holm"] > 0.05
        assert coin["lost_low"] < 0 < coin["lost_high"]
        told = the(table, domain="B", attribute="code")
        assert (told["auroc"], told["within"]) == (1, pytest.approx(math.nan, nan_ok=True))  # no pair has it in common
        assert 0.8 < told["low"] < told["high"]
    score, y = made.scores[0][:, 0], made.y[:, 0]
    known = view != ""
    pairs = [
        (score[i] > score[j]) + (score[i] == score[j]) / 2
        for i in np.flatnonzero(known & (y == 1))
        for j in np.flatnonzero(known & (y == 0) & (view == view[i]))
    ]
    whole = the(leaning, domain=ALL, attribute="view")
    assert whole["within"] == pytest.approx(np.mean(pairs))
    assert whole["classifier"] == pytest.approx(roc_auc_score(y[known], score[known]))
    assert whole["within_low"] < whole["within"] < whole["within_high"]


def test_holm_is_over_all_domains_of_all_columns(made: Made) -> None:
    made.scores[0][made.b & (made.y[:, 0] == 1)] -= 0.8
    thirds = np.tile(["x", "x", "y", "y", "z", "z"], 27)[:160].astype(object)
    judged = Judged(
        made.y, "binary", made.patients, made.scores, [1.0], [made.features],
        pd.DataFrame({"place": made.domain, "third": thirds}), pd.DataFrame(index=range(160)),
    )  # fmt: skip
    found = domain_shift(judged, {"place": "A", "third": "z"}, heads, 100, 0)
    assert found.differences[["column", "domain"]].to_numpy().tolist() == [
        ["place", "B"],
        ["third", "x"],
        ["third", "y"],
    ]
    np.testing.assert_allclose(found.differences["p_holm"], holm(found.differences["p"].to_numpy()))
    assert found.differences["p_holm"][0] > found.differences["p"][0]


def test_domains_that_are_unknown_or_of_few_patients_are_left_out(made: Made) -> None:
    made.domain[:12], made.domain[-8:] = "", "C"
    found = made.found()
    assert found.domains["domain"].tolist() == ["A", "B"]
    assert found.domains["n"].tolist() == [68, 72]
    # They are in none of the figures, either.
    made.y[:12], made.features[-8:] = 1 - made.y[:12], 1000
    again = made.found()
    for name in ("domains", "differences", "heads", "probes", "distances", "shortcuts"):
        pd.testing.assert_frame_equal(getattr(again, name), getattr(found, name))


@pytest.mark.parametrize("where", ["source", "target"])
def test_a_domain_of_one_class_says_so_and_has_no_figure(made: Made, where: str) -> None:
    made.domain[:40] = np.where(made.y[:40, 0] == 1, "A", "B") if where == "source" else "A"
    made.domain[-40:] = np.where(made.y[-40:, 0] == 1, "C", "B")
    source = "C" if where == "source" else "A"
    found = made.found(source)
    row = the(found.domains, domain="C")
    assert row["reason"] == "no negative"
    assert row["n"] == row["n_positive"] == 20
    numbers = ["auroc", "low", "high", "sensitivity", "specificity"]
    assert row[numbers].isna().all()
    assert set(found.heads[found.heads["domain"] == "C"]["reason"]) == {"no negative"}
    reasons = found.differences.set_index("domain")["reason"]
    if where == "target":
        assert reasons.to_dict() == {"B": "", "C": "no negative"}
        return
    # Nothing to compare with; nor any threshold.
    assert set(reasons) == {"the source has no negative"}
    assert found.differences[["difference", "p", "p_holm"]].isna().all(axis=None)
    assert math.isnan(found.thresholds["place"])
    others = found.domains[~found.domains["is_source"]]
    assert others["auroc"].notna().all()
    assert others[["sensitivity", "specificity", "sensitivity_low", "specificity_high"]].isna().all(axis=None)
    assert others["gap"].notna().all()
    assert others[["gap_change", "gap_change_p"]].isna().all(axis=None)


def test_a_source_of_a_single_patient_is_no_measure(made: Made) -> None:
    made.domain[:2] = "S"
    found = made.found("S")
    assert the(found.domains, domain="S")["reason"] == "no positive"
    assert found.distances[["mmd", "noise", "coral"]].isna().all(axis=None)


def test_few_patients_of_a_class_have_an_auroc_and_no_heads(made: Made) -> None:
    few = made.b & (made.y[:, 0] == 1) & (made.patients > "p055")
    made.y[few] = 0
    table = made.found().heads
    row = the(table, domain="B", head=CLASSIFIER)
    assert row["auroc"] > 0.5
    rest = table[(table["domain"] == "B") & (table["head"] != CLASSIFIER)]
    assert set(rest["reason"]) == {"8 patients of a class are too few to fit a head and to judge it"}
    assert rest["auroc"].isna().all()


def test_perfect_classifiers_are_not_certain(made: Made) -> None:
    made.scores = [made.y - 0.5]
    row = the(made.found(resamples=400).domains, domain="B")
    assert row[["auroc", "sensitivity", "specificity"]].tolist() == [1, 1, 1]
    for name in ("low", "sensitivity_low", "specificity_low"):
        assert row[name] == pytest.approx(0.025 ** (1 / 20), abs=0.03)  # 20 patients of a class, all of them right


def test_several_classes_are_one_against_the_rest(made: Made) -> None:
    made.kind, made.y = "multiclass", np.eye(3)[np.repeat(np.arange(80) % 3, 2)]
    made.scores = [made.y + made.rng.normal(size=made.y.shape)]
    found = made.found()
    row = the(found.domains, domain="B")
    y, scores = made.y[made.b], made.scores[0][made.b]
    each = [roc_auc_score(y[:, column], scores[:, column]) for column in range(3)]
    assert row["auroc"] == pytest.approx(np.mean(each))
    assert row[["n_positive", "sensitivity", "predicted", "gap", "ece"]].isna().all()
    assert found.probes["among"].tolist() == [ALL]
    assert math.isnan(found.thresholds["place"])
    assert (found.heads["reason"] == "").all()
    assert found.differences["p"].between(0, 1).all()


def test_several_labels_are_of_what_is_known(made: Made) -> None:
    made.kind, made.y = "multilabel", np.hstack([made.y, np.repeat(np.arange(80) % 8 < 4, 2)[:, None]])
    made.y[made.rng.random(made.y.shape) < 0.2] = np.nan
    made.scores = [np.nan_to_num(made.y) + made.rng.normal(size=made.y.shape)]
    made.attributes = {"sex": made.rng.choice(["F", "M"], 160).astype(object)}
    found = made.found()
    row = the(found.domains, domain="B")
    known = [made.b & ~np.isnan(column) for column in made.y.T]
    each = [roc_auc_score(made.y[rows, i], made.scores[0][rows, i]) for i, rows in enumerate(known)]
    assert row["auroc"] == pytest.approx(np.mean(each))
    positive = (made.y[made.b] == 1).any(axis=1).sum()
    empty = np.isnan(made.y[made.b]).all(axis=1).sum()
    assert row[["n_positive", "n_negative"]].tolist() == [positive, 80 - positive - empty]
    assert (found.heads["reason"] == "").all()
    assert the(found.shortcuts, domain="B", attribute="sex")["p_holm"] > 0.05
    # A mean over one label alone would be compared with a mean over two.
    made.y[made.b, 1] = np.where(np.isnan(made.y[made.b, 1]), np.nan, 0)
    found = made.found()
    assert the(found.domains, domain="B")["reason"] == "no positive"
    assert found.differences["reason"].tolist() == ["no positive"]


def test_more_domains_than_two_are_each_read_from_the_others(made: Made) -> None:
    made.domain[100:] = "C"
    made.features[:, 1] += 4 * (made.domain == "B")
    found = made.found()
    assert found.distances["domain"].tolist() == ["B", "C"]
    assert found.distances["mmd"][0] > 4 * found.distances["mmd"][1]
    indicator = np.stack([made.domain == name for name in "ABC"], axis=1).astype(float)
    scores, head = heads(made.features, indicator, made.patients, False)
    wanted = np.mean([of_each_head(indicator[:, column], scores[:, column], head) for column in range(3)])
    assert found.probes["auroc"][0] == pytest.approx(wanted)
