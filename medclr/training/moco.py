"""MoCo (He et al. 2020) with the head and temperature of v2 (Chen, Fan, Girshick and He 2020)."""

from collections.abc import Callable, Sequence
from copy import deepcopy
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from medclr.data.loader import Batch, view_rng
from medclr.errors import UsageError
from medclr.losses.gather import gathered
from medclr.losses.info_nce import moco_chance_level, moco_loss
from medclr.training.gradcache import batch_norms
from medclr.training.simclr import SimCLR
from medclr.transforms.presets import Views

LONGEST_QUEUE = 65536  # He et al. 2020, section 3.3, and so the momentum at that length
LEAST_MOMENTUM, MOST_MOMENTUM = 0.99, 0.999  # below, keys of the last step can be told from those before by drift
SHARE = 4  # the queue is at most one in so many of the volumes
QUERY, KEY = slice(0, 1), slice(1, 2)  # of the views of a volume
SHUFFLE = 2**32 - 2  # a view number that no view has, for the order of the keys


class MoCo(SimCLR):
    """An encoder and a projector that learn to tell the key of a volume from a queue of earlier keys.

    The first view of a pair is the query, which is learned from. The second is the key: it goes through a momentum
    encoder (and projector), which follow the learned ones after each step and have batch norm statistics of their own.

    Args:
        encoder, projector, views: as for SimCLR.
        queue: keys that the queue holds, a whole number of batches over all ranks.
        momentum: share of the momentum encoder that a step leaves.
        seed: of the shuffling of keys.
        settings: as for SimCLR; the temperature is that of InfoNCE.
    """

    learned = QUERY
    queue: Tensor
    queue_patients: Tensor
    queue_domains: Tensor
    keys: Tensor  # of the step under way

    def __init__(
        self,
        encoder: nn.Module,
        projector: nn.Module,
        views: Views,
        *,
        queue: int,
        momentum: float,
        seed: int,
        **settings: Any,
    ) -> None:
        super().__init__(encoder, projector, views, **settings)
        self.momentum_encoder = deepcopy(nn.Sequential(encoder, projector)).requires_grad_(False)
        self.momentum, self.seed = momentum, seed
        length = [layer for layer in projector.modules() if isinstance(layer, nn.Linear)][-1].out_features
        # The same on every rank. Filled from the front, and what is not filled yet is left out of the loss.
        self.register_buffer("queue", torch.zeros(queue, length))
        self.register_buffer("queue_patients", torch.zeros(queue, dtype=torch.int64))
        self.register_buffer("queue_domains", torch.zeros(queue, dtype=torch.int64))
        self.enqueued = 0  # keys so far, those that left the queue among them

    def training_step(self, batch: Batch, batch_index: int) -> Tensor:
        """One step on one batch of pairs, after which its keys are in the queue; gives its loss."""
        loss = super().training_step(batch, batch_index)
        if torch.isfinite(loss):
            self._follow()
            self._enqueue(*self.whose(batch))
        return loss

    def has_gradient(self) -> bool:
        """Not at the first step, whose queue is empty."""
        return self.enqueued > 0

    def chance(self, patients: Tensor, domains: Tensor | None) -> Tensor:
        """As for SimCLR; it rises while the queue fills."""
        _, queue_patients, queue_domains = self._filled()
        return moco_chance_level(patients, queue_patients, domains, queue_domains, self.negatives)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep how far the queue is, too."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["enqueued"] = self.enqueued

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Go on with the queue where it was."""
        super().on_load_checkpoint(checkpoint)
        self.enqueued = checkpoint["enqueued"]

    def _loss_of(self, batch: Batch, parts: Sequence[slice]) -> Callable[[Tensor], Tensor]:
        self.keys = self._encode_keys(batch, len(parts))
        patients, domains = self.whose(batch)
        queue, queue_patients, queue_domains = self._filled()

        def loss_of(features: Tensor) -> Tensor:
            q = self.projector(gathered(features))
            return moco_loss(
                q,
                self.keys,
                queue,
                self.temperature,
                patients,
                queue_patients,
                domains,
                queue_domains,
                self.negatives,
            )

        return loss_of

    @torch.no_grad()
    def _encode_keys(self, batch: Batch, n_parts: int) -> Tensor:
        """Keys (ranks * N, D) of the batches of all ranks, in their order.

        Shuffled while they are encoded (He et al. 2020, section 3.3): else batch norm would take the statistics of a
        query and of its own key from the same volumes, and the two could be told by that. The volumes of a rank are
        dealt to parts in another order than queries are, and those of a part dealt to ranks. The order is a function of
        the seed and the step alone.
        """
        n, keys = len(batch["row"]), []
        if not batch_norms(self.momentum_encoder):
            for items in torch.arange(n).tensor_split(n_parts):
                keys.append(self.momentum_encoder(self._images(batch, items, KEY)))
            return gathered(torch.cat(keys))
        rank, ranks = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
        rng = view_rng(self.seed, self.enqueued // (ranks * n), 0, SHUFFLE)
        order = torch.from_numpy(rng.permutation(n))
        # A single part would have the volumes of the queries, in whatever order.
        for items in order.tensor_split(max(n_parts, 2) if ranks == 1 else n_parts):
            deal = torch.from_numpy(rng.permutation(ranks * len(items)))
            images = gathered(self._images(batch, items, KEY))[deal.chunk(ranks)[rank]]
            dealt = gathered(self.momentum_encoder(images))
            keys.append(dealt[deal.argsort()].unflatten(0, (ranks, -1)))
        return torch.cat(keys, dim=1)[:, order.argsort()].flatten(0, 1)

    @torch.no_grad()
    def _follow(self) -> None:
        """He et al. 2020, equation 2, after the optimiser's step, as in their algorithm 1."""
        learned = nn.Sequential(self.encoder, self.projector)
        for slow, fast in zip(self.momentum_encoder.parameters(), learned.parameters(), strict=True):
            slow.lerp_(fast, 1 - self.momentum)

    def _enqueue(self, patients: Tensor, domains: Tensor | None) -> None:
        """The keys of this step in, those of the oldest out. Batches are of one size, so none is cut by the end."""
        start = self.enqueued % len(self.queue)
        self.queue[start : start + len(self.keys)] = self.keys
        self.queue_patients[start : start + len(patients)] = patients
        if domains is not None:
            self.queue_domains[start : start + len(patients)] = domains
        self.enqueued += len(patients)

    def _filled(self) -> tuple[Tensor, Tensor, Tensor]:
        """The keys in the queue, their patients and domains."""
        n = self.enqueued
        return self.queue[:n], self.queue_patients[:n], self.queue_domains[:n]


def queue_length(asked: int | None, n_volumes: int, batch_size: int) -> int:
    """How many keys the queue holds: whole batches, and at most a quarter of the volumes.

    A longer one would hold keys of most patients more than once, from encoders of long ago.

    Args:
        asked: at most so many; None for LONGEST_QUEUE.
        n_volumes: to learn from.
        batch_size: over all devices.

    Raises:
        UsageError: there is no room for a batch.
    """
    most = min(asked or LONGEST_QUEUE, n_volumes // SHARE)
    if most < batch_size:
        raise UsageError(
            f"--method moco: a queue of a quarter of {n_volumes:,} volumes does not hold a batch of {batch_size}; give "
            f"--batch-size {n_volumes // SHARE} or less, or leave out --method, since SimCLR needs no queue"
        )
    return most // batch_size * batch_size


def default_momentum(queue: int, batch_size: int) -> float:
    """1 - 1 / (4 * steps that a key stays in the queue), from 0.99 to 0.999.

    Keys of one queue should come from nearly one encoder. With 65,536 keys and batches of 256 it is the 0.999 of He et
    al. 2020; a short queue lives for a few steps, and a run of a few hundred steps would end before an encoder with
    that momentum had moved.

    Args:
        queue: its length.
        batch_size: over all devices.
    """
    return min(max(1 - batch_size / (4 * queue), LEAST_MOMENTUM), MOST_MOMENTUM)
