"""The projector: the small network between the encoder and the contrastive loss."""

from itertools import pairwise
from typing import Any

from torch import nn

from medclr.errors import UsageError

_MOST_LAYERS = 4


def build_projector(in_dim: int, hidden: int, out: int = 128, layers: int = 2, norm: bool = True) -> nn.Sequential:
    """Linear, batch norm and ReLU per hidden layer, then a linear layer, as in SimCLR (Chen et al. 2020, appendix B).

    Without the batch norm it is the head of MoCo v2 (Chen, Fan, Girshick and He 2020, section 2).

    Args:
        in_dim: length of the encoder's features.
        hidden: units of each hidden layer.
        out: length of the projection.
        layers: linear layers, the last included; 1 to 4.
        norm: batch norm in the hidden layers.
    """
    if not 1 <= layers <= _MOST_LAYERS:
        raise UsageError(f"projector of {layers} layers: choose 1 to {_MOST_LAYERS}")
    widths = [in_dim, *[hidden] * (layers - 1)]
    stack: list[nn.Module] = []
    for before, after in pairwise(widths):
        # Batch norm has a bias of its own.
        stack += [nn.Linear(before, after, bias=not norm)]
        stack += [nn.BatchNorm1d(after), nn.ReLU(inplace=True)] if norm else [nn.ReLU(inplace=True)]
    return nn.Sequential(*stack, nn.Linear(widths[-1], out))


def describe_projector(projector: nn.Module) -> dict[str, Any]:
    """What `build_projector` needs beside the length of the features to build the same network again."""
    linear = [layer for layer in projector.modules() if isinstance(layer, nn.Linear)]
    normed = any(isinstance(layer, nn.BatchNorm1d) for layer in projector.modules())
    return {"hidden": linear[0].out_features, "out": linear[-1].out_features, "layers": len(linear), "norm": normed}


def hidden_layers(projector: nn.Sequential, layers: int) -> list[nn.Module]:
    """The first layers of a projector, each with its norm and ReLU; raises UsageError where it has not so many."""
    linear = [i for i, layer in enumerate(projector) if isinstance(layer, nn.Linear)]
    if not linear:
        if layers:
            raise UsageError(f"layer {layers} of the projector: weights from elsewhere come without one; choose 0")
        return []
    if not 0 <= layers < len(linear):
        raise UsageError(f"layer {layers} of the projector: choose 0 to {len(linear) - 1}, the last hidden one")
    return list(projector)[: linear[layers]]
