from dataclasses import replace

import numpy as np
import pandas as pd

from medclr.data.candidate import Candidate, Skipped, settled
from medclr.data.identity import Pseudonymiser
from medclr.data.manifest import (
    COLUMNS,
    build_manifest,
    candidate_of,
    domain_names,
    read_skipped,
    skipped_frame,
    spatial_dims,
)

SCAN = Candidate(
    reader="dicom",
    paths=("CANARY/1.dcm", "CANARY/2.dcm"),
    member=0,
    patient_id="CANARY-patient",
    patient_known=True,
    study_uid="1.2.CANARY",
    series_uid="1.2.3.CANARY",
    site="CANARY hospital",
    modality="CT",
    manufacturer="ACME",
    model="One",
    kernel="B30f",
    field_strength=float("nan"),
    shape=(5, 6, 2),
    spacing_mm=(0.5, 0.5, 3.0),
    orientation="LPS",
    notes=("no Frame of Reference UID",),
)
NAMES = Pseudonymiser(b"k" * 32)


def test_columns_and_one_row_a_candidate():
    manifest, _ = build_manifest(
        [SCAN, replace(SCAN, series_uid="2", shape=(5, 6), spacing_mm=(np.nan, np.nan))], NAMES
    )
    assert tuple(manifest.columns) == COLUMNS
    assert list(manifest["n_files"]) == [2, 2]
    assert list(spatial_dims(manifest)) == [3, 2]
    assert manifest["volume_id"].is_unique
    assert manifest["patient_key"].nunique() == 1
    assert set(manifest["pixel_hash"]) == {""}  # until prepare has seen the pixels


def test_raw_ids_are_in_the_keys_alone():
    manifest, keys = build_manifest([SCAN], NAMES)
    assert "CANARY" not in manifest.drop(columns="source").to_csv()
    raw = {(row.kind, row.pseudonym): row.raw for row in keys.itertuples()}
    row = manifest.iloc[0]
    assert raw["patient", row.patient_key] == "CANARY-patient"
    assert raw["study", row.study_key] == "1.2.CANARY"
    assert raw["series", row.series_key] == "1.2.3.CANARY"
    assert raw["site", row.site] == "CANARY hospital"


def test_images_of_one_archive_are_volumes_of_their_own():
    members = [replace(SCAN, reader="npz", paths=("a.npz",), member=member) for member in range(3)]
    manifest, _ = build_manifest(members, NAMES)
    assert manifest["volume_id"].nunique() == 3


def test_pseudonyms_depend_on_the_key():
    one, _ = build_manifest([SCAN], NAMES)
    other, _ = build_manifest([SCAN], Pseudonymiser(b"j" * 32))
    for column in ("volume_id", "patient_key", "study_key", "series_key"):
        assert one[column][0] != other[column][0]


def test_sites_are_letters_by_how_common_they_are():
    names = ["", "rare", *["b"] * 3, *["a"] * 3, *["often\0"] * 5]
    manifest, keys = build_manifest(
        [replace(SCAN, site=name, series_uid=str(i)) for i, name in enumerate(names)], NAMES
    )
    given = dict(zip(names, manifest["site"], strict=True))
    assert given == {"": "", "often\0": "site A", "a": "site B", "b": "site C", "rare": "site D"}
    assert dict(keys[keys["kind"] == "site"][["pseudonym", "raw"]].to_numpy())["site D"] == "rare"


def test_more_sites_than_letters():
    sites = [f"s{number:04d}" for number in range(703)]
    manifest, _ = build_manifest([replace(SCAN, site=site, series_uid=site) for site in sites], NAMES)
    assert manifest["site"].is_unique
    assert [manifest["site"][i] for i in (0, 25, 26, 701, 702)] == [
        "site A",
        "site Z",
        "site AA",
        "site ZZ",
        "site AAA",
    ]


def test_a_domain_that_is_not_known_is_called_so():
    rows = pd.DataFrame({"site": ["site A", "", "site B"], "field_strength": [1.5, float("nan"), 3.0]})
    assert domain_names(rows, "site").tolist() == ["site A", "unknown", "site B"]
    assert domain_names(rows, "field_strength").tolist() == ["1.5", "unknown", "3.0"]


def test_a_row_leads_back_to_its_candidate(tmp_path):
    manifest, _ = build_manifest([SCAN], NAMES)
    manifest.to_parquet(tmp_path / "m.parquet")
    for table in (manifest, pd.read_parquet(tmp_path / "m.parquet")):
        (row,) = table.itertuples(index=False)
        found = candidate_of(row)
        blank = {"patient_id": "", "study_uid": "", "series_uid": "", "site": ""}
        assert np.isnan(found.field_strength)
        assert replace(found, field_strength=0.0) == replace(SCAN, field_strength=0.0, **blank)


def test_skipped_items_survive_their_table(tmp_path):
    skipped = [Skipped("a/b.dcm", "DECODE", "why"), Skipped("c.npz", "NOT_FINITE", "one, value", 0)]
    frame = skipped_frame(skipped)
    assert frame["item"].tolist() == ["a/b.dcm", "c.npz"]
    frame.to_csv(tmp_path / "skipped.csv", index=False)
    assert read_skipped(tmp_path / "skipped.csv") == skipped
    assert list(skipped_frame([]).columns) == ["item", "reason", "message", "part"]


def test_a_file_has_one_row_unless_it_is_used():
    rows = [Skipped("a", "DECODE", "x", 0), Skipped("a", "NOT_FINITE", "y", 1), Skipped("b", "DECODE", "z", 4)]
    assert settled([*rows, rows[2]], {"b"}) == [Skipped("a", "DECODE", "x"), Skipped("b", "DECODE", "z", 4)]


def test_nothing_found():
    manifest, keys = build_manifest([], NAMES)
    assert manifest.empty
    assert tuple(manifest.columns) == COLUMNS
    assert keys.empty
