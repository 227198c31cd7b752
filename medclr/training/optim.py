"""The optimiser and its schedule."""

import math

from torch import nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR


def adamw(module: nn.Module, lr: float, weight_decay: float) -> AdamW:
    """AdamW (Loshchilov and Hutter 2019) that decays weights, not biases and normalisation."""
    matrices = [p for p in module.parameters() if p.ndim > 1]
    vectors = [p for p in module.parameters() if p.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return AdamW(groups, lr=lr)


def warmup_cosine(optimizer: AdamW, warmup_steps: int, total_steps: int) -> LambdaLR:
    """Linear warm-up, then half a cosine to zero (Loshchilov and Hutter 2017); one tick a step."""

    def share(step: int) -> float:
        if step < warmup_steps:
            return (step + 1) / warmup_steps
        progress = (step - warmup_steps) / max(1, total_steps - warmup_steps)
        return 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))

    return LambdaLR(optimizer, share)
