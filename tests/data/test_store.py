import multiprocessing
import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file

from medclr.data.store import Store, cut_block, on_disk
from medclr.errors import DataError

KEY = "ab" * 16
ARRAY = np.arange(2 * 5 * 6 * 7, dtype=np.int16).reshape(2, 5, 6, 7) - 100
FACTS = {"mean": "1.5", "shape": "5 6 7"}
FORK = multiprocessing.get_context("fork")


@pytest.fixture
def store(tmp_path):
    store = Store(tmp_path)
    store.write(KEY, ARRAY, FACTS)
    return store


def files(store):
    return sorted(path for path in store.root.rglob("*") if path.is_file())


def test_facts_come_back(store):
    assert store.facts(KEY) == FACTS
    assert store.facts("cd" * 16) is None


@given(
    start=st.tuples(st.integers(-9, 9), st.integers(-9, 9), st.integers(-9, 9)),
    size=st.tuples(st.integers(1, 9), st.integers(1, 9), st.integers(1, 9)),
    fill=st.sampled_from([0.0, -1000.0, -0.5]),
)
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_block_is_a_slice_of_the_padded_volume(store, start, size, fill):
    margin = 20
    # Whole numbers stay whole: what lies outside is never brighter than was asked for.
    padded = np.pad(ARRAY, [(0, 0), *[(margin, margin)] * 3], constant_values=int(np.floor(fill)))
    expected = padded[(slice(None), *(slice(a + margin, a + margin + s) for a, s in zip(start, size, strict=True)))]
    block = store.read(KEY, start, size, fill)
    assert block.dtype == np.int16
    assert block.shape == (2, *size)
    np.testing.assert_array_equal(block, expected)
    np.testing.assert_array_equal(cut_block(ARRAY, start, size, fill), expected)
    as_float = cut_block(ARRAY.astype(np.float32), start, size, fill)
    assert as_float.dtype == np.float32
    np.testing.assert_array_equal(np.floor(as_float), expected)


def test_planes_too(tmp_path):
    store = Store(tmp_path)
    plane = np.random.default_rng(0).random((1, 4, 5), np.float32)
    store.write(KEY, plane, {})
    np.testing.assert_array_equal(store.read(KEY, (1, 2), (2, 3), 0), plane[:, 1:3, 2:5])


@pytest.mark.parametrize("axes", [(0, 1, 2, 3), (0, 3, 2, 1), (0, 3, 1, 2)])
def test_an_array_may_lie_in_memory_in_any_order(tmp_path, axes):
    """As readers leave a volume that needs no resampling."""
    array = np.ascontiguousarray(ARRAY.transpose(axes)).transpose(np.argsort(axes))
    store = Store(tmp_path)
    store.write(KEY, array, FACTS)
    assert np.array_equal(store.read(KEY, (0, 0, 0), (5, 6, 7), 0.0), ARRAY)
    assert store.facts(KEY) == FACTS


def test_read_of_what_is_not_there_names_the_fix(store):
    with pytest.raises(DataError, match="entry cdcdcdcd… is missing or damaged; run `medclr prepare`"):
        store.read("cd" * 16, (0, 0, 0), (1, 1, 1), 0)
    files(store)[0].write_bytes(b"junk")
    with pytest.raises(DataError, match="damaged"):
        store.read(KEY, (0, 0, 0), (1, 1, 1), 0)


def test_an_entry_has_the_same_bytes_whenever_it_is_written(store, tmp_path):
    facts = {name: name for name in "zyxwvutsr"} | {"é": "ü"}
    for _ in range(5):  # safetensors orders its header anew each time
        store.write("cd" * 16, ARRAY, facts)
        store.write("ef" * 16, ARRAY, dict(reversed(facts.items())))
        one, other = ((tmp_path / key[:2] / f"{key}.safetensors").read_bytes() for key in ("cd" * 16, "ef" * 16))
        assert one == other
    assert store.facts("cd" * 16) == facts
    np.testing.assert_array_equal(load_file(tmp_path / "cd" / f"{'cd' * 16}.safetensors")["volume"], ARRAY)


def test_size_counts_entries_by_how_their_keys_end(store):
    store.write("cd" * 15 + "ab", ARRAY, FACTS)
    store.write("cd" * 16, ARRAY, FACTS)
    (store.root / "cd" / ".x.part").write_bytes(b"half")
    assert store.size("ab") == 2 * 4096
    assert store.size("cd") == 4096
    assert [on_disk(size) for size in (0, 1, 4096, 4097)] == [0, 4096, 4096, 8192]
    assert Store(store.root / "none").size("ab") == 0


def test_every_flipped_byte_is_noticed(store):
    (path,) = files(store)
    sound = path.read_bytes()
    rng = np.random.default_rng(0)
    header = 8 + int.from_bytes(sound[:8], "little")
    for at in [*range(header), *rng.integers(header, len(sound), 50)]:
        for mask in (0x01, 0x20, 0xFF):
            damaged = bytearray(sound)
            damaged[at] ^= mask
            path.write_bytes(damaged)
            assert store.facts(KEY) is None, (at, mask, sound[max(0, at - 10) : at + 10])
    path.write_bytes(sound)
    assert store.facts(KEY) == FACTS


@pytest.mark.parametrize("kept", [0, 1, 7, 8, 50, -1])
def test_a_truncated_entry_is_noticed(store, kept):
    (path,) = files(store)
    path.write_bytes(path.read_bytes()[:kept])
    assert store.facts(KEY) is None
    store.write(KEY, ARRAY, FACTS)
    assert store.facts(KEY) == FACTS


def test_a_folder_in_its_place_is_no_entry(tmp_path):
    (tmp_path / KEY[:2] / f"{KEY}.safetensors").mkdir(parents=True)
    assert Store(tmp_path).facts(KEY) is None


def _write_forever(store, started):
    large = np.zeros((1, 64, 64, 64), np.int16)
    while True:
        for number in range(100):
            store.write(f"{number:032x}", large, FACTS)
            started.set()


def test_a_killed_writer_leaves_whole_entries_only(tmp_path):
    store = Store(tmp_path)
    for wait in (0.02, 0.05, 0.11):
        started = FORK.Event()
        writer = FORK.Process(target=_write_forever, args=(store, started))
        writer.start()
        assert started.wait(10)
        time.sleep(wait)
        os.kill(writer.pid, signal.SIGKILL)
        writer.join()
    entries = list(tmp_path.glob("*/*.safetensors"))
    assert entries
    for path in entries:
        assert store.facts(path.stem) == FACTS


def test_what_killed_writers_left_is_swept_but_not_what_is_being_written(store):
    folder = next(path for path in store.root.iterdir() if path.is_dir())
    old, young = folder / ".old.part", folder / ".young.part"
    for partial in (old, young):
        partial.write_bytes(b"half")
    os.utime(old, (0, 0))
    before = {path for path in store.root.rglob("*") if path.is_file()}
    store.sweep()
    assert before - {path for path in store.root.rglob("*") if path.is_file()} == {old}


def test_a_write_that_fails_leaves_the_old_entry_and_nothing_else(store, monkeypatch):
    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        store.write(KEY, ARRAY + 1, {"mean": "2"})
    assert [path.name for path in files(store)] == [f"{KEY}.safetensors"]
    assert store.facts(KEY) == FACTS


def test_an_entry_shows_only_when_it_is_whole_and_synced(store, monkeypatch):
    """At the rename, the bytes are on the disk, under a name that no reader looks for."""
    seen = []
    replace, fsync = os.replace, os.fsync
    monkeypatch.setattr(os, "fsync", lambda descriptor: (seen.append("sync"), fsync(descriptor)))

    def rename(source, target):
        assert Path(source).parent == Path(target).parent
        assert not str(source).endswith(".safetensors")
        seen.append("rename")
        replace(source, target)

    monkeypatch.setattr(os, "replace", rename)
    store.write("cd" * 16, ARRAY, FACTS)
    assert seen == ["sync", "rename"]


def _write_often(store, value):
    for _ in range(40):
        store.write(KEY, np.full((1, 32, 32, 32), value, np.int16), {"value": str(value)})


def test_two_processes_write_the_same_key(tmp_path):
    store = Store(tmp_path)
    _write_often(store, 0)
    writers = [FORK.Process(target=_write_often, args=(store, value)) for value in (1, 2)]
    for writer in writers:
        writer.start()
    seen = set()
    while any(writer.is_alive() for writer in writers):
        facts = store.facts(KEY)
        assert facts is not None
        seen.add(facts["value"])
        block = store.read(KEY, (0, 0, 0), (32, 32, 32), 0)
        assert (block == block.flat[0]).all()
    assert [writer.exitcode for writer in writers] == [0, 0]
    assert seen & {"1", "2"}
    assert [path.suffix for path in files(store)] == [".safetensors"]
