"""`medclr pretrain`: from a folder of unlabelled scans to an encoder bundle."""

import hashlib
import json
import os
import signal
import subprocess
from dataclasses import asdict, replace
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from medclr import __version__
from medclr.commands.batches import coded, domains_of, lonely
from medclr.commands.finetune import encoder_seen, say_patients
from medclr.commands.prepare import check_stock, named_source, stock, stocked
from medclr.commands.scan import check_inputs, check_skipped
from medclr.commands.start import doubts, record_of, spec_of
from medclr.config import METHODS, PretrainConfig, paths_of
from medclr.data.candidate import Skipped
from medclr.data.identity import Pseudonymiser, Seen, load_key
from medclr.data.labels import (
    LabelTable,
    check_labels,
    held_out,
    name_patients,
    read_keyed,
    read_labels,
    unmatched_frame,
)
from medclr.data.layout import TableLayout
from medclr.data.loader import Blocks
from medclr.data.manifest import read_skipped
from medclr.data.pairs import Pairs, check_pairs, share_of_pairs, suggest_pairs
from medclr.data.pool import n_cores
from medclr.data.slices import by_slice
from medclr.data.spec import DataSpec, load_spec, parse_spec
from medclr.data.store import Store
from medclr.errors import DataError, Interrupted, MedclrError, UsageError
from medclr.models.bundle import load_bundle, save_bundle
from medclr.reporting.console import counted, progress, say
from medclr.reporting.run import ADDRESSES, Run, next_command
from medclr.reporting.tracking import reach, tracking
from medclr.training.encode import Encoder, load_encoder
from medclr.training.health import check_views, health_check, symptoms
from medclr.training.moco import LONGEST_QUEUE
from medclr.training.ranks import Ranks, together
from medclr.training.resume import newest_checkpoint, position
from medclr.training.start import architecture_of, described, projector_of
from medclr.training.trainer import contrast, pretrain_encoder
from medclr.transforms.presets import Views, build_views, check_without

FEWEST_VOLUMES = 8  # to tell apart
AXES = ("right", "anterior", "superior")
FEW_PAIRS = 0.5  # share of the volumes below which --pairs changes little


def pretrain(config: PretrainConfig) -> Encoder:
    """Train an encoder with SimCLR or MoCo on all volumes of a folder but those held out.

    Where it goes on from another's weights, that is domain-adaptive pre-training, as in REMEDIS (Azizi et al. 2023,
    "Robust and data-efficient generalization of self-supervised machine learning for diagnostic imaging").

    Of several processes that torchrun or srun has started, the first prepares, speaks, measures and writes.

    Returns:
        The encoder, as `medclr.load_encoder` gives it.

    Raises:
        Interrupted: by a signal; the state is saved, and the same config goes on from it.
        Elsewhere: another process of the run failed, or was interrupted, and says so.
    """
    with together() as ranks:
        first = ranks.place.first
        ranks.check_same(config)
        if config.requeue and "SLURM_JOB_ID" not in os.environ:
            raise UsageError("--requeue: this is no SLURM job (SLURM_JOB_ID is not set); leave it out")
        try:
            return _pretrain(config, ranks) if first else _follow(config, ranks)
        except Interrupted as stop:
            if config.requeue and stop.signum == signal.SIGUSR1 and first:
                _requeue()
            raise


def _pretrain(config: PretrainConfig, ranks: Ranks) -> Encoder:
    world = ranks.place.world
    if config.batch_size % world:
        below = config.batch_size // world * world
        raise UsageError(
            f"--batch-size {config.batch_size}: {world} processes cannot share it evenly; give "
            + (f"{below} or " if below else "")
            + f"{below + world}"
        )
    check_inputs(config)
    method = METHODS[config.method]
    asked = given = load_spec(config.spec) if config.spec else None
    start = load_encoder(config.encoder) if config.encoder else None
    weights = start.bundle if start else None
    if start:
        asked = spec_of(config.spec, given, start)
        architecture_of(config, asked, start.bundle)
    check_pairs(config.pairs, asked)
    if asked:
        _views(config, asked)
    else:
        check_without(config.without)
    run = Run.open("pretrain", config, config.out)
    say(f"run folder: {run.folder}")
    if run.complete:
        say(f"{run.folder} is complete already; use another --out to train again")
        ranks.tell("job", json.dumps({"folder": str(run.folder), "complete": True}).encode())
        ranks.tell("done", b"")
        return load_encoder(run.folder)
    # Wrong tables and addresses are found now, not after hours of preparing volumes.
    if config.tracking_uri is not None:
        reach(config.tracking_uri)
    if config.holdout is not None:
        layout = asked.table if asked else None
        check_labels(config.holdout, (config.label,), layout) if config.label else read_keyed(config.holdout, layout)
    kept = stocked(run.folder) if run.resumed else None
    skipped: list[Skipped] = []
    if kept:
        manifest, spec = kept
        skipped = read_skipped(run.private / "skipped.csv")
        store = Store(config.store or run.folder.parent / "store")
        check_stock(manifest, spec, store, config.data)
    else:
        fix = "Give a --spec for them that agrees with that of --encoder"
        manifest, skipped, spec, store = stock(config, run, asked, fix=fix) if start else stock(config, run)
        for sentence in named_source("Data", spec) if start else ():
            say(sentence)
    names = load_key(config.key_file)
    if config.holdout is not None:
        manifest = name_patients(config.holdout, manifest, names, spec.table)
        say_patients(manifest)
    held = _held_out(config, run, manifest, names, spec.table)
    rows = manifest[~held].reset_index(drop=True)
    if len(rows) < FEWEST_VOLUMES:
        raise DataError(f"{counted(len(rows), 'volume')} to learn from; {method} needs {FEWEST_VOLUMES} to tell apart")
    if rows["patient_key"].nunique() < 2:
        raise DataError("all volumes are of one patient, and volumes of one patient are never told apart; add patients")
    # What is learned from, one at a time.
    lasting = doubts(start, names.fingerprint, manifest[held]) if start else []  # warnings that are true whatever comes
    for warning in lasting:
        say(f"warning: {warning}")
    units = by_slice(rows) if spec.slices else rows
    what = counted(len(rows), "volume") if units is rows else counted(len(units), "slice")
    if len(units) < world:
        raise UsageError(f"{what} for {world} processes; start {len(units)} at most")
    if config.batch_size > len(units):
        most = f"{len(units) // world * world} of them" if len(units) % world else "all of them"
        lasting.append(f"--batch-size {config.batch_size} is more than the {what}: a batch is {most}")
        say(f"warning: {lasting[-1]}")
    try:
        compared = contrast(config, len(units))
        pairs = _pairs(config, units, spec)
        domains = domains_of(config, units, world)
    except UsageError:
        run.forget()
        raise
    for warning in lonely(config, units):
        lasting.append(warning)
        say(f"warning: {warning}")
    inputs = {"volumes": manifest_hash(rows), "files": _sizes(manifest, config.data)}
    run.pin(inputs | ({"encoder": start.bundle.digest[:16]} if start else {}))
    resume = newest_checkpoint(run.folder, say)
    measures = _Measures(run, resume is not None)
    views = _views(config, spec)
    architecture = architecture_of(config, spec, weights)
    if start:
        say(described(config, start.bundle))
    say(
        f"{method}, {architecture.title}, on {what}"
        + (f", by {world} processes" if world > 1 else "")
        + (_after(*position(resume)) if resume else "")
    )
    blocks = Blocks(units, store, spec, views, 2, config.seed, pairs, config.overlap, domains)
    for warning in check_views(blocks, views, spec, config.seed):
        say(f"warning: {warning}")
        lasting.append(warning)
    health = health_check(
        blocks,
        units,
        _labels(config, manifest, names, spec.table),
        store,
        # The probe of domains is of those that were asked for.
        replace(spec, domains=(config.domains,)) if config.domains else spec,
        epochs=config.epochs,
        every=config.health_every,
        seed=config.seed,
    )
    settings = {name: value for name, value in asdict(config).items() if name not in {*paths_of(config), *ADDRESSES}}
    settings |= {name: getattr(architecture, name) for name in ("depth", "width", "norm")}
    layers = projector_of(config, weights, architecture.feature_dim)["layers"]
    settings |= {"projector_layers": layers, "pairs": pairs, **compared}
    if config.method == "moco":
        wanted, length = config.queue or LONGEST_QUEUE, compared["queue"]
        cut = f", cut from {wanted:,} to whole batches in at most a quarter of the {what}" if length < wanted else ""
        say(f"MoCo: momentum {compared['momentum']:.4g}, a queue of {length:,} keys{cut}")
    job = {"folder": str(run.folder), "store": str(store.root), "spec": spec.to_dict(), "pairs": pairs}
    ranks.tell("rows", rows.drop(columns="source").to_parquet(index=False))
    ranks.tell("job", json.dumps(job | {"complete": False, "resume": str(resume) if resume else None}).encode())
    with tracking(config.tracking_uri, run, settings) as track, progress("pre-training") as show:

        def on_epoch(row: dict[str, float]) -> None:
            measures.add(row)
            track(row)
            show(int(row["epoch"]) + 1, config.epochs)

        module, _ = pretrain_encoder(
            config,
            spec,
            views,
            blocks,
            run.folder,
            n_cores(),
            health,
            on_epoch,
            resume,
            say,
            ranks,
            weights,
        )
    last = measures.rows[-1]
    seen = Seen.of(names.fingerprint, rows)
    if start:
        seen = seen.union(encoder_seen(start))
    details = {
        "spec": spec.to_dict(),
        "axis_order": axis_order(spec),
        "method": config.method,
        "hyperparameters": settings,
        "code_version": __version__,
        "manifest_hash": manifest_hash(rows),
        "holdout": {
            "splits": ["val", "test"] if config.holdout else [],
            "volumes": int(held.sum()),
            "patients": int(manifest["patient_key"][held].nunique()),
        },
        "seen": seen.to_dict(),
        **({"start": record_of(start)} if start else {}),
    }
    # Of MoCo the encoder that was learned, as He et al. 2020 transfer it; the other one lags behind.
    save_bundle(run.folder / "encoder", module.encoder, module.projector, architecture, details)
    counts = {"volumes": len(rows), "held_out_volumes": int(held.sum())}
    run.finish({**last, **counts, "manifest": details["manifest_hash"]})
    _tell(config, run, [*lasting, *symptoms(measures.rows, final=True).values()])
    check_skipped(config, manifest, skipped)
    ranks.tell("done", b"")
    return load_encoder(run.folder)


def _follow(config: PretrainConfig, ranks: Ranks) -> Encoder:
    """What the other processes do: wait for the first to prepare, and train with it."""
    job = json.loads(ranks.hear("job"))
    folder = Path(job["folder"])
    if not job["complete"]:
        spec, store = parse_spec(job["spec"], "the first process"), Store(Path(job["store"]))
        rows = pd.read_parquet(BytesIO(ranks.hear("rows")))
        views = _views(config, spec)
        units = by_slice(rows) if spec.slices else rows
        pretrain_encoder(
            config,
            spec,
            views,
            Blocks(units, store, spec, views, 2, config.seed, job["pairs"], config.overlap, coded(config, units)),
            folder,
            n_cores(),
            lambda module: {},
            lambda row: None,
            Path(job["resume"]) if job["resume"] else None,
            ranks=ranks,
            start=load_bundle(config.encoder) if config.encoder else None,
        )
    ranks.hear("done")
    return load_encoder(folder)


def _views(config: PretrainConfig, spec: DataSpec) -> Views:
    smallest, largest = config.crop_scale
    return build_views(spec.preset, spec.spatial_dims, spec.laterality, (smallest, largest), config.without)


def manifest_hash(rows: pd.DataFrame) -> str:
    """What a table of volumes holds, whatever its order: 16 hex digits."""
    return Pseudonymiser(b"manifest").pseudonym("volumes", "\n".join(sorted(rows["volume_id"] + rows["pixel_hash"])))


def axis_order(spec: DataSpec) -> str:
    """Which way the axes of what the encoder sees run."""
    if spec.spatial_dims == 2 and not spec.slices:
        return "channel, towards the right, upwards"
    return ", ".join(["channel", *spec.in_plane(AXES)])


def _pairs(config: PretrainConfig, units: pd.DataFrame, spec: DataSpec) -> Pairs:
    """The pairs that were asked for or are suggested; says what they are, and for how much of the data."""
    if config.pairs == "auto":
        pairs, why = suggest_pairs(units, spec)
        why = f", since {why} (--pairs chooses others)"
    else:
        pairs, why = config.pairs, ""
    share = share_of_pairs(pairs, units, spec)
    rest = ""
    if share < 1:
        what = "slices" if spec.slices else "volumes"
        rest = f"; for {share:.0%} of the {what}, and two views of the same for the others"
    say(f"{'warning: ' if share < FEW_PAIRS else ''}pairs: {pairs}{why}{rest}")
    return pairs


def _sizes(manifest: pd.DataFrame, root: Path) -> str:
    """The files behind the volumes, by name and size, 16 hex digits: what a resumed run can look at in no time."""
    digest = hashlib.blake2b(digest_size=8)
    for item in sorted({item for source in manifest["source"] for item in source}):
        path = root / item
        digest.update(f"{item}\0{path.stat().st_size if path.is_file() else 'gone'}\0".encode())
    return digest.hexdigest()


def _after(epoch: int, step: int) -> str:
    return f", going on after step {step} of epoch {epoch + 1}" if step else f", going on after epoch {epoch}"


def _requeue() -> None:
    """Ask SLURM to run this job again. Lightning would too, but it saves within a step, where nothing can go on."""
    job = os.environ["SLURM_JOB_ID"]
    if "SLURM_ARRAY_JOB_ID" in os.environ:  # the last task of an array has the job id of the whole of it
        job = f"{os.environ['SLURM_ARRAY_JOB_ID']}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    try:
        subprocess.run(["scontrol", "requeue", job], check=True, capture_output=True, timeout=30)
    except (OSError, subprocess.SubprocessError) as error:
        say(f"warning: scontrol requeue {job} failed ({type(error).__name__}); submit the same job again yourself")
    else:
        say(f"saved, and asked SLURM to queue job {job} again")


class _Measures:
    """metrics.csv: one row an epoch, whole after each, taken up by a resumed run; and warnings, each kind once."""

    def __init__(self, run: Run, resumed: bool) -> None:
        self.run = run
        path = run.folder / "metrics.csv"
        self.rows: list[dict[str, Any]] = []
        self.warned: set[str] = set()
        if path.is_file() and resumed:
            table = pd.read_csv(path)
            self.rows = [dict(zip(table.columns, row, strict=True)) for row in table.itertuples(index=False)]

    def add(self, row: dict[str, float]) -> None:
        # A kill between metrics and checkpoint leaves a row of an epoch that is now run again.
        self.rows = [old for old in self.rows if old["epoch"] < row["epoch"]] + [row]
        self.run.write_frame("metrics.csv", pd.DataFrame(self.rows))
        say(f"epoch {int(row['epoch']) + 1}: loss {row['loss']:.3f} (chance {row['chance']:.3f})" + _measured(row))
        for kind, warning in symptoms(self.rows).items():
            if kind not in self.warned:
                say(f"warning: {warning}")
                self.warned.add(kind)


def _held_out(
    config: PretrainConfig, run: Run, manifest: pd.DataFrame, names: Pseudonymiser, layout: TableLayout | None
) -> NDArray[np.bool_]:
    """Which volumes pre-training must not see: those of held-out patients, and any with the very same pixels."""
    if config.holdout is None:
        return np.zeros(len(manifest), dtype=bool)
    table = held_out(config.holdout, manifest, names, layout)
    patients, held = manifest["patient_key"].isin(table.patients).to_numpy(), table.volumes(manifest)
    twins = int((held & ~patients).sum())
    say(
        f"held out: {counted(int(patients.sum()), 'volume')} of "
        f"{counted(manifest['patient_key'][patients].nunique(), 'patient')}"
        + (f", and {counted(twins, 'volume')} of others with the very same pixels" if twins else "")
    )
    if table.unmatched_keys:
        run.write_frame("private/unmatched.csv", unmatched_frame(table.key, table.unmatched_keys, manifest[:0]))
        say(
            f"warning: {counted(len(table.unmatched_keys), 'key')} of --holdout without a volume "
            "(listed in private/unmatched.csv): whoever is meant by them is not held out"
        )
    return held


def _labels(
    config: PretrainConfig, manifest: pd.DataFrame, names: Pseudonymiser, layout: TableLayout | None
) -> LabelTable | None:
    """The labels for the online probes; none where --holdout only says whom to leave out."""
    if config.holdout is None:
        return None
    try:
        return read_labels(config.holdout, manifest, names, (config.label,) if config.label else (), layout)
    except MedclrError as error:
        if config.label:
            raise
        say(f"no online probes: {error}")
        return None


def _measured(row: dict[str, float]) -> str:
    """What the check after an epoch found, for its line; nothing where it was not due."""
    if "rankme" not in row:
        return ""
    positive, negative, rank = (row[name] for name in ("positive_similarity", "negative_similarity", "rankme"))
    aurocs = [f"{name.removesuffix('_auroc')} {value:.3f}" for name, value in row.items() if name.endswith("_auroc")]
    return f", similarity {positive:.2f} (negatives {negative:.2f}), RankMe {rank:.1f}" + (
        f", AUROC by {', '.join(aurocs)}" if aurocs else ""
    )


def _tell(config: PretrainConfig, run: Run, warnings: list[str]) -> None:
    say(f"wrote {run.folder}: encoder/, metrics.csv, tensorboard/, scan.json, spec.yaml")
    labels = config.holdout or "LABELS.csv"
    say(f"next: {next_command('finetune', config, ('label',), labels=labels, encoder=run.folder)}")
    # Last, however long ago they were said: they are about the encoder that was written.
    for warning in warnings:
        say(f"warning: {warning}")
