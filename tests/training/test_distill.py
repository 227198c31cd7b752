import copy

import numpy as np
import pytest
import torch
from torch import nn

from medclr.config import DistillConfig
from medclr.errors import UsageError
from medclr.metrics import auroc
from medclr.models.classifier import Classifier
from medclr.models.encoder import Architecture, build_encoder
from medclr.training import distill
from medclr.training.distill import fit_student
from medclr.training.encode import embed_rows
from medclr.transforms.presets import build_views

SIDE = 12
VIEWS = build_views("xray", 2, scale=(0.7, 1.0))


class Sides(nn.Module):
    """A teacher without weights to train: the logit of the disc's side is the difference of the halves."""

    def __init__(self, outputs=1):
        super().__init__()
        self.sign = nn.Parameter(torch.tensor([1.0, -1.0, 0.5][:outputs]))

    def forward(self, images):
        first, second = images[:, 0, : SIDE // 2].mean((1, 2)), images[:, 0, SIDE // 2 :].mean((1, 2))
        return 30 * (first - second)[:, None] * self.sign


def new_student(outputs=1, width=4):
    torch.manual_seed(1)
    a = Architecture(10, width, 2, 1, "batch", (SIDE, SIDE))
    return Classifier(nn.Sequential(build_encoder(a)), a.feature_dim, outputs)


@pytest.fixture
def run(material, tmp_path):
    def run(student=None, teacher=None, rows=None, y=None, exclusive=False, on_epoch=None, checkpoint=None, **settings):
        defaults = {"teacher": tmp_path, "device": "cpu", "epochs": 1, "batch_size": 8, "min_steps": 1}
        config = DistillConfig(**defaults | settings)
        return fit_student(
            student or new_student(),
            teacher or Sides(),
            material.rows if rows is None else rows,
            material.store,
            material.spec,
            VIEWS,
            config,
            config.seed,
            exclusive,
            y,
            config.temperature,
            config.alpha,
            on_epoch,
            checkpoint,
        )

    return run


def test_a_student_learns_what_the_teacher_tells_without_a_label(run, material):
    losses = []
    student = run(rows=material.rows[:24], epochs=12, lr=1e-2, on_epoch=lambda step, loss: losses.append(loss))
    assert not student.training
    scores = embed_rows(student, material.rows[24:], material.store, material.spec)[:, 0]
    sides = np.arange(24, 40) % 2
    assert auroc(sides, scores) > 0.95
    assert losses[-1] < 0.5 * losses[0]


def test_the_teacher_is_left_as_it_was_and_judges_in_evaluation_mode(run):
    teacher = Classifier(nn.Sequential(new_student().network[0], nn.Dropout(0.5)), 32, 1).train()
    nn.init.normal_(teacher.head.weight)
    before = copy.deepcopy(teacher.state_dict())
    run(teacher=teacher)
    assert not teacher.training
    assert all(torch.equal(before[name], value) for name, value in teacher.state_dict().items())
    assert all(p.grad is None for p in teacher.parameters())


def test_both_see_the_same_view_another_one_each_epoch(run):
    seen = {"student": [], "teacher": []}
    networks = {"student": new_student(), "teacher": Sides()}
    for name, network in networks.items():
        network.register_forward_pre_hook(lambda _, inputs, name=name: seen[name].append(inputs[0].clone()))
    run(**networks, epochs=2, batch_size=40)
    assert len(seen["student"]) == 2
    for own, its in zip(*seen.values(), strict=True):
        assert torch.equal(own, its)
    sums = [np.sort(views.sum((1, 2, 3)).numpy()) for views in seen["student"]]
    assert not np.isclose(*sums).any()


@pytest.mark.parametrize("exclusive", [True, False])
def test_each_volume_keeps_its_own_labels_however_they_are_shuffled(run, material, monkeypatch, exclusive):
    y = np.eye(3)[np.arange(40) % 3]
    y[np.arange(40) % 4 > 0] = np.nan
    told, loss = [], distill.distillation_loss

    def spy(student, teacher, temperature, exclusive_, labels, alpha):
        told.append((labels, temperature, exclusive_, alpha))
        return loss(student, teacher, temperature, exclusive_, labels, alpha)

    rows = []
    monkeypatch.setattr(distill, "distillation_loss", spy)
    get = distill.Blocks.__getitems__
    monkeypatch.setattr(
        distill.Blocks, "__getitems__", lambda self, items: rows.append([r for _, r in items]) or get(self, items)
    )
    run(new_student(3), Sides(3), y=y, exclusive=exclusive, temperature=2.0, alpha=0.25)
    assert len(told) == 5
    for (labels, *settings), at in zip(told, rows, strict=True):
        np.testing.assert_array_equal(labels.numpy(), y[at])
        assert settings == [2.0, exclusive, 0.25]


def test_at_alpha_0_the_teacher_says_nothing(run):
    """And where no label is known there is nothing left to learn."""
    student = new_student()
    before = [p.detach().clone() for p in student.parameters()]
    run(student, y=np.full((40, 1), np.nan), alpha=0.0, weight_decay=0.0, max_steps=2)
    assert all(torch.equal(p, p0) for p, p0 in zip(student.parameters(), before, strict=True))


def test_the_steps_are_known_beforehand(run):
    told = []
    run(epochs=50, max_steps=7, on_epoch=lambda step, loss: told.append(step))
    assert told == [5, 7]


def test_it_goes_on_where_it_was_stopped(run, tmp_path):
    """Ended after the second of three epochs, the second call gives the very weights of an uninterrupted one."""

    class Stopped(Exception):
        pass

    def stop(step, loss):
        seen.append(step)
        if len(seen) == 2:
            raise Stopped

    seen, told = [], []
    checkpoint = tmp_path / "last.ckpt"
    with pytest.raises(Stopped):
        run(epochs=3, on_epoch=stop, checkpoint=checkpoint)
    resumed = run(epochs=3, on_epoch=lambda step, loss: told.append(step), checkpoint=checkpoint).state_dict()
    assert (seen, told) == ([5, 10], [15])
    whole = run(epochs=3).state_dict()
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"temperature": 0.0}, "--temperature 0.0: must be above 0"),
        ({"alpha": 1.5}, "--alpha 1.5: must be a share"),
        ({"width": 3}, "--width 3: must be at least 4"),
    ],
)
def test_settings_that_make_no_sense(tmp_path, settings, words):
    with pytest.raises(UsageError, match=words):
        DistillConfig(teacher=tmp_path, **settings)


@pytest.mark.parametrize("given", [{"depth": 18}, {"width": 8}, {"norm": "group"}])
def test_an_encoder_brings_its_own_architecture(tmp_path, given):
    with pytest.raises(UsageError, match=f"--{next(iter(given))}: the student has the architecture of --encoder"):
        DistillConfig(teacher=tmp_path, encoder=tmp_path, **given)
