"""Networks of other libraries give the features that these give."""

import pytest
import torch
import torch.nn.functional as F
from monai.networks import nets
from torch import nn

from medclr.errors import MedclrError, UsageError
from medclr.models import Architecture, build_encoder, load_bundle, save_bundle
from medclr.models.encoder import stages
from medclr.models.named import in_3d, variants
from medclr.models.weights import fit_weights

DETAILS = {
    "spec": {},
    "axis_order": "",
    "method": "adopted",
    "hyperparameters": {},
    "code_version": "0.1.0",
    "manifest_hash": None,
    "holdout": {},
    "seen": {},
}

MONAI = {
    "resnet10": (lambda: nets.resnet10(spatial_dims=3, n_input_channels=1, num_classes=3), 3, "fc"),
    "resnet10-nobias": (
        lambda: nets.resnet10(spatial_dims=2, n_input_channels=1, bias_downsample=False),
        2,
        "fc",
    ),
    "resnet10-a": (lambda: nets.resnet10(spatial_dims=3, n_input_channels=1, shortcut_type="A"), 3, "fc"),
    "densenet121": (lambda: nets.DenseNet121(2, 1, 5), 2, "class_layers.out"),
    "efficientnet-b0": (lambda: nets.EfficientNetBN("efficientnet-b0", False, True, 2, 1, 7), 2, "_fc"),
    "seresnet50": (lambda: nets.SEResNet50(spatial_dims=2, in_channels=1, num_classes=2), 2, "last_linear"),
}


def seen_by(head: nn.Module, network: nn.Module, images: torch.Tensor) -> torch.Tensor:
    """What the head of a network is given."""
    seen = []
    hook = head.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        network.eval()(images)
    hook.remove()
    return seen[0]


def settled(network: nn.Module, *shape: int) -> nn.Module:
    """With running statistics that a fresh network does not have."""
    with torch.no_grad():
        network.train()(torch.rand(*shape))
    return network


@pytest.mark.parametrize("name", MONAI)
def test_monais_networks_give_what_their_head_is_given(name):
    make, dims, head = MONAI[name]
    torch.manual_seed(0)
    patch = (32 if dims == 2 else 12,) * dims
    theirs = settled(make(), 4, 1, *patch)
    architecture = Architecture.named(f"monai:{name}", dims, 1, patch, mean=0.4, std=0.5)
    encoder = build_encoder(architecture).eval()
    said = fit_weights(encoder, theirs.state_dict())
    assert said == [f"left out: {head.partition('.')[0]}"]
    images = torch.rand(3, 1, *patch)
    expected = seen_by(theirs.get_submodule(head), theirs, (images - 0.4) / 0.5)
    with torch.no_grad():
        features = encoder(images)
    assert features.shape == (3, architecture.feature_dim)
    torch.testing.assert_close(features, expected, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("name", ["resnet18", "vit_tiny_patch16_224.augreg_in21k", "convnext_atto"])
def test_timms_networks_give_what_their_head_is_given(timm, name):
    torch.manual_seed(0)
    size = {"img_size": 32} if name.startswith("vit") else {}
    theirs = settled(timm.create_model(name, pretrained=False, num_classes=4, in_chans=3, **size), 4, 3, 32, 32)
    architecture = Architecture.named(f"timm:{name}", 2, 1, (32, 32), *([0.5] * 2))
    encoder = build_encoder(architecture).eval()
    said = fit_weights(encoder, theirs.state_dict())
    assert said[0] == "its stem, trained on 3 channels, was summed over them"
    images = torch.rand(3, 1, 32, 32)
    colours = ((images - 0.5) / 0.5).expand(-1, 3, -1, -1)
    with torch.no_grad():
        theirs.eval()
        expected = theirs.forward_head(theirs.forward_features(colours), pre_logits=True)
        features = encoder(images)
    assert features.shape == (3, architecture.feature_dim)
    torch.testing.assert_close(features, expected, atol=1e-4, rtol=1e-3)
    assert encoder.greys() == ((0.5, 0.5) if name.startswith("vit") else (0.449, 0.226))


def test_every_weight_is_in_one_stage_also_those_that_no_layer_has(timm):
    for name, at_least in (("timm:vit_tiny_patch16_224", 14), ("monai:densenet121", 8), ("monai:resnet10", 6)):
        encoder = build_encoder(Architecture.named(name, 2, 1, (32, 32)))
        parts = [[id(p) for p in part.parameters()] for part in stages(encoder)]
        assert sorted(one for part in parts for one in part) == sorted(id(p) for p in encoder.parameters())
        assert sum(map(bool, parts)) >= at_least, name


def test_a_bundle_of_one_computes_what_was_saved_with_what_is_no_weight(timm, tmp_path):
    """EVA's rotary positions are buffers that no file has."""
    architecture = Architecture.named("timm:eva02_tiny_patch14_224", 2, 1, (28, 28), 0.4, 0.3)
    encoder = build_encoder(architecture).eval()
    assert {name for name, _ in encoder.named_buffers()} - encoder.state_dict().keys()
    save_bundle(tmp_path / "encoder", encoder, nn.Sequential(), architecture, DETAILS)
    torch.manual_seed(3)
    before = torch.get_rng_state()
    loaded = load_bundle(tmp_path)
    assert torch.equal(torch.get_rng_state(), before)
    assert loaded.architecture == architecture
    images = torch.rand(2, 1, 28, 28)
    with torch.no_grad():
        torch.testing.assert_close(loaded.encoder(images), encoder(images))
        torch.testing.assert_close(loaded.middle(0)(images), encoder(images))
    with pytest.raises(UsageError, match="layer 1 of the projector: weights from elsewhere come without one; choose 0"):
        loaded.middle(1)


def test_what_there_is_not_is_refused_by_name(timm):
    for network, dims, side, words in (
        ("monai:resnet11", 2, 32, "choose timm:NAME, or monai: and one of resnet10, .*densenet121"),
        ("other:resnet10", 2, 32, "network other:resnet10: choose"),
        ("timm:nonesuch", 2, 32, "timm .* has none of this name"),
        ("timm:hf-hub:somebody/network", 2, 32, "has none of this name"),
        ("timm:resnet18", 3, 32, "timm's are 2D, the images are 3D"),
        ("timm:convnext_atto", 2, 28, "takes no patch of 28 × 28 .*use a larger"),
        ("timm:vit_tiny_patch16_224", 2, 8, "8 × 8"),
    ):
        with pytest.raises(UsageError, match=words):
            _ = Architecture.named(network, dims, 1, (side,) * dims).feature_dim


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (ModuleNotFoundError("No module named 'timm'"), "timm is not installed; pip install"),
        (RuntimeError("operator torchvision::nms does not exist"), r"cannot be imported \(operator torchvision::nms"),
    ],
)
def test_a_timm_that_is_not_there_or_broken_is_one_line_with_the_fix(monkeypatch, error, words):
    import builtins

    real = builtins.__import__

    def refuse(name, *args, **kwargs):
        if name == "timm":
            raise error
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(MedclrError, match=words) as caught:
        build_encoder(Architecture.named("timm:resnet18", 2, 1, (28, 28)))
    assert "pip install 'medclr[timm]'" in str(caught.value)
    assert "\n" not in str(caught.value)


def endless(monkeypatch, axis):
    """Let convolutions see, beyond the ends of one axis, more of what is there, instead of zeros."""

    def forward(self, x):
        beyond = [0 if other != axis else self.padding[axis] for other in (2, 2, 1, 1, 0, 0)]
        within = tuple(0 if other == axis else self.padding[other] for other in range(3))
        x = F.pad(x, beyond, mode="replicate")
        return F.conv3d(x, self.weight, self.bias, self.stride, within, self.dilation, self.groups)

    monkeypatch.setattr(nn.Conv3d, "forward", forward)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_inflated_it_gives_of_one_slice_repeated_what_the_2d_network_gives_of_the_slice(axis, monkeypatch):
    """To 1e-4 of the features, where no zeros beyond the ends come in; and as it is, in the middle of a long volume."""
    flat = nets.resnet10(spatial_dims=2, n_input_channels=1, bias_downsample=False, conv1_t_stride=2)
    flat = settled(flat, 4, 1, 24, 32).eval()
    weights = flat.state_dict()
    flat.fc = nn.Identity()
    network, greys = in_3d("timm:resnet18.a1_in1k")
    assert (network, greys) == ("monai:resnet18-stride2", (0.449, 0.226))
    slices = torch.rand(2, 1, 24, 32)
    volumes = slices.unsqueeze(2 + axis).repeat_interleave(16, 2 + axis)
    solid = build_encoder(Architecture.named("monai:resnet10-stride2", 3, 1, tuple(volumes.shape[2:]))).eval()
    fit_weights(solid, weights, axis)
    with torch.no_grad():
        expected, ends = flat(slices), solid(volumes)
        # A long one, through the stem and the first stage, whose middle sees nothing of the ends.
        long = slices.unsqueeze(2 + axis).repeat_interleave(64, 2 + axis)
        first = [
            body.layer1(body.maxpool(body.act(body.bn1(body.conv1(images)))))
            for body, images in ((flat, slices), (solid.body, long))
        ]
        middle = first[1].select(2 + axis, first[1].shape[2 + axis] // 2)
        torch.testing.assert_close(middle, first[0], rtol=1e-4, atol=1e-4)
        assert not torch.allclose(ends, expected, rtol=1e-2)
        endless(monkeypatch, axis)
        torch.testing.assert_close(solid(volumes), expected, rtol=1e-4, atol=1e-4)


def test_timms_resnet_inflated_gives_what_timm_gives(timm, monkeypatch):
    theirs = settled(timm.create_model("resnet18", pretrained=False, num_classes=5), 4, 3, 32, 32).eval()
    network, _ = in_3d("timm:resnet18")
    solid = build_encoder(Architecture.named(network, 3, 1, (16, 32, 32))).eval()
    said = fit_weights(solid, theirs.state_dict(), 0)
    assert said == [
        "its stem, trained on 3 channels, was summed over them",
        "its 20 convolutions, trained in 2D, were repeated along an axis and divided by as many",
        "left out: fc",
    ]
    slices = torch.rand(2, 1, 32, 32)
    endless(monkeypatch, 0)
    with torch.no_grad():
        expected = theirs.forward_head(theirs.forward_features(slices.expand(-1, 3, -1, -1)), pre_logits=True)
        found = solid(slices[:, :, None].expand(-1, -1, 16, -1, -1))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_of_timms_only_the_resnets_that_monai_has_too_can_be_inflated():
    assert in_3d("timm:tv_resnet50")[0] == "monai:resnet50-stride2"
    assert in_3d("monai:densenet121") == ("monai:densenet121", None)
    for name in ("convnext_tiny", "resnet26", "resnet50d"):
        with pytest.raises(UsageError, match=f"--inflate: timm:{name} has no form in 3D here; those of timm's"):
            in_3d(f"timm:{name}")


def test_the_names_of_monais_resnets_also_stand_for_other_shortcuts():
    assert variants("monai:resnet18") == ["monai:resnet18", "monai:resnet18-nobias", "monai:resnet18-a"]
    assert variants("monai:resnet18-a") == ["monai:resnet18-a"]
    assert variants("timm:resnet18") == ["timm:resnet18"]
    assert variants("monai:resnet50-nobias") == ["monai:resnet50-nobias"]
    # RadImageNet's, under whatever name a ResNet-50 is given.
    assert variants("monai:resnet50")[-1] == "monai:resnet50-radimagenet"
    for name in ("timm:resnet50", "timm:tv_resnet50", "timm:resnet50.a1_in1k", "monai:resnet50-stride2"):
        assert variants(name) == [name, "monai:resnet50-radimagenet"]
    assert variants("timm:resnet50d") == ["timm:resnet50d"]


def resnet50() -> nn.Module:
    """With torchvision's names and strides."""
    torch.manual_seed(0)
    how = {"spatial_dims": 2, "n_input_channels": 3, "bias_downsample": False, "conv1_t_stride": 2}
    return settled(nets.resnet50(**how, num_classes=3), 4, 3, 48, 48).eval()


def features_of(network: str, weights: dict[str, torch.Tensor], images: torch.Tensor) -> torch.Tensor:
    encoder = build_encoder(Architecture.named(network, 2, 1, (48, 48))).eval()
    fit_weights(encoder, weights)
    with torch.no_grad():
        features: torch.Tensor = encoder(images)
    return features


def test_radimagenets_resnet50_for_pytorch_has_its_parts_by_number(timm):
    """As BMEII-AI/RadImageNet cuts it from torchvision's (acl/acl_pytorch_train.ipynb, Backbone)."""
    theirs, images = resnet50(), torch.rand(2, 1, 48, 48)
    cut = nn.ModuleDict({"backbone": nn.Sequential(*list(theirs.children())[:9])}).state_dict()
    assert {"backbone.0.weight", "backbone.1.bias", "backbone.4.0.conv1.weight", "backbone.7.2.bn3.bias"} <= cut.keys()
    for network in ("timm:resnet50", "monai:resnet50-stride2"):
        expected = features_of(network, theirs.state_dict(), images)
        torch.testing.assert_close(features_of(network, cut, images), expected, rtol=1e-5, atol=1e-5)
    expected = seen_by(theirs.fc, theirs, images.expand(-1, 3, -1, -1))
    torch.testing.assert_close(features_of("timm:resnet50", cut, images), expected, rtol=1e-4, atol=1e-5)


def biased(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Those of a ResNet, with a bias for each of its convolutions."""
    kernels = {name: tensor for name, tensor in weights.items() if tensor.ndim == 4}
    return weights | {name.replace("weight", "bias"): 0.1 * torch.randn(len(k)) for name, k in kernels.items()}


def keras_resnet50(weights: dict[str, torch.Tensor], images: torch.Tensor) -> torch.Tensor:
    """keras.applications.ResNet50 without its head, of (B, 3, H, W), from the tensors alone."""

    def block(x: torch.Tensor, conv: str, bn: str, stride: int = 1, padding: int = 0) -> torch.Tensor:
        x = F.conv2d(x, weights[f"{conv}.weight"], weights[f"{conv}.bias"], stride, padding)
        of = [weights[f"{bn}.{what}"] for what in ("running_mean", "running_var", "weight", "bias")]
        return F.batch_norm(x, *of, eps=1.001e-5)

    x = block(images, "conv1", "bn1", 2, 3).relu()
    x = F.max_pool2d(F.pad(x, (1, 1, 1, 1)), 3, 2)
    for stage, blocks in enumerate((3, 4, 6, 3), 1):
        for number in range(blocks):
            at, stride = f"layer{stage}.{number}", 2 if stage > 1 and number == 0 else 1
            y = block(x, f"{at}.conv1", f"{at}.bn1", stride).relu()
            y = block(y, f"{at}.conv2", f"{at}.bn2", 1, 1).relu()
            y = block(y, f"{at}.conv3", f"{at}.bn3")
            x = block(x, f"{at}.downsample.0", f"{at}.downsample.1", stride) if number == 0 else x
            x = (x + y).relu()
    return x.mean((2, 3))


def test_radimagenets_resnet50_from_keras_has_biases_and_strides_of_its_own():
    """As Project-MONAI/perceptual-models has it (radimagenet/resnet.py)."""
    weights, images = biased(resnet50().state_dict()), torch.rand(2, 1, 48, 48)
    expected = keras_resnet50(weights, images.expand(-1, 3, -1, -1))
    features = features_of("monai:resnet50-radimagenet", weights, images)
    torch.testing.assert_close(features, expected, rtol=1e-4, atol=1e-5)
    # A bias before batch norm is its running mean less that bias.
    plain = {name: tensor.clone() for name, tensor in weights.items() if name in resnet50().state_dict()}
    for name in weights.keys() - plain.keys():
        bn = name.replace("conv", "bn").replace("downsample.0", "downsample.1").replace("bias", "running_mean")
        plain[bn] -= weights[name]
    unbiased = plain | {name: torch.zeros_like(weights[name]) for name in weights.keys() - plain.keys()}
    again = features_of("monai:resnet50-radimagenet", unbiased, images)
    torch.testing.assert_close(again, features, rtol=1e-5, atol=1e-5)
    # Its strides are not torchvision's, whose names these weights would fit as well.
    assert not torch.allclose(features_of("monai:resnet50-stride2", plain, images), features, rtol=1e-2)
    assert build_encoder(Architecture.named("monai:resnet50-radimagenet", 2, 1, (48, 48))).greys() == (0.449, 1.0)


def test_an_architecture_of_ones_own_is_written_as_it_always_was():
    own = Architecture(depth=10, width=8, spatial_dims=2, channels=1, norm="batch", patch=(16, 16))
    assert own.to_dict() == {
        "depth": 10, "width": 8, "spatial_dims": 2, "channels": 1, "norm": "batch", "patch": (16, 16)
    }  # fmt: skip
    assert Architecture.of(own.to_dict()) == own
    other = Architecture.named("monai:resnet10", 2, 1, (16, 16), 0.4, 0.5)
    assert Architecture.of(other.to_dict()) == other
    assert (own.own, own.title) == (True, "ResNet-10 of width 8")
    assert (other.own, other.title) == (False, "resnet10 of MONAI")
