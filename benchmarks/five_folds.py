"""Five-fold cross-validation by patient, for sets without an official test split: each fold is a label-efficiency run.

    python benchmarks/five_folds.py ENCODER LABELS.csv OUT [--groups COLUMN ...] [any flag of medclr efficiency]

LABELS.csv has the columns patient_id and label, and no split. Where the encoder saw all patients, without their labels,
give --transductive. Figures are means of the five folds' AUROCs, over the draws of each; their intervals resample the
patients of each fold, which are disjoint, and take the fitted classifiers as given: that training sets overlap from
fold to fold is not in them. Columns of --groups are also looked at value by value.
"""

import json
import sys
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.model_selection import StratifiedGroupKFold

from medclr.cli import main as medclr
from medclr.evaluation.efficiency import Cell
from medclr.metrics import auroc, bootstrap_auroc, interval

FOLDS = 5
RESAMPLES = 2000


def main(encoder: str, labels: Path, out: Path, flags: list[str]) -> None:
    """Run what has not been run yet, then print the table."""
    table = pd.read_csv(labels, dtype=str, keep_default_na=False)
    folds = StratifiedGroupKFold(FOLDS, shuffle=True, random_state=0).split(table, table["label"], table["patient_id"])
    out.mkdir(parents=True, exist_ok=True)
    found = []
    for number, (_, test) in enumerate(folds):
        split = np.full(len(table), "train", dtype=object)
        split[test] = "test"
        path = out / f"fold{number}.csv"
        if not path.is_file():
            table.assign(split=split).to_csv(path, index=False)
        run = out / f"fold{number}"
        flag = ["--labels", str(path), "--encoder", encoder, "--out", str(run), *flags]
        if code := medclr(["efficiency", *flag]):
            sys.exit(code)
        found.append(_fold(run))
    groups = {"all": None} | {
        f"{name} = {value}": (name, value)
        for name in found[0][1]
        if name not in ("volume_id", "patient_key") and not name.startswith("y ") and found[0][1][name].nunique() > 1
        for value in sorted(set(found[0][1][name]))
    }
    rows = []
    for name, group in groups.items():
        parts = [_resampled(cells, rows_of, group) for cells, rows_of in found]
        for key in parts[0][0]:
            value = np.mean([part[0][key] for part in parts])
            low, high = interval(np.mean([part[1][key] for part in parts], axis=0))
            rows.append({"test": name, "arm": key[0], "fraction": key[1], "auroc": value, "low": low, "high": high})
            if key[0] not in ("scratch", "pca"):
                best = max(
                    (k for k in parts[0][0] if k[0] in ("scratch", "pca") and k[1] == key[1]),
                    key=lambda k: np.mean([part[0][k] for part in parts]),
                )
                gap = np.mean([part[1][key] - part[1][best] for part in parts], axis=0)
                low, high = interval(gap)
                mean = np.mean([part[0][key] - part[0][best] for part in parts])
                rows[-1] |= {"versus": best[0], "difference": mean, "from": low, "to": high}
    result = pd.DataFrame(rows)
    result.to_csv(out / "five_folds.csv", index=False)
    print(result.round(3).to_string(index=False))


def _fold(run: Path) -> tuple[list[Cell], pd.DataFrame]:
    """Its cells, and the test rows behind their scores."""
    cells = [Cell.from_dict(json.loads(path.read_text())) for path in sorted((run / "cells").glob("*.json"))]
    return cells, pd.read_csv(run / "private" / "test.csv", keep_default_na=False)


def _resampled(
    cells: list[Cell], rows: pd.DataFrame, group: tuple[str, str] | None
) -> tuple[dict[tuple[str, float], float], dict[tuple[str, float], np.ndarray]]:
    """By arm and fraction the AUROC of one fold, or of a group in it, meant over draws; and the same resampled."""
    own = np.ones(len(rows), dtype=bool) if group is None else (rows[group[0]].astype(str) == group[1]).to_numpy()
    y, patients = rows.filter(like="y ").to_numpy()[own, 0], rows["patient_key"].to_numpy()[own]
    means, resampled = {}, {}
    for key in sorted({(cell.arm, cell.fraction) for cell in cells}):
        scores = np.stack([c.scores[own, 0] for c in cells if (c.arm, c.fraction) == key and c.scores is not None])
        # One seed, so that arms see the same patients.
        drawn = bootstrap_auroc(y, scores, patients, RESAMPLES, np.random.default_rng(0))
        resampled[key] = drawn.mean(axis=0)
        means[key] = float(np.mean([auroc(y, one) for one in scores]))
    return means, resampled


if __name__ == "__main__":
    if len(sys.argv) < 4:
        sys.exit(__doc__)
    main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]), sys.argv[4:])
