import json
import os

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
    made = Classifier(build_encoder(ARCHITECTURE), ARCHITECTURE.feature_dim).eval()
    nn.init.normal_(made.head.weight)
    nn.init.constant_(made.head.bias, 0.3)
    return made


def test_one_logit_an_image(classifier):
    images = torch.rand(3, 1, 16, 16)
    logits = classifier(images)
    assert logits.shape == (3,)
    torch.testing.assert_close(logits, classifier.encoder(images) @ classifier.head.weight[0] + 0.3)
    assert classifier(images[:1]).shape == (1,)


def test_a_new_head_has_no_opinion():
    assert (Classifier(nn.Flatten(), 4)(torch.rand(5, 2, 2)) == 0).all()


def test_what_is_saved(classifier, tmp_path):
    save_classifier(tmp_path / "c", classifier, ARCHITECTURE, {"label": "mass", "classes": ["no", "yes"]})
    record = json.loads((tmp_path / "c" / "classifier.json").read_text())
    assert record["schema_version"] == 1
    assert Architecture(**record["architecture"] | {"patch": tuple(record["architecture"]["patch"])}) == ARCHITECTURE
    assert (record["label"], record["classes"]) == ("mass", ["no", "yes"])
    again = Classifier(build_encoder(ARCHITECTURE), ARCHITECTURE.feature_dim).eval()
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
