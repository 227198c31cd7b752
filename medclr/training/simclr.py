"""SimCLR (Chen et al. 2020) as a thin Lightning module: views, encode, project, loss, log."""

from typing import Any

import torch
from pytorch_lightning import LightningModule
from torch import Tensor, nn

from medclr.data.loader import Batch
from medclr.losses.nt_xent import chance_level, nt_xent
from medclr.training.optim import adamw, warmup_cosine
from medclr.transforms.presets import Views


class SimCLR(LightningModule):
    """An encoder and a projector that learn to tell the views of one volume from those of all others.

    Args:
        encoder, projector: f and g.
        views: turns blocks into views on the training device.
        temperature: of NT-Xent.
        lr, weight_decay, warmup_steps, total_steps: of AdamW and its schedule.
    """

    def __init__(
        self,
        encoder: nn.Module,
        projector: nn.Module,
        views: Views,
        *,
        temperature: float,
        lr: float,
        weight_decay: float,
        warmup_steps: int,
        total_steps: int,
    ) -> None:
        super().__init__()
        self.encoder, self.projector, self.views = encoder, projector, views
        self.temperature, self.lr, self.weight_decay = temperature, lr, weight_decay
        self.warmup_steps, self.total_steps = warmup_steps, total_steps

    def training_step(self, batch: Batch, batch_index: int) -> Tensor:
        """The loss of one batch of pairs."""
        n = len(batch["row"])
        # Views first, then volumes: the first n rows of z are one view of each volume, the last n the other.
        blocks, low, high = (_views_first(batch[name]) for name in ("blocks", "low", "high"))
        with torch.no_grad():
            params = {name: _views_first(value) for name, value in batch["params"].items()}
            images = self.views.apply(blocks, params, low, high)
        z = self.projector(self.encoder(images))
        loss = nt_xent(z[:n], z[n:], self.temperature, groups=batch["patient"])
        # For Checkpoints, which keeps the sums of an epoch over an interruption.
        self.log("loss", loss, on_step=True, logger=False, batch_size=n)
        self.log("chance", chance_level(batch["patient"]), on_step=True, logger=False, batch_size=n)
        return loss

    def configure_optimizers(self) -> Any:
        """AdamW with warm-up and cosine, one tick a step."""
        optimizer = adamw(self, self.lr, self.weight_decay)
        schedule = warmup_cosine(optimizer, self.warmup_steps, self.total_steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def _views_first(value: Tensor) -> Tensor:
    """(B, V, ...) to (V * B, ...)."""
    return value.transpose(0, 1).flatten(0, 1)
