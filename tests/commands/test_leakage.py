"""`medclr leakage` through the command line, on pictures and label tables."""

import json
import stat
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from scipy import ndimage

from medclr.cli import main

KINDS = ("patients", "studies", "series", "pixels", "near_duplicates")


def pictures(n, seed):
    noise = np.random.default_rng(seed).standard_normal((n, 64, 64))
    smooth = sum(b / b.std() for b in (ndimage.gaussian_filter(noise, (0, s, s)) for s in (2, 6)))
    return np.uint8(np.clip(smooth * 40 + 128, 0, 255))


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Prepared: four pictures, two of them as JPEG of half the size, three others, and one of the four as it is."""
    root = tmp_path_factory.mktemp("leakage")
    four, others = pictures(4, 0), pictures(3, 1)
    sets = {
        "four": {f"{i}.png": image for i, image in enumerate(four)},
        "half": {f"x{i}.jpg": np.asarray(Image.fromarray(four[i]).resize((32, 32))) for i in (2, 3)},
        "others": {f"{i}.png": image for i, image in enumerate(others)},
        "same": {"y.png": four[1], "z.png": others[0]},
    }
    for name, files in sets.items():
        (root / name).mkdir()
        for file, pixels in files.items():
            Image.fromarray(pixels).save(root / name / file, quality=75)
        words = ["--data", str(root / name), "--out", str(root / "runs" / name), "--spec", "cxr"]
        assert main(["prepare", *words, "--key-file", str(root / "key"), "--workers", "0"]) == 0
    scan = ["scan", "--data", str(root / "four"), "--out", str(root / "runs/scanned"), "--workers", "0"]
    assert main([*scan, "--key-file", str(root / "key")]) == 0
    return root / "runs"


@pytest.fixture
def compare(runs, tmp_path, capsys):
    """Compare two by name or path; the exit code, leakage.json's checks, the pairs and standard error."""

    def run(first, second=None, *words):
        sides = {"--first": first, "--second": second}
        flags = [word for flag, side in sides.items() if side for word in (flag, str(runs / side))]
        out = tmp_path / "out"
        capsys.readouterr()
        code = main(["leakage", *flags, "--out", str(out), *words])
        checks = json.loads((out / "leakage.json").read_text())["checks"]
        assert tuple(checks) == KINDS
        return code, checks, pd.read_csv(out / "private/shared.csv"), capsys.readouterr()

    return run


def verdicts(checks):
    return [checks[kind]["verdict"] for kind in KINDS]


UNKNOWN = ["not checkable"] * 3


def test_a_re_encoded_copy_is_found_and_is_no_error_by_itself(compare):
    code, checks, pairs, _ = compare("four", "half")
    assert code == 0
    assert verdicts(checks) == [*UNKNOWN, "clean", "shared"]
    assert set(zip(pairs["first_source"], pairs["second_source"], strict=True)) == {
        ("2.png", "x2.jpg"),
        ("3.png", "x3.jpg"),
    }
    assert pairs["similarity"].between(0.96, 1).all()


def test_strict_makes_near_duplicates_an_error(compare):
    code, _, pairs, said = compare("four", "half", "--strict")
    assert code == 1
    assert len(pairs) == 2
    assert said.err.count("\n") == 1
    assert "near-duplicates 2" in said.err


def test_identical_pixels_are_an_error_after_all_is_written(compare, tmp_path):
    code, checks, pairs, said = compare("four", "same")
    assert code == 1
    assert verdicts(checks) == [*UNKNOWN, "shared", "clean"]
    assert pairs[["kind", "first_source", "second_source"]].to_numpy().tolist() == [["pixels", "1.png", "y.png"]]
    assert "pixels 1" in said.err
    assert "png" not in said.out + said.err + (tmp_path / "out/leakage.json").read_text()
    assert stat.S_IMODE((tmp_path / "out/private/shared.csv").stat().st_mode) == 0o600


def test_others_are_clean_in_what_can_be_checked(compare):
    code, checks, pairs, _ = compare("four", "others")
    assert code == 0
    assert verdicts(checks) == [*UNKNOWN, "clean", "clean"]
    assert pairs.empty


def test_what_was_only_scanned_is_not_checkable(compare):
    _, checks, _, said = compare("scanned", "others")
    assert verdicts(checks) == ["not checkable"] * 5
    assert "4 of 4 rows of --first" in said.out


def tables(folder, **columns):
    for name, rows in columns.items():
        pd.DataFrame(rows).to_csv(folder / f"{name}.csv", index=False)
    return [str(folder / f"{name}.csv") for name in columns]


def test_two_label_tables(compare, runs, tmp_path):
    one = {"patient_id": ["A", "B"], "series_uid": ["1.1", "1.2"], "label": [0, 1]}
    other = {"patient_id": ["B", "C"], "series_uid": ["1.3", ""], "label": [0, 1]}
    first, second = tables(tmp_path, one=one, other=other)
    code, checks, pairs, _ = compare(first, second, "--key-file", str(runs.parent / "key"))
    assert code == 1
    assert verdicts(checks) == ["shared", "not checkable", "not checkable", "not checkable", "not checkable"]
    assert checks["patients"] == {"verdict": "shared", "shared": 1, "not_checked": ""}
    assert "1 of 2 rows of --second have no series" in checks["series"]["not_checked"]
    assert "B" not in pairs["first"].tolist()


def test_a_manifest_and_a_table_by_patient(compare, runs, tmp_path):
    """Under the key of the manifest patients compare; under another they are not checkable, never clean."""
    manifest = pd.read_parquet(runs / "four/private/manifest.parquet")
    keys = pd.read_csv(runs / "four/private/keys.csv", dtype=str)
    (tmp_path / "run/private").mkdir(parents=True)
    manifest.assign(patient_known=True).to_parquet(tmp_path / "run/private/manifest.parquet")
    keys.to_csv(tmp_path / "run/private/keys.csv", index=False)
    raw = keys[keys["kind"] == "patient"]["raw"].tolist()
    seen, unseen = tables(
        tmp_path, seen={"patient_id": [raw[0], "X"], "label": [0, 1]}, unseen={"patient_id": ["X"], "label": [0]}
    )
    key, other = (["--key-file", str(path)] for path in (runs.parent / "key", tmp_path / "another"))
    assert compare(str(tmp_path / "run"), seen, *key)[1]["patients"]["shared"] == 1
    (tmp_path / "out").rename(tmp_path / "before")
    assert compare(str(tmp_path / "run"), unseen, *key)[1]["patients"]["verdict"] == "clean"
    (tmp_path / "out").rename(tmp_path / "before2")
    _, checks, _, _ = compare(str(tmp_path / "run"), seen, *other)
    assert checks["patients"]["verdict"] == "not checkable"
    assert "key" in checks["patients"]["not_checked"]


def test_within_a_table_across_its_splits(compare, runs, tmp_path):
    rows = {"patient_id": ["A", "A", "B", "B"], "split": ["train", "test", "val", "val"], "label": [0, 1, 0, 1]}
    (table,) = tables(tmp_path, table=rows)
    code, checks, _, _ = compare(table, None, "--key-file", str(runs.parent / "key"))
    assert code == 1
    assert checks["patients"]["shared"] == 1


def test_within_a_manifest_across_patients(compare, runs, tmp_path):
    """Two scans of one patient may be alike; two of the unknown, or of two, should not."""
    manifest = pd.concat(
        [pd.read_parquet(runs / name / "private/manifest.parquet") for name in ("four", "half", "same")]
    )
    manifest.to_parquet(tmp_path / "unknown.parquet")
    manifest.assign(patient_known=True, patient_key="p").to_parquet(tmp_path / "one.parquet")
    code, checks, _, _ = compare(str(tmp_path / "unknown.parquet"))
    assert code == 1
    assert (checks["pixels"]["shared"], checks["near_duplicates"]["shared"]) == (1, 2)
    assert checks["patients"]["verdict"] == "not checkable"
    (tmp_path / "out").rename(tmp_path / "before")
    code, checks, _, _ = compare(str(tmp_path / "one.parquet"))
    assert code == 0
    assert verdicts(checks)[3:] == ["clean", "clean"]


@pytest.mark.parametrize("name", ["gone", "damaged.parquet", "empty"])
def test_what_is_no_set_is_one_line(tmp_path, capsys, name):
    (tmp_path / "damaged.parquet").write_bytes(b"PAR1 and no more")
    (tmp_path / "empty").mkdir()
    flags = ["--first", str(tmp_path / name), "--key-file", str(tmp_path / "key"), "--out", str(tmp_path / "out")]
    assert main(["leakage", *flags]) in (1, 2)
    assert capsys.readouterr().err.count("\n") == 1
    assert not Path(tmp_path / "out/leakage.json").exists()
