import math

import numpy as np
import pandas as pd
from hypothesis import given, settings
from hypothesis import strategies as st

from medclr.data.slices import ALIKE, by_slice, kept_slices


def stack(*planes):
    """(1, slices, 10, 10) of planes that are made from 100 values each."""
    return np.stack([np.reshape(plane, (10, 10)) for plane in planes])[None].astype(np.float32)


def pattern(number):
    """Planes that do not correlate with each other, from 50 to 100."""
    return np.random.default_rng(number).uniform(50, 100, 100)


AIR = np.random.default_rng(99).uniform(0, 9.9, 100)  # noise below a tenth of the range


def test_empty_slices_are_left_out():
    speck = AIR.copy()
    speck[0] = 100
    array = stack(AIR, pattern(0), AIR, pattern(1), speck, AIR)
    assert kept_slices(array, 0, 100, math.nan, 2) == [1, 3, 4]


def test_a_volume_without_anything_keeps_its_middle():
    assert kept_slices(stack(*[AIR] * 5), 0, 100, 1, 0) == [2]
    assert kept_slices(np.zeros((1, 4, 3, 3)), 0, 0, 1, 0) == [2]


def test_what_is_nearly_the_same_as_the_last_kept_is_left_out():
    a, b = pattern(0), pattern(1)
    near = a + 0.1 * (b - b.mean())
    far = a + 0.3 * (b - b.mean())
    assert np.corrcoef(a, near)[0, 1] > ALIKE > np.corrcoef(a, far)[0, 1]
    assert kept_slices(stack(a, near, a, far, b, b), 0, 100, math.nan, 2) == [0, 3, 4]
    # Each is like the one before it, but not like the last that was kept.
    drift = [a + step * (b - b.mean()) for step in (0, 0.15, 0.3, 0.45, 0.6)]
    assert kept_slices(stack(*drift), 0, 100, math.nan, 0) == [0, 2, 4]


def test_slices_are_at_least_a_step_apart_where_their_spacing_is_known():
    array = stack(*map(pattern, range(9)))
    expected = {0.5: [0, 4, 8], 1.0: [0, 2, 4, 6, 8], 0.7: [0, 3, 6], 2.0: list(range(9)), math.nan: list(range(9))}
    assert {spacing: kept_slices(array, 0, 100, spacing, 2.0) for spacing in expected} == expected
    assert kept_slices(array, 0, 100, 0.6666, 2.0) == [0, 3, 6]  # two thirds, in a header of four digits


def test_planes_of_one_grey_value_are_the_same_if_the_value_is():
    assert kept_slices(stack(*[np.full(100, v) for v in (0, 20, 20, 30, 30, 20)]), 0, 30, 1, 0) == [1, 3, 5]


@settings(max_examples=60, deadline=None)
@given(
    kinds=st.lists(st.integers(-1, 4), min_size=1, max_size=12),
    spacing=st.sampled_from([0.5, 1.0, 3.0, math.nan]),
    step=st.sampled_from([0.0, 1.0, 2.0]),
)
def test_what_is_kept_stands_for_the_rest(kinds, spacing, step):
    """Slices of five patterns and of air: no two neighbours of the kept are near or alike, and none more would fit."""
    kept = kept_slices(stack(*[AIR if kind < 0 else pattern(kind) for kind in kinds]), 0, 100, spacing, step)
    if set(kinds) == {-1}:
        assert kept == [len(kinds) // 2]
        return
    assert kept == sorted(set(kept))
    assert kept[0] == next(k for k, kind in enumerate(kinds) if kind >= 0)
    for k, kind in enumerate(kinds):
        before = [other for other in kept if other < k]
        fits = kind >= 0 and (not before or (kinds[before[-1]] != kind and not (k - before[-1]) * spacing < step))
        assert (k in kept) == fits


def test_by_slice_is_a_row_for_each_kept_slice():
    rows = pd.DataFrame({"volume_id": ["a", "b", "c"], "y": [0, 1, 2], "slices": [[3, 5], np.array([0]), [1, 2, 9]]})
    each = by_slice(rows.iloc[[2, 0, 1]])
    assert list(each["volume_id"]) == ["c", "c", "c", "a", "a", "b"]
    assert list(each["y"]) == [2, 2, 2, 0, 0, 1]
    assert list(each["slice"]) == [1, 2, 9, 3, 5, 0]
    assert list(each.index) == list(range(6))
    assert "slices" not in each
