"""2,000 resamples of the patients of 2,000 scans, with paired AUROCs of four arms: medclr, and a scikit-learn loop.

    python benchmarks/resamples.py [ROUNDS]

The loop draws patients within the same strata, gathers their rows and calls `roc_auc_score` for each arm; it makes 200
resamples, and times are for one. They are processor time of one thread, the two ways taking turns for so many rounds
(default 3), and the intervals must agree. Target: 100 times as quick.
"""

import sys
import time
from statistics import median

import numpy as np
from sklearn.metrics import roc_auc_score

from medclr.metrics import bootstrap_auroc, interval

SCANS, RESAMPLES, LOOPED, ARMS, TARGET = 2000, 2000, 200, 4, 100


def main(rounds: int) -> None:
    """Print each way's median time, and their ratio."""
    rng = np.random.default_rng(0)
    keys = np.repeat(np.arange(SCANS), rng.integers(1, 7, SCANS))[:SCANS]
    y = (keys % 3 == 0).astype(np.int64)
    scores = y + rng.normal(size=(ARMS, SCANS)) + rng.normal(size=SCANS)[keys]
    ours, loops, ratios = [], [], []
    for _ in range(rounds):
        started = time.process_time()
        quick = bootstrap_auroc(y, scores, keys, RESAMPLES, rng)
        between = time.process_time()
        slow = loop(y, scores, keys, LOOPED, rng)
        loops.append((time.process_time() - between) / LOOPED * 1000)
        ours.append((between - started) / RESAMPLES * 1000)
        ratios.append(loops[-1] / ours[-1])
        for one, other in zip(quick[0] - quick[1:], slow[0] - slow[1:], strict=True):
            assert np.allclose(interval(one), interval(other), atol=0.01), (interval(one), interval(other))
    print(f"  {SCANS:,} scans of {keys[-1] + 1} patients, {ARMS} arms; {RESAMPLES:,} resamples, {LOOPED} in the loop")
    print(f"  a resample: medclr {median(ours):.3f} ms, scikit-learn loop {median(loops):.1f} ms")
    ratio = median(ratios)
    print(f"  {'kept  ' if ratio >= TARGET else 'MISSED'}: {ratio:.0f} times as quick (target: {TARGET})")


def loop(y: np.ndarray, scores: np.ndarray, keys: np.ndarray, resamples: int, rng: np.random.Generator) -> np.ndarray:
    """The same as plainly as it is usually written: (arms, resamples)."""
    rows_of = [np.flatnonzero(keys == key) for key in np.unique(keys)]
    positive = np.array([y[rows].any() for rows in rows_of])
    strata = np.flatnonzero(positive), np.flatnonzero(~positive)
    out = np.empty((len(scores), resamples))
    for resample in range(resamples):
        drawn = np.concatenate([rng.choice(stratum, len(stratum)) for stratum in strata])
        rows = np.concatenate([rows_of[patient] for patient in drawn])
        for arm, one in enumerate(scores):
            out[arm, resample] = roc_auc_score(y[rows], one[rows])
    return out


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 3)
