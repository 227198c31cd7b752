import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedGroupKFold

from medclr.metrics import auroc
from medclr.training import probe
from medclr.training.probe import FEWEST_PATIENTS, FIXED_STRENGTH, STRENGTHS, fit_linear, fit_pca


def problem(patients, per_patient=2, features=6, seed=0):
    """Features of which the first says something of the label; half of the patients are positive."""
    rng = np.random.default_rng(seed)
    keys = np.repeat([f"p{number}" for number in range(patients)], per_patient).astype(object)
    y = np.repeat(np.arange(patients) % 2, per_patient).astype(np.float64)
    x = rng.normal(3, 5, (len(y), features))
    x[:, 0] += 6 * y
    return x, y[:, None], keys


def scaled(x):
    return (x - x.mean(0)) / x.std(0).max()


@given(patients=st.sampled_from([6, 30]), seed=st.integers(0, 9))
@settings(max_examples=12, deadline=None)
def test_folded_weights_are_those_of_the_scaled_regression(patients, seed):
    x, y, keys = problem(patients, seed=seed)
    head = fit_linear(x, y, keys, seed)
    model = LogisticRegression(C=head.strength, max_iter=1000, class_weight="balanced").fit(scaled(x), y[:, 0])
    new = np.random.default_rng(99).normal(0, 20, (50, 6))
    expected = model.decision_function((new - x.mean(0)) / x.std(0).max())
    np.testing.assert_allclose(head.scores(new)[:, 0], expected, rtol=1e-6, atol=1e-8)


def test_a_constant_feature_is_harmless():
    x, y, keys = problem(8)
    x[:, 3] = 7
    scores = fit_linear(x, y, keys, 0).scores(x)
    assert np.isfinite(scores).all()


@pytest.mark.parametrize(
    ("positive", "negative", "chosen"), [(10, 10, True), (9, 40, False), (40, 9, False), (1, 1, False)]
)
def test_strength_is_fixed_where_patients_are_few(positive, negative, chosen, monkeypatch):
    """However many scans each of them has."""
    assert FEWEST_PATIENTS == 10
    y = np.repeat([1.0] * positive + [0.0] * negative, 3)[:, None]
    keys = np.repeat(np.arange(positive + negative), 3).astype(str).astype(object)
    x = np.random.default_rng(0).normal(size=(len(y), 4))
    if not chosen:
        monkeypatch.setattr(probe, "choose", None)
    head = fit_linear(x, y, keys, 0)
    assert head.chosen == chosen
    assert head.strength in (STRENGTHS if chosen else (FIXED_STRENGTH,))


def test_a_given_strength_is_used_and_not_chosen(monkeypatch):
    monkeypatch.setattr(probe, "choose", None)
    x, y, keys = problem(40)
    head = fit_linear(x, y, keys, 0, strength=0.03)
    assert (head.strength, head.chosen) == (0.03, False)
    model = LogisticRegression(C=0.03, class_weight="balanced").fit(scaled(x), y[:, 0])
    np.testing.assert_allclose(head.scores(x)[:, 0], model.decision_function(scaled(x)), rtol=1e-6)


def test_strength_is_the_best_of_inner_cross_validation_by_patient():
    x, y, keys = problem(40, per_patient=3, features=30, seed=1)
    standard = scaled(x)
    folds = list(StratifiedGroupKFold(5, shuffle=True, random_state=7).split(standard, y[:, 0], keys))
    assert all(not set(keys[a]) & set(keys[b]) for a, b in folds)

    def quality(strength):
        model = LogisticRegression(C=strength, max_iter=1000, class_weight="balanced")
        return np.mean(
            [auroc(y[b, 0], model.fit(standard[a], y[a, 0]).decision_function(standard[b])) for a, b in folds]
        )

    head = fit_linear(x, y, keys, 7)
    assert quality(head.strength) == max(map(quality, STRENGTHS))
    assert head.chosen


def test_only_the_rows_of_the_draw_are_looked_at(monkeypatch):
    """Everything that scikit-learn sees while a draw is fitted has the draw's length, or that of a fold of it."""
    x, y, keys = problem(24)
    seen = []
    logistic = probe._logistic
    monkeypatch.setattr(probe, "_logistic", lambda x, y, *how: seen.append(len(y)) or logistic(x, y, *how))
    fit_linear(x[:44], y[:44], keys[:44], 0)
    assert max(seen) == 44
    assert seen.count(44) == 1
    assert len(seen) == 5 * len(STRENGTHS) + 1
    # And what lies outside of it changes nothing.
    poisoned, other = x.copy(), y.copy()
    poisoned[44:] = np.nan
    other[44:] = 1 - other[44:]
    one, two = (fit_linear(a[:44], b[:44], keys[:44], 0) for a, b in ((x, y), (poisoned, other)))
    np.testing.assert_array_equal(one.weight, two.weight)


def test_no_patient_is_on_both_sides_of_a_fold(monkeypatch):
    x, y, keys = problem(24, per_patient=3)
    x[:, 5] = np.repeat(np.arange(24), 3)
    fitted = []
    logistic = probe._logistic
    monkeypatch.setattr(probe, "_logistic", lambda x, y, *how: fitted.append(x[:, 5]) or logistic(x, y, *how))
    fit_linear(x, y, keys, 0)
    for patients in fitted:
        assert set(np.unique(patients, return_counts=True)[1]) == {3}
    assert {len(patients) for patients in fitted} > {72}


def test_folds_follow_the_seed_and_nothing_else():
    x, y, keys = problem(30, features=20)
    one, two = fit_linear(x, y, keys, 2**40), fit_linear(x, y, keys, 2**40)
    assert one.strength == two.strength
    np.testing.assert_array_equal(one.weight, two.weight)


def test_pca_is_that_of_scikit_learn_and_learned_once():
    x = np.random.default_rng(0).normal(size=(30, 12)) @ np.diag(np.arange(1, 13))
    project = fit_pca(x)
    new = np.random.default_rng(1).normal(size=(5, 12))
    expected = PCA(12).fit(x).transform(new)
    np.testing.assert_allclose(np.abs(project(new)), np.abs(expected), atol=1e-6)
    assert fit_pca(np.random.default_rng(0).normal(size=(80, 70)))(np.zeros((2, 70))).shape == (2, 50)


def test_noise_in_the_last_component_is_not_blown_up():
    """What made the PCA baseline weak at 1% of the labels: each component divided by its own spread."""
    rng = np.random.default_rng(0)
    y = np.repeat([0.0, 1.0], 100)
    keys = np.arange(200).astype(str).astype(object)
    x = np.column_stack([10 * y + rng.normal(0, 5, 200), rng.normal(0, 0.01, (200, 50))])
    few = np.r_[0:8, 100:108]
    head = fit_linear(x[few], y[few, None], keys[few], 0)
    assert auroc(y, head.scores(x)[:, 0]) == pytest.approx(auroc(y, x[:, 0]), abs=0.01)
