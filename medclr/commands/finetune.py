"""`medclr finetune`: from a handful of labels to a classifier, and how good it is on patients it never saw."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from string import ascii_uppercase
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from medclr import __version__
from medclr.commands.prepare import check_stock, cited, named_source, stock, stocked
from medclr.config import (
    ADOPTED,
    ClassifierConfig,
    EfficiencyConfig,
    FinetuneConfig,
    LabelledConfig,
    LabelsConfig,
    StoreConfig,
)
from medclr.data.crops import parts_of
from medclr.data.identity import Pseudonymiser, Seen, Verdict, check_leakage, load_key
from medclr.data.labels import (
    LabelTable,
    Task,
    check_labels,
    labels_hash,
    name_patients,
    read_labels,
    unmatched_frame,
)
from medclr.data.layout import TableLayout
from medclr.data.signature import near_duplicates
from medclr.data.spec import DataSpec, load_spec
from medclr.data.store import Store
from medclr.errors import BundleError, DataError, LeakageError, MedclrError, UsageError
from medclr.evaluation.cells import unjudged
from medclr.evaluation.measures import temperature_of
from medclr.evaluation.single import auroc_of, judge
from medclr.evaluation.subgroups import age_bands, quartile_bands
from medclr.models.bundle import fingerprint
from medclr.models.classifier import Classifier, NeighboursHead, save_classifier
from medclr.models.encoder import Architecture
from medclr.reporting.console import counted, say
from medclr.reporting.numbers import listed
from medclr.reporting.run import Run, next_command, read_paths
from medclr.training.encode import Bags, Encoder, bag_rows, embed_rows, load_encoder, training_device
from medclr.training.methods import Fitted, Material, Start, fit
from medclr.training.probe import NEIGHBOURS, Linear, Neighbours
from medclr.transforms.presets import Views, build_views

UNTESTED = "no test split: nothing is known of how good this classifier is; add a split column with test rows"
MOST_NUMBERS = 8  # that a column may have for each to be a group of its own
FINETUNE_CROP = (0.7, 1.0)  # a view for a classifier must still show what the label is about


@dataclass(frozen=True)
class Labelled:
    """Everything that labels meet: the table, the volumes, the encoder, and what it saw of the test set.

    Attributes:
        table: labelled rows; manifest: all rows; store, spec: where and how to read them.
        encoders: the pre-trained ones; the architecture of the first also serves a start from scratch.
        scans: what the volumes were prepared from, where that is known.
        verdicts: of the leakage check, one for each encoder.
        near: how many test images are near-duplicates of what pre-training saw; None where that is not known.
        copies: how many volumes were left out of `table`, as a later split has the same.
    """

    table: LabelTable
    manifest: pd.DataFrame
    store: Store
    spec: DataSpec
    encoders: tuple[Encoder, ...]
    scans: Path | None
    verdicts: tuple[Verdict, ...]
    near: int | None
    copies: int

    @property
    def leakage(self) -> str:
        """What was found of leakage: the worst, and of each encoder whose training left no record that this is so."""
        unknown = [one for one in self.verdicts if one.status == "not checkable"]
        others = [one for one in self.verdicts if one not in unknown]
        worst = sorted(others, key=lambda one: ("leak", "patients not checkable", "clean").index(one.status))[:1]
        sentences = [*dict.fromkeys(one.sentence for one in (*worst, *unknown))]
        return " ".join([*sentences, *([copies_sentence(self.copies)] if self.copies else [])])

    @property
    def transductive(self) -> bool:
        """Whether pre-training saw the test set, as was allowed."""
        return any(one.status == "leak" for one in self.verdicts)

    @property
    def near_sentence(self) -> str:
        """What was found of near-duplicates, in one sentence."""
        return near_sentence(self.near)

    @property
    def unlabelled(self) -> pd.DataFrame:
        """What may be learned from without a label: all but those of val and test patients, and their copies."""
        of_split = self.table.rows[self.table.rows["split"] != "train"]
        held = np.zeros(len(self.manifest), dtype=bool)
        for name in ("patient_key", "pixel_hash"):
            held |= self.manifest[name].isin(of_split[name]).to_numpy()
        return self.manifest[~held].reset_index(drop=True)

    @property
    def architecture(self) -> Architecture:
        return self.encoders[0].bundle.architecture

    @property
    def views(self) -> Views:
        """Augmentations for training a whole network on labels."""
        return classifier_views(self.spec)

    def material(self, config: LabelsConfig, distilling: bool) -> Material:
        """What methods of `medclr.training.methods` learn from: positions are those of `table.rows`.

        distilling: with the volumes that have no label; they may be many, and every worker is handed them.
        """
        table, free = self.table, self.unlabelled if distilling else None
        return Material(table.rows, table.y, table.task, free, self.store, self.spec, self.views, config)

    def start(self, encoder: Encoder | None, config: LabelsConfig) -> Start:
        """From an encoder and the layers of its projector that are kept, or from random weights."""
        if encoder is None:
            return Start(architecture=self.architecture, feature_dim=self.architecture.feature_dim)
        kept = encoder.bundle.middle(config.projector_layer).to(training_device(config.device))
        widths = [layer.out_features for layer in kept if isinstance(layer, torch.nn.Linear)]
        return Start(network=kept, feature_dim=[encoder.bundle.architecture.feature_dim, *widths][-1])

    def features(self, start: Start, config: LabelsConfig) -> NDArray[np.float32]:
        """Of all labelled volumes, (n, F): one pass over them."""
        assert start.network
        return embed_rows(start.network, self.table.rows, self.store, self.spec, crops=config.crops)

    def bags(self, start: Start, config: LabelsConfig) -> Bags:
        """The features of their crops and slices, of which `features` is the mean: one pass over them."""
        assert start.network
        return bag_rows(start.network, self.table.rows, self.store, self.spec, crops=config.crops)

    def parts(self, config: LabelsConfig) -> NDArray[np.intp]:
        """How many crops or slices each labelled volume is judged by.

        Raises:
            UsageError: one, of each.
        """
        counts = parts_of(self.table.rows, self.spec, config.crops)[1]
        if counts.max() == 1:
            raise UsageError(
                f"attention: no volume has more than one crop or slice at --crops {config.crops} and patch "
                f"{' × '.join(map(str, self.spec.patch or ()))}, so there is nothing to pool; use linear"
            )
        return counts


def finetune(config: FinetuneConfig) -> dict[str, Any]:
    """Train a classifier on the train split of a label table, and measure it on the others.

    Returns:
        What metrics.json holds: per split, AUROC with its interval and the counts behind it.
    """
    run = Run.open("finetune", config, config.out)
    say(f"run folder: {run.folder}")
    source = find_encoders(config, run, [config.encoder] if config.encoder else [])[0]
    if run.complete:
        say(f"{run.folder} is complete already; use another --out to train again")
        return run.outcome
    data = gather(config, run, [source])
    run.found(key_file=_key_file(config, source), volumes=home_of(source))
    table, rows = data.table, data.table.rows
    task, train, patients = table.task, table.of("train"), rows["patient_key"].to_numpy()
    check_classes(config.labels, table, "train")
    say(f"training on {counted(len(train), 'volume')}, {_counts(task, table.y[train])}")
    if config.method == "distill":
        say(f"distillation learns from {counted(len(data.unlabelled), 'volume')}, without their labels")
        check_stock(data.unlabelled, data.spec, data.store, data.scans)
    start = data.start(None if config.init == "scratch" else data.encoders[0], config)
    if config.method != "full":
        start = replace(start, network=start.fresh(config.seed))
        if config.method == "attention":
            data.parts(config)
            bags = data.bags(start, config)
            start = replace(start, bags=bags, features=bags.mean())
        else:
            start = replace(start, features=data.features(start, config))
    fitted = fit(
        config.method,
        data.material(config, config.method == "distill"),
        start,
        train,
        config.seed,
        config.tuned,
        lambda step, loss: say(f"step {step}: loss {loss:.3f}"),
        run.folder / "checkpoints" / "last.ckpt",
    )
    if fitted.choice:
        say(f"{config.method}: {fitted.choice}")
    scores = fitted.scores(np.arange(len(rows)))
    refuse_diverged(scores, config)
    # Out of fold where the method chose something by cross-validation; else the val split, which it has not seen. The
    # folds of a whole network are trained for a third of its steps, and less sure of themselves.
    held, y_held, by = fitted.held_out, table.y[train], "out of fold"
    if (held is None or fitted.network is not None) and len(val := can_judge(table, "val")):
        held, y_held, by = scores[val], table.y[val], "the val split"
    temperature = temperature_of(held, y_held, task.kind)
    judged = {
        split: judge(
            table.y[at], patients[at], scores[at], task.kind, task.outputs, config.resamples, config.seed,
            # What it was fitted on is no measure of it.
            None if (split, by) == ("val", "the val split") else held, y_held, break_down(table).iloc[at],
        )
        for split in ("val", "test")
        if len(at := table.of(split))
    }  # fmt: skip
    metrics: dict[str, Any] = {
        "label": task.name,
        "task": task.kind,
        "outputs": list(task.outputs),
        "method": config.method,
        "init": config.init,
        "n_train": len(train),
        "choice": fitted.choice,
        "temperature": {"value": temperature.value, "reason": temperature.reason, "by": "" if held is None else by},
        "splits": {
            split: measured(task, table.y[at], scores[at], patients[at], bool(rows["patient_known"].all()), config)
            | {
                "measures": found.measures.to_dict("records"),
                "calibration": found.calibration.to_dict("records"),
                "subgroups": found.subgroups.to_dict("records"),
            }
            for split, found in judged.items()
            if len(at := table.of(split))
        },
        "leakage": data.leakage,
        "near_duplicates": {"test_images": data.near, "sentence": data.near_sentence},
        "transductive": data.transductive,
    }
    classifier = _classifier(fitted, start, task, config.crops)
    learned = pd.concat([rows.iloc[train], *([data.unlabelled] if config.method == "distill" else [])])
    details = _details(config, data, source, learned)
    details["temperature"] = temperature.divisor
    save_classifier(run.folder / "classifier", classifier, data.architecture, task, data.spec, details)
    run.write_json("metrics.json", metrics)
    run.write_frame("metrics.csv", _by_split(metrics))
    run.write_frame("predictions.csv", predictions(rows, task, scores / temperature.divisor, table.y))
    run.finish(metrics)
    _tell(config, run, metrics)
    return metrics


def refuse_diverged(scores: NDArray[np.float64], config: ClassifierConfig) -> None:
    """Raise MedclrError where training has ended in numbers that are none."""
    if not np.isfinite(scores).all():
        raise MedclrError(f"--lr {config.lr:g}: the training diverged, and its scores are not finite; lower it")


def can_judge(table: LabelTable, split: str) -> NDArray[np.intp]:
    """Positions of a split; none where it has too few patients: of a class, or of each of several labels."""
    at = table.of(split)
    lacking = unjudged(table.y[at], table.rows["patient_key"].to_numpy()[at])
    return at[:0] if (any if table.task.kind == "multiclass" else all)(lacking) else at


def find_encoders(config: LabelsConfig, run: Run, given: Sequence[Path]) -> list[Path]:
    """Where the encoders are; refuses a run that was begun with other ones, or with other labels."""
    sources = named_or_newest(given)
    # Now, not after hours of preparing volumes.
    check_labels(config.labels, config.label, label_layout(config, load_encoder(sources[0]).spec), config.groups)
    run.pin({"labels": labels_hash(config.labels), "encoder": " ".join(map(fingerprint, sources))})
    return sources


def named_or_newest(given: Sequence[Path]) -> list[Path]:
    """The encoders that were named, or the newest pretrain run; UsageError where there is none."""
    newest = None if given else Run.newest("pretrain")
    sources = list(given) or ([newest] if newest else [])
    if not sources:
        raise UsageError(
            "no complete pretrain run under runs/; run `medclr pretrain --data DIR`, or name one with --encoder"
        )
    if newest:
        say(f"no --encoder: {newest} is the newest complete pretrain run")
    return sources


def gather(config: LabelsConfig, run: Run, given: Sequence[Path]) -> Labelled:
    """Load the encoders, find manifest and store, join the labels, and refuse a test set that pre-training saw.

    Raises:
        BundleError: an encoder is for volumes prepared in another way than those of the first.
    """
    source, encoders = given[0], load_encoders(given, config.projector_layer)
    encoder = encoders[0]
    paths = read_paths(source)
    names = load_key(config.key_file or paths.get("key_file"))
    spec, store, manifest = find_volumes(config, run, encoder.spec, source)
    for sentence in sources(config, encoder):
        say(sentence)
    manifest, whole = join_labels(config.labels, config, run, manifest, names, encoder.spec, config.groups)
    table = apart(whole)
    say_split(table)
    verdicts = [refuse_seen(config.labels, config, table, encoder_seen(one), names.fingerprint) for one in encoders]
    # Seeds of one pre-training saw the same.
    of_seen = {encoder_seen(one).pixels: (one, path) for one, path in zip(encoders, given, strict=True)}
    near = _nearly_seen(run, table, list(of_seen.values()))
    scans = config.data or paths.get("data")
    check_stock(table.rows, spec, store, scans)
    copies = len(whole.rows) - len(table.rows)
    return Labelled(table, manifest, store, spec, tuple(encoders), scans, tuple(verdicts), near, copies)


def join_labels(
    labels: Path,
    config: LabelledConfig,
    run: Run,
    manifest: pd.DataFrame,
    names: Pseudonymiser,
    spec: DataSpec,
    groups: Sequence[str] = (),
) -> tuple[pd.DataFrame, LabelTable]:
    """Join a label table to volumes; says what has no counterpart, and lists it in private/.

    Returns:
        The manifest, with the patients that the table names; and the labels.
    """
    layout = label_layout(config, spec)
    manifest = name_patients(labels, manifest, names, layout)
    say_patients(manifest)
    table = read_labels(labels, manifest, names, config.label, layout, groups)
    run.write_frame("private/unmatched.csv", unmatched_frame(table.key, table.unmatched_keys, table.rest.rows))
    say(
        f"labels: {counted(len(table.rows), 'volume')} by {table.key}, {_columns(table.task)}; "
        f"{counted(len(table.unmatched_keys), 'key')} without a volume and "
        f"{counted(len(table.rest.rows), 'volume')} without a label (listed in private/unmatched.csv)"
    )
    return manifest, table


def say_patients(manifest: pd.DataFrame) -> None:
    """Say so where a label table has put together what files name several patients."""
    if "file_patient_key" in manifest:
        by_patient = manifest.groupby("patient_key")["file_patient_key"].nunique()
        several = by_patient[by_patient > 1]
        say(
            f"patient_id: {counted(int(several.sum()), 'patient')} of the files {'is' if len(several) == 1 else 'are'} "
            f"{len(several):,} in the label table, and taken as such"
        )


def apart(table: LabelTable) -> LabelTable:
    """Without volumes that a later split has too; says how many these are."""
    found = table.without_copies()
    if copies := len(table.rows) - len(found.rows):
        say(f"warning: {copies_sentence(copies)}")
    return found


def copies_sentence(copies: int) -> str:
    """What `apart` left out."""
    which = "1 labelled volume is a copy" if copies == 1 else f"{copies:,} labelled volumes are copies"
    return f"{which} of one in a later split, voxel for voxel, and left out."


def say_split(table: LabelTable) -> None:
    """Say so where the label table has no split of its own."""
    if table.split_source == "patient hash":
        say("no split column: patients are split 70/10/20 into train, val and test by the hash of their pseudonym")


def load_encoders(given: Sequence[Path], projector_layer: int) -> list[Encoder]:
    """Encoders whose projector has such a layer, all for volumes prepared in one way; BundleError if not."""
    encoders = [_loaded(path, projector_layer) for path in given]
    for path, other in zip(given[1:], encoders[1:], strict=True):
        if other.spec != encoders[0].spec:
            raise BundleError(
                f"--encoder {path}: was trained on volumes prepared in another way than {given[0]}; compare encoders "
                "of one spec (medclr adopt --like), or run the command for each"
            )
    return encoders


def _loaded(path: Path, projector_layer: int) -> Encoder:
    encoder = load_encoder(path)
    encoder.bundle.middle(projector_layer)  # raises where there is no such layer
    weights = len(encoder.bundle.encoder.state_dict()) + len(encoder.bundle.projector.state_dict())
    say(f"encoder: {path}; all {weights} weights match")
    return encoder


def sources(config: LabelsConfig, encoder: Encoder) -> list[str]:
    """The public sets behind encoder and labels, with licence and citation."""
    labels = named_source("Labels", load_spec(config.spec)) if config.spec else []
    details = encoder.bundle.details
    found = named_source("Volumes" if details["method"] == ADOPTED else "Encoder's data", encoder.spec)
    while "start" in details:
        details = details["start"]
        if details["method"] != ADOPTED:  # whose spec is that of volumes to use it on
            found += cited("Encoder's data before", **details["data"])
    return found + labels


def check_classes(labels: Path, table: LabelTable, split: str) -> None:
    """Raise DataError where the labelled volumes of a split are of one class, naming the classes that it lacks."""
    at = table.of(split)
    task, y = table.task, table.y[at]
    for column, output in enumerate(task.outputs):
        absent = [word for value, word in ((1, "positive"), (0, "negative")) if not np.any(y[:, column] == value)]
        if absent:
            fix = "or leave it out of --label" if task.kind == "multilabel" else "at least one of each"
            raise DataError(
                f"{labels.name}: the {split} split has {counted(len(at), 'labelled volume')} and no "
                f"{' and no '.join(absent)} of {output!r} ({_columns(task)}); label some, {fix}"
            )


def check_task(labels: Path, own: Task, its: Task, who: str) -> None:
    """Raise DataError where a label table means something else than a classifier, which messages call `who`."""
    if (own.kind, own.outputs, own.classes) != (its.kind, its.outputs, its.classes):
        mine, theirs = (one.columns if its.kind == "multilabel" else one.classes for one in (own, its))
        raise DataError(
            f"{labels.name}: column {own.name!r} has {listed(mine)}, where the {who} knows {listed(theirs)}; write "
            "them as it does, or choose another column with --label"
        )


def measured(
    task: Task,
    y: NDArray[np.float64],
    scores: NDArray[np.float64],
    patients: NDArray[np.object_],
    known: bool,
    config: LabelledConfig,
) -> dict[str, Any]:
    """AUROC with its interval over patients, or why there is none.

    Of several classes or labels their macro mean, over those that have one, and under `by_label` the same of each;
    `n_positive` then counts the volumes with any label, `n_negative` those with none that is known, and of several
    classes, of which each volume has one, neither is given.
    """
    found = _measured(y, scores, patients, task.kind, config)
    if task.kind == "multiclass":
        found |= {"n_positive": None, "n_negative": None}
    found["interval_level"] = "patient" if known else "image (patients unknown)"
    if len(task.outputs) > 1:
        found["by_label"] = {}
        for column, output in enumerate(task.outputs):
            told = ~np.isnan(y[:, column])
            own, ranked = y[told, column, None], scores[told, column, None]
            found["by_label"][output] = _measured(own, ranked, patients[told], "binary", config)
    return found


def named_auroc(found: Mapping[str, Any], kind: str) -> str:
    """What the AUROC is of, in words; found: from `measured`."""
    if "by_label" not in found:
        return "AUROC"
    told = sum(one["auroc"] is not None for one in found["by_label"].values())
    what = "classes" if kind == "multiclass" else "labels"
    return f"mean AUROC over {told} of {len(found['by_label'])} {what}"


def predictions(
    rows: pd.DataFrame, task: Task, scores: NDArray[np.float64], y: NDArray[np.float64] | None = None
) -> pd.DataFrame:
    """One row a volume: its pseudonyms, a probability for each output, and the labels where they are known."""
    table = rows[[name for name in ("volume_id", "patient_key", "split") if name in rows]].reset_index(drop=True)
    single = len(task.outputs) == 1
    for column, output in enumerate(task.outputs):
        if y is not None:
            table["y" if single else f"y {output}"] = pd.Series(y[:, column], dtype="Int64")
        table["probability" if single else f"probability {output}"] = task.probabilities(scores)[:, column]
    return table


def _measured(
    y: NDArray[np.float64],
    scores: NDArray[np.float64],
    patients: NDArray[np.object_],
    kind: str,
    config: LabelledConfig,
) -> dict[str, Any]:
    """Of (n, K), as `measured`."""
    positive = (y == 1).any(axis=1)
    found = {
        "auroc": None,
        "low": None,
        "high": None,
        "reason": "",
        "n": len(y),
        "n_positive": int(positive.sum()),
        "n_negative": int((~positive).sum()),
        "n_patients": len(set(patients)),
    }
    auroc = auroc_of(y, patients, scores, kind, config.resamples, config.seed)
    if auroc.reason:
        return found | {"reason": f"n/a: {auroc.reason}"}
    return found | {"auroc": auroc.value, "low": auroc.low, "high": auroc.high}


def break_down(table: LabelTable) -> pd.DataFrame:
    """The columns by which results are broken down: those of the table that were asked for, and the scanner.

    Ages become bands, other columns of more than 8 different numbers their quartiles over all labelled volumes, and the
    names of places letters, as a report may be shared.
    """
    columns = table.groups.copy()
    for name in columns:
        numbers = pd.to_numeric(columns[name].replace("", None), errors="coerce").astype(float)
        years = _years(columns[name])
        if re.search(r"(?:\b|_|(?<=[a-z])(?=A))(?i:age)$", str(name)) and np.isfinite(years).any():
            columns[name] = age_bands(years)
        elif (np.isfinite(numbers) | (columns[name] == "")).all() and numbers.nunique() > MOST_NUMBERS:
            columns[name] = quartile_bands(numbers.to_numpy())
        elif re.search(r"site|hospital|institution|clinic|cent(?:re|er)", str(name), re.IGNORECASE):
            columns[name] = _lettered(columns[name])
    rows = table.rows
    for name in ("manufacturer", "model"):
        if name not in columns:  # whoever names a column as the manifest does knows better than the files
            columns[name] = rows[name].to_numpy()
    return columns


def _lettered(places: pd.Series) -> pd.Series:
    """Names of places, in their order, as site A, site B, …; what has a letter already, and "", as it is."""
    names = sorted(set(places) - {""})
    if all(re.fullmatch("site [A-Z]+", name) for name in names):
        return places
    letters = [*ascii_uppercase, *(f"A{letter}" for letter in ascii_uppercase)]
    return places.map({"": ""} | {name: f"site {letter}" for name, letter in zip(names, letters, strict=False)})


def _years(ages: pd.Series) -> NDArray[np.float64]:
    """Ages as numbers of years, or as DICOM writes them: 045Y, 018M, 006W, 010D (PS3.5, value representation AS)."""
    found = ages.str.extract(r"^(\d+(?:\.\d+)?)([YMWD]?)$")
    return (pd.to_numeric(found[0]) / found[1].map(_A_YEAR)).to_numpy(float)


_A_YEAR = {"": 1.0, "Y": 1.0, "M": 12.0, "W": 365.25 / 7, "D": 365.25}


def _by_split(metrics: dict[str, Any]) -> pd.DataFrame:
    """A row for each split, and below it one for each of several classes or labels."""
    rows = []
    for split, m in metrics["splits"].items():
        of_label = m.get("by_label", {})
        whole = {name: value for name, value in m.items() if not isinstance(value, list | dict)}
        rows += [{"split": split, "output": "mean" if of_label else metrics["outputs"][0], **whole}]
        rows += [{"split": split, "output": name, **whole, **one} for name, one in of_label.items()]
    return pd.DataFrame(rows).astype({"n_positive": "Int64", "n_negative": "Int64"})


def _columns(task: Task) -> str:
    return f"columns {task.name}" if task.kind == "multilabel" else f"column {task.name!r}"


def _counts(task: Task, y: NDArray[np.float64]) -> str:
    """How many are of each class."""
    positive = np.nansum(y, axis=0).astype(int)
    if task.kind == "binary":
        return f"{positive[0]:,} with {task.name} = {task.classes[1]}"
    of = [f"{n:,} {output}" for n, output in zip(positive, task.outputs, strict=True)]
    return ", ".join(of[:8]) + (f" and {len(of) - 8} more" if len(of) > 8 else "")


def label_layout(config: LabelledConfig, spec: DataSpec) -> TableLayout | None:
    """How the label table is laid out, if it is the own table of a public set; spec: of the volumes."""
    return (load_spec(config.spec) if config.spec else spec).table


def find_volumes(
    config: LabelledConfig, run: Run, spec: DataSpec, source: Path
) -> tuple[DataSpec, Store, pd.DataFrame]:
    """The volumes of --data, prepared by a network's spec; without it, those of the run that is its source."""
    paths = read_paths(source)
    if config.data is not None:
        kept = stocked(run.folder) if run.resumed else None
        if kept:
            return kept[1], Store(config.store or run.folder.parent / "store"), kept[0]
        reading = StoreConfig(
            data=config.data,
            store=config.store,
            key_file=config.key_file or paths.get("key_file"),
            workers=config.workers,
        )
        manifest, _, spec, store = stock(reading, run, spec)
        return spec, store, manifest
    return pretrained_volumes(config.store, spec, source, paths)


def home_of(source: Path) -> Path:
    """The run that has the volumes of an encoder: its own, or that which it was adopted like."""
    other = read_paths(source).get("volumes")
    return source if other is None or stocked(source) else other


def run_of(source: Path) -> Path:
    """The run folder of a classifier, where that itself may have been named instead."""
    return source if (source / "run.json").is_file() else source.parent


def volumes_behind(classifier: Path) -> Path | None:
    """The run that has the volumes of a classifier: its own, if it was given --data, or the one of its encoder."""
    own = run_of(classifier)
    other = read_paths(own).get("volumes")
    return next((folder for folder in (own, other) if folder is not None and stocked(folder)), None)


def pretrained_volumes(
    root: Path | None, spec: DataSpec, source: Path, paths: dict[str, Path | None]
) -> tuple[DataSpec, Store, pd.DataFrame]:
    """The volumes of the run that a network is from: how they were read, the store, the manifest.

    Args:
        root: of the store, if it is another than that of the run.
        spec: of the network; source: where it was loaded from.
        paths: of that run.

    Raises:
        UsageError: the run itself is not at hand.
        BundleError: its spec is not the network's.
    """
    source = home_of(source)
    kept = stocked(source)
    if kept is None:
        raise UsageError(f"{source}: a bundle without the private/ and spec.yaml of its run; give --data too")
    if kept[1] != spec:
        raise BundleError(
            f"{source}: its spec.yaml is not the spec that the network was trained with; restore it, or give --data to "
            "prepare the volumes anew"
        )
    return kept[1], Store(root or paths.get("store") or source.parent / "store"), kept[0]


def classifier_views(spec: DataSpec) -> Views:
    """Augmentations for training a whole network to tell what a volume shows."""
    return build_views(spec.preset, spec.spatial_dims, spec.laterality, scale=FINETUNE_CROP)


def encoder_seen(encoder: Encoder) -> Seen:
    """What pre-training saw."""
    return Seen.from_dict(encoder.bundle.details["seen"])


def refuse_seen(labels: Path, config: ClassifierConfig, table: LabelTable, seen: Seen, key: str) -> Verdict:
    """Whether pre-training saw the test split; LeakageError where it did, unless that was allowed.

    key: fingerprint of the one that made the pseudonyms of the table's rows.
    """
    verdict = check_leakage(seen, key, table.rows.iloc[table.of("test")])
    if verdict.status == "leak" and not config.transductive:
        raise LeakageError(
            f"{verdict.sentence} Pretrain again with --holdout {labels}, or pass --transductive to go on and "
            "have the results marked"
        )
    return verdict


def near_sentence(near: int | None) -> str:
    """What `nearly_seen` found, in one sentence."""
    if near is None:
        return "Near-duplicates not checkable: not all pre-training and test images have a signature at hand."
    if not near:
        return "No test image is a near-duplicate of one that pre-training saw."
    images = "1 test image is a near-duplicate" if near == 1 else f"{near:,} test images are near-duplicates"
    return f"{images} of what pre-training saw; private/near_duplicates.csv lists the pairs."


def _nearly_seen(run: Run, table: LabelTable, encoders: Sequence[tuple[Encoder, Path]]) -> int | None:
    """Test images that are near-duplicates of what any of the encoders saw."""
    # A bundle can be shared, and signatures are thumbnails: only private/ has them.
    kept = [(stocked(path), encoder_seen(encoder).pixels) for encoder, path in encoders]
    seen = [(one[0], pixels) for one, pixels in kept if one is not None]
    return nearly_seen(run, table, seen) if len(seen) == len(kept) else None


def nearly_seen(run: Run, table: LabelTable, seen: Sequence[tuple[pd.DataFrame, frozenset[str]]]) -> int | None:
    """Test images that are near-duplicates of what trainings saw; None where signatures are missing.

    seen: of each training, a manifest with the volumes that it saw, and the hashes of their pixels.
    """
    test = table.rows.iloc[table.of("test")]
    if "signature" not in test or any("signature" not in manifest for manifest, _ in seen):
        return None
    parts = [manifest[manifest["pixel_hash"].isin(pixels)] for manifest, pixels in seen]
    if any(pixels - set(part["pixel_hash"]) for part, (_, pixels) in zip(parts, seen, strict=True)):
        return None
    own = pd.concat(parts).drop_duplicates("pixel_hash")
    if (own["signature"] == "").any() or (test["signature"] == "").any():
        return None
    i, j, similarity = near_duplicates(list(test["signature"]), list(own["signature"]))
    pairs = pd.DataFrame(
        {
            "test": test["volume_id"].to_numpy()[i],
            "seen": own["volume_id"].to_numpy()[j],
            "similarity": similarity.round(4),
        }
    )
    other = test["pixel_hash"].to_numpy()[i] != own["pixel_hash"].to_numpy()[j]
    run.write_frame("private/near_duplicates.csv", pairs[other])
    return len(set(i[other].tolist()))


def _classifier(fitted: Fitted, start: Start, task: Task, crops: int) -> Classifier:
    if fitted.network is not None:
        return fitted.network
    head = fitted.head
    assert head is not None
    assert start.network is not None
    voting = NeighboursHead(head.features, head.y, NEIGHBOURS, head.exclusive) if isinstance(head, Neighbours) else None
    classifier = Classifier(
        start.network, start.feature_dim, len(task.outputs), head=voting, crops=crops, pool=fitted.pool
    )
    if isinstance(head, Linear):
        classifier.set_head(head.weight, head.bias)
    return classifier.eval()


def _key_file(config: LabelsConfig, source: Path) -> Path | None:
    return config.key_file or read_paths(source).get("key_file")


def _details(config: FinetuneConfig, data: Labelled, source: Path, trained: pd.DataFrame) -> dict[str, Any]:
    """What a classifier carries beside weights, task and spec; trained: the rows that it was trained on."""
    names = load_key(_key_file(config, source))
    pretrained = config.init == "encoder"
    return {
        "encoder": fingerprint(source) if pretrained else None,
        "seen": {
            "training": Seen.of(names.fingerprint, trained).to_dict(),
            "pretraining": data.encoders[0].bundle.details["seen"] if pretrained else None,
        },
        "domains": {name: sorted(set(trained[name])) for name in ("modality", "manufacturer")},
        "method": config.method,
        "code_version": __version__,
    }


def _tell(config: FinetuneConfig, run: Run, metrics: dict[str, Any]) -> None:
    for split, m in metrics["splits"].items():
        of = f"of {counted(m['n_patients'], 'patient')}"
        by_label = m.get("by_label", {})
        counts = (
            f"{counted(m['n'], 'volume')} {of}"
            if by_label
            else f"{m['n_positive']:,} positive and {m['n_negative']:,} negative {of}"
        )
        if m["auroc"] is None:
            say(f"{split}: AUROC {m['reason']} ({counts})")
            continue
        told = {name: one["auroc"] for name, one in by_label.items() if one["auroc"] is not None}
        say(
            f"{split}: {named_auroc(m, metrics['task'])} {m['auroc']:.3f} (95% interval {m['low']:.3f} to "
            f"{m['high']:.3f}, by {m['interval_level']}; {counts})"
        )
        if by_label:
            say(f"{split}: " + ", ".join(f"{n} {told[n]:.3f}" if n in told else f"{n} n/a" for n in by_label))
    if "test" in metrics["splits"]:
        say(metrics["leakage"])
        say(metrics["near_duplicates"]["sentence"])
    else:
        say(UNTESTED)
    say(f"wrote {run.folder}: metrics.json, predictions.csv, classifier/")
    carried = [f.name for f in fields(LabelsConfig) if f.name not in ("out", "resamples", "workers", "seed")]
    default = EfficiencyConfig(labels=config.labels).arms
    arms = None if config.method in default else ["scratch", "pca", config.method]
    say(f"next: {next_command('efficiency', config, [*carried, 'encoder'], arms=arms)}")
