"""Stage 3 of SimCLRv2: a fine-tuned teacher labels what has no labels, and a student learns from that."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from medclr.config import ClassifierConfig
from medclr.data.loader import Batch, Blocks, train_loader
from medclr.data.slices import by_slice
from medclr.data.spec import DataSpec
from medclr.data.store import Store
from medclr.losses import distillation_loss
from medclr.models.classifier import Classifier
from medclr.training.classify import steps_of
from medclr.training.encode import training_device
from medclr.training.optim import adamw
from medclr.training.steps import take_steps
from medclr.transforms.presets import Views


def fit_student(
    student: Classifier,
    teacher: Classifier,
    rows: pd.DataFrame,
    store: Store,
    spec: DataSpec,
    views: Views,
    config: ClassifierConfig,
    seed: int,
    exclusive: bool = False,
    y: NDArray[np.floating] | None = None,
    temperature: float = 1.0,
    alpha: float = 1.0,
    on_epoch: Callable[[int, float], None] | None = None,
    checkpoint: Path | None = None,
) -> Classifier:
    """Train a student, for a number of steps that is known beforehand, to predict what a frozen teacher does.

    Both see the same augmented view of each volume (Chen et al. 2020b, section 2). AdamW, one epoch of warm-up and a
    cosine, as in `fit_full`.

    Args:
        student: its weights are changed.
        teacher: of the same outputs, for images of the same preprocessing.
        rows: manifest rows, labelled or not; where they are cut into slices, each has the label of its volume.
        store, spec: where and how to read them.
        views: augmentations, one view a volume.
        config: epochs, batch_size, lr, min_steps, max_steps, weight_decay, device.
        seed: of the order, the views and the dropout.
        exclusive: the outputs are classes, of which each volume has one.
        y: (n, K) of 0, 1 and NaN (unknown), to be learned from too, with weight 1 - alpha.
        temperature: of both predictions; alpha: share of the teacher in the loss.
        on_epoch, checkpoint: as for `fit_full`.

    Returns:
        The student in evaluation mode, on the training device.
    """
    device = training_device(config.device)
    target = None if y is None else torch.tensor(y, dtype=torch.float32, device=device)
    if spec.slices:
        rows = by_slice(rows.assign(volume=np.arange(len(rows))))
        target = None if target is None else target[rows["volume"].to_numpy()]
    student.to(device).train()
    teacher.to(device).eval()
    loader = train_loader(Blocks(rows, store, spec, views, 1, seed), config.batch_size, 0, seed)

    def loss(images: Tensor, batch: Batch) -> Tensor:
        with torch.no_grad():
            wanted = teacher(images)
        known = None if target is None else target[batch["row"]]
        return distillation_loss(student(images), wanted, temperature, exclusive, known, alpha)

    optimizer = adamw(student, config.lr, config.weight_decay)
    total = steps_of(config, len(loader))
    take_steps(student, loader, views, optimizer, total, seed, loss, on_epoch, checkpoint)
    return student.eval()
