import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics.pairwise import rbf_kernel

from medclr.losses import coral_loss, mmd, reversal_strength, reverse_gradient

few = settings(max_examples=25, deadline=None)
both = pytest.mark.parametrize("loss", [coral_loss, mmd])
sizes = {"n": st.integers(2, 7), "m": st.integers(2, 7), "k": st.integers(1, 4), "seed": st.integers(0, 2**31)}


def drawn(seed, n, m, k, dtype=torch.float64):
    """Two domains that differ in mean and spread."""
    g = torch.Generator().manual_seed(seed)
    rows = torch.randn(n + m, k, generator=g, dtype=dtype)
    return rows[:n], 1.5 * rows[n:] + 0.7


def naive_coral(source, target):
    """Equations 1 to 3 of Sun & Saenko 2016, entry by entry."""

    def covariance(rows, i, j):
        n = len(rows)
        together = sum(row[i] * row[j] for row in rows)
        return (together - sum(row[i] for row in rows) * sum(row[j] for row in rows) / n) / (n - 1)

    source, target = source.tolist(), target.tolist()
    k = len(source[0])
    entries = [(i, j) for i in range(k) for j in range(k)]
    return sum((covariance(source, *at) - covariance(target, *at)) ** 2 for at in entries) / (4 * k**2)


def naive_mmd(source, target, bandwidths=None):
    """Equation 3 of Gretton et al. 2012, pair by pair."""
    x, y = source.tolist(), target.tolist()
    n, m = len(x), len(y)
    if bandwidths is None:
        rows = x + y
        squares = sorted(math.dist(rows[i], rows[j]) ** 2 for i in range(n + m) for j in range(i))
        median = squares[(len(squares) - 1) // 2]
        bandwidths = [median / 4, median / 2, median, 2 * median, 4 * median]

    def kernel(a, b):
        return sum(math.exp(-(math.dist(a, b) ** 2) / width) for width in bandwidths) / len(bandwidths)

    return (
        sum(kernel(x[i], x[j]) for i in range(n) for j in range(n) if i != j) / (n * (n - 1))
        + sum(kernel(y[i], y[j]) for i in range(m) for j in range(m) if i != j) / (m * (m - 1))
        - 2 * sum(kernel(a, b) for a in x for b in y) / (n * m)
    )


@few
@given(**sizes)
def test_coral_is_the_papers_equations(n, m, k, seed):
    source, target = drawn(seed, n, m, k)
    assert coral_loss(source, target).item() == pytest.approx(naive_coral(source, target))


@few
@given(**sizes, bandwidths=st.none() | st.lists(st.floats(0.1, 10), min_size=1, max_size=3))
def test_mmd_is_the_papers_equation(n, m, k, seed, bandwidths):
    source, target = drawn(seed, n, m, k)
    assert mmd(source, target, bandwidths).item() == pytest.approx(naive_mmd(source, target, bandwidths), abs=1e-10)


def test_they_are_what_numpys_covariance_and_scikit_learns_kernel_make():
    source, target = drawn(0, 90, 60, 16)
    x, y = source.numpy(), target.numpy()
    expected = np.sum((np.cov(x, rowvar=False) - np.cov(y, rowvar=False)) ** 2) / (4 * 16**2)
    assert coral_loss(source, target).item() == pytest.approx(expected)
    off = {rows.shape[0]: ~np.eye(len(rows), dtype=bool) for rows in (x, y)}
    expected = rbf_kernel(x, gamma=1 / 20)[off[90]].mean() + rbf_kernel(y, gamma=1 / 20)[off[60]].mean()
    expected -= 2 * rbf_kernel(x, y, gamma=1 / 20).mean()
    assert mmd(source, target, [20.0]).item() == pytest.approx(expected)


def test_coral_of_a_domain_stretched_about_any_place_has_its_closed_form():
    source = drawn(1, 30, 2, 5)[0]
    own = torch.cov(source.T).square().sum().item()
    assert coral_loss(source, 3 * source - 8).item() == pytest.approx((1 - 9) ** 2 * own / (4 * 25))
    assert coral_loss(source, source + 4).item() == pytest.approx(0, abs=1e-20)


@pytest.mark.parametrize("shift", [0.0, 0.5, 2.0])
def test_mmd_of_two_gaussians_has_its_closed_form(shift):
    k, spread, width = 3, 0.8, 2.5
    g = torch.Generator().manual_seed(0)
    found = []
    for _ in range(20):
        source, target = (spread * torch.randn(150, k, generator=g, dtype=torch.float64) for _ in range(2))
        found.append(mmd(source, target + shift, [width]).item())
    # The difference of two rows is a Gaussian, too, of twice the variance.
    wider = width + 4 * spread**2
    expected = 2 * (width / wider) ** (k / 2) * (1 - math.exp(-k * shift**2 / wider))
    assert np.mean(found) == pytest.approx(expected, abs=4 * np.std(found) / math.sqrt(20))
    assert np.std(found) < 0.03


@pytest.mark.parametrize("offset", [0.0, 1e3, 1e4])
def test_mmd_does_not_see_where_all_features_lie(offset):
    """A shift of both domains by as much, in float32: what it costs is the digits that the numbers themselves lose."""
    generator = torch.Generator().manual_seed(0)
    own, there = (torch.randn(20, 8, generator=generator) + shift + offset for shift in (0, 0.5))
    known = mmd(own.double() - offset, there.double() - offset).item()
    assert mmd(own, there).item() == pytest.approx(known, rel=1e-3)


def test_mmd_of_one_distribution_is_0_on_average_however_few_the_rows():
    g = torch.Generator().manual_seed(0)
    found = [mmd(*torch.randn(2, 3, 2, generator=g, dtype=torch.float64), [1.0]).item() for _ in range(3000)]
    assert abs(np.mean(found)) < 4 * np.std(found) / math.sqrt(3000)
    assert min(found) < 0


@both
@few
@given(**sizes)
def test_neither_the_order_of_rows_or_domains_nor_a_turn_or_move_of_both_matters(loss, n, m, k, seed):
    source, target = drawn(seed, n, m, k)
    value = loss(source, target)
    g = torch.Generator().manual_seed(seed)
    torch.testing.assert_close(loss(target, source), value)
    mixed = source[torch.randperm(n, generator=g)], target[torch.randperm(m, generator=g)]
    torch.testing.assert_close(loss(*mixed), value)
    turn = torch.linalg.qr(torch.randn(k, k, generator=g, dtype=torch.float64)).Q
    torch.testing.assert_close(loss(source @ turn + 100, target @ turn + 100), value)


@few
@given(**sizes, factor=st.floats(0.01, 100))
def test_the_median_makes_mmd_the_same_in_any_unit_and_coral_grows_with_its_fourth_power(n, m, k, seed, factor):
    source, target = drawn(seed, n, m, k)
    torch.testing.assert_close(mmd(factor * source, factor * target), mmd(source, target))
    expected = factor**4 * coral_loss(source, target)
    torch.testing.assert_close(coral_loss(factor * source, factor * target), expected)


def test_domains_that_lie_further_apart_are_further_apart():
    source, target = drawn(2, 40, 40, 4)
    apart = [mmd(source, target + shift, [4.0]).item() for shift in (0, 0.5, 1, 2, 4)]
    assert apart == sorted(apart)
    # Far from each other, what is left is what rows of one domain have in common.
    alone = sum(mmd(rows, rows + 1e3, [4.0]) for rows in (source, target)) / 2
    torch.testing.assert_close(mmd(source, target + 1e3, [4.0]), alone)


@pytest.mark.parametrize("loss", [coral_loss, lambda x, y: mmd(x, y, [0.5, 3.0])])
def test_their_gradients_are_right(loss):
    assert torch.autograd.gradcheck(loss, [rows.requires_grad_() for rows in drawn(3, 4, 5, 3)])


def test_the_median_gets_no_gradient():
    source, target = drawn(3, 4, 5, 3)
    rows = torch.cat([source, target])
    median = torch.pdist(rows).square().median().item()
    domains = [domain.requires_grad_() for domain in (source, target)]
    given_, found = (
        torch.autograd.grad(mmd(*domains, widths), domains)
        for widths in ([median / 4, median / 2, median, 2 * median, 4 * median], None)
    )
    torch.testing.assert_close(found, given_)


@both
def test_they_pull_domains_together(loss):
    source, target = drawn(4, 30, 30, 2)
    target = target.clone().requires_grad_()
    before = loss(source, target).item()
    optimiser = torch.optim.Adam([target], lr=0.05)
    for _ in range(100):
        optimiser.zero_grad()
        loss(source, target).backward()
        optimiser.step()
    assert loss(source, target) < 0.2 * before


@both
@pytest.mark.parametrize("row", [[0.0, 0.0, 0.0], [1.1, -20.3, 300.7]])
@pytest.mark.parametrize("jitter", [0.0, 1e-7])
def test_features_that_collapsed_are_no_distance_apart_and_do_not_blow_up(loss, row, jitter):
    rows = torch.tensor(row).repeat(2, 12, 1)
    rows = rows * (1 + jitter * torch.randn(rows.shape, generator=torch.Generator().manual_seed(0)))
    source, target = rows.requires_grad_()
    value = loss(source, target)
    value.backward()
    assert abs(value) < 1e-5
    assert torch.isfinite(rows.grad).all()
    assert rows.grad.abs().max() < 1


@both
def test_half_precision_is_compared_in_single_precision(loss):
    source, target = drawn(5, 40, 30, 8)
    assert loss(source, target).dtype == torch.float64
    halves = source.bfloat16() + 30, target.bfloat16() + 30
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = loss(*halves)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, loss(*(rows.double() for rows in halves)).float(), rtol=1e-4, atol=1e-6)


@both
def test_a_distant_mean_does_not_swallow_what_single_precision_tells_apart(loss):
    source, target = (rows + 300 for rows in drawn(6, 40, 30, 8, torch.float32))
    expected = loss(source.double(), target.double())
    torch.testing.assert_close(loss(source, target).double(), expected, rtol=1e-4, atol=0)


@both
@pytest.mark.parametrize("shapes", [[(1, 3), (5, 3)], [(5, 3), (1, 3)], [(5, 3), (5, 1)], [(0, 3), (2, 3)]])
def test_a_domain_of_a_single_row_or_of_other_features_is_refused(loss, shapes):
    with pytest.raises(ValueError, match="two rows or more of each domain, of as many features") as refused:
        loss(*(torch.zeros(shape) for shape in shapes))
    assert str(shapes[0]) in str(refused.value)


@pytest.mark.parametrize("strength", [0.0, 0.3, 1.0, 2.5])
def test_what_is_reversed_is_the_gradient_alone(strength):
    x = torch.randn(4, 3, generator=torch.Generator().manual_seed(0)).requires_grad_()
    w = torch.randn(3, generator=torch.Generator().manual_seed(1)).requires_grad_()
    reversed_ = reverse_gradient(x, strength)
    assert torch.equal(reversed_, x)
    plain = torch.autograd.grad(((x @ w) ** 3).sum(), (x, w))
    found = torch.autograd.grad(((reversed_ @ w) ** 3).sum(), (x, w))
    assert torch.equal(found[0], -strength * plain[0])
    assert torch.equal(found[1], plain[1]), "the classifier itself learns to tell domains apart"


def test_reversal_grows_from_0_to_almost_1():
    assert reversal_strength(0) == 0
    assert reversal_strength(0.25) == pytest.approx(math.tanh(1.25))
    assert reversal_strength(1) == pytest.approx(0.99991, abs=1e-5)
