"""How long `medclr efficiency` takes over a whole grid: PneumoniaMNIST at four shares of the labels, all baselines.

    python benchmarks/label_grid.py FOLDER [any flag of medclr efficiency]

FOLDER holds pneumoniamnist.npz. An encoder is trained for one epoch first, whose worth is of no account here; with
--encoder and --labels among the flags these are used instead. Target: 40 minutes on two cores, from the command to the
report, for five draws (ten at 1%) of the linear, PCA and tuned scratch arms under a fixed budget of steps.
"""

import sys
import tempfile
import time
from pathlib import Path

from linear_arms import FRACTIONS, run

TARGET_MIN = 40
ARMS, MOST_STEPS = ["scratch", "pca", "linear"], "300"


def main(folder: Path, flags: list[str]) -> None:
    """Print the minutes."""
    with tempfile.TemporaryDirectory() as temporary:
        table, encoder, out = str(folder / "pneumoniamnist.npz"), f"{temporary}/encoder", f"{temporary}/grid"
        if "--encoder" in flags:
            own = []
        else:
            learning = ["--data", str(folder), "--spec", "pneumoniamnist", "--epochs", "1", "--out", encoder]
            run("pretrain", *learning, "--holdout", table)
            own = ["--encoder", encoder, "--labels", table, "--out", out]
        started = time.perf_counter()
        grid = ["--arms", *ARMS, "--fractions", *FRACTIONS, "--max-steps", MOST_STEPS]
        run("efficiency", *grid, *own, *flags)
        minutes = (time.perf_counter() - started) / 60
    verdict = "kept  " if minutes < TARGET_MIN else "MISSED"
    print(f"  {verdict}: the grid took {minutes:.1f} min (target: {TARGET_MIN} on two cores)")


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    main(Path(sys.argv[1]), sys.argv[2:])
