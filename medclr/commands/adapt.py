"""`medclr adapt`: carry a classifier to another domain without its labels, and measure what that gained."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cache, lru_cache, partial
from pathlib import Path
from string import ascii_uppercase
from typing import Any, get_args

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from torch import nn

from medclr import __version__
from medclr.commands.domains import (
    ARCHIVE,
    HOME,
    NEW,
    Part,
    known_of,
    labelled_part,
    no_column,
    refuse_same,
    unlabelled_part,
)
from medclr.commands.efficiency import encoder_groups, finished_cells, keep_cell, kept_features
from medclr.commands.finetune import (
    check_task,
    classifier_views,
    encoder_seen,
    home_of,
    label_layout,
    load_encoders,
    named_or_newest,
)
from medclr.commands.leave_one_out import each_left_out
from medclr.config import METHODS, AdaptConfig, AdaptMethod, LabelledConfig, Trained
from medclr.data.identity import Seen, Verdict, check_leakage
from medclr.data.labels import Task, check_labels, labels_hash, read_keyed
from medclr.data.phantoms import SCANNERS
from medclr.data.spec import DataSpec
from medclr.errors import BundleError, DataError, LeakageError, UsageError
from medclr.evaluation.adaptation import (
    AUTO,
    SOURCE_ONLY,
    TARGET_TRAINED,
    Adaptation,
    choice_text,
    domain_adaptation,
    judged_text,
    unjudged_adaptation,
)
from medclr.evaluation.cells import LEAST_PATIENTS, Arm, Cell, Scores, unjudged
from medclr.evaluation.leave_one_out import LeaveOneOut
from medclr.evaluation.shots import ADAPTED, ALONE, BOTH, LP_FT, shot_name
from medclr.models.bundle import fingerprint
from medclr.models.classifier import Classifier, load_classifier, save_classifier
from medclr.reporting.adapt_page import adapt_findings, adapt_page, doubts
from medclr.reporting.console import counted, progress, say
from medclr.reporting.figures import adapt_figure, shots_figure
from medclr.reporting.numbers import listed, number
from medclr.reporting.run import Run, hardware, read_paths, versions
from medclr.training.adapt import Features, Moved
from medclr.training.crossfit import Anew, CrossFit, Domain, Tune, equal_draws
from medclr.training.encode import Change, Encoder, Volumes, has_batch_norm, training_device
from medclr.training.realign import ALIGNMENTS, CONTINUED, FINETUNED, aligned, continued, fine_tuned
from medclr.training.shown import STYLES, corrupting, in_style

_OF_TRAINING = ("steps", "batch_size", "lr", "weight_decay", "alignment", "negatives")

_NORMED = ("adabn", "adabn-coral")  # they take statistics of batch norm
_TRAINED = get_args(Trained)
_LETTER = r"site [A-Z]+"  # of a place, whose name is in no report

Rows = NDArray[np.intp]


def adapt(config: AdaptConfig) -> Adaptation | LeaveOneOut:
    """Adapt classifiers to a target without its labels, and judge each method by them, where there are any.

    Returns:
        The tables: `.frame()` is the one of adapt.csv. Where each domain of a column is the target in turn, they have a
        column `domain`.
    """
    paths = named_or_newest(config.encoder)
    encoders = load_encoders(paths, config.projector_layer)
    if len(encoder_groups(encoders)) > 1:
        raise BundleError(
            "--encoder: these differ in more than their seed; results are means over encoders that differ in that "
            "alone: run medclr adapt for each"
        )
    given, config = config, replace(config, key_file=config.key_file or read_paths(paths[0]).get("key_file"))
    methods = _methods(config, encoders)
    tables = [config.labels, *([config.target_labels] if config.target_labels else [])]
    _check_tables(config, encoders[0].spec)  # now, not after hours of preparing volumes
    run = Run.open("adapt", given, config.out)  # what is refused before leaves no folder
    say(f"run folder: {run.folder}")
    run.pin({
        "encoder": " ".join(map(fingerprint, paths)), "labels": " ".join(map(labels_hash, tables))
    })  # fmt: skip
    if config.each:
        home = labelled_part(config, run, HOME, config.labels, paths[0], encoders[0].spec, [config.column])
        return _each(config, run, paths[0], encoders, methods, home)
    sides = _corrupted(config, *_sides(config, run, paths[0], encoders[0].spec))
    found = _adapted(config, run, paths[0], encoders, methods, sides)
    figures = "adapt.png, .svg and .pdf, " if len(sides[1].at) else ""
    say(f"wrote {run.folder}: report.html, report.json, {figures}a .csv of each table, classifier/")
    say(f"next: open {run.folder / 'report.html'} in a browser, or medclr predict --classifier {run.folder}")
    return found


def _check_tables(config: AdaptConfig, spec: DataSpec) -> None:
    """Raise what can be raised of label tables before any volume is read."""
    layout = label_layout(config, spec)
    columns = [config.column] if config.column in read_keyed(config.labels, layout) else []
    _, task = check_labels(config.labels, config.label, layout, columns)
    if config.target_labels is not None:
        label = _target_label(config, spec, task)
        check_task(config.target_labels, check_labels(config.target_labels, label, layout)[1], task, "source")


def _target_label(config: AdaptConfig, spec: DataSpec, task: Task) -> list[str]:
    """The label columns of --target-labels; task: of the source."""
    assert config.target_labels
    if config.target_label:
        return config.target_label
    has = set(task.columns) <= {*read_keyed(config.target_labels, label_layout(config, spec))}
    return list(task.columns) if has else []


def _adapted(
    config: AdaptConfig,
    run: Run,
    path: Path,
    encoders: Sequence[Encoder],
    methods: Sequence[str],
    sides: "tuple[_Side, _Side]",
    known: Callable[[], Sequence[Features]] | None = None,
) -> Adaptation:
    """One target. path: of the first encoder; known: of each the features of all volumes, where they are to be had."""
    source, target = sides
    task = source.part.table.task
    if not len(target.at):
        there = target.part.every.rows["patient_key"].iloc[target.rest].nunique()
        if there < LEAST_PATIENTS:
            raise DataError(
                f"{target.name}: no labelled volume, and {counted(len(target.rest), 'other')} of "
                f"{counted(there, 'patient')} (--unlabelled {config.unlabelled} at most), where it takes "
                f"{LEAST_PATIENTS} to adapt to"
            )
        methods = [name for name in methods if name != TARGET_TRAINED]
        if config.target_shots:
            raise UsageError(f"--target-shots: {target.name} has no label to learn; leave it out, or label some")
    _check_classes(source, target, task)
    verdicts = _refuse_seen(config, encoders, target) if len(target.at) else []
    for side in (source, target):
        side.part.check_stock(side.every)
        say(_described(side))
    y = pd.DataFrame(target.y, columns=[f"y {name}" for name in task.outputs])
    run.write_frame("private/target.csv", target.rows[["volume_id", "patient_key"]].join(y))  # behind all scores
    features = known() if known else [None] * len(encoders)
    fits = [
        _cross_fit(config, run, encoder, source, target, task, own)
        for encoder, own in zip(encoders, features, strict=True)
    ]
    if len(target.at):
        found = _judged(config, run, encoders, methods, fits, source, target)
    else:
        found = _unjudged(config, methods, fits, np.arange(len(source.at)))
    kept = _kept_method(methods, found)
    say(f"classifier: {kept}, adapted to {target.name}")
    _save_classifier(config, run, path, encoders[0], fits[0], kept, source, target)
    _write(config, run, found, _context(config, run, encoders, source, target, verdicts) | {"classifier": kept})
    return found


def _judged(
    config: AdaptConfig,
    run: Run,
    encoders: Sequence[Encoder],
    methods: Sequence[str],
    fits: Sequence[CrossFit],
    source: "_Side",
    target: "_Side",
) -> Adaptation:
    """Every method, on the labelled volumes of the target."""
    task = source.part.table.task
    arms = {name: [partial(_cell, fit, name, methods) for fit in fits] for name in methods}
    shots = _shots(config, methods, encoders, fits, target, task)
    n_cells, done = (len(arms) + len(shots)) * len(fits) * config.draws, finished_cells(run)
    with progress("cells") as show:

        def on_cell(cell: Cell) -> None:
            keep_cell(run, cell, cell.arm, len(fits))
            done[cell.id] = cell
            show(len(done), n_cells)

        return domain_adaptation(
            source.y,
            source.patients,
            target.y,
            target.patients,
            arms,
            config.draws,
            config.resamples,
            config.seed,
            dict(done),
            on_cell,
            task.kind,
            shots,
        )


def _unjudged(config: AdaptConfig, methods: Sequence[str], fits: Sequence[CrossFit], drawn: Rows) -> Adaptation:
    """What is known where the target has no label, of each encoder from all of the source and all of the target."""
    candidates, judged = _candidates(methods), {}
    for name in candidates:
        judged[name] = [fit.judged(name, drawn, config.seed) for fit in fits]
        at_home, entropy = np.mean(judged[name], axis=0)
        say(f"{name}: AUROC {number(at_home)} in the source, entropy {number(entropy)}")
    choices = [choice for fit in fits if AUTO in methods for choice in fit.choices(candidates, drawn, config.seed)]
    return unjudged_adaptation(methods, judged, choices)


@dataclass(frozen=True, eq=False)
class _Side:
    """One domain, or several: a name, and the positions of its volumes among all those of an archive.

    at: of labelled volumes; rest: of those without a label to which is adapted too, of `n_rest` that there are.
    change: what makes of their images those that it has; domains: of each labelled volume the one that it is of, where
    these are to count the same.
    """

    name: str
    part: Part
    at: Rows
    rest: Rows = field(default_factory=lambda: np.empty(0, dtype=np.intp))
    n_rest: int = 0
    change: Change | None = None
    domains: NDArray[np.object_] | None = None

    @property
    def every(self) -> Rows:
        return np.concatenate([self.at, self.rest])

    @property
    def rows(self) -> pd.DataFrame:
        return self.part.every.rows.iloc[self.at].reset_index(drop=True)

    @property
    def y(self) -> NDArray[np.float64]:
        return self.part.every.y[self.at]

    @property
    def patients(self) -> NDArray[np.object_]:
        return self.rows["patient_key"].to_numpy()

    @property
    def pixels(self) -> NDArray[np.object_]:
        return self.rows["pixel_hash"].to_numpy()

    @property
    def n_patients(self) -> int:
        return len(set(self.patients))

    def volumes(self, crops: int) -> Volumes:
        """All of them, the labelled ones first."""
        rows = self.part.every.rows.iloc[self.every].reset_index(drop=True)
        if self.domains is not None:  # for batches that are to be balanced
            rows = rows.assign(domain=self.domains)
        return Volumes(rows, self.part.store, self.part.spec, crops, self.change)

    def domain(self, features: Features) -> Domain:
        """The same with their features (n, F)."""
        every = self.part.every
        keys, pixels = (every.rows[name].to_numpy()[self.every] for name in ("patient_key", "pixel_hash"))
        return Domain(every.y[self.every], keys, features, pixels)


def _described(side: _Side) -> str:
    labelled = f"{counted(len(side.at), 'labelled volume')} of {counted(side.n_patients, 'patient')}"
    of = f" of {side.n_rest:,}" if side.n_rest > len(side.rest) else ""
    rest = f"{counted(len(side.rest), 'volume')}{of} without a label"
    known = [words for words, n in ((labelled, side.at), (rest, side.rest)) if len(n)]
    return f"{side.name}: {listed(known)}"


def _methods(config: AdaptConfig, encoders: Sequence[Encoder]) -> list[str]:
    """All that run, in order: between the baseline and the upper bound those that were asked for, or that can be.

    auto alone chooses among all that can be.
    """
    normed = all(has_batch_norm(encoder.bundle.middle(config.projector_layer)) for encoder in encoders)
    asked = list(dict.fromkeys(config.methods))
    if not normed and (lacking := [name for name in asked if name in _NORMED]):
        raise UsageError(
            f"--methods {lacking[0]}: the encoder has no batch norm whose statistics could be the target's; leave it "
            "out"
        )
    if config.corruption and (trained := [name for name in asked if name in _TRAINED]):
        raise UsageError(
            f"--methods {trained[0]}: learns from augmented views of what is stored, which --corruption does not "
            "change; leave one out"
        )
    if asked in ([], [AUTO]):
        if not normed:
            say(f"{listed(_NORMED)} are left out: the encoder has no batch norm")
        asked = [name for name in get_args(AdaptMethod) if name not in _TRAINED and (normed or name not in _NORMED)]
    if AUTO in asked and not set(_candidates(asked)) - {"pseudo"}:
        raise UsageError(
            "--methods auto: has nothing to choose, as pseudo moves no features, and what is fine-tuned on all labels "
            "of the source cannot be judged by these; name others beside it, or leave --methods out"
        )
    # auto is last, as it uses what the others have computed.
    return [SOURCE_ONLY, *sorted(asked, key=lambda name: name == AUTO), TARGET_TRAINED]


def _corrupted(config: AdaptConfig, source: _Side, target: _Side) -> tuple[_Side, _Side]:
    """The same, with the target as a corruption shows it, if one is asked for."""
    if config.corruption is None or config.strength == 0:
        return source, target
    change = corrupting(config.corruption, config.strength, target.part.spec.spatial_dims, config.seed)
    return source, replace(target, name=f"{target.name}, {config.corruption} {config.strength}", change=change)


def _sides(config: AdaptConfig, run: Run, encoder: Path, spec: DataSpec) -> tuple[_Side, _Side]:
    """Source and target: two domains of one archive, two archives, or one archive twice, for a corruption."""
    c = config
    home = labelled_part(c, run, HOME, c.labels, encoder, spec, [c.column] if c.column else [])
    if c.target is not None:
        return _within(c, run, home)
    new, task = home, home.table.task
    if c.target_data is not None:
        label = c.label if c.target_labels is None else _target_label(c, spec, task)
        own = LabelledConfig(c.target_data, c.store, key_file=c.key_file, label=label, spec=c.spec, workers=c.workers)
        if c.target_labels is None:
            new = unlabelled_part(own, run, NEW, encoder, spec, task)
        else:
            new = labelled_part(own, run, NEW, c.target_labels, encoder, spec, [], (task, "source"))
        refuse_same(home, new, f"--target-data {c.target_data}", "the source", "name another archive")
    source, target = (_Side(f"{ARCHIVE} {part.name}", part, np.arange(len(part.table.rows))) for part in (home, new))
    # Of what was labelled elsewhere the label is known.
    return source, _with_rest(c, target, ~new.every.rows["pixel_hash"].isin(source.pixels).to_numpy())


def _with_rest(config: AdaptConfig, side: _Side, of: NDArray[np.bool_]) -> _Side:
    """With those volumes without a label that are `of` the side, a value for each volume of the archive."""
    labelled, known = len(side.part.table.rows), side.part.every.rows["patient_known"].to_numpy(bool)
    if known[side.at].all() and len(side.at):
        of = of & known  # nobody knows whether another is of a patient who is scored
    there = labelled + np.flatnonzero(of[labelled:])
    drawn = np.random.default_rng(config.seed).permutation(there)[: config.unlabelled]
    return replace(side, rest=np.sort(drawn), n_rest=len(there))


def _each(
    config: AdaptConfig, run: Run, path: Path, encoders: Sequence[Encoder], methods: Sequence[str], home: Part
) -> LeaveOneOut:
    """Each domain of a column in turn, in a folder of its own; features of the encoder as it is are computed once."""
    every, labelled = _values(config, run, home), len(home.table.rows)
    values = every[:labelled]
    everyone = _Side(config.column, home, np.flatnonzero(values != ""))
    rest = [_with_rest(config, everyone, every == name).rest for name in sorted(set(values) - {""})]
    everyone = replace(everyone, rest=np.sort(np.concatenate([everyone.rest, *rest])))

    @cache
    def features() -> list[NDArray[np.float32]]:
        home.check_stock(everyone.every)
        found, volumes = [], everyone.volumes(config.crops)
        for encoder in encoders:
            network = encoder.bundle.middle(config.projector_layer).to(training_device(config.device))
            own = kept_features(run, network, volumes.rows, partial(volumes.embed, network))
            found.append(np.zeros((len(every), own.shape[1]), dtype=own.dtype))
            found[-1][everyone.every] = own
        return found

    def one(own: AdaptConfig, within: Run) -> Adaptation:
        return _adapted(own, within, path, encoders, methods, _corrupted(own, *_within(own, within, home)), features)

    verdicts = _refuse_seen(config, encoders, everyone)  # now, not after the domains before
    context = _context(config, run, encoders, everyone, everyone, verdicts)
    return each_left_out(config, run, home.table, values, methods, context, one)


def _values(config: AdaptConfig, run: Run, home: Part) -> NDArray[np.object_]:
    """Of each volume, labelled ones first, in which domain it is; "" where that is unknown."""
    known, every = (known_of(table, np.full(len(table.rows), home.name)) for table in (home.table, home.every))
    if config.column not in known:
        raise no_column(f"--target {config.target}", [home], known)
    own, others = known[config.column].to_numpy(), every[config.column].to_numpy()[len(known) :]
    if config.column not in home.every.groups or not any(re.fullmatch(_LETTER, value) for value in [*own, *others]):
        return np.concatenate([own, others])
    # Places with labels have the letters that they have in other reports, and the rest those after them.
    names = home.every.groups[config.column].to_numpy()
    letters = dict(zip(names, own, strict=False))
    more = sorted(set(names) - {*letters, ""})
    free = (f"site {letter}" for letter in [*ascii_uppercase, *(f"A{one}" for one in ascii_uppercase)])
    letters |= dict(zip(more, (one for one in free if one not in set(own)), strict=False))
    values = np.array([letters.get(name, "") for name in names], dtype=object)
    places = pd.DataFrame({"name": names, "letter": values})
    run.write_frame("private/places.csv", places[places["letter"] != ""].drop_duplicates().sort_values("letter"))
    return values


def _within(config: AdaptConfig, run: Run, home: Part) -> tuple[_Side, _Side]:
    column, _, asked = (config.target or "").partition("=")
    every, given = _values(config, run, home), (config.source or "").partition("=")[2]
    values = every[: len(home.table.rows)]
    if asked not in every:
        there = sorted(set(every) - {""})
        named = ", as private/places.csv of the run folder names them" * any(
            re.fullmatch(_LETTER, one) for one in there
        )
        raise DataError(f"--target {column}={asked}: no volume of it; there are {listed(there) or 'none'}{named}")
    others = sorted(set(values) - {"", asked})
    if not others:
        raise DataError(
            f"--target {column}={asked}: there is no other {column} to learn from, with labels; name another column"
        )
    if given and given not in others:
        raise DataError(
            f"--source {column}={given}: no labelled volume of it, where {LEAST_PATIENTS} patients of either class are "
            f"needed to learn from; there are {listed(others)}"
        )
    if config.balance and len(others) < 2:
        raise DataError(f"--balance: the source is one domain, {column} {others[0]}; leave it out")
    of_source = values == given if given else np.isin(values, others)
    domains = values[of_source] if config.balance else None
    source = _Side(f"{column} {given or listed(others)}", home, np.flatnonzero(of_source), domains=domains)
    target = _Side(f"{column} {asked}", home, np.flatnonzero(values == asked))
    return source, _with_rest(config, target, every == asked)


def _check_classes(source: _Side, target: _Side, task: Task) -> None:
    """Raise DataError where a domain has too few patients of a class to learn from or to judge by."""
    for side in (source, target) if len(target.at) else (source,):
        reasons = unjudged(side.y, side.patients)
        if all(reasons):
            raise DataError(
                f"{side.name}: its {counted(len(side.at), 'labelled volume')} hold {reasons[0]} of {task.name}; "
                f"it takes {LEAST_PATIENTS} patients of either class: label more, or choose another domain"
                + (", or leave these labels out: it is adapted to, and not judged, without any" * (side is target))
            )


def _refuse_seen(config: AdaptConfig, encoders: Sequence[Encoder], target: _Side) -> list[Verdict]:
    rows, verdicts = target.rows, []
    for encoder in encoders:
        verdicts.append(check_leakage(encoder_seen(encoder), target.part.fingerprint, rows))
        if verdicts[-1].status == "leak" and not config.transductive:
            raise LeakageError(
                f"{verdicts[-1].sentence} Here these are the target's. Pretrain again without them, or pass "
                "--transductive to go on and have the results marked"
            )
    return verdicts


def _cross_fit(
    config: AdaptConfig,
    run: Run,
    encoder: Encoder,
    source: _Side,
    target: _Side,
    task: Task,
    features: Features | None,
) -> CrossFit:
    """Of one encoder: what every cell of it is made from. features: of all volumes of the archive, if known."""
    network = encoder.bundle.middle(config.projector_layer).to(training_device(config.device))
    here, there = (side.volumes(config.crops) for side in (source, target))
    domains = [
        side.domain(
            kept_features(run, network, own.rows, partial(own.embed, network), _how(side))
            if features is None or side.change is not None
            else features[side.every]
        )
        for side, own in ((source, here), (target, there))
    ]
    anew = {"adabn": _renormalised(config, run, network, here, there, _for_all_halves(config, source, *domains))}
    anew |= {style: in_style(style, network, here, there, domains[1].features) for style in STYLES}
    exclusive, views = task.kind == "multiclass", classifier_views(here.spec)
    for name in (FINETUNED, *ALIGNMENTS):
        anew[name] = aligned(name, network, domains[0], here, there, views, config, exclusive)
    anew |= {name: continued(name, encoder, here, there, config) for name in CONTINUED}
    return CrossFit(domains[0], domains[1], exclusive, anew, source.domains)


def _for_all_halves(config: AdaptConfig, side: _Side, source: Domain, target: Domain) -> Rows | None:
    """Rows of patients who are in the source alone: their statistics serve all halves, as none of them is ever scored.

    None where they are too few to stand for the source, or lack one of the domains that are to count the same.
    """
    alone = source.apart(np.arange(len(source.y)), target, target.labelled)
    if 2 * len(alone) < len(source.y):
        return None
    if side.domains is None:
        return alone
    whole = set(side.domains[alone]) == set(side.domains)
    return alone[equal_draws(side.domains[alone], config.seed)] if whole else None


def _how(side: _Side) -> str:
    return side.name if side.change is not None else ""


def _renormalised(
    config: AdaptConfig, run: Run, network: nn.Module, source: Volumes, target: Volumes, lasting: Rows | None
) -> Anew:
    """Of AdaBN: each domain by an encoder whose batch-norm statistics are of that domain.

    lasting: rows of the source whose statistics are taken for every half; None: of those that a half learns from.
    """

    @lru_cache(maxsize=2)
    def of_source(positions: tuple[int, ...]) -> NDArray[np.float32]:
        own = source.at(np.array(positions)).renormalised(network, config.seed)
        return kept_features(run, own, source.rows, partial(source.embed, own))

    def anew(own: Rows, fit: Rows, held: Rows, _: int) -> Moved:
        there = target.at(fit).renormalised(network, config.seed)
        features = of_source(tuple(own if lasting is None else lasting))[own]
        return Moved(features, target.at(fit).embed(there), target.at(held).embed(there), there)

    return anew


def _cell(fit: CrossFit, method: str, methods: Sequence[str], drawn: Rows, seed: int) -> Scores:
    if method == TARGET_TRAINED:
        return Scores(fit.upper_bound(drawn, seed), None)
    if reason := fit.unlearnable(drawn, seed):
        return Scores(np.empty(0), None, reason=reason)
    if method == AUTO:
        scores, choices = fit.chosen(_candidates(methods), drawn, seed)
        return Scores(scores, None, choice_text(choices))
    scores = fit.scores(method, drawn, seed)
    judged = method in _candidates(methods)
    return Scores(scores, None, judged_text(*fit.judged(method, drawn, seed)) if judged else "")


def _kept_method(methods: Sequence[str], found: Adaptation) -> str:
    """What a classifier is made by: what auto chose most often; without auto the first of those asked for."""
    return str(found.choices["method"].iloc[0]) if len(found.choices) else methods[1]


def _save_classifier(
    config: AdaptConfig,
    run: Run,
    path: Path,
    encoder: Encoder,
    fit: CrossFit,
    method: str,
    source: _Side,
    target: _Side,
) -> None:
    """Write what `medclr predict` takes, from all of the source and adapted to all of the target without its labels."""
    folder, made_by = run.folder / "classifier", f"adapt, {method}"
    if folder.is_dir() and load_classifier(folder).details["method"] == made_by:
        return  # a run that goes on is on the same volumes and labels
    moved, head = fit.whole(method, config.seed)
    network, weight, bias = moved.network, head.weight, head.bias
    if isinstance(network, Classifier):  # whose logits were the features: two linear layers are one
        assert isinstance(network.head, nn.Linear)
        own = [value.detach().cpu().numpy().astype(np.float64) for value in network.head.parameters()]
        weight, bias = own[0].T @ weight, own[1] @ weight + bias
        network = network.network
    network = network or encoder.bundle.middle(config.projector_layer)
    task = source.part.table.task
    classifier = Classifier(network, len(weight), len(task.outputs), crops=config.crops)
    classifier.set_head(weight, bias)
    learned = pd.concat([side.volumes(config.crops).rows for side in (source, target)])
    details = {
        "temperature": 1.0,
        "encoder": fingerprint(path),
        "seen": {
            "training": Seen.of(source.part.fingerprint, learned).to_dict(),
            "pretraining": encoder.bundle.details["seen"],
        },
        "domains": {name: sorted(set(learned[name])) for name in ("modality", "manufacturer")},
        "method": made_by,
        "code_version": __version__,
    }
    run.found(key_file=config.key_file, volumes=home_of(path))
    architecture = encoder.bundle.architecture
    save_classifier(folder, classifier.cpu().eval(), architecture, task, source.part.spec, details)


def _candidates(methods: Sequence[str]) -> list[str]:
    """Of `auto`."""
    # A network that has learned the labels of all its source cannot be judged by them.
    return [name for name in methods if name not in (AUTO, TARGET_TRAINED, FINETUNED, *ALIGNMENTS)]


def _shots(
    config: AdaptConfig,
    methods: Sequence[str],
    encoders: Sequence[Encoder],
    fits: Sequence[CrossFit],
    target: _Side,
    task: Task,
) -> dict[str, list[Arm]]:
    """The arms that learn a few labels of the target, one for each encoder."""
    if not config.target_shots:
        return {}
    if task.kind == "multilabel":
        raise UsageError(
            f"--target-shots: {task.name} are labels of which a volume may have several, so n of each class cannot be "
            "drawn; run medclr adapt for one of them (--label)"
        )
    if AUTO not in methods:
        say(f"{ADAPTED} is left out: it is as auto chooses, which --methods leaves out")
    kinds = [BOTH, *([ADAPTED] if AUTO in methods else []), ALONE, *([LP_FT] if config.lp_ft else [])]
    volumes, views = target.volumes(config.crops), classifier_views(target.part.spec)
    tunes = [
        fine_tuned(encoder.bundle.middle(config.projector_layer), volumes, target.y, views, config, task)
        for encoder in encoders
    ]
    if config.lp_ft:
        trainings = 2 * config.draws * len(fits) * len(set(config.target_shots))
        say(f"{LP_FT}: {counted(trainings, 'training')} of {counted(config.steps, 'step')}")
    return {
        shot_name(kind, n): [
            partial(_shot_cell, fit, kind, n, _candidates(methods), tune) for fit, tune in zip(fits, tunes, strict=True)
        ]
        for n in sorted(set(config.target_shots))
        for kind in kinds
    }


def _shot_cell(
    fit: CrossFit, kind: str, n: int, candidates: Sequence[str], tune: Tune, drawn: Rows, seed: int
) -> Scores:
    if reason := fit.lacking(n, drawn, seed) or (kind != ALONE and fit.unlearnable(drawn, seed)):
        return Scores(np.empty(0), None, reason=reason)
    if kind == ALONE:
        return Scores(fit.shots_alone(n, drawn, seed), None)
    if kind == LP_FT:
        return Scores(fit.tuned(n, drawn, seed, tune), None)
    return Scores(fit.with_shots(n, drawn, seed, candidates if kind == ADAPTED else [SOURCE_ONLY]), None)


def _context(
    config: AdaptConfig,
    run: Run,
    encoders: Sequence[Encoder],
    source: _Side,
    target: _Side,
    verdicts: Sequence[Verdict],
) -> dict[str, Any]:
    task, known = source.part.table.task, all(bool(side.rows["patient_known"].all()) for side in (source, target))
    makers = pd.concat([source.rows, target.rows])["manufacturer"]
    return {
        "title": f"Domain adaptation: {task.name}, {source.name} to {target.name}",
        "command": "adapt",
        "command_line": run.command_line,
        "phantoms": bool(makers.isin({scanner.manufacturer for scanner in SCANNERS}).any()),
        "task": {"kind": task.kind, "columns": list(task.columns), "outputs": list(task.outputs)},
        "source": _counts(source, task),
        "target": _counts(target, task),
        "n_both": len(set(source.patients) & set(target.patients)),
        "n_copies": int((np.isin(source.pixels, target.pixels) & ~np.isin(source.patients, target.patients)).sum()),
        "encoders": [
            {
                "method": METHODS.get(encoder.bundle.details["method"], "weights from elsewhere"),
                "seed": encoder.bundle.details["hyperparameters"].get("seed"),
                "fingerprint": encoder.bundle.digest[:16],
            }
            for encoder in encoders
        ],
        "leakage": " ".join(dict.fromkeys(verdict.sentence for verdict in verdicts)),
        "transductive": any(verdict.status == "leak" for verdict in verdicts),
        "known": known,
        "training": {name: getattr(config, name) for name in _OF_TRAINING},
        "balance": config.balance,
        "draws": config.draws,
        "resamples": config.resamples,
        "versions": versions(),
        "hardware": hardware(),
    }


def _counts(side: _Side, task: Task) -> dict[str, Any]:
    positive = int((side.y == 1).any(axis=1).sum())
    counts: dict[str, Any] = {"name": side.name, "n": len(side.at), "n_patients": side.n_patients}
    counts |= {"n_rest": len(side.rest), "n_rest_there": side.n_rest}
    if not len(side.at):
        counts["n_patients"] = side.part.every.rows["patient_key"].iloc[side.rest].nunique()
    known = [column[~np.isnan(column)] for column in side.y.T]
    shares = {name: float(y.mean()) for name, y in zip(task.outputs, known, strict=True) if len(y)}
    return counts | {"n_positive": None if task.kind == "multiclass" else positive, "shares": shares}


def _write(config: AdaptConfig, run: Run, found: Adaptation, context: Mapping[str, Any]) -> None:
    tables, judged = {"adapt": found.points, "choices": found.choices}, context["target"]["n"] > 0
    if judged:
        tables |= {"differences": found.differences, "regained": found.regained}
    if found.shots is not None:
        tables |= {"shots": found.shots.points, "shot_differences": found.shots.differences}
    for name, table in tables.items():
        run.write_frame(f"{name}.csv", table)
    if judged:
        adapt_figure(found.points, context["title"], [run.folder / f"adapt.{kind}" for kind in ("png", "svg", "pdf")])
    if found.shots is not None:
        (bound,) = found.points.loc[found.points["method"] == TARGET_TRAINED, "auroc"]
        paths = [run.folder / f"shots.{kind}" for kind in ("png", "svg", "pdf")]
        shots_figure(found.shots.points, bound, context["title"], paths)
    answers = adapt_findings(found, context)
    run.write_text("report.html", adapt_page(found, context))
    report = {
        "findings": [answer._asdict() for answer in answers],
        "oracle": found.oracle,
        **{name: table.to_dict("records") for name, table in tables.items()},
        **({"worth": asdict(found.shots.worth)} if found.shots is not None and found.shots.worth else {}),
        "context": context,
    }
    run.write_json("report.json", report)
    run.finish({"findings": [answer.short for answer in answers]})
    for warning in doubts(found, context):
        say(f"warning: {warning}")
    for answer in answers:
        say(answer.line)
