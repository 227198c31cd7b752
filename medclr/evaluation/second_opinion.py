"""A second opinion on a grid's AUROCs and differences, in closed form: over test patients alone."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from medclr.evaluation.estimates import LEVEL, Outcome, Truth
from medclr.metrics import DeLong, PairedDifference, auroc_interval, delong, paired_difference


class Means(NamedTuple):
    """The mean AUROC of each arm at one fraction, and their covariance over new patients."""

    arms: list[str]
    delong: DeLong

    def interval(self, arm: str) -> tuple[float, float]:
        place = self.arms.index(arm)
        return auroc_interval(float(self.delong.aurocs[place]), float(self.delong.covariance[place, place]), LEVEL)

    def difference(self, arm: str, versus: str) -> PairedDifference:
        return paired_difference(self.delong, self.arms.index(arm), self.arms.index(versus), LEVEL)


def delong_means(outcomes: Sequence[Outcome], truth: Truth) -> dict[float, Means]:
    """By fraction, the means over cells and their covariance by DeLong's or, where patients repeat, Obuchowski's form.

    Draws and encoders are taken as given: it is only the patients' part of what `Chance.estimate` reckons with, by
    another way. A mean over the cells S of an arm has the weights c = 1 / |S|, so that the means of arms C have the
    covariance C Sigma C'. Arms without an AUROC are left out.
    """
    y = truth.y[:, truth.judged]
    found = {}
    for fraction in dict.fromkeys(outcome.fraction for outcome in outcomes):
        there = [outcome for outcome in outcomes if outcome.fraction == fraction and outcome.auroc is not None]
        if not there:
            continue
        cells = [(place, cell) for place, outcome in enumerate(there) for cell in outcome.cells]
        scores = np.stack([cell.scores[:, truth.judged] for _, cell in cells if cell.scores is not None])
        weights = np.zeros((len(there), len(cells)))
        for column, (place, _) in enumerate(cells):
            weights[place, column] = 1 / len(there[place].cells)
        each = delong(y, scores, truth.patients)
        means = DeLong(weights @ each.aurocs, weights @ each.covariance @ weights.T)
        found[fraction] = Means([outcome.arm for outcome in there], means)
    return found
