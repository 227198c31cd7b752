"""A whole network trained on labels: from random weights, from an encoder, or from an encoder with a fitted head."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

from medclr.config import LabelsConfig
from medclr.data.loader import Blocks, Steps, train_loader
from medclr.data.slices import by_slice
from medclr.data.spec import DataSpec
from medclr.data.store import Store
from medclr.models.classifier import Classifier
from medclr.models.encoder import stages
from medclr.training.encode import training_device
from medclr.training.optim import layerwise_adamw, warmup_cosine
from medclr.training.probe import Linear
from medclr.training.resume import SafeCheckpointIO
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
    there is no stopping rule, so no label is needed to stop by.

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
    if head:
        classifier.set_head(head.weight, head.bias)
    loader = train_loader(Blocks(rows, store, spec, views, 1, seed), config.batch_size, 0, seed)
    order = loader.batch_sampler
    assert isinstance(order, Steps)
    target = torch.tensor(y, dtype=torch.float32, device=device)
    weight = class_weights(target, exclusive) if config.class_weight == "balanced" else None
    total = steps_of(config, len(loader))
    to_start = config.decay_to == "start"
    optimizer = layerwise_adamw(
        [*stages(network[0]), network[1:], classifier.head],
        config.lr,
        0.0 if to_start else config.weight_decay,
        config.layer_decay,
    )
    start = [p.detach().clone() for p in classifier.parameters()] if to_start else []
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
        torch.manual_seed((seed + epoch) % 2**63)  # of the dropout, also where an interrupted run goes on
        losses = []
        for batch in loader:
            params = {name: value.flatten(0, 1).to(device) for name, value in batch["params"].items()}
            low, high = batch["low"].flatten().to(device), batch["high"].flatten().to(device)
            with torch.no_grad():
                images = views.apply(batch["blocks"].flatten(0, 1).to(device), params, low, high)
            loss = label_loss(classifier(images), target[batch["row"]], weight, exclusive)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            # L2-SP (Li et al. 2018): few labels should not undo what many scans have taught.
            share = float(schedule.get_last_lr()[-1]) * config.weight_decay
            with torch.no_grad():
                for p, p0 in zip(classifier.parameters(), start, strict=False):
                    p.lerp_(p0, share)
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


def steps_of(config: LabelsConfig, steps_per_epoch: int) -> int:
    """Optimiser steps of one training: the epochs asked for, within the bounds that make its cost known."""
    return int(np.clip(config.epochs * steps_per_epoch, config.min_steps, config.max_steps))


def label_loss(logits: Tensor, y: Tensor, weight: Tensor | None, exclusive: bool) -> Tensor:
    """Mean cross-entropy over the known labels of a batch; weight: of classes, or of the positives of each label."""
    if exclusive:
        return cross_entropy(logits, y, weight)
    known = ~torch.isnan(y)
    each = binary_cross_entropy_with_logits(logits, torch.where(known, y, 0.0), pos_weight=weight, reduction="none")
    return (each * known).sum() / known.sum().clamp(min=1)


def class_weights(y: Tensor, exclusive: bool) -> Tensor:
    """Weights (K,) under which all classes, or positives and negatives of each label, count the same."""
    positive, negative = torch.nansum(y, dim=0), torch.nansum(1 - y, dim=0)
    if exclusive:
        return torch.where(positive > 0, len(y) / (positive * (positive > 0).sum()).clamp(min=1), 0.0)
    return torch.where((positive > 0) & (negative > 0), negative / positive.clamp(min=1), 1.0)
