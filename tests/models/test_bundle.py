import contextlib
import hashlib
import json
import math
import os
import shutil
from dataclasses import replace

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from medclr.errors import BundleError, MedclrError, UsageError
from medclr.models import Architecture, build_encoder, build_projector, check_dims, load_bundle, save_bundle
from medclr.models.bundle import fingerprint
from medclr.models.sealed import digest_of

ARCHITECTURE = Architecture(depth=10, width=8, spatial_dims=2, channels=1, norm="batch", patch=(16, 16))
DETAILS = {
    "spec": {"modality": "CT", "spatial_dims": 2, "spacing_mm": (1.0, math.nan)},
    "axis_order": "channel, towards the right, upwards",
    "method": "simclr",
    "hyperparameters": {"temperature": 0.1, "lr": 2e-3},
    "code_version": "0.1.0",
    "manifest_hash": "ab12",
    "holdout": {"val": 2, "test": 3},
    "seen": {"fingerprint": "f" * 16, "patients": ["p1", "p2"], "pixels": ["x"]},
}


def write(folder, architecture=ARCHITECTURE, details=DETAILS, layers=2, norm=True):
    torch.manual_seed(len(folder.name))
    encoder = build_encoder(architecture)
    projector = build_projector(architecture.feature_dim, hidden=24, out=8, layers=layers, norm=norm)
    # Running statistics that a fresh network does not have.
    projector(encoder(torch.rand(4, 1, *architecture.patch)))
    save_bundle(folder, encoder, projector, architecture, details)
    return encoder, projector


def rewrite(folder, change):
    """Change the weights and let the record agree with them, as another program might."""
    tensors = load_file(folder / "encoder.safetensors")
    change(tensors)
    save_file(tensors, folder / "encoder.safetensors")
    alter(folder, sha256=hashlib.sha256((folder / "encoder.safetensors").read_bytes()).hexdigest())


def alter(folder, **changes):
    record = json.loads((folder / "encoder.json").read_text())
    sign(folder, record | changes)


def sign(folder, record):
    """Write a record as `save_bundle` would, had it been given that."""
    (folder / "encoder.json").write_text(json.dumps(record | {"digest": digest_of(record)}))


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "encoder"
    write(folder)
    return folder


@pytest.fixture
def bundle(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "encoder")


def refused(path, *words):
    with pytest.raises(BundleError) as caught:
        load_bundle(path)
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message
    return message


@pytest.mark.parametrize(
    "architecture", [ARCHITECTURE, replace(ARCHITECTURE, spatial_dims=3, patch=(12, 12, 12), norm="group", depth=50)]
)
def test_what_is_loaded_computes_what_was_saved(tmp_path, architecture):
    encoder, projector = write(tmp_path / "encoder", architecture)
    loaded = load_bundle(tmp_path / "encoder")
    assert loaded.architecture == architecture
    assert not loaded.encoder.training
    assert not loaded.projector.training
    batch = torch.rand(2, 1, *architecture.patch)
    z = projector.eval()(encoder.eval()(batch))
    torch.testing.assert_close(loaded.projector(loaded.encoder(batch)), z)
    for name, tensor in encoder.state_dict().items():
        assert torch.equal(loaded.encoder.state_dict()[name], tensor)
    for name, parameter in encoder.named_parameters():
        assert loaded.encoder.get_parameter(name).stride() == parameter.stride(), name
    assert all(p.requires_grad and p.device.type == "cpu" for p in loaded.encoder.parameters())


@pytest.mark.parametrize("layers", [2, 3])
def test_the_middle_of_the_projector_can_be_taken_back(tmp_path, layers):
    encoder, projector = write(tmp_path / "encoder", layers=layers)
    loaded = load_bundle(tmp_path / "encoder")
    batch = torch.rand(3, 1, 16, 16)
    features = encoder.eval()(batch)
    torch.testing.assert_close(loaded.middle(0)(batch), features)
    hidden = features
    for layer in range(1, layers):
        linear, norm = projector.eval()[3 * layer - 3 : 3 * layer - 1]
        hidden = norm(hidden @ linear.weight.T).clamp(min=0)
        torch.testing.assert_close(loaded.middle(layer)(batch), hidden)
    for wrong in (-1, layers):
        with pytest.raises(UsageError, match=f"layer {wrong} of the projector: choose 0 to {layers - 1}"):
            loaded.middle(wrong)


def test_a_projector_without_norm_comes_back_as_it_was(tmp_path):
    encoder, projector = write(tmp_path / "encoder", norm=False)
    loaded = load_bundle(tmp_path / "encoder")
    batch = torch.rand(3, 1, 16, 16)
    features = encoder.eval()(batch)
    torch.testing.assert_close(loaded.projector(features), projector(features))
    hidden = (features @ projector[0].weight.T + projector[0].bias).clamp(min=0)
    torch.testing.assert_close(loaded.middle(1)(batch), hidden)


def test_it_holds_all_that_new_data_need_in_strict_json_and_two_files(saved):
    assert sorted(p.name for p in saved.iterdir()) == ["encoder.json", "encoder.safetensors"]
    record = json.loads((saved / "encoder.json").read_text(), parse_constant=pytest.fail)
    assert record["schema_version"] == 1
    assert record["architecture"]["patch"] == [16, 16]
    assert record["projector"] == {"hidden": 24, "out": 8, "layers": 2, "norm": True}
    assert record["spec"]["spacing_mm"] == [1.0, None]
    loaded = load_bundle(saved)
    assert loaded.details.keys() == DETAILS.keys()
    assert loaded.details["seen"] == DETAILS["seen"]
    assert loaded.digest == record["digest"]
    assert loaded.digest.startswith(fingerprint(saved))
    names = load_file(saved / "encoder.safetensors")
    assert {name.partition(".")[0] for name in names} == {"encoder", "projector"}


def test_a_run_is_taken_for_the_bundle_in_it(saved):
    assert load_bundle(saved.parent).architecture == ARCHITECTURE


def test_a_bundle_without_its_details_is_not_written(tmp_path):
    with pytest.raises(KeyError, match="seen"):
        write(tmp_path / "encoder", details={k: v for k, v in DETAILS.items() if k != "seen"})
    assert list(tmp_path.iterdir()) == []


def test_a_newer_bundle_replaces_the_older_and_leaves_nothing_beside_it(tmp_path):
    write(tmp_path / "encoder")
    (tmp_path / ".encoder.new").mkdir()  # what a killed process left
    (tmp_path / ".encoder.old").mkdir()
    write(tmp_path / "encoder", details=DETAILS | {"method": "other"})
    assert load_bundle(tmp_path).details["method"] == "other"
    assert [p.name for p in tmp_path.iterdir()] == ["encoder"]


@pytest.mark.parametrize("step", ["fsync", "mkdir"])
def test_a_failed_write_leaves_the_older_bundle_whole(tmp_path, monkeypatch, step):
    write(tmp_path / "encoder")

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, step, full)
        with pytest.raises(MedclrError, match=r"No space left on device; free some space") as caught:
            write(tmp_path / "encoder", details=DETAILS | {"method": "other"})
    assert "\n" not in str(caught.value)
    assert load_bundle(tmp_path).details["method"] == "simclr"
    assert [p.name for p in tmp_path.iterdir()] == ["encoder"]


def test_the_older_bundle_returns_when_the_newer_cannot_take_its_place(tmp_path, monkeypatch):
    write(tmp_path / "encoder")
    rename = os.rename

    def refuse(source, target):
        if str(source).endswith(".new"):
            raise OSError(5, "Input/output error")
        rename(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", refuse)
        with pytest.raises(MedclrError, match="Input/output error"):
            write(tmp_path / "encoder", details=DETAILS | {"method": "other"})
    assert load_bundle(tmp_path).details["method"] == "simclr"
    assert [p.name for p in tmp_path.iterdir()] == ["encoder"]


def test_what_is_not_there_is_named(tmp_path):
    refused(tmp_path / "nowhere", "nowhere does not exist", "pretrain run")
    refused(tmp_path, "holds no encoder bundle")


@pytest.mark.parametrize("name", ["encoder.json", "encoder.safetensors"])
def test_a_missing_file_is_named(bundle, name):
    (bundle / name).unlink()
    refused(bundle, name, "No such file", "copy the bundle again")


def test_damaged_and_truncated_weights_are_named(bundle):
    weights = bundle / "encoder.safetensors"
    content = weights.read_bytes()
    for damaged in (content[:-100], content[:-1] + bytes([content[-1] ^ 1]), b""):
        weights.write_bytes(damaged)
        refused(bundle, "encoder.safetensors", "sha256", "copy the bundle again")


def test_weights_that_are_no_safetensors_are_named_though_their_hash_agrees(bundle):
    junk = b"\xff" * 64
    (bundle / "encoder.safetensors").write_bytes(junk)
    alter(bundle, sha256=hashlib.sha256(junk).hexdigest())
    refused(bundle, "not a safetensors file")


@pytest.mark.parametrize("junk", [b"", b"{", b"\xff\xfe\x00", b"[" * 100_000], ids=["empty", "cut", "bytes", "deep"])
def test_a_record_that_is_no_json_is_named(bundle, junk):
    (bundle / "encoder.json").write_bytes(junk)
    refused(bundle, "encoder.json is not JSON")


def test_a_record_of_something_else_is_named(bundle):
    (bundle / "encoder.json").write_text("[1]")
    refused(bundle, "is not the record of one")


@pytest.mark.parametrize("version", [0, 2, "1", None])
def test_another_schema_version_is_refused(bundle, version):
    alter(bundle, schema_version=version)
    refused(bundle, f"schema version {version!r}", "reads 1")


@pytest.mark.parametrize("field", ["spec", "seen", "hyperparameters", "holdout"])
def test_a_record_that_was_edited_is_refused(bundle, field):
    """What an encoder saw decides whether a test is clean, so it is not believed unless it is as it was saved."""
    path = bundle / "encoder.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {field: {}}))
    refused(bundle, "encoder.json is not as saved")


def test_a_record_that_lacks_something_says_what(bundle):
    record = json.loads((bundle / "encoder.json").read_text())
    del record["seen"], record["architecture"]
    sign(bundle, record)
    refused(bundle, "lacks architecture, seen")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("architecture", {"depth": 20}),
        ("architecture", {"width": "wide"}),
        ("architecture", {"width": 10**30}),
        ("architecture", {"patch": None}),
        ("architecture", {"colour": 1}),
        ("projector", {"layers": 10**9}),
        ("projector", {"hidden": -1}),
        ("projector", {"bias": True}),
    ],
)
def test_a_record_of_an_impossible_network_is_refused(bundle, field, value):
    record = json.loads((bundle / "encoder.json").read_text())
    alter(bundle, **{field: record[field] | value})
    refused(bundle, "encoder.json describes no network")


def test_a_record_that_claims_a_huge_network_allocates_nothing(bundle):
    record = json.loads((bundle / "encoder.json").read_text())
    # 200 TB of weights, were they made before they are compared.
    alter(bundle, architecture=record["architecture"] | {"width": 2**20})
    refused(bundle, "of another shape")


def test_missing_unexpected_and_misshapen_weights_are_counted_and_the_first_are_named(bundle):
    def change(tensors):
        for name in [name for name in tensors if ".layer4." in name]:
            del tensors[name]
        tensors["encoder.extra"] = torch.zeros(1)
        tensors["projector.0.weight"] = torch.zeros(3, 4)
        tensors["encoder.bn1.bias"] = tensors["encoder.bn1.bias"].half()

    n = len(load_file(bundle / "encoder.safetensors"))
    rewrite(bundle, change)
    gone = [name for name in build_encoder(ARCHITECTURE).state_dict() if name.startswith("layer4")]
    refused(
        bundle,
        f"{n - len(gone) - 2} of {n} weights fit",
        f"{len(gone)} missing: encoder.{gone[0]}, encoder.{gone[1]}, encoder.{gone[2]}, …",
        "1 unexpected: encoder.extra",
        "2 of another shape: encoder.bn1.bias float16[8] for float32[8], projector.0.weight float32[3, 4] for ",
    )


def test_a_bundle_for_other_spatial_dims_is_refused(saved):
    loaded = load_bundle(saved)
    check_dims(loaded, 2)
    with pytest.raises(BundleError, match=r"bundle is 2D, these volumes are 3D; .*--encoder a 3D one"):
        check_dims(loaded, 3)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_byte_of_the_record_may_change_and_nothing_but_a_bundle_error_comes_of_it(bundle, saved, data):
    content = bytearray((saved / "encoder.json").read_bytes())
    content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    (bundle / "encoder.json").write_bytes(content)
    with contextlib.suppress(BundleError):
        assert load_bundle(bundle).details == load_bundle(saved).details
