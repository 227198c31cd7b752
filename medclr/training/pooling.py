"""Attention over the parts of volumes, learned from labels on frozen features."""

import numpy as np
import torch
from numpy.typing import NDArray

from medclr.losses import class_weights, label_loss
from medclr.models.classifier import AttentionPool
from medclr.training.encode import Bags
from medclr.training.optim import adamw, warmup_cosine
from medclr.training.probe import Linear, log_prior

HIDDEN = 64
STEPS = 300  # always, so that cost is known beforehand
BATCH = 256  # volumes a step
LR = 3e-3
WEIGHT_DECAY = 0.1


def fit_attention(
    bags: Bags, y: NDArray[np.floating], head: Linear, seed: int, balanced: bool = True, steps: int = STEPS
) -> tuple[AttentionPool, Linear]:
    """Train gated attention and the head above it together, from the mean of each bag and a head that suits it.

    Features are scaled by one number, as in `fit_linear`, and what is learned is put back in terms of them as they
    are. AdamW, a cosine, and no stopping rule.

    Args:
        bags: of the labelled volumes alone.
        y: (n, K) of 0, 1 and NaN, which is unknown and counts for nothing.
        head: of `fit_linear` on the means; with no steps it is what comes back.
        seed: of the weights and the order.
        balanced: all classes count the same, however many volumes they have.
        steps: of training.

    Returns:
        The attention, in evaluation mode, and the head.
    """
    mean, scale = bags.features.mean(axis=0), float(bags.features.std(axis=0).max()) or 1.0
    scaled = Bags((bags.features - mean) / scale, bags.counts)
    prior = log_prior(y, head.exclusive) * balanced
    torch.manual_seed(seed % 2**63)
    pool, linear = AttentionPool(len(mean), HIDDEN), torch.nn.Linear(*head.weight.shape)
    with torch.no_grad():
        linear.weight.copy_(torch.from_numpy(head.weight.T * scale))
        linear.bias.copy_(torch.from_numpy(head.bias - prior + mean @ head.weight))
    target = torch.tensor(y, dtype=torch.float32)
    weight = class_weights(target, head.exclusive) if balanced else None
    optimizer = adamw(torch.nn.ModuleList([pool, linear]), LR, WEIGHT_DECAY)
    schedule = warmup_cosine(optimizer, 0, steps)
    rng, order = np.random.default_rng(seed), np.empty(0, np.intp)
    for _ in range(steps):
        if not len(order):
            order = rng.permutation(len(y))
        at, order = order[:BATCH], order[BATCH:]
        batch = scaled.of(at)
        logits = linear(pool(torch.from_numpy(batch.features), torch.from_numpy(batch.counts)))
        optimizer.zero_grad()
        label_loss(logits, target[at], weight, head.exclusive).backward()
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        for layer in (pool.content, pool.gate):
            layer.weight.div_(scale)
            layer.bias.sub_(layer.weight @ torch.from_numpy(mean))
    found = linear.weight.detach().double().numpy().T / scale
    bias = linear.bias.detach().double().numpy() - mean @ found + prior
    return pool.eval(), Linear(found, bias, head.exclusive, head.strength)


@torch.inference_mode()
def pooled(pool: AttentionPool, bags: Bags) -> NDArray[np.float32]:
    """Features (n, F) of volumes, from those of their parts."""
    return np.asarray(pool(torch.from_numpy(bags.features), torch.from_numpy(bags.counts)).numpy())
