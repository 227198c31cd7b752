"""The optimisers and their schedule."""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from medclr.config import PretrainConfig

LARGE_BATCH = 512  # from which LARS is better than AdamW
# What --lr, --weight-decay and --warmup-epochs are where they are not given: Chen et al. 2020, section 2.2, for LARS.
DEFAULTS = {"lars": (0.3, 1e-6, 10.0), "adamw": (2e-3, 1e-4, 2.0)}


def recipe(config: PretrainConfig, batch_size: int) -> tuple[str, float, float, float]:
    """What a batch of that many volumes is learned with.

    Returns:
        optimizer: "lars" or "adamw".
        lr: the peak; config.lr (at 256 volumes) times B / 256 for LARS, and times its square root for AdamW.
        weight_decay: of weights, not of biases and normalisation.
        warmup_epochs: at most half of the epochs.
    """
    name = config.optimizer
    if name == "auto":
        name = "lars" if batch_size >= LARGE_BATCH else "adamw"
    lr, weight_decay, warmup_epochs = DEFAULTS[name]
    lr = lr if config.lr is None else config.lr
    weight_decay = weight_decay if config.weight_decay is None else config.weight_decay
    warmup_epochs = warmup_epochs if config.warmup_epochs is None else config.warmup_epochs
    scale = batch_size / 256 if name == "lars" else math.sqrt(batch_size / 256)
    return name, lr * scale, weight_decay, min(warmup_epochs, config.epochs / 2)


def adamw(module: nn.Module, lr: float, weight_decay: float) -> AdamW:
    """AdamW (Loshchilov and Hutter 2019) that decays weights, not biases and normalisation; fused on a GPU."""
    return _adamw(module, _groups(module, weight_decay), lr)


def layerwise_adamw(parts: Sequence[nn.Module], lr: float, weight_decay: float, layer_decay: float) -> AdamW:
    """AdamW that moves the last of `parts` by `lr`, and each part before it by `layer_decay` of the next.

    A part without weights does not count.

    What an encoder knows of edges and textures suits the new task better than its last layers do (Clark et al. 2020,
    section 3.2, and Bao et al. 2022 for images).
    """
    parts = [part for part in parts if any(p.requires_grad for p in part.parameters())]
    groups = [
        group | {"lr": lr * layer_decay ** (len(parts) - 1 - depth)}
        for depth, part in enumerate(parts)
        for group in _groups(part, weight_decay)
        if group["params"]
    ]
    return _adamw(nn.ModuleList(parts), groups, lr)


def draw_back(optimizer: Optimizer, module: nn.Module, weight_decay: float) -> None:
    """After each step, draw the weights of a module back to what they are now: L2-SP (Li et al. 2018), decoupled.

    Few labels should not undo what many scans have taught.

    Args:
        optimizer: whose last learning rate, times `weight_decay`, is the share of the way.
        module: its parameters, biases and normalisation among them.
        weight_decay: as of AdamW, which must not decay them itself.
    """
    start = [p.detach().clone() for p in module.parameters()]

    @torch.no_grad()
    def draw(optimizer: Optimizer, *_: Any) -> None:
        share = optimizer.param_groups[-1]["lr"] * weight_decay
        for p, p0 in zip(module.parameters(), start, strict=True):
            p.lerp_(p0, share)

    optimizer.register_step_post_hook(draw)


class Lars(Optimizer):
    """Layer-wise adaptive rate scaling (You et al. 2017, algorithm 1), as SimCLR uses it.

    Each weight moves in proportion to its own norm; biases and normalisation move by plain SGD with momentum, and
    do not decay (Chen et al. 2020, appendix B.6).

    Args:
        module: whose parameters to optimise.
        lr: the learning rate; a schedule may change it.
        weight_decay: of weights.
        momentum: share of the last step that the next one repeats.
        trust: how far a weight may move, as a share of its norm.
    """

    def __init__(
        self, module: nn.Module, lr: float, weight_decay: float, momentum: float = 0.9, trust: float = 0.001
    ) -> None:
        super().__init__(_groups(module, weight_decay), {"lr": lr, "momentum": momentum, "trust": trust})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step; `closure`, where given, computes the gradients first, and its result is returned."""
        result = None
        if closure is not None:
            with torch.enable_grad():
                result = closure()
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    self._move(p, p.grad, group)
        return result

    def _move(self, p: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        update = gradient.add(p, alpha=group["weight_decay"])
        if p.ndim > 1:
            size, slope = torch.linalg.vector_norm(p), torch.linalg.vector_norm(gradient)
            local = group["trust"] * size / (slope + group["weight_decay"] * size)
            # A weight or a gradient of nothing but zeros has no scale to adapt to.
            update *= torch.where((size > 0) & (slope > 0), local, 1.0)
        velocity = self.state[p].setdefault("velocity", torch.zeros_like(p))
        velocity.mul_(group["momentum"]).add_(update, alpha=group["lr"])
        p.sub_(velocity)


OPTIMIZERS: dict[str, Callable[[nn.Module, float, float], Optimizer]] = {"adamw": adamw, "lars": Lars}


def warmup_cosine(optimizer: Optimizer, warmup_steps: int, total_steps: int) -> LambdaLR:
    """Linear warm-up, then half a cosine to zero (Loshchilov and Hutter 2017); one tick a step."""

    def share(step: int) -> float:
        if step < warmup_steps:
            return (step + 1) / warmup_steps
        progress = (step - warmup_steps) / max(1, total_steps - warmup_steps)
        return 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))

    return LambdaLR(optimizer, share)


def _adamw(module: nn.Module, groups: Iterable[dict[str, Any]], lr: float) -> AdamW:
    fused = all(p.is_cuda for p in module.parameters())
    return AdamW(groups, lr=lr, fused=fused or None)


def _groups(module: nn.Module, weight_decay: float) -> Iterable[dict[str, Any]]:
    learned = [p for p in module.parameters() if p.requires_grad]
    matrices = [p for p in learned if p.ndim > 1]
    vectors = [p for p in learned if p.ndim <= 1]
    return [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]
