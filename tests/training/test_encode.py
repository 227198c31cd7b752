import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from medclr.data import prepare as preparing
from medclr.data.candidate import Candidate
from medclr.data.identity import Pseudonymiser
from medclr.data.loader import eval_loader
from medclr.data.manifest import build_manifest
from medclr.data.prepare import prepare
from medclr.data.slices import by_slice
from medclr.data.spec import DataSpec
from medclr.data.store import Store
from medclr.data.volume import Volume
from medclr.errors import BundleError, UsageError
from medclr.models.bundle import save_bundle
from medclr.models.classifier import Classifier
from medclr.models.encoder import Architecture, build_encoder
from medclr.models.projector import build_projector
from medclr.training import encode as module
from medclr.training.encode import (
    corrupted,
    embed_rows,
    feature_rows,
    images,
    load_encoder,
    pixel_rows,
    training_device,
)
from medclr.transforms.corruption import CORRUPTIONS

SPECS = {
    "ct": DataSpec(
        "ct",
        ("CT",),
        3,
        "window",
        "spacing",
        64,
        "ct",
        window=(-500.0, 500.0),
        clip=(-1024.0, 3071.0),
        spacing_mm=(1.5, 1.0, 1.0),
        patch=(8, 9, 10),
    ),
    "mr": DataSpec("mr", ("MR",), 3, "zscore", "spacing", 64, "mr", spacing_mm=(1.5, 1.0, 1.0), patch=(8, 9, 10)),
    "xray": DataSpec("xray", ("DX",), 2, "percentile", "fit", 224, "xray", patch=(8, 9)),
}
SPECS["slices"] = replace(SPECS["mr"], spatial_dims=2, slices="coronal", spacing_mm=(1.5, 1.0), patch=(8, 10))


def bundle(folder, spec):
    """An encoder with random weights, but with running statistics of its own."""
    torch.manual_seed(0)
    architecture = Architecture(10, 8, spec.spatial_dims, 1, "batch", spec.patch)
    network, projector = build_encoder(architecture), build_projector(64, 16)
    network(torch.rand(4, 1, *spec.patch))
    details = {"spec": spec.to_dict(), "method": "simclr", "hyperparameters": {}, "code_version": "0"}
    save_bundle(
        folder,
        network,
        projector,
        architecture,
        details | {"manifest_hash": "", "axis_order": "", "holdout": {}, "seen": {"patients": []}},
    )
    return load_encoder(folder)


def volumes(spec):
    """Larger and smaller than the patch, with and without a spacing."""
    rng = np.random.default_rng(0)
    sizes = [(20, 22, 18), (7, 9, 12), (30, 5, 6), (12, 12, 12)]
    known = [(1.0, 1.0, 2.0), (1.5, 1.0, 1.0), (0.7, 2.0, 1.0), (math.nan,) * 3]
    return [
        Volume(rng.normal(100, 300, (1, *size[: spec.volume_dims])).astype(np.float32), np.diag([*spacing, 1.0]))
        for size, spacing in zip(sizes, known, strict=True)
    ]


@pytest.mark.parametrize("kind", list(SPECS))
def test_a_volume_in_memory_gets_the_features_of_one_in_the_store(tmp_path, monkeypatch, kind):
    spec = SPECS[kind]
    encoder, found = bundle(tmp_path / "encoder", spec), volumes(spec)
    monkeypatch.setitem(preparing.READERS, "nifti", lambda root, item: found[int(item.paths[0])])
    # A reader of this test alone: it stays in this process.
    monkeypatch.setattr(preparing, "isolated", lambda function, *args, seconds, memory: function(*args))
    candidates = []
    for number, volume in enumerate(found):
        (tmp_path / str(number)).write_text(str(number))
        fields = {"study_uid": "", "series_uid": str(number), "site": "", "modality": spec.modality[0]}
        fields |= {"manufacturer": "", "model": "", "kernel": "", "field_strength": 0.0, "orientation": "RAS"}
        candidates.append(
            Candidate(
                "nifti",
                (str(number),),
                0,
                "p",
                True,
                shape=volume.array.shape[1:],
                spacing_mm=volume.spacing_mm,
                **fields,
            )
        )
    manifest, _ = build_manifest(candidates, Pseudonymiser(b"k" * 32))
    prepared, skipped = prepare(manifest, tmp_path, spec, Store(tmp_path / "store"))
    assert not skipped
    expected = embed_rows(encoder.network, prepared, Store(tmp_path / "store"), spec)
    features = np.stack([encoder.embed(volume) for volume in found])
    assert features.shape == (4, 64)
    assert features.dtype == np.float32
    np.testing.assert_allclose(features, expected, rtol=1e-4, atol=1e-5)
    assert np.linalg.norm(features[0] - features[1]) > 1e-2  # they do differ


def test_a_volume_is_the_mean_of_its_kept_slices(tmp_path, monkeypatch):
    # Several batches, whose edges are not those of the volumes.
    monkeypatch.setattr(module, "eval_loader", lambda blocks, workers, _: eval_loader(blocks, workers, batch_size=2))
    spec, store = SPECS["slices"], Store(tmp_path)
    encoder = bundle(tmp_path / "encoder", spec)
    rows, rng = [], np.random.default_rng(0)
    for item, kept in enumerate([[0, 3, 4], [2], [1, 2]]):
        array = rng.normal(100, 30, (1, 5, 9, 10)).astype(np.float32)
        store.write(f"{item:032x}", array, {})
        row = {"store_key": f"{item:032x}", "store_shape": [5, 9, 10], "patient_key": f"p{item}", "slices": kept}
        rows.append(row | preparing.statistics(array))
    table = pd.DataFrame(rows, index=[7, 7, 3])
    each = by_slice(table)
    owner = np.array([0, 0, 0, 1, 2, 2])
    for volumes, slices in (
        (embed_rows(encoder.network, table, store, spec), embed_rows(encoder.network, each, store, spec)),
        (pixel_rows(table, store, spec), pixel_rows(each, store, spec)),
    ):
        assert slices.shape[0] == 6
        expected = pd.DataFrame(slices).groupby(owner).mean().to_numpy()
        np.testing.assert_allclose(volumes, expected, rtol=1e-4, atol=1e-6)


def test_an_encoder_of_slices_takes_volumes(tmp_path):
    encoder = bundle(tmp_path / "encoder", SPECS["slices"])
    assert encoder.embed(volumes(SPECS["slices"])[0]).shape == (64,)
    with pytest.raises(BundleError, match=r"3D.*2D"):
        encoder.embed(volumes(SPECS["xray"])[0])


def test_an_encoder_is_a_torch_module_ready_to_use(tmp_path):
    encoder = bundle(tmp_path / "encoder", SPECS["xray"])
    assert not encoder.training
    assert encoder.spec == SPECS["xray"]
    batch = torch.rand(3, 1, 8, 9)
    assert torch.equal(encoder(batch), encoder.network(batch))
    assert sum(p.numel() for p in encoder.parameters()) == sum(p.numel() for p in encoder.network.parameters())


def test_embed_refuses_other_dimensions(tmp_path):
    encoder = bundle(tmp_path / "encoder", SPECS["xray"])
    with pytest.raises(BundleError, match=r"2D.*3D"):
        encoder.embed(Volume(np.zeros((1, 9, 9, 9), np.float32), np.eye(4)))


def test_load_takes_the_run_folder_as_text_too(tmp_path):
    bundle(tmp_path / "encoder", SPECS["xray"])
    assert load_encoder(str(tmp_path)).spec == SPECS["xray"]
    with pytest.raises(BundleError):
        load_encoder(tmp_path / "nowhere")


def test_rows_do_not_depend_on_their_company(material):
    network = build_encoder(Architecture(10, 8, 2, 1, "batch", (12, 12))).train()
    rows = material.rows
    together = embed_rows(network, rows, material.store, material.spec)
    assert together.shape == (40, 64)
    for some in ([7], [3, 30, 12]):
        alone = embed_rows(network, rows.iloc[some], material.store, material.spec)
        np.testing.assert_allclose(alone, together[some], rtol=1e-4, atol=1e-5)


def test_pixels_are_what_the_network_sees(material):
    pixels = pixel_rows(material.rows, material.store, material.spec)
    assert pixels.shape == (40, 144)
    row = material.rows.iloc[5]
    block = material.store.read(row["store_key"], (0, 0), (12, 12), 0)
    expected = np.clip((block - row["low"]) / (row["high"] - row["low"]), 0, 1)
    np.testing.assert_allclose(pixels[5], expected.ravel(), atol=1e-5)


def test_images_are_windowed_each_by_its_own():
    blocks = torch.tensor([[0.0, 5, 10], [0, 5, 10]]).view(2, 1, 1, 3)
    got = images(blocks, torch.tensor([[0.0], [4]]), torch.tensor([[10.0], [6]]))
    assert got.shape == (2, 1, 3)
    assert got.view(2, 3).tolist() == [[0, 0.5, 1], [0, 0.5, 1]]


def test_a_gpu_that_is_not_there_is_a_usage_error(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert training_device("auto") == training_device("cpu") == torch.device("cpu")
    with pytest.raises(UsageError, match="doctor"):
        training_device("gpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert training_device("auto") == training_device("gpu") == torch.device("cuda")
    assert training_device("cpu") == torch.device("cpu")


@pytest.mark.parametrize("name", ["noise", "contrast", "motion"])
def test_a_corrupted_classifier_sees_each_image_changed_by_its_own_numbers(material, name):
    same = torch.nn.Conv2d(1, 1, 1, bias=False)
    torch.nn.init.ones_(same.weight)
    flat = Classifier(torch.nn.Sequential(same, torch.nn.Flatten()), 144, 1)
    rows, by = material.rows[:5], CORRUPTIONS[name](5, 2)
    found = feature_rows(corrupted(flat, by, 7), rows, material.store, material.spec)
    clean, rng = pixel_rows(rows, material.store, material.spec), np.random.default_rng(7)
    for one, image in zip(found, clean, strict=True):
        params = {key: torch.from_numpy(value)[None] for key, value in by.draw(rng).items()}
        np.testing.assert_allclose(
            one, by.apply(torch.from_numpy(image).view(1, 1, 12, 12), params).flatten(), atol=1e-6
        )
    assert np.abs(found - clean).max() > 0.05
    np.testing.assert_array_equal(feature_rows(flat, rows, material.store, material.spec), clean)
