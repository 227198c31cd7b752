from itertools import pairwise

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.transforms import RandSimulateLowResolution, ScaleIntensityRange
from scipy import ndimage

from medclr.transforms import CORRUPTIONS

STRENGTHS = range(1, 6)
names = pytest.mark.parametrize("name", CORRUPTIONS)
dims = pytest.mark.parametrize("d", [2, 3])


def stacked(transform, seeds):
    draws = [transform.draw(np.random.default_rng(seed)) for seed in seeds]
    return {name: torch.from_numpy(np.stack([draw[name] for draw in draws])) for name in draws[0]}


def corrupted(name, strength, batch, seed=0):
    transform = CORRUPTIONS[name](strength, batch.ndim - 2)
    return transform.apply(batch, stacked(transform, range(seed, seed + len(batch))))


def scenes(n, side, d):
    """Discs of any size and grey, as any number of voxels shows them: each is the mean of what it covers."""
    rng, fine = np.random.default_rng(0), 112 if d == 2 else 56
    axes = np.stack(np.meshgrid(*[(np.arange(fine) + 0.5) / fine] * d, indexing="ij"))
    images = np.full((n, 1, *[fine] * d), 0.3, np.float32)
    for image in images[:, 0]:
        for _ in range(12):
            centre, radius = rng.random((d, *[1] * d)), rng.uniform(0.05, 0.25)
            image[np.sum((axes - centre) ** 2, axis=0) < radius**2] = rng.uniform(0.05, 0.8)
    return shown(torch.from_numpy(images), side)


def shown(images, side):
    pool = F.avg_pool2d if images.ndim == 4 else F.avg_pool3d
    return pool(images, images.shape[-1] // side)


def change(name, strength, batch):
    return (corrupted(name, strength, batch) - batch).abs().mean().item()


@names
@dims
@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 2**31), strength=st.integers(1, 5), flat=st.sampled_from([None, 0.0, 1.0]))
def test_what_it_leaves_is_an_image_between_0_and_1_that_depends_on_its_own_draw_alone(name, d, seed, strength, flat):
    batch = torch.rand(3, 2, *(20, 31, 24)[:d], generator=torch.Generator().manual_seed(seed))
    if flat is not None:
        batch[1] = flat
    before = batch.clone()
    together = corrupted(name, strength, batch, seed)
    assert together.shape == batch.shape
    assert together.dtype == torch.float32
    assert together.min() >= 0
    assert together.max() <= 1 + 1e-6
    assert torch.equal(batch, before), "changed in place"
    assert torch.equal(together, corrupted(name, strength, batch, seed))
    for i in range(3):
        torch.testing.assert_close(
            together[i : i + 1], corrupted(name, strength, batch[i : i + 1], seed + i), atol=1e-6, rtol=0
        )
        assert i == 1 or not torch.allclose(together[i], batch[i], atol=1e-4)


@names
@pytest.mark.parametrize(("side", "d"), [(28, 2), (112, 2), (28, 3)])
def test_each_strength_takes_more_than_the_one_before_from_hardly_seen_to_severe(name, side, d):
    batch = scenes(8, side, d)
    changes = [change(name, strength, batch) for strength in STRENGTHS]
    assert all(more > 1.2 * less for less, more in pairwise(changes)), changes
    assert changes[0] < 0.035, changes
    assert changes[-1] > max(3 * changes[0], 0.01 if d == 3 else 0.03), changes


@pytest.mark.parametrize("name", ["blur", "contrast", "motion", "bias"])
def test_a_scene_loses_the_same_at_28_voxels_a_side_and_at_112(name):
    fine = scenes(8, 112, 2)
    coarse = shown(fine, 28)
    difference = (shown(corrupted(name, 5, fine), 28) - corrupted(name, 5, coarse)).abs().mean()
    assert difference < 0.15 * change(name, 5, coarse)


@names
@dims
def test_how_strong_it_is_is_never_drawn(name, d):
    for strength in STRENGTHS:
        params = stacked(CORRUPTIONS[name](strength, d), range(20))
        free = {"seed", "direction"}
        drawn = {key: value.reshape(20, -1).abs().sum(dim=1) for key, value in params.items() if key not in free}
        for key, value in drawn.items():
            torch.testing.assert_close(value, value[:1].expand(20), msg=key)


def test_noise_of_strength_5_is_a_fifth_of_the_grey_range():
    image = torch.full((1, 1, 100, 100), 0.5)
    assert (corrupted("noise", 5, image) - image).std() == pytest.approx(0.2, rel=0.05)
    assert (corrupted("noise", 1, image) - image).std() == pytest.approx(0.02, rel=0.05)


def test_blur_of_strength_5_is_scipys_of_its_share_of_each_side():
    image = torch.rand(1, 1, 60, 40)
    expected = ndimage.gaussian_filter(image[0, 0].numpy(), (4.8, 3.2), mode="nearest")
    np.testing.assert_allclose(corrupted("blur", 5, image)[0, 0], expected, atol=6e-3)


@pytest.mark.parametrize(("strength", "factor"), list(enumerate([0.85, 0.7, 0.5, 0.35, 0.2], start=1)))
def test_contrast_is_a_factor_about_mid_grey_as_monais_range_has_it(strength, factor):
    image = torch.rand(1, 1, 9, 9)
    found = corrupted("contrast", strength, image)
    torch.testing.assert_close(found, 0.5 + factor * (image - 0.5))
    theirs = ScaleIntensityRange(0, 1, 0.5 - factor / 2, 0.5 + factor / 2)(image[0])
    torch.testing.assert_close(found[0], torch.as_tensor(theirs))


@pytest.mark.parametrize(("strength", "zoom"), list(enumerate([0.8, 0.5, 0.35, 0.25, 0.18], start=1)))
def test_resolution_is_monais_at_its_share_of_the_voxels(strength, zoom):
    image = torch.rand(1, 1, 28, 28)
    theirs = RandSimulateLowResolution(1, "area", "bilinear", (zoom, zoom))(image[0])
    torch.testing.assert_close(corrupted("resolution", strength, image)[0], theirs, atol=1e-6, rtol=0)


def test_motion_of_strength_5_smears_a_point_over_three_tenths_of_the_side():
    image = torch.zeros(20, 1, 61, 61)
    image[:, :, 30, 30] = 1
    smeared = corrupted("motion", 5, image)
    torch.testing.assert_close(smeared.sum(dim=(1, 2, 3)), torch.ones(20))
    for i in range(20):
        at = (smeared[i, 0] > 0).nonzero().float()
        assert 17 <= torch.pdist(at).max() <= 22  # 18.3, and up to a voxel and its corners at either end


@dims
def test_a_field_of_strength_5_is_nowhere_stronger_than_it_says_and_differs_between_images(d):
    fields = (corrupted("bias", 5, torch.full((50, 1, *[12] * d), 0.15)) / 0.15).log().flatten(1)
    assert 0.8 < fields.abs().max() <= 1.6 + 1e-5
    assert fields.std(dim=1).min() > 0.1
    assert torch.corrcoef(fields).fill_diagonal_(0).max() < 0.999


@names
@pytest.mark.parametrize("strength", [0, 6, -1, 2.5])
def test_a_strength_that_there_is_not_is_refused(name, strength):
    with pytest.raises(ValueError, match=rf"strength {strength}: a whole number from 1 to 5"):
        CORRUPTIONS[name](strength, 2)
