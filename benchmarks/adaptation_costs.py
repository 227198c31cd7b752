"""What each method of `medclr adapt` costs: as a multiple of fine-tuning on the source alone, and in passes.

    python benchmarks/adaptation_costs.py [any flags of medclr adapt]

Without arguments, on phantoms of 100 patients on two scanners, with an encoder of one epoch, whose worth is of no
account here; a training has 50 steps of 16 volumes there. Times are processor time of one thread, of one adaptation: to
one half of the target's patients, and scoring the other half. A pass is the features of all volumes of the target.
Target: below two of them for methods that leave the encoder as it is. Passes over the source, in the same unit, come
once for all halves and draws where no patient is in both domains; they, and what is computed from features, are shown
apart.
"""

import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import torch

from medclr.cli import main as medclr
from medclr.commands import adapt
from medclr.commands.demo import PATCH_SPEC
from medclr.config import AdaptMethod, Trained
from medclr.data.phantoms import write_phantoms
from medclr.training.crossfit import CrossFit
from medclr.training.encode import Volumes
from medclr.training.realign import FINETUNED

PATIENTS, TARGET, HALVES = 100, 2.0, 2


def main(flags: list[str]) -> None:
    """Print a line for each method."""
    torch.set_num_threads(1)
    by_method: dict[str, float] = {}
    reading: dict[tuple[str, bool], float] = {}
    of_target: set[str] = set()
    current = [""]

    def cell(fit: CrossFit, method: str, *rest: Any) -> Any:
        current[0] = method
        result, seconds = timed(lambda: of_cell(fit, method, *rest))
        by_method[method] = by_method.get(method, 0.0) + seconds / HALVES
        return result

    def read(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(volumes: Volumes, *rest: Any) -> Any:
            result, seconds = timed(lambda: function(volumes, *rest))
            key = current[0], set(volumes.rows["volume_id"]) <= of_target
            reading[key] = reading.get(key, 0.0) + seconds / HALVES
            return result

        return call

    passes: list[float] = []

    def one_pass(fit: Any) -> Any:
        def call(config: Any, run: Any, encoder: Any, source: Any, target: Any, *rest: Any) -> Any:
            of_target.update(target.rows["volume_id"])
            network = encoder.bundle.middle(config.projector_layer)
            passes.append(timed(lambda: target.volumes(config.crops).embed(network))[1])
            return fit(config, run, encoder, source, target, *rest)

        return call

    of_cell = adapt._cell
    adapt._cell, adapt._cross_fit = cell, one_pass(adapt._cross_fit)  # type: ignore[assignment]
    for name in ("embed", "renormalised"):
        setattr(Volumes, name, read(getattr(Volumes, name)))
    with tempfile.TemporaryDirectory() as out:
        methods = list(get_args(AdaptMethod))
        run("adapt", *flags, "--methods", *methods, "--draws", "1", "--out", f"{out}/run")
    whole, fine = passes[0], by_method[FINETUNED]
    print(f"  a pass over the target is {whole:.1f} s; fine-tuning on the source, {fine:.1f} s")
    for name, seconds in by_method.items():
        cost = f"    {name:16}{seconds / fine:6.2f} of fine-tuning"
        if name not in get_args(Trained):
            there, home = (reading.get((name, side), 0.0) for side in (True, False))
            kept = "kept" if there < TARGET * whole else "MISSED"
            cost += f"; {there / whole:.2f} passes over the target ({kept}: {TARGET:g}), {home / whole:.2f} over the "
            cost += f"source, and {seconds - there - home:.1f} s on features"
        print(cost)


def timed(function: Callable[[], Any]) -> tuple[Any, float]:
    """What it gives, and the seconds it took."""
    started = time.process_time()
    return function(), time.process_time() - started


def run(command: str, *flags: str) -> None:
    """Run medclr in this process; end with its exit code if it fails."""
    if code := medclr([command, *flags]):
        sys.exit(code)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        main(sys.argv[1:])
    else:
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            write_phantoms(folder / "phantoms", PATIENTS, 0)
            table, trained = str(folder / "phantoms" / "labels.csv"), str(folder / "run")
            learning = ["--spec", PATCH_SPEC, "--epochs", "1", "--batch-size", "32", "--out", trained]
            run("pretrain", "--data", str(folder / "phantoms" / "dicom"), *learning)
            given = ["--labels", table, "--encoder", trained, "--target", "manufacturer=Borealis", "--transductive"]
            main([*given, "--steps", "50", "--batch-size", "16"])
