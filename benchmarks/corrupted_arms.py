"""Which breaks first under corruption: a linear head on a SimCLR encoder, or the same network from random weights.

    python benchmarks/corrupted_arms.py OUT --labels LABELS.csv --encoder ENCODER… [flags of medclr finetune]

For each encoder a linear head learns all labels of the train split, and a network from random weights, of a seed of its
own and tuned (--init scratch --method full --tuned), the same. Both are shown the volumes from which neither learned,
as scanned and through each corruption at five strengths. The difference of their mean AUROCs has an interval over
patients and seeds, and p after Holm over all conditions.
"""

import argparse
import sys
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pandas as pd

from medclr.cli import main as medclr
from medclr.commands import shift
from medclr.config import Corruption
from medclr.evaluation.estimates import Chance, Sample, Truth
from medclr.evaluation.shift import Judged
from medclr.metrics import auroc, bootstrap_mean_auroc, holm

RESAMPLES = 2000
ARMS = {"simclr-linear": [], "scratch": ["--init", "scratch", "--method", "full", "--tuned"]}


def main(out: Path, labels: str, encoders: list[str], flags: list[str]) -> None:
    """Fit what is not there yet, judge it under each condition, and print a row for each."""
    by_arm: dict[str, Judged] = {}
    for arm, words in ARMS.items():
        runs = [out / f"{arm}-{seed}" for seed in range(len(encoders))]
        for seed, (run, encoder) in enumerate(zip(runs, encoders, strict=True)):
            if not (run / "metrics.json").is_file():
                given = ["--labels", labels, "--encoder", encoder, "--seed", str(seed), *words, *flags]
                _medclr("finetune", *given, "--out", str(run))
        by_arm[arm] = _judged(out / f"shift-{arm}", labels, runs, flags)
    result = _compared(*by_arm.values())
    result.to_csv(out / "conditions.csv", index=False)
    print(result.round(3).to_string(index=False))


def _judged(out: Path, labels: str, runs: list[Path], flags: list[str]) -> Judged:
    """What `medclr shift` measures: scores of all runs on the volumes as they are, and under each corruption."""
    found: list[Judged] = []
    measure = shift.domain_shift

    def kept(judged: Judged, *rest: Any) -> Any:
        found.append(judged)
        return measure(judged, *rest)

    shift.domain_shift = kept  # type: ignore[assignment]
    try:
        every = ["--corruptions", *get_args(Corruption)]
        _medclr("shift", "--classifier", *map(str, runs), "--labels", labels, *every, *flags, "--out", str(out))
    finally:
        shift.domain_shift = measure
    return found[0]


def _compared(one: Judged, other: Judged) -> pd.DataFrame:
    clean = np.flatnonzero((one.domains[list(one.simulated)] == "0").all(axis=1))
    truth = Truth.of(one.y[clean], one.patients[clean], one.kind)
    chance = Chance(1, len(one.scores), RESAMPLES, 0)
    resamples = chance.patients(truth.patients, truth.strata)

    def sample(judged: Judged, rows: np.ndarray) -> Sample:
        assert (judged.patients[rows] == truth.patients).all()
        scores = np.stack([each[rows, 0] for each in judged.scores])
        y = truth.y[:, 0]
        return Sample(np.array([[auroc(y, each)] for each in scores]), bootstrap_mean_auroc(y, scores, resamples))

    conditions = {("as scanned", "0"): clean}
    for column in one.simulated:
        for strength in "12345":
            conditions[column.removeprefix("strength of "), strength] = np.flatnonzero(one.domains[column] == strength)
    found = []
    for (corruption, strength), rows in conditions.items():
        a, b = sample(one, rows), sample(other, rows)
        between = chance.estimate(a, truth.rarer([0]), b)
        means = {name: float(each.by_cell.mean()) for name, each in zip(ARMS, (a, b), strict=True)}
        found.append({"corruption": corruption, "strength": strength, **means, "difference": between.value})
        found[-1] |= {"low": between.low, "high": between.high, "p": between.p}
    result = pd.DataFrame(found)
    return result.assign(p_holm=holm(result["p"].to_numpy()))


def _medclr(*words: str) -> None:
    if code := medclr(list(words)):
        sys.exit(code)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(usage=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--labels", required=True)
    parser.add_argument("--encoder", nargs="+", required=True)
    given, others = parser.parse_known_args()
    main(given.out, given.labels, given.encoder, others)
