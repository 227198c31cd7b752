import pytest
import torch
from torch import nn

from medclr.errors import UsageError
from medclr.models import build_projector


@pytest.mark.parametrize("widths", [(32, 8), (32, 16, 8), (32, 16, 16, 8)])
def test_it_has_the_layers_and_widths_that_were_asked_for(widths):
    projector = build_projector(32, hidden=16, out=8, layers=len(widths) - 1)
    linear = [layer for layer in projector if isinstance(layer, nn.Linear)]
    assert (linear[0].in_features, *[layer.out_features for layer in linear]) == widths
    assert projector(torch.rand(4, 32)).shape == (4, 8)


def test_hidden_layers_are_normalised_and_rectified_and_the_last_is_plain():
    kinds = [type(layer) for layer in build_projector(32, hidden=16, layers=3)]
    hidden = [nn.Linear, nn.BatchNorm1d, nn.ReLU]
    assert kinds == [*hidden, *hidden, nn.Linear]
    first, *_, last = build_projector(32, hidden=16, layers=3)
    assert first.bias is None
    assert last.out_features == 128


def test_without_norm_hidden_layers_have_a_bias():
    projector = build_projector(32, hidden=16, layers=3, norm=False)
    assert [type(layer) for layer in projector] == [nn.Linear, nn.ReLU, nn.Linear, nn.ReLU, nn.Linear]
    assert [layer.bias is not None for layer in projector if isinstance(layer, nn.Linear)] == [True] * 3


@pytest.mark.parametrize("layers", [0, 5])
def test_other_numbers_of_layers_are_refused(layers):
    with pytest.raises(UsageError, match=f"{layers} layers"):
        build_projector(32, hidden=16, layers=layers)
