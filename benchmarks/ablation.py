"""One factor at a time: what each setting of pre-training does for a logistic regression on frozen features.

    python benchmarks/ablation.py DATA LABELS.csv OUT [PROCESSES]

Each setting is trained with three seeds, without the val and test patients, and judged on the val split with 1%, 10%
and all labels of the training split; the test split is not looked at. PROCESSES (default 2) train at a time, each on
one core. Stopped, it goes on where it was. Writes OUT/ablation.csv and prints the table of docs/ablations.md.
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch: one core for each process

import multiprocessing
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medclr.commands.prepare import stocked
from medclr.commands.pretrain import pretrain
from medclr.config import PretrainConfig
from medclr.data.identity import load_key
from medclr.data.labels import read_labels
from medclr.data.store import Store
from medclr.evaluation.efficiency import Arm, Scores, label_efficiency
from medclr.training.probe import fit_linear
from medclr.training.encode import embed_rows, load_encoder

SEEDS = 3
DRAWS = 3
EPOCHS = 8
FRACTIONS = (0.01, 0.1, 1.0)
SETTINGS: dict[str, dict[str, Any]] = {
    "default": {},
    "temperature 0.5": {"temperature": 0.5},
    "without crop": {"without": ["crop"]},
    "without rotation": {"without": ["rotation"]},
    "without intensity": {"without": ["intensity"]},
    "without equalise": {"without": ["equalise"]},
    "without blur": {"without": ["blur"]},
    "without noise": {"without": ["noise"]},
    "batch 64": {"batch_size": 64},
    "batch 1024": {"batch_size": 1024, "optimizer": "adamw"},  # LARS, the default there, would be a second factor
    "group norm": {"norm": "group"},
    "projector of 3 layers": {"projector_layers": 3},
    "MoCo": {"method": "moco"},
}


def main(data: Path, labels: Path, out: Path, processes: int) -> None:
    """Train what is not trained yet, then compare all settings with the default one."""
    jobs = [(data, labels, out, name, seed) for seed in range(SEEDS) for name in SETTINGS]
    train(*jobs[0])  # scans and prepares, for the others too
    with ProcessPoolExecutor(processes, multiprocessing.get_context("spawn")) as pool:
        for line in pool.map(train, *zip(*jobs[1:], strict=True)):
            print(line, flush=True)

    runs = {name: [load(labels, out, name, seed) for seed in range(SEEDS)] for name in SETTINGS}
    y, patients, train_at, val_at, _ = runs["default"][0]

    def arm(name: str, encoder: int) -> Arm:
        def scores(drawn: NDArray[np.intp], seed: int) -> Scores:
            features = runs[name][encoder][-1]
            rows = train_at[drawn]
            return Scores(fit_linear(features[rows], y[rows], patients[rows], seed).scores(features[val_at]), None)

        return scores

    curve = label_efficiency(
        y[train_at],
        patients[train_at],
        y[val_at],
        patients[val_at],
        {name: [arm(name, encoder) for encoder in range(SEEDS)] for name in SETTINGS},
        n_draws=dict.fromkeys(FRACTIONS, DRAWS),
        resamples=2000,
        seed=0,
        baselines=["default"],
    )
    table = curve.points.merge(curve.differences[curve.differences["versus"] == "default"], "left", ["arm", "fraction"])
    table.to_csv(out / "ablation.csv", index=False)
    print(f"{len(set(patients[train_at]))} training and {len(set(patients[val_at]))} validation patients")
    print("| setting |" + "".join(f" {f:.0%} | − default |" for f in FRACTIONS))
    for name in SETTINGS:
        cells = [f"| {name} |"]
        for row in table[table["arm"] == name].to_dict("records"):
            versus = ""
            if name != "default":
                resolved = " *" if row["p_holm"] < 0.05 else ""
                versus = f"{row['difference']:+.3f} ({row['low_y']:+.3f} to {row['high_y']:+.3f}){resolved}"
            cells.append(f" {row['auroc']:.3f} | {versus} |")
        print("".join(cells))


def train(data: Path, labels: Path, out: Path, name: str, seed: int) -> str:
    """Pre-train one setting; what it says goes into a file beside its run."""
    if (folder(out, name, seed) / "encoder").exists():
        return f"{name}, seed {seed}: trained before"
    started = time.monotonic()
    config = PretrainConfig(
        data=data,
        holdout=labels,
        store=out / "store",
        key_file=out / "key",
        out=folder(out, name, seed),
        **{"epochs": EPOCHS, "health_every": EPOCHS, "workers": 0, "seed": seed, **SETTINGS[name]},
    )
    out.mkdir(parents=True, exist_ok=True)
    with folder(out, name, seed).with_suffix(".log").open("a") as log, redirect_stdout(log):
        pretrain(config)
    return f"{name}, seed {seed}: {time.monotonic() - started:.0f} s"


def load(labels: Path, out: Path, name: str, seed: int) -> tuple[Any, ...]:
    """Labels (n,), patients (n,), where training and validation rows are, and features (n, F) of one encoder."""
    run = folder(out, name, seed)
    kept = stocked(run)
    assert kept
    manifest, spec = kept
    table = read_labels(labels, manifest, load_key(out / "key"))
    rows = table.rows
    features = embed_rows(load_encoder(run).network, rows, Store(out / "store"), spec)
    return table.y, rows["patient_key"].to_numpy(), table.of("train"), table.of("val"), features


def folder(out: Path, name: str, seed: int) -> Path:
    """Of the run of one setting and seed."""
    return out / f"{name.replace(' ', '-').replace('.', '')}-{seed}"


if __name__ == "__main__":
    if len(sys.argv) not in (4, 5):
        sys.exit(__doc__)
    main(*map(Path, sys.argv[1:4]), int(sys.argv[4]) if len(sys.argv) == 5 else 2)
