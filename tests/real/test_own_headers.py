"""Each real series held against the places that its own slices' headers give."""

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_every_series_is_right_or_refused(real_data):
    ended = subprocess.run(
        [sys.executable, "-W", "ignore", ROOT / "benchmarks" / "beside_peers.py",
         real_data / "dicom_series_multivendor", "medclr"],
        capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    rows = dict(re.findall(r"^\| (\S+) \| .*\| (\w+) \|$", ended.stdout, re.MULTILINE))
    counts = [int(n) for n in re.findall(r"^\| \*\*\w+\*\* \| \| (\d+) \|$", ended.stdout, re.MULTILINE)]
    assert counts == [52, 0, 2]
    # One slice, and two slices a time point: no volumes.
    assert {name for name, result in rows.items() if result == "refused"} == {
        "dicom2nifti/ge/anatomical/001_single_slice",
        "dicom2nifti/philips/fmri/001",
    }
