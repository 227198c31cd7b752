import itertools

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medclr.data.volume import Volume, canonical

TURNS = [
    (order, signs) for order in itertools.permutations(range(3)) for signs in itertools.product((1.0, -1.0), repeat=3)
]


@given(turn=st.sampled_from(TURNS), tilt=st.floats(-0.4, 0.4), seed=st.integers(0, 99))
@settings(max_examples=30, deadline=None)
def test_canonical_agrees_with_nibabel(turn, tilt, seed):
    order, signs = turn
    rng = np.random.default_rng(seed)
    array = rng.normal(size=(2, 3, 4, 5)).astype(np.float32)
    cos, sin = np.cos(tilt), np.sin(tilt)
    oblique = np.array([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1]])
    affine = np.eye(4)
    affine[:3, :3] = oblique @ np.diag(signs)[:, order] @ np.diag(rng.uniform(0.5, 4, 3))
    affine[:3, 3] = rng.normal(size=3) * 100
    volume = canonical(array, affine, ("a note",))
    expected = nib.as_closest_canonical(nib.Nifti1Image(np.moveaxis(array, 0, -1), affine))
    np.testing.assert_array_equal(volume.array, np.moveaxis(np.asarray(expected.dataobj), -1, 0))
    np.testing.assert_allclose(volume.affine, expected.affine, atol=1e-9)
    assert nib.aff2axcodes(volume.affine) == ("R", "A", "S")
    assert volume.array.flags.c_contiguous
    assert volume.array.dtype == np.float32
    assert volume.notes == ("a note",)


def test_canonical_twice_is_once():
    array = np.arange(24, dtype=np.float32).reshape(1, 2, 3, 4)
    once = canonical(array, np.diag([-1.0, 2.0, -3.0, 1.0]))
    twice = canonical(once.array, once.affine)
    np.testing.assert_array_equal(twice.array, once.array)
    np.testing.assert_array_equal(twice.affine, once.affine)


def test_spacing_is_the_length_of_the_steps():
    affine = np.eye(4)
    affine[:3, :3] = [[0, 0, 2], [3, 0, 0], [4, 1, 0]]
    assert Volume(np.zeros((1, 2, 2, 2), np.float32), affine).spacing_mm == pytest.approx((5, 1, 2))


def test_spacing_of_a_plane_without_one():
    plane = Volume(np.zeros((1, 2, 2), np.float32), np.diag([0.2, np.nan, 1, 1]))
    assert plane.spacing_mm == pytest.approx((0.2, np.nan), nan_ok=True)
