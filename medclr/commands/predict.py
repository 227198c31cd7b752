"""`medclr predict`: the probabilities that a classifier gives to new scans."""

from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from medclr.commands.apply import forget_parts, in_parts, new_volumes, traced
from medclr.commands.finetune import run_of
from medclr.commands.scan import check_inputs, check_skipped
from medclr.config import PredictConfig
from medclr.data.identity import load_key
from medclr.data.labels import Task
from medclr.errors import UsageError
from medclr.models.classifier import LoadedClassifier, load_classifier
from medclr.reporting.console import counted, say
from medclr.reporting.run import Run, read_paths
from medclr.training.encode import classify_rows, training_device


def predict(config: PredictConfig) -> pd.DataFrame:
    """Scan and prepare a folder as a classifier asks, and apply it; labels are not needed.

    Returns:
        What predictions.csv holds: one row a volume, with its pseudonyms, whether the classifier or its encoder has
        seen the patient, what of it is unlike all that the classifier was trained on, and a probability and a logit
        for each output.
    """
    check_inputs(config)
    source = config.classifier or Run.newest("finetune")
    if source is None:
        raise UsageError(
            "no complete finetune run under runs/; run `medclr finetune --labels CSV`, or name one with --classifier"
        )
    loaded = load_classifier(source)
    network = loaded.classifier.to(training_device(config.device))
    run = Run.open("predict", config, config.out)
    say(f"run folder: {run.folder}")
    name = f"predictions.{config.format}"
    run.pin({"classifier": loaded.digest})
    if run.complete:
        say(f"{run.folder} is complete already; use another --out to predict again")
        return _read(run.folder / name)
    found = "" if config.classifier else ", the newest complete finetune run"
    say(f"classifier: {source}{found}; all {len(network.state_dict())} weights match")
    task = loaded.task
    say(f"{task.name}: {', '.join(task.outputs)} ({task.kind}), by {loaded.details['method']}")
    key_file = config.key_file or read_paths(run_of(source)).get("key_file")
    volumes = new_volumes(config, run, loaded.spec, config.store, key_file, "classifier")

    def outputs(rows: pd.DataFrame, workers: int) -> NDArray[np.float32]:
        return classify_rows(network, rows, volumes.store, volumes.spec, workers)

    logits = np.concatenate([part for _, part in in_parts(run, volumes, outputs, "predicting")])
    scores = scored(task, task.scores(logits), loaded.temperature)
    about = _about(loaded, volumes.rows, load_key(key_file).fingerprint)
    table = pd.concat([about, scores], axis=1)
    run.write_frame(name, table)
    run.write_frame(f"private/{name}", traced(volumes).merge(table.drop(columns="patient_key"), on="volume_id"))
    counts = {"volumes": len(table), "patients": table["patient_key"].nunique(), "skipped_files": len(volumes.skipped)}
    seen = {column: dict(Counter(table[column])) for column in ("in_training", "in_pretraining") if column in table}
    run.finish(
        {
            **counts,
            **seen,
            "label": task.name,
            "task": task.kind,
            "outputs": list(task.outputs),
            "temperature": loaded.temperature,
            "classifier": loaded.digest[:16],
        }
    )
    forget_parts(run)
    _tell(table)
    say(
        f"wrote {run.folder}: {name} with {counted(len(table), 'volume')}; private/{name} has it by patient id and file"
    )
    check_skipped(config, volumes.rows, volumes.skipped)
    return table


def scored(task: Task, scores: NDArray[np.float64], temperature: float) -> pd.DataFrame:
    """Scores (n, K) as columns: of several classes the likeliest, then a probability and a logit for each output."""
    single = len(task.outputs) == 1
    probabilities = task.probabilities(scores, temperature)
    columns: dict[str, object] = {}
    if task.kind == "multiclass":
        columns["predicted"] = np.array(task.outputs, dtype=object)[scores.argmax(axis=1)]
    for what, values in (("probability", probabilities), ("logit", scores)):
        columns |= {what if single else f"{what} {name}": values[:, at] for at, name in enumerate(task.outputs)}
    return pd.DataFrame(columns)


def _about(loaded: LoadedClassifier, rows: pd.DataFrame, fingerprint: str) -> pd.DataFrame:
    """What to know of each volume before its probability is believed."""
    table = rows[["volume_id", "patient_key", "modality", "manufacturer"]].copy()
    table["in_training"] = loaded.trained_on.holds(fingerprint, rows)
    if loaded.pretrained_on is not None:
        table["in_pretraining"] = loaded.pretrained_on.holds(fingerprint, rows)
    other = [np.where(rows[name].isin(known), "", name) for name, known in sorted(loaded.details["domains"].items())]
    table["unlike_training"] = [" ".join(filter(None, names)) for names in zip(*other, strict=True)]
    return table


def _tell(table: pd.DataFrame) -> None:
    trained = table[table["in_training"] == "yes"]
    if len(trained):
        patients = counted(trained["patient_key"].nunique(), "patient")
        say(
            f"warning: {counted(len(trained), 'volume')} of {patients} the classifier was trained on (column "
            "in_training): what it says of them says nothing of how good it is"
        )
    unknown = int((table["in_training"] == "not checkable").sum())
    if unknown:
        say(
            f"whether it was trained on the patients of {counted(unknown, 'volume')} is not checkable: it was made "
            "under another key (--key-file), or nothing names the patient"
        )
    for what in ("modality", "manufacturer"):
        other = table[table["unlike_training"].str.split().map(lambda names, what=what: what in names)]
        if len(other):
            values = ", ".join(sorted({value or "unknown" for value in other[what]})[:5])
            say(
                f"warning: {counted(len(other), 'volume')} of a {what} that it was not trained on ({values}; column "
                "unlike_training): nothing is known of how good it is there"
            )


def _read(path: Path) -> pd.DataFrame:
    if path.suffix == ".parquet":
        return pd.read_parquet(path)
    # A pseudonym of digits alone is no number.
    text = dict.fromkeys(("volume_id", "patient_key", "predicted"), str)
    return pd.read_csv(path, dtype=text, keep_default_na=False)
