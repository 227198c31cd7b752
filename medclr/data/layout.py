"""How the label table that a public set comes with is laid out, so that it can be read as it is."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal

import pandas as pd

from medclr.errors import DataError, UsageError


@dataclass(frozen=True)
class TableLayout:
    """Which columns of a set's own label table say what.

    Attributes:
        key: column that names the volume.
        by: what that column holds: series_uid, study_uid or patient_id as in the files, or "file", a part of the path.
        pattern: with "file", a regular expression. What its group finds in the path of a file is the name of its
            volumes; so it is in a cell, and a cell in which it finds nothing is a name as it stands.
        patient: column that names the patient.
        patient_pattern: regular expression whose group is the patient, where the cell holds more than that.
        split: column that says train, val or test; `splits` turns the set's other words into these.
        labels: the labels by name. Without `column`, each is a column; with it, what each text of that column means,
            "" being unknown. Where there are two meanings, the second is the label. Empty: every other column.
        column: the one column that holds all labels.
        separator: between the texts of `column`, where a cell lists several; what is not listed is absent.
        values: without `column`, what the text of a cell means: "1", "0" or, if unknown, "". Empty: as it stands.
        several: what counts where the rows of one volume differ: "any" positive one, the "majority" (a tie is
            unknown), or "" for nothing: then it is an error.
    """

    key: str
    by: Literal["file", "series_uid", "study_uid", "patient_id"]
    pattern: str = ""
    patient: str = ""
    patient_pattern: str = ""
    split: str = ""
    splits: Mapping[str, str] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)
    column: str = ""
    separator: str = ""
    values: Mapping[str, str] = field(default_factory=dict)
    several: Literal["", "any", "majority"] = ""

    def named(self, text: str) -> str | None:
        """The name of a volume in a path or a cell; None where there is none."""
        found = re.search(self.pattern, text.replace("\\", "/"))
        return found.group(1) if found else None


def translate(table: pd.DataFrame, layout: TableLayout, name: str) -> pd.DataFrame:
    """A set's own table as one that `read_labels` joins: key, patient_id, split, and labels that are "1", "0" or "".

    Args:
        table: cells as text; it has the column `layout.key`.
        layout: of the table.
        name: of the file, for errors.

    Raises:
        DataError: a text whose meaning the layout does not know, or no label column.
    """
    ours = pd.DataFrame({layout.by: table[layout.key]}, index=table.index)
    if layout.by != "patient_id" and layout.patient in table.columns:
        patients = table[layout.patient]
        if layout.patient_pattern:
            patients = patients.str.extract(layout.patient_pattern, expand=False).fillna("")
        ours["patient_id"] = patients
    if layout.split in table.columns:
        ours["split"] = table[layout.split].str.lower().replace(dict(layout.splits))
    labels = _labels(table, layout, name)
    ours = pd.concat([ours, labels.drop(columns=ours.columns, errors="ignore")], axis=1)
    return _one_row_each(ours, layout, list(labels.columns)) if layout.several else ours


def parse_layout(content: Any, source: str) -> TableLayout:
    """Validate the table of keys and values that a spec gives as `table`; `source` names it in errors."""
    if not isinstance(content, dict):
        raise UsageError(f"{source}: table is {content!r}; it must be a table of keys and values")
    known = {f.name for f in fields(TableLayout)}
    if unknown := sorted(map(str, set(content) - known)):
        raise UsageError(f"{source}: unknown keys {', '.join(unknown)} in table; known are {', '.join(sorted(known))}")
    values: dict[str, Any] = dict(content)
    if isinstance(labels := values.get("labels"), list):
        values["labels"] = {label: label for label in labels}
    try:
        layout = TableLayout(**values)
    except TypeError as error:
        raise UsageError(f"{source}: table: {str(error).removeprefix('TableLayout.__init__() ')}") from None
    _check(layout, source)
    return layout


def _check(layout: TableLayout, source: str) -> None:
    for one in fields(TableLayout):
        value = getattr(layout, one.name)
        if one.name in ("splits", "labels", "values"):
            if not (isinstance(value, dict) and all(isinstance(x, str) for pair in value.items() for x in pair)):
                raise UsageError(f"{source}: table: {one.name} is {value!r}; it must map texts to texts; quote numbers")
        elif not isinstance(value, str):
            raise UsageError(f"{source}: table: {one.name} is {value!r}; it must be a text")
    choices = {"by": ("file", "series_uid", "study_uid", "patient_id"), "several": ("", "any", "majority")}
    for key, allowed in choices.items():
        if getattr(layout, key) not in allowed:
            raise UsageError(f"{source}: table: {key} is {getattr(layout, key)!r}; it must be one of {allowed}")
    if (layout.by == "file") != bool(layout.pattern):
        raise UsageError(f"{source}: table: pattern and by: file go together; give both or neither")
    for key in ("pattern", "patient_pattern"):
        try:
            groups = re.compile(getattr(layout, key)).groups
        except re.error as error:
            raise UsageError(f"{source}: table: {key} is no regular expression ({error})") from None
        if getattr(layout, key) and groups != 1:
            raise UsageError(f"{source}: table: {key} has {groups} groups; it must have one")
    if not set(layout.values.values()) <= {"0", "1", ""}:
        raise UsageError(f"{source}: table: values are {layout.values!r}; each must mean '1', '0' or ''")
    if layout.column and not layout.labels:
        raise UsageError(f"{source}: table: column {layout.column!r} without labels; name them")
    if layout.several and not (layout.column or layout.values):
        raise UsageError(f"{source}: table: several is {layout.several!r}, which needs column or values")


def _labels(table: pd.DataFrame, layout: TableLayout, name: str) -> pd.DataFrame:
    """The label columns."""
    if layout.column in table.columns:
        return _listed(table[layout.column], layout, name)
    if not layout.labels:
        return table.drop(columns=[layout.key, layout.patient, layout.split], errors="ignore")
    present = [label for label in layout.labels if label in table.columns]
    if not present:
        missing = layout.column or ", ".join(layout.labels)
        raise DataError(f"{name}: it has the key {layout.key!r} of the spec, but no label column ({missing})")
    if not layout.values:
        return table[present]
    return pd.DataFrame({label: _meanings(table[label], layout.values, name) for label in present}, index=table.index)


def _listed(cells: "pd.Series[str]", layout: TableLayout, name: str) -> pd.DataFrame:
    """A column for each meaning of one column's texts; of two meanings the first is the absence of the second."""
    meanings = [meaning for meaning in dict.fromkeys(layout.labels.values()) if meaning]
    wanted = meanings[1:] if len(meanings) == 2 else meanings
    if layout.separator:
        lists = cells.str.split(layout.separator, regex=False)
        found = [{layout.labels.get(text.strip(), "") for text in texts} for texts in lists]
        unknown = (cells == "").to_numpy()
    else:
        meant = _meanings(cells, {"": "", **layout.labels}, name)
        found = [{meaning} for meaning in meant]
        unknown = (meant == "").to_numpy()
    columns = {
        label: ["" if blank else str(int(label in one)) for one, blank in zip(found, unknown, strict=True)]
        for label in wanted
    }
    return pd.DataFrame(columns, index=cells.index, dtype=object)


def _meanings(cells: "pd.Series[str]", values: Mapping[str, str], name: str) -> "pd.Series[str]":
    strange = cells.index[~cells.isin(list(values))]
    if len(strange):
        known = ", ".join(repr(text) for text in values)
        raise DataError(
            f"{name}: {len(strange):,} cells of column {cells.name!r} are none of {known}, which the spec knows "
            f"(first: row {strange[0]}); correct them, or write a spec that knows them"
        )
    return cells.map(dict(values))


def _one_row_each(table: pd.DataFrame, layout: TableLayout, labels: list[str]) -> pd.DataFrame:
    """The first row of each volume, its labels being those of all its rows together."""
    key = table[layout.by]
    merged = table[~key.duplicated()].copy()
    for label in labels:
        votes = [(table[label] == value).groupby(key).sum().loc[merged[layout.by]].to_numpy() for value in ("0", "1")]
        negative, positive = votes
        if layout.several == "any":
            negative, positive = (negative > 0) & (positive == 0), positive > 0
        merged[label] = [
            "1" if yes > no else "0" if no > yes else "" for no, yes in zip(negative, positive, strict=True)
        ]
    return merged
