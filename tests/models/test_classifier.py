import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from medclr.data.labels import Task
from medclr.data.spec import load_spec
from medclr.errors import BundleError, MedclrError
from medclr.models.classifier import Classifier, NeighboursHead, load_classifier, save_classifier
from medclr.models.encoder import Architecture, build_encoder
from medclr.models.projector import build_projector, hidden_layers
from medclr.models.sealed import digest_of
from medclr.training.probe import Neighbours

ARCHITECTURE = Architecture(10, 8, 2, 1, "batch", (16, 16))
TASK = Task("multiclass", ("kind",), ("a", "b", "c"))
TRAINING = {"fingerprint": "f" * 16, "patients": ["p1"], "pixels": ["x1"], "n_unknown": 0}
DETAILS = {
    "temperature": 1.5,
    "encoder": "e" * 16,
    "seen": {"training": TRAINING, "pretraining": TRAINING | {"patients": ["p1", "p2"]}},
    "domains": {"modality": ["CR"], "manufacturer": ["A"]},
    "method": "linear",
    "code_version": "0",
}


@pytest.fixture(scope="module")
def spec():
    return replace(load_spec(Path("cxr")), patch=(16, 16))


def build(layers=0, norm=True, head=None):
    torch.manual_seed(0)
    encoder = build_encoder(ARCHITECTURE)
    encoder(torch.rand(4, 1, 16, 16))  # running statistics that a fresh network does not have
    width = 64
    network = nn.Sequential(encoder)
    if layers:
        network.extend(hidden_layers(build_projector(64, 24, 8, layers + 1, norm), layers))
        width = 24
    made = Classifier(network, width, 3, head=head)
    if head is None:
        made.set_head(np.random.default_rng(0).normal(size=(width, 3)), np.array([0.1, 0.2, 0.3]))
    return made.eval()


@pytest.fixture
def saved(tmp_path, spec):
    save_classifier(tmp_path / "classifier", build(), ARCHITECTURE, TASK, spec, DETAILS)
    return tmp_path / "classifier"


def alter(folder, **changes):
    record = json.loads((folder / "classifier.json").read_text()) | changes
    (folder / "classifier.json").write_text(json.dumps(record | {"digest": digest_of(record)}))


def test_a_logit_for_each_output():
    classifier = build()
    images = torch.rand(3, 1, 16, 16)
    logits = classifier(images)
    assert logits.shape == (3, 3)
    expected = classifier.network(images) @ classifier.head.weight.T + torch.tensor([0.1, 0.2, 0.3])
    torch.testing.assert_close(logits, expected)


def test_dropout_is_of_training_alone():
    """Of features of one, what is left is scaled up by what is left out, and the head adds it up."""
    made = Classifier(nn.Flatten(), 1000, 1, dropout=0.3)
    made.set_head(np.full((1000, 1), 0.001), np.zeros(1))
    images = torch.ones(200, 10, 100)
    torch.manual_seed(0)
    trained = made.train()(images)[:, 0].detach()
    assert trained.std().item() == pytest.approx(np.sqrt(0.3 / 0.7 / 1000), rel=0.2)
    assert trained.mean().item() == pytest.approx(1, abs=0.01)
    torch.testing.assert_close(made.eval()(images), torch.ones(200, 1))


def test_a_new_head_has_no_opinion():
    assert (Classifier(nn.Flatten(), 4, 2)(torch.rand(5, 2, 2)) == 0).all()


@pytest.mark.parametrize(("layers", "norm"), [(0, True), (1, True), (2, True), (1, False)])
def test_what_is_loaded_computes_what_was_saved(tmp_path, spec, layers, norm):
    classifier = build(layers, norm)
    save_classifier(tmp_path / "classifier", classifier, ARCHITECTURE, TASK, spec, DETAILS)
    for path in (tmp_path, str(tmp_path / "classifier")):
        loaded = load_classifier(path)
        images = torch.rand(2, 1, 16, 16)
        torch.testing.assert_close(loaded.classifier(images), classifier(images))
    assert not loaded.classifier.training
    assert (loaded.architecture, loaded.task, loaded.spec) == (ARCHITECTURE, TASK, spec)
    assert loaded.temperature == 1.5
    assert loaded.trained_on.patients == {"p1"}
    assert loaded.pretrained_on.patients == {"p1", "p2"}
    assert loaded.details == DETAILS
    assert loaded.digest == json.loads((tmp_path / "classifier" / "classifier.json").read_text())["digest"]
    for name, parameter in classifier.network[0].named_parameters():
        assert loaded.classifier.network[0].get_parameter(name).stride() == parameter.stride(), name


def test_one_from_scratch_was_not_pretrained(tmp_path, spec):
    details = DETAILS | {"seen": {"training": TRAINING, "pretraining": None}, "encoder": None}
    save_classifier(tmp_path / "classifier", build(), ARCHITECTURE, TASK, spec, details)
    assert load_classifier(tmp_path).pretrained_on is None


@pytest.mark.parametrize("exclusive", [True, False])
@pytest.mark.parametrize("n", [7, 50])
def test_neighbours_vote_as_the_probe_says_and_come_back(tmp_path, spec, exclusive, n):
    rng = np.random.default_rng(1)
    features = rng.normal(size=(n, 64)).astype(np.float32)
    y = np.eye(3)[rng.integers(3, size=n)] if exclusive else rng.integers(2, size=(n, 3)).astype(float)
    if not exclusive:
        y[rng.random(y.shape) < 0.3] = np.nan
        y[:, 2] = np.nan
    head = NeighboursHead(features, y, 20, exclusive)
    asked = rng.normal(size=(9, 64)).astype(np.float32)
    expected = Neighbours(features, y, exclusive).scores(asked)
    np.testing.assert_allclose(head(torch.from_numpy(asked)).numpy(), expected, atol=1e-5)
    classifier = build(head=head)
    save_classifier(tmp_path / "classifier", classifier, ARCHITECTURE, TASK, spec, DETAILS)
    images = torch.rand(2, 1, 16, 16)
    torch.testing.assert_close(load_classifier(tmp_path).classifier(images), classifier(images))


def test_it_holds_all_that_new_data_need_in_two_files(saved):
    assert sorted(path.name for path in saved.iterdir()) == ["classifier.json", "classifier.safetensors"]
    record = json.loads((saved / "classifier.json").read_text(), parse_constant=pytest.fail)
    assert record["task"] == {"kind": "multiclass", "columns": ["kind"], "classes": ["a", "b", "c"]}
    assert record["spec"]["patch"] == [16, 16]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"schema_version": 1}, ["schema version 1", "reads 2", "run finetune again"]),
        ({"task": {"kind": "multiclass", "columns": ["kind"], "classes": ["a", "b"]}}, ["of another shape: head."]),
        ({"projector": {"hidden": 24, "layers": 1, "norm": True, "out": 24}}, ["missing: network.1.weight"]),
        ({"head": {"rows": 5, "k": 5, "exclusive": True, "temperature": 0.1}}, ["missing: head.features, head.y"]),
        ({"head": {"rows": -5}}, ["describes no network"]),
        ({"task": None}, ["describes no network"]),
    ],
)
def test_a_record_of_another_network_is_refused(saved, change, words):
    alter(saved, **change)
    with pytest.raises(BundleError) as caught:
        load_classifier(saved)
    for word in ["classifier ", *words]:
        assert word in str(caught.value)


def test_an_edited_record_and_damaged_weights_are_refused(saved):
    text = (saved / "classifier.json").read_text()
    (saved / "classifier.json").write_text(text.replace('"temperature": 1.5', '"temperature": 1.0'))
    with pytest.raises(BundleError, match="not as saved"):
        load_classifier(saved)
    (saved / "classifier.json").write_text(text)
    (saved / "classifier.safetensors").write_bytes((saved / "classifier.safetensors").read_bytes()[:-4])
    with pytest.raises(BundleError, match=r"damaged, cut short or swapped; copy the classifier again, or run finetune"):
        load_classifier(saved)


def test_what_is_not_there_is_named(tmp_path):
    with pytest.raises(BundleError, match=r"--classifier .* holds no classifier; give a finished finetune run"):
        load_classifier(tmp_path)


@pytest.mark.parametrize("fails_at", [1, 2])
def test_a_full_disk_leaves_the_older_one_whole(saved, spec, monkeypatch, fails_at):
    calls = []

    def fsync(descriptor):
        calls.append(descriptor)
        if len(calls) == fails_at:
            raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fsync)
        with pytest.raises(MedclrError, match=r"cannot write the classifier .* No space left on device; free some"):
            save_classifier(saved, build(), ARCHITECTURE, TASK, spec, DETAILS | {"temperature": 9.0})
    assert load_classifier(saved).temperature == 1.5
    assert [path.name for path in saved.parent.iterdir()] == ["classifier"]
