"""Adaptations that are scored on patients from whom nothing was learned, with or without labels."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from medclr.training.adapt import Choice, Features, Moved, Problem, choose_method, solve, supervised
from medclr.training.probe import Linear, Scores, inner_folds

Rows = NDArray[np.intp]
Anew = Callable[[Rows, Rows, Rows, int], Moved]
"""From positions of source rows, of target rows to adapt to and of those to score, and a seed, to their features."""


@dataclass(frozen=True, eq=False)
class Domain:
    """Labelled volumes of one domain: y (n, K), patients (n,) keys, features (n, F) by the encoder as it is."""

    y: Scores
    patients: NDArray[np.object_]
    features: Features


class CrossFit:
    """Scores of all volumes of a target, each by an adaptation to the half of its patients that they are not of.

    Halves are drawn by the seed, stratified by class, so that each can be judged; source volumes of patients who are
    scored are left out. What was computed is kept until other rows or another seed are asked for: methods share it.

    Args:
        source, target: the domains; labels of the target serve `upper_bound` alone.
        exclusive: the K columns are classes, of which each row has one.
        anew: for each method that does not work on the features of the domains, what makes its own.
    """

    def __init__(
        self, source: Domain, target: Domain, exclusive: bool, anew: Mapping[str, Anew] = MappingProxyType({})
    ) -> None:
        self._source, self._target = source, target
        self._exclusive, self._anew = exclusive, anew
        self._asked: tuple[int, bytes] | None = None
        self._halves: list[tuple[Rows, Rows, Problem]] = []
        self._solved: dict[tuple[int, str], tuple[Problem, Linear]] = {}

    def scores(self, method: str, drawn: Rows, seed: int) -> Scores:
        """Scores (m, K) of the target by one of METHODS, from the source rows at the positions `drawn`."""
        return self._by_half(drawn, seed, lambda half: _scored(*self._solve(half, method)))

    def chosen(self, candidates: Sequence[str], drawn: Rows, seed: int) -> tuple[Scores, list[Choice]]:
        """The same by whichever of METHODS `choose_method` takes in each half; and what that was."""
        choices: list[Choice] = []

        def scored(half: int) -> Scores:
            choices.append(choose_method({name: self._solve(half, name) for name in candidates}))
            return _scored(*self._solve(half, choices[-1].method))

        return self._by_half(drawn, seed, scored), choices

    def upper_bound(self, drawn: Rows, seed: int) -> Scores:
        """The same by heads that learn the labels of the half to which methods adapt without them."""

        def scored(half: int) -> Scores:
            fit, _, problem = self._halves[half]
            return _scored(problem, supervised(problem, self._target.y[fit], self._target.patients[fit]))

        return self._by_half(drawn, seed, scored)

    def whole(self, method: str, seed: int) -> tuple[Problem, Linear]:
        """One of METHODS from all of the source, adapted to all of the target: what is used on new volumes of it."""
        source, target = (np.arange(len(domain.y)) for domain in (self._source, self._target))
        # All is adapted to, and so nothing is left to score; but one row is easier to have than none.
        return solve(self._of(source, target, target[:1], seed), method)

    def _by_half(self, drawn: Rows, seed: int, scored: Callable[[int], Scores]) -> Scores:
        if self._asked != (seed, drawn.tobytes()):
            folds = inner_folds(self._target.y, self._target.patients, seed, 2)
            self._halves = [(fit, held, self._problem(drawn, fit, held, seed)) for fit, held in folds]
            self._asked, self._solved = (seed, drawn.tobytes()), {}
        scores = np.empty(self._target.y.shape)
        for half, (_, held, _) in enumerate(self._halves):
            scores[held] = scored(half)
        return scores

    def _problem(self, drawn: Rows, fit: Rows, held: Rows, seed: int) -> Problem:
        own = drawn[~np.isin(self._source.patients[drawn], self._target.patients[held])]
        return self._of(own, fit, held, seed)

    def _of(self, own: Rows, fit: Rows, held: Rows, seed: int) -> Problem:
        source, target = self._source, self._target
        return Problem(
            source.features[own],
            source.y[own],
            source.patients[own],
            target.features[fit],
            target.features[held],
            self._exclusive,
            seed,
            {name: partial(make, own, fit, held, seed) for name, make in self._anew.items()},
        )

    def _solve(self, half: int, method: str) -> tuple[Problem, Linear]:
        if (half, method) not in self._solved:
            self._solved[half, method] = solve(self._halves[half][2], method)
        return self._solved[half, method]


def _scored(moved: Problem, head: Linear) -> Scores:
    """Scores in deviations of those that the head gives the half adapted to.

    Those of both halves are ranked together, and two heads, or two methods, have no scale in common.
    """
    told = head.scores(moved.target)
    deviation = told.std(axis=0)
    return np.asarray((head.scores(moved.scored) - told.mean(axis=0)) / np.where(deviation > 0, deviation, 1))
