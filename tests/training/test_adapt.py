"""Each way of adapting against a transcription, on problems whose answer is known."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.linalg import sqrtm
from scipy.special import expit, softmax
from scipy.stats import entropy
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from torch import nn

from medclr.training.adapt import (
    METHODS,
    SHARES,
    Moved,
    Problem,
    choose_method,
    confident,
    decided,
    distance,
    held_out_auroc,
    mean_entropy,
    recoloured,
    solve,
    supervised,
)
from medclr.training.probe import inner_folds, out_of_fold


def gaussians(n, rng, gap=3.0):
    """Two classes that the first of three features tells apart; the others are wider."""
    y = (np.arange(n) % 2).astype(float)
    x = rng.normal(size=(n, 3)) * (1, 2, 4)
    x[:, 0] += gap * y
    return x, y[:, None]


FIRST = np.array([1, 0, 0])
MIXING = np.array([[1.0, 2.0, 0.0], [0.0, 1.0, 0.5], [1.5, 0.0, 1.0]])


def problem(move=lambda x: x, seed=0, n=200, gap=3.0):
    """A source, and a target whose features `move` has made other; with the labels of the rows to be scored."""
    rng = np.random.default_rng(seed)
    (x, y), (target, _), (scored, truth) = (gaussians(n, rng, gap) for _ in range(3))
    patients = np.array([f"p{i}" for i in range(n)], dtype=object)
    return Problem(x, y, patients, move(target), move(scored), False, seed), truth[:, 0]


def auroc(found, truth):
    moved, head = found
    return roc_auc_score(truth, head.scores(moved.scored)[:, 0])


def test_source_only_is_a_logistic_regression_of_the_source():
    given, _ = problem()
    _, head = solve(given, "source-only")
    scale = given.source.std(axis=0).max()
    model = LogisticRegression(C=head.strength, class_weight="balanced", solver="newton-cholesky")
    model.fit((given.source - given.source.mean(0)) / scale, given.y[:, 0])
    expected = model.decision_function((given.scored - given.source.mean(0)) / scale)
    np.testing.assert_allclose(head.scores(given.scored)[:, 0], expected, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("exclusive", [False, True])
def test_scores_are_as_if_classes_were_equally_frequent(exclusive):
    """With one positive in five and nothing to tell it by, no class is likelier."""
    rng = np.random.default_rng(0)
    y = (np.arange(200) % 5 == 0).astype(float)
    labels = np.stack([y == 0, y == 1], axis=1).astype(float) if exclusive else y[:, None]
    x = 1e-3 * rng.normal(size=(200, 3)) + np.array([0, 0, 5])
    given = Problem(x, labels, np.arange(200).astype(str).astype(object), x, x, exclusive, 0)
    scores = solve(given, "source-only")[1].scores(x)
    middle = scores[:, 1] - scores[:, 0] if exclusive else scores[:, 0]
    assert abs(middle.mean()) < 0.2  # the log odds of the rows are −1.4


def test_coral_is_algorithm_1_of_its_paper():
    given, _ = problem(lambda x: x @ MIXING + 7)
    scale = np.sqrt((given.source.var(axis=0) + given.target.var(axis=0)) / 2)
    source, target = given.source / scale, given.target / scale
    c_s, c_t = (np.cov(x.T) + np.eye(3) for x in (source, target))
    by_hand = (source - source.mean(0)) @ np.linalg.inv(sqrtm(c_s)) @ sqrtm(c_t) * scale + given.target.mean(0)
    np.testing.assert_allclose(recoloured(given.source, given.target), by_hand, rtol=1e-8)


def test_coral_gives_the_source_the_targets_moments():
    given, _ = problem(lambda x: x @ MIXING + 7)
    moved = recoloured(given.source, given.target, ridge=1e-9)
    np.testing.assert_allclose(moved.mean(axis=0), given.target.mean(axis=0))
    np.testing.assert_allclose(np.cov(moved.T), np.cov(given.target.T), rtol=1e-6)


def test_coral_has_no_use_for_units():
    given, _ = problem(lambda x: x @ MIXING + 7)
    units = np.array([1e-3, 1.0, 1e3])
    np.testing.assert_allclose(
        recoloured(given.source * units, given.target * units), units * recoloured(given.source, given.target)
    )


def test_coral_leaves_a_source_that_is_like_the_target_and_bears_a_constant_feature():
    given, _ = problem()
    np.testing.assert_allclose(recoloured(given.source, given.source), given.source, atol=1e-9)
    flat = given.source.copy()
    flat[:, 1] = 4
    for source, target in ((flat, given.target), (given.target, flat), (flat, flat)):
        assert abs(recoloured(source, target)).max() < 30


def test_coral_undoes_a_turn_of_the_wide_features_into_the_telling_one():
    given, truth = problem(lambda x: x * (1, 1, 0.25) + (6, 0, 0))
    # A head of the source takes the shift for the class, but ranks as before; coral's head decides rightly too.
    moved, head = solve(given, "coral")
    told = decided(head.scores(given.scored), False)[:, 0]
    plain = decided(solve(given, "source-only")[1].scores(given.scored), False)[:, 0]
    assert (told == truth).mean() > 0.85
    assert (plain == truth).mean() < 0.6
    assert moved.target is given.target


def test_adabn_takes_the_features_it_is_given():
    given, truth = problem(lambda x: -x)
    network = nn.Identity()
    undone = Moved(given.source, -given.target, -given.scored, network)
    assert auroc(solve(given, "source-only"), truth) < 0.1
    found = solve(replace(given, anew={"adabn": lambda: undone}), "adabn")
    assert auroc(found, truth) > 0.9
    assert found[0].network is network


@pytest.mark.parametrize("method", ["histogram", "fourier"])
def test_a_style_is_learned_beside_the_source_as_it_is(method):
    given, _ = problem()
    styled = given.source + np.array([0, 5, 0])
    moved, head = solve(replace(given, anew={method: lambda: Moved(styled, given.target, given.scored)}), method)
    np.testing.assert_array_equal(moved.source, np.concatenate([given.source, styled]))
    assert list(moved.patients) == [*given.patients] * 2
    twice = replace(given, source=moved.source, y=np.tile(given.y, (2, 1)), patients=moved.patients)
    np.testing.assert_array_equal(head.weight, solve(twice, "source-only")[1].weight)
    # By it the second feature is known for what does not count.
    assert abs(head.weight[1, 0]) < abs(solve(given, "source-only")[1].weight[1, 0])


def test_a_style_is_judged_by_the_source_as_it_is_and_by_how_alike_it_makes_the_domains():
    given, _ = problem(lambda x: x + FIRST * 3)
    rng = np.random.default_rng(5)
    lost = replace(given, anew={"histogram": lambda: Moved(rng.normal(size=(200, 3)), given.target, given.scored)})
    moved, head = solve(lost, "histogram")
    at_home = held_out_auroc("histogram", moved, head)
    assert at_home == pytest.approx(roc_auc_score(given.y, head.held_out[:200]))
    assert at_home > roc_auc_score(moved.y, head.held_out) + 0.1
    styled = replace(given, anew={"histogram": lambda: Moved(given.source + FIRST * 3, given.target, given.scored)})
    apart = distance(replace(given, source=given.source + FIRST * 3))
    assert distance(solve(styled, "histogram")[0])[0] == pytest.approx(apart[0], abs=apart[1])
    assert choice_of(styled, "source-only", "histogram").method == "histogram"


def test_self_training_is_judged_with_what_it_has_taught_itself():
    given, _ = problem(lambda x: x @ MIXING)
    moved, head = solve(given, "pseudo")

    def of_fold(own, held):
        part = replace(given, source=given.source[own], y=given.y[own], patients=given.patients[own])
        return METHODS["pseudo"][1](part, head.strength).scores(given.source[held])

    scores = out_of_fold(of_fold, given.y, inner_folds(given.y, given.patients, given.seed))
    found = held_out_auroc("pseudo", moved, head)
    assert found == pytest.approx(roc_auc_score(given.y, scores))
    assert found != held_out_auroc("source-only", *solve(given, "source-only"))


@pytest.mark.parametrize("exclusive", [False, True])
def test_confident_rows_keep_the_shares_of_classes(exclusive):
    scores = np.array([[4.0], [3.0], [2.0], [1.0], [0.5], [0.1], [-0.2], [-0.1], [-0.3], [-0.4]])
    if exclusive:
        scores = np.log(softmax(np.hstack([np.zeros((10, 1)), scores]), axis=1))
    told = confident(scores, 0.5, exclusive)
    one = told[:, -1]
    np.testing.assert_array_equal(np.flatnonzero(one == 1), [0, 1, 2])
    np.testing.assert_array_equal(np.flatnonzero(one == 0), [8, 9])
    assert np.isnan(told[[3, 4, 5, 6, 7]]).all()
    if exclusive:
        np.testing.assert_array_equal(told[0], [0, 1])


def test_of_several_labels_each_has_sure_rows_of_its_own():
    scores = np.array([[9.0, 1.0], [1.0, 9.0], [-9.0, -1.0], [-1.0, -9.0]])
    nan = np.nan
    np.testing.assert_array_equal(confident(scores, 0.5, False), [[1, nan], [nan, 1], [0, nan], [nan, 0]])


def test_self_training_is_its_rounds_one_after_the_other():
    given, _ = problem(lambda x: x + FIRST * 1.0, gap=2.0)
    _, head = solve(given, "pseudo")

    def fit(x, y):
        scale = x.std(axis=0).max()
        model = LogisticRegression(C=head.strength, class_weight="balanced", solver="newton-cholesky")
        model.fit((x - x.mean(0)) / scale, y)
        return lambda new: model.decision_function((new - x.mean(0)) / scale)

    assert SHARES == (0.2, 0.35, 0.5)
    decide = fit(given.source, given.y[:, 0])
    for share in SHARES:
        scores, sure, labels = decide(given.target), [], []
        for value, sign in ((0, -1), (1, 1)):
            rows = np.flatnonzero((scores > 0) == value)
            surest = rows[np.argsort(-sign * scores[rows])][: int(np.ceil(share * len(rows)))]
            sure.append(given.target[surest])
            labels.append(np.full(len(surest), value))
        decide = fit(np.concatenate([given.source, *sure]), np.concatenate([given.y[:, 0], *labels]))
    np.testing.assert_allclose(head.scores(given.scored)[:, 0], decide(given.scored), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_self_training_turns_the_rule_towards_the_target(seed):
    """Another feature tells the classes there, of which the source's head knows nothing."""
    given, truth = problem(gap=2.0, seed=seed, n=400)
    for x in (given.target, given.scored):
        x[:, 1] += 8 * truth - 4
    assert auroc(solve(given, "pseudo"), truth) > auroc(solve(given, "source-only"), truth) + 0.005


@pytest.mark.parametrize("method", ["source-only", "coral", "pseudo"])
def test_several_classes_are_told_by_one_head(method):
    rng = np.random.default_rng(0)
    kinds = np.arange(150) % 3
    centres = 4 * np.eye(3)
    x, target, scored = (centres[kinds] + rng.normal(size=(150, 3)) for _ in range(3))
    given = Problem(x, np.eye(3)[kinds], np.arange(150).astype(str).astype(object), target, scored, True, 0)
    _, head = solve(given, method)
    assert (head.scores(scored).argmax(axis=1) == kinds).mean() > 0.95


def choice_of(given, *names):
    solved = {name: solve(given, name) for name in names}
    return choose_method(names, solved.__getitem__)


def test_auto_takes_the_least_change_that_brings_the_domains_together():
    given, _ = problem(lambda x: x + FIRST * 30)
    choice = choice_of(given, "source-only", "coral", "pseudo")
    assert choice.method == "coral"
    apart, noise = distance(solve(given, "coral")[0])
    assert choice.left == pytest.approx(max(apart, 0) / noise)
    assert choice.left <= 1 < distance(given)[0] / distance(given)[1]
    alike, _ = problem()
    assert choice_of(alike, "source-only", "coral", "pseudo").method == "source-only"


def test_methods_after_the_first_that_suffices_are_not_asked_for():
    given, _ = problem()
    asked = []
    choose_method(["coral", "source-only"], lambda name: asked.append(name) or solve(given, name))
    assert asked == ["source-only"]


def test_where_nothing_suffices_the_least_distance_is_taken():
    given, _ = problem(lambda x: x + FIRST * 3)
    anew = {
        "adabn": lambda: Moved(given.source, given.target - FIRST * 2, given.scored),
        "simclr-both": lambda: Moved(given.source, given.target - FIRST, given.scored),
    }
    choice = choice_of(replace(given, anew=anew), "source-only", "adabn", "simclr-both")
    assert choice.method == "adabn"
    assert choice.left > 1


@pytest.mark.parametrize("known", [True, False])
def test_features_that_have_lost_the_source_are_not_taken_for_alike(known):
    """Constant ones are no distance apart; with few patients too, of whom no strength is chosen by."""
    given, _ = problem(lambda x: x + FIRST * 3, n=200 if known else 16)
    flat = Moved(0 * given.source, 0 * given.target, 0 * given.scored)
    given = replace(given, anew={"adabn": lambda: flat})
    assert (solve(given, "adabn")[1].held_out is not None) == known
    assert choice_of(given, "source-only", "adabn").method == "source-only"


def test_distance_is_of_scaled_features_with_patients_kept_together():
    given, _ = problem(lambda x: x * 1.5 + FIRST)
    units = np.array([1e-3, 1.0, 1e3])
    scaled = replace(given, source=given.source * units, target=given.target * units)
    assert distance(scaled) == pytest.approx(distance(given))
    apart, noise = distance(given)
    few = replace(given, others=np.array([f"q{i % 10}" for i in range(200)], dtype=object))
    assert distance(few)[0] == apart
    assert distance(few)[1] > 1.2 * noise


def test_entropy_is_a_share_of_the_largest():
    scores = np.random.default_rng(0).normal(size=(20, 3))
    of_classes = entropy(softmax(scores, axis=1), base=3, axis=1)
    of_labels = entropy(np.stack([expit(scores), expit(-scores)]), base=2, axis=0)
    assert mean_entropy(scores, True) == pytest.approx(of_classes.mean())
    assert mean_entropy(scores, False) == pytest.approx(of_labels.mean())
    assert mean_entropy(np.zeros((2, 4)), True) == pytest.approx(1)
    assert mean_entropy(np.array([[800.0], [-800.0]]), False) == 0


def test_the_upper_bound_learns_the_targets_labels_alone():
    given, truth = problem(lambda x: -x)
    y = (np.arange(200) % 2).astype(float)[:, None]
    keys = np.arange(200).astype(str).astype(object)
    scores = supervised(given, y, keys).scores(given.scored)
    assert roc_auc_score(truth, scores[:, 0]) > 0.9
    other = replace(given, source=given.source * np.nan, y=given.y * np.nan)
    np.testing.assert_array_equal(supervised(other, y, keys).scores(given.scored), scores)


@pytest.mark.parametrize("method", ["source-only", "coral", "pseudo"])
def test_nothing_is_learned_from_rows_to_be_scored(method):
    given, _ = problem(lambda x: x @ MIXING)
    poisoned = replace(given, scored=given.scored * np.nan)
    one, other = (solve(p, method)[1] for p in (given, poisoned))
    np.testing.assert_array_equal(one.weight, other.weight)
    assert distance(solve(poisoned, method)[0]) == distance(solve(given, method)[0])
