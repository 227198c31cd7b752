"""Variances of AUROCs in closed form, where patients repeat too: intervals, paired tests, and what n can resolve."""

import math
from typing import NamedTuple

import numpy as np
from scipy.special import expit, ndtr, ndtri, stdtrit
from scipy.stats import rankdata


class DeLong(NamedTuple):
    """AUROCs of S sets of scores, (S,), and their covariance over new patients, (S, S)."""

    aurocs: np.ndarray
    covariance: np.ndarray


def delong(y: np.ndarray, scores: np.ndarray, patients: np.ndarray | None = None) -> DeLong:
    """AUROCs of several sets of scores on the same rows, with their covariance.

    DeLong et al. (1988), by ranks as in Sun & Xu (2014); with patients, Obuchowski's (1997) form for clustered data,
    in which a patient may have several rows, of both classes: her S10, S01 and S11. Where each patient has one row,
    the two are equal. Of several outputs it is the mean AUROC, whose sums over a patient are the means of those of the
    outputs; their S11 then also has patients who are positive for one and negative for another.

    y: (n,) of 0 and 1, or (n, K) of 0, 1 and NaN, which is unknown. scores: (S, n) or (S, n, K), higher for positive,
    ties counting half. patients: (n,) keys; None where each row is a patient of its own. AUROCs are NaN where a class
    is absent or a score is NaN, and covariances also where a class comes from a single patient.
    """
    y, scores = y.reshape(len(y), -1), scores.reshape(*scores.shape[:2], -1)
    count, outputs = len(scores), y.shape[1]
    code = np.arange(len(y)) if patients is None else np.unique(patients, return_inverse=True)[1]
    sums, unbiased = np.zeros((2, 2, code.max() + 1, count))
    has = np.zeros(code.max() + 1, bool)
    aurocs = np.zeros(count)
    for column, of_output in zip(y.T, np.moveaxis(scores, 2, 0), strict=True):
        positive, negative = np.flatnonzero(column == 1), np.flatnonzero(column == 0)
        if not len(positive) or not len(negative):
            return DeLong(np.full(count, np.nan), np.full((count, count), np.nan))
        ranks = rankdata(of_output[:, np.append(positive, negative)], axis=1)
        # Of each positive, the share of negatives below it; of each negative, the share of positives above it.
        above = (ranks[:, : len(positive)] - rankdata(of_output[:, positive], axis=1)) / len(negative)
        below = 1 - (ranks[:, len(positive) :] - rankdata(of_output[:, negative], axis=1)) / len(positive)
        auroc = above.mean(axis=1)
        aurocs += auroc / outputs
        for side, rows, placements in ((0, positive, above), (1, negative, below)):
            own = np.zeros_like(sums[side])
            np.add.at(own, code[rows], (placements - auroc[:, None]).T / (len(rows) * outputs))
            clusters = len(np.unique(code[rows]))
            sums[side] += own
            unbiased[side] += own * (math.sqrt(_unbiased(clusters)) if clusters > 1 else math.nan)
            has[code[rows]] = True
    s10, s01 = (one.T @ one for one in unbiased)
    s11 = _unbiased(has.sum()) * sums[0].T @ sums[1]
    return DeLong(aurocs, s10 + s01 + s11 + s11.T)


def auroc_interval(auroc: float, variance: float, level: float = 0.95) -> tuple[float, float]:
    """Interval of an AUROC from its variance, symmetric on the logit scale (Pepe 2003).

    An AUROC is bounded and, near 1, skewed; on the plain scale the interval would reach past 1 and sit too high. NaN
    where the variance is 0 or NaN: where all positives score above all negatives, the variance that they show is 0,
    and yet nothing is certain.
    """
    if not (variance > 0 and 0 < auroc < 1):
        return math.nan, math.nan
    centre = math.log(auroc / (1 - auroc))
    half = float(ndtri((1 + level) / 2)) * math.sqrt(variance) / (auroc * (1 - auroc))
    return float(expit(centre - half)), float(expit(centre + half))


class PairedDifference(NamedTuple):
    """A difference of two AUROCs on the same rows, its standard error and interval, and the two-sided p of none."""

    difference: float
    se: float
    low: float
    high: float
    p: float


def paired_difference(result: DeLong, first: int, second: int, level: float = 0.95) -> PairedDifference:
    """The AUROC of one set of scores minus that of another, with the test of DeLong et al. (1988) of one contrast.

    first, second: positions in `result`. Two sets that rank all rows alike differ by 0 with p 1. Otherwise, where no
    variance is seen by which to judge a difference, all but the difference is NaN.
    """
    difference = float(result.aurocs[first] - result.aurocs[second])
    covariance = result.covariance
    own = float(covariance[first, first] + covariance[second, second])
    variance = own - 2 * float(covariance[first, second])
    if not variance > 1e-12 * own:  # what is left of the variance of equals is rounding
        alike = own > 0 and abs(difference) < 1e-12
        return PairedDifference(difference, *((0.0, 0.0, 0.0, 1.0) if alike else (math.nan,) * 4))
    se = math.sqrt(variance)
    half = float(ndtri((1 + level) / 2)) * se
    p = float(2 * ndtr(-abs(difference) / se))
    return PairedDifference(difference, se, max(difference - half, -1.0), min(difference + half, 1.0), p)


def detectable(se: float, level: float = 0.95, power: float = 0.8, freedom: float = math.inf) -> float:
    """The smallest true difference that a two-sided test finds with this power: (z_level + z_power) x se.

    With quantiles of Student's t for those of the normal distribution where degrees of freedom are given.

    se: standard error of the difference, from `paired_difference` or as the standard deviation of its bootstrap; it
    is taken to be the same at that difference as where it was measured. With that of a single AUROC, the smallest
    distance from a fixed value. At a power of half or more, that the test errs in direction is of no account.
    """
    return float(stdtrit(freedom, (1 + level) / 2) + stdtrit(freedom, power)) * se


def hanley_mcneil_se(auroc: float, n_positive: int, n_negative: int) -> float:
    """Standard error that an AUROC would have: Hanley & McNeil (1982), with Q1 and Q2 as for exponential scores.

    For plans, before there are scores, and for independent rows: where patients repeat, count patients. NaN where a
    class is absent.
    """
    if not n_positive or not n_negative:
        return math.nan
    q1, q2 = auroc / (2 - auroc), 2 * auroc**2 / (1 + auroc)
    of_positives, of_negatives = (n_positive - 1) * (q1 - auroc**2), (n_negative - 1) * (q2 - auroc**2)
    return math.sqrt((auroc * (1 - auroc) + of_positives + of_negatives) / (n_positive * n_negative))


def _unbiased(clusters: int) -> float:
    return clusters / (clusters - 1)
