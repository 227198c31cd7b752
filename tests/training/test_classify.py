from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedGroupKFold

from medclr.config import LabelsConfig
from medclr.data.prepare import statistics
from medclr.data.store import Store
from medclr.errors import UsageError
from medclr.metrics import auroc
from medclr.models.encoder import Architecture, build_encoder
from medclr.training import classify
from medclr.training.classify import FEWEST_PATIENTS, FIXED_STRENGTH, STRENGTHS, Linear, fit_full, fit_linear, fit_pca
from medclr.training.encode import embed_rows
from medclr.transforms.presets import build_views


def problem(patients, per_patient=2, features=6, seed=0):
    """Features of which the first says something of the label; half of the patients are positive."""
    rng = np.random.default_rng(seed)
    keys = np.repeat([f"p{number}" for number in range(patients)], per_patient).astype(object)
    y = np.repeat(np.arange(patients) % 2, per_patient)
    x = rng.normal(3, 5, (len(y), features))
    x[:, 0] += 6 * y
    return x, y, keys


def scaled(x):
    return (x - x.mean(0)) / x.std(0).max()


@given(patients=st.sampled_from([6, 30]), seed=st.integers(0, 9))
@settings(max_examples=12, deadline=None)
def test_folded_weights_are_those_of_the_scaled_regression(patients, seed):
    x, y, keys = problem(patients, seed=seed)
    head = fit_linear(x, y, keys, seed)
    model = LogisticRegression(C=head.strength, max_iter=1000, class_weight="balanced").fit(scaled(x), y)
    new = np.random.default_rng(99).normal(0, 20, (50, 6))
    expected = model.decision_function((new - x.mean(0)) / x.std(0).max())
    np.testing.assert_allclose(head.scores(new), expected, rtol=1e-6, atol=1e-8)


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
    y = np.repeat([1] * positive + [0] * negative, 3)
    keys = np.repeat(np.arange(positive + negative), 3).astype(str).astype(object)
    x = np.random.default_rng(0).normal(size=(len(y), 4))
    if not chosen:
        monkeypatch.setattr(classify, "_choose_strength", None)
    head = fit_linear(x, y, keys, 0)
    assert head.chosen == chosen
    assert head.strength in (STRENGTHS if chosen else (FIXED_STRENGTH,))


def test_a_given_strength_is_used_and_not_chosen(monkeypatch):
    monkeypatch.setattr(classify, "_choose_strength", None)
    x, y, keys = problem(40)
    head = fit_linear(x, y, keys, 0, strength=0.03)
    assert (head.strength, head.chosen) == (0.03, False)
    model = LogisticRegression(C=0.03, class_weight="balanced").fit(scaled(x), y)
    np.testing.assert_allclose(head.scores(x), model.decision_function(scaled(x)), rtol=1e-6)


def test_strength_is_the_best_of_inner_cross_validation_by_patient():
    x, y, keys = problem(40, per_patient=3, features=30, seed=1)
    standard = scaled(x)
    folds = list(StratifiedGroupKFold(5, shuffle=True, random_state=7).split(standard, y, keys))
    assert all(not set(keys[a]) & set(keys[b]) for a, b in folds)

    def quality(strength):
        model = LogisticRegression(C=strength, max_iter=1000, class_weight="balanced")
        return np.mean([auroc(y[b], model.fit(standard[a], y[a]).decision_function(standard[b])) for a, b in folds])

    head = fit_linear(x, y, keys, 7)
    assert quality(head.strength) == max(map(quality, STRENGTHS))
    assert head.chosen


def test_only_the_rows_of_the_draw_are_looked_at(monkeypatch):
    """Everything that scikit-learn sees while a draw is fitted has the draw's length, or that of a fold of it."""
    x, y, keys = problem(24)
    seen = []
    logistic = classify._logistic
    monkeypatch.setattr(
        classify, "_logistic", lambda features, labels, c: seen.append(len(labels)) or logistic(features, labels, c)
    )
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
    logistic = classify._logistic
    monkeypatch.setattr(
        classify,
        "_logistic",
        lambda features, labels, c: fitted.append(features[:, 5]) or logistic(features, labels, c),
    )
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


@pytest.fixture
def full(material, tmp_path):
    def run(seed=0, rows=None, network=None, head=None, on_epoch=None, checkpoint=None, **settings):
        torch.manual_seed(5)
        network = network or build_encoder(Architecture(10, 8, 2, 1, "batch", (12, 12)))
        defaults = {"labels": tmp_path, "device": "cpu", "epochs": 1, "batch_size": 8, "min_steps": 1, "max_steps": 600}
        views = build_views("xray", 2, scale=(0.7, 1.0))
        rows = material.rows if rows is None else rows
        config = LabelsConfig(**defaults | settings)
        return fit_full(
            network, 64, rows, material.store, material.spec, views, config, seed, head, on_epoch, checkpoint
        )

    return run


def test_full_starts_from_a_head_that_is_given(full):
    head = Linear(np.linspace(-1, 1, 64), 0.25, 1.0, False)
    started = full(head=head, lr=0.0)
    np.testing.assert_allclose(started.head.weight.detach()[0], head.weight, rtol=1e-6)
    assert started.head.bias.item() == 0.25


def test_full_is_deterministic_for_a_seed(full):
    one, two, other = (full(seed=seed).state_dict() for seed in (3, 3, 4))
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert any(not torch.equal(one[name], other[name]) for name in one)


def test_full_goes_on_where_it_was_stopped(full, tmp_path):
    """Ended after the third of four epochs, the second call gives the very weights of an uninterrupted one."""

    class Stopped(Exception):
        pass

    def stop(step, loss):
        seen.append(step)
        if len(seen) == 3:
            raise Stopped

    seen = []
    checkpoint = tmp_path / "last.ckpt"
    with pytest.raises(Stopped):
        full(epochs=4, on_epoch=stop, checkpoint=checkpoint)
    told = []
    resumed = full(epochs=4, on_epoch=lambda step, loss: told.append(step), checkpoint=checkpoint).state_dict()
    assert (seen, told) == ([5, 10, 15], [20])
    whole = full(epochs=4).state_dict()
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


@pytest.mark.parametrize(
    ("settings", "steps"),
    [
        ({"epochs": 2}, 10),
        ({"epochs": 50, "max_steps": 7}, 7),
        ({"epochs": 1, "min_steps": 12}, 12),
        ({"epochs": 9, "batch_size": 64}, 9),
    ],
)
def test_full_takes_the_steps_that_were_said(full, monkeypatch, settings, steps):
    taken, told = [], []
    optimizer = classify.adamw

    def counted(*args, **kwargs):
        made = optimizer(*args, **kwargs)
        made.register_step_post_hook(lambda *_: taken.append(made.param_groups[0]["lr"]))
        return made

    monkeypatch.setattr(classify, "adamw", counted)
    full(on_epoch=lambda step, loss: told.append((step, loss)), **settings)
    assert len(taken) == steps
    assert told[-1][0] == steps
    assert all(np.isfinite(loss) for _, loss in told)
    assert max(taken) == pytest.approx(1e-3)
    assert taken[-1] < 0.3e-3 or steps <= 3  # the cosine is over when the steps are


def test_every_epoch_of_full_has_its_own_order_and_views(full, monkeypatch):
    asked = []
    get = classify.Blocks.__getitems__
    monkeypatch.setattr(
        classify.Blocks, "__getitems__", lambda self, items: asked.append(items[0][0]) or get(self, items)
    )
    full(epochs=3)
    assert asked == [epoch for epoch in range(3) for _ in range(5)]


def test_full_learns_an_easy_problem(full, material):
    train, test = material.rows[:24], material.rows[24:]
    classifier = full(rows=train, epochs=10, batch_size=12, lr=5e-3)
    assert not classifier.training
    scores = embed_rows(classifier, test, material.store, material.spec)
    assert scores.shape == (16,)
    assert auroc(test["y"].to_numpy(), scores) > 0.95


def test_classes_weigh_alike_however_rare(full, material):
    """A new head says nothing, so the first loss is ln 2 for each volume, times the weight of its class."""
    rows = material.rows[material.rows["y"].eq(0) | material.rows["store_key"].isin(material.rows["store_key"][:4])]
    rows = rows.reset_index(drop=True)
    assert 0 < rows["y"].mean() < 0.2
    losses = []
    full(rows=rows, batch_size=64, epochs=1, on_epoch=lambda step, loss: losses.append(loss))
    positive, n = int(rows["y"].sum()), len(rows)
    weight = (n - positive) / positive
    assert losses[0] == pytest.approx(np.log(2) * (positive * weight + n - positive) / n, rel=1e-5)


def test_slices_have_the_label_of_their_volume(tmp_path, material, monkeypatch):
    spec, store, rows = replace(material.spec, slices="axial"), Store(tmp_path), []
    for item, kept in enumerate([[0, 2], [1], [0, 1, 2], [2]]):
        array = np.random.default_rng(item).normal(100, 10, (1, 3, 12, 12)).astype(np.float32)
        store.write(f"{item:032x}", array, {})
        row = {"store_key": f"{item:032x}", "store_shape": [3, 12, 12], "patient_key": f"p{item}", "slices": kept}
        rows.append(row | {"y": item // 2} | statistics(array))
    losses, loss = [], classify.binary_cross_entropy_with_logits
    monkeypatch.setattr(
        classify,
        "binary_cross_entropy_with_logits",
        lambda logits, y, pos_weight: (
            losses.append((sorted(y.tolist()), float(pos_weight))) or loss(logits, y, pos_weight=pos_weight)
        ),
    )
    config = LabelsConfig(labels=tmp_path, epochs=1, batch_size=7, min_steps=1, max_steps=1, device="cpu")
    network = build_encoder(Architecture(10, 8, 2, 1, "batch", (12, 12)))
    classifier = fit_full(network, 64, pd.DataFrame(rows), store, spec, build_views("xray", 2), config, 0)
    assert losses == [([0, 0, 0, 1, 1, 1, 1], 0.75)]
    assert embed_rows(classifier, pd.DataFrame(rows), store, spec).shape == (4,)


def test_the_encoder_given_is_the_one_trained(full):
    network = build_encoder(Architecture(10, 8, 2, 1, "batch", (12, 12)))
    before = network.conv1.weight.detach().clone()
    classifier = full(network=network, epochs=1)
    assert classifier.encoder is network
    assert not torch.equal(network.conv1.weight, before)


def test_noise_in_the_last_component_is_not_blown_up():
    """What made the PCA baseline weak at 1% of the labels: each component divided by its own spread."""
    rng = np.random.default_rng(0)
    y = np.repeat([0, 1], 100)
    keys = np.arange(200).astype(str).astype(object)
    x = np.column_stack([10 * y + rng.normal(0, 5, 200), rng.normal(0, 0.01, (200, 50))])
    few = np.r_[0:8, 100:108]
    head = fit_linear(x[few], y[few], keys[few], 0)
    assert auroc(y, head.scores(x)) == pytest.approx(auroc(y, x[:, 0]), abs=0.01)


def test_fewest_steps_above_most_is_a_usage_error(tmp_path):
    with pytest.raises(UsageError, match="--max-steps 3"):
        LabelsConfig(labels=tmp_path, min_steps=8, max_steps=3)
