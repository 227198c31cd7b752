"""A share of the mutants of benchmarks/fuzz_readers.py, which tries twenty thousand."""

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_five_hundred_mutants_are_volumes_or_reasons():
    script = ROOT / "benchmarks" / "fuzz_readers.py"
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    ended = subprocess.run(
        [sys.executable, "-W", "ignore", script, "500"], capture_output=True, text=True, env=environment, timeout=300
    )
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.startswith("500 mutants")
    counts = {
        what: int(n.replace(",", "")) for n, what in re.findall(r"^ +([\d,]+)  (\w+)$", ended.stdout, re.MULTILINE)
    }
    assert sum(counts.values()) == 500
    assert {"volume", "TRUNCATED", "NOT_DICOM", "DECODE"} <= counts.keys()
