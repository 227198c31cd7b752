import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from medclr.losses import chance_level, nt_xent


def naive(z1, z2, temperature, groups=None):
    """Equation 1 of Chen et al. 2020, term by term."""
    n = len(z1)
    z = [row / row.norm() for row in (*z1, *z2)]

    def loss(i, j):
        def counts(k):
            return k == j or (k != i and (groups is None or groups[k % n] != groups[i % n]))

        below = sum(torch.exp(z[i] @ z[k] / temperature) for k in range(2 * n) if counts(k))
        return -torch.log(torch.exp(z[i] @ z[j] / temperature) / below)

    return sum(loss(k, k + n) + loss(k + n, k) for k in range(n)) / (2 * n)


def projections(n, d, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2, n, d, generator=generator, dtype=dtype)


@settings(max_examples=20, deadline=None)
@given(n=st.integers(1, 6), seed=st.integers(0, 2**31), temperature=st.floats(0.05, 2), grouped=st.booleans())
def test_it_is_the_papers_equation(n, seed, temperature, grouped):
    z1, z2 = projections(n, 5, seed)
    groups = torch.arange(n) // 2 if grouped else None
    torch.testing.assert_close(nt_xent(z1, z2, temperature, groups), naive(z1, z2, temperature, groups))


@pytest.mark.parametrize("n", [1, 4, 256])
def test_projections_that_are_all_alike_are_at_the_chance_level(n):
    z = torch.ones(n, 8, dtype=torch.float64)
    assert nt_xent(z, z, 0.1).item() == pytest.approx(math.log(2 * n - 1), abs=1e-9)
    assert chance_level(torch.arange(n)).item() == pytest.approx(math.log(2 * n - 1))


def test_views_of_one_group_that_are_left_out_lower_the_chance_level():
    groups = torch.tensor([0, 0, 1, 2, 0])
    z = torch.ones(5, 8, dtype=torch.float64)
    assert chance_level(groups).item() == pytest.approx((3 * math.log(5) + 2 * math.log(9)) / 5)
    assert nt_xent(z, z, 0.1, groups).item() == pytest.approx(chance_level(groups).item())


def test_perfectly_separated_pairs_have_their_closed_form():
    z = torch.eye(4, dtype=torch.float64)
    assert nt_xent(z, z, 0.5).item() == pytest.approx(math.log(1 + 6 * math.exp(-2)))


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**31))
def test_neither_the_order_of_views_nor_of_items_nor_their_length_matters(seed):
    z1, z2 = projections(6, 4, seed)
    loss = nt_xent(z1, z2, 0.1)
    order = torch.randperm(6, generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(nt_xent(z2, z1, 0.1), loss)
    torch.testing.assert_close(nt_xent(z1[order], z2[order], 0.1), loss)
    torch.testing.assert_close(nt_xent(3 * z1, 0.5 * z2, 0.1), loss)


def test_groups_of_one_change_nothing_and_one_group_leaves_no_negative():
    z1, z2 = projections(5, 4)
    torch.testing.assert_close(nt_xent(z1, z2, 0.1, torch.arange(5)), nt_xent(z1, z2, 0.1))
    assert nt_xent(z1, z2, 0.1, torch.zeros(5, dtype=torch.int64)).item() == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("groups", [None, torch.tensor([0, 1, 0, 2])])
def test_its_gradient_is_right(groups):
    z1, z2 = projections(4, 3).requires_grad_(True)
    assert torch.autograd.gradcheck(lambda a, b: nt_xent(a, b, 0.2, groups), (z1, z2))


def test_a_small_temperature_overflows_nothing():
    z1, z2 = (z.requires_grad_() for z in projections(64, 16, dtype=torch.float32))
    loss = nt_xent(z1, z2, 0.01)
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(z1.grad).all()


def test_half_precision_projections_are_compared_in_single_precision():
    z1, z2 = projections(32, 16, dtype=torch.float32)
    halves = z1.bfloat16(), z2.bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = nt_xent(*halves, 0.1)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, nt_xent(halves[0].double(), halves[1].double(), 0.1).float())
    assert nt_xent(z1.double(), z2.double(), 0.1).dtype == torch.float64
