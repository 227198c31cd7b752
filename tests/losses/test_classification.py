import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.utils.class_weight import compute_class_weight

from medclr.losses import class_weights, label_loss

NAN = math.nan


def naive(logits, y, weight, exclusive):
    """Cross-entropy, one known label after the other."""
    terms = []
    for row, truth in zip(logits.tolist(), y.tolist(), strict=True):
        if exclusive:
            if not math.isnan(truth[0]):
                total = sum(math.exp(value) for value in row)
                terms.append(
                    -sum(w * t * math.log(math.exp(v) / total) for v, t, w in zip(row, truth, weight, strict=True))
                )
            continue
        for value, t, w in zip(row, truth, weight, strict=True):
            if not math.isnan(t):
                p = 1 / (1 + math.exp(-value))
                terms.append(-(w * t * math.log(p) + (1 - t) * math.log(1 - p)))
    return sum(terms) / len(terms) if terms else 0.0


@settings(max_examples=30, deadline=None)
@given(n=st.integers(1, 6), k=st.integers(2, 4), seed=st.integers(0, 2**31), exclusive=st.booleans())
def test_it_is_the_mean_over_what_is_known(n, k, seed, exclusive):
    g = torch.Generator().manual_seed(seed)
    logits, weight = (
        torch.randn(n, k, generator=g, dtype=torch.float64),
        torch.rand(k, generator=g, dtype=torch.float64),
    )
    y = torch.randint(2, (n, k), generator=g).double()
    unknown = torch.rand(n, k, generator=g) < 0.4
    if exclusive:
        y, unknown = torch.eye(k, dtype=torch.float64)[torch.randint(k, (n,), generator=g)], unknown[:, :1].expand(n, k)
    y[unknown] = NAN
    found = label_loss(logits.requires_grad_(), y, weight, exclusive)
    assert found.item() == pytest.approx(naive(logits, y, weight.tolist(), exclusive))
    found.backward()
    assert torch.isfinite(logits.grad).all()
    assert (logits.grad[y.isnan()] == 0).all(), "what is unknown moves nothing"


@pytest.mark.parametrize("exclusive", [True, False])
def test_where_nothing_is_known_nothing_is_learned(exclusive):
    logits = torch.randn(3, 2, requires_grad=True)
    loss = label_loss(logits, torch.full((3, 2), NAN), exclusive=exclusive)
    loss.backward()
    assert loss.item() == 0
    assert (logits.grad == 0).all()


def test_weights_under_which_all_classes_count_the_same():
    y = np.eye(3)[[0, 0, 0, 0, 0, 1, 1, 2]]
    expected = compute_class_weight("balanced", classes=np.arange(3), y=y.argmax(1))
    np.testing.assert_allclose(class_weights(torch.from_numpy(y), True), expected)
    with_none = torch.from_numpy(np.insert(y, 1, 0, axis=1))
    np.testing.assert_allclose(class_weights(with_none, True), np.insert(expected, 1, 0))
    labels = torch.tensor([[1, torch.nan, 1], [0, 0, 1], [0, 1, torch.nan], [0, 1, 1]])
    np.testing.assert_allclose(class_weights(labels, False), [3, 0.5, 1])
