"""Two processes of one thread each against one process of two threads: the same command, and the same logical batch.

    python benchmarks/two_ranks.py [--images N] [--batch N] [--epochs N] [--repeats N]

Images of 28 x 28 px in a store, the default encoder with group norm. Both ways run `medclr pretrain`, in turns, from
one start to the last epoch; the time of an epoch is that between the lines that tell of it, so that starting up is left
out, and the first epoch with it. Prints steps a second of both, and the median ratio over the turns (target: two
processes at 1.0 times one or more). The last epoch, which has
a health check, is left out too.
"""

import argparse
import os
import socket
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from statistics import median

import numpy as np
from PIL import Image

SIDE = 28


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--images", type=int, default=2048)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--repeats", type=int, default=5)
    given = parser.parse_args()
    assert given.epochs > 2, "the first epoch and the last are left out"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rng = np.random.default_rng(0)
        (folder / "scans").mkdir()
        for number in range(given.images):
            Image.fromarray(rng.integers(0, 256, (SIDE, SIDE), dtype=np.uint8)).save(folder / f"scans/{number}.png")
        rates: dict[int, list[float]] = {1: [], 2: []}
        for repeat in range(given.repeats):
            for processes in (1, 2):
                out = folder / "runs" / f"{processes}-{repeat}"
                seconds = epochs(processes, folder, out, given.batch, given.epochs)
                rates[processes].append(given.images // given.batch / median(seconds))
    one, two = rates[1], rates[2]
    ratios = [b / a for a, b in zip(one, two, strict=True)]
    print(f"ResNet-10 of width 16, group norm, {SIDE} px, batch {given.batch}, {given.repeats} turns")
    print(f"one process of two threads    {median(one):.2f} steps/s")
    print(f"two processes of one thread   {median(two):.2f} steps/s")
    print(f"ratio                         {median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f}; target: 1.0)")


def epochs(processes: int, folder: Path, out: Path, batch: int, n: int) -> list[float]:
    """Seconds of each epoch but the first and the last."""
    words = ["-m", "medclr", "pretrain", "--data", folder / "scans", "--spec", "cxr", "--key-file", folder / "key"]
    words += ["--out", out, "--batch-size", batch, "--micro-batch", batch // processes, "--norm", "group"]
    words += ["--epochs", n, "--health-every", n + 1, "--workers", 0, "--device", "cpu"]
    words += ["--checkpoint-minutes", 1000]
    if processes > 1:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        launcher = ["-m", "torch.distributed.run", "--nproc-per-node", processes, "--master-port", port]
        words = [*launcher, *words]
    environment = os.environ | {"OMP_NUM_THREADS": str(2 // processes)}
    command = [sys.executable, *map(str, words)]
    running = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
    assert running.stdout
    times = [time.perf_counter() for line in running.stdout if line.startswith("epoch ")]
    assert running.wait() == 0
    return [after - before for before, after in pairwise(times[:-1])]


if __name__ == "__main__":
    main()
