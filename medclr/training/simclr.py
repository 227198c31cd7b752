"""SimCLR (Chen et al. 2020) as a thin Lightning module: views, encode, project, loss, log."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from pytorch_lightning import LightningModule
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_

from medclr.data.loader import Batch
from medclr.errors import MedclrError
from medclr.losses.gather import gathered
from medclr.losses.nt_xent import Negatives, chance_level, nt_xent
from medclr.training.gradcache import accumulate, batch_norms, volumes_that_fit
from medclr.training.optim import OPTIMIZERS, warmup_cosine
from medclr.transforms.presets import Views


class SimCLR(LightningModule):
    """An encoder and a projector that learn to tell the views of one volume from those of all others.

    Args:
        encoder, projector: f and g.
        views: turns blocks into views on the training device.
        temperature: of NT-Xent.
        optimizer: a key of OPTIMIZERS.
        lr, weight_decay, warmup_steps, total_steps: of the optimiser and its schedule.
        clip_norm: largest norm of the gradient of all parameters together; None for any.
        micro_batch: volumes that each rank encodes at a time, all views of them; 0 for all; None for what fits.
        negatives: which volumes a volume is told apart from, by their domains: see `nt_xent`.
        tell: gets a line that the user should read.
    """

    learned = slice(None)  # the views that the encoder learns from

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
        optimizer: str = "adamw",
        clip_norm: float | None = None,
        micro_batch: int | None = 0,
        negatives: Negatives = "all",
        tell: Callable[[str], None] = lambda line: None,
    ) -> None:
        super().__init__()
        # Lightning's own loop knows one backward pass a step, and clips only there.
        self.automatic_optimization = False
        self.encoder, self.projector, self.views = encoder, projector, views
        self.temperature, self.lr, self.weight_decay, self.optimizer = temperature, lr, weight_decay, optimizer
        self.warmup_steps, self.total_steps = warmup_steps, total_steps
        self.clip_norm, self.micro_batch, self.tell = clip_norm, micro_batch, tell
        self.negatives: Negatives = negatives
        self.told = False

    def training_step(self, batch: Batch, batch_index: int) -> Tensor:
        """One step on one batch of pairs; gives its loss. Where that is not finite, the weights stay as they are."""
        if self.micro_batch is None:
            self.micro_batch = self._fit(batch)
        if not self.told and self.has_gradient():
            self._tell_parts(batch)
            self.told = True
        loss = self.gradient(batch)
        if torch.isfinite(loss):
            if self.clip_norm is not None:
                clip_grad_norm_(self.parameters(), self.clip_norm)
            self.optimizers().step()  # type: ignore[union-attr]  # there is one of each
            self.lr_schedulers().step()  # type: ignore[union-attr]
        n = len(batch["row"])
        chance = self.chance(*self.whose(batch))
        # For Checkpoints, which keeps the sums of an epoch over an interruption.
        self.log("loss", loss, on_step=True, logger=False, batch_size=n)
        self.log("chance", chance, on_step=True, logger=False, batch_size=n)
        return loss

    def gradient(self, batch: Batch) -> Tensor:
        """Leave the gradient of the loss of a batch over all ranks in the parameters, and give that loss.

        Raises:
            MedclrError: not even one volume fits in memory, or one of several ranks ran out of it.
        """
        while True:
            self.zero_grad()
            at_once = self._at_once(batch)
            try:
                return self._accumulate(batch, at_once, self.manual_backward)
            except torch.OutOfMemoryError:
                if at_once == 1 or dist.is_initialized():  # other ranks wait in the middle of this step
                    raise MedclrError(_no_room(at_once)) from None
            # Not in the handler, whose traceback still holds the tensors.
            torch.cuda.empty_cache()
            self.micro_batch = -(-at_once // 2)
            self.tell(f"out of memory: from now on {self.micro_batch} volumes are encoded at a time")

    def has_gradient(self) -> bool:
        """Whether there is anything yet to be told apart."""
        return True

    def whose(self, batch: Batch) -> tuple[Tensor, Tensor | None]:
        """The patients of a batch over all ranks and, where negatives hang on them, their domains."""
        patients = gathered(batch["patient"].to(self.device))
        return patients, None if self.negatives == "all" else gathered(batch["domain"].to(self.device))

    def chance(self, patients: Tensor, domains: Tensor | None) -> Tensor:
        """The loss of a batch of these, over all ranks, when all projections are alike."""
        return chance_level(patients, domains, self.negatives)

    def configure_optimizers(self) -> Any:
        """The optimiser with warm-up and cosine, one tick a step."""
        optimizer = OPTIMIZERS[self.optimizer](self, self.lr, self.weight_decay)
        schedule = warmup_cosine(optimizer, self.warmup_steps, self.total_steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def transfer_batch_to_device(self, batch: Batch, device: torch.device, dataloader_idx: int) -> Batch:
        """Leave blocks where they are: the device needs those of one micro-batch at a time."""
        return batch

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep what was found to fit: to the last bit, and with batch norm more than that, results depend on it."""
        checkpoint["micro_batch"] = self.micro_batch

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Go on with what was found to fit."""
        self.micro_batch = checkpoint["micro_batch"]

    def _at_once(self, batch: Batch) -> int:
        n = len(batch["row"])
        return min(self.micro_batch or n, n)

    def _accumulate(self, batch: Batch, at_once: int, backward: Callable[[Tensor], None] = Tensor.backward) -> Tensor:
        n = len(batch["row"])
        # Of one size, so that none is left with a volume or two for its batch norm.
        parts = [slice(int(p[0]), int(p[-1]) + 1) for p in torch.arange(n).tensor_split(-(-n // at_once))]
        loss_of = self._loss_of(batch, parts)
        return accumulate(
            self.encoder, self.projector, parts, lambda part: self._images(batch, part, self.learned), loss_of, backward
        )

    def _loss_of(self, batch: Batch, parts: Sequence[slice]) -> Callable[[Tensor], Tensor]:
        """From the features of the learned views of this rank's batch to the loss of the whole one."""
        patients, domains = self.whose(batch)

        def loss_of(features: Tensor) -> Tensor:
            z = self.projector(gathered(features)).unflatten(0, (-1, 2))
            return nt_xent(z[:, 0], z[:, 1], self.temperature, patients, domains, self.negatives)

        return loss_of

    def _images(self, batch: Batch, items: slice | Tensor, views: slice) -> Tensor:
        """Some views (M * V, C, *patch) of some volumes of a batch, those of one volume side by side."""

        def here(value: Tensor) -> Tensor:
            return value[items][:, views].to(self.device, non_blocking=True).flatten(0, 1)

        params = {name: here(value) for name, value in batch["params"].items()}
        # Autocast would blur in bfloat16.
        with torch.autocast(self.device.type, enabled=False):
            return self.views.apply(here(batch["blocks"]), params, here(batch["low"]), here(batch["high"]))

    def _fit(self, batch: Batch) -> int:
        """How many volumes fit at a time; the ranks go in step, so the smallest device decides."""
        n = len(batch["row"])
        fit = volumes_that_fit(self.encoder, lambda m: self._images(batch, slice(m), self.learned), n, self.device)
        return int(gathered(torch.tensor([fit], device=self.device)).min())

    def _tell_parts(self, batch: Batch) -> None:
        """Say where not all volumes are encoded at a time, and what that changes."""
        at_once = self._at_once(batch)
        ranks = dist.get_world_size() if dist.is_initialized() else 1
        n = len(batch["row"]) * ranks
        if at_once == n:
            return
        each = f" on each of {ranks} devices" if ranks > 1 else ""
        self.tell(f"encoding {at_once} of {n} volumes at a time{each}; the loss and its gradient are of all together")
        if batch_norms(self.encoder):
            measured = ""
            if at_once > 1:
                measured = (
                    f": from {-(-at_once // 2)} instead of {at_once}, this step's gradient would differ by "
                    f"{self._halving(batch, at_once):.0%}"
                )
            self.tell(
                f"batch norm takes its statistics from {at_once} volumes at a time, not from {n}{measured}; "
                "with --norm group it is exact"
            )

    def _halving(self, batch: Batch, at_once: int) -> float:
        """How far the encoder's gradient moves, relative to its norm, when batch norm sees half as many volumes.

        Of one micro-batch, which fits in one piece; a whole batch does not.
        """
        first = {name: value[:at_once] for name, value in batch.items() if name != "params"}
        first["params"] = {name: value[:at_once] for name, value in batch["params"].items()}
        before = {name: value.clone() for name, value in self.named_buffers()}
        gradients = []
        for size in (at_once, -(-at_once // 2)):
            self.zero_grad()
            # A resumed run measures again, and must draw no more numbers than one that was not interrupted.
            with torch.random.fork_rng([self.device] if self.device.type == "cuda" else []):
                self._accumulate(first, size)
            found = [p.grad for p in self.encoder.parameters() if p.grad is not None]
            gradients.append(torch.cat([g.flatten() for g in found]))
        for name, value in self.named_buffers():
            value.copy_(before[name])
        whole, halves = gradients
        return float((halves - whole).norm() / whole.norm())


def _no_room(at_once: int) -> str:
    if at_once == 1:
        return "out of memory with a single volume; use a smaller patch or --width, or another device"
    return f"out of memory encoding {at_once} volumes at a time; give --micro-batch {at_once // 2}"
