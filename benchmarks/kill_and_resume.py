"""Stop a pre-training at random moments, go on each time, and compare the final weights to those of a run in one go.

python benchmarks/kill_and_resume.py [kills] [workers]

By default ten times kill -9, then ten times SIGTERM to the whole process group, with two loader processes, on
generated phantoms and the CPU. Prints where each stop was and the digests; exit code 1 where they differ.
"""

import hashlib
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from medclr.data.phantoms import write_phantoms

SPEC = """
name: tiny
modality: [CT]
spatial_dims: 3
normalisation: window
window: [-1000, 400]
clip: [-1024, 1500]
sizing: spacing
max_patch: 12
preset: ct
"""


def main() -> int:
    kills = int(sys.argv[1]) if len(sys.argv) > 1 else 10
    workers = int(sys.argv[2]) if len(sys.argv) > 2 else 2
    with tempfile.TemporaryDirectory() as name:
        os.chdir(name)
        write_phantoms(Path("phantoms"), patients=24, seed=1)
        Path("tiny.yaml").write_text(SPEC)
        words = ["pretrain", "--data", "phantoms/dicom", "--spec", "tiny.yaml", "--key-file", "key", "--width", "8"]
        words += ["--epochs", "40", "--batch-size", "4", "--workers", str(workers), "--device", "cpu"]
        words += ["--store", "store", "--checkpoint-minutes", "0.005"]
        _, seconds, code = run(words, "whole", None, 0)
        assert code == 0
        whole = digest("whole")
        print(f"in one go: {seconds:.0f} s of training; encoder.safetensors is {whole}")
        rng = random.Random(0)
        same = True
        for signum in (signal.SIGKILL, signal.SIGTERM):
            stops = 0
            while not Path(signum.name, "encoder", "encoder.safetensors").exists():
                last = stops == kills
                wait = rng.uniform(0, seconds / kills)
                start, _, code = run(words, signum.name, None if last else signum, wait)
                end = f"{signum.name} {wait:.1f} s later, exit code {code}" if code else "done"
                print(f"  {start}; {end}", flush=True)
                assert code in ((0,) if last else (0, -9) if signum == signal.SIGKILL else (0, 143))
                stops += code != 0
            same &= digest(signum.name) == whole
            print(f"{signum.name}, {stops} times: {digest(signum.name)}")
    print("bit-identical" if same else "THEY DIFFER")
    return 0 if same else 1


def run(words: list[str], out: str, signum: int | None, wait: float) -> tuple[str, float, int]:
    """Start or go on with a run, and stop it so many seconds after training began; where it began, and how it ended."""
    command = [sys.executable, "-c", "from medclr.cli import entry; entry()", *words, "--out", out]
    began = 0.0
    where = ""
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True) as process:
        assert process.stdout
        for line in process.stdout:
            if line.startswith("SimCLR"):
                began = time.monotonic()
                where = re.sub(r".*volumes,? ?", "", line.strip()) or "from the start"
                if signum:
                    time.sleep(wait)
                    # An OOM killer takes one process; a scheduler tells all of them.
                    (os.kill if signum == signal.SIGKILL else os.killpg)(process.pid, signum)
    return where, time.monotonic() - began, process.returncode


def digest(out: str) -> str:
    return hashlib.sha256(Path(out, "encoder", "encoder.safetensors").read_bytes()).hexdigest()[:32]


if __name__ == "__main__":
    sys.exit(main())
