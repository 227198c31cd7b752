"""The projector: the small network between the encoder and the contrastive loss."""

from itertools import pairwise

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
