import importlib
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from medclr.losses import chance_level, nt_xent

# The package's own name for it is the function.
module = importlib.import_module("medclr.losses.nt_xent")


def naive(z1, z2, temperature, groups=None, domains=None, negatives="all"):
    """Equation 1 of Chen et al. 2020, term by term; the terms of the sum below are the positive and the negatives."""
    n = len(z1)
    z = [row / row.norm() for row in (*z1, *z2)]

    def loss(i, j):
        def counts(k):
            apart = groups is None or groups[k % n] != groups[i % n]
            if negatives != "all":
                apart = apart and (domains[k % n] == domains[i % n]) == (negatives == "within")
            return k == j or (k % n != i % n and apart)

        below = sum(torch.exp(z[i] @ z[k] / temperature) for k in range(2 * n) if counts(k))
        return -torch.log(torch.exp(z[i] @ z[j] / temperature) / below)

    return sum(loss(k, k + n) + loss(k + n, k) for k in range(n)) / (2 * n)


def plain(z1, z2, temperature, groups=None, domains=None, negatives="all"):
    """With the whole matrix of similarities, and autograd's gradient."""
    n = len(z1)
    z = F.normalize(torch.cat([z1, z2]), dim=1)
    similarity = z @ z.T / temperature
    group = torch.arange(n).repeat(2) if groups is None else torch.cat([groups, groups])
    positive = torch.arange(2 * n).roll(n)
    left_out = group[:, None] == group
    if negatives != "all":
        domain = torch.cat([domains, domains])
        left_out |= (domain[:, None] == domain) != (negatives == "within")
    left_out = left_out.scatter(1, positive[:, None], False)
    return F.cross_entropy(similarity.masked_fill(left_out, -torch.inf), positive)


def projections(n, d, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2, n, d, generator=generator, dtype=dtype)


def with_gradients(loss, z1, z2, *rest):
    """The loss and its gradients, as one flat tensor."""
    z1, z2 = z1.detach().requires_grad_(), z2.detach().requires_grad_()
    value = loss(z1, z2, *rest)
    return torch.cat([value[None], *(gradient.flatten() for gradient in torch.autograd.grad(value, (z1, z2)))])


@pytest.fixture
def blocks_of(monkeypatch):
    return lambda side: monkeypatch.setitem(module._SIDE, "cpu", side)


@pytest.mark.parametrize("n", [1, 2, 7, 8, 9, 16, 21])
@pytest.mark.parametrize("patients", [None, 1, 2, 5])
def test_blocks_give_what_the_whole_matrix_gives(n, patients, blocks_of):
    groups = None if patients is None else torch.randint(patients, (n,), generator=torch.Generator().manual_seed(n))
    z1, z2 = projections(n, 6)
    blocks_of(8)
    torch.testing.assert_close(
        with_gradients(nt_xent, z1, z2, 0.3, groups), with_gradients(plain, z1, z2, 0.3, groups), rtol=1e-10, atol=1e-12
    )


def test_the_side_of_a_block_changes_nothing(blocks_of):
    z1, z2 = projections(50, 6)
    groups = torch.arange(50) % 13 - 4
    whole = with_gradients(nt_xent, z1, z2, 0.1, groups)
    for side in (1, 7, 99, 100, 101):
        blocks_of(side)
        torch.testing.assert_close(with_gradients(nt_xent, z1, z2, 0.1, groups), whole, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("negatives", ["within", "across"])
@pytest.mark.parametrize("n", [1, 2, 7, 16, 21, 40])
@pytest.mark.parametrize(("patients", "n_domains"), [(None, 1), (None, 3), (5, 1), (5, 3), (2, 2), (40, 9)])
def test_blocks_of_domains_give_what_the_whole_matrix_gives(n, patients, n_domains, negatives, blocks_of):
    generator = torch.Generator().manual_seed(n)
    # A patient may have been on several scanners.
    groups = None if patients is None else torch.randint(-3, patients, (n,), generator=generator)
    domains = torch.randint(n_domains, (n,), generator=generator) * 7 - 2
    z1, z2 = projections(n, 6)
    blocks_of(8)
    found = with_gradients(nt_xent, z1, z2, 0.3, groups, domains, negatives)
    torch.testing.assert_close(
        found, with_gradients(plain, z1, z2, 0.3, groups, domains, negatives), rtol=1e-10, atol=1e-12
    )
    z = torch.ones(n, 8, dtype=torch.float64)
    each = torch.arange(n) if groups is None else groups
    alike = nt_xent(z, z, 0.1, each, domains, negatives)
    assert chance_level(each, domains, negatives).item() == pytest.approx(alike.item(), abs=1e-6)


@settings(max_examples=20, deadline=None)
@given(n=st.integers(1, 6), seed=st.integers(0, 2**31), negatives=st.sampled_from(["all", "within", "across"]))
def test_with_domains_too_it_is_the_papers_equation(n, seed, negatives):
    z1, z2 = projections(n, 5, seed)
    domains = torch.randint(2, (n,), generator=torch.Generator().manual_seed(seed))
    groups = torch.arange(n) // 2
    expected = naive(z1, z2, 0.3, groups, domains, negatives)
    torch.testing.assert_close(nt_xent(z1, z2, 0.3, groups, domains, negatives), expected)


@pytest.mark.parametrize("negatives", ["within", "across"])
def test_blocks_without_negatives_are_not_computed(negatives, blocks_of, monkeypatch):
    blocks_of(10)
    z1, z2 = projections(40, 6)
    domains = torch.arange(40) % 4  # of twenty views each: two blocks
    made = []
    upper = module._upper_blocks
    monkeypatch.setattr(module, "_upper_blocks", lambda *a: (made.append(0) or block for block in upper(*a)))
    nt_xent(z1, z2, 0.1, None, domains, negatives)
    # Three of each domain's own square, of 36 above the diagonal.
    assert len(made) == {"within": 12, "across": 24}[negatives]


def test_negatives_that_ask_for_domains_are_refused_without():
    z1, z2 = projections(4, 3)
    with pytest.raises(ValueError, match="negatives within: needs the domains"):
        nt_xent(z1, z2, 0.1, None, None, "within")
    with pytest.raises(ValueError, match="negatives 'none': must be all, within or across"):
        chance_level(torch.arange(4), torch.arange(4), "none")


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
@given(seed=st.integers(0, 2**31), n=st.integers(2, 40))
def test_neither_the_order_of_views_nor_of_items_nor_their_length_matters(seed, n):
    z1, z2 = projections(n, 4, seed)
    generator = torch.Generator().manual_seed(seed)
    order, groups = torch.randperm(n, generator=generator), torch.randint(n, (n,), generator=generator)
    loss = nt_xent(z1, z2, 0.1, groups)
    torch.testing.assert_close(nt_xent(z2, z1, 0.1, groups), loss)
    domains = torch.randint(3, (n,), generator=generator)
    for negatives in ("within", "across"):
        apart = nt_xent(z1, z2, 0.1, groups, domains, negatives)
        torch.testing.assert_close(nt_xent(z1[order], z2[order], 0.1, groups[order], domains[order], negatives), apart)
    torch.testing.assert_close(nt_xent(z1[order], z2[order], 0.1, groups[order]), loss)
    torch.testing.assert_close(nt_xent(3 * z1, 0.5 * z2, 0.1, groups), loss)


def test_groups_of_one_change_nothing_and_one_group_leaves_no_negative():
    z1, z2 = projections(5, 4)
    torch.testing.assert_close(nt_xent(z1, z2, 0.1, torch.arange(5)), nt_xent(z1, z2, 0.1))
    alone = with_gradients(nt_xent, z1, z2, 0.1, torch.zeros(5, dtype=torch.int64))
    assert (alone == 0).all()
    assert (with_gradients(nt_xent, z1[:1], z2[:1], 0.1) == 0).all()


@pytest.mark.parametrize("groups", [None, torch.tensor([0, 1, 0, 2]), torch.tensor([0, 0, 1, 1])])
@pytest.mark.parametrize("side", [3, 1024])
def test_its_gradient_is_right(groups, side, blocks_of):
    blocks_of(side)
    z1, z2 = projections(4, 3).requires_grad_(True)
    assert torch.autograd.gradcheck(lambda a, b: nt_xent(a, b, 0.2, groups), (z1, z2))


@pytest.mark.parametrize("negatives", ["within", "across"])
def test_its_gradient_is_right_with_domains(negatives, blocks_of):
    blocks_of(3)
    z1, z2 = projections(5, 3).requires_grad_(True)
    groups, domains = torch.tensor([0, 0, 1, 2, 1]), torch.tensor([1, 0, 1, 0, 0])
    assert torch.autograd.gradcheck(lambda a, b: nt_xent(a, b, 0.2, groups, domains, negatives), (z1, z2))


def test_it_can_be_differentiated_once_only():
    z1, z2 = projections(4, 3).requires_grad_(True)
    (gradient,) = torch.autograd.grad(nt_xent(z1, z2, 0.2), z1, create_graph=True)
    with pytest.raises(RuntimeError, match="differentiate twice"):
        gradient.sum().backward()


@pytest.mark.parametrize("temperature", [0.002, 0.01, 0.0199, 0.02, 0.05, 1])
def test_single_precision_is_right_at_every_temperature(temperature):
    z1, z2 = projections(64, 16, dtype=torch.float32)
    alike = torch.ones_like(z1)
    odd = torch.cat([-alike[:1], alike[1:]])
    # As cosines can be: any, pairs that agree, pairs that are opposite, all alike but one.
    for first, second in ((z1, z2), (z1, z1), (z1, -z1), (alike, odd)):
        found = with_gradients(nt_xent, first, second, temperature)
        expected = with_gradients(plain, first.double(), second.double(), temperature)
        assert found.dtype == torch.float32
        torch.testing.assert_close(found[0].double(), expected[0], rtol=1e-6, atol=2e-6)
        assert (found - expected)[1:].norm() <= 1e-5 * expected[1:].norm() + 1e-7


@pytest.mark.parametrize("temperature", [0.0019, 0, -1, math.nan])
def test_a_temperature_that_no_float_can_hold_is_refused(temperature):
    with pytest.raises(ValueError, match=rf"temperature {temperature}: must be 0\.002 or more"):
        nt_xent(*projections(4, 3), temperature)


def test_half_precision_projections_are_compared_in_single_precision():
    z1, z2 = projections(32, 16, dtype=torch.float32)
    assert nt_xent(z1.double(), z2.double(), 0.1).dtype == torch.float64
    for dtype in (torch.bfloat16, torch.float16):
        halves = z1.to(dtype), z2.to(dtype)
        expected = with_gradients(plain, halves[0].double(), halves[1].double(), 0.1)
        # Backward too: where it runs is the caller's choice.
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = nt_xent(*halves, 0.1)
            found = with_gradients(lambda a, b, dtype=dtype: nt_xent(a.to(dtype), b.to(dtype), 0.1), z1, z2)
            single = with_gradients(nt_xent, halves[0].float(), halves[1].float(), 0.1)
        assert loss.dtype == torch.float32
        torch.testing.assert_close(loss, expected[0].float())
        torch.testing.assert_close(single, expected.float(), rtol=1e-4, atol=1e-7)
        # The gradient itself is rounded once, to the type of its projections.
        torch.testing.assert_close(found, expected.float(), rtol=2 * torch.finfo(dtype).eps, atol=1e-7)


class Largest(TorchDispatchMode):
    """Elements of the largest tensor that any operation gives, views among them."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        given = func(*args, **(kwargs or {}))
        for tensor in given if isinstance(given, (tuple, list)) else [given]:
            if isinstance(tensor, torch.Tensor):
                self.elements = max(self.elements, tensor.numel())
        return given


@pytest.mark.parametrize("groups", [None, torch.arange(100) // 7, torch.zeros(100, dtype=torch.int64)])
def test_no_matrix_of_all_pairs_is_made(groups, blocks_of):
    blocks_of(16)
    z1, z2 = projections(100, 4)
    with Largest() as of_plain:
        with_gradients(plain, z1, z2, 0.1, groups)
    assert of_plain.elements == 200**2  # it sees backward too, or this would say little
    with Largest() as own:
        with_gradients(nt_xent, z1, z2, 0.1, groups)
    assert own.elements <= 2 * 200 * 4
    for negatives in ("within", "across"):
        with Largest() as own:
            with_gradients(nt_xent, z1, z2, 0.1, groups, torch.arange(100) % 3, negatives)
        assert own.elements <= 2 * 200 * 4
    with Largest() as own:
        chance_level(torch.arange(100) if groups is None else groups)
    assert own.elements <= 100


def test_what_is_not_a_number_is_told():
    z1, z2 = projections(8, 4)
    z1[3, 1] = math.nan
    assert torch.isnan(with_gradients(nt_xent, z1, z2, 0.1)[0])
