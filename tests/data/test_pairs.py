from collections import Counter
from dataclasses import replace
from math import prod

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medclr.data.loader import Blocks, view_rng
from medclr.data.pairs import Partners, check_pairs, overlapping_start, share_of_pairs, suggest_pairs
from medclr.data.slices import by_slice
from medclr.data.spec import DataSpec
from medclr.data.store import Store
from medclr.errors import UsageError

XRAY = DataSpec("x", ("DX",), 2, "percentile", "fit", 224, "xray", patch=(8, 8))
CT = DataSpec("c", ("CT",), 3, "percentile", "spacing", 64, "ct", spacing_mm=(1, 1, 1), patch=(8, 8, 8))
SLICES = replace(CT, spatial_dims=2, slices="axial", spacing_mm=(1, 1), patch=(8, 8))

# Two patients with partners, one on their own, and two images whose patient nobody knows but which share a stand-in.
TABLE = pd.DataFrame(
    [
        ("v0", "anna", True, "s1", "DX", "LI"),
        ("v1", "bert", True, "s3", "DX", "LI"),
        ("v2", "anna", True, "s1", "DX", "LI"),
        ("v3", "anna", True, "s2", "DX", "LI"),
        ("v4", "anna", True, "s1", "DX", "PI"),
        ("v5", "anna", True, "s1", "CR", "LI"),
        ("v6", "bert", True, "s3", "DX", "LI"),
        ("v7", "carl", True, "s1", "DX", "LI"),
        ("v8", "?", False, "s4", "DX", "LI"),
        ("v9", "?", False, "s4", "DX", "LI"),
    ],
    columns=["volume_id", "patient_key", "patient_known", "study_key", "modality", "orientation"],
)
PARTNERS = {
    "study": {0: {2}, 2: {0}, 1: {6}, 6: {1}, 8: {9}, 9: {8}},
    "patient": {0: {2, 3}, 2: {0, 3}, 3: {0, 2}, 1: {6}, 6: {1}},
    "instance": {},
    "overlap": {},
}


class Nothing:
    """A transform that draws nothing of use."""

    def draw(self, rng):
        return {"none": np.array(rng.random(), np.float32)}


def drawn(partners, row, n=60):
    return Counter(partners.draw(row, view_rng(0, epoch, row, 1)) for epoch in range(n))


@pytest.mark.parametrize("pairs", list(PARTNERS))
def test_partners_are_the_others_of_the_group_that_are_alike(pairs):
    partners = Partners(TABLE, pairs)
    for row in range(len(TABLE)):
        assert set(drawn(partners, row)) == PARTNERS[pairs].get(row, {row}), row
    assert partners.share == len(PARTNERS[pairs]) / 10


def test_partners_have_the_same_chance():
    rows = pd.concat([TABLE.iloc[[0]]] * 5, ignore_index=True)
    counts = drawn(Partners(rows, "patient"), 2, 4000)
    assert set(counts) == {0, 1, 3, 4}
    assert max(abs(n - 1000) for n in counts.values()) < 5 * np.sqrt(4000 * 0.25 * 0.75)


def test_neighbours_are_the_kept_slices_before_and_after():
    rows = by_slice(pd.DataFrame({"volume_id": ["a", "b", "c"], "slices": [[2, 5, 6, 9], [4], [0, 1]]}))
    partners = Partners(rows.sample(frac=1, random_state=0).sort_index(), "adjacent")
    expected = [{1}, {0, 2}, {1, 3}, {2}, {4}, {6}, {5}]
    assert [set(drawn(partners, row)) for row in range(7)] == expected
    assert partners.share == 6 / 7
    assert abs(drawn(partners, 1, 2000)[0] - 1000) < 5 * np.sqrt(500)


@settings(max_examples=100, deadline=None)
@given(data=st.data(), dims=st.integers(2, 3), overlap=st.floats(0.01, 1), seed=st.integers(0, 2**32 - 1))
def test_crops_overlap_by_the_share_that_was_asked_for(data, dims, overlap, seed):
    patch = data.draw(st.tuples(*[st.integers(1, 20)] * dims))
    room = data.draw(st.tuples(*[st.integers(-5, 60)] * dims))
    first = tuple(data.draw(st.integers(0, r)) if r > 0 else r // 2 for r in room)
    start = overlapping_start(first, room, patch, overlap, np.random.default_rng(seed))
    assert all(0 <= s <= r if r > 0 else s == r // 2 for s, r in zip(start, room, strict=True))
    common = prod(max(0, p - abs(s - f)) for s, f, p in zip(start, first, patch, strict=True))
    assert common >= overlap * prod(patch) * (1 - 1e-6)


def test_no_axis_is_favoured_and_the_share_is_used_up():
    patch, room, first = (10, 10, 10), (100, 100, 100), (50, 50, 50)
    rng = np.random.default_rng(0)
    starts = np.array([overlapping_start(first, room, patch, 0.5, rng) for _ in range(4000)]) - 50
    moved = np.abs(starts).mean(axis=0)
    assert np.ptp(moved) < 0.1 * moved.mean()
    assert np.abs(starts.mean(axis=0)).max() < 0.15
    assert np.abs(starts).max() == 5
    assert np.prod(10 - np.abs(starts), axis=1).min() == 500
    assert overlapping_start(first, room, patch, 1.0, rng) == first


def coordinates(tmp_path, shape):
    """A stored volume each of whose voxels holds its own index, so that a block tells where it starts."""
    store = Store(tmp_path)
    store.write("a" * 32, np.arange(prod(shape), dtype=np.float32).reshape(1, *shape), {})
    row = {"store_key": "a" * 32, "store_shape": list(shape), "patient_key": "p", "low": 0.0, "high": 1.0}
    return pd.DataFrame([row]), store


@pytest.mark.parametrize("overlap", [0.2, 0.5, 0.8])
def test_blocks_of_a_pair_overlap_where_that_is_asked_for(tmp_path, overlap):
    shape, patch = (30, 25, 8), (8, 8, 8)
    rows, store = coordinates(tmp_path, shape)
    found = {}
    for pairs in ("instance", "overlap"):
        blocks = Blocks(rows, store, CT, Nothing(), 2, 0, pairs, overlap)
        firsts = blocks.__getitems__([(epoch, 0) for epoch in range(200)])["blocks"][:, :, 0, 0, 0, 0]
        starts = np.stack(np.unravel_index(firsts.numpy().astype(int), shape), axis=-1)
        apart = np.abs(starts[:, 0] - starts[:, 1])
        found[pairs] = np.prod(np.maximum(0, patch - apart), axis=1) / prod(patch)
        assert starts[..., 2].max() == 0
        assert len(np.unique(starts[:, 0, 0])) == 23
    assert found["overlap"].min() >= overlap
    assert found["instance"].min() == 0
    assert np.unique(found["overlap"]).size > 1


@pytest.fixture
def stored(tmp_path):
    """TABLE's images, in the store; each holds its own row number, and a tenth of it lower, as its grey range."""
    store = Store(tmp_path)
    rows = TABLE.assign(store_key=[f"{n:032x}" for n in range(10)], store_shape=[[8 + n, 8] for n in range(10)])
    for n in range(10):
        store.write(f"{n:032x}", np.full((1, 8 + n, 8), n, np.float32), {})
    return rows.assign(low=np.arange(10) - 0.25, high=np.arange(10) + 1.0), store


@pytest.mark.parametrize("pairs", ["study", "patient"])
def test_the_second_view_is_a_partners_with_its_own_grey_range(stored, pairs):
    rows, store = stored
    blocks = Blocks(rows, store, XRAY, Nothing(), 2, 0, pairs)
    items = [(epoch, row) for epoch in range(20) for row in range(10)]
    batch = blocks.__getitems__(items)
    seen = batch["blocks"].numpy()
    assert (seen == seen[:, :, :, :1, :1]).all()
    seen = seen[:, :, 0, 0, 0]
    assert (seen[:, 0] == batch["row"].numpy()).all()
    for row in range(10):
        assert set(seen[batch["row"] == row, 1]) == PARTNERS[pairs].get(row, {row})
    np.testing.assert_array_equal(batch["low"], seen - 0.25)
    np.testing.assert_array_equal(batch["high"], seen + 1)
    # Both views are of one patient, so that no view is a negative of its own partner.
    patients = rows["patient_key"].to_numpy()
    assert (patients[seen[:, 0].astype(int)] == patients[seen[:, 1].astype(int)]).all()
    codes = batch["patient"].numpy()
    assert ((codes[:, None] == codes) == (patients[batch["row"]][:, None] == patients[batch["row"]])).all()


@pytest.mark.parametrize("pairs", ["overlap", "study", "patient"])
def test_a_pair_depends_on_seed_epoch_and_volume_alone(stored, pairs):
    rows, store = stored

    def drawn(items, seed=0):
        batch = Blocks(rows, store, XRAY, Nothing(), 2, seed, pairs).__getitems__(items)
        params = batch["params"]["none"].tolist()
        return [(b.tolist(), p) for b, p in zip(batch["blocks"], params, strict=True)]

    items = [(epoch, row) for epoch in range(3) for row in range(10)]
    together = drawn(items)
    alone = [drawn([item])[0] for item in items[::-1]][::-1]
    assert together == alone
    assert together != drawn(items, seed=1)


def test_slices_are_read_where_they_lie_and_paired_with_their_neighbours(tmp_path):
    """Slice k of a volume holds 100 v + k, and along its plane nothing changes."""
    store = Store(tmp_path)
    kept = [[1, 2, 4], [0], [3, 6]]
    for v in range(3):
        array = np.broadcast_to((100 * v + np.arange(7, dtype=np.float32))[None, :, None, None], (1, 7, 9, 8))
        store.write(f"{v:032x}", np.ascontiguousarray(array), {})
    rows = pd.DataFrame({"volume_id": list("abc"), "patient_key": ["p", "q", "q"], "slices": kept, "low": 0.0})
    rows = by_slice(rows.assign(store_key=[f"{v:032x}" for v in range(3)], store_shape=[[7, 9, 8]] * 3, high=1.0))
    plain = Blocks(rows, store, SLICES).__getitems__([(0, row) for row in range(6)])
    assert plain["blocks"].shape == (6, 1, 1, 8, 8)
    assert plain["blocks"][:, 0, 0, 7, 7].tolist() == [1, 2, 4, 100, 203, 206]
    assert plain["patient"].tolist() == [0, 0, 0, 1, 1, 1]
    batch = Blocks(rows, store, SLICES, Nothing(), 2, 0, "adjacent").__getitems__(
        [(e, r) for e in range(30) for r in range(6)]
    )
    pairs = {tuple(map(int, pair)) for pair in batch["blocks"][:, :, 0, 0, 0].tolist()}
    assert pairs == {(1, 2), (2, 1), (2, 4), (4, 2), (100, 100), (203, 206), (206, 203)}


def shaped(n, *shape, **columns):
    rows = pd.DataFrame({"store_shape": [list(shape)] * n, "patient_key": [f"p{i}" for i in range(n)]})
    rows = rows.assign(study_key=rows["patient_key"], modality="CT", orientation="LPS", patient_known=True)
    return rows.assign(volume_id=rows["patient_key"], **columns)


def test_auto_is_careful():
    suggested = {
        "slices": suggest_pairs(shaped(4, 7, 8, 8), SLICES),
        "one patch": suggest_pairs(shaped(4, 8, 8, 8), CT),
        "three patches": suggest_pairs(shaped(4, 24, 8, 8), CT),
        "four patches": suggest_pairs(shaped(4, 16, 16, 4), CT),
        "studies of CT": suggest_pairs(shaped(4, 8, 8, 8, patient_key="p", study_key="s"), CT),
        "radiographs": suggest_pairs(shaped(4, 8, 8), XRAY),
        "two of five": suggest_pairs(shaped(5, 8, 8, patient_key=list("aabcd"), study_key="s"), XRAY),
        "two of four": suggest_pairs(shaped(4, 8, 8, patient_key=list("aabc"), study_key="s"), XRAY),
        "two of four patients": suggest_pairs(shaped(4, 8, 8, patient_key=list("aabb")), XRAY),
    }
    assert {name: pairs for name, (pairs, _) in suggested.items()} == {
        "slices": "adjacent",
        "one patch": "instance",
        "three patches": "instance",
        "four patches": "overlap",
        "studies of CT": "instance",
        "radiographs": "instance",
        "two of five": "instance",
        "two of four": "study",
        "two of four patients": "instance",
    }
    assert suggested["two of four"][1].startswith("50% of the radiographs")


def test_pairs_that_the_data_cannot_give_are_refused():
    single = shaped(4, 8, 8, 8)
    for pairs, lack in (("patient", "another of its patient"), ("study", "its study"), ("overlap", "longer than")):
        with pytest.raises(UsageError, match=rf"--pairs {pairs}: not one of 4 volumes .*{lack}.*--pairs instance"):
            share_of_pairs(pairs, single, CT)
    with pytest.raises(UsageError, match="not one of 4 slices has a neighbour"):
        share_of_pairs("adjacent", single, SLICES)
    assert share_of_pairs("instance", single, CT) == 1
    assert share_of_pairs("overlap", pd.concat([single, shaped(4, 8, 9, 8)]), CT) == 0.5
    assert share_of_pairs("overlap", shaped(4, 20, 8, 9), SLICES) == 1
    assert share_of_pairs("patient", shaped(4, 8, 8, patient_key=list("aabc")), XRAY) == 0.5


def test_pairs_that_do_not_go_with_a_spec_are_refused():
    for spec in (None, CT, XRAY):
        with pytest.raises(UsageError, match=r"--pairs adjacent.*slices: axial"):
            check_pairs("adjacent", spec)
    for pairs in ("study", "patient"):
        check_pairs(pairs, CT)
        with pytest.raises(UsageError, match=f"--pairs {pairs}.*slices"):
            check_pairs(pairs, SLICES)
    for pairs in ("auto", "instance", "overlap", "adjacent"):
        check_pairs(pairs, SLICES)
