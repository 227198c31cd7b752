import math

import pytest
import torch
from torch import nn

from medclr.training.optim import adamw, warmup_cosine


def network():
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 2))


def test_only_weights_decay():
    module = network()
    decaying, rest = adamw(module, lr=0.1, weight_decay=0.5).param_groups
    assert (decaying["weight_decay"], rest["weight_decay"]) == (0.5, 0.0)
    assert {id(p) for p in decaying["params"]} == {id(module[0].weight), id(module[3].weight)}
    assert len(rest["params"]) == 4
    assert len(decaying["params"]) + len(rest["params"]) == len(list(module.parameters()))


def test_without_a_gradient_weights_shrink_and_biases_stay():
    module = nn.Linear(2, 2)
    nn.init.ones_(module.weight)
    nn.init.ones_(module.bias)
    optimizer = adamw(module, lr=0.1, weight_decay=0.5)
    for parameter in module.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    torch.testing.assert_close(module.weight.detach(), torch.full((2, 2), 1 - 0.1 * 0.5))
    assert (module.bias == 1).all()


@pytest.mark.parametrize(("warmup", "total"), [(4, 20), (0, 10), (3, 3), (1, 2)])
def test_warmup_then_half_a_cosine(warmup, total):
    optimizer = adamw(network(), lr=2.0, weight_decay=0)
    schedule = warmup_cosine(optimizer, warmup, total)
    rates = []
    for _ in range(total):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    expected = [2 * (step + 1) / warmup for step in range(warmup)] + [
        1 + math.cos(math.pi * (step - warmup) / (total - warmup)) for step in range(warmup, total)
    ]
    assert rates == pytest.approx(expected)
    assert all(group["lr"] == pytest.approx(0 if total > warmup else 2) for group in optimizer.param_groups)
    # One tick too many does not start the cosine again.
    optimizer.step()
    schedule.step()
    assert optimizer.param_groups[0]["lr"] <= 2
