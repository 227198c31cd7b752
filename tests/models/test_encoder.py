import copy
from dataclasses import replace

import pytest
import torch
from torch import nn

from medclr.errors import UsageError
from medclr.models import Architecture, build_encoder

SMALL = Architecture(depth=10, width=8, spatial_dims=2, channels=1, norm="batch", patch=(16, 16))
SMALL_3D = replace(SMALL, spatial_dims=3, patch=(12, 12, 12))
both = pytest.mark.parametrize("architecture", [SMALL, SMALL_3D], ids=["2D", "3D"])


@pytest.mark.parametrize(
    ("architecture", "depth", "norm"),
    [
        (SMALL, 18, "batch"),
        (SMALL, 34, "group"),
        (SMALL, 50, "batch"),
        (SMALL, 101, "batch"),
        (SMALL, 152, "group"),
        (SMALL_3D, 10, "batch"),
        (SMALL_3D, 50, "group"),
    ],
)
def test_images_become_features_of_the_length_it_says(architecture, depth, norm):
    architecture = replace(architecture, depth=depth, norm=norm, channels=2)
    encoder = build_encoder(architecture)
    features = encoder(torch.rand(2, 2, *architecture.patch))
    assert features.shape == (2, architecture.feature_dim)
    features.sum().backward()
    assert all(p.grad is not None for p in encoder.parameters())


def test_the_default_encoder_has_the_weights_of_a_narrow_resnet_10():
    def weights(architecture):
        with torch.device("meta"):
            return sum(p.numel() for p in build_encoder(architecture).parameters())

    assert weights(replace(SMALL, width=16)) == 307_248
    # torchvision's ResNet-18 without its head has 11,176,512: with 3 channels and a 7 x 7 stem.
    assert weights(replace(SMALL, depth=18, width=64, channels=3, patch=(64, 64))) == 11_176_512
    assert weights(replace(SMALL, depth=50, width=64, channels=3, patch=(64, 64))) == 23_508_032
    assert weights(replace(SMALL, depth=101, width=64, channels=3, patch=(64, 64))) == 42_500_160
    assert weights(replace(SMALL, depth=152, width=64, channels=3, patch=(64, 64))) == 58_143_808


def test_the_stem_keeps_small_patches_whole_and_shrinks_large_ones_fourfold():
    small, large = build_encoder(replace(SMALL, patch=(40, 28))), build_encoder(replace(SMALL, patch=(41, 28)))
    seen = []
    for encoder in (small, large):
        encoder.layer1.register_forward_pre_hook(lambda module, inputs: seen.append(tuple(inputs[0].shape[2:])))
        encoder(torch.rand(2, 1, 40, 40))
    assert seen == [(40, 40), (10, 10)]


@both
def test_group_norm_replaces_batch_norm_everywhere(architecture):
    architecture = replace(architecture, norm="group")
    encoder = build_encoder(architecture)
    norms = [m for m in encoder.modules() if isinstance(m, nn.GroupNorm)]
    assert not any(isinstance(m, nn.BatchNorm2d | nn.BatchNorm3d) for m in encoder.modules())
    assert len(norms) == 1 + 4 * 2 + 3
    batch = torch.rand(3, 1, *architecture.patch)
    torch.testing.assert_close(encoder(batch)[:1], encoder(batch[:1]), atol=1e-5, rtol=1e-4)


@both
def test_channels_last_is_the_same_network_and_survives_loading_and_copying(architecture):
    last = torch.channels_last if architecture.spatial_dims == 2 else torch.channels_last_3d
    encoder = build_encoder(architecture).eval()
    plain = build_encoder(architecture).eval().to(memory_format=torch.contiguous_format)
    plain.load_state_dict(encoder.state_dict())
    loaded = build_encoder(architecture).eval()
    loaded.load_state_dict({name: tensor.contiguous() for name, tensor in encoder.state_dict().items()})
    batch = torch.rand(2, 1, *architecture.patch)
    for other in (plain, loaded, copy.deepcopy(encoder)):
        torch.testing.assert_close(other(batch), encoder(batch), atol=1e-5, rtol=1e-4)
    for same in (encoder, loaded, copy.deepcopy(encoder)):
        seen = []
        for layer in (same.conv1, same.layer1, same.layer4[0].conv2):
            layer.register_forward_hook(lambda m, i, out, seen=seen: seen.append(out.is_contiguous(memory_format=last)))
        same(batch.repeat(1, 1, *[2] * architecture.spatial_dims))
        assert seen == [True] * 3


@both
def test_its_keys_are_those_of_monais_resnet(architecture):
    from monai.networks.nets.resnet import ResNet

    theirs = ResNet(
        "basic",
        [1, 1, 1, 1],
        [8, 16, 32, 64],
        architecture.spatial_dims,
        1,
        3,
        feed_forward=False,
        bias_downsample=False,
    )
    assert build_encoder(architecture).state_dict().keys() == theirs.state_dict().keys()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"depth": 20}, "depth 20.*10, 18, 34, 50, 101, 152"),
        ({"spatial_dims": 4}, "4 spatial dimensions"),
        ({"norm": "layer"}, "'layer'.*batch, group"),
        ({"norm": "group", "width": 12}, "width 12.*multiple of 8"),
        ({"patch": (16, 16, 16)}, "patch .*2D"),
        ({"width": 0}, "width 0"),
        ({"patch": (16, 0)}, "above 0"),
    ],
)
def test_what_cannot_be_built_is_refused_by_name(change, message):
    with pytest.raises(UsageError, match=message):
        replace(SMALL, **change)
