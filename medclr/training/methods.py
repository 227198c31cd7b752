"""The ways of making a classifier from labelled volumes, each under one name, and the choice among them."""

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import nn

from medclr.config import LabelsConfig
from medclr.data.labels import Task
from medclr.data.spec import DataSpec
from medclr.data.store import Store
from medclr.models.classifier import AttentionPool, Classifier
from medclr.models.encoder import Architecture, build_encoder
from medclr.training.classify import fit_full
from medclr.training.distill import fit_student
from medclr.training.encode import Bags, classify_rows
from medclr.training.pooling import fit_attention, pooled
from medclr.training.probe import (
    Linear,
    Neighbours,
    Scores,
    choose,
    enough_to_choose,
    fit_linear,
    inner_folds,
    out_of_fold,
)
from medclr.transforms.presets import Views

AUTO = ("linear", "knn", "lp-ft")  # what `auto` chooses among; the first where it cannot
RATES = (3.0, 1.0, 10.0, 0.3)  # times --lr: what a tuned learning rate is chosen among; of equals the first
INNER_FOLDS = 3  # of these choices, whose networks are trained for a third of the steps

UNCHOSEN = " for want of labels to choose by"  # ends the words of such a choice

Rows = NDArray[np.intp]


@dataclass(frozen=True, eq=False)
class Material:
    """Volumes to learn from and to judge by, and how they are read; methods are given positions in it.

    Attributes:
        rows: manifest rows; y: (n, K) their labels; task: what these mean.
        unlabelled: manifest rows from which distillation may learn, which has no use for their labels; None where it is
            not asked for.
        store, spec, views: how volumes are read and augmented; config: the settings of training.
    """

    rows: pd.DataFrame
    y: NDArray[np.float64]
    task: Task
    unlabelled: pd.DataFrame | None
    store: Store
    spec: DataSpec
    views: Views
    config: LabelsConfig

    @property
    def patients(self) -> NDArray[np.object_]:
        return self.rows["patient_key"].to_numpy()

    @property
    def exclusive(self) -> bool:
        return self.task.kind == "multiclass"

    def part(self, at: Rows) -> pd.DataFrame:
        return self.rows.iloc[at].reset_index(drop=True)


@dataclass(frozen=True, eq=False)
class Start:
    """What a classifier starts from.

    Attributes:
        features: (n, F) of all rows of the material, for heads on frozen features; None where no method needs them.
        network: an encoder with what is kept of its projector; None is an encoder with random weights.
        architecture: of the encoder; feature_dim: length of what the network gives.
        bags: those whose means are the features; None where no method pools them otherwise.
    """

    features: NDArray[np.floating] | None = None
    network: nn.Sequential | None = None
    architecture: Architecture | None = None
    feature_dim: int = 0
    bags: Bags | None = None

    def fresh(self, seed: int) -> nn.Sequential:
        """A network of its own to train."""
        if self.network is not None:
            return copy.deepcopy(self.network)
        assert self.architecture
        torch.manual_seed(seed)
        return nn.Sequential(build_encoder(self.architecture))


@dataclass(frozen=True, eq=False)
class Fitted:
    """A classifier.

    Attributes:
        scores: from positions in the material to scores (n, K).
        held_out: scores (n, K) of the rows it was fitted on by fits that had not seen their patients; None where the
            method makes none.
        choice: what was chosen within those rows, in words.
        head: on frozen features, or None where `network` was trained whole.
        network: the trained one, or None.
        pool: from features of crops and slices to those of volumes, below the head; None is their mean.
    """

    scores: Callable[[Rows], Scores]
    held_out: Scores | None
    choice: str
    head: Linear | Neighbours | None = None
    network: Classifier | None = None
    pool: AttentionPool | None = None


def fit(
    method: str,
    material: Material,
    start: Start,
    at: Rows,
    seed: int,
    tuned: bool = False,
    on_epoch: Callable[[int, float], None] | None = None,
    checkpoint: Path | None = None,
) -> Fitted:
    """Make a classifier from the labels of some rows; no label of another row is looked at.

    Args:
        method: "linear" and "knn" on frozen features; "attention", over those of crops and slices, which starts as
            "linear" does on their mean; "full", the whole network; "lp-ft", the whole network from the head of
            "linear"; "distill", the whole network from the encoder, to predict what that head does of `unlabelled`;
            "auto", whichever of AUTO ranks best in patient-grouped cross-validation of these rows, or the
            first of them where these are too few to choose by.
        material, start: what to learn from, and what to start from.
        at: positions of the labelled rows.
        seed: of folds, weights, order and views.
        tuned: for "full" and "lp-ft", the learning rate is chosen among RATES times --lr by such cross-validation.
        on_epoch, checkpoint: of the training of a whole network, as for `fit_full`.
    """
    y, patients = material.y[at], material.patients[at]
    if method == "auto":
        choice, held_out, reason = AUTO[0], None, UNCHOSEN
        if enough_to_choose(y, patients).any():
            brief = replace(material, config=_brief(material.config))

            def judge(name: str, own: Rows, held: Rows) -> Scores:
                return fit(name, brief, start, at[own], seed).scores(at[held])

            choice, held_out = choose(AUTO, judge, y, inner_folds(y, patients, seed, INNER_FOLDS))
            reason = ""
        fitted = fit(choice, material, start, at, seed, False, on_epoch, checkpoint)
        return replace(fitted, choice=f"{choice}{reason}", held_out=fitted.held_out if held_out is None else held_out)
    if method in ("linear", "knn", "attention"):
        return _on_features(method, material, start, at, seed)
    if method == "distill":
        return _distilled(material, start, at, seed, on_epoch, checkpoint)

    head = _on_features("linear", material, start, at, seed).head if method == "lp-ft" else None
    assert not isinstance(head, Neighbours)
    config, held_out, reason = material.config, None, UNCHOSEN * tuned
    if start.network is None:
        # Random weights are nothing to stay near, and their early stages have all to learn.
        config = replace(config, layer_decay=1.0, decay_to="zero")
    if tuned and enough_to_choose(y, patients).any():

        def of_rate(rate: float, own: Rows, held: Rows) -> Scores:
            brief = _brief(replace(config, lr=config.lr * rate))
            return fit(method, replace(material, config=brief), start, at[own], seed).scores(at[held])

        rate, held_out = choose(RATES, of_rate, y, inner_folds(y, patients, seed, INNER_FOLDS))
        config, reason = replace(config, lr=config.lr * rate), ""
    network = fit_full(
        start.fresh(seed),
        start.feature_dim,
        material.part(at),
        y,
        material.store,
        material.spec,
        material.views,
        config,
        seed,
        material.exclusive,
        head,
        on_epoch,
        checkpoint,
    )

    return _of_network(network, material, held_out, f"learning rate {config.lr:g}{reason}")


def trainings(method: str, tuned: bool) -> int:
    """The most whole-network trainings that `fit` makes; those of the folds of one candidate count as one."""
    if method == "auto":
        return 2
    if method == "distill":
        return 1
    return (1 + len(RATES) * tuned) if method in ("full", "lp-ft") else 0


def _of_network(network: Classifier, material: Material, held_out: Scores | None, choice: str) -> Fitted:
    """A classifier that was trained whole."""

    def scores(rows: Rows) -> Scores:
        return material.task.scores(classify_rows(network, material.part(rows), material.store, material.spec))

    return Fitted(scores, held_out, choice, network=network)


def _distilled(
    material: Material,
    start: Start,
    at: Rows,
    seed: int,
    on_epoch: Callable[[int, float], None] | None,
    checkpoint: Path | None,
) -> Fitted:
    """The last stage of SimCLRv2 (Chen et al. 2020b, section 2), from the head of "linear" to the same network."""
    m, outputs = material, material.y.shape[1]
    linear = _on_features("linear", m, start, at, seed)
    assert isinstance(linear.head, Linear)
    assert m.unlabelled is not None
    teacher = Classifier(start.fresh(seed), start.feature_dim, outputs, crops=m.config.crops)
    teacher.set_head(linear.head.weight, linear.head.bias)
    torch.manual_seed(seed)
    student = Classifier(start.fresh(seed), start.feature_dim, outputs, m.config.dropout, crops=m.config.crops)
    student = fit_student(
        student, teacher, m.unlabelled, m.store, m.spec, m.views, m.config, seed, m.exclusive,
        on_epoch=on_epoch, checkpoint=checkpoint,
    )  # fmt: skip
    return _of_network(student, material, None, linear.choice)


def _on_features(method: str, material: Material, start: Start, at: Rows, seed: int) -> Fitted:
    features, y = start.features, material.y[at]
    assert features is not None
    head: Linear | Neighbours
    if method == "knn":
        head, own = Neighbours(features[at], y, material.exclusive), features[at]

        def votes(fit: Rows, held: Rows) -> Scores:
            return Neighbours(own[fit], y[fit], material.exclusive).scores(own[held])

        enough = enough_to_choose(y, material.patients[at]).any()
        held_out = out_of_fold(votes, y, inner_folds(y, material.patients[at], seed)) if enough else None
        return Fitted(lambda rows: head.scores(features[rows]), held_out, "", head)
    balanced = material.config.class_weight == "balanced"
    head = fit_linear(features[at], y, material.patients[at], seed, exclusive=material.exclusive, balanced=balanced)
    choice = f"C = {head.strength:g}{'' if head.chosen else UNCHOSEN}"
    if method == "linear":
        return Fitted(lambda rows: head.scores(features[rows]), head.held_out, choice, head)
    bags = start.bags
    assert bags is not None
    pool, above = fit_attention(bags.of(at), y, head, seed, balanced)
    return Fitted(lambda rows: above.scores(pooled(pool, bags.of(rows))), None, choice, above, pool=pool)


def _brief(config: LabelsConfig) -> LabelsConfig:
    """The settings with a third of the steps, so that all folds of one candidate cost what one training costs."""
    fewest, most = (max(1, round(steps / INNER_FOLDS)) for steps in (config.min_steps, config.max_steps))
    return replace(config, epochs=max(1, round(config.epochs / INNER_FOLDS)), min_steps=fewest, max_steps=most)
