"""How often 95% intervals hold the true AUROC where patients repeat: a bootstrap of patients, Obuchowski's, others.

    python benchmarks/coverage.py [--cohorts 2000] [--patients 100] [--resamples 1000]

Cohorts of patients with 1 to 6 scans each. Of two scorers on the same scans, every score is normal with variance 1 and
has half its variance from the patient; the positive scans are shifted, so that the true AUROC is the normal
distribution function of shift / sqrt(2). A third of the patients are positive throughout, half are negative
throughout, and the scans of the others are mixed. Counted are AUROCs of the first scorer, and paired differences
between the two. Targets: a bootstrap of patients and Obuchowski's form between .93 and .97. What takes scans as
independent, a bootstrap of them and DeLong's form, is there for contrast.

Then both scorers are arms of a label-efficiency curve: the first of 3 encoders, the second of one, both of the same 5
draws. Each encoder and draw has its own shift, so that the mean AUROC over all there could be is the normal
distribution function of shift / sqrt(2 + the variances of encoders and draws). The curve's intervals should hold that
between .93 and .97 too; a bootstrap of patients alone, of the same cells, is there for contrast.
"""

import argparse
import math
import time

import numpy as np
from scipy.special import ndtr

from medclr.evaluation.cells import Cell
from medclr.evaluation.estimates import Chance, Truth, outcomes
from medclr.metrics import auroc_interval, bootstrap_auroc, delong, interval, paired_difference

SHIFTS = (1.4, 1.0)
LOW, HIGH = 0.93, 0.97
BY_PATIENT = ("bootstrap of patients", "Obuchowski")
ENCODERS, DRAWS, OF_ENCODERS, OF_DRAWS = 3, 5, 0.3, 0.3
CURVE, PATIENTS_ALONE = "curve", "curve without draws"
KEPT = (*BY_PATIENT, CURVE)


def main(cohorts: int, patients: int, resamples: int) -> None:
    """Print the share of cohorts whose interval holds the truth, by method and by what is estimated."""
    truth = ndtr(np.array(SHIFTS) / math.sqrt(2))
    of_all = ndtr(np.array(SHIFTS) / np.sqrt([2 + OF_ENCODERS**2 + OF_DRAWS**2, 2 + OF_DRAWS**2]))
    truths = {"AUROC": truth[0], "difference": truth[0] - truth[1]}
    truths_of_all = {"AUROC": of_all[0], "difference": of_all[0] - of_all[1]}
    rng = np.random.default_rng(0)
    held: dict[tuple[str, str], list[bool]] = {}
    scans, started = 0, time.perf_counter()
    for seed in range(cohorts):
        y, scores, keys = cohort(patients, rng)
        scans += len(y)
        for key, (low, high) in intervals(y, scores, keys, resamples, rng).items():
            held.setdefault(key, []).append(bool(low <= truths[key[1]] <= high))
        for key, (low, high) in of_curve(y, scores, keys, resamples, seed, rng).items():
            held.setdefault(key, []).append(bool(low <= truths_of_all[key[1]] <= high))
    print(
        f"  {cohorts:,} cohorts of {patients} patients with {scans / cohorts:.0f} scans; {resamples:,} resamples; "
        f"AUROC {truth[0]:.3f}, difference {truths['difference']:.3f}; {time.perf_counter() - started:.0f} s"
    )
    for (method, what), each in held.items():
        share = np.mean(each)
        verdict = "" if method not in KEPT else "kept  : " if LOW <= share <= HIGH else "MISSED: "
        error = 1.96 * np.std(each) / math.sqrt(cohorts)
        print(f"  {verdict:8}{what:10} {method:21} {share:.3f} of 0.95 (± {error:.3f})")


def cohort(patients: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Labels (n,), scores of both scorers (2, n) and patients (n,)."""
    keys = np.repeat(np.arange(patients), rng.integers(1, 7, patients))
    kind = np.arange(patients) % 6  # 0 and 1 are positive, 2 is mixed, the others are negative
    y = np.where(kind[keys] == 2, rng.integers(0, 2, len(keys)), kind[keys] < 2).astype(np.int64)
    # Between the scorers too, scores of a patient and of a scan agree somewhat.
    of_patient, of_scan = shared(patients, rng)[:, keys], shared(len(keys), rng)
    return y, math.sqrt(0.5) * (of_patient + of_scan) + np.array(SHIFTS)[:, None] * y, keys


def shared(count: int, rng: np.random.Generator) -> np.ndarray:
    """Two rows of standard normal numbers with a correlation of .5."""
    return math.sqrt(0.5) * (rng.standard_normal(count) + rng.standard_normal((2, count)))


def intervals(
    y: np.ndarray, scores: np.ndarray, keys: np.ndarray, resamples: int, rng: np.random.Generator
) -> dict[tuple[str, str], tuple[float, float]]:
    """Every method's interval of the AUROC and of the difference."""
    each = np.arange(len(y))
    found = {}
    for method, unit in ((BY_PATIENT[0], keys), ("bootstrap of scans", each)):
        first, second = bootstrap_auroc(y, scores, unit, resamples, rng)
        found[method, "AUROC"], found[method, "difference"] = interval(first), interval(first - second)
    for method, unit in ((BY_PATIENT[1], keys), ("DeLong", each)):
        result = delong(y, scores, unit)
        found[method, "AUROC"] = auroc_interval(result.aurocs[0], result.covariance[0, 0])
        difference = paired_difference(result, 0, 1)
        found[method, "difference"] = difference.low, difference.high
    return found


def of_curve(
    y: np.ndarray, scores: np.ndarray, keys: np.ndarray, resamples: int, seed: int, rng: np.random.Generator
) -> dict[tuple[str, str], tuple[float, float]]:
    """The curve's intervals where encoders and draws shift the positives."""
    shifts = OF_DRAWS * rng.standard_normal((2, 1, DRAWS)) + np.zeros((2, ENCODERS, 1))
    shifts[0] += OF_ENCODERS * rng.standard_normal((ENCODERS, 1))
    cells = [
        Cell(arm, 1.0, draw, encoder, 0, 0, 0, 0.0, (one + shift[encoder, draw] * y)[:, None], None, "", "", 0.0)
        for arm, one, shift, encoders in zip("ab", scores, shifts, (ENCODERS, 1), strict=True)
        for encoder in range(encoders)
        for draw in range(DRAWS)
    ]
    truth = Truth.of(y[:, None].astype(np.float64), keys, "binary")
    chance = Chance(DRAWS, ENCODERS, resamples, seed)
    first, second = (outcome.auroc for outcome in outcomes(cells, truth, chance))
    assert first
    assert second
    alone = chance.estimate(first, truth.rarer([0]))
    difference = chance.estimate(first, truth.rarer([0]), second)
    return {
        (CURVE, "AUROC"): (alone.low, alone.high),
        (CURVE, "difference"): (difference.low, difference.high),
        (PATIENTS_ALONE, "AUROC"): interval(first.resampled),
        (PATIENTS_ALONE, "difference"): interval(first.resampled - second.resampled),
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, default in (("cohorts", 2000), ("patients", 100), ("resamples", 1000)):
        parser.add_argument(f"--{name}", type=int, default=default)
    main(**vars(parser.parse_args()))
