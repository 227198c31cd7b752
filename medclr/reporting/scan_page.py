"""The page of a scan: what is in the folder, what was skipped and why, and the middle slices of a fair sample.

It shows counts, pictures and, of the headers, modality, manufacturer, model, kernel, field strength, spacing,
orientation and the site's letter; no identifier, date, path or other text of a header.
"""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from markupsafe import Markup, escape
from numpy.typing import NDArray

from medclr.data.candidate import Skipped
from medclr.data.manifest import kinds as kinds_of
from medclr.data.spec import DataSpec
from medclr.data.thumbnail import SIDE, WINDOW_HU
from medclr.errors import REASONS, Unreadable
from medclr.reporting.caption import by, data_uri, shown, spacing
from medclr.reporting.console import counted
from medclr.reporting.html import TEMPLATES

_MOST_ROWS = 20  # of a table; what is beyond is summed, so that the page of a large archive is no longer
_MOST_MESSAGES = 5  # under one reason code
_AXES = {letter: axis for axis, letters in enumerate(("LR", "AP", "SI")) for letter in letters}
_SLICES = (3, 10, 20, 50, 100, 200, 500)
_STEPS_MM = (0.1, 0.25, 0.5, 0.75, 1, 1.5, 2, 3, 4, 5, 7.5, 10)
_SIDES = (3, 32, 64, 128, 256, 512, 1024, 2048)

Picture = NDArray[np.uint8] | Unreadable


def scan_page(
    manifest: pd.DataFrame,
    skipped: Sequence[Skipped],
    files: Mapping[str, int],
    sample: pd.DataFrame,
    pictures: Sequence[Picture],
    spec: DataSpec | None,
    context: Mapping[str, Any],
) -> str:
    """The scan's report as HTML.

    Args:
        manifest: all volumes.
        skipped: what is in none of them.
        files: how many there are: all, used, skipped.
        sample: the rows of the manifest that are shown as pictures.
        pictures: one for each row of the sample, or why there is none.
        spec: that would be chosen, with patch and spacing filled; None where none that ships fits.
        context: command_line, versions, hardware; shared: whether the page lies outside `private/`; burned_in:
            whether images that say they have burned-in text were kept.
    """
    kinds, silent = _counts(manifest)
    return TEMPLATES.get_template("scan.html").render(
        context,
        title="What is in the folder",
        machine={**context["versions"], **context["hardware"]},
        files=files,
        volumes=len(manifest),
        dims=Counter(map(len, manifest["shape"])),
        patients=manifest["patient_key"][manifest["patient_known"]].nunique(),
        without_patient=int((~manifest["patient_known"]).sum()),
        dicom=_studies(manifest),
        kinds=kinds,
        silent=silent,
        geometry=_geometry(manifest),
        domains=_domains(manifest),
        notes=_rows(_alike([note for notes in manifest["notes"] for note in notes])),
        reasons=_reasons(skipped),
        spec=spec,
        accepted=0 if spec is None else int(spec.accepts(manifest).sum()),
        groups=_groups(manifest, sample, pictures),
        n_pictures=len(sample),
        window=[f"{bound:g}".replace("-", "−") for bound in WINDOW_HU],
    )


class Row(NamedTuple):
    """One line of a table of counts; `width` is that of its bar, in percent of the longest; 0 is none."""

    label: str
    n: int
    width: float


def _rows(counts: Iterable[tuple[str, int]], most: int = _MOST_ROWS) -> list[Row]:
    """The first rows, and the sum of the others where there are more; it has no bar, which would dwarf the rest."""
    listed = list(counts)
    rest = listed[most:]
    longest = max((n for _, n in listed[:most]), default=0)
    rows = [Row(label, n, round(100 * n / longest, 1)) for label, n in listed[:most]]
    return rows + [Row(counted(len(rest), "other"), sum(n for _, n in rest), 0.0)] * bool(rest)


def _counts(manifest: pd.DataFrame) -> tuple[list[tuple[str, list[Row]]], list[str]]:
    """Tables by what the headers say, and the names of what none of them says."""
    columns: dict[str, Iterable[str]] = {
        "Modality": kinds_of(manifest),
        "Manufacturer": manifest["manufacturer"],
        "Model": manifest["model"],
        "Kernel": manifest["kernel"],
        "Field strength": [f"{tesla:g} T" if np.isfinite(tesla) else "" for tesla in manifest["field_strength"]],
        "Site": manifest["site"],
        "Orientation of the file": manifest["orientation"],
        "Shape": [by(shape) for shape in manifest["shape"]],
        "Spacing, mm": [spacing(steps) for steps in manifest["spacing_mm"]],
    }
    tables, silent = [], []
    for name, values in columns.items():
        counts = Counter(values)
        if set(counts) == {""}:
            silent.append(name.removesuffix(", mm").lower())
        else:
            tables.append((name, _rows((shown(text) or "unknown", n) for text, n in counts.most_common())))
    return tables, silent


def _geometry(manifest: pd.DataFrame) -> list[tuple[str, list[Row]]]:
    """Histograms of how the volumes lie in space; the slice axis is the third of the file."""
    counts: list[float] = []
    gaps: list[float] = []
    pixels: list[float] = []
    sides: list[float] = []
    for shape, steps, letters in zip(manifest["shape"], manifest["spacing_mm"], manifest["orientation"], strict=True):
        plane = list(range(len(shape)))
        if len(shape) == 3:
            across = plane.pop(_AXES[letters[2]])
            counts.append(shape[across])
            gaps.append(steps[across])
        pixels.append(max(steps[axis] for axis in plane))
        sides.append(max(shape[axis] for axis in plane))
    tables = {
        "Slices": _histogram(counts, _SLICES, whole=True),
        "Distance of slices, mm": _histogram(gaps, _STEPS_MM),
        "Pixel spacing, mm": _histogram(pixels, _STEPS_MM),
        "Longer side of the slice, pixels": _histogram(sides, _SIDES, whole=True),
    }
    return [(name, rows) for name, rows in tables.items() if rows]


def _histogram(values: Sequence[float], edges: Sequence[float], whole: bool = False) -> list[Row]:
    """Counts from one edge to below the next, from the first bin that holds any to the last."""
    array = np.array(values, dtype=float)
    known = array[np.isfinite(array)]
    found = np.bincount(np.searchsorted(edges, known, side="right"), minlength=len(edges) + 1)
    names = [
        f"below {edges[0]:g}",
        *(f"{low:g} to {high - whole:g}" for low, high in pairwise(edges)),
        f"{edges[-1]:g} or more",
    ]
    held = np.flatnonzero(found)
    rows = [(names[i], int(found[i])) for i in range(held[0], held[-1] + 1)] if len(held) else []
    unknown = len(array) - len(known)
    return _rows(rows + [("unknown", unknown)] * bool(unknown))


def _domains(manifest: pd.DataFrame) -> dict[str, Any]:
    """Volumes by each pairing of the columns that tell domains apart; columns without a value are left out."""
    columns = [name for name in ("site", "manufacturer", "model", "kernel") if (manifest[name] != "").any()]
    counts = Counter(zip(*(manifest[name] for name in columns), strict=True)).most_common() if columns else []
    rest = counts[_MOST_ROWS:]
    return {
        "columns": columns,
        "rows": [([shown(text) for text in texts], n) for texts, n in counts[:_MOST_ROWS]],
        "others": (len(rest), sum(n for _, n in rest)),
        "all": len(counts),
    }


def _studies(manifest: pd.DataFrame) -> dict[str, int]:
    """Only DICOM says what a study and a series is."""
    rows = manifest[manifest["reader"] == "dicom"]
    return {"studies": rows["study_key"].nunique(), "series": rows["series_key"].nunique()}


def _reasons(skipped: Sequence[Skipped]) -> list[dict[str, Any]]:
    """What was skipped by reason code, the commonest first: files, parts of used files, and the messages."""
    found = []
    for code, _ in Counter(item.reason for item in skipped).most_common():
        items = [item for item in skipped if item.reason == code]
        files = sum(item.part is None for item in items)
        found.append(
            {
                "code": code,
                "files": files,
                "parts": len(items) - files,
                "cause": REASONS[code].cause,
                "cure": REASONS[code].cure,
                "messages": _rows(_alike([item.message for item in items]), _MOST_MESSAGES),
            }
        )
    return found


def _alike(messages: Sequence[str]) -> list[tuple[str, int]]:
    """Messages that differ in their numbers alone as one, with "…" for the numbers that differ; the commonest first."""
    groups: dict[tuple[str, ...], Counter[tuple[str, ...]]] = {}
    for message, n in Counter(messages).items():
        parts = re.split(r"(\d[\d,]*(?:\.\d+)?)", message)
        groups.setdefault(tuple(parts[::2]), Counter())[tuple(parts[1::2])] += n
    merged = []
    for words, variants in groups.items():
        numbers = [values[0] if len(set(values)) == 1 else "…" for values in zip(*variants, strict=True)]
        text = "".join(word + number for word, number in zip(words, [*numbers, ""], strict=True))
        merged.append((text, variants.total()))
    return sorted(merged, key=lambda pair: -pair[1])


def _groups(manifest: pd.DataFrame, sample: pd.DataFrame, pictures: Sequence[Picture]) -> list[dict[str, Any]]:
    """The pictures under headings of modality and manufacturer, the largest group first."""
    size = Counter(zip(kinds_of(manifest), manifest["manufacturer"], strict=True))
    groups: dict[tuple[str, str], list[tuple[Any, Picture]]] = {}
    for kind, row, picture in zip(kinds_of(sample), sample.itertuples(index=False), pictures, strict=True):
        groups.setdefault((kind, str(row.manufacturer)), []).append((row, picture))
    found = []
    for (kind, manufacturer), items in sorted(groups.items(), key=lambda group: -size[group[0]]):
        items.sort(key=lambda item: (item[0].site, item[0].model, item[0].kernel))
        everywhere = [note for note in items[0][0].notes if all(note in row.notes for row, _ in items)]
        found.append(
            {
                "kind": shown(kind),
                "manufacturer": shown(manufacturer) or "unknown manufacturer",
                "volumes": size[kind, manufacturer],
                "notes": everywhere,
                "pictures": [_picture(row, picture, everywhere) for row, picture in items],
            }
        )
    return found


def _picture(row: Any, picture: Picture, said: Sequence[str]) -> dict[str, Any]:
    steps = spacing(row.spacing_mm)
    found = {
        "names": [shown(text) for text in (row.model, row.kernel, row.site) if text],
        "shape": by(row.shape),
        "spacing": f"{steps} mm" if steps else "",
        "orientation": row.orientation,
        "notes": [note for note in row.notes if note not in said],
        "reason": "",
    }
    if isinstance(picture, Unreadable):
        return found | {"reason": picture.reason, "message": str(picture)}
    times = SIDE / max(picture.shape)
    height, width = (max(1, round(side * times)) for side in picture.shape)
    # Of a tiny image one sees the pixels, rather than a blur that it does not have.
    return found | {"source": data_uri(picture), "width": width, "height": height, "tiny": times >= 3}


def _prose(text: str) -> Markup:
    """Escaped, with what stands between backticks as code."""
    return Markup(re.sub(r"`([^`]*)`", r"<code>\1</code>", str(escape(text))))


TEMPLATES.filters["prose"] = _prose
