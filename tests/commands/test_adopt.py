"""Weights from elsewhere, through every command that an encoder goes through."""

import json
import os
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch
from monai.networks import nets
from torch import nn

import medclr
from medclr.cli import main
from medclr.commands.efficiency import _started
from medclr.config import AdoptConfig
from medclr.data.phantoms import write_phantoms
from medclr.errors import UsageError

SPEC = """
name: tiny
modality: [CT]
spatial_dims: 2
slices: axial
slice_step_mm: 20
normalisation: window
window: [-1000, 400]
clip: [-1024, 1500]
sizing: spacing
max_patch: 12
preset: ct
"""
FEW = ["--resamples", "200", "--min-steps", "2", "--max-steps", "2"]
UNKNOWN = (
    "Whether test patients or test images were seen is not checkable for other (weights from elsewhere, trained on "
    "“23 sets of CT & MR”, it is said): no record of patients and images came with them."
)


@pytest.fixture(scope="module")
def adopted(tmp_path_factory):
    """A folder with phantoms, a pretrain run, and an encoder of other weights that was adopted like it."""
    folder = tmp_path_factory.mktemp("adopt")
    before = Path.cwd()
    os.chdir(folder)
    write_phantoms(folder / "phantoms", patients=36, seed=1)
    (folder / "tiny.yaml").write_text(SPEC)
    words = ["--data", "phantoms/dicom", "--holdout", "phantoms/labels.csv", "--spec", "tiny.yaml", "--key-file", "key"]
    settings = ["--epochs", "1", "--batch-size", "32", "--width", "8", "--workers", "0"]
    assert main(["pretrain", *words, *settings, "--out", "runs/own"]) == 0
    torch.manual_seed(0)
    theirs = nets.resnet10(spatial_dims=2, n_input_channels=1, num_classes=2, shortcut_type="A")
    torch.save({"state_dict": nn.DataParallel(theirs).state_dict()}, "theirs.pth")
    named = ["--name", "other", "--trained-on", "23 sets of CT & MR", "--mean", "0.2", "--std", "0.3"]
    words = ["--network", "monai:resnet10", "--weights", "theirs.pth", "--like", "runs/own"]
    assert main(["adopt", *words, *named, "--out", "runs/other"]) == 0
    yield folder
    os.chdir(before)


def record(path: str):
    return json.loads(Path(path).read_text())


def test_it_is_an_encoder_like_any_other(adopted):
    own, other = medclr.load_encoder("runs/own"), medclr.load_encoder("runs/other")
    assert other.spec == own.spec
    assert own.bundle.details.keys() == other.bundle.details.keys()
    assert own.bundle.details["axis_order"] == other.bundle.details["axis_order"]
    # The weights say which of MONAI's shortcuts they are for.
    assert other.bundle.architecture.network == "monai:resnet10-a"
    theirs = nets.resnet10(spatial_dims=2, n_input_channels=1, num_classes=2, shortcut_type="A").eval()
    theirs.load_state_dict({k.removeprefix("module."): v for k, v in torch.load("theirs.pth")["state_dict"].items()})
    theirs.fc = nn.Identity()
    images = torch.rand(2, 1, *other.spec.patch)
    with torch.no_grad():
        torch.testing.assert_close(other(images), theirs((images - 0.2) / 0.3), atol=1e-4, rtol=1e-3)


def test_it_has_arms_of_its_own_in_a_curve_which_says_what_is_not_known(adopted):
    words = ["--labels", "phantoms/labels.csv", "--encoder", "runs/own", "runs/other", "--fractions", "1"]
    arms = ["--arms", "scratch", "pca", "linear", "full", "--draws", "1", "--jobs", "1", "--tuned", "lp-ft"]
    assert main(["efficiency", *words, *arms, *FEW, "--out", "runs/curve"]) == 0
    points = pd.read_csv("runs/curve/curve.csv")
    assert set(points["arm"]) == {"scratch", "pca", "simclr-linear", "simclr-full", "other-linear", "other-full"}
    report = record("runs/curve/report.json")["context"]
    clean = "Pre-training saw none of the test patients and none of the test images."
    assert report["leakage"] == f"{clean} {UNKNOWN}"
    assert report["near_duplicates"]["test_images"] is None
    assert report["methods"][1] == (
        "other: a 2D resnet10-a of MONAI that sees 12 × 12 pixels of axial slices, whose mean is the volume's; its "
        "weights are from elsewhere, trained on “23 sets of CT & MR”, it is said, and whether with labels is not "
        "recorded. Names lost their prefix module. "
        "Left out: fc. It is given grey values less 0.2, divided by 0.3."
    )
    assert "scratch is the ResNet-10 of width 8 of simclr from random weights." in report["methods"]
    assert [(e["group"], e["method"], e["seed"]) for e in report["encoders"]] == [
        ("simclr", "SimCLR", 0),
        ("other", "weights from elsewhere", None),
    ]
    page = Path("runs/curve/report.html").read_text()
    assert "Encoder of other: weights from elsewhere, fingerprint" in page
    assert "not checkable for other" in page
    assert "23 sets of CT &amp; MR" in page


def test_alone_it_goes_through_every_command_with_the_volumes_of_the_run_that_it_is_like(adopted, capsys):
    labels = ["--labels", "phantoms/labels.csv"]
    assert main(["finetune", *labels, "--encoder", "runs/other", "--resamples", "200", "--out", "runs/ft"]) == 0
    metrics = record("runs/ft/metrics.json")
    assert metrics["leakage"] == UNKNOWN
    assert metrics["near_duplicates"]["test_images"] is None
    assert medclr.load_classifier("runs/ft").pretrained_on.unrecorded
    assert main(["embed", "--encoder", "runs/other", "--out", "runs/embed"]) == 0
    assert pd.read_parquet("runs/embed/embeddings.parquet").filter(regex=r"^f\d+$").shape[1] == 512
    capsys.readouterr()
    assert main(["distill", "--teacher", "runs/ft", *FEW, "--out", "runs/small"]) == 0
    assert "student: ResNet-10 of width 16, " in capsys.readouterr().out
    metrics = record("runs/small/metrics.json")
    assert metrics["leakage"] == UNKNOWN
    assert metrics["near_duplicates"]["test_images"] is None
    assert main(["predict", "--data", "phantoms/dicom", "--classifier", "runs/ft", "--out", "runs/predict"]) in (0, 3)
    assert set(pd.read_csv("runs/predict/predictions.csv")["in_pretraining"]) == {"not checkable"}
    words = ["finetune", *labels, "--encoder", "runs/other", "--projector-layer", "1", "--out", "runs/no"]
    assert main(words) == 2
    assert "weights from elsewhere come without one; choose 0" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["monai:resnet18", "--like", "runs/own"],
            "45 of 103 weights fit; 58 missing: module.layer1.1.conv1.weight",
        ),
        (
            ["monai:seresnet50", "--like", "runs/own"],
            "are not the weights of monai:seresnet50 for 12 × 12 voxels: name theirs with --network, or a spec of "
            "their patch. Names are read as timm or MONAI has them",
        ),
        (["timm:resnet10t", "--like", "runs/own"], "network timm:resnet10t: timm"),
        (["monai:resnet10", "--spec", "tiny.yaml"], "leaves its patch to the data"),
        (["monai:resnet10", "--like", "runs/nowhere"], "--like runs/nowhere: no such folder"),
    ],
)
def test_what_cannot_be_adopted_leaves_nothing(adopted, capsys, monkeypatch, words, message):
    monkeypatch.setitem(sys.modules, "timm", None)  # as where it is not installed; another test may have loaded it
    assert main(["adopt", "--weights", "theirs.pth", "--network", *words, "--out", "runs/refused"]) in (1, 2)
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("medclr: ")]
    assert message in line
    assert not Path("runs/refused").exists()


def test_a_spec_or_a_bundle_alone_will_do(adopted):
    Path("whole.yaml").write_text(SPEC + "patch: [12, 12]\nspacing_mm: [3, 3]\n")
    shutil.copytree("runs/own/encoder", "bundle")
    words = ["adopt", "--weights", "theirs.pth", "--network", "monai:resnet10-a"]
    assert main([*words, "--spec", "whole.yaml", "--out", "runs/by_spec"]) == 0
    assert main([*words, "--like", "bundle", "--out", "runs/by_bundle"]) == 0
    assert medclr.load_encoder("runs/by_spec").spec.spacing_mm == (3, 3)
    assert medclr.load_encoder("runs/by_bundle").spec == medclr.load_encoder("runs/own").spec
    assert medclr.load_encoder("runs/by_spec").bundle.details["seen"]["unrecorded"] == (
        "resnet10_a (weights from elsewhere, trained on data that nobody named)"
    )


SOLID = SPEC.replace("spatial_dims: 2", "spatial_dims: 3").replace("slices: axial", "").replace("slice_step_mm: 20", "")


def test_an_encoder_of_slices_becomes_one_of_volumes_with_its_record(adopted, capsys, monkeypatch):
    Path("solid.yaml").write_text(SOLID + "patch: [12, 12, 8]\nspacing_mm: [3, 3, 3]\n")
    words = ["adopt", "--weights", "runs/own", "--inflate", "axial", "--spec", "solid.yaml", "--name", "deep"]
    assert main([*words, "--out", "runs/deep"]) == 0
    out = capsys.readouterr().out
    change = (
        "its 12 convolutions, trained in 2D, were repeated along the axis across axial planes and divided by as many"
    )
    assert change in out.splitlines()
    assert "all 60 weights match" in out
    assert "no record says" not in out
    own, deep = medclr.load_encoder("runs/own").bundle, medclr.load_encoder("runs/deep").bundle
    assert deep.architecture == replace(own.architecture, spatial_dims=3, patch=(12, 12, 8))
    assert deep.details["seen"] == own.details["seen"]
    assert deep.details["axis_order"] == "channel, right, anterior, superior"
    assert deep.details["start"]["fingerprint"] == own.digest[:16]
    assert _started(deep.details).startswith(" It began with the weights that SimCLR had trained for 1 epochs")
    assert all(torch.equal(own.projector.state_dict()[k], v) for k, v in deep.projector.state_dict().items())
    # Zeros beyond the ends of the axis are left out by looking at a plane and not beyond.
    slices = torch.rand(3, 1, 12, 12)
    flat, solid = own.encoder.conv1(slices), deep.encoder.conv1(slices[..., None].expand(-1, -1, -1, -1, 8))
    torch.testing.assert_close(solid[..., 4], flat, rtol=1e-4, atol=1e-5)
    # It can be trained further, as any other.
    start = ["--encoder", "runs/deep", "--epochs", "1", "--batch-size", "8", "--workers", "0", "--key-file", "key"]
    assert main(["pretrain", "--data", "phantoms/dicom", *start, "--out", "runs/deeper"]) in (0, 3)
    after = medclr.load_encoder("runs/deeper").bundle
    assert after.architecture == deep.architecture
    assert after.details["start"]["start"] == deep.details["start"]


def test_a_2d_file_becomes_an_encoder_of_volumes(adopted, capsys):
    Path("solid.yaml").write_text(SOLID + "patch: [12, 12, 8]\nspacing_mm: [3, 3, 3]\n")
    torch.manual_seed(1)
    theirs = nets.resnet18(spatial_dims=2, n_input_channels=3, bias_downsample=False, conv1_t_stride=2)
    torch.save(theirs.state_dict(), "colour.pth")
    words = ["adopt", "--network", "timm:resnet18", "--weights", "colour.pth", "--spec", "solid.yaml"]
    assert main([*words, "--inflate", "coronal", "--out", "runs/solid"]) == 0
    out = capsys.readouterr().out
    assert "its stem, trained on 3 channels, was summed over them" in out
    assert "its 20 convolutions, trained in 2D, were repeated along the axis across coronal planes" in out
    assert "it is given grey values less 0.449, divided by 0.226" in out
    bundle = medclr.load_encoder("runs/solid").bundle
    assert bundle.architecture.network == "monai:resnet18-stride2"
    assert bundle.details["seen"]["unrecorded"]
    stem, grey = bundle.encoder.body.conv1.weight, theirs.conv1.weight.sum(1, keepdim=True)
    torch.testing.assert_close(stem, grey[:, :, :, None].expand(-1, -1, -1, 7, -1) / 7)


@pytest.mark.parametrize("inflate", [False, True])
def test_a_resnet50_of_radimagenet_is_adopted_in_either_layout(adopted, capsys, inflate):
    Path("solid.yaml").write_text(SOLID + "patch: [12, 12, 8]\nspacing_mm: [3, 3, 3]\n")
    Path("flat.yaml").write_text(SPEC + "patch: [12, 12]\nspacing_mm: [3, 3]\n")
    theirs = nets.resnet50(spatial_dims=2, n_input_channels=3, bias_downsample=False, conv1_t_stride=2)
    cut = nn.Sequential(*list(theirs.children())[:9])
    torch.save({f"backbone.{name}": tensor for name, tensor in cut.state_dict().items()}, "bmeii.pt")
    plain = {name: tensor for name, tensor in theirs.state_dict().items() if not name.startswith("fc.")}
    kernels = {name: tensor for name, tensor in plain.items() if tensor.ndim == 4}
    biases = {name.replace("weight", "bias"): torch.rand(len(tensor)) for name, tensor in kernels.items()}
    torch.save(plain | biases, "notop.pth")
    for file, name, network, greys, n_weights in (
        ("bmeii.pt", "timm:resnet50" if inflate else "monai:resnet50-stride2", "monai:resnet50-stride2", "", 265),
        ("notop.pth", "timm:resnet50" if inflate else "monai:resnet50", "monai:resnet50-radimagenet", "0.449", 318),
    ):
        spec = ["--spec", "solid.yaml", "--inflate", "axial"] if inflate else ["--spec", "flat.yaml"]
        out = f"runs/{Path(file).stem}{inflate}"
        assert main(["adopt", "--network", name, "--weights", file, *spec, "--out", out]) == 0
        said = capsys.readouterr().out
        assert f"all {n_weights} weights match" in said
        assert ("its parts, by number in the file, were named by their order" in said) == (file == "bmeii.pt")
        assert not greys or f"it is given grey values less {greys}, divided by 1" in said
        bundle = medclr.load_encoder(out).bundle
        assert bundle.architecture.network == network
        last = bundle.encoder.body.layer4[2].conv3
        torch.testing.assert_close(last.weight.flatten(2), theirs.layer4[2].conv3.weight.flatten(2))
        assert (last.bias is None) == (file == "bmeii.pt")
    fewer = plain | biases
    del fewer["layer4.2.bn3.bias"]
    torch.save(fewer, "fewer.pth")
    assert main(["adopt", "--network", name, "--weights", "fewer.pth", *spec, "--out", "runs/refused"]) == 1
    assert "1 missing: layer4.2.bn3.bias" in capsys.readouterr().err
    assert not Path("runs/refused").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--weights", "theirs.pth", "--spec", "solid.yaml"], "--weights theirs.pth: name the network whose weights"),
        (["--weights", "runs/own", "--spec", "solid.yaml"], "goes wherever --encoder is, as it is; give --inflate"),
        (
            ["--weights", "runs/own", "--inflate", "axial", "--like", "runs/own"],
            "a 3D encoder, and the spec tiny",
        ),
        (
            ["--weights", "runs/own", "--inflate", "coronal", "--spec", "solid.yaml"],
            "saw axial slices; give --inflate",
        ),
        (
            ["--weights", "runs/own", "--network", "monai:resnet10", "--inflate", "axial", "--spec", "solid.yaml"],
            "--network monai:resnet10: an encoder bundle says what it is; leave it out",
        ),
        (["--weights", "runs/own", "--inflate", "axial", "--spec", "large.yaml"], "so name a spec of about that patch"),
        (
            ["--weights", "theirs.pth", "--network", "timm:vit", "--inflate", "axial", "--spec", "solid.yaml"],
            "--inflate: timm:vit has no form in 3D here",
        ),
        (
            ["--weights", "trap.pth", "--network", "monai:resnet10", "--inflate", "axial", "--spec", "solid.yaml"],
            "--weights trap.pth: not a checkpoint of tensors alone, and others can run code when they are read",
        ),
        (
            ["--weights", "nothing.pth", "--network", "monai:resnet10", "--inflate", "axial", "--spec", "solid.yaml"],
            "not one of its 1 names is of this network: it has something, and wanted are conv1.weight, bn1.w",
        ),
    ],
)
def test_what_cannot_be_inflated_leaves_nothing(adopted, capsys, words, message):
    Path("solid.yaml").write_text(SOLID + "patch: [12, 12, 8]\nspacing_mm: [3, 3, 3]\n")
    Path("large.yaml").write_text(SOLID + "patch: [48, 48, 48]\nspacing_mm: [3, 3, 3]\n")
    torch.save({"state_dict": {"conv1.weight": Trap()}}, "trap.pth")
    torch.save({"something": torch.rand(2)}, "nothing.pth")
    assert main(["adopt", *words, "--out", "runs/refused"]) in (1, 2)
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("medclr: ")]
    assert message in line
    assert not Path("runs/refused").exists()
    assert not Path("trapped").exists()


class Trap:
    """Runs code where it is unpickled."""

    def __reduce__(self):
        return (open, ("trapped", "w"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"network": "resnet18"}, "--network resnet18: must be timm:NAME or monai:NAME"),
        ({"spec": Path("b")}, "give one of the two"),
        ({"like": None}, "give one of the two"),
        ({"name": "a-b"}, "--name a-b: must be a letter"),
        ({"trained_on": "a\nb"}, "--trained-on: must be one line"),
        ({"std": 0.0}, "--std 0.0: must be above 0"),
    ],
)
def test_settings_that_make_no_sense_are_refused(change, message):
    with pytest.raises(UsageError, match=message):
        AdoptConfig(**{"network": "monai:resnet18", "weights": Path("w"), "like": Path("a")} | change)
