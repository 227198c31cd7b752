"""What pre-training starts from: random weights, or the encoder of a bundle and, where it fits, its projector."""

import copy
from typing import Any

from torch import nn

from medclr.config import METHODS, PretrainConfig
from medclr.data.spec import DataSpec
from medclr.errors import UsageError
from medclr.models.bundle import Bundle
from medclr.models.encoder import Architecture, build_encoder
from medclr.models.projector import build_projector, describe_projector

DEPTH, WIDTH, NORM, PROJECTOR_LAYERS = 10, 16, "batch", 2  # where neither the config nor a bundle says otherwise


def architecture_of(config: PretrainConfig, spec: DataSpec, start: Bundle | None) -> Architecture:
    """The encoder that a config asks for, which is that of the bundle where it starts from one.

    Args:
        config: of the command.
        spec: filled; its patch decides the stem.
        start: the bundle, or None for random weights.

    Raises:
        UsageError: the config asks for another depth, width or norm than the bundle has.
    """
    assert spec.patch is not None
    if start is None:
        depth, width, norm = config.depth or DEPTH, config.width or WIDTH, config.norm or NORM
        return Architecture(depth, width, spec.spatial_dims, 1, norm, spec.patch)
    own = start.architecture
    for name in ("depth", "width", "norm"):
        asked, has = getattr(config, name), getattr(own, name)
        if asked is not None and asked != has:
            which = f"has {has}" if own.own else "has its own"
            raise UsageError(
                f"--{name} {asked}: the encoder that it starts from, a {own.title}, {which}; leave out --{name}, or "
                "--encoder"
            )
    return own


def networks(config: PretrainConfig, spec: DataSpec, start: Bundle | None) -> tuple[nn.Module, nn.Sequential]:
    """An encoder and a projector to train, in training mode: all weights of a bundle's, or random ones.

    A projector is taken over where it is the one that the config asks for; see `projector_of`.

    Args:
        config, spec, start: as for `architecture_of`.
    """
    architecture = architecture_of(config, spec, start)
    wanted = projector_of(config, start, architecture.feature_dim)
    encoder = build_encoder(architecture) if start is None else copy.deepcopy(start.encoder)
    # What SimCLR's and MoCo's bundles hold was put into evaluation mode, in which batch norm learns no statistics.
    if start is None or not takes_projector(config, start):
        return encoder.train(), build_projector(architecture.feature_dim, **wanted).train()
    return encoder.train(), copy.deepcopy(start.projector).train()


def projector_of(config: PretrainConfig, start: Bundle | None, features: int) -> dict[str, Any]:
    """The projector that a config asks for, in the words of `build_projector`: as many layers as the bundle's has, if
    it does not say."""
    own = _projector_in(start) or {"layers": PROJECTOR_LAYERS}
    layers = config.projector_layers or own["layers"]
    # The head of MoCo v2 has no batch norm, which over a whole batch would undo the shuffling of keys.
    return {"hidden": features, "out": 128, "layers": layers, "norm": config.method == "simclr"}


def takes_projector(config: PretrainConfig, start: Bundle) -> bool:
    """Whether the bundle has the projector that the config asks for."""
    return _projector_in(start) == projector_of(config, start, start.architecture.feature_dim)


def described(config: PretrainConfig, start: Bundle) -> str:
    """Which of the bundle's weights are gone on from, and which are not, as a line for the user."""
    n_encoder, n_projector = (len(network.state_dict()) for network in (start.encoder, start.projector))
    begun = f"starting from a {start.architecture.title}, fingerprint {start.digest[:16]}: all {n_encoder} weights"
    if takes_projector(config, start):
        return f"{begun} of its encoder, and all {n_projector} of its projector"
    own, wanted = _projector_in(start), projector_of(config, start, start.architecture.feature_dim)
    if own is None:
        return f"{begun} of its encoder; it has no projector, and a new one begins at random"
    has, needs = (
        f"{one['layers']} layers of {one['hidden']}, with{'' if one['norm'] else 'out'} batch norm"
        for one in (own, wanted)
    )
    return (
        f"{begun} of its encoder; a new projector begins at random, since {METHODS[config.method]}'s is to have "
        f"{needs}, and the {n_projector} weights of its own are of {has}"
    )


def _projector_in(start: Bundle | None) -> dict[str, Any] | None:
    return describe_projector(start.projector) if start and list(start.projector.children()) else None
