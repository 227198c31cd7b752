import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from medclr.losses import moco_chance_level, moco_loss


def naive(q, k, queue, temperature, groups=None, queue_groups=None, domains=None, queue_domains=None, negatives="all"):
    """Equation 1 of He et al. 2020, term by term."""
    q, k, queue = ([row / row.norm() for row in rows] for rows in (q, k, queue))
    total = 0
    for i, query in enumerate(q):
        own = torch.exp(query @ k[i] / temperature)
        others = sum(
            torch.exp(query @ key / temperature)
            for j, key in enumerate(queue)
            if (groups is None or groups[i] != queue_groups[j])
            and (negatives == "all" or (domains[i] == queue_domains[j]) == (negatives == "within"))
        )
        total -= torch.log(own / (own + others))
    return total / len(q)


def drawn(seed, *lengths, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(n, 5, generator=generator, dtype=dtype) for n in lengths]


@settings(max_examples=20, deadline=None)
@given(
    n=st.integers(1, 5),
    length=st.integers(1, 8),
    seed=st.integers(0, 2**31),
    temperature=st.floats(0.05, 2),
    grouped=st.booleans(),
)
def test_it_is_the_papers_equation(n, length, seed, temperature, grouped):
    q, k, queue = drawn(seed, n, n, length)
    groups = (torch.arange(n) % 3, torch.arange(length) % 3) if grouped else ()
    found = moco_loss(q, k, queue, temperature, *groups)
    torch.testing.assert_close(found, naive(q, k, queue, temperature, *groups))
    order = torch.randperm(length, generator=torch.Generator().manual_seed(seed))
    groups = (groups[0], groups[1][order]) if grouped else ()
    torch.testing.assert_close(moco_loss(2 * q, k, queue[order] / 2, temperature, *groups), found)


@settings(max_examples=30, deadline=None)
@given(
    n=st.integers(1, 5),
    length=st.integers(0, 8),
    seed=st.integers(0, 2**31),
    negatives=st.sampled_from(["all", "within", "across"]),
)
def test_negatives_can_be_of_the_own_domain_or_of_others(n, length, seed, negatives):
    q, k, queue = drawn(seed, n, n, length)
    generator = torch.Generator().manual_seed(seed)
    groups, queue_groups, domains, queue_domains = (
        torch.randint(-1, 2, (m,), generator=generator) for m in (n, length, n, length)
    )
    rest = (groups, queue_groups, domains, queue_domains, negatives)
    torch.testing.assert_close(moco_loss(q, k, queue, 0.3, *rest), naive(q, k, queue, 0.3, *rest))
    alike = moco_loss(torch.ones_like(q), torch.ones_like(k), torch.ones_like(queue), 0.3, *rest)
    assert moco_chance_level(*rest).item() == pytest.approx(alike.item(), abs=1e-6)
    if negatives != "all":
        for loss in (lambda *a: moco_loss(q, k, queue, 0.3, *a), moco_chance_level):
            with pytest.raises(ValueError, match=f"negatives {negatives}: needs the domains"):
                loss(groups, queue_groups, domains, None, negatives)


def test_closed_forms():
    z = torch.eye(4, dtype=torch.float64)
    assert moco_loss(z[:1], z[:1], z[1:], 0.5).item() == pytest.approx(math.log(1 + 3 * math.exp(-2)))
    alike = torch.ones(3, 8, dtype=torch.float64)
    assert moco_loss(alike, alike, alike.repeat(5, 1), 0.07).item() == pytest.approx(math.log(16))
    patient = torch.zeros(3, dtype=torch.int64)
    assert moco_loss(alike, alike, alike, 0.07, patient, patient).item() == 0


@settings(max_examples=20, deadline=None)
@given(groups=st.lists(st.integers(0, 3), min_size=1, max_size=6), queue_groups=st.lists(st.integers(0, 3), max_size=9))
def test_the_chance_level_is_the_loss_of_projections_that_are_all_alike(groups, queue_groups):
    n, length = len(groups), len(queue_groups)
    groups, queue_groups = torch.tensor(groups), torch.tensor(queue_groups, dtype=torch.int64)
    alike = torch.ones(n, 3, dtype=torch.float64)
    loss = moco_loss(alike, alike, torch.ones(length, 3, dtype=torch.float64), 0.1, groups, queue_groups)
    assert moco_chance_level(groups, queue_groups).item() == pytest.approx(loss.item(), abs=1e-6)


def test_only_queries_have_a_gradient_and_it_is_right():
    q, k, queue = (z.requires_grad_() for z in drawn(0, 3, 3, 6))
    moco_loss(q, k, queue, 0.2).backward()
    assert k.grad is None
    assert queue.grad is None
    groups = torch.arange(3), torch.arange(6) % 4
    assert torch.autograd.gradcheck(lambda q: moco_loss(q, k, queue, 0.2, *groups), q)


def test_half_precision_is_compared_in_single_precision():
    halves = [z.bfloat16() for z in drawn(0, 8, 8, 20, dtype=torch.float32)]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = moco_loss(*halves, 0.01)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, moco_loss(*(z.double() for z in halves), 0.01).float())


def test_groups_of_the_queries_alone_are_refused():
    q, k, queue = drawn(0, 3, 3, 6)
    with pytest.raises(ValueError, match="groups and queue_groups: give both or neither"):
        moco_loss(q, k, queue, 0.1, torch.arange(3))
