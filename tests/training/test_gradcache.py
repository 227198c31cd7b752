import copy

import pytest
import torch
from torch import nn

from medclr.losses import nt_xent
from medclr.training import gradcache
from medclr.training.gradcache import accumulate, volumes_that_fit

N, SIZE = 12, 6
CPU = torch.device("cpu")


def network(norm, dropout=0.0):
    layers = [nn.Conv2d(1, 8, 3), norm(), nn.ReLU(), nn.Dropout(dropout), nn.Flatten(), nn.Linear(8 * 16, 10)]
    return nn.Sequential(*layers)


def head():
    return nn.Sequential(nn.Linear(10, 10, bias=False), nn.BatchNorm1d(10), nn.ReLU(), nn.Linear(10, 4))


def group_norm():
    return nn.GroupNorm(2, 8)


def batch_norm():
    return nn.BatchNorm2d(8)


def pieces(*sizes):
    ends = torch.tensor(sizes).cumsum(0).tolist()
    return [slice(end - size, end) for end, size in zip(ends, sizes, strict=True)]


def loss_with(g):
    def loss_of(features):
        z = g(features)
        return nt_xent(z[0::2], z[1::2], 0.1)

    return loss_of


def gradients(*modules):
    return [p.grad for module in modules for p in module.parameters()]


def plain(f, g, images):
    f, g = copy.deepcopy(f), copy.deepcopy(g)
    loss = loss_with(g)(f(images))
    loss.backward()
    return loss.detach(), f, g


@pytest.fixture
def images():
    torch.manual_seed(1)
    return torch.rand(N, 1, SIZE, SIZE, dtype=torch.float64)


@pytest.mark.parametrize("sizes", [(12,), (6, 6), (5, 1, 4, 2), (1,) * 12])
def test_the_gradient_is_that_of_the_whole_batch(images, sizes):
    f, g = network(group_norm).double(), head().double()
    loss, whole_f, whole_g = plain(f, g, images)
    cached = accumulate(f, g, pieces(*sizes), lambda part: images[part], loss_with(g))
    assert not cached.requires_grad
    torch.testing.assert_close(cached, loss)
    torch.testing.assert_close(gradients(f, g), gradients(whole_f, whole_g))
    # The projector's batch norm saw the batch whole, and once.
    torch.testing.assert_close(g.state_dict(), whole_g.state_dict())


def test_gradients_are_added_and_the_last_pass_alone_is_the_callers(images):
    f, g = network(group_norm).double(), head().double()
    _, whole_f, whole_g = plain(f, g, images)
    before = []

    def backward(scalar):
        before.extend(None if p.grad is None else p.grad.clone() for p in g.parameters())
        scalar.backward()

    for _ in range(2):
        accumulate(f, g, pieces(4, 4, 4), lambda part: images[part], loss_with(g), backward)
    assert before[:4] == [None] * 4  # the head's own came with the last pass
    twice = [2 * gradient for gradient in gradients(whole_f, whole_g)]
    torch.testing.assert_close(gradients(f, g), twice)


def test_random_numbers_of_the_first_pass_come_again(images):
    """Against one graph of all micro-batches, which draws each number once."""
    f, g = network(group_norm, dropout=0.5).double(), head().double()
    parts = pieces(5, 4, 3)

    def images_of(part):
        return images[part] + torch.rand_like(images[part])

    whole_f, whole_g = copy.deepcopy(f), copy.deepcopy(g)
    torch.manual_seed(7)
    loss_with(whole_g)(torch.cat([whole_f(images_of(part)) for part in parts])).backward()
    drawn = torch.rand(3)
    torch.manual_seed(7)
    accumulate(f, g, parts, images_of, loss_with(g))
    torch.testing.assert_close(gradients(f, g), gradients(whole_f, whole_g))
    assert torch.equal(torch.rand(3), drawn)


@pytest.mark.parametrize("sizes", [(12,), (4, 4, 4), (7, 2, 3)])
def test_running_statistics_move_once_by_those_of_the_whole_batch(images, sizes):
    f, g = network(batch_norm).double(), head().double()
    _, whole_f, _ = plain(f, g, images + 3)
    accumulate(f, g, pieces(*sizes), lambda part: images[part] + 3, loss_with(g))
    assert f[1].momentum == 0.1
    assert f[1].track_running_stats
    assert f[1].num_batches_tracked == 1
    torch.testing.assert_close(dict(f[1].named_buffers()), dict(whole_f[1].named_buffers()))
    # And from then on as ever.
    f(images), whole_f(images)
    torch.testing.assert_close(dict(f[1].named_buffers()), dict(whole_f[1].named_buffers()))


def test_frozen_statistics_are_exact_and_stay(images):
    f, g = network(batch_norm).double(), head().double()
    f(images)
    f[1].eval()
    before = copy.deepcopy(f.state_dict())
    _, whole_f, whole_g = plain(f, g, images)
    accumulate(f, g, pieces(5, 5, 2), lambda part: images[part], loss_with(g))
    torch.testing.assert_close(gradients(f, g), gradients(whole_f, whole_g))
    torch.testing.assert_close(f.state_dict(), before)


def test_batch_norm_over_micro_batches_is_not_the_same(images):
    f, g = network(batch_norm).double(), head().double()
    _, whole_f, _ = plain(f, g, images)
    accumulate(f, g, pieces(3, 3, 3, 3), lambda part: images[part], loss_with(g))
    apart = (f[0].weight.grad - whole_f[0].weight.grad).norm() / whole_f[0].weight.grad.norm()
    assert apart > 0.01


def test_an_error_leaves_running_statistics_as_they_were(images):
    f, g = network(batch_norm).double(), head().double()
    before = copy.deepcopy(f.state_dict())

    def fail(scalar):
        raise torch.OutOfMemoryError

    with pytest.raises(torch.OutOfMemoryError):
        accumulate(f, g, pieces(4, 4, 4), lambda part: images[part], loss_with(g), fail)
    torch.testing.assert_close(f.state_dict(), before)
    assert f[1].momentum == 0.1


def test_under_autocast_every_pass_has_its_graph(images):
    f, g = network(group_norm), head()
    images = images.float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        _, whole_f, whole_g = plain(f, g, images)
        loss = accumulate(f, g, pieces(4, 4, 4), lambda part: images[part], loss_with(g))
    assert loss.dtype == torch.float32
    found, expected = (torch.cat([p.flatten() for p in gradients(*pair)]) for pair in ((f, g), (whole_f, whole_g)))
    assert (found - expected).norm() < 0.02 * expected.norm()


class Counted(torch.autograd.Function):
    """Passes features on, and knows how many images have a graph."""

    alive = most = 0

    @staticmethod
    def forward(ctx, features):
        if ctx.needs_input_grad[0]:
            Counted.alive += len(features)
            Counted.most = max(Counted.most, Counted.alive)
        return features.clone()

    @staticmethod
    def backward(ctx, gradient):
        Counted.alive -= len(gradient)
        return gradient


def test_one_micro_batch_at_a_time_has_a_graph(images):
    class Counting(nn.Sequential):
        def forward(self, batch):
            return Counted.apply(super().forward(batch)) if torch.is_grad_enabled() else super().forward(batch)

    f, g = Counting(*network(group_norm)).double(), head().double()
    accumulate(f, g, pieces(4, 4, 4), lambda part: images[part], loss_with(g))
    assert (Counted.alive, Counted.most) == (0, 4)


def test_on_a_cpu_what_fits_is_half_of_what_is_free(monkeypatch):
    # Each sigmoid keeps its result, and the images are there too: 3 of 2 x 8 floats a volume.
    f, asked = nn.Sequential(nn.Linear(8, 8), nn.Sigmoid(), nn.Sigmoid()), []

    def images_of(n):
        asked.append(n)
        return torch.rand(2 * n, 8)

    each = 3 * 2 * 8 * 4
    for free, expected in [(None, 100), (200 * each, 100), (200 * each - 1, 50), (25 * each, 7), (0, 1)]:
        monkeypatch.setattr(gradcache, "free_memory", lambda free=free: free)
        assert volumes_that_fit(f, images_of, 100, CPU) == expected
    assert set(asked) == {1}


def test_free_memory_is_that_of_the_machine():
    free = gradcache.free_memory()
    assert free is None or 0 < free < 2**50


@pytest.mark.parametrize(("most", "expected"), [(100, 100), (99, 50), (12, 7), (1, 1), (0, 1)])
def test_on_a_gpu_what_fits_is_tried(monkeypatch, most, expected):
    monkeypatch.setattr(gradcache, "_gpus", lambda device: [])

    class Small(nn.Sequential):
        def forward(self, images):
            if len(images) > most:
                raise torch.OutOfMemoryError
            torch.rand(1)
            return super().forward(images)

    f = Small(nn.Linear(8, 8), nn.BatchNorm1d(8))
    before, state = copy.deepcopy(f.state_dict()), torch.get_rng_state()
    images = torch.rand(101, 8)[1:]
    state = torch.get_rng_state()
    assert volumes_that_fit(f, lambda n: images[:n], 100, torch.device("cuda")) == expected
    assert torch.equal(torch.get_rng_state(), state)
    assert all(p.grad is None for p in f.parameters())
    torch.testing.assert_close(f.state_dict(), before)
