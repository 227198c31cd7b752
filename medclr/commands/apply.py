"""A network over volumes that nobody labelled, part by part: what `medclr predict` and `medclr embed` share."""

import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from io import BytesIO
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from medclr.commands.prepare import check_stock, stock, stocked
from medclr.config import ReadingConfig, StoreConfig
from medclr.data.candidate import Skipped
from medclr.data.loader import default_workers
from medclr.data.manifest import read_skipped
from medclr.data.spec import DataSpec
from medclr.data.store import Store
from medclr.reporting.console import counted, progress, say
from medclr.reporting.run import Run

PART = 512  # volumes whose outputs a kill may cost


@dataclass(frozen=True)
class Volumes:
    """What a network is applied to.

    Attributes:
        rows: of the manifest; spec, store: how and where to read them.
        skipped: files of which there is no volume.
        keys: the table that leads pseudonyms back.
    """

    rows: pd.DataFrame
    spec: DataSpec
    store: Store
    skipped: list[Skipped]
    keys: Path


def new_volumes(
    config: ReadingConfig, run: Run, spec: DataSpec, root: Path | None, key_file: Path | None, what: str
) -> Volumes:
    """The volumes of --data, prepared as a network asks, or as the interrupted run has left them.

    Args:
        config: what to read, and how.
        run: as for `stock`.
        spec: of the network.
        root: of the store; None is beside the run.
        key_file: of the pseudonyms.
        what: "classifier" or "encoder", for messages.
    """
    kept = stocked(run.folder) if run.resumed else None
    if kept:
        store = Store(root or run.folder.parent / "store")
        check_stock(kept[0], spec, store, config.data)
        return Volumes(kept[0], kept[1], store, read_skipped(run.private / "skipped.csv"), run.private / "keys.csv")
    given = {f.name: getattr(config, f.name) for f in fields(ReadingConfig)}
    reading = StoreConfig(**given | {"store": root, "key_file": key_file})
    fix = f"The {what} asks for it: use another --{what}"
    rows, skipped, spec, store = stock(reading, run, spec, fix=fix)
    if others := Counter(item.message for item in skipped if item.reason == "OTHER_KIND"):
        kinds = ", ".join(f"{kind} ({counted(n, 'file')})" for kind, n in others.most_common())
        own = ", ".join(name for name in spec.modality if name) or "any modality"
        say(f"warning: left out {kinds}; the {what} is for {own} {spec.volume_dims}D")
    return Volumes(rows, spec, store, skipped, run.private / "keys.csv")


def in_parts(
    run: Run, volumes: Volumes, outputs: Callable[[pd.DataFrame, int], NDArray[np.float32]], label: str
) -> Iterator[tuple[pd.DataFrame, NDArray[np.float32]]]:
    """The outputs of a network, some volumes at a time; those that an interrupted run has kept are not made again.

    Args:
        run: keeps them in parts/.
        volumes: what it is applied to.
        outputs: from rows and a number of loader processes to an array with a row for each.
        label: of the progress.
    """
    n, workers = len(volumes.rows), default_workers(volumes.spec, os.cpu_count() or 1)
    with progress(label) as show:
        for start in range(0, n, PART):
            rows = volumes.rows.iloc[start : start + PART].reset_index(drop=True)
            name = f"parts/{start:09d}.npy"
            if not (run.folder / name).is_file():
                content = BytesIO()
                np.save(content, outputs(rows, workers), allow_pickle=False)
                run.write_bytes(name, content.getvalue())
            show(min(start + PART, n), n)
            yield rows, np.load(run.folder / name, allow_pickle=False)


def forget_parts(run: Run) -> None:
    """Once the run is complete, its table holds what they did."""
    shutil.rmtree(run.folder / "parts", ignore_errors=True)


def traced(volumes: Volumes) -> pd.DataFrame:
    """Which files each volume is made of, and the raw ids behind its pseudonyms: for `private/`."""
    keys = pd.read_csv(volumes.keys, dtype=str, keep_default_na=False)
    raw = keys.set_index(["kind", "pseudonym"])["raw"].to_dict()
    rows = volumes.rows
    ids = {kind: [raw.get((kind, key), "") for key in rows[f"{kind}_key"]] for kind in ("patient", "study", "series")}
    return pd.DataFrame(
        {
            "volume_id": rows["volume_id"],
            "path": [source[0] for source in rows["source"]],
            "n_files": rows["n_files"],
            "member": rows["member"],
            "patient_id": ids["patient"],
            "study_uid": ids["study"],
            "series_uid": ids["series"],
        }
    )
