"""`medclr distill`: from a fine-tuned classifier and volumes without labels to a small one that tells the same."""

import copy
from dataclasses import dataclass, replace
from functools import reduce
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import nn

from medclr import __version__
from medclr.commands.finetune import (
    UNTESTED,
    apart,
    can_judge,
    check_classes,
    check_task,
    classifier_views,
    encoder_seen,
    find_volumes,
    join_labels,
    label_layout,
    measured,
    named_auroc,
    near_sentence,
    nearly_seen,
    predictions,
    refuse_diverged,
    refuse_seen,
    run_of,
    say_split,
    volumes_behind,
)
from medclr.commands.prepare import check_stock, named_source
from medclr.config import DistillConfig
from medclr.data.identity import Seen, check_leakage, load_key
from medclr.data.labels import LabelTable, check_labels, held_out, labels_hash
from medclr.data.store import Store
from medclr.errors import BundleError, DataError, LeakageError, UsageError
from medclr.evaluation.measures import temperature_of
from medclr.evaluation.single import auroc_of
from medclr.models.bundle import fingerprint
from medclr.models.classifier import Classifier, LoadedClassifier, load_classifier, save_classifier
from medclr.models.encoder import Architecture, build_encoder
from medclr.reporting.console import counted, say
from medclr.reporting.run import Run, next_command, read_paths
from medclr.training.distill import fit_student
from medclr.training.encode import Encoder, classify_rows, load_encoder
from medclr.training.start import DEPTH, NORM, WIDTH

FEWEST_VOLUMES = 8


def distill(config: DistillConfig) -> dict[str, Any]:
    """Train a student to predict what a teacher does, and measure both on the patients that neither saw.

    Returns:
        What metrics.json holds: parameters, and where there are labels, per split the AUROC of student and teacher and
        their paired difference, with intervals.
    """
    run = Run.open("distill", config, config.out)
    say(f"run folder: {run.folder}")
    teacher = load_classifier(config.teacher, "--teacher")
    encoder = load_encoder(config.encoder) if config.encoder else None
    student, architecture = _student(config, teacher, encoder)
    config = _resolved(config, teacher)
    if config.labels is None and config.alpha < 1:
        raise UsageError(f"--alpha {config.alpha}: there are no labels to learn from; give --labels, or leave it at 1")
    if config.labels is not None:
        check_labels(config.labels, config.label, label_layout(config, teacher.spec))
    run.pin({
        "teacher": teacher.digest[:16],
        "labels": "" if config.labels is None else labels_hash(config.labels),
        "encoder": "" if config.encoder is None else fingerprint(config.encoder),
    })  # fmt: skip
    if run.complete:
        say(f"{run.folder} is complete already; use another --out to train again")
        return run.outcome

    data = _gather(config, run, teacher, encoder)
    task, table = teacher.task, data.table
    sizes = {"student": _parameters(student), "teacher": _parameters(teacher.classifier)}
    ratio = sizes["student"] / sizes["teacher"]
    say(
        f"student: {architecture.title}, {sizes['student']:,} parameters, "
        f"{ratio:.3f} of the teacher's {sizes['teacher']:,}; on {counted(len(data.rows), 'volume')}"
    )
    y = None
    if config.labels is not None and table is not None and config.alpha < 1:
        check_classes(config.labels, table, "train")
        y = _labels_of(data.rows, table)
        say(f"and the labels of {counted(int((~np.isnan(y)).any(axis=1).sum()), 'of them')}")
    student = fit_student(
        student,
        teacher.classifier,
        data.rows,
        data.store,
        teacher.spec,
        classifier_views(teacher.spec),
        config,
        config.seed,
        task.kind == "multiclass",
        y,
        config.temperature,
        config.alpha,
        lambda step, loss: say(f"step {step}: loss {loss:.3f}"),
        run.folder / "checkpoints" / "last.ckpt",
    )
    metrics: dict[str, Any] = {
        "label": task.name,
        "task": task.kind,
        "outputs": list(task.outputs),
        "method": "distill",
        "init": "scratch" if encoder is None else "encoder",
        "distillation": {"temperature": config.temperature, "alpha": config.alpha},
        "n_train": len(data.rows),
        "n_labelled": 0 if y is None else int((~np.isnan(y)).any(axis=1).sum()),
        "parameters": {**sizes, "ratio": ratio},
        "splits": {},
        "teacher": {"splits": {}},
        "difference": {},
        **data.checked,
    }
    tempered = temperature_of(None, np.empty(0), task.kind)
    if table is not None:
        scores, old_scores = (
            task.scores(classify_rows(network, table.rows, data.store, teacher.spec))
            for network in (student, teacher.classifier)
        )
        refuse_diverged(scores, config)
        patients, known = table.rows["patient_key"].to_numpy(), bool(table.rows["patient_known"].all())
        for split in ("val", "test"):
            if len(at := table.of(split)):
                truth, of = table.y[at], patients[at]
                metrics["splits"][split] = measured(task, truth, scores[at], of, known, config)
                metrics["teacher"]["splits"][split] = measured(task, truth, old_scores[at], of, known, config)
                less = auroc_of(truth, of, scores[at], task.kind, config.resamples, config.seed, old_scores[at])
                found = (None, None, None) if less.reason else (less.value, less.low, less.high)
                metrics["difference"][split] = dict(zip(("auroc", "low", "high"), found, strict=True))
        if len(val := can_judge(table, "val")):
            tempered = temperature_of(scores[val], table.y[val], task.kind)
        run.write_frame("predictions.csv", predictions(table.rows, task, scores / tempered.divisor, table.y))
    metrics["temperature"] = {"value": tempered.value, "reason": tempered.reason}
    save_classifier(run.folder / "classifier", student, architecture, task, teacher.spec, {
        "temperature": tempered.divisor,
        "encoder": None if config.encoder is None else fingerprint(config.encoder),
        "seen": {
            "training": data.seen.union(teacher.trained_on).to_dict(),
            "pretraining": data.pretrained_on.to_dict() if data.pretrained_on else None,
        },
        "domains": {name: sorted(set(data.rows[name])) for name in ("modality", "manufacturer")},
        "method": "distill",
        "code_version": __version__,
    })  # fmt: skip
    run.write_json("metrics.json", metrics)
    run.write_frame("metrics.csv", _frame(metrics))
    run.finish(metrics)
    _tell(config, run, metrics)
    return metrics


@dataclass(frozen=True)
class _Data:
    """What a student learns from and is measured by.

    rows: manifest rows to learn from; store: where they are; table: the labels, if there are any; seen: these rows;
    pretrained_on: what pre-training of teacher and student saw; checked: what metrics.json says of leakage.
    """

    rows: pd.DataFrame
    store: Store
    table: LabelTable | None
    seen: Seen
    pretrained_on: Seen | None
    checked: dict[str, Any]


def _gather(config: DistillConfig, run: Run, teacher: LoadedClassifier, encoder: Encoder | None) -> _Data:
    home = volumes_behind(config.teacher)
    if home is None and config.data is None:
        raise UsageError(f"--teacher {config.teacher}: the volumes behind it are not at hand; give --data")
    home = home or run_of(config.teacher)
    key_file = config.key_file or read_paths(home).get("key_file")
    names = load_key(key_file)
    run.found(key_file=key_file, volumes=home, labels=config.labels)
    spec, store, manifest = find_volumes(config, run, teacher.spec, home)
    for sentence in named_source("Teacher's data", spec):
        say(sentence)
    table, held, kept = None, np.zeros(len(manifest), dtype=bool), np.ones(len(manifest), dtype=bool)
    if config.labels is None:
        say("no label table: nobody is left out, and nothing will be known of how good the student is")
    else:
        manifest, table = join_labels(config.labels, config, run, manifest, names, spec)
        table = apart(table)
        say_split(table)
        check_task(config.labels, table.task, teacher.task, "teacher")
        held = held_out(config.labels, manifest, names, label_layout(config, spec)).volumes(manifest)
        kept = ~held | manifest["volume_id"].isin(table.rows["volume_id"]).to_numpy()
        say(f"left out: {counted(int(held.sum()), 'volume')} of val and test patients, or with the pixels of theirs")
    rows = manifest[~held].reset_index(drop=True)
    if len(rows) < FEWEST_VOLUMES:
        raise DataError(f"{counted(len(rows), 'volume')} to learn from; a student needs {FEWEST_VOLUMES}; name --data")
    before = [seen for seen in (teacher.pretrained_on, encoder and encoder_seen(encoder)) if seen]
    own = Seen.of(names.fingerprint, rows)
    checked = {}
    if table is not None:
        checked = _check_seen(config, run, table, manifest, teacher, reduce(Seen.union, before, own))
    check_stock(manifest[kept], spec, store, config.data or read_paths(home).get("data"))
    return _Data(rows, store, table, own, reduce(Seen.union, before) if before else None, checked)


def _resolved(config: DistillConfig, teacher: LoadedClassifier) -> DistillConfig:
    """The config with what the teacher's run says where it says nothing itself."""
    paths = read_paths(run_of(config.teacher))
    labels, spec = config.labels, config.spec
    if labels is None and config.data is None:
        labels, spec = paths.get("labels"), spec or paths.get("spec")
    return replace(
        config,
        labels=labels,
        spec=spec,
        label=config.label or list(teacher.task.columns),
        key_file=config.key_file or paths.get("key_file"),
    )


def _student(
    config: DistillConfig, teacher: LoadedClassifier, encoder: Encoder | None
) -> tuple[Classifier, Architecture]:
    """An encoder and a head that says nothing yet, judging a volume by as many crops as the teacher."""
    outputs, crops = len(teacher.task.outputs), teacher.classifier.crops
    if encoder is not None:
        if encoder.spec != teacher.spec:
            raise BundleError(
                f"--encoder {config.encoder}: was trained on volumes prepared in another way than those of the "
                "teacher; give one that shares its spec"
            )
        a = encoder.bundle.architecture
        return Classifier(nn.Sequential(copy.deepcopy(encoder.bundle.encoder)), a.feature_dim, outputs, crops=crops), a
    a = teacher.architecture
    if not a.own:
        # The encoder that pretrain makes by default: half of another library's network is nothing that it has.
        a = Architecture(DEPTH, 2 * WIDTH + 1, a.spatial_dims, a.channels, NORM, a.patch)
    width = max(4, (a.width - 1) // 2) if config.width is None else config.width
    a = replace(a, depth=config.depth or a.depth, width=width, norm=config.norm or a.norm)
    torch.manual_seed(config.seed)
    return Classifier(nn.Sequential(build_encoder(a)), a.feature_dim, outputs, crops=crops), a


def _check_seen(
    config: DistillConfig, run: Run, table: LabelTable, manifest: pd.DataFrame, teacher: LoadedClassifier, seen: Seen
) -> dict[str, Any]:
    """Refuse a test split that the teacher learned from, or that was seen without labels; what metrics.json says of it.

    seen: without labels, by the teacher's pre-training and by the student.
    """
    assert config.labels
    taught = check_leakage(teacher.trained_on, seen.fingerprint, table.rows.iloc[table.of("test")])
    if taught.status == "leak":
        raise LeakageError(
            f"--teacher was fine-tuned on {taught.n_patients:,} patients and {taught.n_images:,} images of the test "
            f"split of {config.labels.name}; give the table that it was fine-tuned by, or fine-tune it on this one"
        )
    verdict = refuse_seen(config.labels, config, table, seen, seen.fingerprint)
    near = None if seen.unrecorded else nearly_seen(run, table, [(manifest, seen.pixels | teacher.trained_on.pixels)])
    unsure = verdict.status == "clean" and taught.status != "clean"
    return {
        "leakage": (taught if unsure else verdict).sentence,
        "near_duplicates": {"test_images": near, "sentence": near_sentence(near)},
        "transductive": verdict.status == "leak",
    }


def _labels_of(rows: pd.DataFrame, table: LabelTable) -> NDArray[np.float64]:
    """The labels (n, K) of the train split, NaN for volumes that have none."""
    train = table.of("train")
    labelled = pd.Series(train, index=table.rows["volume_id"].to_numpy()[train])
    at = labelled.reindex(rows["volume_id"]).to_numpy()
    y = np.full((len(rows), table.y.shape[1]), np.nan)
    known = ~np.isnan(at)
    y[known] = table.y[at[known].astype(int)]
    return y


def _parameters(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


def _frame(metrics: dict[str, Any]) -> pd.DataFrame:
    """A row for each split and network, and one for their difference."""
    of = {"student": metrics["splits"], "teacher": metrics["teacher"]["splits"], "difference": metrics["difference"]}
    rows = [{"split": split, "of": name, **found} for name, splits in of.items() for split, found in splits.items()]
    return pd.DataFrame(rows, columns=None if rows else ["split", "of", "auroc", "low", "high"])


def _tell(config: DistillConfig, run: Run, metrics: dict[str, Any]) -> None:
    for split, own in metrics["splits"].items():
        its, less = metrics["teacher"]["splits"][split], metrics["difference"][split]
        if own["auroc"] is None:
            say(f"{split}: {named_auroc(own, metrics['task'])} {own['reason']}")
        else:
            say(
                f"{split}: {named_auroc(own, metrics['task'])} {own['auroc']:.3f} ({own['low']:.3f} to "
                f"{own['high']:.3f}) of the student, {its['auroc']:.3f} ({its['low']:.3f} to {its['high']:.3f}) of "
                f"the teacher; difference {less['auroc']:+.3f} ({less['low']:+.3f} to {less['high']:+.3f}; 95% "
                f"intervals by {own['interval_level']})"
            )
    if "test" in metrics["splits"]:
        say(metrics["leakage"])
        say(metrics["near_duplicates"]["sentence"])
    else:
        say(UNTESTED)
    say(f"wrote {run.folder}: metrics.json, {'predictions.csv, ' if metrics['splits'] else ''}classifier/")
    following = next_command("predict", config, ("device",), classifier=run.folder, data=config.data or "SCANS")
    say(f"next: {following}")
