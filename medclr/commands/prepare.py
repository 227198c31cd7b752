"""`medclr prepare`: every volume into the store, once."""

import re
import shutil
from collections import Counter
from concurrent.futures import Executor
from contextlib import nullcontext
from pathlib import Path, PurePosixPath

import pandas as pd
import yaml

from medclr.commands.scan import READING, check_inputs, check_skipped, refuse_faults, summarise, survey
from medclr.config import PrepareConfig, ReadingConfig, StoreConfig
from medclr.data.candidate import Skipped, settled
from medclr.data.manifest import candidate_of, domain_names, kinds, skipped_frame
from medclr.data.pool import dask_cluster
from medclr.data.prepare import bytes_to_write, processes, shard, without_copies
from medclr.data.prepare import prepare as fill_store
from medclr.data.spec import DataSpec, choose_spec, load_spec, parse_spec
from medclr.data.store import Store
from medclr.errors import DataError
from medclr.reporting.console import counted, progress, say
from medclr.reporting.run import Run, next_command, writing


def prepare(config: PrepareConfig) -> pd.DataFrame:
    """Scan a folder and bring its volumes, or a shard of them, into the store.

    Returns:
        The manifest of the volumes in the store.
    """
    check_inputs(config)
    # A wrong address is found before anything is read.
    with nullcontext() if config.scheduler is None else dask_cluster(config.scheduler) as cluster:
        run = Run.open("prepare", config, config.out)
        say(f"run folder: {run.folder}")
        manifest, skipped, spec, store = stock(config, run, part=config.part, executor=cluster)
    run.finish({"volumes": len(manifest), "skipped_files": len(skipped), "store": spec.digest()})
    say(f"wrote {run.folder}: scan.json, spec.yaml; private/ has manifest.parquet, skipped.csv and keys.csv")
    say(f"store {store.root} has {counted(len(manifest), 'volume')}" + (" of this shard" if config.part else ""))
    following = next_command("pretrain", config, (*READING, "store", "spec"))
    if config.part:
        # Its share of the skipped says little; the command that gathers counts all.
        say(f"next, when all {config.part[1]} shards are done: {following}")
        return manifest
    say(f"next: {following}")
    check_skipped(config, manifest, skipped)
    return manifest


def stock(
    config: StoreConfig,
    run: Run,
    spec: DataSpec | None = None,
    part: tuple[int, int] | None = None,
    executor: Executor | None = None,
    fix: str = "The encoder's bundle asks for it: use another --encoder",
) -> tuple[pd.DataFrame, list[Skipped], DataSpec, Store]:
    """Scan and prepare into a run's `private/`.

    Args:
        config: what to read, and where the store is.
        run: gets scan.json, spec.yaml and the tables in `private/`.
        spec: with patch and spacing filled; None is the config's, or one chosen from the data.
        part: which shard to prepare, and of how many; None is everything.
        executor: whose workers prepare; None is processes of this machine.
        fix: what to do where a spec that was given fits no volume.

    Returns:
        The manifest of the prepared volumes, what was skipped, the spec and the store.
    """
    store = Store(config.store or run.folder.parent / "store")
    manifest, skipped = survey(config, run)
    own = spec is None  # an encoder's spec says where the encoder's data came from, not these
    fix = "Choose another --spec" if own else fix
    spec = spec or (load_spec(config.spec) if config.spec else choose_spec(manifest))
    chosen, spec = fitted(config, manifest, spec, fix)
    run.write_text("spec.yaml", yaml.safe_dump(spec.to_dict(), sort_keys=False))
    others = manifest[~spec.accepts(manifest)]
    rest = f"; {counted(len(others), 'volume')} of other kinds left out" if len(others) else ""
    say(f"spec {spec.name}: {_described(spec)}{rest}")
    for sentence in named_source("Data", spec) if own else ():
        say(sentence)
    mine = chosen
    if part:
        mine = shard(chosen, *part)
        say(f"shard {part[0]}/{part[1]}: {len(mine):,} of {counted(len(chosen), 'volume')}")
    store.sweep()
    _check_space(store, bytes_to_write(chosen, spec, store, mine))
    workers = processes(config.workers, len(mine)) if executor is None else nullcontext(executor)
    with writing(store.root, "--store"), progress("preparing volumes") as show, workers as pool:
        prepared, unreadable = fill_store(mine, config.data, spec, store, pool, show)
    n_prepared = len(prepared)
    # The copy of one shard's may lie in another's.
    prepared, copies = (prepared, []) if part else without_copies(prepared)
    left_out = [
        Skipped(
            item, "OTHER_KIND", f"{candidate.modality or 'unknown modality'} {len(candidate.shape)}D", candidate.member
        )
        for candidate in map(candidate_of, others.itertuples(index=False))
        for item in candidate.paths
    ]
    used = pd.concat([prepared["source"], chosen["source"].drop(mine.index)])
    skipped = settled([*skipped, *left_out, *unreadable, *copies], {item for source in used for item in source})
    run.write_frame("private/skipped.csv", skipped_frame(skipped))
    refuse_faults(config, run, [*unreadable, *copies])
    if prepared.empty and len(mine):
        raise DataError(
            f"--data {config.data}: not one of {counted(len(mine), 'volume')} could be decoded; "
            f"{run.private / 'skipped.csv'} says why for each"
        )
    if unreadable:
        say(f"{counted(len(mine) - n_prepared, 'volume')} could not be decoded; private/skipped.csv says why")
    if copies:
        say(f"{counted(n_prepared - len(prepared), 'volume')} left out: the values of another of the same study")
    if spec.slices and len(prepared):
        n_kept, n_slices = int(prepared["slices"].map(len).sum()), int(prepared["store_shape"].str[0].sum())
        say(
            f"{n_kept:,} of {n_slices:,} {spec.slices} slices are kept; the others are empty, nearly the same as one "
            f"that is kept, or nearer to it than {spec.slice_step_mm:g} mm"
        )
    domains = _domains(prepared, spec)
    if len(domains) > 1:
        largest = max(domains.values())
        say(f"{len(domains)} domains by {', '.join(spec.domains)}; the largest has {counted(largest, 'volume')}")
    run.write_json("scan.json", summarise(prepared, skipped) | {"domains": domains})
    run.write_frame("private/manifest.parquet", prepared)
    return prepared, skipped, spec, store


def fitted(
    config: ReadingConfig, manifest: pd.DataFrame, spec: DataSpec, fix: str = "Choose another --spec"
) -> tuple[pd.DataFrame, DataSpec]:
    """The rows of a manifest that a spec accepts, and the spec with patch and spacing filled from them.

    Raises:
        DataError: it accepts none, which `fix` says what to do about; or one set is there in several sizes.
    """
    chosen = manifest[spec.accepts(manifest)]
    if chosen.empty:
        names = f", named as {spec.files} finds" if spec.files else ""
        raise DataError(
            f"no volume fits the spec {spec.name} ({' '.join(spec.modality)} {spec.volume_dims}D{names}); "
            f"{config.data} has {', '.join(sorted(set(kinds(manifest))))}. {fix}"
        )
    _refuse_sizes(config, chosen)
    if spec.patch is None or (spec.sizing == "spacing" and spec.spacing_mm is None):
        spec = spec.filled(chosen)
    return chosen, spec


def named_source(what: str, spec: DataSpec) -> list[str]:
    """What came from a public set, as sentences with its licence and citation; none for anybody's own data."""
    return cited(what, spec.name, spec.licence, spec.citation)


def cited(what: str, name: str, licence: str, citation: str) -> list[str]:
    """As `named_source`, of a spec that is not at hand."""
    return [f"{what}: {name}; licence: {licence}. Cite: {citation}"] if citation else []


def check_stock(rows: pd.DataFrame, spec: DataSpec, store: Store, data: Path | None) -> None:
    """Make sure that the store holds these volumes whole; those that it does not are prepared again from `data`.

    Raises:
        DataError: some are missing or damaged, and `data` does not hold what they were made of.
    """
    bad = rows[[store.facts(key) is None for key in rows["store_key"]]]
    if bad.empty:
        return
    say(f"store {store.root}: {counted(len(bad), 'volume')} missing or damaged")
    if data is not None and data.is_dir():
        with writing(store.root, "--store"):
            again, _ = fill_store(bad, data, spec, store)
        if set(again["store_key"]) == set(bad["store_key"]):
            say(f"prepared again: {counted(len(again), 'volume')}")
            return
    raise DataError(
        f"store {store.root}: {len(bad):,} of {counted(len(rows), 'volume')} missing or damaged, and the scans that "
        "they were made of are gone or changed; run `medclr prepare` on the data again"
    )


def stocked(folder: Path) -> tuple[pd.DataFrame, DataSpec] | None:
    """The manifest and spec that an earlier `stock` left in a run folder; None where it did not finish."""
    path, spec = folder / "private" / "manifest.parquet", folder / "spec.yaml"
    if not (path.is_file() and spec.is_file()):
        return None
    manifest = pd.read_parquet(path)
    if "store_key" not in manifest:
        return None
    return manifest, parse_spec(yaml.safe_load(spec.read_text()), str(spec))


def _check_space(store: Store, need: int) -> None:
    """Say what the store will grow by; raise DataError where that does not fit the disk."""
    there = next(folder for folder in (store.root, *store.root.absolute().parents) if folder.exists())
    free = shutil.disk_usage(there).free
    if need > free:
        raise DataError(
            f"--store {store.root}: needs about {_sized(need)}, and {_sized(free)} are free there; free some, or name "
            "a folder on a larger disk with --store"
        )
    say(f"store {store.root}: about {_sized(need)} to write, {_sized(free)} free")


def _sized(n_bytes: int) -> str:
    return f"{n_bytes / 2**30:,.1f} GiB" if n_bytes >= 2**30 else f"{n_bytes / 2**20:,.1f} MiB"


def _refuse_sizes(config: ReadingConfig, chosen: pd.DataFrame) -> None:
    """MedMNIST comes in several sizes: an image in two would be two patients, and could be trained and tested on."""
    files = {item for source in chosen["source"] for item in source if item.endswith(".npz")}
    sizes = Counter(re.sub(r"(_\d+)?\.npz$", "", PurePosixPath(item).name) for item in files)
    if any(n > 1 for n in sizes.values()):
        raise DataError(
            f"--data {config.data}: {max(sizes.values())} .npz files hold one set in several sizes; leave one there"
        )


def _domains(manifest: pd.DataFrame, spec: DataSpec) -> dict[str, int]:
    """How many volumes each domain of the spec has, the largest first."""
    if not spec.domains:
        return {}
    names = zip(*(domain_names(manifest, column) for column in spec.domains), strict=True)
    return dict(Counter(map(", ".join, names)).most_common())


def _described(spec: DataSpec) -> str:
    size = " x ".join(map(str, spec.patch or ()))
    steps = " x ".join(f"{step:g}" for step in spec.spacing_mm or ())
    kind = f"{spec.slices} slices" if spec.slices else f"{spec.spatial_dims}D"
    return f"{kind}, patch {size}" + (f" at {steps} mm" if spec.sizing == "spacing" else "")
