"""What a page says and shows of one volume: of its header what may be told, of its pixels a PNG."""

import base64
import io
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from medclr.data.spec import DataSpec
from medclr.data.thumbnail import upright

_CUTS = (("axial", 2), ("coronal", 1), ("sagittal", 0))
_FINE = 48  # pixels of the longer side, from which a browser may smooth what it enlarges
_LONGEST_TEXT = 64  # characters that DICOM allows a manufacturer or a model (VR LO)


def shown(text: str) -> str:
    """Text of a header as it may stand on the page: on one line, and no longer than DICOM allows."""
    line = "".join(char if char.isprintable() else "?" for char in text)
    return line if len(line) <= _LONGEST_TEXT else line[: _LONGEST_TEXT - 1] + "…"


def by(sizes: Iterable[Any]) -> str:
    """As "512 × 512 × 30"."""
    return " × ".join(f"{size:.3g}" if isinstance(size, float) else str(size) for size in sizes)


def spacing(steps: Iterable[float]) -> str:
    """As "0.7 × 0.7 × 1.25"; "" where it is unknown."""
    return by(map(float, steps)) if np.isfinite(list(steps)).all() else ""


def pictures(
    spec: DataSpec, spacing_mm: Sequence[float], image: NDArray[np.float32], what: str
) -> list[dict[str, Any]]:
    """The plane, or the three middle planes, with the proportions of the body where the spacing is known.

    Args:
        spec: by which the image was prepared; spacing_mm: of its volume in the store.
        image: (*spatial) in [0, 1].
        what: it shows, for those who cannot see it.
    """
    steps = np.array(_steps_of(spec, spacing_mm))
    longest = (steps * image.shape).max()
    cuts = [("", -1)] if image.ndim == 2 else _CUTS
    found = []
    for cut, axis in cuts:
        plane = image if axis < 0 else image.take(image.shape[axis] // 2, axis)
        width, height = np.delete(steps * image.shape, axis) if axis >= 0 else steps * image.shape
        picture = np.rint(upright(plane) * 255).astype(np.uint8)
        found.append(
            {
                "alt": f"{what}, {cut} middle slice" if cut else what,
                "source": data_uri(picture),
                "width": picture.shape[1],
                "height": picture.shape[0],
                "share": round(100 * width / longest, 2),
                "ratio": round(width / height, 4),
                "tiny": max(picture.shape) < _FINE,
            }
        )
    return found


def data_uri(picture: NDArray[np.uint8]) -> str:
    """A picture (rows, columns) as a PNG that a page holds in itself."""
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "png", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


def _steps_of(spec: DataSpec, spacing_mm: Sequence[float]) -> Sequence[float]:
    """The voxel of what a network sees, of which only the proportions matter here."""
    own = tuple(float(step) for step in spec.in_plane(spacing_mm))
    if not np.isfinite(own).all():
        return (1.0,) * len(own)
    return own if spec.sizing == "fit" else spec.spacing_mm or own
