"""What `medclr adapt` regains where the target is a worse scanner: six corruptions, pooled over data sets.

    python benchmarks/corrupted_targets.py OUT STRENGTH --set NAME LABELS.csv ENCODER [--set …] [--held] [flags of
    medclr adapt]

The target is the source's own archive, through one corruption at a time. Its patients are halved: from the one half
are learned the labels, on images as they are, by source-only, and on corrupted ones by target-trained, so that both
have as many; the other half is scored, and of that nobody has learned. Pre-training may have seen the images as they
are, without labels. `home` is source-only on the volumes as they are, and the drop is from there.

With --held, labels are learned from the train split, and the target is the rest, which pre-training must not have seen
(--holdout). There target-trained may have far fewer labels than source-only, and is no upper bound then.

Pooled over the conditions with a drop of at least .03 are the sum of (method - source-only), each a mean over draws and
encoders, and its share of the sum of (target-trained - source-only). Their intervals are from resamples of the patients
of each set and of its draws, the same for all of its conditions; which conditions count is not resampled.

Beside the methods stand the two other choices without labels of the target, one for each condition: the method with the
highest AUROC in the source (`by source validation`), and the one whose answers in the target have the lowest entropy
(`by entropy`).
"""

import argparse
import json
import sys
from pathlib import Path
from typing import get_args

import numpy as np
import pandas as pd

from medclr.cli import main as medclr
from medclr.config import Corruption
from medclr.evaluation.cells import Cell
from medclr.metrics import Resamples, auroc, bootstrap_mean_auroc, interval

LEAST_DROP = 0.03
RESAMPLES = 2000
HELD = ["--source", "held=no", "--target", "held=yes"]
AS_SCANNED = ["--corruption", "noise", "--strength", "0"]


def main(out: Path, strength: int, sets: list[list[str]], held: bool, flags: list[str]) -> None:
    """Run what has not been run yet, then print a row for each condition, and the pooled ratios."""
    rows, gains = [], []
    for name, labels, encoder in sets:
        (out / name).mkdir(parents=True, exist_ok=True)
        words = ["adapt", "--labels", labels, "--encoder", encoder, "--transductive", *flags]
        if held:
            table = pd.read_csv(labels, dtype=str, keep_default_na=False)
            own = str(out / name / "labels.csv")
            table.assign(held=np.where(table["split"] == "train", "no", "yes")).to_csv(own, index=False)
            words = ["adapt", "--labels", own, "--encoder", encoder, *HELD, *flags]
        home = _of([*words, *AS_SCANNED], out / name / "clean")
        for corruption in get_args(Corruption):
            changed = ["--corruption", corruption, "--strength", str(strength)]
            found = _of([*words, *changed], out / name / f"{corruption}-{strength}")
            means = {method: float(np.mean(by_cell)) for method, (by_cell, _) in found.items()}
            before = float(np.mean(home["source-only"][0]))
            counts = before - means["source-only"] >= LEAST_DROP
            rows.append({"set": name, "corruption": corruption, "home": before, **means, "counts": counts})
            if counts:
                gains.append(found)
    result = pd.DataFrame(rows)
    result.to_csv(out / f"conditions-{strength}.csv", index=False)
    print(result.round(3).to_string(index=False))
    methods = [name for name in gains[0] if name not in ("source-only", "target-trained")] if gains else []
    for method in methods:
        gain, bound = (_sum(gains, name) for name in (method, "target-trained"))
        shares = gain[0] / bound[0], *interval(gain[1] / bound[1], 0.95)
        gained = gain[0], *interval(gain[1], 0.95)
        line = "{}, {} conditions: gained {:+.3f} ({:+.3f} to {:+.3f}) in all, a share of {:.2f} ({:.2f} to {:.2f})"
        print(line.format(method, len(gains), *gained, *shares))


Found = dict[str, tuple[np.ndarray, np.ndarray]]
"""By method, AUROCs of its cells and their mean over resampled cells in each resample of patients."""


def _of(words: list[str], run: Path) -> Found:
    if not (run / "report.json").is_file() and (code := medclr([*words, "--out", str(run)])):
        sys.exit(code)
    judged = pd.read_csv(run / "private" / "target.csv", keep_default_na=False)
    y, patients = judged.filter(like="y ").to_numpy(float)[:, 0], judged["patient_key"].to_numpy()
    resamples = Resamples(patients, y, RESAMPLES, np.random.default_rng(0))
    cells = [Cell.from_dict(json.loads(path.read_text())) for path in sorted((run / "cells").glob("*.json"))]
    found = {}
    points = pd.read_csv(run / "adapt.csv").set_index("method")
    for method in points.index:
        scores = np.stack([cell.scores[:, 0] for cell in cells if cell.arm == method])
        by_cell = np.stack([bootstrap_mean_auroc(y, one[None], resamples) for one in scores])
        drawn = np.random.default_rng(1).integers(len(scores), size=(len(scores), RESAMPLES))
        resampled = np.take_along_axis(by_cell, drawn, axis=0).mean(axis=0)
        found[method] = np.array([auroc(y, one) for one in scores]), resampled
    found["by source validation"] = found[points["at_home"].idxmax()]
    found["by entropy"] = found[points["entropy"].idxmin()]
    return found


def _sum(gains: list[Found], method: str) -> tuple[float, np.ndarray]:
    """Of the differences of a method from source-only, over conditions; and on each resample."""
    value = sum(float(one[method][0].mean() - one["source-only"][0].mean()) for one in gains)
    return value, np.sum([one[method][1] - one["source-only"][1] for one in gains], axis=0)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(usage=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("strength", type=int)
    parser.add_argument("--set", nargs=3, action="append", required=True, dest="sets")
    parser.add_argument("--held", action="store_true")
    given, others = parser.parse_known_args()
    main(given.out, given.strength, given.sets, given.held, others)
