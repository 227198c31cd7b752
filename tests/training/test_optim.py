import copy
import math
from pathlib import Path

import pytest
import torch
from torch import nn

from medclr.config import PretrainConfig
from medclr.training.optim import Lars, adamw, layerwise_adamw, recipe, warmup_cosine


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


def test_layers_move_by_their_place_and_each_weight_is_in_one_group():
    whole = nn.Sequential(network(), nn.ReLU(), nn.Sequential(), network(), nn.Linear(2, 3))
    optimizer = layerwise_adamw(list(whole), lr=0.2, weight_decay=0.1, layer_decay=0.5)
    found = [(id(p), g["lr"], g["weight_decay"]) for g in optimizer.param_groups for p in g["params"]]
    # What has no weights is no layer.
    expected = [
        (id(p), rate, 0.1 if p.ndim > 1 else 0.0)
        for part, rate in ((whole[0], 0.05), (whole[3], 0.1), (whole[4], 0.2))
        for p in part.parameters()
    ]
    assert sorted(found) == [pytest.approx(one) for one in sorted(expected)]
    assert optimizer.param_groups[-1]["lr"] == 0.2
    plain, flat = copy.deepcopy(whole), copy.deepcopy(whole)
    for module, made in ((plain, adamw(plain, 0.2, 0.1)), (flat, layerwise_adamw(list(flat), 0.2, 0.1, 1.0))):
        torch.manual_seed(0)
        for p in module.parameters():
            p.grad = torch.rand_like(p)
        made.step()
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), flat.parameters(), strict=True))


def lars_by_hand(weights, gradients, decaying, lrs, weight_decay, momentum, trust):
    """You et al. 2017, algorithm 1, one number at a time; what does not decay has no rate of its own either."""
    velocities = [[0.0] * len(w) for w in weights]
    for lr, step in zip(lrs, gradients, strict=True):
        for w, g, v, decays in zip(weights, step, velocities, decaying, strict=True):
            decay, local = 0.0, 1.0
            if decays:
                decay = weight_decay
                size, slope = (math.sqrt(sum(x * x for x in values)) for values in (w, g))
                local = trust * size / (slope + decay * size)
            for i in range(len(w)):
                v[i] = momentum * v[i] + lr * local * (g[i] + decay * w[i])
                w[i] -= v[i]
    return weights


def test_three_steps_of_lars_are_those_of_the_paper():
    torch.manual_seed(0)
    module = network().double()
    optimizer = Lars(module, lr=0.3, weight_decay=0.1, momentum=0.8, trust=0.02)
    parameters = list(module.parameters())
    gradients = [[torch.randn_like(p) for p in parameters] for _ in range(3)]
    lrs = [0.1, 0.3, 0.2]
    expected = lars_by_hand(
        [p.flatten().tolist() for p in parameters],
        [[g.flatten().tolist() for g in step] for step in gradients],
        [p.ndim > 1 for p in parameters],
        lrs,
        0.1,
        0.8,
        0.02,
    )
    for lr, step in zip(lrs, gradients, strict=True):
        for group in optimizer.param_groups:
            group["lr"] = lr
        for parameter, gradient in zip(parameters, step, strict=True):
            parameter.grad = gradient
        optimizer.step()
    for parameter, values in zip(parameters, expected, strict=True):
        assert parameter.flatten().tolist() == pytest.approx(values, rel=1e-10)


def test_lars_moves_a_weight_by_a_share_of_its_norm_whatever_its_gradient():
    for scale in (1e-3, 1.0, 1e3):
        module = nn.Linear(3, 2, bias=False)
        before = module.weight.detach().clone()
        module.weight.grad = scale * torch.randn(2, 3)
        Lars(module, lr=0.5, weight_decay=0).step()
        assert (module.weight - before).norm().item() == pytest.approx(0.5 * 0.001 * before.norm().item(), rel=1e-4)


def test_lars_takes_weights_of_nothing_but_zeros():
    module = nn.Linear(2, 2)
    nn.init.zeros_(module.weight)
    module.weight.grad, module.bias.grad = torch.ones(2, 2), None
    before = module.bias.clone()
    Lars(module, lr=0.5, weight_decay=0.1).step()
    torch.testing.assert_close(module.weight.detach(), torch.full((2, 2), -0.5))
    assert torch.equal(module.bias, before)


def test_lars_goes_on_from_its_state():
    def steps(module, optimizer, n):
        for _ in range(n):
            optimizer.zero_grad()
            module(torch.ones(1, 2)).square().sum().backward()
            optimizer.step()

    torch.manual_seed(0)
    whole = nn.Linear(2, 2)
    parts = copy.deepcopy(whole)
    steps(whole, Lars(whole, 1.0, 0.1), 4)
    first, second = Lars(parts, 1.0, 0.1), Lars(parts, 1.0, 0.1)
    steps(parts, first, 2)
    second.load_state_dict(first.state_dict())
    steps(parts, second, 2)
    torch.testing.assert_close(parts.state_dict(), whole.state_dict(), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("batch_size", "settings", "expected"),
    [
        (256, {}, ("adamw", 2e-3, 1e-4, 2.0)),
        (64, {}, ("adamw", 1e-3, 1e-4, 2.0)),
        (511, {"lr": 1.0}, ("adamw", math.sqrt(511 / 256), 1e-4, 2.0)),
        (512, {}, ("lars", 0.6, 1e-6, 10.0)),
        (4096, {"lr": 0.5, "epochs": 10}, ("lars", 8.0, 1e-6, 5.0)),
        (64, {"optimizer": "lars"}, ("lars", 0.075, 1e-6, 10.0)),
        (1024, {"optimizer": "adamw", "weight_decay": 0.0}, ("adamw", 4e-3, 0.0, 2.0)),
        (1024, {"warmup_epochs": 0.0}, ("lars", 1.2, 1e-6, 0.0)),
    ],
)
def test_the_batch_decides_what_was_left_open(batch_size, settings, expected):
    assert recipe(PretrainConfig(data=Path(), **settings), batch_size) == pytest.approx(expected)
