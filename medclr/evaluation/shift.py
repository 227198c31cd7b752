"""How a classifier does in each domain, what it lost on the way from its source, and where the loss may come from."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy.special import expit

from medclr.evaluation.cells import Cell, unjudged
from medclr.evaluation.distances import distances_of
from medclr.evaluation.estimates import Chance, Estimate, Outcome, Sample, Truth, aurocs, mean_of
from medclr.metrics import bootstrap_mean_auroc, calibration, holm, threshold_at, weighted_threshold_at

SPECIFICITY = 0.9  # by which the source chooses its threshold
N_BINS = 10
LEAST = 5  # patients of a domain, or of a group of an attribute, or it is left out
LEAST_TO_FIT = 10  # patients of each class, for a head that is fitted to some of them and judged on the others
ALL = "all"
NO_PAIR = "no fold holds both a positive and a negative"
CLASSIFIER, OWN, JOINT = "classifier", "labels of the domain", "labels of all domains"
_INTERVAL = ("low", "high")
_COUNTS = ("n", "n_patients", "n_positive", "n_negative")


HeldOut = Callable[[np.ndarray, np.ndarray, np.ndarray, bool], tuple[np.ndarray, np.ndarray]]
"""Features (n, F), y (n, K), patients (n,) and whether the K columns are classes to scores (n, K), by linear heads that
were fitted to rows of other patients, and by which of them (n,): only those of one head are to be ranked together."""


@dataclass(frozen=True, eq=False)
class Judged:
    """Volumes that no classifier was fitted on, and what is known of them.

    Attributes:
        y: (n, K) of 0, 1 and NaN; kind: "binary", "multiclass" or "multilabel"; patients: (n,) keys.
        scores: logits (n, K) by each classifier; temperatures: that each of them carries.
        features: (n, F), as each classifier's head is given them.
        domains: columns of text, each a way of telling domains apart; "" is unknown, and left out.
        attributes: columns of text that may betray the label without any pixel.
        simulated: those columns of `domains` whose domains are the same volumes, changed: nothing else tells them
            apart.
    """

    y: np.ndarray
    kind: str
    patients: np.ndarray
    scores: Sequence[np.ndarray]
    temperatures: Sequence[float]
    features: Sequence[np.ndarray]
    domains: pd.DataFrame
    attributes: pd.DataFrame
    simulated: Sequence[str] = ()


@dataclass(frozen=True, eq=False)
class Shift:
    """What was found. Where a row has a `reason`, there is no number, and it says why. Intervals are of 95%.

    `domains`: a row for each column and domain: counts; AUROC; and of a single binary label the mean predicted
    probability and the share of positives, their `gap` (calibration-in-the-large, Van Calster et al. 2019) with p of
    its being 0, by how much it differs from the source's with p, both after Holm over all gaps and these differences,
    the calibration error (NaN of too few rows), and sensitivity and specificity at the source's threshold, which is
    that of 90% specificity there, with p of their difference from the source's, after Holm over all of these.
    `is_source` marks the source.

    `differences`: AUROC of each domain minus that of its source, with p, and p after Holm over all of these rows.

    `heads`: what the features would give with other labels, by column, domain and head: the classifier itself; a linear
    head on the same features that was fitted to labels of this domain, judged on patients it was not fitted on; and
    likewise one head for all domains. `gain` is the AUROC less that of the classifier on the same volumes.

    `probes`: how well a linear head reads the domain from the features, of all volumes and of those of one class alone
    (so that it is not the label that is read).

    `distances`: squared maximum mean discrepancy of the features of two domains, and `noise`, the level that it stays
    below 95 times in 100 where the same patients are put into two such groups at random; and the CORAL distance.

    `shortcuts`: by domain and attribute: how well the attribute alone tells the label (out of fold), with p, after Holm
    over all of these rows, of its doing so no better than chance; the AUROC of the classifier between volumes that have
    the attribute in common, its AUROC between all, and what of this is `lost` between those.

    `thresholds`: by column, the source's threshold as a probability.
    """

    sources: dict[str, str]
    domains: pd.DataFrame
    differences: pd.DataFrame
    heads: pd.DataFrame
    probes: pd.DataFrame
    distances: pd.DataFrame
    shortcuts: pd.DataFrame
    thresholds: dict[str, float]

    def frame(self) -> pd.DataFrame:
        return self.domains


def domain_shift(judged: Judged, sources: Mapping[str, str], held_out: HeldOut, resamples: int, seed: int) -> Shift:
    """Measure classifiers in each domain, paired over patients and classifiers.

    All statistics are means over the classifiers; intervals are over patients and classifiers together, by
    `Chance.estimate`. Patients are resampled once for all domains, so that one who is in two of them links these.

    Args:
        judged: what to judge by.
        sources: by column of `judged.domains`, the domain that others are compared with.
        held_out: fits linear heads.
        resamples: of patients.
        seed: of these.
    """
    tables: dict[str, list[dict[str, Any]]] = {name: [] for name in _COLUMNS}
    thresholds = {}
    for column, source in sources.items():
        within = _Column(judged, column, source, held_out, resamples, seed)
        thresholds[column] = within.threshold
        for name, rows in (
            ("domains", within.domains()),
            ("differences", within.differences()),
            ("heads", within.heads()),
            *(() if column in judged.simulated else within.apart()),
        ):
            tables[name] += [{"column": column} | row for row in rows]
    for name, p, corrected in _CORRECTED:
        tested = [(row, one) for row in tables[name] for one in p if one in row]
        for (row, one), adjusted in zip(tested, holm(np.array([row[one] for row, one in tested])), strict=True):
            row[corrected or one] = float(adjusted)
    frames = {name: pd.DataFrame(rows, columns=_COLUMNS[name]) for name, rows in tables.items()}
    return Shift(dict(sources), **frames, thresholds=thresholds)


_COLUMNS = {
    "domains": [
        "column", "domain", "is_source", *_COUNTS, "auroc", *_INTERVAL, "predicted", "observed",
        "gap", "gap_low", "gap_high", "gap_p", "gap_change", "gap_change_low", "gap_change_high", "gap_change_p", "ece",
        "sensitivity", "sensitivity_low", "sensitivity_high", "sensitivity_p",
        "specificity", "specificity_low", "specificity_high", "specificity_p", "reason",
    ],
    "differences": ["column", "domain", "source", "difference", *_INTERVAL, "p", "p_holm", "detectable", "reason"],
    "heads": ["column", "domain", "head", "auroc", *_INTERVAL, "gain", "gain_low", "gain_high", "reason"],
    "probes": ["column", "among", "n", "auroc", *_INTERVAL, "reason"],
    "distances": ["column", "domain", "versus", "mmd", "noise", "coral"],
    "shortcuts": [
        "column", "domain", "attribute", "groups", "auroc", *_INTERVAL, "p_holm", "within", "within_low", "within_high",
        "classifier", "lost", "lost_low", "lost_high", "reason",
    ],
}  # fmt: skip
# Of each table, the p that are corrected together, and what the result is called where both are kept.
_CORRECTED = (
    ("domains", ("sensitivity_p", "specificity_p"), ""),
    ("domains", ("gap_p", "gap_change_p"), ""),
    ("differences", ("p",), "p_holm"),
    ("shortcuts", ("p_holm",), ""),
)


class _Column:
    """The rows of one way of telling domains apart, and what is random about them."""

    def __init__(self, judged: Judged, column: str, source: str, held_out: HeldOut, resamples: int, seed: int) -> None:
        of = judged.domains[column].to_numpy(dtype=object)
        n_patients = pd.Series(judged.patients).groupby(of).nunique()
        names = [str(name) for name in n_patients.index if name and (n_patients[name] >= LEAST or name == source)]
        rows = np.flatnonzero(np.isin(of, names))
        self.column, self.source, self.kind = column, source, judged.kind
        self.held_out, self.seed = held_out, seed
        self.names = [source, *(name for name in names if name != source)]
        self.domain, self.patients, self.y = of[rows], judged.patients[rows], judged.y[rows]
        self.scores = [np.asarray(one[rows], dtype=np.float64) for one in judged.scores]
        self.features = [one[rows] for one in judged.features]
        self.temperatures = judged.temperatures
        self.probabilities = [expit(one[:, 0] / t) for one, t in zip(self.scores, self.temperatures, strict=True)]
        self.attributes = judged.attributes.iloc[rows].drop(columns=column, errors="ignore").reset_index(drop=True)
        self.chance = Chance(len(self.scores), 1, resamples, seed)
        self.resamples = self.chance.patients(self.patients, self._strata(self._classes()))
        # How many are positive is random too, where that is what predictions are held against.
        self.of_any_class = self.chance.patients(self.patients, self._strata(np.zeros(len(rows))))
        self.truths = {name: self._truth(self.domain == name) for name in self.names}
        self.samples = {name: self._auroc(truth, self.scores) for name, truth in self.truths.items()}
        known = [name for name in self.names if isinstance(self.samples[name], Sample)]
        # A source that cannot be judged has no threshold.
        called = known if self.kind == "binary" and source in known else []
        cuts = self._cuts() if called else []
        logits = [cut / t for (cut, _), t in zip(cuts, self.temperatures, strict=False)]
        self.threshold = float(np.mean(expit(logits))) if cuts else math.nan
        self.called = {name: self._called(name, cuts) for name in called}
        self.meant = {name: self._meant(name) for name in known} if self.kind == "binary" else {}

    def domains(self) -> list[dict[str, Any]]:
        return [self._domain(name) for name in self.names]

    def differences(self) -> list[dict[str, Any]]:
        found = []
        for name in self.names[1:]:
            row: dict[str, Any] = {"domain": name, "source": self.source, "reason": ""}
            one, other = self.samples[name], self.samples[self.source]
            if isinstance(one, str) or isinstance(other, str):
                row["reason"] = one if isinstance(one, str) else f"the source has {other}"
            else:
                least = min(self._rarer(name), self._rarer(self.source))
                e = self.chance.estimate(one, least, other)
                row |= {"difference": e.value, "low": e.low, "high": e.high, "p": e.p, "detectable": e.detectable}
            found.append(row)
        return found

    def heads(self) -> list[dict[str, Any]]:
        """Own labels and those of all domains, on the same features."""
        fitted = {JOINT: self._heads(np.arange(len(self.y)))} if len(self.names) > 1 else {}
        found = []
        for name in self.names:
            truth, own = self.truths[name], self.samples[name]
            if isinstance(own, str):
                found.append({"domain": name, "head": CLASSIFIER, "reason": own})
                continue
            samples = {CLASSIFIER: own}
            if not (lacking := self._too_few(name)):
                for head, by in {OWN: self._heads(np.flatnonzero(self.domain == name)), **fitted}.items():
                    if sample := self._within(truth, *by):
                        samples[head] = sample
                    else:
                        found.append({"domain": name, "head": head, "reason": NO_PAIR})
            else:
                found += [{"domain": name, "head": head, "reason": lacking} for head in (OWN, JOINT)]
            for head, sample in samples.items():
                row: dict[str, Any] = {"domain": name, "head": head, "reason": ""}
                row |= _numbers(self.chance.estimate(sample, self._rarer(name)), "auroc")
                if head != CLASSIFIER:
                    gain = self.chance.estimate(sample, self._rarer(name), own)
                    row |= {"gain": gain.value, "gain_low": gain.low, "gain_high": gain.high}
                found.append(row)
        return found

    def apart(self) -> Iterator[tuple[str, list[dict[str, Any]]]]:
        """What tells the volumes of domains apart."""
        yield "probes", self.probes()
        yield "distances", self.distances()
        yield "shortcuts", self.shortcuts()

    def probes(self) -> list[dict[str, Any]]:
        """Each domain against the others; the mean over them where there are more than two."""
        if len(self.names) == 1:
            return []
        among = {ALL: np.ones(len(self.y), dtype=bool)}
        if self.kind == "binary":
            among |= {"negatives": self.y[:, 0] == 0, "positives": self.y[:, 0] == 1}
        indicator = np.stack([self.domain == name for name in self.names], axis=1).astype(np.float64)
        indicator = indicator if len(self.names) > 2 else indicator[:, 1:]
        found = []
        for which, rows in among.items():
            at = np.flatnonzero(rows)
            told = Truth.of(np.where(rows[:, None], indicator, np.nan), self.patients, "multilabel")
            row: dict[str, Any] = {"among": which, "n": len(at), "reason": next(filter(None, told.reasons), "")}
            if not row["reason"]:
                if sample := self._within(told, *self._told(self.features, indicator, at, False)):
                    row |= _numbers(self.chance.estimate(sample, told.rarer(told.judged)), "auroc")
                else:
                    row["reason"] = NO_PAIR
            found.append(row)
        return found

    def distances(self) -> list[dict[str, Any]]:
        """Of each domain from the source: the mean over the classifiers' features."""
        if len(self.names) == 1:
            return []
        each = [
            distances_of(features, self.domain, self.patients, self.source, self.names[1:], self.seed)
            for features in self.features
        ]
        mean = pd.concat(each).groupby(["domain", "versus"], sort=False).mean().reset_index()
        return [dict(zip(mean.columns, values, strict=True)) for values in mean.itertuples(index=False)]

    def shortcuts(self) -> list[dict[str, Any]]:
        """Of each attribute in each domain, and in all together where it is known in several."""
        found = [
            self._shortcut(name, self.domain == name, str(attribute))
            for name in self.names
            for attribute in self.attributes
        ]
        everywhere = np.ones(len(self.y), dtype=bool)
        found.append(self._shortcut(ALL, everywhere, self.column))
        for attribute in self.attributes:
            known = pd.crosstab(self.attributes[attribute], self.domain).drop("", errors="ignore")
            # What says no more than the domain is that again.
            if (known.sum() > 0).sum() > 1 and ((known > 0).sum(axis=1) > 1).any():
                found.append(self._shortcut(ALL, everywhere, str(attribute)))
        return [row for row in found if row]

    def _classes(self) -> np.ndarray:
        several: np.ndarray = self.y.argmax(axis=1)
        any_positive: np.ndarray = np.fmax.reduce(self.y, axis=1, initial=0)
        return several if self.kind == "multiclass" else any_positive

    def _strata(self, classes: np.ndarray) -> np.ndarray:
        """Of each row the class of its patient and the domains that the patient is in; rare ones are put together."""
        frame = pd.DataFrame({"patient": self.patients, "class": classes, "domain": self.domain})
        of = frame.groupby("patient")
        by = pd.DataFrame({"class": of["class"].max(), "domain": of["domain"].agg(lambda x: "\0".join(sorted(set(x))))})
        both = pd.MultiIndex.from_frame(by).factorize()[0]
        rare = np.bincount(both)[both] < LEAST
        code = np.where(rare, -1 - by["class"].to_numpy().astype(int), both)
        stratum = pd.Series(code, index=by.index)
        return np.asarray(stratum.reindex(self.patients).to_numpy(dtype=np.float64))

    def _truth(self, rows: np.ndarray) -> Truth:
        """The labels of some rows, and NaN for the others."""
        y = np.where(rows[:, None], self.y, np.nan)
        return Truth(y, self.patients, np.zeros(len(y)), unjudged(y, self.patients))

    def _rarer(self, name: str) -> float:
        truth = self.truths[name]
        return truth.rarer(truth.judged)

    def _auroc(self, truth: Truth, scores: Sequence[np.ndarray]) -> Sample | str:
        """The mean AUROC, or why there is none; one output that cannot be judged would make it another's mean."""
        lacking = next(filter(None, truth.reasons), "")
        return lacking or aurocs(_outcome(scores), truth, self.chance, self.resamples)[0]

    def _domain(self, name: str) -> dict[str, Any]:
        rows = self.domain == name
        y = self.y[rows]
        positive, known = (y == 1).any(axis=1), ~np.isnan(y).all(axis=1)
        row: dict[str, Any] = {"domain": name, "is_source": name == self.source, "reason": ""}
        row |= {"n": int(rows.sum()), "n_patients": len(np.unique(self.patients[rows]))}
        if self.kind != "multiclass":
            row |= {"n_positive": int(positive.sum()), "n_negative": int((known & ~positive).sum())}
        sample = self.samples[name]
        if isinstance(sample, str):
            return row | {"reason": sample}
        row |= _numbers(self.chance.estimate(sample, self._rarer(name)), "auroc")
        if self.kind == "binary":
            row |= self._probabilities(name)
        for what, (one, n) in self.called.get(name, {}).items():
            row |= _numbers(self.chance.estimate(one, n), what, f"{what}_")
            if name != self.source:
                other, n_source = self.called[self.source][what]
                row[f"{what}_p"] = self.chance.estimate(one, min(n, n_source), other).p
        return row

    def _probabilities(self, name: str) -> dict[str, float]:
        """What is predicted, what is true, by how much these differ, and how that differs from the source."""
        rows, (predicted, observed) = self.domain == name, self.meant[name]
        gap = self.chance.estimate(predicted, self._rarer(name), observed)
        found = {"predicted": float(predicted.by_cell.mean()), "observed": float(observed.by_cell.mean())}
        found |= _numbers(gap, "gap", "gap_") | {"gap_p": gap.p}
        if name != self.source and self.source in self.meant:
            least = min(self._rarer(name), self._rarer(self.source))
            change = self.chance.estimate(_halved(*self.meant[name]), least, _halved(*self.meant[self.source]))
            numbers = _numbers(change, "gap_change", "gap_change_")
            found |= {what: 2 * value for what, value in numbers.items()} | {"gap_change_p": change.p}
        each = [calibration(self.y[rows, 0], p[rows], N_BINS).ece for p in self.probabilities]
        return found | {"ece": float(np.mean(each))}

    def _meant(self, name: str) -> tuple[Sample, Sample]:
        """The mean prediction of a domain, and its share of positives."""
        rows = np.flatnonzero(self.domain == name)
        y, each = self.y[rows, 0], np.stack([p[rows] for p in self.probabilities])
        resampled = np.empty((2, len(self.of_any_class)))
        for at, weights in self.of_any_class.weights():
            own = weights[:, rows]
            total = own.sum(axis=1)
            for one, values in zip(resampled, (each.mean(axis=0), y), strict=True):
                one[at] = np.divide(own @ values, total, out=np.full(len(own), np.nan), where=total > 0)
        shares = np.full((1, len(each)), y.mean())
        return Sample(each.mean(axis=1)[None], resampled[0]), Sample(shares, resampled[1])

    def _cuts(self) -> list[tuple[float, np.ndarray]]:
        """The source's threshold for each classifier, and on each resample."""
        source = self.domain == self.source
        y, found = self.y[source, 0], []
        for score in (one[source, 0] for one in self.scores):
            resampled = np.empty(len(self.resamples))
            for at, weights in self.resamples.weights():
                resampled[at] = weighted_threshold_at(y, score, weights[:, source], SPECIFICITY)
            found.append((threshold_at(y, score, SPECIFICITY), resampled))
        return found

    def _called(self, name: str, cuts: Sequence[tuple[float, np.ndarray]]) -> dict[str, tuple[Sample, int]]:
        """Sensitivity and specificity at the threshold that the source chooses, on each resample anew; and of how many
        patients."""
        rows, y = self.domain == name, self.y[:, 0]
        found = {}
        for what, value in (("sensitivity", 1), ("specificity", 0)):
            own = np.flatnonzero(rows & (y == value))
            shares, resampled = [], np.zeros(len(self.resamples))
            for score, (cut, cut_resampled) in zip((one[:, 0] for one in self.scores), cuts, strict=True):
                shares.append(float(np.mean((score[own] >= cut) == value)))
                ordered = own[np.argsort(score[own])]
                for at, weights in self.resamples.weights():
                    chosen = cut_resampled[at]
                    below = np.concatenate([np.zeros((len(weights), 1)), weights[:, ordered].cumsum(axis=1)], axis=1)
                    passed = below[np.arange(len(weights)), np.searchsorted(score[ordered], chosen)]
                    known = (below[:, -1] > 0) & ~np.isnan(chosen)
                    share = np.divide(passed, below[:, -1], out=np.full(len(weights), np.nan), where=known)
                    resampled[at] += (1 - share if value else share) / len(self.scores)
            n = len(np.unique(self.patients[own]))
            if min(shares) == 1:
                resampled = np.fmin(resampled, self.chance.perfect(n))
            elif max(shares) == 0:
                resampled = np.fmax(resampled, 1 - self.chance.perfect(n))
            found[what] = Sample(np.array([shares]), resampled), n
        return found

    def _too_few(self, name: str) -> str:
        """Why no head can be fitted to the labels of a domain, if it cannot."""
        least = min(
            len(np.unique(self.patients[(self.domain == name) & (column == value)]))
            for column in self.y.T
            for value in (0, 1)
        )
        return "" if least >= LEAST_TO_FIT else f"{least} patients of a class are too few to fit a head and to judge it"

    def _heads(self, at: np.ndarray) -> tuple[list[np.ndarray], np.ndarray]:
        """By each classifier's features, the labels of these rows by heads that were fitted to others of them."""
        return self._told(self.features, self.y, at, self.kind == "multiclass")

    def _told(
        self, features: Sequence[np.ndarray], y: np.ndarray, at: np.ndarray, exclusive: bool
    ) -> tuple[list[np.ndarray], np.ndarray]:
        """Scores of all rows, NaN but at these positions, by each of several features; and by which head, or -1."""
        scores, head = [np.full(y.shape, np.nan) for _ in features], np.full(len(y), -1)
        for one, each in zip(scores, features, strict=True):
            one[at], head[at] = self.held_out(each[at], y[at], self.patients[at], exclusive)
        return scores, head

    def _shortcut(self, name: str, inside: np.ndarray, attribute: str) -> dict[str, Any]:
        """What an attribute alone says of the label, and the classifier where it says nothing; {} of a single value."""
        values = self.domain if attribute == self.column else self.attributes[attribute].to_numpy(dtype=object)
        n_patients = pd.Series(self.patients[inside]).groupby(values[inside]).nunique()
        groups = [value for value in n_patients.index if value and n_patients[value] >= LEAST]
        if len(groups) < 2:
            return {}
        rows = inside & np.isin(values, groups)
        truth = self._truth(rows)
        row: dict[str, Any] = {"domain": name, "attribute": attribute, "groups": len(groups)}
        row["reason"] = next(filter(None, truth.reasons), "")
        if row["reason"]:
            return row
        at = np.flatnonzero(rows)
        member = (values[:, None] == np.array(groups, dtype=object)).astype(np.float64)
        n = truth.rarer(truth.judged)
        sample = self._within(truth, *self._told([member], self.y, at, self.kind == "multiclass"))
        if not sample:
            return row | {"reason": NO_PAIR}
        chance = Sample(np.full_like(sample.by_cell, 0.5), np.full_like(sample.resampled, 0.5))
        row |= _numbers(self.chance.estimate(sample, n), "auroc")
        row["p_holm"] = self.chance.estimate(sample, n, chance).p
        classifier = self._auroc(truth, self.scores)
        assert isinstance(classifier, Sample)
        row["classifier"] = float(classifier.by_cell.mean())
        place = {value: number for number, value in enumerate(groups)}
        inner = self._within(truth, self.scores, np.array([place.get(value, -1) for value in values]))
        if inner:
            row |= _numbers(self.chance.estimate(inner, n), "within", "within_")
            row |= _numbers(self.chance.estimate(classifier, n, inner), "lost", "lost_")
        return row

    def _within(self, truth: Truth, scores: Sequence[np.ndarray], group: np.ndarray) -> Sample | None:
        """AUROC over the pairs of a positive and a negative of one group: how often the first is ranked above.

        group: (n,) numbers, below 0 of none. None where an output has no such pair.
        """
        samples = []
        for output in truth.judged:
            wins, pairs = np.zeros(len(self.resamples)), np.zeros(len(self.resamples))
            cells, total = np.zeros(len(scores)), 0
            for one_group in range(group.max() + 1):
                y = np.where(group == one_group, truth.y[:, output], np.nan)
                positive, negative = y == 1, y == 0
                n_pairs = int(positive.sum() * negative.sum())
                if not n_pairs:
                    continue
                own = [one[:, output] for one in scores]
                total += n_pairs
                above = [np.subtract.outer(one[positive], one[negative]) for one in own]
                cells += [float((d > 0).sum() + (d == 0).sum() / 2) for d in above]
                ranked = bootstrap_mean_auroc(y, np.stack(own), self.resamples)
                for at, weights in self.resamples.weights():
                    both = weights[:, positive].sum(axis=1) * weights[:, negative].sum(axis=1)
                    pairs[at] += both
                    wins[at] += np.where(both > 0, both * np.nan_to_num(ranked[at]), 0)
            if not total:
                return None
            resampled = np.divide(wins, pairs, out=np.full(len(pairs), np.nan), where=pairs > 0)
            if cells.min() == cells.max() and cells.max() in (0, total):
                perfect = self.chance.perfect(truth.rarer([output]))
                resampled = perfect if cells.max() else 1 - perfect
            samples.append(Sample((cells / total)[None], resampled))
        return mean_of(samples)


def _outcome(scores: Sequence[np.ndarray]) -> Outcome:
    cells = [Cell("", 1.0, draw, 0, 0, None, None, math.nan, one, None, "", "", 0.0) for draw, one in enumerate(scores)]
    return Outcome("", 1.0, cells, "", None, {})


def _halved(predicted: Sample, observed: Sample) -> Sample:
    """Half their difference, above .5: from 0 to 1, as `Chance.estimate` asks."""
    by_cell = (1 + predicted.by_cell - observed.by_cell) / 2
    return Sample(by_cell, (1 + predicted.resampled - observed.resampled) / 2)


def _numbers(found: Estimate, name: str, prefix: str = "") -> dict[str, float]:
    """A value and its interval; none where nothing varies, which is not certainty but too few patients."""
    low, high = (math.nan, math.nan) if found.low == found.high else (found.low, found.high)
    return {name: found.value, f"{prefix}low": low, f"{prefix}high": high}
