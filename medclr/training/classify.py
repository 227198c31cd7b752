"""Classifiers from labels: a linear head on frozen features, or the whole network; and the plain baseline."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from sklearn.decomposition import PCA
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedGroupKFold
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits

from medclr.config import LabelsConfig
from medclr.data.loader import Blocks, Steps, train_loader
from medclr.data.slices import by_slice
from medclr.data.spec import DataSpec
from medclr.data.store import Store
from medclr.metrics import auroc
from medclr.models.classifier import Classifier
from medclr.training.encode import training_device
from medclr.training.optim import adamw, warmup_cosine
from medclr.training.resume import SafeCheckpointIO
from medclr.transforms.presets import Views

Scores = NDArray[np.float64]
STRENGTHS = (1e-3, 1e-2, 1e-1, 1.0, 10.0)  # inverse regularisation C that a linear head may choose
FIXED_STRENGTH = 0.1  # where the labels are too few to choose
FEWEST_PATIENTS = 10  # of each class, for the choice by inner cross-validation
COMPONENTS = 50  # of the PCA baseline


@dataclass(frozen=True)
class Linear:
    """A logistic regression on features: score = features @ weight + bias.

    Attributes:
        weight: (F,); bias: of the logit; strength: the C that was used; chosen: by cross-validation, or fixed.
    """

    weight: Scores
    bias: float
    strength: float
    chosen: bool

    def scores(self, features: NDArray[np.floating]) -> Scores:
        """Logits (n,) of features (n, F)."""
        logits: Scores = features @ self.weight + self.bias
        return logits


def fit_linear(
    features: NDArray[np.floating],
    y: NDArray[np.integer],
    patients: NDArray[np.object_],
    seed: int,
    strength: float | None = None,
) -> Linear:
    """Logistic regression on scaled features, its strength chosen by inner patient-grouped cross-validation.

    All features are divided by one number, the largest of their standard deviations: dividing each by its own would
    make the noise of the last principal component as large as the first.

    Nothing but the rows given is used. With fewer than FEWEST_PATIENTS patients of a class, the strength is fixed.

    Args:
        features: (n, F).
        y: (n,) of 0 and 1, both present.
        patients: (n,) keys.
        seed: of the folds.
        strength: given, so that none is chosen.
    """
    mean, scale = features.mean(axis=0), float(features.std(axis=0).max()) or 1.0
    scaled = (features - mean) / scale
    per_class = [len(set(patients[y == value])) for value in (0, 1)]
    chosen = strength is None and min(per_class) >= FEWEST_PATIENTS
    if strength is None:
        strength = _choose_strength(scaled, y, patients, seed) if chosen else FIXED_STRENGTH
    model = _logistic(scaled, y, strength)
    weight = model.coef_[0] / scale
    return Linear(weight, float(model.intercept_[0] - weight @ mean), strength, chosen)


def fit_pca(
    unlabelled: NDArray[np.floating],
) -> Callable[[NDArray[np.floating]], NDArray[np.floating]]:
    """The baseline's features: principal components of the pixels of all training volumes, labelled or not.

    Pre-training sees those volumes too, so the baseline may.

    Args:
        unlabelled: (n, voxels).

    Returns:
        A function from (m, voxels) to (m, components).
    """
    pca = PCA(min(COMPONENTS, *unlabelled.shape), svd_solver="randomized", random_state=0).fit(unlabelled)
    return lambda pixels: np.asarray(pca.transform(pixels))


def fit_full(
    encoder: nn.Module,
    feature_dim: int,
    rows: pd.DataFrame,
    store: Store,
    spec: DataSpec,
    views: Views,
    config: LabelsConfig,
    seed: int,
    head: Linear | None = None,
    on_epoch: Callable[[int, float], None] | None = None,
    checkpoint: Path | None = None,
) -> Classifier:
    """Train encoder and head together on labelled rows, for a number of steps that is known beforehand.

    Binary cross-entropy with both classes weighted alike, AdamW, one epoch of warm-up and a cosine; there is no
    stopping rule, so no label is needed to stop by.

    Args:
        encoder: its weights are changed.
        feature_dim: length of its features.
        rows: labelled manifest rows, with `y`; where they are cut into slices, each has the label of its volume.
        store, spec: where and how to read them.
        views: augmentations, one view a volume.
        config: epochs, batch_size, lr, min_steps, max_steps, device.
        seed: of the order and the views.
        head: of a linear probe, to start from, so that features are not bent to suit a head that knows nothing (LP-FT,
            Kumar et al. 2022); else the head starts at zero.
        on_epoch: called with steps done and the mean loss of the epoch.
        checkpoint: written after each epoch, and taken up where it is there already.

    Returns:
        The classifier in evaluation mode, on the training device.
    """
    device = training_device(config.device)
    rows = by_slice(rows) if spec.slices else rows
    classifier = Classifier(encoder, feature_dim).to(device).train()
    if head:
        classifier.set_head(head.weight, head.bias)
    loader = train_loader(Blocks(rows, store, spec, views, 1, seed), config.batch_size, 0, seed)
    order = loader.batch_sampler
    assert isinstance(order, Steps)
    y = torch.tensor(rows["y"].to_numpy(), dtype=torch.float32, device=device)
    balance = (1 - y).sum() / y.sum()
    total = int(np.clip(config.epochs * len(loader), config.min_steps, config.max_steps))
    optimizer = adamw(classifier, config.lr, weight_decay=1e-2)
    schedule = warmup_cosine(optimizer, min(len(loader), total // 10), total)
    state: dict[str, Any] = {"classifier": classifier, "optimizer": optimizer, "schedule": schedule}
    step, epoch = 0, 0
    if checkpoint and checkpoint.is_file():
        saved = SafeCheckpointIO().load_checkpoint(checkpoint, device)
        step, epoch = saved["step"], saved["epoch"]
        for name, part in state.items():
            part.load_state_dict(saved[name])
    while step < total:
        order.set_epoch(epoch)
        losses = []
        for batch in loader:
            params = {name: value.flatten(0, 1).to(device) for name, value in batch["params"].items()}
            low, high = batch["low"].flatten().to(device), batch["high"].flatten().to(device)
            with torch.no_grad():
                images = views.apply(batch["blocks"].flatten(0, 1).to(device), params, low, high)
            loss = binary_cross_entropy_with_logits(classifier(images), y[batch["row"]], pos_weight=balance)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            losses.append(loss.item())
            step += 1
            if step == total:
                break
        epoch += 1
        if checkpoint:
            saved = {name: part.state_dict() for name, part in state.items()} | {"step": step, "epoch": epoch}
            SafeCheckpointIO().save_checkpoint(saved, checkpoint)
        if on_epoch:
            on_epoch(step, float(np.mean(losses)))
    return classifier.eval()


def _choose_strength(
    features: NDArray[np.floating], y: NDArray[np.integer], patients: NDArray[np.object_], seed: int
) -> float:
    folds = list(StratifiedGroupKFold(5, shuffle=True, random_state=seed % 2**32).split(features, y, patients))

    def quality(strength: float) -> float:
        models = [_logistic(features[a], y[a], strength) for a, _ in folds]
        per_fold = [
            auroc(y[b], model.decision_function(features[b])) for model, (_, b) in zip(models, folds, strict=True)
        ]
        return float(np.nanmean(per_fold))

    return max(STRENGTHS, key=quality)


def _logistic(features: NDArray[np.floating], y: NDArray[np.integer], strength: float) -> LogisticRegression:
    with warnings.catch_warnings():
        # At the weakest regularisation of separable labels there is no optimum to reach; the ranking is stable.
        warnings.simplefilter("ignore", ConvergenceWarning)
        return LogisticRegression(C=strength, max_iter=1000, class_weight="balanced").fit(features, y)
