import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit, log_softmax, logit, softmax
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.model_selection import StratifiedKFold
from sklearn.utils.class_weight import compute_sample_weight

from medclr.metrics import auroc
from medclr.training import probe
from medclr.training.probe import (
    FEWEST_PATIENTS,
    FIXED_STRENGTH,
    STRENGTHS,
    Neighbours,
    choose,
    enough_to_choose,
    fit_linear,
    fit_pca,
    held_out_scores,
    inner_folds,
    log_prior,
)

NEWTON = "newton-cholesky"


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
    model = LogisticRegression(C=head.strength, class_weight="balanced", solver=NEWTON).fit(scaled(x), y[:, 0])
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
        monkeypatch.setattr(probe, "out_of_fold", None)
    head = fit_linear(x, y, keys, 0)
    assert head.chosen == chosen
    assert head.strength in (STRENGTHS if chosen else (FIXED_STRENGTH,))


def test_a_given_strength_is_used_and_not_chosen(monkeypatch):
    monkeypatch.setattr(probe, "out_of_fold", None)
    x, y, keys = problem(40)
    head = fit_linear(x, y, keys, 0, strength=0.03)
    assert (head.strength, head.chosen) == (0.03, False)
    model = LogisticRegression(C=0.03, class_weight="balanced", solver=NEWTON).fit(scaled(x), y[:, 0])
    np.testing.assert_allclose(head.scores(x)[:, 0], model.decision_function(scaled(x)), rtol=1e-6)


def test_strength_is_the_best_of_inner_cross_validation_by_patient():
    x, y, keys = problem(40, per_patient=3, features=30, seed=1)
    standard = scaled(x)
    of_patient = StratifiedKFold(5, shuffle=True, random_state=7).split(
        np.unique(keys), [y[keys == key, 0].max() for key in np.unique(keys)]
    )
    held = [np.isin(keys, np.unique(keys)[patients]) for _, patients in of_patient]
    folds = [(~own, own) for own in held]

    def loss(strength):
        model = LogisticRegression(C=strength, max_iter=1000, class_weight="balanced", solver=NEWTON)
        told = np.empty((len(y), 2))
        for a, b in folds:
            told[b] = model.fit(standard[a], y[a, 0]).predict_proba(standard[b])
        return log_loss(y[:, 0], told, sample_weight=compute_sample_weight("balanced", y[:, 0]))

    head = fit_linear(x, y, keys, 7)
    assert head.strength == min(STRENGTHS, key=loss)
    assert head.chosen


@pytest.mark.parametrize("balanced", [True, False])
def test_the_loss_that_chooses_is_that_of_the_known_labels_or_of_classes(balanced):
    rng = np.random.default_rng(0)
    y = (rng.random((60, 2)) < [0.2, 0.6]).astype(float)
    y[:7, 1] = np.nan
    bare = rng.normal(size=y.shape)
    each = []
    for column, logits in zip(y.T, bare.T, strict=True):
        known = ~np.isnan(column)
        positive = np.sum(known & (column == 1))
        weight = np.where(column == 1, (known.sum() - positive) / positive if balanced else 1, 1)[known]
        each.append(weight * -np.log(expit(np.where(column == 1, logits, -logits)))[known])
    shifted = bare + log_prior(y, False) * balanced
    both = np.array([True, True])
    assert probe._loss(shifted, y, both, False, balanced) == pytest.approx(np.concatenate(each).mean())
    classes = np.eye(3)[rng.choice(3, 60, p=[0.6, 0.3, 0.1])]
    logits = rng.normal(size=classes.shape)
    weights = compute_sample_weight("balanced" if balanced else None, classes.argmax(1))
    expected = log_loss(classes, softmax(logits, axis=1), sample_weight=weights)
    shifted = logits + log_prior(classes, True) * balanced
    assert probe._loss(shifted, classes, np.full(3, True), True, balanced) == pytest.approx(expected)


def test_a_class_or_label_of_few_patients_does_not_choose():
    """Two rows of a third class, which no feature tells, would want the strongest regularisation."""
    x, y, keys = problem(200, per_patient=1, features=60)
    rare = np.zeros(len(y))
    rare[:2] = 1
    three = np.column_stack([(1 - y[:, 0]) * (1 - rare), y[:, 0] * (1 - rare), rare])
    assert enough_to_choose(three, keys).tolist() == [True, True, False]
    alone = fit_linear(x[2:], three[2:, :2], keys[2:], 0, exclusive=True)
    assert fit_linear(x, three, keys, 0, exclusive=True).strength == alone.strength > STRENGTHS[0]
    scores = np.random.default_rng(0).normal(size=three.shape)
    judges = np.array([True, True, False])
    only = probe._loss(scores, three, judges, True, False)
    assert only == pytest.approx(log_loss(three[2:], softmax(scores[2:], axis=1)))
    labels = probe._loss(scores, three, judges, False, False)
    assert labels == pytest.approx(probe._loss(scores[:, :2], three[:, :2], judges[:2], False, False))


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


# Several classes, several labels


def several(patients=60, per_patient=2, classes=3, features=8, seed=0):
    """Features that say something of the class, one-hot y, and patients of one class each."""
    rng = np.random.default_rng(seed)
    keys = np.repeat([f"p{number}" for number in range(patients)], per_patient).astype(object)
    of = np.repeat(np.arange(patients) % classes, per_patient)
    x = rng.normal(3, 5, (len(of), features))
    x[:, :classes] += 5 * np.eye(classes)[of]
    return x, np.eye(classes)[of], keys


@pytest.mark.parametrize("balanced", [True, False])
def test_classes_are_a_multinomial_regression(balanced):
    x, y, keys = several()
    x, y, keys = x[:100], y[:100], keys[:100]  # not the same of each
    head = fit_linear(x, y, keys, 0, 0.3, True, balanced)
    model = LogisticRegression(C=0.3, max_iter=1000, class_weight="balanced" if balanced else None)
    model.fit(scaled(x), y.argmax(1))
    new = np.random.default_rng(9).normal(0, 20, (40, 8))
    expected = model.predict_log_proba((new - x.mean(0)) / x.std(0).max())
    expected = log_softmax(expected + balanced * np.log(y.mean(0)), axis=1)
    np.testing.assert_allclose(head.scores(new), expected, rtol=1e-5, atol=1e-7)
    assert head.exclusive


def test_a_class_that_no_row_has_is_as_rare_as_half_a_row():
    x, y, keys = several()
    there = np.insert(y, 1, 0, axis=1)
    head, without = fit_linear(x, there, keys, 0, 0.3, True), fit_linear(x, y, keys, 0, 0.3, True)
    np.testing.assert_allclose(
        np.delete(head.scores(x), 1, 1) - head.scores(x)[:, :1], without.scores(x) - without.scores(x)[:, :1]
    )
    np.testing.assert_allclose(np.exp(head.scores(x)).sum(1), 1)
    x, y = x[y[:, 2] == 0], y[y[:, 2] == 0]  # of two classes, sklearn gives one column
    two = fit_linear(x, y, keys[: len(x)], 0, 0.3, True).scores(x)
    model = LogisticRegression(C=0.3, class_weight="balanced").fit(scaled(x), y[:, 1])
    expected = model.decision_function(scaled(x)) + np.log(y[:, 1].sum() / y[:, 0].sum())
    np.testing.assert_allclose(two[:, 1] - two[:, 0], expected, rtol=1e-6, atol=1e-9)
    assert np.exp(two[:, 2]).max() < 1 / len(x)


def test_labels_are_a_regression_each_on_what_is_known():
    rng = np.random.default_rng(0)
    x, keys = rng.normal(3, 5, (90, 6)), np.arange(90).astype(str).astype(object)
    y = (x[:, :3] + rng.normal(0, 4, (90, 3)) > 3).astype(float)
    y[rng.random(y.shape) < 0.3] = np.nan
    y = np.column_stack([y, np.full(90, np.nan), np.where(rng.random(90) < 0.5, 1, np.nan)])
    head = fit_linear(x, y, keys, 0, 0.5)
    for label in range(3):
        known = ~np.isnan(y[:, label])
        model = LogisticRegression(C=0.5, class_weight="balanced", solver=NEWTON).fit(scaled(x)[known], y[known, label])
        expected = model.decision_function(scaled(x)) + logit(np.nanmean(y[:, label]))
        np.testing.assert_allclose(head.scores(x)[:, label], expected, rtol=1e-6, atol=1e-9)
    assert (head.scores(x)[:, 3:] == 0).all(), "nothing is known, or one class alone"


@pytest.mark.parametrize("kind", ["binary", "multiclass", "multilabel"])
def test_held_out_scores_are_from_the_folds_that_left_the_patient_out(kind):
    x, y, keys = several(per_patient=3)
    if kind == "binary":
        y = y[:, :1]
    if kind == "multilabel":
        y[::7, 1] = np.nan
    exclusive = kind == "multiclass"
    head = fit_linear(x, y, keys, 5, None, exclusive)
    assert head.held_out.shape == y.shape
    for fit, held in inner_folds(y, keys, 5):
        assert not set(keys[fit]) & set(keys[held])
        again = probe._logistic(scaled(x)[fit], y[fit], head.strength, exclusive, True)
        np.testing.assert_allclose(head.held_out[held], again.scores(scaled(x)[held]))
    chosen = FIXED_STRENGTH if head.strength != FIXED_STRENGTH else STRENGTHS[0]
    assert fit_linear(x, y, keys, 5, chosen, exclusive).held_out is None


def test_held_out_scores_know_nothing_of_labels_drawn_by_lot():
    """More features than rows: any fit knows its own rows by heart, and only scores out of fold are at chance."""
    rng = np.random.default_rng(0)
    x = np.repeat(rng.normal(size=(160, 300)), 2, axis=0)
    keys = np.repeat(np.arange(160), 2).astype(str).astype(object)
    y = np.repeat(rng.permutation(160) % 2, 2)[:, None].astype(float)
    head = fit_linear(x, y, keys, 0)
    assert auroc(y[:, 0], head.scores(x)[:, 0]) > 0.95
    assert auroc(y[:, 0], head.held_out[:, 0]) == pytest.approx(0.5, abs=0.15)


@pytest.mark.parametrize("exclusive", [False, True])
def test_held_out_rows_are_scored_by_the_head_that_left_the_patient_out(exclusive):
    x, y, keys = several(per_patient=2)
    scores, head = held_out_scores(x, y, keys, 5, exclusive)
    for place, (own, held) in enumerate(inner_folds(y, keys, 5)):
        expected = fit_linear(x[own], y[own], keys[own], 5, None, exclusive).scores(x[held])
        np.testing.assert_array_equal(scores[held], expected)
        assert set(head[held]) == {place}


def test_choose_takes_the_best_and_the_first_of_equals():
    y = np.tile([0.0, 1.0], 10)[:, None]
    folds = [(np.arange(10), np.arange(10, 20)), (np.arange(10, 20), np.arange(10))]
    asked = []

    def scores_of(key, fit, held):
        asked.append((key, fit.tolist(), held.tolist()))
        return {"none": np.zeros((10, 1)), "half": y[held] * (held < 10)[:, None]}.get(key, y[held] + len(asked))

    key, scores = choose(["none", "half", "whole", "also whole"], scores_of, y, folds)
    assert key == "whole"
    np.testing.assert_array_equal(scores, np.concatenate([y[:10] + 6, y[10:] + 5]))
    assert asked == [(k, *map(list, f)) for k in ["none", "half", "whole", "also whole"] for f in folds]


@given(seed=st.integers(0, 50), k=st.integers(1, 15))
@settings(max_examples=25, deadline=None)
def test_inner_folds_hold_each_row_once_and_no_patient_on_both_sides(seed, k):
    rng = np.random.default_rng(seed)
    keys = rng.integers(0, 30, 60).astype(str).astype(object)
    y = (rng.random((60, k)) < rng.choice([0.03, 0.5])).astype(float)
    y[rng.random(y.shape) < 0.1] = np.nan
    folds = inner_folds(y, keys, seed)
    assert len(folds) == 5
    assert sorted(np.concatenate([held for _, held in folds])) == list(range(60))
    for fit, held in folds:
        assert not set(keys[fit]) & set(keys[held])
        assert sorted([*fit, *held]) == list(range(60))


def test_inner_folds_spread_the_rarest_label():
    y = np.zeros((100, 3))
    y[:, 0] = np.arange(100) % 2
    y[:5, 2] = 1
    y[5:20, 1] = 1
    for _, held in inner_folds(y, np.arange(100).astype(str).astype(object), 0):
        assert y[held].sum(axis=0).tolist()[1:] == [3, 1]


def test_strata_of_a_row_or_two_are_spread_together():
    """Thirty rows, each with a label of its own: too few of each for five folds."""
    y = np.hstack([np.repeat(np.eye(15), 2, axis=0), np.tile([[1.0], [0.0]], (15, 1))])
    keys = np.arange(30).astype(str).astype(object)
    assert enough_to_choose(y, keys)[-1]
    assert [len(held) for _, held in inner_folds(y, keys, 0)] == [6] * 5


@pytest.mark.parametrize("exclusive", [False, True])
def test_probabilities_are_those_of_the_rows_though_classes_are_balanced(exclusive):
    rng = np.random.default_rng(0)
    x, keys = rng.normal(size=(2000, 5)), np.arange(2000).astype(str).astype(object)
    y = (x[:, :1] + 0.5 * rng.normal(size=(2000, 1)) > 1.9).astype(float)  # 1 in 20
    y = np.hstack([1 - y, y]) if exclusive else y
    head = fit_linear(x, y, keys, 0, 1.0, exclusive)
    told = (softmax(head.scores(x), axis=1) if exclusive else expit(head.scores(x)))[:, -1]
    assert told.mean() == pytest.approx(y[:, -1].mean(), rel=0.15)


def test_the_prior_of_a_class_that_no_row_has_is_that_of_half_a_row():
    y = np.array([[1.0, 0, 0], [1, 0, 0], [0, 1, 0], [1, 0, 0]])
    np.testing.assert_allclose(np.exp(log_prior(y, True)), [0.75, 0.25, 0.125])
    np.testing.assert_allclose(
        log_prior(np.column_stack([y, [np.nan, 1, 0, 1]]), False), [np.log(3), -np.log(3), 0, np.log(2)]
    )


def test_enough_to_choose_counts_patients_of_each_label():
    keys = np.repeat(np.arange(25), 2).astype(str).astype(object)
    few, many = np.repeat(np.arange(25) < 9, 2).astype(float), np.repeat(np.arange(25) < 10, 2).astype(float)
    assert enough_to_choose(np.column_stack([few, many]), keys).tolist() == [False, True]
    many[:2] = np.nan
    assert not enough_to_choose(np.column_stack([few, many]), keys).any()


@pytest.mark.parametrize("rows", [50, 7])
def test_neighbours_against_a_loop(rows):
    rng = np.random.default_rng(rows)
    x, y = rng.normal(size=(rows, 5)), np.eye(4)[rng.integers(0, 4, rows)]
    new = rng.normal(size=(9, 5))
    labels = np.where(rng.random(y.shape) < 0.4, np.nan, y)
    labels[:, 3] = np.nan
    k = min(rows, 20)
    one, each = np.empty((9, 4)), np.empty((9, 4))
    for m, z in enumerate(new):
        cosine = [float(z @ a / np.linalg.norm(z) / np.linalg.norm(a)) for a in x]
        near = sorted(range(rows), key=lambda n: -cosine[n])[:k]
        vote = {n: np.exp(cosine[n] / 0.1) for n in near}
        for c in range(4):
            share = sum(vote[n] for n in near if y[n, c]) / sum(vote.values())
            one[m, c] = np.log((k * share + 1 / 4) / (k + 1))
            known = [n for n in near if labels[n, c] in (0, 1)]
            share = sum(vote[n] for n in known if labels[n, c]) / sum(vote[n] for n in known) if known else 0.5
            p = (k * share + 0.5) / (k + 1)
            each[m, c] = np.log(p / (1 - p))
    np.testing.assert_allclose(Neighbours(x, y, True).scores(new), one, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(np.exp(one).sum(1), 1)
    np.testing.assert_allclose(Neighbours(x, labels, False).scores(new), each, rtol=1e-9, atol=1e-9)
    assert np.isfinite(each).all()
    assert np.isfinite(one).all()
