"""`medclr shift`: what a classifier loses in other domains, and where the loss may come from."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from medclr.commands.domains import (
    ARCHIVE,
    HOME,
    NEW,
    SIZE,
    Part,
    joined,
    known_of,
    labelled_part,
    no_column,
    refuse_same,
)
from medclr.commands.finetune import label_layout, run_of, volumes_behind
from medclr.config import Corruption, ShiftConfig
from medclr.data.labels import LabelTable, check_labels, labels_hash
from medclr.data.manifest import DOMAINS
from medclr.data.phantoms import SCANNERS
from medclr.errors import BundleError, DataError, UsageError
from medclr.evaluation.shift import LEAST, Judged, Shift, domain_shift
from medclr.evaluation.subgroups import MOST_GROUPS
from medclr.models.classifier import Classifier, LoadedClassifier, load_classifier
from medclr.reporting.console import counted, say
from medclr.reporting.figures import shift_figure
from medclr.reporting.numbers import listed
from medclr.reporting.run import Run, hardware, read_paths, versions
from medclr.reporting.shift_page import prevalences, shift_findings, shift_page
from medclr.training.encode import corrupted, feature_rows, head_logits, training_device
from medclr.training.probe import held_out_scores
from medclr.transforms.corruption import CORRUPTIONS

CLEAN, STRENGTHS = "0", 5
ADAPTED = "adapt, "  # with which the method of a classifier of `medclr adapt` begins


def shift(config: ShiftConfig) -> Shift:
    """Measure classifiers on volumes that they did not learn from, domain by domain, and say what differs.

    Returns:
        The tables: `.frame()` is the one of domains.csv.
    """
    found = None if config.classifier else Run.newest("finetune")
    paths = config.classifier or ([found] if found else [])
    if not paths:
        raise UsageError(
            "no complete finetune run under runs/; run `medclr finetune --labels CSV`, or name one with --classifier"
        )
    run = Run.open("shift", config, config.out)
    say(f"run folder: {run.folder}")
    classifiers = _loaded(paths)
    say(
        f"classifier: {listed([str(path) for path in paths])}" + f"{', the newest complete finetune run' * bool(found)}"
    )
    behind = read_paths(run_of(paths[0]))
    config = replace(
        config,
        label=config.label or list(classifiers[0].task.columns),
        key_file=config.key_file or behind.get("key_file"),
    )
    if config.labels is not None:
        check_labels(config.labels, config.label, label_layout(config, classifiers[0].spec))
    own = behind.get("labels") if config.data or config.labels is None else config.labels
    own = own if own is not None and own.exists() else None
    run.pin({
        "classifier": " ".join(one.digest[:16] for one in classifiers),
        "labels": " ".join(labels_hash(path) for path in dict.fromkeys((own, config.labels)) if path),
    })  # fmt: skip
    parts = _parts(config, run, paths[0], own, classifiers[0], behind)
    table, archive = joined(parts)
    groups = known_of(table, archive)
    for flag, columns in (("--by", config.sources), ("--attributes", config.attributes)):
        for column in columns:
            if column not in groups:
                raise no_column(f"{flag} {column}", parts, groups)
    trained = _any_seen([one.trained_on for one in classifiers], parts)
    fresh = np.flatnonzero(trained != "yes")
    at = {part.name: fresh[archive[fresh] == part.name] for part in parts}
    for part in parts:
        places = at[part.name] - part.start
        part.check_stock(places)
        say(
            f"{part.name}: {counted(len(places), 'labelled volume')} of "
            f"{counted(part.table.rows.iloc[places]['patient_key'].nunique(), 'patient')} that the classifier did not "
            "learn from"
        )
    used = HOME in at and any(one.details["method"].startswith(ADAPTED) for one in classifiers)
    sources = _sources(config, groups, table.rows["patient_key"], trained == "yes", fresh, used)
    networks = [one.classifier for one in classifiers]
    features, logits = _embedded(config, networks, parts, at)
    attributes = groups.iloc[fresh].reset_index(drop=True)
    judged = Judged(
        table.y[fresh],
        table.task.kind,
        table.rows["patient_key"].to_numpy()[fresh],
        [table.task.scores(one) for one in logits],
        [one.temperature for one in classifiers],
        features,
        attributes[list(sources)],
        attributes,
    )
    for name in config.corruptions:
        judged = _with_corruption(config, name, judged, networks, parts, at)
        sources[judged.simulated[-1]] = CLEAN

    def heads(features: Any, y: Any, patients: Any, exclusive: bool) -> tuple[NDArray[np.float64], NDArray[np.intp]]:
        return held_out_scores(features, y, patients, config.seed, exclusive)

    result = domain_shift(judged, sources, heads, config.resamples, config.seed)
    _write(config, run, classifiers, result, _context(config, run, classifiers, parts, table, groups, fresh, trained))
    return result


def _loaded(paths: Sequence[Path]) -> list[LoadedClassifier]:
    """All of one task and one preprocessing, or they could not be averaged."""
    classifiers = [load_classifier(path) for path in paths]
    first = classifiers[0]
    for path, other in zip(paths[1:], classifiers[1:], strict=True):
        if other.spec != first.spec or other.task != first.task:
            raise BundleError(
                f"--classifier {path}: has another label or another preprocessing than {paths[0]}; results are means "
                "over classifiers that differ in their seed or their draw alone: run medclr shift for each"
            )
    if len({one.digest for one in classifiers}) < len(classifiers):
        raise UsageError("--classifier: two of them are the same; results are means over different ones")
    return classifiers


def _parts(
    config: ShiftConfig,
    run: Run,
    source: Path,
    own: Path | None,
    classifier: LoadedClassifier,
    behind: Mapping[str, Path | None],
) -> list[Part]:
    """The classifier's own archive, where it and its label table `own` are at hand, and that of --data."""
    home = volumes_behind(source)
    parts: list[Part] = []
    if home is not None and own is not None:
        # What was given is of the other archive, where there is one.
        asked = config if config.data is None else replace(config, data=None, store=None, spec=behind.get("spec"))
        parts.append(_part(asked, run, HOME, own, home, classifier, 0))
    elif config.data is None:
        what = "volumes" if home is None else "labels"
        raise UsageError(f"--classifier {source}: the {what} behind it are not at hand; give --data and --labels")
    if config.data is not None:
        assert config.labels
        start = len(parts[0].table.rows) if parts else 0
        parts.append(_part(config, run, NEW, config.labels, run_of(source), classifier, start))
    if len(parts) == 2:
        fix = "leave --data out, and name columns with --by"
        refuse_same(parts[0], parts[1], f"--data {config.data}", "the classifier's own archive", fix)
    return parts


def _part(
    config: ShiftConfig, run: Run, name: str, labels: Path, source: Path, classifier: LoadedClassifier, start: int
) -> Part:
    columns, task = list(dict.fromkeys([*config.sources, *config.attributes])), (classifier.task, "classifier")
    return labelled_part(config, run, name, labels, source, classifier.spec, columns, task, start)


def _any_seen(trained_on: Sequence[Any], parts: Sequence[Part]) -> NDArray[np.object_]:
    """Of each volume whether any classifier learned from it or its patient: "yes", "no" or "not checkable"."""

    def worse(one: NDArray[np.object_], other: NDArray[np.object_]) -> NDArray[np.object_]:
        unsure = np.where((one == "not checkable") | (other == "not checkable"), "not checkable", "no")
        return np.where((one == "yes") | (other == "yes"), "yes", unsure).astype(object)

    found = [reduce(worse, [seen.holds(part.fingerprint, part.table.rows) for seen in trained_on]) for part in parts]
    return np.concatenate(found)


def _sources(
    config: ShiftConfig,
    groups: pd.DataFrame,
    patients: "pd.Series[str]",
    trained: NDArray[np.bool_],
    fresh: NDArray[np.intp],
    used: bool,
) -> dict[str, str]:
    """By column, its source: the one that was named, or that with most volumes which the classifier learned from.

    used: its archive is at hand, and was a source or a target of `medclr adapt`.
    """
    why = "; `medclr adapt` has used all patients of its source and of its target" * used
    third = "a third archive is needed: give --data and --labels of one, and its columns with --by"
    fix = "name columns of the label table with --by" + ", or another archive with --data" * (ARCHIVE not in groups)
    asked = config.sources or ({ARCHIVE: HOME} if ARCHIVE in groups else dict.fromkeys(DOMAINS, ""))
    if config.corruptions and not len(fresh):
        raise DataError(
            f"--corruptions: the classifier learned from all labelled volumes{why}; {third if used else fix}"
        )
    if config.corruptions and not config.sources and ARCHIVE not in groups:
        return {}
    found: dict[str, str] = {}
    for column, named in asked.items():
        values = patients.iloc[fresh].groupby(groups[column].iloc[fresh]).nunique().drop("", errors="ignore")
        enough = values[values >= LEAST].index
        if named and named not in set(values.index) and column in config.sources:
            raise UsageError(f"--by {column}={named}: no such domain; there are {listed(sorted(values.index))}")
        if len(enough) < 2 and column in config.sources:
            there = f"only {enough[0]!r}" if len(enough) else "none"
            raise DataError(
                f"--by {column}: there is {there} of {LEAST} patients whom the classifier did not learn from{why}; "
                + (third if used and ARCHIVE not in groups else "two such domains are needed")
            )
        if len(values) > MOST_GROUPS and column in config.sources:
            raise DataError(
                f"--by {column}: {len(values)} values are too many to compare (more than {MOST_GROUPS}); name a column "
                "that puts them into groups"
            )
        if len(enough) >= 2 and len(values) <= MOST_GROUPS:
            learned = groups[column][trained & groups[column].isin(enough).to_numpy()]
            by_volumes = learned.value_counts() if len(learned) else values
            found[column] = named or str(by_volumes.index[0])
    if not found:
        raise DataError(
            f"there is one domain only by each of {listed(list(asked))}{why}; "
            + (third if used and ARCHIVE not in groups else fix)
        )
    return found


def _embedded(
    config: ShiftConfig,
    networks: Sequence[Classifier],
    parts: Sequence[Part],
    at: Mapping[str, NDArray[np.intp]],
) -> tuple[list[NDArray[np.float32]], list[NDArray[np.float32]]]:
    """Features and logits of the volumes to judge by, for each classifier: one pass over them each."""
    device = training_device(config.device)
    features, logits = [], []
    for network in networks:
        network.to(device)
        found = [
            feature_rows(network, part.table.rows.iloc[at[part.name] - part.start], part.store, part.spec)
            for part in parts
            if len(at[part.name])  # none where the classifier learned from a whole archive
        ]
        features.append(np.concatenate(found))
        logits.append(head_logits(network, features[-1]))
    return features, logits


def _with_corruption(
    config: ShiftConfig,
    name: Corruption,
    judged: Judged,
    networks: Sequence[Classifier],
    parts: Sequence[Part],
    at: Mapping[str, NDArray[np.intp]],
) -> Judged:
    """With the same volumes five times more, corrupted ever more strongly: a column whose domains these are."""
    n, column = sum(map(len, at.values())), f"strength of {name}"
    spec = parts[0].spec
    domains = [judged.domains.assign(**{column: [CLEAN] * n + [""] * (len(judged.y) - n)})]
    scores, features = ([[each] for each in of] for of in (judged.scores, judged.features))
    for strength in range(1, STRENGTHS + 1):
        by = CORRUPTIONS[name](strength, spec.spatial_dims)
        changed = [corrupted(network, by, config.seed) for network in networks]
        for place, (own, logits) in enumerate(zip(*_embedded(config, changed, parts, at), strict=True)):
            features[place].append(own)
            scores[place].append(parts[0].table.task.scores(logits))
        domains.append(pd.DataFrame({column: [str(strength)] * n}))
    return replace(
        judged,
        y=np.concatenate([judged.y, np.tile(judged.y[:n], (STRENGTHS, 1))]),
        patients=np.concatenate([judged.patients, np.tile(judged.patients[:n], STRENGTHS)]),
        scores=[np.concatenate(each) for each in scores],
        features=[np.concatenate(each) for each in features],
        domains=pd.concat(domains, ignore_index=True).fillna(""),
        attributes=judged.attributes.reindex(range(len(judged.y) + STRENGTHS * n)).fillna(""),
        simulated=[*judged.simulated, column],
    )


def _context(
    config: ShiftConfig,
    run: Run,
    classifiers: Sequence[LoadedClassifier],
    parts: Sequence[Part],
    table: LabelTable,
    groups: pd.DataFrame,
    fresh: NDArray[np.intp],
    trained: NDArray[np.object_],
) -> dict[str, Any]:
    task, rows = table.task, table.rows
    before = [one.pretrained_on for one in classifiers if one.pretrained_on is not None]
    seen = _any_seen(before, parts)[fresh] if before else np.full(len(fresh), "no", dtype=object)
    known = bool(rows["patient_known"].iloc[fresh].all())
    return {
        "title": f"Domain shift: {task.name}",
        "command": "shift",
        "command_line": run.command_line,
        "phantoms": bool(rows["manufacturer"].isin({scanner.manufacturer for scanner in SCANNERS}).any()),
        "task": {"kind": task.kind, "columns": list(task.columns), "outputs": list(task.outputs)},
        "classes": list(task.classes),
        "classifiers": [{"method": one.details["method"], "fingerprint": one.digest[:16]} for one in classifiers],
        "learned": sorted({len(one.trained_on.pixels) for one in classifiers}),
        "test": {
            "n": len(fresh),
            "n_patients": int(rows["patient_key"].iloc[fresh].nunique()),
            "n_trained": int((trained == "yes").sum()),
            "n_uncheckable": int((trained[fresh] == "not checkable").sum()),
            "n_pretrained": int((seen == "yes").sum()),
        },
        "trained": {
            column: groups[column][trained == "yes"].value_counts().to_dict() for column in groups if column != SIZE
        },
        "known": known,
        "resamples": config.resamples,
        "versions": versions(),
        "hardware": hardware(),
    }


def _write(
    config: ShiftConfig, run: Run, classifiers: Sequence[LoadedClassifier], found: Shift, context: Mapping[str, Any]
) -> None:
    tables = {
        name: getattr(found, name) for name in ("domains", "differences", "heads", "probes", "distances", "shortcuts")
    }
    for name, table in tables.items():
        run.write_frame(f"{name}.csv", table)
    shift_figure(found.domains, context["title"], [run.folder / f"domains.{kind}" for kind in ("png", "svg", "pdf")])
    answers = shift_findings(found, context)
    run.write_text("report.html", shift_page(found, context))
    report = {
        "findings": [answer._asdict() for answer in answers],
        "sources": found.sources,
        "thresholds": found.thresholds,
        **{name: table.to_dict("records") for name, table in tables.items()},
        "context": context,
    }
    run.write_json("report.json", report)
    run.finish({"findings": [answer.short for answer in answers]})
    for warning in prevalences(found):
        say(f"warning: {warning}")
    for answer in answers:
        say(answer.line)
    say(f"wrote {run.folder}: report.html, report.json, domains.png, .svg and .pdf, and a .csv of each table")
    say(f"next: open {run.folder / 'report.html'} in a browser")
