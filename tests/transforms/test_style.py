import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage import exposure

from medclr.transforms.style import fourier_matched, histogram_matched

dims = pytest.mark.parametrize("sides", [(9, 12), (5, 6, 7)])


def noise(*shape, seed=0, levels=None):
    """Grey values in (0, 1); of some levels alone if asked, so that many are equal."""
    values = 0.01 + 0.98 * torch.rand(shape, generator=torch.Generator().manual_seed(seed))
    return values if levels is None else (values * levels).ceil() / levels


def match_histograms(image, reference):
    """A transcription of scikit-image's, of one channel."""
    _, where, counts = np.unique(image, return_inverse=True, return_counts=True)
    values, shown = np.unique(reference, return_counts=True)
    quantiles = np.interp(np.cumsum(counts) / image.size, np.cumsum(shown) / reference.size, values)
    return quantiles[where].reshape(image.shape)


@dims
@pytest.mark.parametrize("levels", [None, 6])
def test_histograms_match_as_scikit_image_has_it(sides, levels):
    images, references = noise(3, 2, *sides, levels=levels), noise(3, 2, *sides, seed=1).square()
    found = histogram_matched(images, references)
    for i in range(3):
        for c in range(2):
            expected = match_histograms(images[i, c].numpy(), references[i, c].numpy())
            np.testing.assert_allclose(found[i, c], expected, atol=1e-6)


def test_it_is_scikit_images():
    image, reference = noise(1, 1, 20, 30, levels=50), noise(1, 1, 20, 30, seed=1, levels=9)
    expected = exposure.match_histograms(image[0, 0].numpy(), reference[0, 0].numpy())
    np.testing.assert_allclose(histogram_matched(image, reference)[0, 0], expected, atol=1e-6)


def test_without_ties_the_values_are_those_of_the_reference():
    image, reference = noise(2, 1, 8, 8), noise(2, 1, 8, 8, seed=1)
    found = histogram_matched(image, reference)
    torch.testing.assert_close(found.flatten(1).sort().values, reference.flatten(1).sort().values)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**31), levels=st.sampled_from([None, 2, 5]), empty=st.floats(0, 1), around=st.floats(0, 1))
def test_no_order_is_inverted_and_equals_stay_equal(seed, levels, empty, around):
    image, reference = noise(1, 1, 8, 8, seed=seed, levels=levels), noise(1, 1, 8, 8, seed=seed + 1, levels=levels)
    image, reference = image * (image > empty), reference * (reference > around)
    before = image.clone()
    found = histogram_matched(image, reference)
    assert torch.equal(image, before)
    assert found.min() >= 0
    assert found.max() <= 1
    order = image.flatten().argsort()
    was, now = image.flatten()[order].diff(), found.flatten()[order].diff()
    assert (now >= 0).all()
    assert (now[was == 0] == 0).all()
    if (image == 0).any() and (reference == 0).any():
        assert (found[image == 0] == 0).all()


@pytest.mark.parametrize("sides", [(10, 10), (4, 5, 5)])
def test_how_much_of_a_patch_is_empty_is_no_style(sides):
    """The same scene in half of the patch has the grey values that it has in all of one."""
    image, reference = noise(1, 1, *sides), noise(1, 1, *sides, seed=1)
    around = [torch.cat([x, torch.zeros_like(x)], dim=3) for x in (image, reference)]
    twice = torch.cat([torch.cat([reference] * 3, dim=3), torch.zeros_like(reference)], dim=3)
    found, other = histogram_matched(*around), histogram_matched(around[0], twice[:, :, :, : around[0].shape[3]])
    half = image.shape[3]
    torch.testing.assert_close(found[:, :, :, :half], histogram_matched(image, reference))
    assert (found[:, :, :, half:] == 0).all()
    # Where the reference has none, zeros are grey values like all others.
    np.testing.assert_allclose(
        other[0, 0], match_histograms(around[0][0, 0].numpy(), reference[0, 0].numpy()), atol=1e-6
    )


def test_images_of_one_grey_value_match_without_a_fault():
    flat, image = torch.full((1, 1, 6, 6), 0.3), noise(1, 1, 6, 6)
    assert (histogram_matched(image, flat) == 0.3).all()
    assert (histogram_matched(flat, image) == image.max()).all()
    for value in (0.0, 1.0):
        assert torch.isfinite(histogram_matched(torch.full_like(flat, value), torch.full_like(flat, 1 - value))).all()


def fourier_adapted(image, reference, share):
    """Equations 3 and 4, of one channel, with the zero frequency in the middle."""
    own, other = (np.fft.fftshift(np.fft.fftn(x)) for x in (image, reference))
    near = [np.abs(np.arange(n) - n // 2) <= share * n for n in image.shape]
    mask = np.ones(image.shape, dtype=bool)
    for axis, inside in enumerate(near):
        mask &= inside.reshape([-1 if a == axis else 1 for a in range(image.ndim)])
    mixed = (mask * np.abs(other) + (1 - mask) * np.abs(own)) * np.exp(1j * np.angle(own))
    return np.fft.ifftn(np.fft.ifftshift(mixed))


@pytest.mark.parametrize("sides", [(9, 12), (12, 9), (5, 6, 7), (7, 6, 6)])
@pytest.mark.parametrize("share", [0, 0.1, 0.25, 0.5])
def test_amplitudes_match_as_the_paper_has_it(sides, share):
    images, references = 0.4 + 0.2 * noise(2, 2, *sides), 0.4 + 0.2 * noise(2, 2, *sides, seed=1)
    found = fourier_matched(images, references, share)
    for i in range(2):
        for c in range(2):
            expected = fourier_adapted(images[i, c].double().numpy(), references[i, c].double().numpy(), share)
            assert abs(expected.imag).max() < 1e-9
            np.testing.assert_allclose(found[i, c], expected.real, atol=1e-5)


@dims
def test_of_its_own_amplitudes_an_image_is_itself_and_of_the_mean_alone_moved(sides):
    images, references = noise(2, 1, *sides), 0.5 * noise(2, 1, *sides, seed=1)
    torch.testing.assert_close(fourier_matched(images, images, 0.3), images)
    axes = tuple(range(2, images.ndim))
    moved = (images - images.mean(axes, keepdim=True) + references.mean(axes, keepdim=True)).clamp(0, 1)
    torch.testing.assert_close(fourier_matched(images, references, 0), moved)


@dims
def test_all_amplitudes_are_the_references_and_all_phases_its_own(sides):
    images, references = 0.45 + 0.1 * noise(2, 1, *sides), 0.45 + 0.1 * noise(2, 1, *sides, seed=1)
    found, own, other = (
        torch.fft.fftn(x[:, 0], dim=tuple(range(1, x.ndim - 1)))
        for x in (fourier_matched(images, references, 0.5), images, references)
    )
    torch.testing.assert_close(found.abs(), other.abs(), atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(found / found.abs(), own / own.abs(), atol=1e-3, rtol=1e-3)


def test_what_would_leave_the_range_is_clipped():
    found = fourier_matched(noise(1, 1, 8, 8), torch.ones(1, 1, 8, 8), 0)
    assert found.max() == 1
    assert found.min() >= 0
