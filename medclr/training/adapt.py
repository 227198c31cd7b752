"""From a source domain with labels to a target domain without: what a linear head on frozen features can do.

A way of adapting moves features, which needs no label, and then learns a head from the labels of the source.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import entr, expit, softmax
from torch import nn

from medclr.metrics import discrepancy, weighted_mean_auroc
from medclr.training.probe import Linear, Scores, fit_linear, inner_folds, log_prior, out_of_fold

RIDGE = 1.0  # of CORAL, in variances of the features
MOST_LOST = 0.05  # of the AUROC in the source, for which nothing that it brings may pay
MOST_ROWS = 500  # of each domain, as a distance takes the square of their number
SHARES = (0.2, 0.35, 0.5)  # of the target's volumes, round by round, from which self-training learns

Features = NDArray[np.floating]


class Moved(NamedTuple):
    """Features of the source, of the target to adapt to and of what is scored, as another network has them.

    network: the one of the last two, from images to features; None is the encoder as it is.
    """

    source: Features
    target: Features
    scored: Features
    network: nn.Module | None = None


@dataclass(frozen=True, eq=False)
class Problem:
    """One adaptation. No label of the target is in it.

    Attributes:
        source: features (n, F); y: (n, K) of 0, 1 and NaN, their labels; patients: (n,) keys.
        target: features (m, F) to adapt to; scored: (k, F) to be scored, from which nothing is learned.
        exclusive: the K columns are classes, of which each row has one; seed: of folds.
        anew: by method, what gives source, target and scored as another network, or of other images, has them, with the
            same rows.
        network: of the target's features, as in `Moved`.
        others: (m,) keys of the target's patients; None where each row is of another.
        again: how many rows of the source, its last, show earlier ones in the style of the target.
    """

    source: Features
    y: Scores
    patients: NDArray[np.object_]
    target: Features
    scored: Features
    exclusive: bool
    seed: int
    anew: Mapping[str, Callable[[], Moved]] = field(default_factory=dict)
    network: nn.Module | None = None
    others: NDArray[np.object_] | None = None
    again: int = 0


class Choice(NamedTuple):
    """What was chosen without a label of the target: the method, and how far apart it leaves the domains.

    left: their distance over its noise; up to 1, chance alone may put them as far apart.
    """

    method: str
    left: float


Move = Callable[[Problem], Problem]
Learn = Callable[[Problem, float | None], Linear]


def solve(problem: Problem, method: str) -> tuple[Problem, Linear]:
    """One of METHODS: the features as it has moved them, and the head that it has learned."""
    move, learn = METHODS[method]
    moved = move(problem)
    return moved, learn(moved, None)


def choose_method(candidates: Sequence[str], solved: Callable[[str], tuple[Problem, Linear]]) -> Choice:
    """The least change that brings the domains together, and keeps what tells classes in the source.

    A head errs in the target as in the source, but for how far apart their features lie and for what no one rule could
    tell in both (Ben-David et al. 2010, theorem 2). Methods are tried from the least change on, in the order of
    METHODS: the first is taken after which the domains' distance is within its noise, or else the one that leaves the
    least of it. One whose AUROC in the source, by patients held out, is more than MOST_LOST below that of source-only
    is passed over: features that show nothing are alike too. One that moves nothing is not told from source-only so.

    Args:
        candidates: of METHODS, among them SOURCE_ONLY, which is what all others are compared with.
        solved: from a method to what `solve` gives, asked only for those that are tried.
    """
    least: Choice | None = None
    at_home = 0.0
    for name, (move, _) in METHODS.items():
        if name not in candidates or (move is _as_it_is and name != SOURCE_ONLY):
            continue
        moved, head = solved(name)
        kept = held_out_auroc(name, moved, head)
        at_home = kept if name == SOURCE_ONLY else at_home
        if kept < at_home - MOST_LOST:
            continue
        apart, noise = distance(moved)
        choice = Choice(name, max(apart, 0) / max(noise, np.finfo(float).tiny))
        if least is None or choice.left < least.left:
            least = choice
        if apart <= noise:
            return choice
    assert least
    return least


def distance(problem: Problem) -> tuple[float, float]:
    """The squared MMD of source and target, and its noise: see `discrepancy`.

    Features are divided by the roots of their mean variances in both domains; of a domain with more rows, MOST_ROWS
    are drawn. Of a source that is shown in the style of the target too, that style is compared.
    """
    styled = slice(len(problem.source) - problem.again if problem.again else 0, None)
    rng, scale = np.random.default_rng(problem.seed), _scale(problem.source, problem.target)
    others = problem.others if problem.others is not None else np.arange(len(problem.target)).astype(str)
    features, patients = [], []
    for x, keys in ((problem.source[styled], problem.patients[styled]), (problem.target, others)):
        at = np.sort(rng.permutation(len(x))[:MOST_ROWS])
        features.append(x[at] / scale)
        patients.append(np.asarray(keys, dtype=object)[at])
    of_source = np.arange(sum(map(len, features))) < len(features[0])
    return discrepancy(np.concatenate(features), of_source, np.concatenate(patients), rng)


def supervised(problem: Problem, y: Scores, patients: NDArray[np.object_]) -> Linear:
    """The upper bound: a head that has learned the target's own labels, y (m, K)."""
    return _linear(replace(problem, source=problem.target, y=y, patients=patients))


def recoloured(source: Features, target: Features, ridge: float = RIDGE) -> Features:
    """Features of the source with the mean and, up to the ridge, the covariance of the target's.

    CORAL (Sun, Feng and Saenko 2016, algorithm 1), which adds the identity to either covariance. Here it is added to
    that of features divided by their standard deviations, so that no unit of theirs counts: the root of the mean of the
    variances in both domains, as a feature may be dead in one.
    """
    means = [x.mean(axis=0, dtype=np.float64) for x in (source, target)]
    scale = _scale(source, target)
    a, b = ((x - mean) / scale for x, mean in zip((source, target), means, strict=True))
    recoloured = a @ _power(_covariance(a, ridge), -0.5) @ _power(_covariance(b, ridge), 0.5)
    return np.asarray(recoloured * scale + means[1])


def decided(scores: Scores, exclusive: bool) -> Scores:
    """Scores (n, K) as labels: one of the classes, or 0 and 1 for each label."""
    if exclusive:
        one_hot: Scores = np.eye(scores.shape[1])[scores.argmax(axis=1)]
        return one_hot
    told: Scores = (scores > 0).astype(np.float64)
    return told


def confident(scores: Scores, share: float, exclusive: bool) -> Scores:
    """Scores (n, K) as labels of the surest `share` of the rows that go to each class; NaN for the others.

    So a class that is told with less confidence does not die out: the shares of classes remain as they were told.
    """
    told = decided(scores, exclusive)
    labels, sureness = told, abs(scores)
    if exclusive:  # one decision for each row, not one for each column
        labels, sureness = told.argmax(axis=1)[:, None], scores.max(axis=1)[:, None]
    unsure = np.ones(labels.shape, dtype=bool)
    for column, label in enumerate(labels.T):
        for value in np.unique(label):
            rows = np.flatnonzero(label == value)
            surest = rows[np.argsort(-sureness[rows, column], kind="stable")]
            unsure[surest[: math.ceil(share * len(rows))], column] = False
    return np.where(unsure, np.nan, told)


def _as_it_is(problem: Problem) -> Problem:
    return problem


def _coral(problem: Problem) -> Problem:
    return replace(problem, source=recoloured(problem.source, problem.target))


def _anew(method: str) -> Move:
    """Features that are not made from features."""

    def move(problem: Problem) -> Problem:
        return replace(problem, **problem.anew[method]()._asdict())

    return move


def _with(method: str) -> Move:
    """The source twice: as it is, and in the style of the target. Rows of one patient stay in one fold."""
    anew = _anew(method)

    def move(problem: Problem) -> Problem:
        moved = anew(problem)
        return replace(
            moved,
            source=np.concatenate([problem.source, moved.source]),
            y=np.concatenate([problem.y] * 2),
            patients=np.concatenate([problem.patients] * 2),
            again=len(moved.source),
        )

    return move


def _linear(problem: Problem, strength: float | None = None) -> Linear:
    return _head(problem, problem.source, problem.y, strength, problem.patients)


def _self_trained(problem: Problem, strength: float | None = None) -> Linear:
    """Class-balanced self-training (Zou et al. 2018): the surest of each class, and more of them in each round."""
    head = _linear(problem, strength)
    for share in SHARES:
        told = confident(head.scores(problem.target), share, problem.exclusive)
        sure = ~np.isnan(told).all(axis=1)
        features = np.concatenate([problem.source, problem.target[sure]])
        head = _head(problem, features, np.concatenate([problem.y, told[sure]]), head.strength)
    return head


def _head(
    problem: Problem,
    features: Features,
    y: Scores,
    strength: float | None,
    patients: NDArray[np.object_] | None = None,
) -> Linear:
    """A linear head whose scores are as if all classes were equally frequent: nobody knows how they are in a target.

    patients: by whom the strength is chosen, where it is not given.
    """
    keys = np.zeros(len(y), dtype=object) if patients is None else patients
    head = fit_linear(features, y, keys, problem.seed, strength, problem.exclusive)
    return replace(head, bias=head.bias - log_prior(y, problem.exclusive))


def _scale(source: Features, target: Features) -> Features:
    """(F,): the root of the mean of the variances in both domains, as a feature may be dead in one."""
    scale = np.sqrt(np.mean([x.var(axis=0, dtype=np.float64) for x in (source, target)], axis=0))
    return np.where(scale > 0, scale, 1)


def held_out_auroc(method: str, moved: Problem, head: Linear) -> float:
    """Of the source as one of METHODS has moved it, each row scored by a head that did not learn from its patient.

    Rows that show others again are learned from, and not judged.
    """
    learn = METHODS[method][1]

    def scores_of(own: NDArray[np.intp], held: NDArray[np.intp]) -> Scores:
        part = replace(moved, source=moved.source[own], y=moved.y[own], patients=moved.patients[own])
        return learn(part, head.strength).scores(moved.source[held])

    scores = head.held_out
    if scores is None:
        scores = out_of_fold(scores_of, moved.y, inner_folds(moved.y, moved.patients, moved.seed))
    n = len(moved.y) - moved.again
    return float(weighted_mean_auroc(moved.y[:n], scores[:n], np.ones((1, n)))[0])


def mean_entropy(scores: Scores, exclusive: bool) -> float:
    """How unsure a head is of its answers (n, K), on average: 0 where it is certain of all, 1 where it knows nothing.

    The entropy of the predicted distribution (Grandvalet and Bengio 2004) as a share of the largest that there is.
    """
    if exclusive:
        of_each = entr(softmax(scores, axis=1)).sum(axis=1) / math.log(scores.shape[1])
    else:
        positive = expit(scores)
        of_each = (entr(positive) + entr(1 - positive)) / math.log(2)
    return float(of_each.mean())


def _covariance(features: Features, ridge: float) -> NDArray[np.float64]:
    return np.asarray(np.atleast_2d(np.cov(features.T)) + ridge * np.eye(features.shape[1]))


def _power(matrix: NDArray[np.float64], exponent: float) -> NDArray[np.float64]:
    """Of a symmetric matrix with positive eigenvalues."""
    values, vectors = np.linalg.eigh(matrix)
    return np.asarray(vectors * values**exponent @ vectors.T)


SOURCE_ONLY = "source-only"
METHODS: dict[str, tuple[Move, Learn]] = {
    SOURCE_ONLY: (_as_it_is, _linear),
    "adabn": (_anew("adabn"), _linear),  # Li et al. 2016: each domain is normalised by statistics of its own
    "adabn-coral": (lambda problem: _coral(_anew("adabn")(problem)), _linear),
    "coral": (_coral, _linear),
    "pseudo": (_as_it_is, _self_trained),
    "histogram": (_with("histogram"), _linear),
    "fourier": (_with("fourier"), _linear),  # Yang & Soatto 2020
    # Networks that are trained: see `medclr.training.realign`.
    "finetuned": (_anew("finetuned"), _linear),
    "deep-coral": (_anew("deep-coral"), _linear),
    "mmd": (_anew("mmd"), _linear),
    "dann": (_anew("dann"), _linear),
    "simclr-target": (_anew("simclr-target"), _linear),
    "simclr-both": (_anew("simclr-both"), _linear),
}
