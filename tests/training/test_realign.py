"""Networks trained on two domains: discs on noise, and the same images in negative."""

import copy
from dataclasses import replace
from types import SimpleNamespace
from typing import get_args

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from medclr.config import AdaptConfig, Trained
from medclr.data.store import Store
from medclr.errors import MedclrError
from medclr.losses import coral_loss, mmd
from medclr.metrics import auroc
from medclr.models.classifier import Classifier
from medclr.models.encoder import Architecture, build_encoder
from medclr.models.projector import build_projector
from medclr.training import realign
from medclr.training.crossfit import Domain
from medclr.training.encode import Volumes, embed_rows, head_logits
from medclr.training.probe import fit_linear
from medclr.training.realign import ALIGNMENTS, FINETUNED, align, continue_simclr
from medclr.transforms.presets import build_views

ARCHITECTURE = Architecture(10, 4, 2, 1, "batch", (12, 12))
VIEWS = build_views("xray", 2, scale=(0.7, 1.0))


@pytest.fixture
def source(material):
    return Volumes(material.rows, material.store, material.spec)


@pytest.fixture
def target(material, tmp_path):
    """Other patients, in a store of their own, whose images are twice as large in the middle as at their sides."""
    store, rows = Store(tmp_path / "other"), material.rows.copy()
    for key in rows["store_key"]:
        array = material.store.read(key, (0, 0), (12, 12), fill=0.0)
        store.write(key, array * np.linspace(0.5, 1, 12, dtype=np.float32), {"pixel_hash": ""})
    rows["patient_key"] = [f"other {key}" for key in rows["patient_key"]]
    return Volumes(rows, store, material.spec)


@pytest.fixture
def network():
    torch.manual_seed(1)
    return nn.Sequential(build_encoder(ARCHITECTURE)).eval()


def config(**settings):
    defaults = {"target": "view=AP", "device": "cpu", "steps": 6, "batch_size": 8, "lr": 3e-3}
    defaults["methods"] = list(get_args(Trained))
    return AdaptConfig(labels="labels.csv", **defaults | settings)


@pytest.fixture
def aligned(material, source, target, network):
    def aligned(method, target=target, seed=0, **settings):
        trained = copy.deepcopy(network)
        features = source.embed(trained)
        head = fit_linear(features, material.y, material.rows["patient_key"].to_numpy(), 0)
        return align(method, trained, head, source, material.y, target, VIEWS, config(**settings), seed, False)

    return aligned


def weights(module):
    return torch.cat([value.detach().flatten() for value in module.parameters()])


def logits(classifier, volumes):
    return head_logits(classifier, volumes.embed(classifier.network))


@pytest.mark.parametrize("method", [FINETUNED, *ALIGNMENTS])
def test_it_learns_the_labels_of_the_source(aligned, material, source, method):
    assert auroc(material.y[:, 0], logits(aligned(method, steps=80), source)[:, 0]) > 0.95


@pytest.mark.parametrize("method", ALIGNMENTS)
def test_one_seed_is_one_network_and_another_seed_another(aligned, method):
    first = weights(aligned(method))
    assert torch.equal(first, weights(aligned(method)))
    assert not torch.equal(first, weights(aligned(method, seed=1)))


def test_fine_tuning_looks_at_the_source_alone(aligned, source, target):
    assert torch.equal(weights(aligned(FINETUNED)), weights(aligned(FINETUNED, target=source)))
    assert not torch.equal(weights(aligned("mmd")), weights(aligned("mmd", target=source)))


def distance(by, classifier, source, target):
    """Of standardised features, as the losses have it."""
    a, b = (torch.from_numpy(volumes.embed(classifier.network)) for volumes in (source, target))
    scale = torch.cat([a, b]).std(dim=0).clamp(min=1e-6)
    return float(by(a / scale, b / scale))


@pytest.mark.parametrize(("method", "by"), [("deep-coral", coral_loss), ("mmd", mmd)])
def test_domains_become_alike_by_the_weight_of_the_loss(aligned, source, target, method, by):
    """In eval mode, on images without augmentation."""
    weak, strong = (distance(by, aligned(method, steps=60, alignment=weight), source, target) for weight in (0.0, 10.0))
    assert strong < 0.6 * weak


@pytest.mark.parametrize("method", ["deep-coral", "mmd"])
def test_nothing_is_gained_by_smaller_features(method):
    """The gradient has no share along the features themselves; one that never varies has none at all."""
    torch.manual_seed(0)
    own = torch.randn(16, 6, dtype=torch.float64)
    there = 2 * torch.randn(12, 6, dtype=torch.float64)
    own[:, 3] = there[:, 3] = 0.5
    both = torch.cat([own - own.mean(0), there - there.mean(0)]).requires_grad_()
    value = ALIGNMENTS[method](6)(both[:16], both[16:], 0.0)
    (gradient,) = torch.autograd.grad(value, both)
    assert value > 0.01
    assert gradient.norm() > 0.01
    assert abs(float((gradient * both.detach()).sum())) < 1e-9
    assert not gradient[:, 3].any()


@pytest.mark.parametrize("method", ["deep-coral", "mmd"])
@pytest.mark.parametrize("value", [0.1, 1.0, 5.0])
def test_a_feature_that_never_varies_changes_nothing(method, value):
    torch.manual_seed(0)
    own, there = torch.randn(16, 6), 2 * torch.randn(12, 6)
    own[:, 3] = there[:, 3] = 0.0
    without = ALIGNMENTS[method](6)(own, there, 0.0)
    own[:, 3] = there[:, 3] = value
    torch.testing.assert_close(ALIGNMENTS[method](6)(own, there, 0.0), without)


@pytest.mark.parametrize("method", ["dann", "simclr-both"])
def test_a_training_that_ends_in_no_numbers_says_so(material, source, target, network, monkeypatch, method):
    def ruined(*modules):
        for module in modules:
            for value in module.parameters():
                torch.nn.init.constant_(value, torch.nan)

    def align(method, network, head, *rest):
        classifier = Classifier(network, len(head.weight), 1)
        ruined(classifier)
        return classifier.eval()

    monkeypatch.setattr(realign, "align", align)
    monkeypatch.setattr(realign, "continue_simclr", lambda encoder, projector, *rest: ruined(encoder, projector))
    details = {"hyperparameters": {}, "method": "simclr"}
    bundle = SimpleNamespace(encoder=network[0], projector=nn.Sequential(), details=details, architecture=ARCHITECTURE)
    known = Domain(material.y, material.rows["patient_key"].to_numpy(), source.embed(network))
    if method == "dann":
        anew = realign.aligned(method, network, known, source, target, VIEWS, config(), False)
    else:
        anew = realign.continued(method, SimpleNamespace(spec=source.spec, bundle=bundle), source, target, config())
    rows = np.arange(len(material.y))
    with pytest.raises(MedclrError, match=r"--lr 0.003: the training diverged"):
        anew(rows, rows[::2], rows[1::2], 0)


def test_a_critic_cannot_tell_domains_apart(aligned, monkeypatch):
    """Of two that learn alike, that one against which features are learned in earnest ends up guessing."""
    losses, tell = [], realign.F.binary_cross_entropy_with_logits

    def kept(logits, domain):
        losses.append(tell(logits, domain))
        return losses[-1]

    def end(weight):
        aligned("dann", steps=150, alignment=weight)
        return float(torch.stack(losses[-30:]).mean().detach())

    monkeypatch.setattr(realign.F, "binary_cross_entropy_with_logits", kept)
    weak = end(0.3)
    assert weak + 0.1 < end(3.0) > 0.65  # ln 2 is a guess


def test_training_starts_at_the_linear_head_without_the_shares_of_classes(aligned, material, source, network):
    """Where nothing moves, that is the head at the end."""
    few = np.flatnonzero((material.y[:, 0] == 1) | (np.arange(len(material.y)) % 8 == 0))
    head = fit_linear(source.at(few).embed(network), material.y[few], few.astype(str).astype(object), 0)
    trained = align(
        FINETUNED, network, head, source.at(few), material.y[few], source, VIEWS, config(lr=1e-12), 0, False
    )
    n, positive = len(few), int(material.y[few].sum())
    assert positive > 3 * (n - positive)
    np.testing.assert_allclose(
        trained.head.bias.detach().numpy(), head.bias - np.log(positive / (n - positive)), rtol=1e-5
    )
    np.testing.assert_allclose(trained.head.weight.detach().numpy(), head.weight.T, rtol=1e-5, atol=1e-9)


def simclr(network, domains, seed=0, **settings):
    torch.manual_seed(2)
    encoder = copy.deepcopy(network[0])
    width = ARCHITECTURE.feature_dim
    projector = build_projector(width, width)
    continue_simclr(encoder, projector, domains, VIEWS, 0.1, config(**settings), seed)
    return encoder, projector


def test_simclr_goes_on_and_leaves_evaluation_mode(network, source, target):
    encoder, projector = simclr(network, [target])
    assert not encoder.training
    assert not projector.training
    assert not torch.equal(weights(encoder), weights(network[0]))
    assert torch.equal(weights(encoder), weights(simclr(network, [target])[0]))
    assert not torch.equal(weights(encoder), weights(simclr(network, [source, target])[0]))


def test_each_domain_has_the_same_share_of_a_batch(network, source, target, monkeypatch):
    seen = []

    def nt_xent(z1, z2, temperature, groups, domains, negatives):
        assert domains.tolist() == [0] * 4 + [1] * 4
        assert negatives == "within"
        seen.append(groups.tolist())
        return (z1 - z2).square().mean()

    monkeypatch.setattr(realign, "nt_xent", nt_xent)
    simclr(network, [source, target.at(np.arange(12))], batch_size=8, steps=9, negatives="within")
    assert len(seen) == 9
    for groups in seen:
        assert [group >= len(source.rows) for group in groups] == [False] * 4 + [True] * 4
    of_target = {group for groups in seen for group in groups[4:]}
    assert len(of_target) == 12  # pass after pass: all of them come


@pytest.mark.parametrize("kind", ["simclr", "align"])
def test_domains_of_the_source_have_the_same_share_of_every_batch(material, source, network, monkeypatch, kind):
    """Of a batch of eight, of three domains: two each."""
    domains = np.resize(["a", "b", "c"], len(source.rows) // 3 * 3)
    own = source.at(np.arange(len(domains)))
    own = replace(own, rows=own.rows.assign(domain=domains))
    seen, real = [], realign.train_loader

    def train_loader(blocks, *given, **named):
        loader = real(blocks, *given, **named)
        seen.extend([row for _, row in batch] for batch in loader.batch_sampler)
        return loader

    monkeypatch.setattr(realign, "train_loader", train_loader)
    if kind == "simclr":
        simclr(network, [own], batch_size=8, steps=1)
    else:
        y = material.y[: len(domains)]
        head = fit_linear(own.embed(network), y, own.rows["patient_key"].to_numpy(), 0)
        align(FINETUNED, network, head, own, y, own, VIEWS, config(steps=1), 0, False)
    assert seen
    for rows in seen:
        assert sorted(domains[rows]) == ["a", "a", "b", "b", "c", "c"]


def test_a_patient_of_both_domains_is_never_told_apart(network, source, monkeypatch):
    seen = []

    def nt_xent(z1, z2, temperature, groups, *_):
        seen.extend(groups.tolist())
        return (z1 - z2).mean()

    monkeypatch.setattr(realign, "nt_xent", nt_xent)
    simclr(network, [source, source], batch_size=80, steps=1)
    assert sorted(seen) == sorted([*range(40), *range(40)])


def test_of_slices_each_is_learned_from_with_the_label_of_its_volume(material, source):
    rows = material.rows.assign(slices=[[0, 1]] * len(material.rows))
    sliced = replace(source, rows=rows, spec=replace(material.spec, spatial_dims=2, slices="axial"))
    if not sliced.spec.slices:
        pytest.fail("the spec has no slices")
    units = realign._units(sliced, volume=np.arange(len(rows)))
    assert units["volume"].tolist() == np.repeat(np.arange(len(rows)), 2).tolist()
    assert units["slice"].tolist() == [0, 1] * len(rows)


def test_features_of_the_network_are_what_is_embedded(source, network):
    pd.testing.assert_frame_equal(source.at(np.array([3])).rows, source.rows.iloc[[3]].reset_index(drop=True))
    np.testing.assert_array_equal(
        source.at(np.array([3, 1])).embed(network), embed_rows(network, source.rows, source.store, source.spec)[[3, 1]]
    )
