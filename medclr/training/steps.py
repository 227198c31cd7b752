"""The loop of a training whose steps are known beforehand, which a kill does not change."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader

from medclr.data.loader import Batch, Steps
from medclr.training.optim import warmup_cosine
from medclr.training.resume import SafeCheckpointIO
from medclr.transforms.presets import Views


def take_steps(
    network: nn.Module,
    loader: "DataLoader[Batch]",
    views: Views,
    optimizer: Optimizer,
    total: int,
    seed: int,
    loss: Callable[[Tensor, Batch], Tensor],
    on_epoch: Callable[[int, float], None] | None = None,
    checkpoint: Path | None = None,
) -> None:
    """Train a network, in place, by one augmented view of each volume a step, an epoch of warm-up and a cosine.

    Args:
        network: in training mode, on the training device; what a checkpoint holds.
        loader: from `train_loader`, of one view.
        views: the augmentations whose parameters the loader draws.
        optimizer: of the network.
        total: steps.
        seed: of what is random within the network, such as dropout.
        loss: of views float32 (B, C, *patch) in [0, 1] on the device, and the batch that they are of.
        on_epoch: called with steps done and the mean loss of the epoch.
        checkpoint: written after each epoch, and taken up where it is there already.
    """
    device = next(network.parameters()).device
    order = loader.batch_sampler
    assert isinstance(order, Steps)
    schedule = warmup_cosine(optimizer, min(len(loader), total // 10), total)
    state: dict[str, Any] = {"network": network, "optimizer": optimizer, "schedule": schedule}
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
            value = loss(shown(batch, views, device), batch)
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
            schedule.step()
            losses.append(value.item())
            step += 1
            if step == total:
                break
        epoch += 1
        if checkpoint:
            saved = {name: part.state_dict() for name, part in state.items()} | {"step": step, "epoch": epoch}
            SafeCheckpointIO().save_checkpoint(saved, checkpoint)
        if on_epoch:
            on_epoch(step, float(np.mean(losses)))


@torch.no_grad()
def shown(batch: Batch, views: Views, device: torch.device) -> Tensor:
    """The views float32 (B * V, C, *patch) in [0, 1] of a batch from `train_loader`, those of one volume together."""
    params = {name: value.flatten(0, 1).to(device) for name, value in batch["params"].items()}
    low, high = batch["low"].flatten().to(device), batch["high"].flatten().to(device)
    return views.apply(batch["blocks"].flatten(0, 1).to(device), params, low, high)
