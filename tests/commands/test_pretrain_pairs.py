"""What pretrain says and records of pairs and slices."""

from dataclasses import replace

import pandas as pd
import pytest

from medclr.cli import parse
from medclr.commands.pretrain import _pairs, axis_order
from medclr.data.spec import DataSpec
from medclr.errors import UsageError

XRAY = DataSpec("x", ("DX",), 2, "percentile", "fit", 224, "xray", patch=(8, 8))
VOLUME = replace(XRAY, spatial_dims=3, patch=(8, 8, 8))


def images(patients, spec=XRAY):
    rows = pd.DataFrame({"patient_key": list(patients), "modality": "DX", "orientation": "LI", "patient_known": True})
    return rows.assign(study_key=rows["patient_key"], store_shape=[list(spec.patch)] * len(rows))


@pytest.mark.parametrize(
    ("asked", "patients", "said"),
    [
        ("auto", "abcd", "pairs: instance, since no other pairs are clear from the manifest (--pairs chooses others)"),
        (
            "auto",
            "aabb",
            "pairs: study, since 100% of the radiographs have another one like it in their study (--pairs",
        ),
        ("patient", "aabb", "pairs: patient\n"),
        (
            "patient",
            "aabcd",
            "warning: pairs: patient; for 40% of the volumes, and two views of the same for the others",
        ),
        ("patient", "aab", "pairs: patient; for 67% of the volumes, and two views of the same for the others"),
    ],
)
def test_pairs_say_how_many_volumes_they_are_for(asked, patients, said, capsys):
    config = parse("pretrain", ["--data", "x", "--pairs", asked])
    assert _pairs(config, images(patients), XRAY) == said.split("pairs: ")[1].split(",")[0].split(";")[0].strip()
    assert capsys.readouterr().out.startswith(said)


def test_overlap_is_a_share():
    assert parse("pretrain", ["--data", "x", "--overlap", "1"]).overlap == 1
    for wrong in ("0", "1.1", "-0.5"):
        with pytest.raises(UsageError, match=r"--overlap .*above 0 and at most 1"):
            parse("pretrain", ["--data", "x", "--overlap", wrong])


def test_the_bundle_says_which_way_the_axes_run():
    assert axis_order(XRAY) == "channel, towards the right, upwards"
    assert axis_order(VOLUME) == "channel, right, anterior, superior"
    found = {plane: axis_order(replace(XRAY, slices=plane)) for plane in ("axial", "coronal", "sagittal")}
    assert found == {
        "axial": "channel, right, anterior",
        "coronal": "channel, right, superior",
        "sagittal": "channel, anterior, superior",
    }
