"""A whole network trained on labels: from random weights, from an encoder, or from an encoder with a fitted head."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from medclr.config import ClassifierConfig, LabelsConfig
from medclr.data.loader import Batch, Blocks, train_loader
from medclr.data.slices import by_slice
from medclr.data.spec import DataSpec
from medclr.data.store import Store
from medclr.losses import class_weights, label_loss
from medclr.models.classifier import Classifier
from medclr.models.encoder import stages
from medclr.training.encode import training_device
from medclr.training.optim import draw_back, layerwise_adamw
from medclr.training.probe import Linear, log_prior
from medclr.training.steps import take_steps
from medclr.transforms.presets import Views


def fit_full(
    network: nn.Sequential,
    feature_dim: int,
    rows: pd.DataFrame,
    y: NDArray[np.floating],
    store: Store,
    spec: DataSpec,
    views: Views,
    config: LabelsConfig,
    seed: int,
    exclusive: bool = False,
    head: Linear | None = None,
    on_epoch: Callable[[int, float], None] | None = None,
    checkpoint: Path | None = None,
) -> Classifier:
    """Train encoder and head together on labelled rows, for a number of steps that is known beforehand.

    Cross-entropy, with all classes weighted alike unless asked otherwise, AdamW, one epoch of warm-up and a cosine;
    there is no stopping rule, so no label is needed to stop by. The logits are those of the classes as they are.

    Args:
        network: an encoder, and what is kept of its projector; its weights are changed.
        feature_dim: length of the features that it gives.
        rows: labelled manifest rows; where they are cut into slices, each has the label of its volume.
        y: (n, K) of 0, 1 and NaN, which is unknown and counts for nothing.
        store, spec: where and how to read them.
        views: augmentations, one view a volume.
        config: epochs, batch_size, lr, min_steps, max_steps, weight_decay, decay_to, layer_decay, dropout,
            class_weight, device; and crops, which is for the classifier to know.
        seed: of the order, the views and the dropout.
        exclusive: the K columns are classes, of which each row has one.
        head: of a linear probe, to start from, so that features are not bent to suit a head that knows nothing (LP-FT,
            Kumar et al. 2022); else the head starts at zero.
        on_epoch: called with steps done and the mean loss of the epoch.
        checkpoint: written after each epoch, and taken up where it is there already.

    Returns:
        The classifier in evaluation mode, on the training device.
    """
    device = training_device(config.device)
    if spec.slices:
        rows = by_slice(rows.assign(volume=np.arange(len(rows))))
        y = y[rows["volume"]]
    classifier = Classifier(network, feature_dim, y.shape[1], config.dropout, crops=config.crops).to(device).train()
    balanced = config.class_weight == "balanced"
    prior = log_prior(y, exclusive) * balanced
    if head:
        classifier.set_head(head.weight, head.bias - prior)
    loader = train_loader(Blocks(rows, store, spec, views, 1, seed), config.batch_size, 0, seed)
    target = torch.tensor(y, dtype=torch.float32, device=device)
    weight = class_weights(target, exclusive) if balanced else None
    total = steps_of(config, len(loader))
    to_start = config.decay_to == "start"
    optimizer = layerwise_adamw(
        [*stages(network[0]), network[1:], classifier.head],
        config.lr,
        0.0 if to_start else config.weight_decay,
        config.layer_decay,
    )
    if to_start:
        draw_back(optimizer, classifier, config.weight_decay)

    def loss(images: Tensor, batch: Batch) -> Tensor:
        return label_loss(classifier(images), target[batch["row"]], weight, exclusive)

    take_steps(classifier, loader, views, optimizer, total, seed, loss, on_epoch, checkpoint)
    classifier.shift_logits(prior)
    return classifier.eval()


def steps_of(config: ClassifierConfig, steps_per_epoch: int) -> int:
    """Optimiser steps of one training: the epochs asked for, within the bounds that make its cost known."""
    return int(np.clip(config.epochs * steps_per_epoch, config.min_steps, config.max_steps))
