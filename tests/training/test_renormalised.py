"""AdaBN: batch-norm statistics of other volumes."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from medclr.data.store import Store
from medclr.models.encoder import Architecture, build_encoder
from medclr.training import encode as module
from medclr.training.encode import embed_rows, has_batch_norm, renormalised


@pytest.fixture
def windowed(material):
    """Grey values as they are: percentiles would undo what is done to them."""
    return replace(material, spec=replace(material.spec, normalisation="window", window=(0.0, 400.0)))


def network(norm="batch"):
    torch.manual_seed(0)
    encoder = build_encoder(Architecture(10, 8, 2, 1, norm, (12, 12)))
    encoder(torch.rand(8, 1, 12, 12))  # statistics of its own
    return encoder.eval()


def copied(windowed, folder, change):
    """The same volumes from another scanner."""
    store = Store(folder)
    for key in windowed.rows["store_key"]:
        array = windowed.store.read(key, (0, 0), (12, 12), 0)
        store.write(key, change(array).astype(np.float32), {"pixel_hash": ""})
    return replace(windowed, store=store)


def features(encoder, of):
    return embed_rows(encoder, of.rows, of.store, of.spec)


def again(encoder, of, seed=0):
    return renormalised(encoder, of.rows, of.store, of.spec, seed)


@pytest.mark.parametrize(("offset", "left"), [(0, 0.01), (40, 0.6)])
def test_an_affine_change_of_the_scanner_is_undone(windowed, tmp_path, offset, left):
    """Of the scale wholly; of the offset up to the border, where the padding stays at 0."""
    encoder = again(network(), windowed)
    own = features(encoder, windowed)
    moved = copied(windowed, tmp_path, lambda x: 0.5 * x + offset)
    lost, found = (np.linalg.norm(features(by, moved) - own) for by in (encoder, again(encoder, moved)))
    assert lost > 0.2 * np.linalg.norm(own)
    assert found < left * lost


def test_statistics_are_those_of_the_activations(windowed, monkeypatch):
    """Of 40 volumes at most 16 at a time: batches of nearly one size, in the order of the seed."""
    monkeypatch.setattr(module, "most_at_once", lambda patch: 16)
    encoder = network()
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    order = np.random.default_rng(7).permutation(40)
    images = np.stack([windowed.store.read(key, (0, 0), (12, 12), 0) for key in windowed.rows["store_key"]])
    seen = encoder.conv1(torch.from_numpy(images[order] / 400)).transpose(0, 1)
    batches = [seen[:, at] for at in (slice(0, 14), slice(14, 28), slice(28, 40))]
    first = again(encoder, windowed, seed=7).bn1
    means, variances = ([getattr(b.flatten(1), f)(1) for b in batches] for f in ("mean", "var"))
    torch.testing.assert_close(first.running_mean, torch.stack(means).mean(0))
    torch.testing.assert_close(first.running_var, torch.stack(variances).mean(0))
    for name, value in encoder.state_dict().items():
        torch.testing.assert_close(value, before[name])
    assert not again(encoder, windowed).training


def test_of_the_same_rows_it_is_the_same_network(windowed):
    one, two = (again(network(), windowed).state_dict() for _ in range(2))
    assert all(torch.equal(one[name], two[name]) for name in one)
    other = again(network(), replace(windowed, rows=windowed.rows[:20])).state_dict()
    assert not torch.equal(one["bn1.running_mean"], other["bn1.running_mean"])


def test_group_norm_has_no_statistics():
    assert has_batch_norm(network())
    assert not has_batch_norm(network("group"))
