"""From a label table to labelled volumes, patient-grouped splits and nested draws."""

import os
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import blake2b, sha256
from pathlib import Path, PurePosixPath
from typing import Any, Literal, NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import ArrayLike, NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.special import expit, log_softmax, softmax

from medclr.data.identity import Pseudonymiser
from medclr.data.image2d import label_arrays
from medclr.data.layout import TableLayout, translate
from medclr.data.manifest import DOMAINS
from medclr.errors import DataError, LeakageError, Unreadable, UsageError

# From the most specific key to the least.
KEYS = ("path", "series_uid", "study_uid", "patient_id")
SPLITS = ("train", "val", "test")
_SPLIT_FOLDERS = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
}
_PSEUDONYMS = {
    "series_uid": ("series", "series_key"),
    "study_uid": ("study", "study_key"),
    "patient_id": ("patient", "patient_key"),
}
# Of two values, one of these, or one that begins or ends as _WITHOUT says, is the class 0.
_NEGATIVE = {"0", "0.0", "false", "f", "no", "n", "negative", "neg", "-", "absent", "none", "normal", "no finding",
             "control", "healthy", "benign"}  # fmt: skip
_WITHOUT = re.compile(r"(no|not|non|without)[ _-].*|.*[^ ]-", re.IGNORECASE | re.DOTALL)
# What is written where the class is not known; the last only beside two classes or more.
_UNKNOWN = {"?", "unk", "u", "indeterminate", "equivocal", "not available",
            "na", "n/a", "nan", "null", "unknown", "not known", "uncertain", "unclear", "missing",
            "#n/a", "#na", "#value!", "#div/0!", "#ref!", "<na>", "."}  # fmt: skip
_UNKNOWN_OF_MANY = {"-"}
_UNKNOWN_CODES = {-1.0, -9.0, -99.0, 9.0, 99.0, 999.0}  # beside 0 and 1
_NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)(e[-+]?\d+)?", re.ASCII | re.IGNORECASE)
_AGE = re.compile(r"\d{3}[YMWD]", re.ASCII)  # as DICOM writes it
_DATE = re.compile(
    r"(\d{4}[-/.]\d\d?[-/.]\d\d?|\d\d?[-/.]\d\d?[-/.]\d{2,4})(?!\d).*|(19|20)\d{6}|\d\d?[- ][a-z]{3,9}[- ]\d{2,4}"
    r"|(19|20)\d\d[-/.]\d\d|\d\d?[-/.](19|20)\d\d|[a-z]{3,9}[- ](19|20)\d\d|[a-z]{3,9}\.? \d\d?,? \d{4}"
    r"|\d\d?:\d\d(:\d\d)?",
    re.ASCII | re.IGNORECASE,
)
MOST_CODES = 10  # whole numbers that may be classes though they begin neither at 0 nor at 1
MOST_CLASSES = 30  # a column of more values holds names, ids or measurements


@dataclass(frozen=True)
class Task:
    """What is to be told from a volume: one of two classes, one of several, or for each of several labels whether.

    Attributes:
        kind: which of these.
        columns: of the label table; several of a multi-label task, else one.
        classes: what the table calls the classes: (negative, positive), or all of several; of a multi-label task, what
            each column calls a positive.
    """

    kind: Literal["binary", "multiclass", "multilabel"]
    columns: tuple[str, ...]
    classes: tuple[str, ...]

    @property
    def outputs(self) -> tuple[str, ...]:
        """What each of the K logits is about: the positive class, each class, or each label."""
        return {"binary": self.classes[1:], "multiclass": self.classes, "multilabel": self.columns}[self.kind]

    @property
    def name(self) -> str:
        """The label columns, to be read."""
        return ", ".join(self.columns)

    def scores(self, logits: NDArray[np.floating]) -> NDArray[np.float64]:
        """What a classifier gives, (n, K), as what is ranked: of several classes their log-probabilities."""
        scores = np.asarray(logits, dtype=np.float64)
        return np.asarray(log_softmax(scores, axis=1)) if self.kind == "multiclass" else scores

    def probabilities(self, scores: NDArray[np.floating], temperature: float = 1.0) -> NDArray[np.float64]:
        """Logits (n, K) to probabilities (n, K): one for each label, or of several classes those that add up to 1."""
        logits = np.asarray(scores, dtype=np.float64) / temperature
        return np.asarray(softmax(logits, axis=1) if self.kind == "multiclass" else expit(logits))


class Unlabelled(NamedTuple):
    """Volumes without a label: manifest rows, and of each the columns of the label table that were asked for."""

    rows: pd.DataFrame
    groups: pd.DataFrame


@dataclass(frozen=True, eq=False)
class LabelTable:
    """Volumes that have a label.

    Attributes:
        rows: their manifest rows in the manifest's order, with `split` ("train", "val", "test").
        y: (n, K) of 0, 1 and, of a multi-label task, NaN where unknown; of several classes the one that it is has 1.
        task: what the K columns of `y` mean.
        groups: columns of the table that were asked for, as text, a row for each volume.
        key: the key column by which table and manifest were joined.
        split_source: the table's own split column, or the hash of each patient.
        unmatched_keys: raw keys in the table that match no volume; for `private/` only.
        rest: volumes without a label.
    """

    rows: pd.DataFrame
    y: NDArray[np.float64]
    task: Task
    groups: pd.DataFrame
    key: str
    split_source: Literal["table", "patient hash"]
    unmatched_keys: tuple[str, ...]
    rest: Unlabelled = field(default_factory=lambda: Unlabelled(pd.DataFrame(), pd.DataFrame()))

    def of(self, split: str) -> NDArray[np.intp]:
        """Positions in `rows` of one split, ascending."""
        return np.flatnonzero(self.rows["split"].to_numpy() == split)

    def without_copies(self) -> "LabelTable":
        """Without what a later split shows too, voxel for voxel: of train copies of val and test, of val of test."""
        pixels = [self.rows["pixel_hash"].to_numpy()[self.of(split)] for split in SPLITS]
        kept = [self.of(split) for split in SPLITS]
        for place in range(len(SPLITS) - 1):
            later = np.concatenate(pixels[place + 1 :])
            kept[place] = kept[place][~np.isin(pixels[place], later)]
        at = np.sort(np.concatenate(kept))
        rows, groups = (table.iloc[at].reset_index(drop=True) for table in (self.rows, self.groups))
        return replace(self, rows=rows, y=self.y[at], groups=groups)


def read_labels(
    path: Path,
    manifest: pd.DataFrame,
    pseudonymiser: Pseudonymiser,
    label: Sequence[str] = (),
    layout: TableLayout | None = None,
    groups: Sequence[str] = (),
) -> LabelTable:
    """Join a label table to the volumes of a manifest.

    Everything is read as text. The most specific key column present is used, and a study or a patient labels
    every volume under it. A blank label is unknown. Without a split column, or with one that is blank
    throughout, patients are split by `split_by_patient`.

    Args:
        path: .csv (UTF-8) or .parquet with one of the columns path, series_uid, study_uid, patient_id; the .npz of a
            MedMNIST set, for the labels in it; or the folder of scans, where its folders are named by their class.
        manifest: the volumes, under the same key as `pseudonymiser`.
        pseudonymiser: turns the table's keys into the manifest's.
        label: the label columns: one of two classes or more, or several of two; none is the only column that is no
            key, split, domain or group.
        layout: of a public set's own table: where the table has its key column, it is read by it.
        groups: columns by which results are to be broken down, such as sex and age.

    Raises:
        UsageError: no such column, or several that could be meant.
        DataError: no table, no match, conflicting rows, a single class, or what is no class.
        LeakageError: a patient in two splits.
    """
    table, task = check_labels(path, label, layout, groups)
    key, matches = _join(table, manifest, pseudonymiser, path, layout)
    values = [_one_value_each(table[table[column] != ""], column, key, matches, path) for column in task.columns]
    positions = sorted(set().union(*values))
    if not positions:
        raise DataError(f"{path.name}: no row with a {task.name!r} matches any of the {len(manifest):,} volumes")
    y = _matrix(task, values, positions)
    if not any(len(set(column[~np.isnan(column)])) == 2 for column in y.T):
        raise DataError(
            f"{path.name}: only one class of column {task.name!r} among the {len(positions):,} volumes that match; "
            "scan the volumes of the other, or label more"
        )
    of_volume = manifest["patient_key"].to_numpy()[positions]
    if task.kind == "multiclass" and all(len(set(of_volume[column == 1])) < 2 for column in y.T):
        raise DataError(
            f"{path.name}: no class of column {task.name!r} is of two patients; names or ids? Choose another with "
            "--label"
        )
    splits, split_source = _splits(table, key, matches, manifest, path)
    without = [position for position in positions if position not in splits]
    if without:
        raise DataError(
            f"{path.name}: {len(without):,} of {len(positions):,} labelled volumes have a blank split; "
            "fill it in, or leave the whole column blank to split by patient"
        )
    of_groups = {name: _one_value_each(table[table[name] != ""], name, key, matches, path) for name in groups}
    rest = np.setdiff1d(np.arange(len(manifest)), positions)
    rows, others = (manifest.iloc[at].reset_index(drop=True) for at in (positions, rest))
    rows["split"] = [splits[position] for position in positions]
    return LabelTable(
        rows=rows,
        y=y,
        task=task,
        groups=_groups(of_groups, positions),
        key=key,
        split_source=split_source,
        unmatched_keys=_unmatched(matches),
        rest=Unlabelled(others, _groups(of_groups, rest)),
    )


def read_keyed(path: Path, layout: TableLayout | None = None) -> pd.DataFrame:
    """A table's cells as text, once it is known to have a key column; raises as `read_labels` does."""
    table = _read_table(path)
    if layout is not None and layout.key in table.columns:
        return translate(table, layout, path.name)
    if not _keys_of(table, layout):
        spec = "" if layout is None else f" (the spec's own is {layout.key!r})"
        raise DataError(
            f"label table {path.name}: no key among its {len(table.columns)} columns; "
            f"name one of them {', '.join(KEYS[:-1])} or {KEYS[-1]}{spec}"
        )
    return table


def check_labels(
    path: Path, label: Sequence[str] = (), layout: TableLayout | None = None, groups: Sequence[str] = ()
) -> tuple[pd.DataFrame, Task]:
    """All that can be wrong with a label table before any volume is read; raises as `read_labels` does.

    Returns:
        All cells as text, and what they ask for.
    """
    table = read_keyed(path, layout)
    for name in groups:
        _check_group(table, name, path, layout)
    columns = _label_columns(table, path, label, layout, groups)
    blank = [column for column in columns if (table[column] == "").all()]
    if blank:
        raise DataError(
            f"{path.name}: column {blank[0]!r} is blank in all {len(table):,} rows; name another with --label"
        )
    classes = [_classes(table.loc[table[column] != "", column], path) for column in columns]
    if len(columns) == 1:
        return table, Task("binary" if len(classes[0]) == 2 else "multiclass", columns, classes[0])
    for column, found in zip(columns, classes, strict=True):
        if len(found) > 2:
            raise DataError(
                f"{path.name}: column {column!r} has {len(found)} classes; of several --label columns each must have "
                "two, and a blank where it is unknown"
            )
    return table, Task("multilabel", columns, tuple(found[1] for found in classes))


def other_columns(table: pd.DataFrame, label: Sequence[str], layout: TableLayout | None = None) -> tuple[str, ...]:
    """Those of `read_keyed` that are neither a key, nor the split, nor a label."""
    return tuple(name for name in table.columns if name not in (*KEYS, *_keys_of(table, layout), "split", *label))


def labels_hash(path: Path) -> str:
    """16 hexadecimal digits of what a label table, or a folder of classes, holds."""
    content = _read_folder(path).to_csv().encode("utf-8", "surrogateescape") if path.is_dir() else path.read_bytes()
    return blake2b(content, digest_size=8).hexdigest()


def name_patients(
    path: Path, manifest: pd.DataFrame, pseudonymiser: Pseudonymiser, layout: TableLayout | None = None
) -> pd.DataFrame:
    """The manifest, with the patients that a table names.

    A table with a patient_id column beside a more specific key says which volumes are of one patient. Where a file
    names its patient itself, that name stays, but names that the table gives to one patient become one: archives in
    which each study has a PatientID of its own. A column `file_patient_key` then keeps the names in the files: an
    encoder that saw a patient by one of them has seen this patient.

    Args:
        path: the label table.
        manifest: the volumes, under the same key as `pseudonymiser`.
        pseudonymiser: turns the table's keys into the manifest's.
        layout: of a public set's own table, as for `read_labels`.

    Raises:
        DataError: no table, no match, or two patients for one volume.
    """
    table = read_keyed(path, layout)
    key, matches = _join(table, manifest, pseudonymiser, path, layout)
    if key == "patient_id" or "patient_id" not in table.columns:
        return manifest
    named = _one_value_each(table[table["patient_id"] != ""], "patient_id", key, matches, path)
    at = np.array([*named], dtype=np.intp)
    told = np.array([pseudonymiser.pseudonym("patient", raw) for raw in named.values()], dtype=object)
    filed = manifest["patient_key"].to_numpy(dtype=object)
    known = manifest["patient_known"].to_numpy(dtype=bool)
    one = _as_one(filed[at[known[at]]], told[known[at]])
    patients = np.where(known, [one.get(name, name) for name in filed], filed)
    merged = bool((patients != filed).any())
    patients[at[~known[at]]] = [one.get(name, name) for name in told[~known[at]]]
    manifest = manifest.assign(patient_key=patients)
    manifest.loc[manifest.index[at], "patient_known"] = True
    return manifest.assign(file_patient_key=np.where(known, filed, patients)) if merged else manifest


def _as_one(filed: NDArray[np.object_], told: NDArray[np.object_]) -> dict[str, str]:
    """From each of a patient's names to the one that stands for all: the first in order of those in the files.

    Args:
        filed, told: (n,) pseudonyms of the same volumes' patients, in the files and in a table.
    """
    if not len(filed):
        return {}
    codes, names = pd.factorize(np.concatenate([filed, told]))
    left, right = np.split(codes, 2)
    graph = coo_array((np.ones(len(left)), (left, right)), shape=(len(names), len(names)))
    _, patient = connected_components(graph, directed=False)
    first = pd.Series(filed).groupby(patient[left]).min()
    return dict(zip(names, first.loc[patient], strict=True))


class Holdout(NamedTuple):
    """Patients that pre-training must not see (pseudonyms); the key, and its raw values that match no volume."""

    patients: set[str]
    key: str
    unmatched_keys: tuple[str, ...]

    def volumes(self, manifest: pd.DataFrame) -> NDArray[np.bool_]:
        """Which volumes of a manifest are theirs, or have the very same pixels as one of theirs."""
        theirs = manifest["patient_key"].isin(self.patients)
        return np.asarray(theirs | manifest["pixel_hash"].isin(set(manifest["pixel_hash"][theirs])))


def held_out(
    path: Path, manifest: pd.DataFrame, pseudonymiser: Pseudonymiser, layout: TableLayout | None = None
) -> Holdout:
    """Patients that pre-training must not see: those of the table whose split is val or test.

    The splits are those of `read_labels`, but no label column is needed. Patients whom the table does not
    mention, or whose split it leaves blank while giving others one, are not held out.

    Args:
        path: the label table.
        manifest: the volumes, under the same key as `pseudonymiser`.
        pseudonymiser: turns the table's keys into the manifest's.
        layout: of a public set's own table, as for `read_labels`.

    Raises:
        DataError: no table, no match, or conflicting rows.
        LeakageError: a patient in two splits.
    """
    table = read_keyed(path, layout)
    key, matches = _join(table, manifest, pseudonymiser, path, layout)
    splits, _ = _splits(table, key, matches, manifest, path)
    patients = manifest["patient_key"].to_numpy()
    held = {str(patients[position]) for position, split in splits.items() if split != "train"}
    return Holdout(held, key, _unmatched(matches))


def unmatched_frame(key: str, unmatched_keys: Sequence[str], unlabelled: pd.DataFrame) -> pd.DataFrame:
    """What has no counterpart, one row each: raw keys without a volume, volumes without a label by their first file.

    Raw keys and paths: for `private/` only.
    """
    files = [source[0] for source in unlabelled["source"]]
    return pd.DataFrame(
        {
            "without": ["volume"] * len(unmatched_keys) + ["label"] * len(files),
            "by": [key] * len(unmatched_keys) + ["path"] * len(files),
            "value": [*unmatched_keys, *files],
        }
    )


def split_by_patient(patient_key: str) -> str:
    """The split of a patient where the table gives none: 20% test, 10% val, 70% train, the same for every command.

    Args:
        patient_key: the patient's pseudonym.
    """
    share = int.from_bytes(sha256(f"split\0{patient_key}".encode()).digest()[:8], "big") / 2**64
    return "test" if share < 0.2 else "val" if share < 0.3 else "train"


def nested_draws(
    y: ArrayLike, patients: Sequence[str] | NDArray[Any], fractions: Sequence[float], n_draws: int, seed: int
) -> dict[tuple[float, int], NDArray[np.intp]]:
    """Random subsets of the labelled patients, the smaller within the larger.

    Patients are drawn whole and stratified: by whether they have any positive; of several classes or labels, by the
    rarest that they have. Each stratum gives at least one, and every draw has a positive and a negative of each
    column wherever the data has them.

    Args:
        y: (n,) or (n, K) of 0, 1 and NaN (unknown).
        patients: (n,) patient of each label.
        fractions: shares of the patients, above 0 and at most 1.
        n_draws: draws a fraction.
        seed: of all draws; a draw does not depend on how many others there are.

    Returns:
        ascending positions into `y`, by (fraction, draw). The sizes of a fraction's draws are equal in patients, unless
        it is so small that a draw needs one more to have all classes.
    """
    y = np.asarray(y, dtype=np.float64)
    y = y.reshape(len(y), -1)
    names, of_row = np.unique(np.asarray(patients), return_inverse=True)
    has, lacks = np.zeros((2, len(names), y.shape[1]), dtype=bool)
    np.logical_or.at(has, of_row, y == 1)
    np.logical_or.at(lacks, of_row, y == 0)
    rarest_first = np.argsort(has.sum(axis=0), kind="stable")
    stratum = np.where(has.any(axis=1), has[:, rarest_first].argmax(axis=1), y.shape[1])
    needed = [column for column in np.hstack([has[:, rarest_first], lacks]).T if column.any()]
    draws: dict[tuple[float, int], NDArray[np.intp]] = {}
    for draw in range(n_draws):
        rng = np.random.default_rng([seed, draw])
        orders = [rng.permutation(np.flatnonzero(stratum == one)) for one in range(y.shape[1] + 1)]
        if y.shape[1] == 1 and not len(orders[1]) and lacks.any():
            # Negatives exist only beside positives: a patient with both goes first, so that every draw has one.
            first = np.argmax(lacks[orders[0], 0])
            orders[0] = np.concatenate([orders[0][[first]], np.delete(orders[0], first)])
        # One queue, in which each stratum is spread evenly from the very front: whatever is cut off its front is
        # stratified and begins with one of each, and the shorter lies within the longer.
        places = [np.arange(len(order)) / max(len(order), 1) for order in orders]
        queue = np.concatenate(orders)[np.argsort(np.concatenate(places), kind="stable")]
        front = list(queue[: sum(len(order) > 0 for order in orders)])
        for those in needed:
            # A label may be had only by patients who have a rarer one too, and by none of these at the front.
            if not those[front].any():
                front.append(queue[np.argmax(those[queue])])
        queue = np.concatenate([front, queue[~np.isin(queue, front)]])
        for fraction in fractions:
            taken = queue[: max(len(front), round(fraction * len(names)))]
            draws[float(fraction), draw] = np.flatnonzero(np.isin(of_row, taken))
    return draws


def _read_table(path: Path) -> pd.DataFrame:
    """All cells as stripped text, "" where missing. The index counts rows as a spreadsheet does: the header is 1."""
    suffix = "folder" if path.is_dir() else path.suffix.lower()
    if not path.exists():
        raise UsageError(f"label table {path}: no such file")
    readers = {".csv": _read_csv, ".parquet": _read_parquet, ".npz": _read_npz, "folder": _read_folder}
    if suffix not in readers:
        raise UsageError(f"label table {path.name}: must be .csv or .parquet; export it as one of them")
    try:
        table = readers[suffix](path)
    except OSError as error:
        # pyarrow's errors about what it reads have no strerror.
        reason = error.strerror or "damaged; write it again"
        raise DataError(f"label table {path.name}: {reason}") from None
    # Past an unclosed quote the header swallows rows, and a column name, which messages show, would hold their values.
    if any(not name.isprintable() for name in table.columns):
        raise DataError(f"label table {path.name}: a column name has control characters; check the header's quotes")
    # pandas and R write their row numbers as a column without a name.
    table = table.loc[:, [name != "" and not name.startswith("__index_level_") for name in table.columns]]
    twice = sorted(set(table.columns[table.columns.duplicated()]))
    if twice:
        raise DataError(f"label table {path.name}: column {twice[0]!r} appears more than once; rename or drop one")
    table = table[(table != "").any(axis=1)]
    if table.empty:
        raise DataError(f"label table {path.name}: no rows below the header")
    return table


def _read_csv(path: Path) -> pd.DataFrame:
    try:
        # Without a header pandas counts the fields of every row against the first; with one it drops surplus fields.
        cells = pd.read_csv(
            path,
            header=None,
            dtype=str,
            keep_default_na=False,
            encoding="utf-8",
            skipinitialspace=True,
            skip_blank_lines=False,
        )
    except pd.errors.EmptyDataError:
        raise DataError(f"label table {path.name}: empty file") from None
    except UnicodeDecodeError as error:
        raise DataError(f"label table {path.name}: byte {error.start:,} is not UTF-8; save it as 'CSV UTF-8'") from None
    except pd.errors.ParserError as error:
        reason = str(error).removeprefix("Error tokenizing data. C error: ").splitlines()[0]
        raise DataError(f"label table {path.name}: malformed CSV ({reason}); check quotes and commas there") from None
    # Short rows come back with NaN even so.
    cells = cells.fillna("").map(str.strip)
    header, table = cells.iloc[0].tolist(), cells.iloc[1:]
    if len(header) == 1 and any(mark in header[0] for mark in ";\t|"):
        raise DataError(f"label table {path.name}: one column only; separate the fields with commas")
    table.columns = pd.Index(header, dtype=object)
    table.index = pd.RangeIndex(2, 2 + len(table))
    return table


def _read_parquet(path: Path) -> pd.DataFrame:
    try:
        with pq.ParquetFile(path) as file:
            arrow = file.read()
        columns = [[_text(value) for value in column.to_pylist()] for column in arrow.columns]
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, UnicodeDecodeError, OverflowError):
        raise DataError(f"label table {path.name}: not a parquet file, or a damaged one; write it again") from None
    index = pd.RangeIndex(2, 2 + arrow.num_rows)
    table = pd.DataFrame(dict(enumerate(columns)), index=index, dtype=object)
    table.columns = pd.Index([name.strip() for name in arrow.column_names], dtype=object)
    return table


def _read_npz(path: Path) -> pd.DataFrame:
    """The labels of a MedMNIST archive: series_uid as its images are called, split, and label, its ones joined by |."""
    rows: list[tuple[str, str, str]] = []
    try:
        for split, labels in label_arrays(path).items():
            lists = labels.reshape(len(labels), -1)
            several = lists.shape[1] > 1
            for index, values in enumerate(lists.tolist()):
                ones = [str(place) for place, value in enumerate(values) if value] or ["none"]
                rows.append((f"{path.name}#{split}/{index}", split, "|".join(ones) if several else str(values[0])))
    except Unreadable as error:
        raise DataError(f"label table {path.name}: {error}") from None
    table = pd.DataFrame(rows, columns=["series_uid", "split", "label"], dtype=object)
    table.index = pd.RangeIndex(2, 2 + len(table))
    return table


def _read_folder(path: Path) -> pd.DataFrame:
    """A folder for each class, perhaps within one for each split, as train/sick/1.png: path, split and label."""
    rows: list[tuple[str, str, str]] = []
    for folder, below, files in os.walk(path):
        below.sort()
        *above, label = Path(folder).relative_to(path).parts or ("",)
        if label and not (label.lower() in _SPLIT_FOLDERS and not above):
            split = _SPLIT_FOLDERS.get(above[0].lower(), "") if above else ""
            rows += [(str(PurePosixPath(*above, label, file)), split, label) for file in sorted(files)]
    if not rows:
        raise DataError(f"labels {path.name}: a folder without folders named by their class")
    table = pd.DataFrame(rows, columns=["path", "split", "label"], dtype=object)
    table.index = pd.RangeIndex(2, 2 + len(table))
    return table


def _text(value: Any) -> str:
    if value is None or value != value:
        return ""
    # A column of integers with a gap comes as floats.
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value).strip()


def _keys_of(table: pd.DataFrame, layout: TableLayout | None) -> list[str]:
    # Only a spec's pattern says what of a path such a column holds.
    keys = ("file", *KEYS) if layout is not None and layout.pattern else KEYS
    return [key for key in keys if key in table.columns]


def _join(
    table: pd.DataFrame,
    manifest: pd.DataFrame,
    pseudonymiser: Pseudonymiser,
    path: Path,
    layout: TableLayout | None,
) -> tuple[str, dict[str, list[int]]]:
    """The most specific key column of which any value matches a volume, and where each of its values matches."""
    tried = []
    for key in _keys_of(table, layout):
        matches = _match(table, key, manifest, pseudonymiser, layout)
        if any(matches.values()):
            return key, matches
        tried.append(f"{len(matches):,} {key} values")
    raise DataError(
        f"{path.name}: none of {' or '.join(tried)} matches the {len(manifest):,} volumes; "
        "were they scanned with another --key-file, or is another column the key?"
    )


def _groups(of_groups: Mapping[str, Mapping[int, str]], positions: Iterable[int]) -> pd.DataFrame:
    """Columns of the table for these positions of the manifest, "" where it has none."""
    at = list(positions)
    columns = {name: [found.get(each, "") for each in at] for name, found in of_groups.items()}
    return pd.DataFrame(columns, index=range(len(at)))


def _unmatched(matches: dict[str, list[int]]) -> tuple[str, ...]:
    return tuple(value for value, found in matches.items() if not found)


def _label_columns(
    table: pd.DataFrame, path: Path, label: Sequence[str], layout: TableLayout | None, groups: Sequence[str]
) -> tuple[str, ...]:
    others = (*KEYS, *_keys_of(table, layout), "split", *DOMAINS, *groups)
    candidates = [name for name in table.columns if name not in others]
    for name in label:
        if name not in table.columns:
            found = f"it has {', '.join(candidates)}" if candidates else "it has no label column"
            raise UsageError(f"--label {name}: no such column in {path.name}; {found}")
        if label.count(name) > 1:
            raise UsageError(f"--label {name}: named twice")
    if label:
        return tuple(label)
    if not candidates:
        raise UsageError(f"label table {path.name}: only keys, split and domains; add a label column")
    if len(candidates) > 1:
        raise UsageError(
            f"label table {path.name}: {len(candidates)} columns may be the label; "
            f"choose one or several with --label: {', '.join(candidates)}"
        )
    return (candidates[0],)


def _classes(labels: pd.Series, path: Path) -> tuple[str, ...]:
    """The classes of a column; of two, the negative one first."""
    values = sorted(labels.unique(), key=_natural)
    where = f"{path.name}: column {labels.name!r}"
    if any(map(_is_date, values)) or _are_measurements(values):
        what = "dates" if any(map(_is_date, values)) else "measurements"
        raise DataError(f"{where} holds {what}, not classes; put them into classes, or choose another with --label")
    # A column with about as many values as rows may hold names or ids, which no message may show.
    shown = f": {', '.join(values)}" if len(values) <= min(10, len(labels) // 3) else ""
    if len({_natural(value)[:2] for value in values}) < len(values):
        raise DataError(
            f"{where} spells a class in several ways that differ in capitals or digits only{shown}; make them one"
        )
    if len(values) == 1:
        raise DataError(f"{where} has a single class in all {len(labels):,} labelled rows{shown}; two are needed")
    if unknown := _unknown(values):
        raise DataError(
            f"{where} has {unknown[0]!r} beside its classes; blank it where it means unknown, or give it another name"
        )
    if len(values) > min(MOST_CLASSES, max(2, len(labels) // 3)):
        raise DataError(
            f"{where} has {len(values):,} classes in {len(labels):,} labelled rows{shown}; names or numbers? Choose "
            "another with --label, or blank the rows of those that are not wanted"
        )
    if [_is_negative(value) for value in values] == [False, True]:
        values.reverse()
    return tuple(values)


def _is_negative(value: str) -> bool:
    return value.casefold() in _NEGATIVE or re.fullmatch(_WITHOUT, value) is not None


def _unknown(values: Sequence[str]) -> list[str]:
    """Those that stand for a class that is not known."""
    words = _UNKNOWN | (_UNKNOWN_OF_MANY if len(values) > 2 else set())
    numbers = {float(value): value for value in values if re.fullmatch(_NUMBER, value)}
    codes = _UNKNOWN_CODES & set(numbers) if {0.0, 1.0} <= set(numbers) and len(values) == 3 else set()
    return [value for value in values if value.casefold() in words or value in {numbers[code] for code in codes}]


def _natural(value: str) -> tuple[float, str, str]:
    """Numbers by size, before texts; of two values, those that differ in the last alone are the same."""
    if re.fullmatch(_NUMBER, value):
        return float(value), "", value
    return np.inf, value.casefold(), value


def _is_date(value: str) -> bool:
    return re.fullmatch(_DATE, value) is not None


def _are_measurements(values: Sequence[str]) -> bool:
    """Any with decimals, any beside a limit such as <10, or more whole numbers than codes have, as ages and years."""
    points = [value.replace(",", ".") for value in values]
    numbers = [float(value) for value in points if re.fullmatch(_NUMBER, value)]
    if not all(number.is_integer() for number in numbers):
        return True
    limits = any(re.fullmatch(r"[<>≤≥]=? ?\d+", value) for value in values)
    return bool(numbers and limits) or (len(numbers) == len(values) > MOST_CODES and min(numbers) > 1)


def _check_group(table: pd.DataFrame, name: str, path: Path, layout: TableLayout | None) -> None:
    """Raise UsageError where results cannot be broken down by this column, or would show who the patients are."""
    if name not in table.columns:
        raise UsageError(f"{path.name}: no column {name!r} to tell groups apart by; it has {', '.join(table.columns)}")
    if name in (*KEYS, *_keys_of(table, layout)):
        raise UsageError(
            f"{path.name}: column {name!r} names patients or files, not groups; choose columns such as sex or age"
        )
    values = [value for value in table[name].unique() if value != ""]
    numbers = all(re.fullmatch(_NUMBER, value) or re.fullmatch(_AGE, value) for value in values)
    if any(map(_is_date, values)) or (len(values) > MOST_CLASSES and not numbers):
        raise UsageError(
            f"{path.name}: column {name!r} has {len(values):,} different texts, or dates; put them into at most "
            f"{MOST_CLASSES} groups"
        )
    people = table.groupby(name)["patient_id" if "patient_id" in table else name].nunique()
    if "patient_id" in table and not numbers and len(values) > 2 and people.drop("", errors="ignore").median() <= 1:
        raise UsageError(
            f"{path.name}: column {name!r}: most of its {len(values)} values are of one patient each, and may name them"
        )


def _matrix(task: Task, values: Sequence[dict[int, str]], positions: Sequence[int]) -> NDArray[np.float64]:
    """`LabelTable.y` of the volumes at these positions."""
    if task.kind != "multilabel":
        places = np.array([task.classes.index(values[0][position]) for position in positions])
        one_hot = np.asarray(places[:, None] == np.arange(len(task.classes)), dtype=np.float64)
        return one_hot[:, 1:] if task.kind == "binary" else one_hot
    y = np.full((len(positions), len(values)), np.nan)
    for column, (positive, found) in enumerate(zip(task.classes, values, strict=True)):
        y[:, column] = [float(found[at] == positive) if at in found else np.nan for at in positions]
    return y


def _match(
    table: pd.DataFrame,
    key: str,
    manifest: pd.DataFrame,
    pseudonymiser: Pseudonymiser,
    layout: TableLayout | None,
) -> dict[str, list[int]]:
    """Manifest positions under each key of the table, in the table's order; an empty list where there is none."""
    positions: dict[str, list[int]] = defaultdict(list)
    if key == "file":
        assert layout is not None
        for position, source in enumerate(manifest["source"]):
            for name in {name for file in source if (name := layout.named(file)) is not None}:
                positions[name].append(position)
    elif key == "path":
        for position, source in enumerate(manifest["source"]):
            for name in {name for file in source for name in (file, str(PurePosixPath(file).parent))}:
                positions[name].append(position)
    else:
        kind, column = _PSEUDONYMS[key]
        for position, pseudonym in enumerate(manifest[column]):
            positions[pseudonym].append(position)

    def name_of(raw: str) -> str:
        if key == "file":
            return (layout and layout.named(raw)) or raw
        return str(PurePosixPath(raw.replace("\\", "/"))) if key == "path" else pseudonymiser.pseudonym(kind, raw)

    return {raw: positions.get(name_of(raw), []) for raw in table[key].unique() if raw != ""}


def _one_value_each(
    rows: pd.DataFrame, column: str, key: str, matches: dict[str, list[int]], path: Path
) -> dict[int, str]:
    """The one value of `column` for each manifest position that has any."""
    blank = rows.index[rows[key] == ""]
    if len(blank):
        raise DataError(
            f"{path.name}: {len(blank):,} rows have a {column} but no {key} (first: row {blank[0]}); "
            "fill it in, or delete them"
        )
    found: dict[int, tuple[str, int]] = {}
    for row, raw, value in zip(rows.index, rows[key], rows[column], strict=True):
        for position in matches[raw]:
            earlier, earlier_row = found.setdefault(position, (value, row))
            if earlier != value:
                raise DataError(
                    f"{path.name}: rows {earlier_row} and {row} give one volume two values of {column!r}; drop one"
                )
    return {position: value for position, (value, _) in found.items()}


def _splits(
    table: pd.DataFrame,
    key: str,
    matches: dict[str, list[int]],
    manifest: pd.DataFrame,
    path: Path,
) -> tuple[dict[int, str], Literal["table", "patient hash"]]:
    """The split of each manifest position that the table mentions and gives one, and where it comes from."""
    patients = manifest["patient_key"].to_numpy()
    # Over the whole table, labelled or not, so that pre-training and fine-tuning never disagree.
    if near := [name for name in table.columns if name != "split" and name.strip().casefold() == "split"]:
        raise DataError(f"{path.name}: column {near[0]!r} is not read as the split; call it 'split'")
    if "split" not in table.columns or (table["split"] == "").all():
        mentioned = {position for found in matches.values() for position in found}
        return {position: split_by_patient(str(patients[position])) for position in mentioned}, "patient hash"
    given = table[table["split"] != ""].assign(split=table["split"].str.lower())
    wrong = given.index[~given["split"].isin(SPLITS)]
    if len(wrong):
        raise DataError(
            f"{path.name}: {len(wrong):,} rows have a split other than train, val or test (first: row {wrong[0]})"
        )
    splits = _one_value_each(given, "split", key, matches, path)
    of_patient: dict[str, set[str]] = defaultdict(set)
    for position, split in splits.items():
        of_patient[str(patients[position])].add(split)
    torn = sorted(patient for patient, its in of_patient.items() if len(its) > 1)
    if torn:
        raise LeakageError(
            f"{path.name}: {len(torn):,} of {len(of_patient):,} patients are in more than one split "
            f"(pseudonym{'s' if len(torn) > 1 else ''} {', '.join(torn[:3])}{', …' if len(torn) > 3 else ''}); "
            "give each patient one, or leave the column blank to split by patient"
        )
    return splits, "table"
