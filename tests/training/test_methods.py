"""Each method learns from the rows it is given, and what is chosen is chosen within them."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

from medclr.config import EfficiencyConfig
from medclr.data.labels import Task
from medclr.models.encoder import Architecture
from medclr.training import methods
from medclr.training.methods import AUTO, INNER_FOLDS, RATES, Material, Start, fit, trainings
from medclr.training.probe import Neighbours, fit_linear, inner_folds

BINARY = Task("binary", ("lesion",), ("no", "yes"))
ARCHITECTURE = Architecture(10, 8, 2, 1, "group", (8, 8))
CONFIG = EfficiencyConfig(labels=Path("labels.csv"), epochs=30, min_steps=30, max_steps=300, lr=1e-3)


def material(patients=60, task=BINARY, config=CONFIG):
    """Two rows a patient; half of the patients are positive."""
    rows = pd.DataFrame({"patient_key": np.repeat([f"p{i}" for i in range(patients)], 2)})
    y = np.repeat(np.arange(patients) % 2, 2).astype(float)[:, None]
    return Material(rows, y, task, rows, None, None, None, config)


def features(given, strength=1.5, seed=0):
    x = np.random.default_rng(seed).normal(size=(len(given.y), 8))
    x[:, 0] += strength * given.y[:, 0]
    return x


@pytest.fixture
def networks(monkeypatch):
    """Stands in for training: what it was given, and scores that are the better the nearer the rate is to `best`."""
    made = SimpleNamespace(calls=[], best=CONFIG.lr)

    def fit_full(network, width, rows, y, store, spec, views, config, seed, exclusive, head, on_epoch, checkpoint):
        made.calls.append(SimpleNamespace(rows=rows, y=y, config=config, head=head, seed=seed, checkpoint=checkpoint))
        return config.lr

    def scores_of(lr, rows, store, spec):
        truth = rows["patient_key"].str[1:].astype(int).to_numpy() % 2
        noise = np.random.default_rng(1).normal(size=len(rows)) * (1 + 50 * abs(np.log(lr / made.best)))
        return (4 * truth + noise)[:, None]

    def fit_student(student, teacher, rows, store, spec, views, config, seed, exclusive, on_epoch, checkpoint):
        told = teacher(torch.eye(8)).detach()
        made.calls.append(SimpleNamespace(rows=rows, told=told, student=student, config=config, checkpoint=checkpoint))
        return config.lr

    monkeypatch.setattr(methods, "fit_full", fit_full)
    monkeypatch.setattr(methods, "fit_student", fit_student)
    monkeypatch.setattr(methods, "classify_rows", scores_of)
    return made


def weights(network):
    return torch.cat([p.detach().flatten() for p in network.parameters()])


def start(x=None):
    return Start(features=x, network=torch.nn.Sequential(torch.nn.Identity()), feature_dim=8)


def test_heads_on_features_are_those_of_the_probe():
    given = material()
    x, at = features(given), np.arange(10, 90)
    linear, knn = (fit(name, given, start(x), at, 3) for name in ("linear", "knn"))
    expected = fit_linear(x[at], given.y[at], given.patients[at], 3)
    rows = np.arange(90, 120)
    np.testing.assert_array_equal(linear.scores(rows), expected.scores(x[rows]))
    np.testing.assert_array_equal(linear.held_out, expected.held_out)
    assert linear.choice == f"C = {expected.strength:g}"
    np.testing.assert_array_equal(knn.scores(rows), Neighbours(x[at], given.y[at], False).scores(x[rows]))
    own, held = inner_folds(given.y[at], given.patients[at], 3)[0]
    voted = Neighbours(x[at][own], given.y[at][own], False).scores(x[at][held])
    np.testing.assert_array_equal(knn.held_out[held], voted)


@pytest.mark.parametrize("method", ["linear", "knn", "auto", "lp-ft"])
def test_nothing_but_the_rows_given_is_learned_from(method, networks):
    given = material()
    x, at, rows = features(given), np.arange(0, 80), np.arange(80, 120)
    poisoned = replace(given, y=np.where(np.arange(120)[:, None] < 80, given.y, 1 - given.y))
    one, two = (fit(method, one, start(x), at, 0).scores(rows) for one in (given, poisoned))
    np.testing.assert_array_equal(one, two)
    assert all(set(call.rows["patient_key"]) <= {f"p{i}" for i in range(40)} for call in networks.calls)


def test_distillation_is_from_the_linear_head_through_what_may_be_seen_without_labels(networks):
    given = material()
    x, at, free = features(given), np.arange(0, 80), given.rows[100:].reset_index(drop=True)
    fitted = fit("distill", replace(given, unlabelled=free), start(x), at, 0, checkpoint=Path("last.ckpt"))
    (call,) = networks.calls
    linear = fit("linear", given, start(x), at, 0)
    expected = np.eye(8) @ linear.head.weight + linear.head.bias
    np.testing.assert_allclose(call.told.numpy(), expected, rtol=1e-5)
    assert call.rows is free
    assert not call.student(torch.ones(1, 8)).any(), "the student has a head of its own, which says nothing yet"
    assert (fitted.network, fitted.held_out, fitted.choice) == (CONFIG.lr, None, linear.choice)
    assert call.checkpoint == Path("last.ckpt")


@pytest.mark.parametrize("best", RATES)
def test_a_tuned_rate_is_the_one_that_ranks_best_in_folds(best, networks):
    networks.best = CONFIG.lr * best
    given, at = material(), np.arange(120)
    fitted = fit("full", given, start(), at, 0, tuned=True)
    assert fitted.choice == f"learning rate {CONFIG.lr * best:g}"
    assert fitted.held_out.shape == (120, 1)
    *inner, last = networks.calls
    assert len(inner) == len(RATES) * INNER_FOLDS
    assert len(last.rows) == 120
    assert last.config.lr == pytest.approx(CONFIG.lr * best)
    assert (last.config.min_steps, last.config.max_steps) == (30, 300)
    assert {(call.config.min_steps, call.config.max_steps) for call in inner} == {(10, 100)}
    for call in inner:  # whole patients, two thirds of them
        counts = call.rows["patient_key"].value_counts()
        assert set(counts) == {2}
        assert 38 <= len(counts) <= 42


def test_random_weights_are_trained_alike_from_stage_to_stage_and_not_held_where_they_are(networks):
    given = material(config=replace(CONFIG, layer_decay=0.5, decay_to="start"))
    fit("full", given, start(), np.arange(120), 0)
    fit("full", given, replace(start(), network=None, architecture=ARCHITECTURE), np.arange(120), 0)
    of_encoder, of_scratch = (call.config for call in networks.calls)
    assert (of_encoder.layer_decay, of_encoder.decay_to) == (0.5, "start")
    assert (of_scratch.layer_decay, of_scratch.decay_to) == (1, "zero")


def test_untuned_a_network_is_trained_once(networks):
    fitted = fit("lp-ft", material(), start(features(material())), np.arange(120), 7, checkpoint=Path("last.ckpt"))
    (call,) = networks.calls
    assert call.head is not None
    assert (call.seed, call.checkpoint, fitted.held_out) == (7, Path("last.ckpt"), None)
    assert fit("full", material(), start(), np.arange(120), 7).network == CONFIG.lr
    assert networks.calls[-1].head is None


def test_auto_takes_what_ranks_best(networks):
    given = material()
    networks.best = CONFIG.lr
    assert fit("auto", given, start(features(given, strength=0)), np.arange(120), 0).choice == "lp-ft"
    networks.best = 1e-9  # a network that knows nothing
    fitted = fit("auto", given, start(features(given, strength=9)), np.arange(120), 0)
    assert fitted.choice in ("linear", "knn")
    assert fitted.network is None


def test_with_few_labels_nothing_is_chosen(networks):
    given = material(patients=16)
    fitted = fit("auto", given, start(features(given)), np.arange(32), 0)
    assert fitted.choice == f"{AUTO[0]} for want of labels to choose by"
    assert not networks.calls
    fit("full", given, start(), np.arange(32), 0, tuned=True)
    assert len(networks.calls) == 1


@pytest.mark.parametrize(
    ("method", "tuned"),
    [("linear", False), ("knn", False), ("full", False), ("distill", False), ("lp-ft", True), ("full", True)],
)
def test_the_cost_is_known_before(method, tuned, networks):
    given = material()
    fit(method, given, start(features(given)), np.arange(120), 0, tuned)
    assert sum(call.config.max_steps for call in networks.calls) == trainings(method, tuned) * CONFIG.max_steps


def test_a_start_gives_each_training_a_network_of_its_own():
    architecture = Architecture(10, 4, 2, 1, "batch", (16, 16))
    scratch = Start(architecture=architecture, feature_dim=32)
    one, again, other = (weights(scratch.fresh(seed)) for seed in (0, 0, 1))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)
    kept = scratch.fresh(0)
    copied = Start(network=kept, feature_dim=32).fresh(5)
    with torch.no_grad():
        next(copied.parameters()).add_(1)
    assert torch.equal(weights(kept), one)
