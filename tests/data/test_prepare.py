import hashlib
import math
import os
import shutil
from concurrent.futures import Future
from dataclasses import replace

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from medclr.data import prepare as module
from medclr.data.candidate import Candidate
from medclr.data.discover import discover
from medclr.data.identity import Pseudonymiser, pixel_hash
from medclr.data.manifest import build_manifest, candidate_of
from medclr.data.prepare import bytes_to_write, prepare, prepared_array, processes, shard, statistics, stored_shape
from medclr.data.spec import DataSpec
from medclr.data.store import Store
from medclr.data.volume import Volume
from medclr.errors import Unreadable

MR = DataSpec("mr", ("MR", ""), 3, "zscore", "spacing", 64, "mr", spacing_mm=(2.0, 1.0, 1.0), patch=(8, 8, 8))
CT = replace(MR, modality=("CT",), normalisation="window", window=(-1000, 1000), clip=(-1024, 3071))
PLANE = DataSpec("xr", ("DX", ""), 2, "percentile", "fit", 224, "xray", patch=(8, 8))


def scanned(root):
    candidates, skipped = discover(root, workers=0)
    assert not skipped
    return build_manifest(candidates, Pseudonymiser(b"k" * 32))[0]


@pytest.fixture(autouse=True)
def in_this_process(monkeypatch):
    """Where readers can be replaced; tests/data/test_isolation.py has the rest."""
    monkeypatch.setattr(module, "isolated", lambda function, *args, seconds, memory: function(*args))


@pytest.fixture
def scans(tmp_path):
    """Four NIfTI volumes, their values and their manifest."""
    root = tmp_path / "scans"
    root.mkdir()
    rng = np.random.default_rng(0)
    for number in range(4):
        values = rng.integers(1, 900, (10, 9, 8)).astype(np.int16)
        nib.save(nib.Nifti1Image(values, np.eye(4)), root / f"{number}.nii")
    return root, scanned(root), Store(tmp_path / "store")


@pytest.fixture
def decoded(monkeypatch):
    """Which candidates the NIfTI reader was asked for."""
    calls = []
    read = module.READERS["nifti"]
    monkeypatch.setitem(module.READERS, "nifti", lambda root, item: calls.append(item.paths[0]) or read(root, item))
    return calls


def test_what_is_prepared(scans):
    root, manifest, store = scans
    seen = []
    prepared, skipped = prepare(manifest.iloc[::-1], root, MR, store, progress=lambda *n: seen.append(n))
    assert not skipped
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert list(prepared.index) == [0, 1, 2, 3]
    assert list(prepared["volume_id"]) == list(manifest["volume_id"][::-1])
    for row in prepared.itertuples():
        values = np.asarray(nib.load(root / row.source[0]).dataobj).astype(np.float32)[None]
        array = prepared_array(Volume(values, np.eye(4)), MR)
        assert row.pixel_hash == pixel_hash(values)
        assert row.store_shape == [5, 9, 8] == list(array.shape[1:])
        np.testing.assert_array_equal(store.read(row.store_key, (0, 0, 0), (5, 9, 8), 0), array)
        assert {n: getattr(row, n) for n in ("mean", "std", "low", "high")} == statistics(array)


@pytest.mark.parametrize(("plane", "axis"), [("sagittal", 0), ("coronal", 1), ("axial", 2)])
def test_volumes_are_kept_slice_by_slice_where_the_spec_asks_for_slices(tmp_path, plane, axis):
    """Slice k holds 100 k all over: 0 and 1 of the twelve are air, every second of the others is 2 mm from the last."""
    (tmp_path / "scans").mkdir()
    shape = [16, 16, 16]
    shape[axis] = 12
    values = np.moveaxis(np.broadcast_to(100 * np.arange(12), (16, 16, 12)), 2, axis).astype(np.int16)
    nib.save(nib.Nifti1Image(values, np.eye(4)), tmp_path / "scans/a.nii")
    manifest, store = scanned(tmp_path / "scans"), Store(tmp_path / "store")
    spec = replace(MR, spatial_dims=2, slices=plane, spacing_mm=(2.0, 1.0), patch=(8, 8))
    before = bytes_to_write(manifest, spec, store)
    for _ in range(2):  # the second time it is told by the store
        prepared, skipped = prepare(manifest, tmp_path / "scans", spec, store)
        assert not skipped
        (row,) = prepared.itertuples()
        assert list(row.slices) == [2, 4, 6, 8, 10]
        assert row.store_shape == [12, 8, 16] == list(stored_shape(tuple(shape), (1.0, 1.0, 1.0), spec))
    for k in range(12):
        assert (store.read(row.store_key, (k, 0, 0), (1, 8, 16), -1) == 100 * k).all()
    assert before > 0 == bytes_to_write(manifest, spec, store)
    blank, other = manifest.assign(spacing_mm=[[math.nan] * 3]), Store(tmp_path / "other")
    prepare(blank, tmp_path / "scans", spec, other)
    assert bytes_to_write(blank, spec, other) == 0
    unknown = replace(spec, sizing="fit", patch=(8, 16))
    assert prepared_array(Volume(values[None].astype(np.float32), np.eye(4)), unknown).shape == (1, 12, 8, 8)


def test_nothing_is_decoded_twice(scans, decoded):
    root, manifest, store = scans
    first, _ = prepare(manifest, root, MR, store)
    assert len(decoded) == 4
    second, _ = prepare(manifest, root, MR, store)
    assert len(decoded) == 4
    pd.testing.assert_frame_equal(first, second)


def test_an_interrupted_run_goes_on_where_it_was(scans, decoded):
    root, manifest, store = scans

    def stop(done, total):
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare(manifest, root, MR, store, progress=stop)
    prepare(manifest, root, MR, store)
    assert sorted(decoded) == sorted(set(decoded))


def test_keyed_by_content_not_by_time_or_name(scans, decoded):
    root, manifest, store = scans
    before, _ = prepare(manifest, root, MR, store)
    os.utime(root / "0.nii", (1, 1))
    (root / "1.nii").rename(root / "9.nii")
    again, _ = prepare(scanned(root), root, MR, store)
    assert len(decoded) == 4
    assert set(again["store_key"]) == set(before["store_key"])

    changed = bytearray((root / "2.nii").read_bytes())
    changed[-1] ^= 1
    state = (root / "2.nii").stat()
    (root / "2.nii").write_bytes(changed)
    os.utime(root / "2.nii", ns=(state.st_atime_ns, state.st_mtime_ns + 1))
    after, _ = prepare(scanned(root), root, MR, store)
    assert decoded[4:] == ["2.nii"]
    assert len(set(after["store_key"]) - set(before["store_key"])) == 1


@pytest.mark.parametrize("harm", [lambda b: b[: len(b) // 2], lambda b: b[:-1] + bytes([b[-1] ^ 4]), lambda b: b""])
def test_a_damaged_entry_is_rebuilt(scans, decoded, harm):
    root, manifest, store = scans
    before, _ = prepare(manifest, root, MR, store)
    key = before["store_key"][1]
    sound = store.facts(key)
    path = next(store.root.glob(f"*/{key}.safetensors"))
    path.write_bytes(harm(path.read_bytes()))
    after, _ = prepare(manifest, root, MR, store)
    assert len(decoded) == 5
    assert store.facts(key) == sound is not None
    pd.testing.assert_frame_equal(before, after)


def test_another_spec_is_another_entry(scans, decoded):
    root, manifest, store = scans
    one, _ = prepare(manifest, root, MR, store)
    two, _ = prepare(manifest, root, replace(MR, spacing_mm=(1.0, 1.0, 1.0)), store)
    assert len(decoded) == 8
    assert not set(one["store_key"]) & set(two["store_key"])
    prepare(manifest, root, replace(MR, patch=(9, 9, 9), preset="xray"), store)
    assert len(decoded) == 8


def test_an_unreadable_item_costs_only_itself(scans):
    root, manifest, store = scans
    (root / "1.nii").write_bytes((root / "1.nii").read_bytes()[:400])
    (root / "3.nii").unlink()
    prepared, skipped = prepare(manifest, root, MR, store)
    assert [source[0] for source in prepared["source"]] == ["0.nii", "2.nii"]
    assert prepared["store_key"].notna().all()
    assert {s.item: s.reason for s in skipped} == {"1.nii": "TRUNCATED", "3.nii": "UNREADABLE"}
    assert str(root) not in "".join(s.message for s in skipped)


def test_nothing_readable(scans):
    root, manifest, store = scans
    for path in root.iterdir():
        path.unlink()
    prepared, skipped = prepare(manifest, root, MR, store)
    assert prepared.empty
    assert len(skipped) == 4


def test_processes_only_where_they_pay():
    for workers, items in ((0, 10**6), (1, 10**6), (8, 20), (None, 3)):
        with processes(workers, items) as pool:
            assert pool is None


class Counting:
    """An executor that does the work when its result is asked for, and knows how much was waiting at most."""

    def __init__(self, kills=""):
        self.waiting = self.most = self.submitted = 0
        self.kills = kills

    def submit(self, job, chunk):
        self.waiting += 1
        self.submitted += 1
        self.most = max(self.most, self.waiting)
        future = Future()
        future.result = lambda: self.do(job, chunk)
        return future

    def do(self, job, chunk):
        self.waiting -= 1
        if any(candidate.paths == (self.kills,) for _, candidate in chunk):
            raise KilledWorker
        return job(chunk)


class KilledWorker(Exception):
    """As Dask names it."""


def test_any_executor_gives_the_same_and_never_holds_all(scans, tmp_path, monkeypatch):
    root, manifest, store = scans
    manifest = pd.concat([manifest] * 5, ignore_index=True)
    monkeypatch.setattr(module, "_IN_FLIGHT", 3)
    one, _ = prepare(manifest, root, MR, store)
    executor = Counting()
    other, _ = prepare(manifest, root, MR, Store(tmp_path / "other"), executor)
    pd.testing.assert_frame_equal(one, other)
    assert (executor.submitted, executor.most) == (20, 3)


def test_a_volume_that_kills_dask_workers_costs_itself(scans, monkeypatch):
    root, manifest, store = scans
    monkeypatch.setattr(module, "max", lambda *numbers: 4, raising=False)  # one chunk
    executor = Counting(kills="2.nii")
    prepared, skipped = prepare(manifest, root, MR, store, executor)
    assert [source[0] for source in prepared["source"]] == ["0.nii", "1.nii", "3.nii"]
    assert [(one.item, one.reason) for one in skipped] == [("2.nii", "TOO_LARGE")]
    assert executor.submitted == 1 + 4


def test_other_failures_of_an_executor_end_the_run(scans):
    root, manifest, store = scans
    executor = Counting()
    executor.do = lambda job, chunk: 1 // 0
    with pytest.raises(ZeroDivisionError):
        prepare(manifest, root, MR, store, executor)


@pytest.mark.parametrize("n_shards", [1, 2, 3, 7, 50])
def test_shards_are_a_partition_whatever_the_order(n_shards):
    manifest = pd.DataFrame(
        {"source": [[f"p{n // 2}.npz", "x"] for n in range(40)], "member": [n % 2 for n in range(40)]}
    )
    names = manifest["source"].str[0] + manifest["member"].astype(str)
    shuffled = manifest.sample(frac=1, random_state=3).reset_index(drop=True)
    parts = [shard(manifest, index, n_shards) for index in range(n_shards)]
    assert sorted(label for part in parts for label in part.index) == list(range(40))
    assert {len(part) for part in parts} <= {40 // n_shards, -(-40 // n_shards)}
    for index, part in enumerate(parts):
        assert list(part.index) == sorted(part.index)
        again = shard(shuffled, index, n_shards)
        assert set(again["source"].str[0] + again["member"].astype(str)) == set(names[part.index])
    if n_shards == 2:
        assert 5 < sum(label < 20 for label in parts[0].index) < 15  # drawn, not cut in two


def test_what_the_store_will_grow_by(scans):
    root, manifest, store = scans
    coarse = replace(MR, spacing_mm=(3.0, 1.0, 1.3))
    shapes = [stored_shape((10, 9, 8), (1.0, 1.0, 1.0), spec) for spec in (MR, coarse, replace(PLANE, patch=(5, 8, 8)))]
    assert shapes == [(5, 9, 8), (3, 9, 6), (5, 4, 4)]
    whole, fine = (replace(MR, spacing_mm=(step,) * 3) for step in (1.0, 0.5))
    for spec, blocks, halved in ((whole, 2, 2), (coarse, 1, 1), (fine, 7, 4)):  # of 4 KiB
        assert bytes_to_write(manifest, spec, store) == 4 * 4096 * blocks
        assert bytes_to_write(manifest, replace(spec, modality=("CT",)), store) == 4 * 4096 * halved
        before = bytes_to_write(manifest, spec, store)
        prepared, _ = prepare(manifest[:3], root, spec, store)
        assert {tuple(shape) for shape in prepared["store_shape"]} == {stored_shape((10, 9, 8), (1.0,) * 3, spec)}
        written = sum(512 * path.stat().st_blocks for path in store.root.glob(f"*/*{spec.digest()}.*"))
        assert bytes_to_write(manifest, spec, store) == before - written == before // 4
        assert bytes_to_write(manifest, spec, store, manifest[:1]) == before // 4
        prepare(manifest, root, spec, store)
        assert bytes_to_write(manifest, spec, store) == 0
    assert bytes_to_write(manifest, replace(MR, spacing_mm=(1e-3,) * 3), store) == 0  # too large, and skipped


def test_what_a_volume_may_take_grows_with_it(scans, monkeypatch):
    root, manifest, store = scans
    allowed = []
    monkeypatch.setattr(module, "isolated", lambda *args, **allowance: allowed.append((args[2], allowance)) or {})
    large = manifest[:1].assign(shape=[[512, 512, 1000]])
    module._prepare_chunk(
        root, MR, store, [(None, candidate_of(row)) for row in pd.concat([manifest[:1], large]).itertuples()]
    )
    (_, small), (_, big) = allowed
    assert small["seconds"] > 300
    assert small["memory"] > 4 << 30
    # A slow disk: a megabyte a second, were the file as large as the volume in memory.
    assert big["seconds"] - small["seconds"] > 4 * 512 * 512 * 1000 / 1e6 - 10
    # float64 of the scan and of what becomes of it, several times over.
    assert big["memory"] - small["memory"] > 4 * 8 * 512 * 512 * 1500


def test_an_archive_is_hashed_once(tmp_path, monkeypatch):
    """Thousands of images share one file; hashing it for each would take days."""
    images = np.random.default_rng(0).integers(0, 255, (12, 9, 9), np.uint8)
    np.savez(tmp_path / "a.npz", train_images=images)
    calls = []
    digest = hashlib.file_digest
    monkeypatch.setattr(hashlib, "file_digest", lambda *args: calls.append(1) or digest(*args))
    prepared, _ = prepare(scanned(tmp_path), tmp_path, PLANE, Store(tmp_path / "store"))
    assert prepared["store_key"].nunique() == 12
    assert len(calls) == 1


def test_an_entry_of_a_volume_without_spacing_follows_the_patch(tmp_path):
    """Its size comes from the patch even under a spec that resamples to a spacing."""
    values = np.random.default_rng(0).normal(size=(1, 20, 20, 20)).astype(np.float32)
    affine = np.diag([math.nan, math.nan, math.nan, 1])
    (tmp_path / "a").write_bytes(b"x")
    item = Candidate("nifti", ("a",), 0, "", False, "", "", "", "", "", "", "", 0.0, (20,) * 3, (math.nan,) * 3, "RAS")
    manifest = build_manifest([item], Pseudonymiser(b"k" * 32))[0]
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(module.READERS, "nifti", lambda root, item: Volume(values, affine))
        shapes = [
            prepare(manifest, tmp_path, replace(MR, patch=(side,) * 3), Store(tmp_path / "s"))[0]["store_shape"][0]
            for side in (8, 10, 8)
        ]
    assert shapes == [[8, 8, 8], [10, 10, 10], [8, 8, 8]]


RAMP = np.array([3.0, -2.0, 0.5])  # grey values a millimetre, along each axis


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (2.0, 0.7, 3.0), (3.3, 1.0, 0.5), (0.9, 2.0, 1.0)])
def test_a_ramp_in_mm_stays_that_ramp(spacing):
    shape, target = (23, 30, 26), (1.7, 1.0, 1.3)
    places = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij")) * np.reshape(spacing, (3, 1, 1, 1))
    image = np.tensordot(RAMP, places, 1).astype(np.float32)[None]
    (array,) = prepared_array(Volume(image, np.diag([*spacing, 1.0])), replace(MR, spacing_mm=target))
    extent = np.array(shape) * spacing
    assert (np.abs(np.array(array.shape) * target - extent) <= 0.5 * np.array(target) + 1e-6).all()
    inner = array[tuple(slice(n // 4, n - n // 4) for n in array.shape)]
    for axis in range(3):
        np.testing.assert_allclose(np.diff(inner, axis=axis), RAMP[axis] * target[axis], atol=2e-3)
    # Both grids have their centre in the same place.
    assert array.mean() == pytest.approx(image.mean(), abs=0.02)
    assert (array[::-1, ::-1, ::-1] + array).std() < 0.02


def test_what_fits_is_not_touched():
    values = np.random.default_rng(0).normal(size=(1, 8, 8, 8)).astype(np.float32)
    spec = replace(MR, spacing_mm=(1.0, 1.0, 1.0))
    np.testing.assert_array_equal(prepared_array(Volume(values, np.eye(4)), spec), values)
    plane = Volume(values[:, 0, :, :6], np.diag([math.nan, math.nan, 1, 1]))
    np.testing.assert_array_equal(prepared_array(plane, replace(PLANE, patch=(28, 28))), plane.array)


def test_fit_keeps_proportions_and_never_enlarges():
    plane = Volume(np.random.default_rng(0).normal(size=(1, 40, 20)).astype(np.float32), np.diag([0.1, 0.1, 1, 1]))
    assert prepared_array(plane, PLANE).shape == (1, 8, 4)
    assert prepared_array(plane, replace(PLANE, patch=(80, 80))).shape == (1, 40, 20)


def test_shrinking_does_not_alias():
    """Stripes finer than the new voxels become grey, not coarser stripes."""
    stripes = np.broadcast_to(np.arange(48)[:, None, None] % 2 * 100.0, (1, 48, 8, 8)).astype(np.float32)
    array = prepared_array(Volume(stripes, np.eye(4)), replace(MR, spacing_mm=(3.0, 1.0, 1.0)))
    assert array.shape == (1, 16, 8, 8)
    assert abs(array[:, 2:-2] - 50).max() < 5
    naive = stripes[:, 1::3]
    assert abs(naive - 50).max() == 50


def test_ct_is_clipped_int16_and_all_else_is_float():
    values = np.array([-3000.0, -0.4, 0.6, 9000.0], np.float32).reshape(1, 4, 1, 1)
    spec = replace(CT, spacing_mm=(1.0, 1.0, 1.0))
    array = prepared_array(Volume(values, np.eye(4)), spec)
    assert array.dtype == np.int16
    assert array.ravel().tolist() == [-1024, 0, 1, 3071]
    wild = prepared_array(Volume(values * 100, np.eye(4)), replace(spec, clip=None))
    assert wild.ravel().tolist() == [-32768, -40, 60, 32767]
    assert prepared_array(Volume(values, np.eye(4)), replace(MR, spacing_mm=(1.0,) * 3)).dtype == np.float32


def test_a_wrong_spacing_is_refused_before_it_fills_the_memory():
    volume = Volume(np.zeros((1, 64, 64, 64), np.float32), np.diag([900.0, 900.0, 900.0, 1]))
    with pytest.raises(Unreadable, match="64, 64, 64") as raised:
        prepared_array(volume, MR)
    assert raised.value.reason == "TOO_LARGE"


def test_statistics():
    array = np.array([0, 0, 0, 2, 4, 6, 8], np.int16)
    measured = statistics(array)
    assert measured["mean"] == 5
    assert measured["std"] == pytest.approx(np.sqrt(5))
    assert (measured["low"], measured["high"]) == tuple(np.percentile(array, (0.5, 99.5)))
    assert statistics(np.zeros((4, 4))) == {"mean": 0, "std": 0, "low": 0, "high": 0}
    speck = np.zeros(1000)
    speck[0] = 9
    assert (statistics(speck)["low"], statistics(speck)["high"]) == (0, 9)


def test_the_store_survives_a_move(scans, tmp_path, decoded):
    root, manifest, store = scans
    prepare(manifest, root, MR, store)
    shutil.move(store.root, tmp_path / "elsewhere")
    prepare(manifest, root, MR, Store(tmp_path / "elsewhere"))
    assert len(decoded) == 4
