"""The page of a preview: contact sheets of volumes as the model will see them, and of each augmentation alone.

Of the headers it shows modality, manufacturer, model, kernel, shape, spacing and the site's letter; no identifier,
date, path or other text of a header.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medclr.data.candidate import Skipped
from medclr.data.spec import DataSpec
from medclr.reporting.caption import by, pictures, shown, spacing
from medclr.reporting.html import TEMPLATES
from medclr.reporting.words import Window, in_words, number
from medclr.transforms.augmentation import Params
from medclr.transforms.presets import Views

Image = NDArray[np.float32]

_NAMES = {
    "crop": "Crop and zoom",
    "rotation": "Rotation",
    "flip": "Mirroring",
    "window": "Window",
    "histogram": "Histogram shift",
    "equalise": "Histogram equalisation",
    "intensity": "Gamma, contrast, brightness",
    "gain": "Gain",
    "bias": "Bias field",
    "gibbs": "Gibbs ringing",
    "blur": "Blur",
    "noise": "Noise",
}


@dataclass(frozen=True)
class Seen:
    """One volume as the network sees it.

    Attributes:
        row: of the manifest, after `prepare`, as a named tuple.
        block: (C, *spatial) at the centre, as the store has it.
        source: float32 (*spatial) in [0, 1], what the network sees of the block's first channel.
        views: two of it.
        params: what was drawn for each.
        low, high: the grey values that become 0 and 1.
    """

    row: Any
    block: NDArray[Any]
    source: Image
    views: Sequence[Image]
    params: Sequence[Params]
    low: float
    high: float


@dataclass(frozen=True)
class Change:
    """One augmentation of a preset, alone.

    Attributes:
        name: its step.
        share: of the views that it changes.
        alone: views in which all other steps are off.
        params: of them, at its weakest and at its strongest.
        images: of each volume that is an example, in their order, at its weakest and at its strongest.
    """

    name: str
    share: float
    alone: Views
    params: tuple[Params, Params]
    images: Sequence[tuple[Image, Image]]


@dataclass(frozen=True)
class Section:
    """What one spec accepts.

    Attributes:
        spec: with patch and spacing filled.
        kinds: of the volumes, such as "CT 3D".
        volumes: how many it accepts.
        views: of its preset.
        seen: of those that were chosen, what could be decoded.
        failed: the others: the row of the manifest, as a named tuple, and why.
        examples: those of `seen` that the augmentations are shown on.
        changes: the augmentations; none where nothing could be decoded.
    """

    spec: DataSpec
    kinds: Sequence[str]
    volumes: int
    views: Views
    seen: Sequence[Seen]
    failed: Sequence[tuple[Any, Skipped]]
    examples: Sequence[Seen]
    changes: Sequence[Change]


def preview_page(sections: Sequence[Section], alien: Mapping[str, int], context: Mapping[str, Any]) -> str:
    """The contact sheets as HTML.

    Args:
        sections: the largest first.
        alien: kinds of volumes that no spec is for, and how many there are of each.
        context: command_line, versions, hardware; shared: whether the page lies outside `private/`; burned_in:
            whether images that say they have burned-in text were kept.
    """
    return TEMPLATES.get_template("preview.html").render(
        context,
        title="What the model will see",
        machine={**context["versions"], **context["hardware"]},
        sections=[_section(section) for section in sections],
        alien=alien,
    )


def _section(section: Section) -> dict[str, Any]:
    spec = section.spec
    window_hu = spec.window if spec.integers else None
    return {
        "spec": spec,
        "kinds": [shown(kind) for kind in section.kinds],
        "volumes": section.volumes,
        "shown": len(section.seen) + len(section.failed),
        "steps": _steps_mm(spec),
        "greys": _greys(spec),
        "cut": any(map(_is_cut, section.seen)),
        "sheets": [_seen(spec, section.views, seen, window_hu) for seen in section.seen],
        "failed": [{**_heading(row), "reason": why.reason, "message": why.message} for row, why in section.failed],
        "examples": len(section.examples),
        "changes": [_change(spec, section.examples, change, window_hu) for change in section.changes],
    }


def _heading(row: Any) -> dict[str, Any]:
    names = [shown(text) for text in (row.manufacturer, row.model, row.kernel, row.site) if text]
    steps = spacing(row.spacing_mm)
    return {
        "names": names or ["unknown scanner"],
        "size": by(row.shape) + (f" at {steps} mm" if steps else ""),
    }


def _seen(spec: DataSpec, views: Views, seen: Seen, window_hu: Window | None) -> dict[str, Any]:
    columns = [
        {
            "label": "Source",
            "pictures": _pictures(spec, seen, seen.source, "source"),
            "lines": _facts(spec, seen),
        }
    ]
    for n, (image, params) in enumerate(zip(seen.views, seen.params, strict=True), start=1):
        columns.append(
            {
                "label": f"View {n}",
                "pictures": _pictures(spec, seen, image, f"view {n}"),
                "lines": in_words(views, params, window_hu) or ["as it is"],
            }
        )
    return {**_heading(seen.row), "columns": columns, "flat": not np.ptp(seen.source)}


def _change(spec: DataSpec, examples: Sequence[Seen], change: Change, window_hu: Window | None) -> dict[str, Any]:
    name = _NAMES[change.name]
    offs = [seen.source for seen in examples]
    columns = [{"label": "Off", "lines": [], "pictures": _rows(spec, examples, offs, f"{name}, off")}]
    for strength, (label, params) in enumerate(zip(("Weakest", "Strongest"), change.params, strict=True)):
        images = [pair[strength] for pair in change.images]
        moved = float(np.mean([np.abs(image - off).mean() for image, off in zip(images, offs, strict=True)]))
        columns.append(
            {
                "label": label,
                "pictures": _rows(spec, examples, images, f"{name}, {label.lower()}"),
                "lines": [
                    *(in_words(change.alone, params, window_hu) or ["nothing is changed"]),
                    *([f"mean change {number(round(100 * moved, 2))}% of the grey range"] if moved else []),
                ],
            }
        )
    return {"name": name, "share": change.share, "columns": columns}


def _rows(spec: DataSpec, examples: Sequence[Seen], images: Sequence[Image], what: str) -> list[dict[str, Any]]:
    """The pictures of one column, one example below the other."""
    return [
        picture
        for n, (seen, image) in enumerate(zip(examples, images, strict=True), start=1)
        for picture in _pictures(spec, seen, image, f"{what}, volume {n}" if len(examples) > 1 else what)
    ]


def _pictures(spec: DataSpec, seen: Seen, image: Image, what: str) -> list[dict[str, Any]]:
    return pictures(spec, seen.row.spacing_mm, image, what)


def _facts(spec: DataSpec, seen: Seen) -> list[str]:
    """What of the volume the block holds, and which grey values are black and white."""
    assert spec.patch is not None
    shape, patch = np.array(_size(seen), float), np.array(spec.patch, float)
    inside = np.minimum(shape, patch)
    held, padded = inside.prod() / shape.prod(), 1 - inside.prod() / patch.prod()
    unit = " HU" if spec.integers else ""
    black, white = float(np.mean(seen.source == 0)), float(np.mean(seen.source == 1))
    what = "slice" if spec.slices else "volume"
    lines = [
        f"the whole {what}" if held == 1 else f"{held:.0%} of the {what}",
        f"grey {number(seen.low)} to {number(seen.high)}{unit}",
        f"{black:.0%} black, {white:.0%} white",
    ]
    if spec.slices:
        n_kept = len(seen.row.slices)
        lines.append(f"number {n_kept // 2 + 1:,} of {n_kept:,} slices that are kept")
    return lines + [f"{padded:.0%} padding"] * bool(round(padded, 2))


def _is_cut(seen: Seen) -> bool:
    return any(side > patch for side, patch in zip(_size(seen), seen.source.shape, strict=True))


def _size(seen: Seen) -> Sequence[int]:
    """Of what the block was cut from, in voxels of the store."""
    return list(seen.row.store_shape)[-seen.source.ndim :]


def _steps_mm(spec: DataSpec) -> str:
    return by(map(float, spec.spacing_mm)) if spec.sizing == "spacing" and spec.spacing_mm else ""


def _greys(spec: DataSpec) -> str:
    if spec.window:
        return f"window {number(spec.window[0])} to {number(spec.window[1])}" + (" HU" if spec.integers else "")
    return {"zscore": "mean ± 3 σ of what is not 0", "percentile": "0.5 to 99.5 percentile"}[spec.normalisation]
