"""Five-fold cross-validation by patient, for sets without an official test split: each fold is a label-efficiency run.

    python benchmarks/five_folds.py LABELS.csv OUT --encoder RUN ... [any other flag of medclr efficiency]

LABELS.csv has the columns patient_id and label, and no split. Where the encoders saw all patients, without their
labels, give --transductive. Figures are means of the five folds' AUROCs, over the draws and encoders of each. Their
intervals are over the patients of each fold, which are disjoint, over draws and over encoders, as those of a curve;
that training sets overlap from fold to fold is not in them. Columns of --groups are also looked at value by value.
"""

import json
import sys
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.model_selection import StratifiedGroupKFold

from medclr.cli import main as medclr
from medclr.evaluation.efficiency import BASELINES, Cell
from medclr.evaluation.estimates import Chance, Sample
from medclr.metrics import Resamples, auroc, bootstrap_mean_auroc

FOLDS = 5
RESAMPLES = 2000


def main(labels: Path, out: Path, flags: list[str]) -> None:
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
        if code := medclr(["efficiency", "--labels", str(path), "--out", str(run), *flags]):
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
        samples, n_patients = _over_folds([_of_fold(*one, group, number) for number, one in enumerate(found)])
        encoders, draws = np.max([one.by_cell.shape for one in samples.values()], axis=0)
        chance = Chance(int(draws), int(encoders), RESAMPLES, 0)
        for key, sample in samples.items():
            mean = chance.estimate(sample, n_patients)
            row = {"test": name, "arm": key[0], "fraction": key[1], "auroc": mean.value}
            rows.append(row | {"low": mean.low, "high": mean.high})
            if key[0] not in BASELINES:
                best = max(
                    (k for k in samples if k[0] in BASELINES and k[1] == key[1]),
                    key=lambda k: samples[k].by_cell.mean(),
                )
                gap = chance.estimate(sample, n_patients, samples[best])
                rows[-1] |= {"versus": best[0], "difference": gap.value, "from": gap.low, "to": gap.high, "p": gap.p}
    result = pd.DataFrame(rows)
    result.to_csv(out / "five_folds.csv", index=False)
    print(result.round(3).to_string(index=False))


def _fold(run: Path) -> tuple[list[Cell], pd.DataFrame]:
    """Its cells, and the test rows behind their scores."""
    cells = [Cell.from_dict(json.loads(path.read_text())) for path in sorted((run / "cells").glob("*.json"))]
    return cells, pd.read_csv(run / "private" / "test.csv", keep_default_na=False)


def _of_fold(
    cells: list[Cell], rows: pd.DataFrame, group: tuple[str, str] | None, fold: int
) -> tuple[dict[tuple[str, float], Sample], float]:
    """By arm and fraction the AUROC of one fold, or of a group in it; and the patients of its rarer class."""
    own = np.ones(len(rows), dtype=bool) if group is None else (rows[group[0]].astype(str) == group[1]).to_numpy()
    y, patients = rows.filter(like="y ").to_numpy()[own, 0], rows["patient_key"].to_numpy()[own]
    resamples = Resamples(patients, y, RESAMPLES, np.random.default_rng([0, fold]))  # the same for all arms
    samples = {}
    for key in sorted({(cell.arm, cell.fraction) for cell in cells}):
        of_key = [cell for cell in cells if (cell.arm, cell.fraction) == key]
        ordered = sorted(of_key, key=lambda cell: (cell.encoder, cell.draw))
        scores = np.stack([cell.scores[own, 0] for cell in ordered])
        by_cell = np.reshape([auroc(y, one) for one in scores], (len({cell.encoder for cell in of_key}), -1))
        samples[key] = Sample(by_cell, bootstrap_mean_auroc(y, scores, resamples))
    return samples, min(len(set(patients[y == value])) for value in (0, 1))


def _over_folds(
    parts: list[tuple[dict[tuple[str, float], Sample], float]],
) -> tuple[dict[tuple[str, float], Sample], float]:
    """Means over folds, cell by cell, and the patients of the rarer class in all of them."""
    means = {
        key: Sample(
            np.mean([samples[key].by_cell for samples, _ in parts], axis=0),
            np.mean([samples[key].resampled for samples, _ in parts], axis=0),
        )
        for key in parts[0][0]
    }
    return means, sum(count for _, count in parts)


if __name__ == "__main__":
    if len(sys.argv) < 5:
        sys.exit(__doc__)
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])
