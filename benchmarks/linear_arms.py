"""What `medclr efficiency` costs with linear arms alone, in passes of feature extraction over the labelled volumes.

    python benchmarks/linear_arms.py [ENCODER LABELS.csv [any flag of medclr efficiency]]

Without arguments, on the phantoms of 300 patients under the demo's spec, with an encoder of one epoch, whose worth is
of no account here. Times are processor time of one thread, in a process that has imported everything. Target: 1.2 of
one pass, which is part of the command.
"""

import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from medclr.cli import main as medclr
from medclr.commands import efficiency, finetune
from medclr.commands.demo import PATCH_SPEC
from medclr.data.phantoms import write_phantoms
from medclr.evaluation import efficiency as evaluation

PATIENTS, TARGET = 300, 1.2
FRACTIONS = ["0.01", "0.1", "0.3", "1"]
PASS = "the pass"
PARTS: dict[str, tuple[ModuleType, str]] = {
    PASS: (efficiency, "_with_features"),
    "near-duplicates": (finetune, "near_duplicates"),
    "folds and regressions": (evaluation, "run_cells"),
    "AUROCs on resamples": (evaluation, "outcomes"),
    "other measures on resamples": (evaluation, "measure"),
    "tables, figures and page": (efficiency, "_write"),
}


def main(encoder: str, labels: str, flags: list[str]) -> None:
    """Print the ratio, and what it is made of."""
    torch.set_num_threads(1)
    taken = dict.fromkeys(PARTS, 0.0)
    for part, (module, name) in PARTS.items():
        setattr(module, name, timed(getattr(module, name), part, taken))
    with tempfile.TemporaryDirectory() as out:
        flag = ["--labels", labels, "--encoder", encoder, "--arms", "linear", "--fractions", *FRACTIONS]
        started = time.process_time()
        run("efficiency", *flag, "--out", f"{out}/run", *flags)
        whole = time.process_time() - started
    ratio = whole / taken[PASS]
    print(f"  {'kept  ' if ratio < TARGET else 'MISSED'}: the command is {ratio:.2f} of one pass (target: {TARGET})")
    for part, seconds in (taken | {"the rest": whole - sum(taken.values())}).items():
        print(f"    {part:28}{seconds:6.1f} s")


def timed(function: Callable[..., Any], part: str, taken: dict[str, float]) -> Callable[..., Any]:
    """The same function, whose time is added to that of a part."""

    def call(*args: Any, **kwargs: Any) -> Any:
        started = time.process_time()
        try:
            return function(*args, **kwargs)
        finally:
            taken[part] += time.process_time() - started

    return call


def run(command: str, *flags: str) -> None:
    """Run medclr in this process; end with its exit code if it fails."""
    if code := medclr([command, *flags]):
        sys.exit(code)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        main(*sys.argv[1:3], sys.argv[3:])
    else:
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            write_phantoms(folder / "phantoms", PATIENTS, 0)
            table, trained = str(folder / "phantoms" / "labels.csv"), str(folder / "run")
            learning = ["--spec", PATCH_SPEC, "--epochs", "1", "--batch-size", "32", "--out", trained]
            run("pretrain", "--data", str(folder / "phantoms" / "dicom"), "--holdout", table, *learning)
            main(trained, table, [])
