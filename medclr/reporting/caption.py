"""What a page says and shows of one volume: of its header what may be told, of its pixels a PNG."""

import base64
import io
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

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


def data_uri(picture: NDArray[np.uint8]) -> str:
    """A picture (rows, columns) as a PNG that a page holds in itself."""
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "png", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
