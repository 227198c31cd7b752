from dataclasses import replace
from math import ceil, prod

import numpy as np
import pandas as pd
import pytest

from medclr.data.crops import crop_starts, parts_of
from medclr.data.spec import DataSpec

SPEC = DataSpec("test", ("MR",), 3, "zscore", "spacing", 64, "mr", spacing_mm=(1.0, 1.0, 1.0), patch=(4, 4, 4))


def test_enough_crops_cover_each_voxel_and_lie_within():
    rng = np.random.default_rng(0)
    for _ in range(100):
        dims = int(rng.integers(1, 4))
        shape, patch = rng.integers(1, 14, dims).tolist(), rng.integers(1, 7, dims).tolist()
        starts = crop_starts(shape, patch, 14**3)
        assert len(set(starts)) == len(starts) == prod(ceil(n / p) for n, p in zip(shape, patch, strict=True))
        seen = np.zeros(shape, bool)
        for start in starts:
            assert all(0 <= a <= n - p for a, n, p in zip(start, shape, patch, strict=True) if n > p)
            seen[tuple(slice(max(0, a), a + p) for a, p in zip(start, patch, strict=True))] = True
        assert seen.all()
        most = int(rng.integers(1, 30))
        assert 1 <= len(crop_starts(shape, patch, most)) <= most
        assert crop_starts(shape, patch, 1) == [tuple((n - p) // 2 for n, p in zip(shape, patch, strict=True))]


@pytest.mark.parametrize(
    ("shape", "patch", "most", "starts"),
    [
        ((10,), (4,), 2, [(0,), (5,)]),
        ((12,), (4,), 2, [(1,), (7,)]),  # in the middle of each half, so that what is left out is spread
        ((10,), (4,), 3, [(0,), (3,), (6,)]),
        ((3, 9), (5, 9), 8, [(-1, 0)]),
        ((8, 16), (4, 4), 3, [(2, 0), (2, 6), (2, 11)]),  # the longest axis first
        ((8, 8, 8), (4, 4, 4), 7, [(x, y, 2) for x in (0, 4) for y in (0, 4)]),
        ((8, 8, 8), (4, 4, 4), 8, [(x, y, z) for x in (0, 4) for y in (0, 4) for z in (0, 4)]),
    ],
)
def test_crops_are_the_centres_of_equal_parts(shape, patch, most, starts):
    assert crop_starts(shape, patch, most) == starts


def test_the_parts_of_a_volume_stand_together_in_order():
    rows = pd.DataFrame({"name": ["a", "b", "c"], "store_shape": [[4, 4, 9], [3, 3, 3], [8, 4, 4]]}, index=[5, 5, 1])
    parts, counts = parts_of(rows, SPEC, 2)
    assert counts.tolist() == [2, 1, 2]
    assert parts["name"].tolist() == ["a", "a", "b", "c", "c"]
    assert parts["start"].tolist() == [(0, 0, 0), (0, 0, 4), (-1, -1, -1), (0, 0, 0), (4, 0, 0)]
    whole, counts = parts_of(rows, SPEC)
    assert counts.tolist() == [1, 1, 1]
    assert "start" not in whole


def test_slices_have_crops_too():
    spec = replace(SPEC, spatial_dims=2, slices="axial", spacing_mm=(1.0, 1.0), patch=(4, 4))
    rows = pd.DataFrame({"store_shape": [[5, 4, 8], [5, 3, 3]], "slices": [[1, 4], [0, 2, 3]]})
    parts, counts = parts_of(rows, spec, 2)
    assert counts.tolist() == [4, 3]
    assert parts["slice"].tolist() == [1, 1, 4, 4, 0, 2, 3]
    assert parts["start"].tolist() == [(0, 0), (0, 4)] * 2 + [(-1, -1)] * 3
    assert parts_of(rows, spec)[1].tolist() == [2, 3]
    of_slices, counts = parts_of(parts.drop(columns="start").iloc[[0, 2]], spec, 2)
    assert counts.tolist() == [2, 2]
    assert of_slices["slice"].tolist() == [1, 1, 4, 4]
