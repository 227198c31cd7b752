"""What commands share that compare domains: the volumes of one archive or two, and what tells them apart."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from medclr.commands.finetune import break_down, check_task, find_volumes, join_labels, label_layout
from medclr.commands.prepare import check_stock
from medclr.config import LabelledConfig
from medclr.data.identity import load_key
from medclr.data.labels import LabelTable, Task, Unlabelled, other_columns, read_keyed
from medclr.data.manifest import DOMAINS
from medclr.data.spec import DataSpec
from medclr.data.store import Store
from medclr.errors import DataError, UsageError
from medclr.evaluation.subgroups import MOST_GROUPS, quartile_bands
from medclr.reporting.console import counted
from medclr.reporting.numbers import listed
from medclr.reporting.run import Run, read_paths

ARCHIVE, HOME, NEW = "archive", "home", "new"
SIZE = "image size"


@dataclass(frozen=True, eq=False)
class Part:
    """The volumes of one archive.

    name: HOME, of the network's own, or NEW; table: its labels; store, spec: where and how to read them; scans: what
    the volumes were prepared from, where that is known; fingerprint: of the key of its pseudonyms; start: of its rows
    among those of all parts; columns: that its label table has beside keys, split and labels.
    """

    name: str
    table: LabelTable
    store: Store
    spec: DataSpec
    scans: Path | None
    fingerprint: str
    start: int = 0
    columns: tuple[str, ...] = ()

    @cached_property
    def every(self) -> LabelTable:
        """The table, with the volumes that have no label after those that have one, their y NaN."""
        table, rest = self.table, self.table.rest
        return replace(
            table,
            rows=pd.concat([table.rows, rest.rows], ignore_index=True),
            y=np.concatenate([table.y, np.full((len(rest.rows), table.y.shape[1]), np.nan)]),
            groups=pd.concat([table.groups, rest.groups], ignore_index=True),
        )

    def check_stock(self, at: NDArray[np.intp]) -> None:
        """Raise DataError where the store lacks a volume of these positions in `every`."""
        check_stock(self.every.rows.iloc[at], self.spec, self.store, self.scans)


def labelled_part(
    config: LabelledConfig,
    run: Run,
    name: str,
    labels: Path,
    source: Path,
    spec: DataSpec,
    columns: Sequence[str],
    task: tuple[Task, str] | None = None,
    start: int = 0,
) -> Part:
    """The volumes of --data, or of the run `source` that a network is from, with their labels.

    Args:
        spec: of the network.
        columns: to keep, of those that the label table has.
        task: what the labels have to mean, and who says so in a message; None if they may mean anything.
        start: of its rows among those of all parts.
    """
    layout = label_layout(config, spec)
    cells = read_keyed(labels, layout)
    own, store, manifest = find_volumes(config, run, spec, source)
    names = load_key(config.key_file)
    _, table = join_labels(labels, config, run, manifest, names, spec, [one for one in columns if one in cells])
    if task is not None:
        check_task(labels, table.task, *task)
    scans, others = config.data or read_paths(source).get("data"), other_columns(cells, table.task.columns, layout)
    return Part(name, table, store, own, scans, names.fingerprint, start, others)


def unlabelled_part(config: LabelledConfig, run: Run, name: str, source: Path, spec: DataSpec, task: Task) -> Part:
    """The volumes of --data, of which no label is known. task: what labels would mean; source, spec: of a network."""
    own, store, manifest = find_volumes(config, run, spec, source)
    rest = Unlabelled(manifest, pd.DataFrame(index=manifest.index))
    y = np.empty((0, len(task.outputs)))
    table = LabelTable(manifest.iloc[:0], y, task, pd.DataFrame(), "", "patient hash", (), rest)
    scans = config.data or read_paths(source).get("data")
    return Part(name, table, store, own, scans, load_key(config.key_file).fingerprint)


def refuse_same(home: Part, new: Part, flag: str, whose: str, fix: str) -> None:
    """Raise DataError where most volumes of the new archive are of the other. flag, whose, fix: for its message.

    Of an archive with labels, most of those that have one.
    """
    kind, rows = ("labelled volume", new.table.rows) if len(new.table.rows) else ("volume", new.every.rows)
    shared = int(rows["pixel_hash"].isin(home.table.rows["pixel_hash"]).sum())
    if 2 * shared > len(rows):
        raise DataError(f"{flag}: {shared:,} of its {counted(len(rows), kind)} are among those of {whose}; {fix}")


def joined(parts: Sequence[Part]) -> tuple[LabelTable, NDArray[np.object_]]:
    """All labelled volumes as one table, and the archive of each."""
    archive = np.concatenate([np.full(len(part.table.rows), part.name, dtype=object) for part in parts])
    table = replace(
        parts[0].table,
        rows=pd.concat([part.table.rows for part in parts], ignore_index=True),
        y=np.concatenate([part.table.y for part in parts]),
        groups=pd.concat([part.table.groups for part in parts], ignore_index=True).fillna(""),
    )
    return table, archive


def known_of(table: LabelTable, archive: NDArray[np.object_]) -> pd.DataFrame:
    """Everything by which domains may be told apart, or the label betrayed, as text."""
    rows, groups = table.rows, break_down(table)
    for name in DOMAINS:
        if name not in groups:  # as in `break_down`
            groups[name] = rows[name].to_numpy()
    if len(set(archive)) > 1:
        # Each archive has letters of its own.
        groups["site"] = [f"{name} {site}" if site else "" for name, site in zip(archive, groups["site"], strict=True)]
        groups[ARCHIVE] = archive
    sizes = [tuple(sorted(shape)) for shape in rows["shape"]]
    size = pd.Series([" × ".join(map(str, shape)) for shape in sizes])
    many = size.nunique() > MOST_GROUPS
    groups[SIZE] = quartile_bands(np.array([float(math.prod(shape)) for shape in sizes])) if many else size
    return groups.astype(str).replace({"nan": "", "unknown": ""})


def no_column(flag: str, parts: Sequence[Part], known: pd.DataFrame) -> UsageError:
    """That what a flag names is none of the columns of the label tables, nor `known`; it lists them all."""
    columns = listed(list(dict.fromkeys([name for part in parts for name in part.columns] + [*known])))
    return UsageError(f"{flag}: no such column in the labels or the manifest; there are {columns}")
