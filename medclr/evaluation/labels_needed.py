"""How many labels an arm needs to match a target, such as scratch with all of them: the headline of a curve."""

import math
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class LabelsNeeded:
    """A count of labelled patients with its interval, any of which may be open; labels are saved of `every` one.

    0 stands for "`least` or fewer" (the smallest fraction reached the target already), inf for "not with
    `most`" (the largest did not). Where `reason` is not empty the numbers are NaN; `low` and `high` also where no
    resample has a whole curve.
    """

    labels: float
    low: float
    high: float
    least: float
    most: float
    every: float
    reason: str

    def __str__(self) -> str:
        """In words: "reached with 471 labelled patients (210 to not reached): 90% of labels saved (none to 96%)"."""
        if self.reason:
            return f"n/a, because {self.reason}"
        if math.isinf(self.labels):
            said = f"not reached with {_count(self.most)} labelled patients"
        else:
            said = f"reached with {self._end(self.labels, 'labelled patients')}"
        saved = f"{self._saved(self.labels)} of labels saved"
        if math.isnan(self.low):
            return f"{said} (no interval): {saved}"
        low, high = self._end(self.low), self._end(self.high)
        if low == high:
            return f"{said} ({low} throughout the interval): {saved}"
        return f"{said} ({low} to {high}): {saved} ({self._saved(self.high)} to {self._saved(self.low)})"

    def _saved(self, labels: float) -> str:
        if labels >= self.every * (1 - 1e-9):
            return "none"
        share = f"{100 * (1 - (labels or self.least) / self.every):.0f}%"
        return share if labels else f"{share} or more"

    def _end(self, labels: float, unit: str = "") -> str:
        if math.isinf(labels):
            return "not reached"
        return " ".join(filter(None, [_count(labels or self.least), unit, "" if labels else "or fewer"]))


def labels_needed(
    labels: np.ndarray,
    curve: np.ndarray,
    target: float,
    resampled_curve: np.ndarray,
    resampled_target: np.ndarray,
    level: float = 0.95,
) -> LabelsNeeded:
    """The labels with which a curve first reaches a target.

    More labels cannot truly hurt, so the curve is replaced by the non-decreasing one that is nearest in least squares
    (isotonic regression, every fraction counting the same), and then interpolated linearly over log(labels). The
    interval is the percentile one of all resamples, each with its own curve and its own target; as its ends are
    resamples themselves, they stay open where a resample does not reach the target, or has it from the start.

    Args:
        labels: (F,) labels at each fraction, ascending and above 0; the last are all, of which some may be saved.
        curve: (F,) mean AUROC there; NaN where a fraction has no result, which is then left out.
        target: the AUROC to match.
        resampled_curve: (R, F) the same from resamples.
        resampled_target: (R,) from the same resamples; those with a NaN are left out.
        level: of the interval.
    """
    known = ~np.isnan(curve)
    if math.isnan(target) or not known.any():
        reason = "the target has no result" if math.isnan(target) else "no fraction has a result"
        return LabelsNeeded(*(math.nan,) * 6, reason=reason)
    every, labels = float(labels[-1]), labels[known]
    value = float(_first_reached(labels, curve[None, known], np.array([target]))[0])

    whole = ~np.isnan(resampled_target) & ~np.isnan(resampled_curve[:, known]).any(axis=1)
    low = high = math.nan
    if whole.any():
        # Ends are resamples, not interpolated between two: nothing lies between a count and "not reached".
        found = np.sort(_first_reached(labels, resampled_curve[whole][:, known], resampled_target[whole]))
        tail = (len(found) - 1) * (1 - level) / 2
        low, high = float(found[math.floor(tail)]), float(found[len(found) - 1 - math.floor(tail)])
    return LabelsNeeded(value, low, high, float(labels[0]), float(labels[-1]), every, "")


def isotonic(curves: np.ndarray) -> np.ndarray:
    """Non-decreasing curves nearest to the given ones in least squares, row by row.

    The max-min formula of Robertson, Wright & Dykstra (1988): at i, the largest over all starts up to
    i of the smallest mean from there to an end from i on. curves: (R, F). Returns (R, F).
    """
    n = curves.shape[1]
    means = np.full((n, n, len(curves)), np.nan)
    for start in range(n):
        for end in range(start, n):
            means[start, end] = curves[:, start : end + 1].mean(axis=1)
    return np.stack([means[: i + 1, i:].min(axis=1).max(axis=0) for i in range(n)], axis=1)


def _first_reached(labels: np.ndarray, curves: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Labels at which each curve reaches its target: 0 if at the first, inf if at none. (R, F), (R,) -> (R,)."""
    monotone = isotonic(curves)
    # The slack is for rounding in means: a curve that ends at its target has reached it.
    reached = monotone >= targets[:, None] - 1e-12
    rows = np.arange(len(curves))
    last = np.maximum(reached.argmax(axis=1), 1) if len(labels) > 1 else np.zeros(len(curves), dtype=np.intp)
    below, above = monotone[rows, last - 1], monotone[rows, last]
    rise = above - below
    share = np.divide(targets - below, rise, out=np.ones_like(rise), where=rise > 0)
    log = np.log(labels)
    found = np.exp(log[last - 1] + np.clip(share, 0, 1) * (log[last] - log[last - 1]))
    return np.where(reached[:, 0], 0.0, np.where(reached.any(axis=1), found, math.inf))


def _count(labels: float) -> str:
    return f"{math.ceil(labels - 1e-9):,}"
