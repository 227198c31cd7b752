"""Adaptations that are scored on patients from whom nothing was learned, with or without labels."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from medclr.training.adapt import (
    SOURCE_ONLY,
    Choice,
    Features,
    Moved,
    Problem,
    choose_method,
    held_out_auroc,
    mean_entropy,
    solve,
    supervised,
)
from medclr.training.probe import FOLDS, Linear, Scores, fit_linear, inner_folds
from medclr.training.shots import few_shot, shots_in_order

Rows = NDArray[np.intp]
Anew = Callable[[Rows, Rows, Rows, int], Moved]
"""From positions of source rows, of target rows to adapt to and of those to score, and a seed, to their features."""
Tune = Callable[[Rows, Linear, Rows, Rows, int], tuple[Scores, Scores]]
"""Positions of target rows to learn, the head to start from, rows of both halves and a seed, to scores of these."""


@dataclass(frozen=True, eq=False)
class Domain:
    """Volumes of one domain: y (n, K), patients (n,) keys, features (n, F) by the encoder as it is.

    Those without a label, whose y is NaN, come last: no head learns from them, and none is scored.
    pixels: (n,) hashes, which volumes share that are the same whoever they are said to be of; None where none are.
    """

    y: Scores
    patients: NDArray[np.object_]
    features: Features
    pixels: NDArray[np.object_] | None = None

    @property
    def labelled(self) -> Rows:
        return np.arange(int((~np.isnan(self.y).all(axis=1)).sum()))

    def apart(self, rows: Rows, other: "Domain", held: Rows) -> Rows:
        """Those of some rows that are neither of a patient of rows of another domain, nor copies of one of these."""
        same = np.isin(self.patients[rows], other.patients[held])
        if self.pixels is not None and other.pixels is not None:
            same |= np.isin(self.pixels[rows], other.pixels[held])
        return rows[~same]


class CrossFit:
    """Scores of all labelled volumes of a target, each by an adaptation to the half of patients that they are not of.

    Halves are drawn by the seed, stratified by class, so that each can be judged; volumes without a label are in both.
    Source volumes of patients who are scored are left out, and so are, in either domain, copies of a volume that is
    scored, and other volumes of its patient. A target without any label is one half, adapted to, and not scored. What
    was computed is kept until other rows or another seed are asked for: methods share it.

    Args:
        source, target: the domains; labels of the target serve `upper_bound` alone.
        exclusive: the K columns are classes, of which each row has one.
        anew: for each method that does not work on the features of the domains, what makes its own.
        domains: (n,) of the source's rows, where it has several that are to count the same; see `equal_draws`.
    """

    def __init__(
        self,
        source: Domain,
        target: Domain,
        exclusive: bool,
        anew: Mapping[str, Anew] = MappingProxyType({}),
        domains: NDArray[np.object_] | None = None,
    ) -> None:
        self._domains = domains
        self._source, self._target = source, target
        self._exclusive, self._anew = exclusive, anew
        self._asked: tuple[int, bytes] | None = None
        self._halves: list[tuple[Rows, Rows, Problem]] = []
        self._solved: dict[tuple[int, str], tuple[Problem, Linear]] = {}
        self._chosen: dict[tuple[int, tuple[str, ...]], Choice] = {}

    def scores(self, method: str, drawn: Rows, seed: int) -> Scores:
        """Scores (m, K) of the target by one of METHODS, from the source rows at the positions `drawn`."""
        return self._by_half(drawn, seed, lambda half: _scored(*self._solve(half, method)))

    def judged(self, method: str, drawn: Rows, seed: int) -> tuple[float, float]:
        """What is known of one of METHODS without labels of the target, of both halves the mean.

        Its AUROC in the source, each row scored by a head that left its patient out, which a network that was trained
        on these labels has not; and the mean entropy of its answers in the half adapted to.
        """
        self._halve(drawn, seed)
        solved = [self._solve(half, method) for half in range(len(self._halves))]
        at_home = [held_out_auroc(method, moved, head) for moved, head in solved]
        entropy = [mean_entropy(head.scores(moved.target), self._exclusive) for moved, head in solved]
        return float(np.mean(at_home)), float(np.mean(entropy))

    def chosen(self, candidates: Sequence[str], drawn: Rows, seed: int) -> tuple[Scores, list[Choice]]:
        """The same by whichever of METHODS `choose_method` takes in each half; and what that was."""
        choices = self.choices(candidates, drawn, seed)
        return self._by_half(drawn, seed, lambda half: _scored(*self._solve(half, choices[half].method))), choices

    def choices(self, candidates: Sequence[str], drawn: Rows, seed: int) -> list[Choice]:
        """What `choose_method` takes in each half."""
        self._halve(drawn, seed)
        return [self._choose(half, candidates) for half in range(len(self._halves))]

    def upper_bound(self, drawn: Rows, seed: int) -> Scores:
        """The same by heads that learn the labels of the half to which methods adapt without them."""

        def scored(half: int) -> Scores:
            fit, _, problem = self._halves[half]
            own = self._known(fit)
            learned = replace(problem, target=problem.target[: len(own)])
            return _scored(problem, supervised(learned, self._target.y[own], self._target.patients[own]))

        return self._by_half(drawn, seed, scored)

    def whole(self, method: str, seed: int) -> tuple[Problem, Linear]:
        """One of METHODS from all of the source, adapted to all of the target: what is used on new volumes of it."""
        source = np.arange(len(self._source.y))
        if len(self._target.labelled):
            return solve(self._undivided(source, seed)[2], method)
        self._halve(source, seed)
        return self._solve(0, method)

    def unlearnable(self, drawn: Rows, seed: int) -> str:
        """Why nothing can be learned from the source without the patients who are scored; "" where it can."""
        self._halve(drawn, seed)
        problems = [problem for _, _, problem in self._halves]
        if not all(any({0.0, 1.0} <= set(column) for column in problem.y.T) for problem in problems):
            return "without the patients who are scored, the source is of one class"
        left = min(len(set(problem.patients)) for problem in problems)
        few = f"only {left} patient{'' if left == 1 else 's'} (fewer than {FOLDS})"
        return "" if left >= FOLDS else f"without the patients who are scored, the source has {few}"

    def lacking(self, n: int, drawn: Rows, seed: int) -> str:
        """Why n labels per class cannot be drawn from either half; "" where they can."""
        self._halve(drawn, seed)
        there = min(len(of_class) for half in (0, 1) for of_class in self._shots(half, seed))
        patients = f"{there} patient{'' if there == 1 else 's'}"
        return "" if there >= n else f"a half of the target has {patients} of a class, and {n} are asked for"

    def with_shots(self, n: int, drawn: Rows, seed: int, candidates: Sequence[str] = (SOURCE_ONLY,)) -> Scores:
        """Scores (m, K) of the target by heads that learn n labels per class of the other half beside the source's.

        On features as they are moved by the one of `candidates` that `choose_method` takes.
        """
        return self._by_half(drawn, seed, lambda half: _scored(*self._few(half, n, seed, candidates)))

    def shots_alone(self, n: int, drawn: Rows, seed: int) -> Scores:
        """The same by heads that learn these labels alone, on features as they are."""

        def scored(half: int) -> Scores:
            _, _, problem = self._halves[half]
            at, y, keys = self._first(half, n, seed)
            return _scored(problem, fit_linear(problem.target[at], y, keys, seed, exclusive=self._exclusive))

        return self._by_half(drawn, seed, scored)

    def tuned(self, n: int, drawn: Rows, seed: int, tune: Tune) -> Scores:
        """The same by whole networks that learn these labels, from the head of `with_shots`."""

        def scored(half: int) -> Scores:
            fit, held, _ = self._halves[half]
            _, head = self._few(half, n, seed, (SOURCE_ONLY,))
            return _standardised(*tune(fit[self._first(half, n, seed)[0]], head, fit, held, seed))

        return self._by_half(drawn, seed, scored)

    def _few(self, half: int, n: int, seed: int, candidates: Sequence[str]) -> tuple[Problem, Linear]:
        """The features as they are moved, and the head."""
        method = candidates[0] if len(candidates) == 1 else self._choose(half, candidates).method
        moved, head = self._solve(half, method)
        at, y, _ = self._first(half, n, seed)
        return moved, few_shot(moved.source, moved.y, moved.target[at], y, self._exclusive, head.strength, seed)

    def _shots(self, half: int, seed: int) -> list[Rows]:
        """Of each class that the target has."""
        fit = self._known(self._halves[half][0])
        y, patients = self._target.y, self._target.patients
        there = (y == 1).any(axis=0) if self._exclusive else (True, True)
        of_class = shots_in_order(y[fit], patients[fit], self._exclusive, seed)
        return [rows for rows, known in zip(of_class, there, strict=True) if known]

    def _first(self, half: int, n: int, seed: int) -> tuple[Rows, Scores, NDArray[np.object_]]:
        """Of n labels per class: positions in the half adapted to, labels and patients."""
        fit, _, _ = self._halves[half]
        at = np.concatenate([rows[:n] for rows in self._shots(half, seed)])
        return at, self._target.y[fit][at], self._target.patients[fit][at]

    def _by_half(self, drawn: Rows, seed: int, scored: Callable[[int], Scores]) -> Scores:
        self._halve(drawn, seed)
        scores = np.empty((len(self._target.labelled), self._target.y.shape[1]))
        for half, (_, held, _) in enumerate(self._halves):
            scores[held] = scored(half)
        return scores

    def _halve(self, drawn: Rows, seed: int) -> None:
        if self._asked != (seed, drawn.tobytes()):
            self._halves = self._divided(drawn, seed) if len(self._target.labelled) else [self._undivided(drawn, seed)]
            self._asked, self._solved, self._chosen = (seed, drawn.tobytes()), {}, {}

    def _divided(self, drawn: Rows, seed: int) -> list[tuple[Rows, Rows, Problem]]:
        target, known = self._target, self._target.labelled
        rest = np.arange(len(known), len(target.y))
        folds = [
            (target.apart(np.concatenate([fit, rest]), target, held), held)
            for fit, held in inner_folds(target.y[known], target.patients[known], seed, 2)
        ]
        return [(fit, held, self._problem(drawn, fit, held, seed)) for fit, held in folds]

    def _undivided(self, drawn: Rows, seed: int) -> tuple[Rows, Rows, Problem]:
        """All is adapted to, and so nothing is left to score; but one row is easier to have than none."""
        every = np.arange(len(self._target.y))
        return every, every[:1], self._of(drawn, every, every[:1], seed)

    def _known(self, fit: Rows) -> Rows:
        """Those of the rows of a half that have a label, which are its first."""
        return fit[: int(np.isin(fit, self._target.labelled).sum())]

    def _problem(self, drawn: Rows, fit: Rows, held: Rows, seed: int) -> Problem:
        return self._of(self._source.apart(drawn, self._target, held), fit, held, seed)

    def _of(self, own: Rows, fit: Rows, held: Rows, seed: int) -> Problem:
        source, target = self._source, self._target
        if self._domains is not None:
            own = own[equal_draws(self._domains[own], seed)]
        return Problem(
            source.features[own],
            source.y[own],
            source.patients[own],
            target.features[fit],
            target.features[held],
            self._exclusive,
            seed,
            {name: cache(partial(make, own, fit, held, seed)) for name, make in self._anew.items()},
            others=target.patients[fit],
        )

    def _solve(self, half: int, method: str) -> tuple[Problem, Linear]:
        if (half, method) not in self._solved:
            self._solved[half, method] = solve(self._halves[half][2], method)
        return self._solved[half, method]

    def _choose(self, half: int, candidates: Sequence[str]) -> Choice:
        key = half, tuple(candidates)
        if key not in self._chosen:
            self._chosen[key] = choose_method(candidates, partial(self._solve, half))
        return self._chosen[key]


def equal_draws(domains: NDArray[np.object_], seed: int) -> Rows:
    """Positions of rows among which each domain has as many as the largest: all rows, those of others several times.

    Within a domain each row comes as often as any other, or once more; which do is drawn by the seed. So whatever
    learns from them, or takes a mean of them, sees domains in equal shares, and loses no row.

    Args:
        domains: (n,) of each row.
    """
    names, of = np.unique(domains, return_inverse=True)
    rng, most = np.random.default_rng(seed), int(np.bincount(of).max())
    drawn = [np.resize(rng.permutation(np.flatnonzero(of == place)), most) for place in range(len(names))]
    return np.sort(np.concatenate(drawn))


def _scored(moved: Problem, head: Linear) -> Scores:
    return _standardised(head.scores(moved.target), head.scores(moved.scored))


def _standardised(told: Scores, scores: Scores) -> Scores:
    """Scores in deviations of those that the head gives the half adapted to.

    Those of both halves are ranked together, and two heads, or two methods, have no scale in common.
    """
    deviation = told.std(axis=0)
    return np.asarray((scores - told.mean(axis=0)) / np.where(deviation > 0, deviation, 1))
