"""Halves of a target: every volume is scored by what saw neither its patient nor its label."""

import re
from dataclasses import replace

import numpy as np
import pytest

from medclr.training import crossfit
from medclr.training.adapt import Choice, Moved, Problem, held_out_auroc, mean_entropy, solve
from medclr.training.crossfit import CrossFit, Domain, equal_draws
from medclr.training.probe import fit_linear, inner_folds
from medclr.training.shots import few_shot, shots_in_order

METHODS = ["source-only", "adabn", "adabn-coral", "coral", "pseudo"]


def domain(seed, first, patients=40, shift=0.0):
    """Two rows of each patient p<first>, p<first + 1>, …; half of the patients are positive."""
    rng = np.random.default_rng(seed)
    keys = np.repeat([f"p{first + i}" for i in range(patients)], 2).astype(object)
    y = np.repeat(np.arange(patients) % 2, 2).astype(float)[:, None]
    x = rng.normal(size=(len(y), 4)) + shift
    x[:, 0] += 2 * y[:, 0]
    return Domain(y, keys, x)


def renormalise_of(source, target):
    """Statistics of the very rows: features less their mean."""

    def renormalise(own, fit, held, seed):
        mean = target.features[fit].mean(axis=0)
        kept = source.features[own]
        return Moved(kept - kept.mean(axis=0), target.features[fit] - mean, target.features[held] - mean)

    return renormalise


def cross_fit(source, target):
    return CrossFit(source, target, False, {"adabn": renormalise_of(source, target)})


@pytest.fixture
def sides():
    """The last ten patients of the source are the first ten of the target."""
    return domain(0, 0), domain(1, 30, shift=0.5)


DRAWN = np.arange(80)


def tune(target):
    """In place of a network: a head of the labels that it is given, added to the one to start from."""

    def tuned(at, head, fit, held, seed):
        own = fit_linear(target.features[at], target.y[at], target.patients[at], seed)
        told, scores = (head.scores(target.features[rows]) + own.scores(target.features[rows]) for rows in (fit, held))
        return told, scores

    return tuned


SHOTS = {
    "shots": lambda fits: fits.with_shots(4, DRAWN, 3),
    "adapted": lambda fits: fits.with_shots(4, DRAWN, 3, METHODS),
    "alone": lambda fits: fits.shots_alone(4, DRAWN, 3),
    "tuned": lambda fits: fits.tuned(4, DRAWN, 3, tune(fits._target)),
}


@pytest.mark.parametrize("method", METHODS)
def test_each_half_is_scored_by_adapting_to_the_other(sides, method):
    source, target = sides
    scores = cross_fit(source, target).scores(method, DRAWN, 3)
    for fit, held in inner_folds(target.y, target.patients, 3, 2):
        assert not set(target.patients[fit]) & set(target.patients[held])
        own = np.flatnonzero(~np.isin(source.patients, target.patients[held]))
        assert 60 <= len(own) < 80
        x, y, keys = source.features[own], source.y[own], source.patients[own]
        moved, head = solve(
            Problem(
                x, y, keys, target.features[fit], target.features[held], False, 3,
                {"adabn": lambda own=own, fit=fit, held=held: renormalise_of(source, target)(own, fit, held, 3)},
            ),
            method,
        )  # fmt: skip
        told = head.scores(moved.target)
        np.testing.assert_allclose(scores[held], (head.scores(moved.scored) - told.mean()) / told.std())


def test_a_source_that_is_of_one_class_without_those_who_are_scored_is_said_to_be():
    """Else all would have one score, and an AUROC of .5 that nobody has earned."""
    source, target = domain(0, 0), domain(1, 30)
    assert cross_fit(source, target).unlearnable(DRAWN, 3) == ""
    ill = np.isin(source.patients, target.patients) & (source.y[:, 0] == 1)
    few = replace(source, y=np.where(ill[:, None], 1.0, 0.0))  # all positives are in the target too
    half = set(target.patients[inner_folds(target.y, target.patients, 3, 2)[0][1]])
    kept = np.flatnonzero(~ill | np.isin(source.patients, list(half)))
    assert "one class" in cross_fit(few, target).unlearnable(kept, 3)


def test_a_source_of_whom_too_few_are_left_is_told():
    """Ten patients, all of them in the target too: half of them are scored, and who is left may be fewer than folds."""
    source, target = domain(0, 0, patients=10), domain(1, 0, patients=60)
    drawn, few = np.arange(20), set()
    for seed in range(12):
        fit = cross_fit(source, target)
        if reason := fit.unlearnable(drawn, seed):
            few.add(reason)
        else:
            fit.judged("source-only", drawn, seed)  # raises where there are not enough for its folds
    assert few
    assert all(
        re.fullmatch(r"without the .* scored, the source (is of one .*|has only [1-4] pat.*)", one) for one in few
    )
    assert any("(fewer than 5)" in one for one in few)


def test_a_method_is_judged_by_the_source_and_by_the_half_adapted_to(sides):
    source, target = sides
    fits = cross_fit(source, target)
    at_home, entropy = fits.judged("pseudo", DRAWN, 3)
    moved, heads = zip(*(fits._solve(half, "pseudo") for half in (0, 1)), strict=True)
    assert at_home == pytest.approx(
        np.mean([held_out_auroc("pseudo", *solved) for solved in zip(moved, heads, strict=True)])
    )
    told = [heads[half].scores(target.features[fits._halves[half][0]]) for half in (0, 1)]
    assert entropy == pytest.approx(np.mean([mean_entropy(scores, False) for scores in told]))


@pytest.mark.parametrize("method", METHODS)
def test_what_is_used_on_new_volumes_has_learned_from_all(sides, method):
    """Of patients in both domains too, since none of them is scored."""
    source, target = sides
    rows = np.arange(80)
    anew = {"adabn": lambda: renormalise_of(source, target)(rows, rows, rows, 3)}
    x, y, keys = source.features, source.y, source.patients
    _, wanted = solve(Problem(x, y, keys, target.features, target.features, False, 3, anew), method)
    moved, head = cross_fit(source, target).whole(method, 3)
    np.testing.assert_allclose(head.weight, wanted.weight)
    np.testing.assert_allclose(head.bias, wanted.bias)
    assert moved.network is None


def without_labels(target, seed, first, patients=10):
    """The same with more volumes after its own, whose labels are not known."""
    more = domain(seed, first, patients, shift=2.0)
    y = np.concatenate([target.y, np.full_like(more.y, np.nan)])
    keys, x = (np.concatenate(pair) for pair in ((target.patients, more.patients), (target.features, more.features)))
    return Domain(y, keys, x)


def test_volumes_without_a_label_are_adapted_to_by_both_halves_but_for_those_of_who_is_scored(sides):
    source, target = sides
    more = without_labels(target, 2, 65)  # p65 to p74, of whom the first five are in the target
    fits = cross_fit(source, more)
    scores = fits.scores("coral", DRAWN, 3)
    assert scores.shape == target.y.shape
    for (fit, held), (own, others, problem) in zip(
        inner_folds(target.y, target.patients, 3, 2), fits._halves, strict=True
    ):
        np.testing.assert_array_equal(others, held)
        there = 80 + np.flatnonzero(~np.isin(more.patients[80:], target.patients[held]))
        assert 10 < len(there) < 20
        np.testing.assert_array_equal(own, [*fit, *there])
        np.testing.assert_array_equal(problem.target, more.features[own])
    assert not np.allclose(scores, cross_fit(source, target).scores("coral", DRAWN, 3))


@pytest.mark.parametrize("few", ["shots", "alone", "tuned", "target-trained"])
def test_what_learns_labels_of_the_target_learns_those_that_are_known(sides, few):
    """Volumes without one give a head no more than the unit of its scores, which it does not rank by."""
    source, target = sides
    ask = SHOTS.get(few, lambda fits: fits.upper_bound(DRAWN, 3))
    one, two = (ask(cross_fit(source, side)) for side in (target, without_labels(target, 2, 65)))
    for _, held in inner_folds(target.y, target.patients, 3, 2):
        np.testing.assert_array_equal(one[held, 0].argsort(), two[held, 0].argsort())


def test_a_target_without_any_label_is_adapted_to_as_a_whole(sides, monkeypatch):
    source, target = sides
    bare = replace(target, y=np.full_like(target.y, np.nan))
    solved = []
    monkeypatch.setattr(crossfit, "solve", lambda problem, method: solved.append(method) or solve(problem, method))
    fits = cross_fit(source, bare)
    (choice,) = fits.choices(METHODS, DRAWN, 3)
    assert choice.method in METHODS
    at_home, entropy = fits.judged("coral", DRAWN, 3)
    assert 0.5 < at_home < 1
    assert 0 < entropy < 1
    moved, head = fits.whole("coral", 3)
    assert solved.count("coral") == 1
    np.testing.assert_array_equal(moved.target, target.features)
    assert len(moved.source) == len(source.y)  # nobody is scored, so nobody is left out
    np.testing.assert_allclose(head.weight, cross_fit(source, target).whole("coral", 3)[1].weight)


@pytest.mark.parametrize("method", [*METHODS, "auto", "target-trained", "shots", "adapted", "alone", "tuned"])
def test_nothing_of_a_scored_patient_is_ever_seen(sides, method):
    """In either domain: with other features and labels, the other patients of its half keep their scores."""
    source, target = sides

    def scored(source, target):
        fits = cross_fit(source, target)
        if method == "auto":
            return fits.chosen(METHODS, DRAWN, 3)[0]
        if method in SHOTS:
            return SHOTS[method](fits)
        return fits.upper_bound(DRAWN, 3) if method == "target-trained" else fits.scores(method, DRAWN, 3)

    before = scored(source, target)
    (_, held), _ = inner_folds(target.y, target.patients, 3, 2)
    patient = next(key for key in target.patients[held] if key in set(source.patients))
    others = held[target.patients[held] != patient]
    poisoned = []
    for side in (source, target):
        rows = side.patients == patient
        x, y = side.features.copy(), side.y.copy()
        x[rows] = 1e3
        if side is source:  # those of the target decide the halves
            y[rows] = 1 - y[rows]
        poisoned.append(replace(side, features=x, y=y))
    after = scored(*poisoned)
    np.testing.assert_array_equal(after[others], before[others])
    assert not np.allclose(after[target.patients == patient], before[target.patients == patient])


@pytest.mark.parametrize("method", METHODS)
def test_labels_of_the_target_decide_nothing_but_the_halves(sides, method, monkeypatch):
    source, target = sides
    halves = inner_folds(target.y, target.patients, 3, 2)
    monkeypatch.setattr(crossfit, "inner_folds", lambda *_: halves)
    other = replace(target, y=1 - target.y)
    one, two = (cross_fit(source, t).scores(method, DRAWN, 3) for t in (target, other))
    np.testing.assert_array_equal(one, two)
    one, two = (cross_fit(source, t).chosen(METHODS, DRAWN, 3) for t in (target, other))
    np.testing.assert_array_equal(one[0], two[0])
    assert one[1] == two[1]


def test_auto_has_the_scores_of_what_it_chose_in_each_half(sides, monkeypatch):
    source, target = sides
    fits, answers = cross_fit(source, target), [Choice("coral", 0.1), Choice("adabn", 0.2)]
    left = list(answers)
    monkeypatch.setattr(crossfit, "choose_method", lambda *_: left.pop(0))
    scores, choices = fits.chosen(METHODS, DRAWN, 3)
    assert choices == answers
    for (_, held), choice in zip(inner_folds(target.y, target.patients, 3, 2), answers, strict=True):
        np.testing.assert_array_equal(scores[held], fits.scores(choice.method, DRAWN, 3)[held])


def test_seeds_differ_and_a_seed_is_computed_once(sides, monkeypatch):
    fits, calls = cross_fit(*sides), []
    monkeypatch.setattr(crossfit, "solve", lambda problem, method: calls.append(method) or solve(problem, method))
    one = fits.scores("coral", DRAWN, 1)
    np.testing.assert_array_equal(fits.scores("coral", DRAWN, 1), one)
    fits.chosen(["source-only", "coral"], DRAWN, 1)
    assert sorted(calls) == ["coral"] * 2 + ["source-only"] * 2
    assert not np.allclose(fits.scores("coral", DRAWN, 2), one)
    assert not np.allclose(fits.scores("coral", DRAWN[:60], 2), fits.scores("coral", DRAWN, 2))
    np.testing.assert_array_equal(fits.scores("coral", DRAWN, 1), one)


def test_the_upper_bound_reads_a_rule_that_is_the_other_way_round(sides):
    source, target = sides
    turned = replace(target, features=target.features * (-1, 1, 1, 1))
    fits = CrossFit(source, turned, False)
    positive = target.y[:, 0] == 1
    bound, plain = fits.upper_bound(DRAWN, 0)[:, 0], fits.scores("source-only", DRAWN, 0)[:, 0]
    assert bound[positive].mean() > bound[~positive].mean()
    assert plain[positive].mean() < plain[~positive].mean()


def test_halves_by_two_methods_are_ranked_on_one_scale(sides, monkeypatch):
    """One whose scores are a hundred times as large, and moved, changes nothing of the order."""
    source, target = sides
    plain = cross_fit(source, target).scores("source-only", DRAWN, 3)

    def louder(problem, method):
        moved, head = solve(problem, "source-only")
        loud = replace(head, weight=100 * head.weight, bias=head.bias + 7)
        return moved, loud if method == "coral" else head

    monkeypatch.setattr(crossfit, "solve", louder)
    left = [Choice("coral", 0.1), Choice("source-only", 0.1)]
    monkeypatch.setattr(crossfit, "choose_method", lambda *_: left.pop(0))
    scores, _ = cross_fit(source, target).chosen(["source-only", "coral"], DRAWN, 3)
    np.testing.assert_allclose(scores, plain)


def test_a_head_that_tells_nothing_has_finite_scores(sides):
    source, target = sides
    flat = replace(source, features=np.ones_like(source.features))
    assert np.isfinite(CrossFit(flat, target, False).scores("source-only", DRAWN, 3)).all()


@pytest.mark.parametrize("arm", SHOTS)
def test_no_label_of_the_target_but_the_shots_decides_anything(sides, arm, monkeypatch):
    source, target = sides
    halves = inner_folds(target.y, target.patients, 3, 2)
    of_half = {
        tuple(target.patients[fit]): shots_in_order(target.y[fit], target.patients[fit], False, 3) for fit, _ in halves
    }
    monkeypatch.setattr(crossfit, "inner_folds", lambda *_: halves)
    monkeypatch.setattr(crossfit, "shots_in_order", lambda y, patients, *_: of_half[tuple(patients)])
    known = np.concatenate([fit[rows[:4]] for fit, _ in halves for rows in of_half[tuple(target.patients[fit])]])
    assert len(known) == 2 * 2 * 4
    y = 1 - target.y
    y[known] = target.y[known]
    one, two = (SHOTS[arm](cross_fit(source, side)) for side in (target, replace(target, y=y)))
    np.testing.assert_array_equal(one, two)
    y[known] = 1 - target.y[known]
    assert not np.allclose(SHOTS[arm](cross_fit(source, replace(target, y=y))), one)


@pytest.mark.parametrize("method", ["source-only", "adabn", "adabn-coral", "coral"])
def test_shots_go_with_the_features_of_the_method_that_is_chosen(sides, method, monkeypatch):
    source, target = sides
    monkeypatch.setattr(crossfit, "choose_method", lambda candidates, solved: Choice(method, 0.1))
    fits = cross_fit(source, target)
    scores = fits.with_shots(4, DRAWN, 3, METHODS)
    for half, (fit, held) in enumerate(inner_folds(target.y, target.patients, 3, 2)):
        moved, head = fits._solve(half, method)
        order = shots_in_order(target.y[fit], target.patients[fit], False, 3)
        at = np.concatenate([rows[:4] for rows in order])
        few = few_shot(moved.source, moved.y, moved.target[at], target.y[fit][at], False, head.strength, 3)
        told = few.scores(moved.target)
        np.testing.assert_allclose(scores[held], (few.scores(moved.scored) - told.mean()) / told.std())


@pytest.mark.parametrize("arm", [*METHODS, "target-trained", "alone"])
def test_copies_of_a_scored_volume_under_another_name_are_not_learned_from(sides, arm):
    """Whatever a copy shows, in the source or in the other half of the target, the volume's score is the same."""
    source, target = sides
    fit, held = inner_folds(target.y, target.patients, 3, 2)[0]
    alone = np.flatnonzero(~np.isin(source.patients, target.patients))
    pixels = [np.arange(80).astype(object), np.arange(100, 180).astype(object)]
    pixels[0][alone[:4]] = pixels[1][fit[:4]] = pixels[1][held[:4]]
    arms = {"target-trained": lambda fits: fits.upper_bound(DRAWN, 3), "alone": SHOTS["alone"]}
    score = arms.get(arm, lambda fits: fits.scores(arm, DRAWN, 3))

    def scores(known, at_source, at_target):
        x, there = source.features.copy(), target.features.copy()
        x[alone[:4]] += at_source
        there[fit[:4]] += at_target
        one, two = (
            replace(side, features=features, pixels=own if known else None)
            for side, features, own in ((source, x, pixels[0]), (target, there, pixels[1]))
        )
        return score(cross_fit(one, two))[held]

    for changed in ((9, 0), (0, 9)):
        np.testing.assert_array_equal(scores(True, *changed), scores(True, 0, 0))
    assert not np.allclose(scores(False, 0, 9), scores(False, 0, 0))


def test_halves_that_hold_too_few_of_a_class_say_so(sides):
    fits = cross_fit(*sides)
    assert fits.lacking(10, DRAWN, 3) == ""
    assert fits.lacking(11, DRAWN, 3) == "a half of the target has 10 patients of a class, and 11 are asked for"


def test_a_class_that_the_target_has_only_in_one_half_is_lacking_in_the_other():
    source, target = domain(0, 0), domain(1, 100)
    classes = np.concatenate([1 - target.y, target.y, np.zeros_like(target.y)], axis=1)
    nowhere = CrossFit(replace(source, y=classes), replace(target, y=classes), True)
    assert nowhere.lacking(5, DRAWN, 3) == ""
    classes = classes.copy()
    classes[target.patients == "p100"] = (0, 0, 1)
    once = CrossFit(replace(source, y=classes), replace(target, y=classes), True)
    assert once.lacking(5, DRAWN, 3) == "a half of the target has 0 patients of a class, and 5 are asked for"


def test_equal_draws_have_all_rows_and_as_many_of_each_domain():
    domains = np.array(["b"] * 7 + ["a"] * 3 + ["b"] * 2 + ["c"], dtype=object)
    rows = equal_draws(domains, 5)
    assert list(rows) == sorted(rows)
    times = np.bincount(rows, minlength=len(domains))
    assert all(times[domains == name].sum() == 9 for name in "abc")
    assert set(times[domains == "b"]) == {1}
    assert set(times[domains == "a"]) == {3}
    assert times[domains == "c"] == [9]
    uneven = np.array(["a"] * 3 + ["b"] * 4, dtype=object)
    some = [tuple(np.bincount(equal_draws(uneven, seed), minlength=7)[:3]) for seed in range(20)]
    assert set(some) == {(2, 1, 1), (1, 2, 1), (1, 1, 2)}
    np.testing.assert_array_equal(equal_draws(uneven, 3), equal_draws(uneven, 3))


def test_a_domain_counts_as_much_as_another_however_few_rows_it_has(sides):
    """A head learned with --balance is that of rows repeated by hand."""
    source, target = sides
    domains = np.where(np.arange(80) < 20, "few", "many").astype(object)
    fits = CrossFit(source, target, False, {}, domains)
    scores = fits.scores("source-only", DRAWN, 3)
    for fit, held in inner_folds(target.y, target.patients, 3, 2):
        own = np.flatnonzero(~np.isin(source.patients, target.patients[held]))
        own = own[equal_draws(domains[own], 3)]
        assert (domains[own] == "few").mean() == 0.5
        x, y, keys = source.features[own], source.y[own], source.patients[own]
        moved, head = solve(Problem(x, y, keys, target.features[fit], target.features[held], False, 3), "source-only")
        told = head.scores(moved.target)
        np.testing.assert_allclose(scores[held], (head.scores(moved.scored) - told.mean()) / told.std())
    assert not np.allclose(scores, cross_fit(source, target).scores("source-only", DRAWN, 3))
