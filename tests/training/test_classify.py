from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from medclr.config import LabelsConfig
from medclr.data.prepare import statistics
from medclr.data.store import Store
from medclr.errors import UsageError
from medclr.metrics import auroc
from medclr.models.encoder import Architecture, build_encoder
from medclr.training import classify
from medclr.training.classify import fit_full
from medclr.training.encode import embed_rows
from medclr.training.probe import Linear
from medclr.transforms.presets import build_views

ARCHITECTURE = Architecture(10, 8, 2, 1, "batch", (12, 12))


@pytest.fixture
def full(material, tmp_path):
    def run(
        seed=0,
        rows=None,
        y=None,
        network=None,
        width=64,
        head=None,
        exclusive=False,
        on_epoch=None,
        checkpoint=None,
        **settings,
    ):
        torch.manual_seed(5)
        network = network or nn.Sequential(build_encoder(ARCHITECTURE))
        defaults = {"labels": tmp_path, "device": "cpu", "epochs": 1, "batch_size": 8, "min_steps": 1, "max_steps": 600}
        views = build_views("xray", 2, scale=(0.7, 1.0))
        rows, y = material.rows if rows is None else rows, material.y if y is None else y
        config = LabelsConfig(**defaults | settings)
        how = (network, width, rows, y, material.store, material.spec, views, config, seed)
        return fit_full(*how, exclusive, head, on_epoch, checkpoint)

    return run


def test_full_starts_from_a_head_that_is_given(full):
    head = Linear(np.linspace(-1, 1, 64)[:, None], np.array([0.25]), False, 1.0)
    started = full(head=head, lr=0.0)
    np.testing.assert_allclose(started.head.weight.detach()[0], head.weight[:, 0], rtol=1e-6)
    assert started.head.bias.item() == pytest.approx(0.25)


@pytest.mark.parametrize("weighting", ["balanced", "none"])
def test_logits_are_those_of_the_classes_as_they_are(full, material, weighting):
    y = np.zeros((len(material.rows), 1))
    y[0] = 1
    still = full(y=y, rows=material.rows, lr=0.0, class_weight=weighting)
    assert still.head.bias.item() == pytest.approx(-np.log(len(y) - 1) if weighting == "balanced" else 0)


def test_full_is_deterministic_for_a_seed(full):
    one, two, other = (full(seed=seed).state_dict() for seed in (3, 3, 4))
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert any(not torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("settings", [{}, {"dropout": 0.5, "decay_to": "start", "layer_decay": 0.7}])
def test_full_goes_on_where_it_was_stopped(full, tmp_path, settings):
    """Ended after the third of four epochs, the second call gives the very weights of an uninterrupted one."""

    class Stopped(Exception):
        pass

    def stop(step, loss):
        seen.append(step)
        if len(seen) == 3:
            raise Stopped

    seen, told, settings = [], [], settings | {"epochs": 4}
    checkpoint = tmp_path / "last.ckpt"
    with pytest.raises(Stopped):
        full(on_epoch=stop, checkpoint=checkpoint, **settings)
    resumed = full(on_epoch=lambda step, loss: told.append(step), checkpoint=checkpoint, **settings).state_dict()
    assert (seen, told) == ([5, 10, 15], [20])
    whole = full(**settings).state_dict()
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
    optimizer = classify.layerwise_adamw

    def counted(*args, **kwargs):
        made = optimizer(*args, **kwargs)
        made.register_step_post_hook(lambda *_: taken.append(made.param_groups[0]["lr"]))
        return made

    monkeypatch.setattr(classify, "layerwise_adamw", counted)
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
    classifier = full(rows=train, y=material.y[:24], epochs=10, batch_size=12, lr=5e-3)
    assert not classifier.training
    scores = embed_rows(classifier, test, material.store, material.spec)
    assert scores.shape == (16, 1)
    assert auroc(material.y[24:, 0], scores[:, 0]) > 0.95


def test_classes_weigh_alike_however_rare(full, material):
    """A new head says nothing, so the first loss is ln 2 for each volume, times the weight of its class."""
    some = (material.y[:, 0] == 0) | (np.arange(40) < 4)
    rows, y = material.rows[some].reset_index(drop=True), material.y[some]
    assert 0 < y.mean() < 0.2
    losses = []
    full(rows=rows, y=y, batch_size=64, epochs=1, on_epoch=lambda step, loss: losses.append(loss))
    positive, n = int(y.sum()), len(rows)
    weight = (n - positive) / positive
    assert losses[0] == pytest.approx(np.log(2) * (positive * weight + n - positive) / n, rel=1e-5)


def test_slices_have_the_label_of_their_volume(tmp_path, material, monkeypatch):
    spec, store, rows = replace(material.spec, slices="axial"), Store(tmp_path), []
    for item, kept in enumerate([[0, 2], [1], [0, 1, 2], [2]]):
        array = np.random.default_rng(item).normal(100, 10, (1, 3, 12, 12)).astype(np.float32)
        store.write(f"{item:032x}", array, {})
        row = {"store_key": f"{item:032x}", "store_shape": [3, 12, 12], "patient_key": f"p{item}", "slices": kept}
        rows.append(row | statistics(array))
    seen, loss = [], classify.label_loss
    monkeypatch.setattr(
        classify,
        "label_loss",
        lambda logits, y, weight, exclusive: (
            seen.append((sorted(y[:, 0].tolist()), weight.tolist())) or loss(logits, y, weight, exclusive)
        ),
    )
    config = LabelsConfig(labels=tmp_path, epochs=1, batch_size=7, min_steps=1, max_steps=1, device="cpu")
    network, y = nn.Sequential(build_encoder(ARCHITECTURE)), np.array([[0.0], [0.0], [1.0], [1.0]])
    classifier = fit_full(network, 64, pd.DataFrame(rows), y, store, spec, build_views("xray", 2), config, 0)
    assert seen == [([0, 0, 0, 1, 1, 1, 1], [0.75])]
    assert embed_rows(classifier, pd.DataFrame(rows), store, spec).shape == (4, 1)


def test_the_encoder_given_is_the_one_trained(full):
    network = nn.Sequential(build_encoder(ARCHITECTURE))
    before = network[0].conv1.weight.detach().clone()
    classifier = full(network=network, epochs=1)
    assert classifier.network is network
    assert not torch.equal(network[0].conv1.weight, before)


def test_fewest_steps_above_most_is_a_usage_error(tmp_path):
    with pytest.raises(UsageError, match="--max-steps 3"):
        LabelsConfig(labels=tmp_path, min_steps=8, max_steps=3)


# Several classes, several labels


@pytest.mark.parametrize(("exclusive", "chance"), [(True, np.log(3)), (False, np.log(2))])
def test_full_trains_a_logit_for_each_output(full, material, exclusive, chance):
    y = np.column_stack([material.y, 1 - material.y, np.zeros(40)])
    if not exclusive:
        y[::3, 1] = np.nan
    losses = []
    train, test, settings = np.arange(24), np.arange(24, 40), {"epochs": 10, "batch_size": 12, "lr": 5e-3}
    classifier = full(
        rows=material.rows[:24],
        y=y[train],
        exclusive=exclusive,
        class_weight="none",
        on_epoch=lambda step, loss: losses.append(loss),
        **settings,
    )
    scores = embed_rows(classifier, material.rows.iloc[test], material.store, material.spec)
    assert scores.shape == (16, 3)
    assert losses[0] < chance
    assert auroc(material.y[test, 0], scores[:, 0]) > 0.95
    assert auroc(1 - material.y[test, 0], scores[:, 1]) > 0.95
    assert (scores[:, 2] < scores[:, :2].max(axis=1)).all(), "no row has the third"


def test_the_first_loss_is_that_of_knowing_nothing(full, material):
    """A new head is zero: ln K for classes, ln 2 for each label that is known, when nothing weighs."""
    settings = {"epochs": 1, "batch_size": 40, "max_steps": 1, "class_weight": "none"}
    y = np.column_stack([material.y, 1 - material.y, np.zeros(40)])
    y[5, 2] = np.nan
    for exclusive, expected in ((True, np.log(3)), (False, np.log(2))):
        losses = []
        labels = np.nan_to_num(y) if exclusive else y
        full(y=labels, exclusive=exclusive, on_epoch=lambda step, loss, to=losses: to.append(loss), **settings)
        assert losses == [pytest.approx(expected, rel=1e-6)]


def bundle_like():
    """An encoder, and two layers of a projector, as `EncoderBundle.middle` keeps them."""
    torch.manual_seed(1)
    projector = [nn.Linear(64, 20, bias=False), nn.BatchNorm1d(20), nn.ReLU(), nn.Linear(20, 10), nn.ReLU()]
    return nn.Sequential(build_encoder(ARCHITECTURE), *projector)


@pytest.mark.parametrize(("network", "width", "stem"), [(None, 64, 5), (bundle_like, 10, 6)])
def test_earlier_stages_move_less(full, monkeypatch, network, width, stem):
    """The projector is one stage, whatever it is made of; without one there is none."""
    made, optimizer = [], classify.layerwise_adamw
    monkeypatch.setattr(classify, "layerwise_adamw", lambda *how: made.append(optimizer(*how)) or made[0])
    settings = {"epochs": 1, "lr": 0.1, "layer_decay": 0.5, "weight_decay": 0.3}
    classifier = full(network=network and network(), width=width, **settings)
    groups = made[0].param_groups
    rates = {id(p): (g["initial_lr"], g["weight_decay"]) for g in groups for p in g["params"]}
    assert sum(len(g["params"]) for g in groups) == len(rates) == len(list(classifier.parameters()))
    expected = {"conv1": stem, "bn1": stem, **{f"layer{number}": stem - number for number in (1, 2, 3, 4)}}
    for name, p in classifier.named_parameters():
        part = name.split(".")[2] if name.startswith("network.0.") else name.split(".")[0]
        below = {"network": 1, "head": 0}.get(part, expected.get(part))
        assert rates[id(p)] == pytest.approx((0.1 * 0.5**below, 0.3 if p.ndim > 1 else 0)), name


class Pushed(torch.optim.SGD):
    """Adds one to every number in every step, whatever the gradient."""

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            for p in group["params"]:
                p += 1


@pytest.mark.parametrize("head", [None, Linear(np.ones((64, 1)), np.ones(1), False, 1.0)])
def test_decay_to_start_draws_the_weights_back_by_the_rate(full, monkeypatch, head):
    asked = []
    monkeypatch.setattr(
        classify,
        "layerwise_adamw",
        lambda parts, lr, decay, layer_decay: asked.append(decay) or Pushed(nn.ModuleList(parts).parameters(), lr),
    )
    network = nn.Sequential(build_encoder(ARCHITECTURE))
    before = [p.detach().clone() for p in network.parameters()]
    settings = {"lr": 0.5, "weight_decay": 0.4, "epochs": 4, "batch_size": 40, "max_steps": 4}
    classifier = full(network=network, head=head, decay_to="start", **settings)
    away = 0.0
    for step in range(4):  # of four, none is for warm-up
        away = (away + 1) * (1 - 0.4 * 0.5 * (1 + np.cos(np.pi * step / 4)) / 2)
    assert asked == [0.0]
    for p, start in zip(network.parameters(), before, strict=True):
        torch.testing.assert_close(p.detach() - start, torch.full_like(p, away), rtol=1e-4, atol=1e-5)
    started = 0.0 if head is None else 1.0
    torch.testing.assert_close(classifier.head.weight.detach(), torch.full((1, 64), started + away))
    full(decay_to="zero", **settings)
    assert asked[1] == 0.4


def test_dropout_changes_training_and_nothing_else(full):
    plain, left_out, again = (full(dropout=share) for share in (0.0, 0.5, 0.5))
    images = torch.rand(2, 1, 12, 12)
    assert torch.equal(left_out(images), left_out(images))
    assert torch.equal(left_out(images), again(images))
    assert not torch.equal(left_out(images), plain(images))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"layer_decay": 0.0}, "--layer-decay 0.0: must be above 0 and at most 1"),
        ({"layer_decay": 1.5}, "--layer-decay 1.5: must be above 0"),
        ({"dropout": 1.0}, "--dropout 1.0: must be 0 or more, and below 1"),
        ({"dropout": -0.1}, "--dropout -0.1: must be 0 or more"),
        ({"weight_decay": -1.0}, "--weight-decay -1.0"),
    ],
)
def test_settings_out_of_range(tmp_path, settings, message):
    with pytest.raises(UsageError, match=message):
        LabelsConfig(labels=tmp_path, **settings)
