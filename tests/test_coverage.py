"""A few of the cohorts of benchmarks/coverage.py, which makes two thousand."""

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_intervals_over_patients_cover_and_those_over_scans_do_not():
    ended = subprocess.run(
        [sys.executable, ROOT / "benchmarks" / "coverage.py", "--cohorts=100", "--patients=60", "--resamples=200"],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        timeout=300,
    )
    assert ended.returncode == 0, ended.stderr
    assert "100 cohorts of 60 patients" in ended.stdout
    found = re.findall(r"(AUROC|difference) +(\w+(?: \w+ \w+)?) +(\d\.\d+) of 0\.95", ended.stdout)
    shares = {(what, method): float(share) for what, method, share in found}
    assert len(shares) == 12
    # Of 100, .95 is 90 or more nearly always (99%).
    for what in ("AUROC", "difference"):
        of_patients = min(shares[what, "bootstrap of patients"], shares[what, "Obuchowski"])
        assert of_patients > 0.88
        assert shares[what, "curve"] > 0.88
        assert shares[what, "curve without draws"] < shares[what, "curve"] - 0.1
        assert max(shares[what, "bootstrap of scans"], shares[what, "DeLong"]) < of_patients - 0.02
