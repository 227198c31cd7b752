"""Several crops or slices of a volume: the mean of their features, and attention over them."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from medclr.commands.finetune import _classifier
from medclr.config import LabelsConfig
from medclr.data.labels import Task
from medclr.data.prepare import statistics
from medclr.data.store import Store
from medclr.metrics import auroc
from medclr.models.classifier import AttentionPool, load_classifier, save_classifier
from medclr.models.encoder import Architecture, build_encoder
from medclr.training import encode
from medclr.training.encode import Bags, bag_rows, classify_rows, embed_rows, images
from medclr.training.methods import Material, Start, fit
from medclr.training.pooling import fit_attention, pooled
from medclr.training.probe import Linear, fit_linear, log_prior
from medclr.transforms.presets import build_views

ARCHITECTURE = Architecture(10, 8, 2, 1, "batch", (12, 12))


def encoder():
    torch.manual_seed(5)
    network = nn.Sequential(build_encoder(ARCHITECTURE))
    network(torch.rand(8, 1, 12, 12))  # running statistics of its own
    return network.eval()


@torch.inference_mode()
def seen(network, families, rows, start):
    """Features of one block of each row, read and windowed by hand, all in one batch."""
    blocks = [families.store.read(row["store_key"], start, (12, 12), 0.0) for _, row in rows.iterrows()]
    low, high = (torch.tensor(rows[name].to_numpy(np.float32))[:, None] for name in ("low", "high"))
    return network(images(torch.from_numpy(np.stack(blocks))[:, None], low, high)).numpy()


def test_one_crop_is_the_centre_to_the_bit(families):
    network, rows = encoder(), families.rows
    found = embed_rows(network, rows, families.store, families.spec)
    assert np.array_equal(found, seen(network, families, rows, (1, 1)))
    assert np.array_equal(found, embed_rows(network, rows, families.store, families.spec, crops=1))


def test_features_are_the_mean_over_crops(families, monkeypatch):
    # Several batches, whose edges are not those of the volumes.
    loader = encode.eval_loader
    monkeypatch.setattr(encode, "eval_loader", lambda blocks, workers, _: loader(blocks, workers, batch_size=5))
    network, rows = encoder(), families.rows  # 15 × 15, and the patch is 12 × 12
    each = [seen(network, families, rows, start) for start in ((0, 0), (0, 3), (3, 0), (3, 3))]
    found = embed_rows(network, rows, families.store, families.spec, crops=4)
    np.testing.assert_allclose(found, np.mean(each, axis=0), rtol=1e-4, atol=1e-6)
    assert np.abs(found - each[0]).max() > 1e-3
    bags = bag_rows(network, rows, families.store, families.spec, crops=4)
    np.testing.assert_allclose(bags.features.reshape(12, 4, -1), np.stack(each, axis=1), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(bags.mean(), found, rtol=1e-5, atol=1e-7)


def test_bags_are_taken_whole_and_in_the_order_asked_for():
    bags = Bags(np.arange(12, dtype=np.float32).reshape(6, 2), np.array([1, 3, 2]))
    some = bags.of(np.array([2, 0, 2]))
    assert some.counts.tolist() == [2, 1, 2]
    assert some.features[:, 0].tolist() == [8, 10, 0, 8, 10]
    assert bags.mean()[:, 0].tolist() == [0, 4, 9]


@pytest.mark.parametrize("size", [1.0, 300.0])  # of scores of which exp would overflow
def test_attention_is_that_of_the_paper(size):
    torch.manual_seed(0)
    pool = AttentionPool(5, 4).double()
    nn.init.normal_(pool.weigh.weight, std=size)
    features, counts = torch.randn(9, 5, dtype=torch.float64), torch.tensor([4, 1, 3, 1])
    found = pool(features, counts)
    v, u, w = pool.content, pool.gate, pool.weigh.weight[0]
    for volume, bag in enumerate(features.split(counts.tolist())):
        scores = [w @ (torch.tanh(v.weight @ h + v.bias) * torch.sigmoid(u.weight @ h + u.bias)) for h in bag]
        share = [1 / sum(torch.exp(other - one) for other in scores) for one in scores]
        torch.testing.assert_close(found[volume], sum(a * h for a, h in zip(share, bag, strict=True)))
    torch.testing.assert_close(found[[1, 3]], features[[4, 8]])  # one part is the volume


def bags_of(n, parts, rng, signal=4.0):
    """Features of which one part of each volume carries the label; a second feature says which part."""
    y = np.arange(n) % 2
    features = np.abs(rng.normal(size=(n, parts, 8)))
    told = np.arange(n), rng.integers(parts, size=n)
    features[*told, 0] += signal
    features[*told, 1] += 2 * y
    return Bags(features.reshape(-1, 8).astype(np.float32), np.full(n, parts)), y[:, None].astype(float)


@pytest.mark.parametrize("exclusive", [True, False])
def test_no_steps_are_the_linear_head_on_the_mean(exclusive):
    rng = np.random.default_rng(0)
    bags = Bags((100 + 7 * rng.normal(size=(60, 6))).astype(np.float32), np.tile([1, 2, 3], 10))
    y = np.eye(3)[rng.integers(3, size=30)]
    if not exclusive:
        y[rng.random(y.shape) < 0.2] = np.nan
    head = fit_linear(bags.mean(), y, np.arange(30).astype(object), 0, exclusive=exclusive)
    pool, above = fit_attention(bags, y, head, 0, steps=0)
    np.testing.assert_allclose(above.scores(pooled(pool, bags)), head.scores(bags.mean()), atol=1e-4)
    pool, above = fit_attention(bags, y, head, 0, steps=20)
    moved = above.scores(pooled(pool, bags))
    assert np.isfinite(moved).all()
    assert np.abs(moved - head.scores(bags.mean())).max() > 1e-2


def test_attention_finds_the_crop_that_matters():
    rng = np.random.default_rng(0)
    (bags, y), (new, truth) = bags_of(60, 16, rng), bags_of(200, 16, rng)
    head = fit_linear(bags.mean(), y, np.arange(60).astype(object), 0, 0.1)
    pool, above = fit_attention(bags, y, head, 0)
    mean = auroc(truth[:, 0], head.scores(new.mean())[:, 0])
    found = auroc(truth[:, 0], above.scores(pooled(pool, new))[:, 0])
    assert mean < 0.85
    assert found > mean + 0.08
    again, above_again = fit_attention(bags, y, head, 0)
    assert np.array_equal(above.weight, above_again.weight)
    assert torch.equal(pool.weigh.weight, again.weigh.weight)


def test_classes_weigh_as_asked():
    rng = np.random.default_rng(0)
    bags, y = bags_of(40, 2, rng)
    rare = np.concatenate([np.flatnonzero(y[:, 0] == 0), np.flatnonzero(y[:, 0] == 1)[:5]])
    bags, y = bags.of(rare), y[rare]
    head = Linear(np.zeros((8, 1)), np.zeros(1), False, 1.0)
    balanced, plain = (
        above.scores(pooled(pool, bags)).mean()
        for pool, above in (fit_attention(bags, y, head, 0, way, 200) for way in (True, False))
    )
    # But for the prior, which is given back in the end, the rare class counts for more.
    assert balanced - log_prior(y, False)[0] > plain + 0.1


@pytest.mark.parametrize("slices", [False, True])
def test_what_is_loaded_scores_as_the_method_did(tmp_path, families, slices):
    store, spec, rows, y = families.store, families.spec, families.rows, families.y
    if slices:
        store, spec = Store(tmp_path / "store"), replace(spec, slices="axial")
        made = []
        for item in range(8):
            array = np.random.default_rng(item).normal(100, 10, (1, 4, 12, 20)).astype(np.float32)
            store.write(f"{item:032x}", array, {})
            row = {
                "store_key": f"{item:032x}",
                "store_shape": [4, 12, 20],
                "slices": [[0, 2], [1], [0, 1, 3]][item % 3],
            }
            made.append(row | statistics(array) | {"patient_key": f"p{item}"})
        rows, y = pd.DataFrame(made), np.arange(8)[:, None] % 2 * 1.0
    config = LabelsConfig(labels=tmp_path, device="cpu", crops=2)
    task = Task("binary", ("side",), ("a", "b"))
    material = Material(rows, y, task, rows, store, spec, build_views("xray", 2), config)
    network = encoder()
    bags = bag_rows(network, rows, store, spec, crops=2)
    assert bags.counts.tolist() == ([4, 2, 6, 4, 2, 6, 4, 2] if slices else [2] * 12)
    start = Start(bags.mean(), network, ARCHITECTURE, 64, bags)
    at = np.arange(len(rows))
    for method in ("attention", "linear"):
        fitted = fit(method, material, start, at[: len(rows) // 2 * 2 - 2], 0)
        classifier = _classifier(fitted, start, task, config.crops)
        seen = {"fingerprint": "f" * 16, "patients": [], "pixels": [], "n_unknown": 0}
        details = {
            "temperature": 1.0,
            "encoder": None,
            "seen": {"training": seen, "pretraining": None},
            "domains": {},
            "method": method,
            "code_version": "0",
        }
        save_classifier(tmp_path / method, classifier, ARCHITECTURE, task, spec, details)
        loaded = load_classifier(tmp_path / method).classifier
        assert loaded.crops == 2
        assert (loaded.pool is None) == (method == "linear")
        np.testing.assert_allclose(
            classify_rows(loaded, rows, store, spec), fitted.scores(at), rtol=1e-4, atol=1e-4, err_msg=method
        )
    few = classify_rows(loaded, rows.iloc[[3]], store, spec)
    np.testing.assert_allclose(few, fitted.scores(np.array([3])), rtol=1e-4, atol=1e-4)
