"""The encoder: MONAI's ResNet in 2D and 3D, of any width, with a stem that suits the patch; or a network by name."""

from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any

import torch
from monai.networks.nets.resnet import ResNet, ResNetBlock, ResNetBottleneck
from torch import nn

from medclr.errors import UsageError
from medclr.models.named import Named, build_named

# Blocks per stage: He et al. 2016, table 1, and MONAI's for 10.
_LAYERS = {
    10: [1, 1, 1, 1],
    18: [2, 2, 2, 2],
    34: [3, 4, 6, 3],
    50: [3, 4, 6, 3],
    101: [3, 4, 23, 3],
    152: [3, 8, 36, 3],
}
_NORMS = ("batch", "group")
_GROUPS = 8
# Above this, a stem at full resolution costs more than it sees.
_SMALL_PATCH = 40
_RESNET = "resnet"
_OF_OTHERS = ("network", "mean", "std")
_CHANNELS_LAST = {2: torch.channels_last, 3: torch.channels_last_3d}


@dataclass(frozen=True)
class Architecture:
    """All that `build_encoder` needs to build the same network again.

    Attributes:
        depth: 10, 18, 34, 50, 101 or 152 layers.
        width: channels of the first stage; 64 is the usual ResNet.
        spatial_dims: 2 or 3.
        channels: of the input.
        norm: "batch" or "group" (of 8 groups).
        patch: spatial size of the views in voxels; decides the stem.
        network: "resnet" is the one above; "monai:NAME" and "timm:NAME" are these libraries' own, which have no use for
            depth, width and norm (0, 0 and ""); see `Architecture.named`.
        mean, std: of the grey values that such a network expects; those of images are in [0, 1].
    """

    depth: int
    width: int
    spatial_dims: int
    channels: int
    norm: str
    patch: tuple[int, ...]
    network: str = _RESNET
    mean: float = 0.0
    std: float = 1.0

    def __post_init__(self) -> None:
        if self.spatial_dims not in _CHANNELS_LAST:
            raise UsageError(f"encoder for {self.spatial_dims} spatial dimensions: choose 2 or 3")
        if self.own:
            self._check_resnet()
        if len(self.patch) != self.spatial_dims:
            raise UsageError(f"patch {self.patch} for an encoder in {self.spatial_dims}D: give one size per dimension")
        if min(self.channels, *self.patch) < 1:
            raise UsageError(f"encoder for {self.channels} channels, patch {self.patch}: all must be above 0")

    def _check_resnet(self) -> None:
        if self.depth not in _LAYERS:
            raise UsageError(f"encoder depth {self.depth}: choose one of {', '.join(map(str, _LAYERS))}")
        if self.width < 1:
            raise UsageError(f"encoder width {self.width}: must be above 0")
        if self.norm not in _NORMS:
            raise UsageError(f"encoder norm {self.norm!r}: choose one of {', '.join(_NORMS)}")
        if self.norm == "group" and self.width % _GROUPS:
            raise UsageError(f"encoder width {self.width} with group norm: must be a multiple of {_GROUPS}")

    @classmethod
    def named(
        cls, network: str, spatial_dims: int, channels: int, patch: tuple[int, ...], mean: float = 0.0, std: float = 1.0
    ) -> "Architecture":
        """A network of another library; `build_encoder` says whether there is one of this name."""
        return cls(0, 0, spatial_dims, channels, "", patch, network, mean, std)

    @classmethod
    def of(cls, record: dict[str, Any]) -> "Architecture":
        """Inverse of `to_dict`, as it comes back from JSON; raises TypeError, KeyError or UsageError."""
        return cls(**record | {"patch": tuple(record["patch"])})

    def to_dict(self) -> dict[str, Any]:
        """Plain types, for bundles."""
        left_out = _OF_OTHERS if self.own else ()  # earlier bundles have no such keys
        return {name: value for name, value in asdict(self).items() if name not in left_out}

    @property
    def own(self) -> bool:
        """Whether it is the ResNet of medclr, whose depth, width and norm can be chosen."""
        return self.network == _RESNET

    @property
    def title(self) -> str:
        """What to call it in a sentence."""
        if self.own:
            return f"ResNet-{self.depth} of width {self.width}"
        library, _, name = self.network.partition(":")
        return f"{name} of {({'monai': 'MONAI'}).get(library, library)}"

    @property
    def feature_dim(self) -> int:
        """Length of the feature vector.

        Raises:
            UsageError: the network gives none for such images.
        """
        if not self.own:
            return _feature_dim(self)
        return 8 * self.width * (ResNetBottleneck if self.depth >= 50 else ResNetBlock).expansion


def build_encoder(architecture: Architecture) -> nn.Module:
    """A network with random weights that maps (B, channels, *patch) to features (B, feature_dim).

    Its weights lie channels-last, which is 1.3 (2D) to 2 times (3D) as fast on a CPU; loading a state dict keeps that.
    Inputs of other sizes than the patch work too.
    """
    a = architecture
    if not a.own:
        network = build_named(a.network, a.spatial_dims, a.channels, a.patch, a.mean, a.std)
        channels_last(network, a.spatial_dims)
        return network
    small = max(a.patch) <= _SMALL_PATCH
    encoder = ResNet(
        block=ResNetBottleneck if a.depth >= 50 else ResNetBlock,
        layers=_LAYERS[a.depth],
        block_inplanes=[a.width, 2 * a.width, 4 * a.width, 8 * a.width],
        spatial_dims=a.spatial_dims,
        n_input_channels=a.channels,
        conv1_t_size=3 if small else 7,
        conv1_t_stride=1 if small else 2,
        no_max_pool=small,
        feed_forward=False,
        bias_downsample=False,
    )
    if a.norm == "group":
        _use_group_norm(encoder)
    channels_last(encoder, a.spatial_dims)
    return encoder


def stages(encoder: nn.Module) -> list[nn.Module]:
    """The parts of `build_encoder`'s network with weights, from the stem to the last stage."""
    if isinstance(encoder, Named):
        return encoder.stages()
    part = dict(encoder.named_children())
    return [nn.ModuleList([part["conv1"], part["bn1"]]), *(part[f"layer{number}"] for number in range(1, 5))]


def channels_last(encoder: nn.Module, spatial_dims: int) -> None:
    """Lay the weights out channels-last, in place; convolutions then give their output the same layout."""
    encoder.to(memory_format=_CHANNELS_LAST[spatial_dims])  # type: ignore[call-overload]  # missing in torch's stubs


@lru_cache
def _feature_dim(architecture: Architecture) -> int:
    a = architecture
    # On the meta device nothing is computed.
    with torch.device("meta"), torch.no_grad():
        network = build_encoder(a).eval()
        try:
            shape = network(torch.empty(1, a.channels, *a.patch)).shape
        except (RuntimeError, AssertionError, ValueError) as error:
            why = " ".join(str(error).split())[:200]
            raise UsageError(
                f"network {a.network}: takes no patch of {_by(a.patch)} ({why}); use a larger one"
            ) from error
    if len(shape) != 2:
        raise UsageError(f"network {a.network}: gives {_by(shape[1:])} values, no feature vector; choose another")
    return int(shape[1])


def _by(sizes: tuple[int, ...]) -> str:
    return " × ".join(map(str, sizes))


def _use_group_norm(module: nn.Module) -> None:
    # MONAI 1.6's ResNet hands its norm to the stem alone; the blocks stay with batch norm unless replaced.
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm2d | nn.BatchNorm3d):
            setattr(module, name, nn.GroupNorm(_GROUPS, child.num_features))
        else:
            _use_group_norm(child)
