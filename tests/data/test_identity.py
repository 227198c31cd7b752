"""Pseudonyms, the key file, pixel hashes and the leakage verdict."""

import hashlib
import hmac
import json
import os
import pickle
import stat
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from itertools import zip_longest
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from medclr.data.identity import Pseudonymiser, Seen, check_leakage, load_key, pixel_hash
from medclr.errors import BundleError, MedclrError

HEX = set("0123456789abcdef")


# Pseudonyms


def test_a_pseudonym_is_the_start_of_an_hmac():
    key = bytes(range(32))
    expected = hmac.new(key, b"patient\0P-1", hashlib.sha256).hexdigest()[:16]
    assert Pseudonymiser(key).pseudonym("patient", "P-1") == expected


@settings(max_examples=30, deadline=None)
@given(st.text(), st.text())
def test_pseudonyms_differ_as_their_identifiers_do(one, other):
    names = Pseudonymiser(b"k" * 32)
    assert (names.pseudonym("patient", one) == names.pseudonym("patient", other)) == (one == other)
    assert names.pseudonym("patient", one) != names.pseudonym("study", one)
    assert set(names.pseudonym("patient", one)) <= HEX


def test_pseudonyms_and_fingerprint_depend_on_the_key():
    one, other = Pseudonymiser(b"a" * 32), Pseudonymiser(b"b" * 32)
    assert one.pseudonym("patient", "P") != other.pseudonym("patient", "P")
    assert one.fingerprint != other.fingerprint
    assert len(one.fingerprint) == 16


def test_identifiers_with_undecodable_bytes_have_a_pseudonym():
    raw = os.fsdecode(b"M\xfcller")
    assert len(Pseudonymiser(b"k").pseudonym("path", raw)) == 16


def test_a_pseudonymiser_travels_to_workers_and_does_not_print_its_key():
    names = Pseudonymiser(b"secret-key")
    assert pickle.loads(pickle.dumps(names)).pseudonym("study", "1") == names.pseudonym("study", "1")
    assert "secret" not in repr(names)


# The key file


def test_the_default_key_is_made_once_in_the_users_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    first = load_key(None)
    file = tmp_path / ".config" / "medclr" / "key"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700
    assert len(bytes.fromhex(file.read_text().strip())) == 32
    assert load_key(None).fingerprint == first.fingerprint
    assert [path.name for path in file.parent.iterdir()] == ["key"]


def test_a_key_is_what_its_file_says(tmp_path):
    load_key(tmp_path / "key")
    raw = bytes.fromhex((tmp_path / "key").read_text())
    assert load_key(tmp_path / "key").fingerprint == Pseudonymiser(raw).fingerprint
    assert load_key(tmp_path / "another").fingerprint != load_key(tmp_path / "key").fingerprint


def test_a_wide_umask_does_not_widen_the_key(tmp_path):
    before = os.umask(0)
    try:
        load_key(tmp_path / "new" / "key")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "new" / "key").stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o700


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o644, 0o620])
def test_a_key_that_others_can_reach_is_refused(tmp_path, mode):
    load_key(tmp_path / "key")
    (tmp_path / "key").chmod(mode)
    with pytest.raises(MedclrError, match=rf"mode {mode:04o} .*chmod 600"):
        load_key(tmp_path / "key")


@pytest.mark.parametrize("content", [b"", b"\n", b"ab" * 31, b"ab" * 33, b"zz" * 32, b"\xff" * 64, b"ab" * 32 + b" x"])
def test_a_file_that_is_no_key_is_refused_and_left_alone(tmp_path, content):
    file = tmp_path / "key"
    file.write_bytes(content)
    file.chmod(0o600)
    with pytest.raises(MedclrError, match="64 hexadecimal digits") as error:
        load_key(file)
    assert "abab" not in str(error.value)
    assert file.read_bytes() == content


def test_a_key_with_another_line_ending_is_the_same_key(tmp_path):
    for name, ending in (("unix", "\n"), ("windows", "\r\n"), ("none", "")):
        (tmp_path / name).write_bytes(("AB" * 32 + ending).encode())
        (tmp_path / name).chmod(0o600)
    assert len({load_key(tmp_path / name).fingerprint for name in ("unix", "windows", "none")}) == 1


def test_a_folder_or_a_file_in_the_way_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    for path in (tmp_path, tmp_path / "file" / "key"):
        with pytest.raises(MedclrError, match="--key-file") as error:
            load_key(path)
        assert "\n" not in str(error.value)


def test_processes_that_make_the_same_key_agree(tmp_path):
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        for i in range(20):
            made = pool.map(load_key, [tmp_path / f"{i}" / "key"] * 4)
            assert len({names.fingerprint for names in made}) == 1
            assert [path.name for path in (tmp_path / f"{i}").iterdir()] == ["key"]


def test_a_slower_process_keeps_the_faster_ones_key(tmp_path, monkeypatch):
    path = tmp_path / "key"
    link, faster = os.link, "12" * 32

    def link_second(source, target):
        path.write_text(faster)
        path.chmod(0o600)
        link(source, target)

    monkeypatch.setattr(os, "link", link_second)
    assert load_key(path).fingerprint == Pseudonymiser(bytes.fromhex(faster)).fingerprint


# Pixel hashes


@settings(max_examples=30, deadline=None)
@given(hnp.arrays(np.int16, hnp.array_shapes(min_dims=2, max_dims=4, max_side=4)))
def test_pixel_hash_sees_values_and_not_storage(array):
    expected = pixel_hash(array)
    assert len(expected) == 32
    assert set(expected) <= HEX
    for same in (array.astype("f4"), array.astype(">f8"), np.asfortranarray(array), array.astype("i4")):
        assert pixel_hash(same) == expected
    changed = array.copy()
    changed.flat[-1] ^= 1
    assert pixel_hash(changed) != expected
    assert pixel_hash(array[None]) != expected


def test_pixel_hash_takes_negative_zero_for_zero_and_does_not_change():
    assert pixel_hash(np.array([0.0, 1.0])) == pixel_hash(np.array([-0.0, 1.0]))
    expected = hashlib.blake2b(b"(2, 3)" + np.arange(6, dtype="<f4").tobytes(), digest_size=16).hexdigest()
    assert pixel_hash(np.arange(6).reshape(2, 3)) == expected


def test_a_user_without_a_home_is_told_to_name_a_key(monkeypatch):
    def none(self):
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "expanduser", none)
    with pytest.raises(MedclrError, match="no home folder; name a key with --key-file"):
        load_key(None)


# Leakage


SEEN = Seen("key-1", frozenset({"a", "b"}), frozenset({"p", "q"}), 0)


def rows_of(patients, pixels, n_unknown=0):
    """Of a manifest, with these patients and pixel hashes, and some of whom nobody knows the patient."""
    both = list(zip_longest(patients, pixels, fillvalue="of nobody else"))
    both += [(f"file {number}", "of nobody else") for number in range(n_unknown)]
    known = [not patient.startswith("file") for patient, _ in both]
    return pd.DataFrame(both, columns=["patient_key", "pixel_hash"]).assign(patient_known=pd.Series(known, dtype=bool))


@pytest.mark.parametrize(
    ("fingerprint", "patients", "pixels", "verdict"),
    [
        ("key-1", ["c", "d"], ["r"], ("clean", 0, 0)),
        ("key-1", ["a", "a", "c"], ["r"], ("leak", 1, 0)),
        ("key-1", ["c"], ["p", "p", "r"], ("leak", 0, 2)),
        ("key-1", ["a", "b"], ["p"], ("leak", 2, 1)),
        ("key-2", ["c"], ["r"], ("patients not checkable", 0, 0)),
        ("key-2", [], [], ("patients not checkable", 0, 0)),
        # Equal text under another key means nothing.
        ("key-2", ["a"], ["r"], ("patients not checkable", 0, 0)),
        ("key-2", ["a"], ["p"], ("leak", 0, 1)),
    ],
)
def test_verdicts(fingerprint, patients, pixels, verdict):
    found = check_leakage(SEEN, fingerprint, rows_of(patients, pixels))
    assert (found.status, found.n_patients, found.n_images) == verdict


@pytest.mark.parametrize(("in_test", "in_training"), [(1, 0), (0, 3), (2, 1)])
def test_unknown_patients_are_never_clean(in_test, in_training):
    seen = replace(SEEN, n_unknown=in_training)
    found = check_leakage(seen, "key-1", rows_of(["c"], ["r"], in_test))
    assert found.status == "patients not checkable"
    assert "nothing names the patient of" in found.sentence
    assert check_leakage(seen, "key-1", rows_of(["a"], ["r"], in_test)).status == "leak"


def test_a_patient_of_several_names_counts_once_and_by_each():
    """`name_patients` put what files call a and c together."""
    test = rows_of(["a", "a", "d"], []).assign(file_patient_key=["a", "c", "d"])
    assert check_leakage(replace(SEEN, patients=frozenset("c")), "key-1", test).n_patients == 1
    assert check_leakage(replace(SEEN, patients=frozenset("ac")), "key-1", test).n_patients == 1
    assert check_leakage(replace(SEEN, patients=frozenset("e")), "key-1", test).status == "clean"


def test_sentences_say_what_was_found():
    def sentence(fingerprint, patients, pixels):
        return check_leakage(SEEN, fingerprint, rows_of(patients, pixels)).sentence

    assert sentence("key-1", ["a", "b"], ["p"]) == "Pre-training saw 2 test patients and 1 test image."
    assert sentence("key-2", ["a"], ["p", "q"]) == "Pre-training saw 2 test images."
    assert sentence("key-1", ["a"], []) == "Pre-training saw 1 test patient."
    assert "none" in sentence("key-1", ["c"], ["r"])
    assert sentence("key-2", ["a"], ["r"]).startswith("Patients not checkable")


def test_seen_survives_json_and_is_sorted():
    data = json.loads(json.dumps(SEEN.to_dict()))
    assert data == {"fingerprint": "key-1", "patients": ["a", "b"], "pixels": ["p", "q"], "n_unknown": 0}
    assert Seen.from_dict(data) == SEEN


@pytest.mark.parametrize(
    "change",
    [{"patients": "ab"}, {"n_unknown": "1"}, {"pixels": [1]}, {"fingerprint": None}, {"extra": 1}, {"patients": None}],
)
def test_a_damaged_record_is_an_error(change):
    with pytest.raises(BundleError, match="what the encoder saw"):
        Seen.from_dict({**SEEN.to_dict(), **change})
    incomplete = SEEN.to_dict()
    del incomplete["pixels"]
    with pytest.raises(BundleError, match="exactly"):
        Seen.from_dict(incomplete)


def test_each_row_is_told_whether_it_was_seen():
    rows = pd.DataFrame(
        {
            "patient_key": ["seen", "new", "new", "nameless"],
            "pixel_hash": ["x1", "x2", "same", "x4"],
            "patient_known": [True, True, True, False],
        }
    )
    seen = Seen("key", frozenset({"seen"}), frozenset({"same"}), 0)
    assert list(seen.holds("key", rows)) == ["yes", "no", "yes", "not checkable"]
    assert list(seen.holds("other", rows)) == ["not checkable", "not checkable", "yes", "not checkable"]
    nameless = Seen("key", frozenset({"seen"}), frozenset({"same"}), 1)
    assert list(nameless.holds("key", rows)) == ["yes", "not checkable", "yes", "not checkable"]
    made = Seen.of("key", rows)
    assert made == Seen("key", frozenset({"seen", "new", "nameless"}), frozenset({"x1", "x2", "same", "x4"}), 1)
    assert set(made.holds("key", rows)) == {"yes"}


def test_what_two_trainings_saw():
    one = Seen("key-1", frozenset({"a", "b"}), frozenset({"p", "q"}), 1)
    two = Seen("key-1", frozenset({"b", "c"}), frozenset({"q", "r", "s"}), 2)
    assert one.union(two) == Seen("key-1", frozenset("abc"), frozenset("pqrs"), 3)
    assert one.union(one) == one, "nobody is unknown twice"
    assert one.union(replace(two, n_unknown=0)).n_unknown == 1


def test_patients_under_another_key_are_unknown():
    """But an image that is here too has a patient who is known here."""
    one = Seen("key-1", frozenset({"a", "b"}), frozenset({"p", "q"}), 0)
    other = Seen("key-2", frozenset({"x", "y", "z"}), frozenset({"q", "r", "s"}), 1)
    both = one.union(other)
    assert both == Seen("key-1", frozenset("ab"), frozenset("pqrs"), 2)
    assert check_leakage(both, "key-1", rows_of(["x"], ["t"])).status == "patients not checkable"
    assert check_leakage(both, "key-1", rows_of(["n"], ["s"])).status == "leak"


def test_a_training_that_left_no_record_is_never_clean():
    seen = Seen("", frozenset(), frozenset(), 0, "net (weights from elsewhere)")
    verdict = check_leakage(seen, "k", rows_of(["p"], ["x"]))
    assert (verdict.status, verdict.n_patients, verdict.n_images) == ("not checkable", 0, 0)
    assert verdict.sentence == (
        "Whether test patients or test images were seen is not checkable for net (weights from elsewhere): no record "
        "of patients and images came with them."
    )
    known = Seen("k", frozenset({"p"}), frozenset({"x"}), 0)
    for both in (known.union(seen), seen.union(known)):
        assert both.unrecorded == seen.unrecorded
        assert check_leakage(both, "k", rows_of(["q"], ["y"])).status == "not checkable"
        # What is recorded still counts.
        assert check_leakage(both, "k", rows_of(["q"], ["x"])).status == "leak"
    assert seen.union(seen).unrecorded == seen.unrecorded
    assert Seen.from_dict(seen.to_dict()) == seen
    assert known.to_dict().keys() == {"fingerprint", "patients", "pixels", "n_unknown"}
    with pytest.raises(BundleError, match="unrecorded is not text"):
        Seen.from_dict(seen.to_dict() | {"unrecorded": 3})
    rows = pd.DataFrame({"patient_key": ["p", "q"], "pixel_hash": ["x", "y"], "patient_known": [True, True]})
    assert list(known.union(seen).holds("k", rows)) == ["yes", "not checkable"]
