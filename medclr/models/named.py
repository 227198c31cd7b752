"""Networks of other libraries, by name and without their head: MONAI's in 2D and 3D, and timm's in 2D."""

import re
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from monai.networks import nets
from monai.networks.nets.efficientnet import EfficientNetBN
from monai.networks.nets.resnet import ResNetBottleneck
from torch import Tensor, nn

from medclr.errors import MedclrError, UsageError

_SHORTCUTS: dict[str, dict[str, Any]] = {
    "": {"shortcut_type": "B"},
    "-nobias": {"shortcut_type": "B", "bias_downsample": False},
    "-a": {"shortcut_type": "A"},
}
# What torchvision's and timm's ResNets are, in 2D or inflated: MONAI's own have a stem without a stride.
_STRIDED = {"shortcut_type": "B", "bias_downsample": False, "conv1_t_stride": 2}
_IMAGENET = (0.449, 0.226)  # mean and deviation of the grey values that they expect, over the channels


def _resnet(depth: int, how: dict[str, Any], dims: int, channels: int) -> nn.Module:
    network: nn.Module = getattr(nets, f"resnet{depth}")(spatial_dims=dims, n_input_channels=channels, **how)
    return network


def _radimagenet(dims: int, channels: int) -> nn.Module:
    """The ResNet-50 of RadImageNet's weights from Keras, as MONAI names them (Project-MONAI/perceptual-models).

    As in Keras, convolutions have a bias and a block strides in its first one; torchvision's strides in the second. The
    grey values are those of RadImageNet's training in Keras: less ImageNet's mean, and not divided.
    """
    network: Any = _resnet(50, _STRIDED, dims, channels)
    for part in network.modules():
        if isinstance(part, ResNetBottleneck):
            part.conv1.stride, part.conv2.stride = part.conv2.stride, part.conv1.stride
        elif isinstance(part, nn.Conv2d | nn.Conv3d):
            part.bias = nn.Parameter(torch.zeros(part.out_channels))
        elif isinstance(part, nn.BatchNorm2d | nn.BatchNorm3d):
            part.eps = 1.001e-5
    network.pretrained_cfg = {"mean": _IMAGENET[:1]}
    module: nn.Module = network
    return module


def _efficientnet(size: int, dims: int, channels: int) -> nn.Module:
    return EfficientNetBN(f"efficientnet-b{size}", pretrained=False, spatial_dims=dims, in_channels=channels)


def _senet(name: str, dims: int, channels: int) -> nn.Module:
    network: nn.Module = getattr(nets, name)(spatial_dims=dims, in_channels=channels, num_classes=1)
    return network


_SENETS = ("SENet154", "SEResNet50", "SEResNet101", "SEResNet152", "SEResNext50", "SEResNext101")

# What builds a network from spatial dimensions and channels, and the head to take off.
_MONAI: dict[str, tuple[Callable[[int, int], nn.Module], str]] = {
    f"resnet{depth}{suffix}": (partial(_resnet, depth, how), "fc")
    for depth in (10, 18, 34, 50, 101, 152, 200)
    for suffix, how in (*_SHORTCUTS.items(), ("-stride2", _STRIDED))
}
_MONAI["resnet50-radimagenet"] = (_radimagenet, "fc")
_MONAI |= {
    f"densenet{depth}": (partial(getattr(nets, f"DenseNet{depth}"), out_channels=1), "class_layers.out")
    for depth in (121, 169, 201, 264)
}
_MONAI |= {f"efficientnet-b{size}": (partial(_efficientnet, size), "_fc") for size in range(8)}
_MONAI |= {name.lower(): (partial(_senet, name), "last_linear") for name in _SENETS}
# Parts that are a chain of stages or blocks.
_CHAINS = ("features", "blocks", "_blocks", "stages", "layers")


class Named(nn.Module):
    """A network of another library, on images as medclr gives them.

    Images float32 (B, C, *patch) in [0, 1] to features (B, F).

    Args:
        body: the network without its head.
        heads: the names of what was taken off, as the library has them.
        mean, std: of the grey values that the body expects.
    """

    def __init__(self, body: nn.Module, heads: tuple[str, ...], mean: float, std: float) -> None:
        super().__init__()
        self.body, self.heads, self.mean, self.std = body, heads, mean, std

    def forward(self, images: Tensor) -> Tensor:
        """See the class."""
        features: Tensor = self.body((images - self.mean) / self.std)
        return features

    def stages(self) -> list[nn.Module]:
        """Its parts with weights, from the first to the last, the blocks of a chain each for itself."""
        parts: list[nn.Module] = [nn.ParameterList(self.body.parameters(recurse=False))]
        for name, part in self.body.named_children():
            parts += part.children() if name in _CHAINS else [part]
        return parts

    def greys(self) -> tuple[float, float]:
        """Mean and standard deviation that the library says its weights of this network expect, over its channels."""
        known = getattr(self.body, "pretrained_cfg", None) or {}
        means, stds = known.get("mean", (0.0,)), known.get("std", (1.0,))
        return round(sum(means) / len(means), 4), round(sum(stds) / len(stds), 4)


def build_named(
    network: str, spatial_dims: int, channels: int, patch: tuple[int, ...], mean: float = 0.0, std: float = 1.0
) -> Named:
    """A network with random weights.

    Args:
        network: "monai:NAME" or "timm:NAME".
        spatial_dims, channels, patch: of the images; networks that take a size are built for this patch.
        mean, std: as in Named.

    Raises:
        UsageError: there is none of this name, or not for such images.
        MedclrError: timm is not there.
    """
    library, _, name = network.partition(":")
    if library == "timm":
        if spatial_dims != 2:
            raise UsageError(f"network {network}: timm's are 2D, the images are {spatial_dims}D; choose one of MONAI's")
        return Named(*_timm(name, channels, patch), mean, std)
    if library != "monai" or name not in _MONAI:
        names = [name for name in _MONAI if not name.endswith((*filter(None, _SHORTCUTS), "-stride2", "-radimagenet"))]
        raise UsageError(f"network {network}: choose timm:NAME, or monai: and one of {', '.join(names)}")
    build, head = _MONAI[name]
    body = build(spatial_dims, channels)
    body.set_submodule(head, nn.Identity())
    return Named(body, (head,), mean, std)


def variants(network: str) -> list[str]:
    """The networks that a name may stand for.

    MONAI's ResNets also come with other shortcuts, as MedicalNet's do, and a ResNet-50 as RadImageNet's from Keras.
    """
    suffixes = _SHORTCUTS if re.fullmatch(r"monai:resnet\d+", network) else [""]
    radimagenet = re.fullmatch(r"(timm:(tv_)?|monai:)resnet50(-stride2|\..*)?", network)
    return [network + suffix for suffix in suffixes] + (["monai:resnet50-radimagenet"] if radimagenet else [])


def in_3d(network: str) -> tuple[str, tuple[float, float] | None]:
    """The network that is another in 3D: the same of MONAI's, and of timm's those ResNets that MONAI has as well.

    Returns:
        Its name, and mean and standard deviation of the grey values that timm says its weights expect.

    Raises:
        UsageError: there is none.
    """
    library, _, name = network.partition(":")
    if library == "monai":
        return network, None
    plain = re.fullmatch(r"(?:tv_)?(resnet(?:18|34|50|101|152))(?:\..*)?", name)
    if not plain:
        raise UsageError(
            f"--inflate: {network} has no form in 3D here; those of timm's that have one are resnet18, 34, 50, 101 and "
            "152"
        )
    return f"monai:{plain[1]}-stride2", _IMAGENET


def _timm(name: str, channels: int, patch: tuple[int, ...]) -> tuple[nn.Module, tuple[str, ...]]:
    try:
        # What it makes on import must not be left without values.
        with torch.device("cpu"):
            import timm  # type: ignore[import-not-found,unused-ignore]
    except Exception as error:
        # A torchvision that does not fit torch ends in a RuntimeError.
        why = "is not installed" if isinstance(error, ModuleNotFoundError) else f"cannot be imported ({error})"
        raise MedclrError(
            f"network timm:{name}: timm {why}; pip install 'medclr[timm]', with the torchvision that was built for "
            f"this torch {torch.__version__}"
        ) from error
    # Other names of timm's, such as hf-hub:…, are fetched from the network.
    if not re.fullmatch(r"\w+(\.\w+)?", name) or not timm.is_model(name.partition(".")[0]):
        raise UsageError(
            f"network timm:{name}: timm {timm.__version__} has none of this name; timm.list_models() lists"
        )
    body: Any  # with or without timm at hand, the type checker says the same
    make = partial(timm.create_model, name, pretrained=False, num_classes=0, in_chans=channels)
    try:
        try:
            body = make(img_size=patch)
        except TypeError:  # only some are built for a size
            body = make()
    except (AssertionError, RuntimeError, ValueError, TypeError) as error:
        raise UsageError(f"network timm:{name} for images of {' × '.join(map(str, patch))}: {error}") from error
    heads = body.pretrained_cfg.get("classifier") or ()
    return body, (heads,) if isinstance(heads, str) else tuple(heads)
