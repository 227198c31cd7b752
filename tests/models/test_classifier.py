import json
import os

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from medclr.errors import MedclrError
from medclr.models.classifier import Classifier, save_classifier
from medclr.models.encoder import Architecture, build_encoder

ARCHITECTURE = Architecture(10, 8, 2, 1, "batch", (16, 16))


@pytest.fixture
def classifier():
    torch.manual_seed(0)
    made = Classifier(build_encoder(ARCHITECTURE), ARCHITECTURE.feature_dim, 3).eval()
    nn.init.normal_(made.head.weight)
    nn.init.constant_(made.head.bias, 0.3)
    return made


def test_a_logit_for_each_output(classifier):
    images = torch.rand(3, 1, 16, 16)
    logits = classifier(images)
    assert logits.shape == (3, 3)
    torch.testing.assert_close(logits, classifier.network(images) @ classifier.head.weight.T + 0.3)
    assert classifier(images[:1]).shape == (1, 3)


def test_a_head_from_elsewhere_gives_its_logits(classifier):
    rng = np.random.default_rng(0)
    weight, bias = rng.normal(size=(ARCHITECTURE.feature_dim, 3)), rng.normal(size=3)
    classifier.set_head(weight, bias)
    images = torch.rand(2, 1, 16, 16)
    features = classifier.network(images).detach().numpy()
    np.testing.assert_allclose(classifier(images).detach().numpy(), features @ weight + bias, rtol=1e-4, atol=1e-5)


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


def test_what_is_saved(classifier, tmp_path):
    save_classifier(tmp_path / "c", classifier, ARCHITECTURE, {"label": "mass", "classes": ["no", "yes"]})
    record = json.loads((tmp_path / "c" / "classifier.json").read_text())
    assert record["schema_version"] == 1
    assert Architecture(**record["architecture"] | {"patch": tuple(record["architecture"]["patch"])}) == ARCHITECTURE
    assert (record["label"], record["classes"]) == ("mass", ["no", "yes"])
    again = Classifier(build_encoder(ARCHITECTURE), ARCHITECTURE.feature_dim, 3).eval()
    again.load_state_dict(load_file(tmp_path / "c" / "classifier.safetensors"))
    images = torch.rand(2, 1, 16, 16)
    assert torch.equal(again(images), classifier(images))
    assert {path.name for path in (tmp_path / "c").iterdir()} == {"classifier.json", "classifier.safetensors"}


@pytest.mark.parametrize("fails_at", [1, 2])
def test_a_full_disk_leaves_no_classifier_that_looks_whole(classifier, tmp_path, monkeypatch, fails_at):
    save_classifier(tmp_path / "c", classifier, ARCHITECTURE, {})
    calls = []

    def fsync(descriptor):
        calls.append(descriptor)
        if len(calls) == fails_at:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(MedclrError, match=r"cannot write the classifier .* No space left on device; free some space"):
        save_classifier(tmp_path / "c", classifier, ARCHITECTURE, {})
    assert [path.name for path in (tmp_path / "c").iterdir()] == ["classifier.safetensors"]
    monkeypatch.undo()
    save_classifier(tmp_path / "c", classifier, ARCHITECTURE, {})
    assert (tmp_path / "c" / "classifier.json").is_file()
