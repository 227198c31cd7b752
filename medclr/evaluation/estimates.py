"""A mean over draws and encoders: its interval and its test, over test patients, draws and encoders together."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from scipy.special import expit, logit, ndtri, stdtr, stdtrit

from medclr.evaluation.cells import Cell, unjudged
from medclr.metrics import Resamples, auroc, bootstrap_mean_auroc, detectable, interval

LEVEL = 0.95


@dataclass(frozen=True, eq=False)
class Sample:
    """A statistic of an arm at a fraction: of each cell (encoders, draws), and its mean over them on each resample."""

    by_cell: np.ndarray
    resampled: np.ndarray


class Estimate(NamedTuple):
    """A mean, its interval, the two-sided p of its being 0, the difference that could be found, and its resamples.

    detectable: at most 1, as no two AUROCs differ by more.
    """

    value: float
    low: float
    high: float
    p: float
    detectable: float
    resampled: np.ndarray


class Chance:
    """What is random behind all estimates of a grid: resamples of patients, and normal numbers of draws and encoders.

    They are the same for all arms and fractions, so that differences are paired. Patients are drawn once for each set
    of test rows. An estimate deviates from its mean, on resample r, by the sum of three: what the resampled patients
    make of the mean of all cells; sum_d g_rd (x_d - mean) / sqrt(D (D - 1)) over draws, where x_d is the mean of a
    draw over encoders and g standard normal, so that its variance is that of a mean of D independent draws; and the
    same over encoders. What differs by draw and encoder at once, such as the noise of one fine-tuning, is part of both
    sums and so is counted twice, which errs on the wide side; for crossed sources of variation no bootstrap is exact
    (Owen 2007).
    """

    def __init__(self, most_draws: int, most_encoders: int, resamples: int, seed: int) -> None:
        self._rng = np.random.default_rng(seed)
        self._seed, self._resamples = seed, resamples
        self._of_draws = self._rng.normal(size=(resamples, most_draws))
        # The second half is for those that an arm is compared with, where they are others, not seed by seed the same.
        self._of_encoders = self._rng.normal(size=(resamples, 2 * most_encoders))

    def patients(self, patients: np.ndarray, strata: np.ndarray) -> Resamples:
        """Resamples of these patients; the same each time."""
        return Resamples(patients, strata, self._resamples, np.random.default_rng([self._seed, 1]))

    def perfect(self, pairs: float) -> np.ndarray:
        """What an AUROC of 1 may truly be: (resamples,), from as many disjoint pairs of a positive and a negative.

        Resamples of a perfect ranking do not vary, and yet nothing is certain. Where the AUROC is A, all k pairs are
        ordered rightly with probability A^k, so A is at least .025^(1/k) with confidence .975; these are the fiducial
        values, U^(1/k). Of a mean over cells it holds as well, as A^k of the worst cell is below that of the mean.
        """
        values: np.ndarray = self._rng.uniform(size=self._resamples) ** (1 / pairs)
        return values

    def estimate(self, one: Sample, n_patients: float, versus: Sample | None = None) -> Estimate:
        """The mean of `one`, or its difference from that of `versus` at the same draws, with interval and test.

        one, versus: statistics that lie from 0 to 1. n_patients: of the rarer class in the test set.

        The test is Student's t. Its variance is the sum of those of patients, draws and encoders, each with as many
        degrees of freedom as it has units, less one; of patients those of the rarer class count. They are put together
        as by Satterthwaite (1946). The interval of a difference is that of the test, so that it leaves out 0 where
        p < .05. That of a mean is of its resamples, with deviations widened by t/z for these degrees of freedom: the
        expanded percentile interval of Hesterberg (2015), for more than one source of variation. The deviations are
        taken on the logit scale, as by Pepe (2003): near 1, an interval on the plain scale sits too high, and misses
        a lower truth far more often than a higher one.

        Few units make the tails heavy, which matters most to Holm's correction, as it asks for p far below 5%: a
        percentile bootstrap of three encoders finds far too much there.
        """
        value = float(one.by_cell.mean())
        resampled, by_draw, encoders = one.resampled, one.by_cell.mean(axis=0), [one.by_cell.mean(axis=1)]
        if versus is not None:
            value -= float(versus.by_cell.mean())
            resampled, by_draw = resampled - versus.resampled, by_draw - versus.by_cell.mean(axis=0)
            of_versus = versus.by_cell.mean(axis=1)
            encoders = [encoders[0] - of_versus] if len(of_versus) == len(encoders[0]) else [*encoders, of_versus]

        few = n_patients / (n_patients - 1)
        deviations = math.sqrt(few) * (resampled - value)
        parts: list[tuple[float, float]] = [(few * float(np.nanvar(resampled)), n_patients - 1)]
        half = self._of_encoders.shape[1] // 2
        normals = [self._of_draws, self._of_encoders[:, :half], self._of_encoders[:, half:]]
        for units, normal in zip([by_draw, *encoders], normals, strict=False):
            k = len(units)
            if k > 1:
                parts.append((float(units.var(ddof=1)) / k, k - 1))
                deviations = deviations + normal[:, :k] @ (units - units.mean()) / math.sqrt(k * (k - 1))

        variance = sum(part for part, _ in parts)
        if variance == 0 and value != 0 and versus is not None:
            # Nothing varies and yet they differ, as of scores that are all alike: there is nothing to judge it by.
            return Estimate(value, -1.0, 1.0, 1.0, math.nan, np.full(len(resampled), value))
        if variance == 0:
            return Estimate(value, value, value, float(value == 0), math.nan, np.full(len(resampled), value))
        freedom = variance**2 / sum(part**2 / units for part, units in parts)
        error = math.sqrt(variance)
        t = float(stdtrit(freedom, (1 + LEVEL) / 2))
        deviations = t / ndtri((1 + LEVEL) / 2) * deviations
        resampled = value + deviations
        if versus is not None:
            low, high = max(value - t * error, -1.0), min(value + t * error, 1.0)
        else:
            if 0 < value < 1:
                resampled = expit(logit(value) + deviations / (value * (1 - value)))
            low, high = interval(np.clip(resampled, 0, 1), LEVEL)
            low, high = min(low, value), max(high, value)  # what is biased can miss the estimate itself
        p = float(2 * stdtr(freedom, -abs(value) / error))
        return Estimate(value, low, high, p, min(detectable(error, LEVEL, freedom=freedom), 1.0), resampled)


@dataclass(frozen=True, eq=False)
class Outcome:
    """An arm at a fraction: its cells, by encoder and then by draw, and their AUROC, or the reason why there is none.

    `auroc` is the mean over the outputs that the test set can judge, `by_output` that of each of them, by its place.
    """

    arm: str
    fraction: float
    cells: list[Cell]
    reason: str
    auroc: Sample | None
    by_output: dict[int, Sample]

    @property
    def n_encoders(self) -> int:
        return len({cell.encoder for cell in self.cells})

    @property
    def n_draws(self) -> int:
        return len(self.cells) // self.n_encoders

    def by_cell(self, values: Sequence[float]) -> np.ndarray:
        """One value of each cell as (encoders, draws)."""
        return np.reshape(values, (self.n_encoders, self.n_draws))

    def missing(self, reasons: Sequence[str]) -> str:
        """Of one reason for each cell, "" where it has a result: why there is no mean over them, "" if there is."""
        given = [reason for reason in reasons if reason]
        what = "draws" if self.n_encoders == 1 else "cells"
        return f"n/a in {len(given)} of {len(self.cells)} {what}: {given[0]}" if given else ""


@dataclass(frozen=True, eq=False)
class Truth:
    """What test rows truly are: y (m, K), patients (m,), strata (m,), and why an output cannot be judged by them."""

    y: np.ndarray
    patients: np.ndarray
    strata: np.ndarray
    reasons: list[str]

    @classmethod
    def of(cls, y: np.ndarray, patients: np.ndarray, kind: str) -> "Truth":
        """Patients are drawn within their class; of labels, as those with any positive one and those with none."""
        strata = y.argmax(axis=1) if kind == "multiclass" else np.fmax.reduce(y, axis=1, initial=0)
        return cls(y, patients, strata, unjudged(y, patients))

    @property
    def judged(self) -> list[int]:
        return [output for output, reason in enumerate(self.reasons) if not reason]

    def rarer(self, outputs: Sequence[int]) -> float:
        """Patients of the rarer class; over several outputs the harmonic mean, as variances go by 1 / n."""
        columns = [self.y[:, output] for output in outputs]
        least = [min(len(np.unique(self.patients[column == value])) for value in (0, 1)) for column in columns]
        return len(least) / sum(1 / count for count in least)


def outcomes(cells: Sequence[Cell], truth: Truth, chance: Chance) -> list[Outcome]:
    """The cells by arm and fraction, in the order in which these first occur."""
    groups: dict[tuple[str, float], list[Cell]] = {}
    for cell in cells:
        groups.setdefault((cell.arm, cell.fraction), []).append(cell)
    found = []
    resamples = chance.patients(truth.patients, truth.strata)
    for (arm, fraction), group in groups.items():
        ordered = sorted(group, key=lambda cell: (cell.encoder, cell.draw))
        outcome = Outcome(arm, fraction, ordered, "", None, {})
        if reason := outcome.missing([cell.reason for cell in ordered]):
            found.append(replace(outcome, reason=reason))
        else:
            mean, by_output = aurocs(outcome, truth, chance, resamples)
            found.append(replace(outcome, auroc=mean, by_output=by_output))
    return found


def aurocs(
    outcome: Outcome, truth: Truth, chance: Chance, resamples: Resamples, rows: np.ndarray | None = None
) -> tuple[Sample, dict[int, Sample]]:
    """Mean AUROC over the outputs that can be judged, and that of each, by its place.

    truth: of all test rows, or of those at the positions `rows`; resamples: of its patients.
    """
    scores = np.stack([cell.scores for cell in outcome.cells if cell.scores is not None])
    scores = scores if rows is None else scores[:, rows]
    by_output = {}
    for output in truth.judged:
        y = truth.y[:, output]
        known = ~np.isnan(y)
        by_cell = outcome.by_cell([auroc(y[known], one[known, output]) for one in scores])
        if by_cell.min() == by_cell.max() and by_cell.max() in (0, 1):
            perfect = chance.perfect(truth.rarer([output]))
            resampled = perfect if by_cell.max() == 1 else 1 - perfect
        else:
            resampled = bootstrap_mean_auroc(y, scores[:, :, output], resamples)
        by_output[output] = Sample(by_cell, resampled)
    return mean_of(list(by_output.values())), by_output


def mean_of(samples: Sequence[Sample]) -> Sample:
    """The mean of several statistics; of a resample that lacks one, that of the others."""
    if len(samples) == 1:
        return samples[0]
    resampled = np.stack([sample.resampled for sample in samples])
    there = ~np.isnan(resampled)
    total = np.where(there, resampled, 0).sum(axis=0)
    mean = np.divide(total, there.sum(axis=0), out=np.full(len(total), np.nan), where=there.any(axis=0))
    return Sample(np.mean([sample.by_cell for sample in samples], axis=0), mean)
