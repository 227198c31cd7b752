"""Classifiers of features that are there already: a linear head, the nearest neighbours; and the plain baseline."""

import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import log_softmax, logit
from sklearn.decomposition import PCA
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold

from medclr.losses import class_weights, label_loss
from medclr.metrics import knn_scores, weighted_mean_auroc

Scores = NDArray[np.float64]
Key = TypeVar("Key")
Fold = tuple[NDArray[np.intp], NDArray[np.intp]]
STRENGTHS = (1e-3, 1e-2, 1e-1, 1.0, 10.0)  # inverse regularisation C that a linear head may choose
FIXED_STRENGTH = 0.1  # where the labels are too few to choose
FEWEST_PATIENTS = 10  # of each class, for a choice by inner cross-validation
FOLDS = 5
NEWTON_FEATURES = 128  # up to which Newton's method takes half of the time of L-BFGS
NEIGHBOURS = 20
COMPONENTS = 50  # of the PCA baseline


@dataclass(frozen=True)
class Linear:
    """A logistic regression on features: logits = features @ weight + bias.

    Attributes:
        weight: (F, K); bias: (K,); exclusive: the K columns are classes of which each row has one.
        strength: the C that was used; chosen: by cross-validation, or fixed.
        held_out: scores (n, K) of the rows it was fitted on, each from the fold that left its patient out; None where
            nothing was chosen.
    """

    weight: Scores
    bias: Scores
    exclusive: bool
    strength: float
    chosen: bool = False
    held_out: Scores | None = None

    def scores(self, features: NDArray[np.floating]) -> Scores:
        """Logits (n, K) of features (n, F); of exclusive classes log-probabilities, which are logits too."""
        logits = np.asarray(features @ self.weight + self.bias)
        return np.asarray(log_softmax(logits, axis=1)) if self.exclusive else logits


@dataclass(frozen=True)
class Neighbours:
    """The labelled rows nearest by cosine, which vote as in `knn_scores`.

    Attributes:
        features: (n, F); y: (n, K) of 0, 1 and NaN; exclusive: one class of several, rather than labels of their own.
    """

    features: NDArray[np.floating]
    y: Scores
    exclusive: bool

    def scores(self, features: NDArray[np.floating]) -> Scores:
        """Logits (m, K) of features (m, F), as if one more vote were spread evenly, so that none is infinite."""
        k = min(NEIGHBOURS, len(self.features))
        share = knn_scores(self.features, self.y, features, k)
        if self.exclusive:
            return np.asarray(np.log((share * k + 1 / share.shape[1]) / (k + 1)))
        return np.asarray(logit((share * k + 0.5) / (k + 1)))


def fit_linear(
    features: NDArray[np.floating],
    y: NDArray[np.floating],
    patients: NDArray[np.object_],
    seed: int,
    strength: float | None = None,
    exclusive: bool = False,
    balanced: bool = True,
    weight: Scores | None = None,
) -> Linear:
    """Logistic regression on scaled features, its strength chosen by inner patient-grouped cross-validation.

    What is chosen by is the cross-entropy that the regression itself lowers, all classes alike if `balanced`: AUROCs of
    folds with a few patients of a class tell strengths apart less well.

    All features are divided by one number, the largest of their standard deviations: dividing each by its own would
    make the noise of the last principal component as large as the first.

    Nothing but the rows given is used. What chooses are the labels, or classes, that FEWEST_PATIENTS patients have and
    as many have not; where there are none, it is fixed. A label of which one class is known has a logit of 0.

    Args:
        features: (n, F).
        y: (n, K) of 0, 1 and NaN (unknown, and left out).
        patients: (n,) keys.
        seed: of the folds.
        strength: given, so that none is chosen.
        exclusive: the K columns are classes, of which each row has one: a multinomial regression.
        balanced: all classes count the same, however many rows they have; probabilities are of these rows all the same.
        weight: (n,) of the rows, in place of `balanced`: probabilities are of rows that are as frequent as they weigh.
    """
    balanced = balanced and weight is None
    mean, scale = features.mean(axis=0), float(features.std(axis=0).max()) or 1.0
    scaled = (features - mean) / scale

    def fit(rows: Any, strength: float) -> Linear:
        own = None if weight is None else weight[rows]
        return _logistic(scaled[rows], y[rows], strength, exclusive, balanced, own)

    def judge(strength: float, own: NDArray[np.intp], held: NDArray[np.intp]) -> Scores:
        return fit(own, strength).scores(scaled[held])

    judges = enough_to_choose(y, patients)
    chosen = strength is None and bool(judges.any())
    held_out = None
    if chosen:
        folds = inner_folds(y, patients, seed)
        tried = {strength: out_of_fold(partial(judge, strength), y, folds) for strength in STRENGTHS}
        strength = min(STRENGTHS, key=lambda one: _loss(tried[one], y, judges, exclusive, balanced))
        held_out = tried[strength]
    head = fit(slice(None), FIXED_STRENGTH if strength is None else strength)
    slope = head.weight / scale
    return replace(head, weight=slope, bias=head.bias - mean @ slope, chosen=chosen, held_out=held_out)


def fit_pca(
    unlabelled: NDArray[np.floating],
) -> Callable[[NDArray[np.floating]], NDArray[np.floating]]:
    """The baseline's features: principal components of the pixels of all training volumes, labelled or not.

    Pre-training sees those volumes too, so the baseline may.

    Args:
        unlabelled: (n, voxels).

    Returns:
        A function from (m, voxels) to (m, components).
    """
    pca = PCA(min(COMPONENTS, *unlabelled.shape), svd_solver="randomized", random_state=0).fit(unlabelled)
    return lambda pixels: np.asarray(pca.transform(pixels))


def enough_to_choose(y: NDArray[np.floating], patients: NDArray[np.object_]) -> NDArray[np.bool_]:
    """Which labels or classes of y (n, K) FEWEST_PATIENTS patients have and as many have not."""
    fewest = [min(len(set(patients[column == value])) for value in (0, 1)) for column in y.T]
    return np.array(fewest) >= FEWEST_PATIENTS


def log_prior(y: NDArray[np.floating], exclusive: bool) -> Scores:
    """What balanced classes leave out of logits (K,): the log odds of each label of y (n, K), or log shares of classes.

    Where all classes count the same, a classifier tells probabilities as if they were equally frequent; added to its
    logits, this makes them those of the rows it learned from (Saerens, Latinne and Decaestecker 2002).
    It changes no order within a label. A class that no row has is as rare as if half a row had it.
    """
    positive, negative = np.nansum(y, axis=0), np.nansum(1 - y, axis=0)
    if exclusive:
        return np.asarray(np.log(np.maximum(positive, 0.5) / len(y)))
    return np.where((positive > 0) & (negative > 0), np.log(np.maximum(positive, 0.5) / np.maximum(negative, 0.5)), 0.0)


def inner_folds(y: NDArray[np.floating], patients: NDArray[np.object_], seed: int, n_folds: int = FOLDS) -> list[Fold]:
    """Positions to fit and to judge by, no patient on both sides, stratified by the class or rarest label of a patient.

    Patients whose stratum has fewer than `n_folds` are one stratum together.
    """
    rarest_first = np.argsort(np.nansum(y, axis=0), kind="stable")
    has = y[:, rarest_first] == 1
    _, patient = np.unique(patients, return_inverse=True)
    stratum = np.full(patient.max() + 1, y.shape[1])
    np.minimum.at(stratum, patient, np.where(has.any(axis=1), has.argmax(axis=1), y.shape[1]))
    stratum = np.where(np.bincount(stratum)[stratum] < n_folds, y.shape[1] + 1, stratum)
    with warnings.catch_warnings():
        # Of a label so rare that some folds have none; those folds do not count for it.
        warnings.filterwarnings("ignore", message="The least populated class")
        # By patient: scikit-learn's StratifiedGroupKFold takes longer than all the fits that the folds are for.
        folds = StratifiedKFold(n_folds, shuffle=True, random_state=seed % 2**32).split(stratum, stratum)
        held = [np.isin(patient, of_fold) for _, of_fold in folds]
    return [(np.flatnonzero(~own), np.flatnonzero(own)) for own in held]


def out_of_fold(
    scores_of: Callable[[NDArray[np.intp], NDArray[np.intp]], Scores], y: NDArray[np.floating], folds: Sequence[Fold]
) -> Scores:
    """Scores (n, K) of all rows; `scores_of` is given positions to fit on, and those whose scores it gives back."""
    scores = np.empty(y.shape)
    for fit, held in folds:
        scores[held] = scores_of(fit, held)
    return scores


def held_out_scores(
    features: NDArray[np.floating],
    y: NDArray[np.floating],
    patients: NDArray[np.object_],
    seed: int,
    exclusive: bool = False,
) -> tuple[Scores, NDArray[np.intp]]:
    """Scores (n, K) of rows by linear heads that were fitted to rows of other patients; takes what `fit_linear` does.

    And by which of the heads, (n,). Each has a level of its own, which is the higher the fewer positives its fold has:
    ranked against those of another, scores of features that say nothing have an AUROC below .5 (Parker, Günter and Bedo
    2007).
    """
    folds = inner_folds(y, patients, seed)
    head = np.empty(len(y), dtype=np.intp)
    for place, (_, held) in enumerate(folds):
        head[held] = place

    def scores_of(own: NDArray[np.intp], held: NDArray[np.intp]) -> Scores:
        return fit_linear(features[own], y[own], patients[own], seed, exclusive=exclusive).scores(features[held])

    return out_of_fold(scores_of, y, folds), head


def choose(
    candidates: Iterable[Key],
    scores_of: Callable[[Key, NDArray[np.intp], NDArray[np.intp]], Scores],
    y: NDArray[np.floating],
    folds: Sequence[Fold],
) -> tuple[Key, Scores]:
    """The candidate with the highest mean AUROC over folds, the first of equals; and its scores (n, K) out of fold.

    Args:
        candidates: in order.
        scores_of: a candidate, positions to fit on and positions to judge by, to the scores of the latter.
        y: (n, K).
        folds: from `inner_folds`.
    """
    best: tuple[float, Key, Scores] | None = None
    for candidate in candidates:
        scores = out_of_fold(partial(scores_of, candidate), y, folds)
        aurocs = [weighted_mean_auroc(y[held], scores[held], np.ones((1, len(held))))[0] for _, held in folds]
        quality = float(np.nanmean(aurocs))
        if best is None or quality > best[0]:
            best = quality, candidate, scores
    assert best
    return best[1:]


def _loss(scores: Scores, y: NDArray[np.floating], judges: NDArray[np.bool_], exclusive: bool, balanced: bool) -> float:
    """The cross-entropy of a head's scores (n, K), under the weights that it was fitted with.

    judges: (K,) the labels or classes that count; a class of two rows would else count as much as one of hundreds.
    """
    unjudged = (y[:, ~judges] == 1).any(axis=1)[:, None] if exclusive else ~judges
    target = torch.from_numpy(np.where(unjudged, np.nan, y).astype(np.float64))
    logits = torch.from_numpy(scores - log_prior(y, exclusive) * balanced)
    return label_loss(logits, target, class_weights(target, exclusive) if balanced else None, exclusive).item()


def _logistic(
    features: NDArray[np.floating],
    y: NDArray[np.floating],
    strength: float,
    exclusive: bool,
    balanced: bool,
    of_rows: Scores | None = None,
) -> Linear:
    """On features as they are: one regression of all classes, or one for each label. of_rows: (n,) their weights."""
    weight, bias = np.zeros((features.shape[1], y.shape[1])), np.zeros(y.shape[1])
    with warnings.catch_warnings():
        # At the weakest regularisation of separable labels there is no optimum to reach; the ranking is stable.
        warnings.simplefilter("ignore", ConvergenceWarning)
        # Of few features the whole Hessian is quick, and Newton's steps end at the optimum rather than near it.
        solver = "newton-cholesky" if features.shape[1] <= NEWTON_FEATURES and not exclusive else "lbfgs"
        weighting = "balanced" if balanced else None
        model = LogisticRegression(C=strength, max_iter=1000, class_weight=weighting, solver=solver)
        if exclusive:
            classes = np.flatnonzero(y.any(axis=0))
            model.fit(features, y.argmax(axis=1), of_rows)
            if len(classes) == 2:
                weight[:, classes[1]], bias[classes[1]] = model.coef_[0], model.intercept_[0]
            else:
                weight[:, classes], bias[classes] = model.coef_.T, model.intercept_
            if not balanced:
                bias[~y.any(axis=0)] = -np.log(2 * len(y))  # a class that no row has: as if half a row had it
        else:
            for label, column in enumerate(y.T):
                known = ~np.isnan(column)
                if len(set(column[known])) == 2:
                    model.fit(features[known], column[known], None if of_rows is None else of_rows[known])
                    weight[:, label], bias[label] = model.coef_[0], model.intercept_[0]
    return Linear(weight, bias + log_prior(y, exclusive) * balanced, exclusive, strength)
