"""Signatures and near-duplicates by them."""

import base64

import numpy as np
import pytest
from scipy import ndimage

from medclr.data import signature as module
from medclr.data.signature import near_duplicates, signature


def images(n, shape=(96, 80), seed=0):
    """Smooth noise with detail: no two alike."""
    rng = np.random.default_rng(seed)
    blurred = (ndimage.gaussian_filter(rng.standard_normal((n, *shape)), (0, *(s,) * len(shape))) for s in (3, 9))
    return np.float32(sum(part / part.std() for part in blurred))


def cells(text, dims):
    return np.frombuffer(base64.b64decode(text), np.uint8).reshape((module._SIDE[dims],) * dims)


def found(first, second=None, **settings):
    i, j, _ = near_duplicates(first, second, **settings)
    return list(zip(i.tolist(), j.tolist(), strict=True))


def test_a_cell_is_the_mean_of_its_part():
    """Of a ramp the mean of each part is its middle, and the border continues."""
    ramp = np.arange(64, dtype=np.float32)[None, :, None] * np.ones((1, 64, 33), np.float32)
    expected = np.arange(32) * 2 + 0.5
    expected = (expected - expected[0]) / (expected[-1] - expected[0]) * 255
    np.testing.assert_allclose(cells(signature(ramp), 2)[:, 5], expected, atol=3)


@pytest.mark.parametrize("n", [1, 3, 31, 32, 300])
def test_pooling_keeps_a_constant_and_the_mean(n):
    weights = module._pooling(n, 32)
    assert weights.shape == (32, n)
    np.testing.assert_allclose(weights.sum(axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(weights.mean(axis=0), 1 / n, atol=0.3 / n)


def test_it_ignores_linear_scale_size_and_a_marker():
    image = images(1)
    one = cells(signature(image), 2).astype(int)
    marked = image.copy()
    marked[0, 3, 3] = 1e6
    for other in (image * 40 - 1000, marked, np.repeat(np.repeat(image, 2, axis=1), 2, axis=2)):
        assert abs(cells(signature(other), 2).astype(int) - one).max() <= 20


def test_channels_are_averaged():
    a, b = images(2)
    assert signature(np.stack([a, b])) == signature((a[None] + b[None]) / 2)


def test_a_mask_has_none_and_is_like_nothing():
    mask = (images(1) > 0).astype(np.float32)
    assert signature(mask) == ""
    assert found(["", signature(images(1))], ["", ""]) == []


CHANGES = {
    "scale": lambda a: a * 300 - 5,
    "sign": lambda a: -a,
    "eight bits": lambda a: np.rint(np.clip((a + 4) / 8, 0, 1) * 255),
    "noise": lambda a: a + 0.05 * np.random.default_rng(1).standard_normal(a.shape),
    "trimmed": lambda a: a[tuple(slice(round(0.03 * n), n - round(0.03 * n)) for n in a.shape)],
    "one side": lambda a: a[round(0.05 * len(a)) :],
    "half": lambda a: ndimage.zoom(ndimage.gaussian_filter(a, 0.5), 0.5, order=1, grid_mode=True, mode="nearest"),
    "double": lambda a: ndimage.zoom(a, 2, order=1, grid_mode=True, mode="nearest"),
}


@pytest.mark.parametrize("shape", [(96, 80), (28, 32, 24)], ids=["2D", "3D"])
@pytest.mark.parametrize("change", CHANGES)
def test_changed_images_are_found_and_others_are_not(shape, change):
    originals = images(6, shape)
    first = [signature(image[None]) for image in originals]
    changed = [signature(CHANGES[change](image)[None]) for image in originals[:3][::-1]]
    assert found(first, changed) == [(i, 2 - i) for i in range(3)]
    assert found(changed, first) == [(0, 2), (1, 1), (2, 0)]


def test_within_one_set_each_pair_comes_once():
    a, b, c = (signature(image[None]) for image in images(3))
    assert found([a, b, a, c, b]) == [(0, 2), (1, 4)]


def test_planes_and_volumes_are_compared_apart():
    plane = signature(images(1))
    volume = signature(images(1, (20, 20, 20)))
    assert found([plane, volume], [volume, volume, plane]) == [(0, 2), (1, 0), (1, 1)]


def test_blocks_and_batches_change_nothing(monkeypatch):
    originals = images(30)
    first = [signature(image[None]) for image in originals]
    second = [signature(image[1:, :-1][None]) for image in originals[::2]]
    whole = near_duplicates(first, second, threshold=0.3)
    monkeypatch.setattr(module, "_BLOCK", 7)
    monkeypatch.setattr(module, "_BATCH", 3)
    blocks = []
    parts = near_duplicates(first, second, threshold=0.3, progress=lambda *n: blocks.append(n))
    assert len(whole[0]) >= 15
    assert blocks[-1] == (15, 15)
    np.testing.assert_array_equal(whole[0], parts[0])
    np.testing.assert_array_equal(whole[1], parts[1])
    np.testing.assert_allclose(whole[2], parts[2], atol=1e-4)


@pytest.mark.parametrize("shape", [(96, 80), (28, 32, 24)], ids=["2D", "3D"])
def test_pairs_foreseen_to_fail_are_not_moved_and_none_is_lost(shape, monkeypatch):
    originals = images(12, shape)
    first = [signature(image[None]) for image in originals]
    second = [signature(change(image)[None]) for change in CHANGES.values() for image in originals[::4]]
    monkeypatch.setattr(module, "_FLOOR", 0.0)
    moved, rows = [], module._moved
    monkeypatch.setattr(module, "_moved", lambda grids, *how: moved.append(len(grids)) or rows(grids, *how))
    few = found(first, second)
    n_few = sum(moved)
    monkeypatch.setattr(module, "_SHORT", (2,) * 3)
    assert found(first, second) == few
    assert n_few < (sum(moved) - n_few) / 2
    assert len(few) == len(second)


def test_an_image_before_it_moves_is_looked_at_once_for_all_its_pairs(monkeypatch):
    rows, tangent = [], module._tangent
    monkeypatch.setattr(module, "_tangent", lambda units, x: rows.append(len(units)) or tangent(units, x))
    monkeypatch.setattr(module, "_FLOOR", 0.0)
    assert found([signature(images(1))], [signature(image[None]) for image in images(8, seed=1)]) == []
    assert rows == [1]


def test_the_candidates_are_the_most_alike(monkeypatch):
    """Against sorting the whole matrix, with blocks that do not divide it."""
    rng = np.random.default_rng(0)
    grids = rng.integers(0, 255, (40, 32, 32), dtype=np.uint8)
    others = rng.integers(0, 255, (23, 32, 32), dtype=np.uint8)
    monkeypatch.setattr(module, "_BLOCK", 9)
    monkeypatch.setattr(module, "_FLOOR", 0.0)
    i, j = module._candidates(grids, others, False, None)
    scores = np.abs(module._coarse(grids) @ module._coarse(others).T)
    k = module.CANDIDATES
    expected = {(r, c) for r in range(40) for c in np.argsort(-scores[r])[:k]}
    expected |= {(r, c) for c in range(23) for r in np.argsort(-scores[:, c])[:k]}
    assert set(zip(i.tolist(), j.tolist(), strict=True)) == expected


def test_nothing_against_nothing():
    assert found([]) == []
    assert found([], [signature(images(1))]) == []
