import json
import math
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from medclr.cli import parse
from medclr.data.layout import TableLayout
from medclr.data.spec import DataSpec, choose_spec, load_spec, parse_spec, spec_names
from medclr.errors import DataError, UsageError

ROOT = Path(__file__).resolve().parents[2]
GENERAL, SETS = spec_names()
CT = {
    "name": "ct",
    "modality": ["CT"],
    "spatial_dims": 3,
    "normalisation": "window",
    "window": [-1000, 1000],
    "clip": [-1024, 3071],
    "sizing": "spacing",
    "max_patch": 64,
    "preset": "ct",
}


def table(*volumes, modality="CT"):
    """A manifest of (shape, spacing_mm)."""
    shapes, spacings = zip(*volumes, strict=True)
    return pd.DataFrame(
        {"modality": modality, "shape": [list(s) for s in shapes], "spacing_mm": [list(s) for s in spacings]}
    )


@pytest.mark.parametrize("name", [*GENERAL, *SETS])
def test_a_shipped_spec_parses_and_survives_yaml_and_json(name):
    spec = load_spec(Path(name))
    assert spec.name == name
    assert parse_spec(yaml.safe_load(yaml.safe_dump(spec.to_dict())), "again") == spec
    assert parse_spec(json.loads(json.dumps(spec.to_dict())), "again") == spec


def test_every_file_of_specs_is_shipped():
    files = sorted((ROOT / "data_specs").glob("*.yaml"))
    assert set(GENERAL) == {"ct", "cxr", "mammography", "mr", "pet", "us"}
    assert len(SETS) == len(set(SETS)) > 30
    for path in files:
        content = yaml.safe_load(path.read_text())
        names = set(content.get("members", [path.stem]))
        assert names <= {*GENERAL, *SETS}
        if "members" not in content:
            assert load_spec(path) == load_spec(Path(path.stem))


@pytest.mark.parametrize("name", SETS)
def test_a_public_set_names_its_licence_and_citation(name):
    spec = load_spec(Path(name))
    assert len(spec.licence) > 5
    if name != "phantom":
        assert re.search(r"doi:10\.\d{4,}/\S|arXiv:\d{4}\.\d{5}|https://", spec.citation)
        assert len(spec.citation) > 60
        assert "\n" not in spec.citation


def test_members_share_what_the_file_says_and_have_their_own(tmp_path):
    path = tmp_path / "sets.yaml"
    shared = {key: value for key, value in CT.items() if key not in ("name", "preset")}
    table = {"key": "ID", "by": "series_uid", "labels": ["x"]}
    member = {"preset": "ct", "max_patch": 32, "table": {"labels": ["y"]}}
    path.write_text(yaml.safe_dump(shared | {"table": table, "members": {"one": member}}))
    spec = load_spec(path)
    assert (spec.name, spec.preset, spec.max_patch, spec.clip) == ("one", "ct", 32, (-1024, 3071))
    assert spec.table == TableLayout(key="ID", by="series_uid", labels={"y": "y"})
    path.write_text(yaml.safe_dump(shared | {"members": {"one": member, "two": member}}))
    with pytest.raises(UsageError, match=r"sets.yaml: holds 2 specs \(one, two\)"):
        load_spec(path)
    path.write_text(yaml.safe_dump(shared | {"members": ["one"]}))
    with pytest.raises(UsageError, match=r"sets.yaml: members must be a table"):
        load_spec(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"windwo": [0, 1]}, "unknown keys windwo"),
        ({True: 1}, "unknown keys True"),
        ({"modality": "CT"}, "modality is 'CT'; it must be a list"),
        ({"domains": [1]}, "domains"),
        ({"domains": ["scanner"]}, "domains has 'scanner'; each must be one of site"),
        ({"files": "("}, "files is no regular expression"),
        ({"licence": 4.0}, "licence is 4.0; it must be a text"),
        ({"table": "labels.csv"}, "table is 'labels.csv'"),
        ({"table": {"kye": "ID"}}, "unknown keys kye in table"),
        ({"table": {"key": "ID"}}, "table: .*'by'"),
        ({"table": {"key": 1, "by": "series_uid"}}, "table: key is 1"),
        ({"table": {"key": "ID", "by": "name"}}, "table: by is 'name'"),
        ({"table": {"key": "ID", "by": "file"}}, "pattern and by: file go together"),
        ({"table": {"key": "ID", "by": "series_uid", "pattern": "(x)"}}, "pattern and by: file go together"),
        ({"table": {"key": "ID", "by": "file", "pattern": "x"}}, "pattern has 0 groups"),
        ({"table": {"key": "ID", "by": "file", "pattern": "("}}, "pattern is no regular expression"),
        ({"table": {"key": "ID", "by": "series_uid", "labels": {"0": 1}}}, "quote numbers"),
        ({"table": {"key": "ID", "by": "series_uid", "values": {"yes": "2"}}}, "each must mean '1', '0' or ''"),
        ({"table": {"key": "ID", "by": "series_uid", "column": "x"}}, "column 'x' without labels"),
        ({"table": {"key": "ID", "by": "series_uid", "several": "most"}}, "several is 'most'"),
        ({"table": {"key": "ID", "by": "series_uid", "several": "any"}}, "needs column or values"),
        ({"spatial_dims": 4}, "spatial_dims is 4"),
        ({"normalisation": "none"}, "normalisation"),
        ({"sizing": "stretch"}, "sizing"),
        ({"preset": "hue"}, "preset"),
        ({"preset": "mr"}, "preset is mr, but modality is CT, whose preset is ct"),
        ({"modality": ["", "MG"]}, "preset is ct, but modality is MG, whose preset is xray"),
        ({"laterality": "left"}, "laterality"),
        ({"window": None}, "no window"),
        ({"window": [1000, -1000]}, "first must be below"),
        ({"window": [0, math.inf]}, "window"),
        ({"clip": [0]}, "list of 2 numbers"),
        ({"clip": "0 1"}, "list of 2 numbers"),
        ({"spacing_mm": [1, 1]}, "list of 3 numbers"),
        ({"spacing_mm": [1, 1, 0]}, "above 0"),
        ({"spacing_mm": [1, 1, math.nan]}, "list of 3 numbers"),
        ({"patch": [16, 16, 7]}, "8 or more"),
        ({"patch": [16, 16, 16.5]}, "whole number"),
        ({"max_patch": 4}, "max_patch"),
        ({"max_patch": "64"}, "max_patch"),
        ({"slices": "oblique"}, "slices is 'oblique'"),
        ({"slices": "axial"}, "slices is axial, but spatial_dims 3"),
        ({"slices": "sagittal", "spatial_dims": 2, "laterality": False}, "a sagittal slice has no left and right"),
        ({"slices": "axial", "spatial_dims": 2, "spacing_mm": [1, 1, 1]}, "list of 2 numbers"),
        ({"slice_step_mm": -1}, "slice_step_mm is -1"),
        ({"slice_step_mm": "2"}, "slice_step_mm is '2'"),
    ],
)
def test_what_cannot_be_meant_is_one_line_that_names_it(change, message):
    with pytest.raises(UsageError, match=message) as raised:
        parse_spec(CT | change, "--spec x.yaml")
    assert str(raised.value).startswith("--spec x.yaml: ")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("modality", [[""], ["", "CT"], ["CT", "PT"], ["OP"], []])
def test_a_preset_fits_where_nothing_says_otherwise(modality):
    assert parse_spec(CT | {"modality": modality}, "--spec x.yaml").preset == "ct"


def test_a_missing_key_is_named():
    with pytest.raises(UsageError, match="--spec x: lacks sizing; copy a spec"):
        parse_spec({key: value for key, value in CT.items() if key != "sizing"}, "--spec x")


@pytest.mark.parametrize("content", [b"a: [", b"\xff\xfe", b"- a\n- b", b"", b"!!python/object/apply:os.getcwd []"])
def test_what_is_no_table_of_keys(tmp_path, content):
    path = tmp_path / "s.yaml"
    path.write_bytes(content)
    with pytest.raises(UsageError, match="--spec"):
        load_spec(path)


def test_no_such_spec_names_those_that_ship():
    with pytest.raises(UsageError, match=r"--spec nosuch: .*by modality there are ct, cxr, .*sets adni, .*vindr_cxr$"):
        load_spec(Path("nosuch"))
    with pytest.raises(UsageError, match=r"--spec mimic-cxr: .*; did you mean mimic_cxr.* lists all \d+$"):
        load_spec(Path("mimic-cxr"))


@pytest.mark.parametrize(
    ("modality", "shape", "name"),
    [
        ("CT", (40, 40, 20), "ct"),
        ("MR", (40, 40, 20), "mr"),
        ("PT", (40, 40, 20), "pet"),
        ("", (40, 40, 20), "mr"),
        ("DX", (40, 30), "cxr"),
        ("MG", (40, 30), "mammography"),
        ("US", (40, 30), "us"),
        ("", (28, 28), "cxr"),
    ],
)
def test_choose_by_modality(modality, shape, name):
    assert choose_spec(table((shape, [1.0] * len(shape)), modality=modality)).name == name


def test_choose_what_most_of_a_mixed_archive_is():
    kinds = [("DX", 2)] * 3 + [("", 2)] * 2 + [("MG", 2)] * 4 + [("CT", 3)] * 4
    mixed = pd.concat([table(((9,) * dims, (1.0,) * dims), modality=modality) for modality, dims in kinds])
    assert choose_spec(mixed).name == "cxr"
    assert load_spec(Path("cxr")).accepts(mixed).tolist() == [True] * 5 + [False] * 8


def test_files_are_told_by_their_path():
    spec = parse_spec(CT | {"files": r"^(?!(.*/)?labelsTr/)"}, "s")
    manifest = pd.concat([table(((9, 9, 9), (1, 1, 1)))] * 3)
    manifest["source"] = [["imagesTr/a.nii.gz"], ["labelsTr/a.nii.gz"], ["Task04/labelsTr/a.nii.gz"]]
    assert spec.accepts(manifest).tolist() == [True, False, False]


@pytest.mark.parametrize(("plane", "left"), [("sagittal", (1, 2)), ("coronal", (0, 2)), ("axial", (0, 1))])
def test_slices_are_of_volumes_and_sized_in_their_plane(plane, left):
    spec = parse_spec(CT | {"spatial_dims": 2, "slices": plane, "max_patch": 32}, "s")
    shape, spacing = (20, 30, 128), (1.0, 2.0, 0.5)
    assert spec.accepts(table((shape, spacing), ((20, 30), (1.0, 2.0)))).tolist() == [True, False]
    filled = spec.filled(table((shape, spacing)))
    flat = parse_spec(CT | {"spatial_dims": 2, "max_patch": 32}, "s")
    as_planes = flat.filled(table(([shape[axis] for axis in left], [spacing[axis] for axis in left])))
    assert (filled.patch, filled.spacing_mm) == (as_planes.patch, as_planes.spacing_mm)
    assert len({one.digest() for one in (filled, as_planes, replace(filled, slice_step_mm=1.0))}) == 3
    # How far apart slices lie has nothing to do with their size.
    unknown = [math.nan if axis not in left else step for axis, step in enumerate(spacing)]
    assert filled.for_volume(unknown) == filled
    assert filled.for_volume((math.nan,) * 3).sizing == "fit"


def test_choose_for_none():
    with pytest.raises(DataError, match="modality SM"):
        choose_spec(table(((8, 8), (1, 1)), modality="SM"))


volumes = st.lists(
    st.tuples(
        st.tuples(*[st.integers(3, 600)] * 3),
        st.one_of(st.tuples(*[st.floats(0.2, 8)] * 3), st.just((math.nan,) * 3), st.just((1.0, 1.0, math.nan))),
    ),
    min_size=1,
    max_size=5,
)


@given(found=volumes, sizing=st.sampled_from(["spacing", "fit"]))
@settings(max_examples=30, deadline=None)
def test_filled_never_makes_voxels_finer_than_the_median(found, sizing):
    manifest = table(*found)
    spec = parse_spec(CT | {"sizing": sizing}, "s").filled(manifest)
    shapes, spacings = (np.array(manifest[name].tolist(), float) for name in ("shape", "spacing_mm"))
    assert all(8 <= side <= 64 for side in spec.patch)
    known = np.isfinite(spacings).all(axis=1)
    if sizing == "fit" or not known.any():
        assert spec.sizing == "fit"
        assert (np.array(spec.patch) <= np.maximum(np.round(np.median(shapes, axis=0)), 8)).all()
        return
    median = np.median(spacings[known], axis=0)
    assert (np.array(spec.spacing_mm) >= median - 1e-4).all()
    # The patch holds the median volume: not cut off, nor mostly empty.
    extent = np.median(shapes[known] * spacings[known], axis=0)
    covered = np.array(spec.patch) * spec.spacing_mm
    assert (covered >= extent - 0.51 * np.array(spec.spacing_mm)).all()
    assert (covered <= np.maximum(extent + 0.51 * np.array(spec.spacing_mm), 8.01 * np.array(spec.spacing_mm))).all()


def test_filled_by_hand():
    spec = parse_spec(CT | {"max_patch": 20}, "s")
    manifest = table(((40, 40, 10), (1, 1, 4)), ((60, 60, 10), (1, 1, 4)), ((50, 50, 12), (1, 1, 4)))
    assert spec.filled(manifest).spacing_mm == (2.5, 2.5, 4)
    assert spec.filled(manifest).patch == (20, 20, 10)
    plane = load_spec(Path("cxr")).filled(table(((28, 28), (math.nan, math.nan)), modality="DX"))
    assert plane.patch == (28, 28)
    large = load_spec(Path("cxr")).filled(table(((2000, 1000), (0.2, 0.2)), modality="DX"))
    assert large.patch == (224, 112)


def test_filled_keeps_what_is_given():
    spec = parse_spec(CT | {"patch": [16, 16, 8], "spacing_mm": [2, 2, 3]}, "s")
    assert spec.filled(table(((40, 40, 10), (1, 1, 4)))) == spec


def test_digest_follows_what_the_store_holds_and_nothing_else():
    spec = parse_spec(CT | {"patch": [16, 16, 8], "spacing_mm": [2, 2, 3]}, "s")
    content = [replace(spec, clip=(-1024, 2000)), replace(spec, spacing_mm=(2, 2, 2)), replace(spec, modality=("MR",))]
    fit = replace(spec, sizing="fit")
    content += [fit, replace(fit, patch=(8, 8, 8)), replace(spec, clip=None)]
    assert len({s.digest() for s in [spec, *content]}) == 1 + len(content)
    same = [
        replace(
            spec, name="other", window=(0, 80), normalisation="zscore", preset="mr", laterality=False, domains=("site",)
        ),
        replace(spec, patch=(32, 32, 32), max_patch=8, licence="x", citation="y"),
        replace(spec, modality=("CT", "PT"), clip=(-1024.0, 3071.0), spacing_mm=(2.0, 2.0, 3.0)),
    ]
    assert {s.digest() for s in same} == {spec.digest()}
    assert replace(fit, spacing_mm=(1, 1, 1)).digest() == fit.digest()


def test_a_volume_without_spacing_is_sized_in_voxels():
    spec = DataSpec("s", ("MR",), 3, "zscore", "spacing", 64, "mr", spacing_mm=(1.0, 1.0, 1.0), patch=(8, 8, 8))
    assert spec.for_volume((1.0, 2.0, 3.0)) == spec
    assert spec.for_volume((1.0, math.nan, 3.0)) == replace(spec, sizing="fit")
    # Its entry in the store then depends on the patch.
    unknown = (math.nan,) * 3
    assert replace(spec, patch=(9, 8, 8)).for_volume(unknown).digest() != spec.for_volume(unknown).digest()


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda path: path.stem)
def test_shipped_configs_parse(path):
    config = parse("pretrain", ["--config", str(path), "--data", "scans"])
    assert {name: getattr(config, name) for name in yaml.safe_load(path.read_text())} == yaml.safe_load(
        path.read_text()
    )
    if config.spec:
        load_spec(config.spec)
