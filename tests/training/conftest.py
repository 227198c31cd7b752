"""A small store of images: bright discs on noise, where the disc's side of the image is the label."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray

from medclr.data.prepare import statistics
from medclr.data.spec import DataSpec
from medclr.data.store import Store

SIDE = 12


@dataclass(frozen=True)
class Material:
    """Manifest rows, their labels (n, 1), the store that they are in, and the spec to read them by."""

    rows: pd.DataFrame
    y: NDArray[np.float64]
    store: Store
    spec: DataSpec


def _material(root: Path, n: int, per_patient: int = 1, side: int = SIDE) -> Material:
    rng = np.random.default_rng(n)
    store = Store(root)
    axis = np.arange(side)
    rows, labels = [], []
    for item in range(n):
        y = item // per_patient % 2
        labels.append([float(y)])
        image = rng.normal(100, 10, (1, side, side))
        centre = (side / 4 if y else 3 * side / 4) + rng.uniform(-1, 1)
        image += 80 * (np.hypot(axis[:, None] - centre, axis - side / 2) < side / 5)
        array = image.astype(np.float32)
        store.write(f"{item:032x}", array, {"pixel_hash": ""})
        rows.append(
            {
                "volume_id": f"v{item}",
                "patient_key": f"p{item // per_patient}",
                "patient_known": True,
                "store_key": f"{item:032x}",
                "store_shape": [side, side],
                **statistics(array),
            }
        )
    spec = DataSpec("test", ("DX",), 2, "percentile", "fit", 224, "xray", patch=(SIDE, SIDE))
    return Material(pd.DataFrame(rows), np.array(labels), store, spec)


@pytest.fixture(scope="session")
def material(tmp_path_factory: pytest.TempPathFactory) -> Material:
    """Forty patients of one image each."""
    return _material(tmp_path_factory.mktemp("store"), 40)


@pytest.fixture(scope="session")
def families(tmp_path_factory: pytest.TempPathFactory) -> Material:
    """Four patients of three images each, longer than the patch, so that blocks start at random."""
    return _material(tmp_path_factory.mktemp("store"), 12, per_patient=3, side=SIDE + 3)
