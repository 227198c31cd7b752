import math

import numpy as np
import pytest
import torch
from monai.networks.layers.convutils import gaussian_1d
from monai.networks.layers.simplelayers import separable_filtering
from monai.transforms import GaussianSmooth, GibbsNoise, RandBiasField, RandSimulateLowResolution
from scipy import ndimage, stats

from medclr.transforms import BiasField, Blur, Gibbs, Motion, Noise, Resolution
from medclr.transforms.artefact import _mixed

dims = pytest.mark.parametrize("shape", [(9, 13), (7, 8, 9)], ids=["2D", "3D"])


def stacked(transform, seeds):
    draws = [transform.draw(np.random.default_rng(seed)) for seed in seeds]
    return {name: torch.from_numpy(np.stack([draw[name] for draw in draws])) for name in draws[0]}


@dims
@pytest.mark.parametrize("sigma", [0.3, 0.7, 1.0, 2.0])
def test_blur_is_monais_with_the_border_repeated(shape, sigma):
    image = torch.rand(1, 2, *shape)
    ours = Blur().apply(image, {"sigma": torch.tensor([sigma])})
    kernel = gaussian_1d(torch.tensor(sigma), truncated=4.0, approx="erf")
    theirs = separable_filtering(image, [kernel] * len(shape), mode="replicate")
    # MONAI cuts its kernel at 4 sigma and loses a 2e-4th of the light with it.
    torch.testing.assert_close(ours, theirs, atol=3e-4, rtol=0)


@dims
def test_a_sigma_of_each_side_is_so_many_voxels_along_it(shape):
    image = torch.rand(1, 2, *shape)
    ours = Blur(of_side=True).apply(image, {"sigma": torch.tensor([0.1])})
    kernels = [gaussian_1d(torch.tensor(0.1 * side), truncated=4.0, approx="erf") for side in shape]
    torch.testing.assert_close(ours, separable_filtering(image, kernels, mode="replicate"), atol=3e-4, rtol=0)


def test_away_from_the_border_blur_is_monais_gaussian_smooth():
    image = torch.rand(1, 20, 20)
    ours = Blur().apply(image[None], {"sigma": torch.tensor([1.0])})[0]
    theirs = torch.as_tensor(GaussianSmooth(sigma=1.0)(image))
    torch.testing.assert_close(ours[:, 4:-4, 4:-4], theirs[:, 4:-4, 4:-4], atol=3e-4, rtol=0)


@dims
def test_sigma_zero_changes_nothing_and_a_flat_image_stays_flat(shape):
    image = torch.rand(2, 1, *shape)
    image[1] = 0.7
    ours = Blur().apply(image, {"sigma": torch.tensor([0.0, 3.0])})
    assert torch.equal(ours[0], image[0])
    torch.testing.assert_close(ours[1], image[1], atol=1e-6, rtol=0)


def test_blur_is_drawn_for_its_share_of_views_and_within_its_range():
    sigma = stacked(Blur(sigma=(0.5, 1.5), probability=0.3), range(1000))["sigma"]
    drawn = sigma[sigma > 0]
    assert 0.25 < len(drawn) / 1000 < 0.35
    assert 0.5 <= drawn.min() < 0.55
    assert 1.45 < drawn.max() <= 1.5


def noise_of(seeds, shape, sigma=0.01):
    """What is added to mid-grey images, in units of sigma."""
    n = len(seeds)
    params = {"sigma": torch.full((n,), sigma), "seed": torch.tensor(seeds, dtype=torch.float32)}
    return (Noise().apply(torch.full((n, *shape), 0.5), params) - 0.5) / sigma


def test_noise_is_standard_normal_and_neighbours_and_seeds_know_nothing_of_each_other():
    seeds = [0, 1, 2, 3, 2**16, 2**24 - 1]
    noise = noise_of(seeds, (1, 101, 199)).flatten(1).double()
    for i in range(len(seeds)):
        assert stats.kstest(noise[i].numpy(), "norm").pvalue > 1e-3, seeds[i]
    limit = 5 / math.sqrt(noise.shape[1])  # five standard errors
    assert (torch.corrcoef(noise) - torch.eye(len(seeds))).abs().max() < limit
    for lag in (1, 2, 199, 101 * 199 // 2 + 1, 101 * 199 // 2):
        together = (noise[:, lag:] * noise[:, :-lag]).mean(dim=1)
        assert together.abs().max() < 5 / math.sqrt(noise.shape[1] - lag), lag
    assert (noise**3).mean(dim=1).abs().max() < limit * math.sqrt(15)
    assert ((noise**4).mean(dim=1) - 3).abs().max() < limit * math.sqrt(96)


def test_seeds_that_begin_to_count_at_nearly_the_same_place_do_not_repeat_each_other():
    start, order = _mixed(torch.arange(2**16, dtype=torch.int32)).sort()
    gap = start.diff()
    one, other = order[gap.argmin()], order[gap.argmin() + 1]
    lag, half = int(gap.min()), 10_000
    assert 0 < lag < 100
    first, second = noise_of([one, other], (1, 2, half))[:, 0, 0]
    together = torch.corrcoef(torch.stack([first[lag:], second[: half - lag]]))[0, 1]
    assert together.abs() < 5 / math.sqrt(half - lag)


def test_noise_of_thousands_of_seeds_differs_in_every_voxel():
    noise = noise_of(list(range(3000)), (1, 4, 4)).flatten(1)
    assert len(torch.unique(noise, dim=0)) == 3000
    assert stats.kstest(noise[:, 5].numpy(), "norm").pvalue > 1e-3
    assert (torch.corrcoef(noise.T) - torch.eye(16)).abs().max() < 5 / math.sqrt(3000)


def test_noise_is_as_strong_as_it_says_and_clipped_at_0_and_1():
    batch = torch.full((3, 1, 100, 100), 0.5)
    batch[2] = 0
    ours = Noise().apply(batch, {"sigma": torch.tensor([0.02, 0.1, 0.1]), "seed": torch.tensor([5.0, 6.0, 7.0])})
    assert ours[0].std() == pytest.approx(0.02, rel=0.05)
    assert ours[1].std() == pytest.approx(0.1, rel=0.05)
    assert ours[2].min() == 0
    assert (ours[2] > 0).float().mean() == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize("shape", [(9, 13), (7, 8, 9), (8, 8)])
def test_a_field_is_monais_for_the_same_coefficients(shape):
    d = len(shape)
    theirs = RandBiasField(degree=3, coeff_range=(-0.3, 0.3), prob=1).set_random_state(seed=1)
    theirs.randomize(shape)
    # MONAI keeps a triangle of the matrix in 2D, and terms of a total degree up to 3 in 3D.
    places = np.tril(np.ones((4, 4))) > 0 if d == 2 else np.indices((4, 4, 4)).sum(axis=0) <= 3
    coefficients = np.zeros((4,) * d, np.float32)
    coefficients[places] = theirs._coeff
    image = torch.rand(2, *shape)
    ours = BiasField(d).apply(image[None] * 0.1, {"coefficients": torch.from_numpy(coefficients)[None]})[0]
    expected = theirs(image * 0.1, randomize=False).as_tensor()
    assert expected.max() < 1
    torch.testing.assert_close(ours, expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("d", [2, 3])
def test_a_field_is_nowhere_stronger_than_it_says_but_not_flat(d):
    transform = BiasField(d, strength=(0, 0.7), probability=1)
    params = stacked(transform, range(200))
    fields = (transform.apply(torch.full((200, 1, *[12] * d), 0.4), params) / 0.4).log().flatten(1)
    assert fields.abs().max() <= 0.7 + 1e-5
    assert fields.std(dim=1).median() > 0.03
    none = stacked(BiasField(d, probability=0), range(3))["coefficients"]
    assert none.abs().sum() == 0


@pytest.mark.parametrize("d", [2, 3])
def test_the_strength_of_a_field_is_drawn_from_its_range(d):
    coefficients = stacked(BiasField(d, strength=(0.4, 0.7), probability=1), range(200))["coefficients"]
    strength = coefficients.flatten(1).abs().sum(dim=1)
    assert 0.4 <= strength.min() < 0.42
    assert 0.68 < strength.max() <= 0.7 + 1e-6


@pytest.mark.parametrize("shape", [(12, 15), (16, 16), (7, 8, 9), (8, 8, 8)], ids=str)
@pytest.mark.parametrize("alpha", [0.25, 0.5, 0.8])
def test_ringing_is_monais(shape, alpha):
    image = torch.rand(2, *shape) * 0.4 + 0.3
    ours = Gibbs().apply(image[None], {"alpha": torch.tensor([alpha])})[0]
    expected = GibbsNoise(alpha)(image).as_tensor()
    torch.testing.assert_close(ours, expected.clamp(0, 1), atol=1e-6, rtol=0)
    assert (ours - image).abs().mean() > 0.01


def test_each_item_rings_by_its_own_alpha():
    batch = torch.rand(3, 1, 10, 11) * 0.4 + 0.3
    ours = Gibbs().apply(batch, {"alpha": torch.tensor([0.3, 0.0, 0.7])})
    assert torch.equal(ours[1], batch[1])
    for i, alpha in ((0, 0.3), (2, 0.7)):
        torch.testing.assert_close(ours[i], GibbsNoise(alpha)(batch[i]).as_tensor().clamp(0, 1), atol=1e-6, rtol=0)


@pytest.mark.parametrize("shape", [(12, 15), (28, 28), (7, 8, 9)], ids=str)
@pytest.mark.parametrize("zoom", [0.9, 0.5, 0.3, 0.01])
def test_a_loss_of_resolution_is_monais(shape, zoom):
    image, zoom = torch.rand(2, *shape), float(np.float32(zoom))
    ours = Resolution().apply(image[None], {"zoom": torch.tensor([zoom])})[0]
    theirs = RandSimulateLowResolution(1, "area", "bilinear" if len(shape) == 2 else "trilinear", (zoom, zoom))
    torch.testing.assert_close(ours, theirs(image), atol=1e-6, rtol=0)


def test_each_item_loses_its_own_share_and_of_a_zoom_near_0_the_mean_is_left():
    batch = torch.rand(3, 1, 8, 6)
    ours = Resolution().apply(batch, {"zoom": torch.tensor([1.0, 0.01, 0.5])})
    assert torch.equal(ours[0], batch[0])
    torch.testing.assert_close(ours[1], batch[1].mean().expand(1, 8, 6))
    torch.testing.assert_close(ours[2], Resolution().apply(batch[2:], {"zoom": torch.tensor([0.5])})[0])


def moved(image, length, direction, order=1, n=2000):
    """The mean of one channel of one item over the places on its way, each resampled by SciPy."""
    way = length * np.array(direction) * np.array(image.shape)
    places = (np.arange(n) + 0.5) / n - 0.5
    return np.mean([ndimage.shift(image, place * way, order=order, mode="nearest") for place in places], axis=0)


@pytest.mark.parametrize(
    ("shape", "direction"), [((20, 31), (0.6, -0.8)), ((20, 31), (0, 1)), ((11, 12, 13), (0.48, 0.6, 0.64))]
)
@pytest.mark.parametrize("length", [0.05, 0.3])
def test_motion_is_the_mean_over_the_places_on_its_way(shape, direction, length):
    image = ndimage.gaussian_filter(np.random.default_rng(0).random(shape), 1)
    image = ((image - image.min()) / np.ptp(image)).astype(np.float32)
    params = {"length": torch.tensor([length]), "direction": torch.tensor([direction], dtype=torch.float32)}
    ours = Motion(len(shape), (0, 0.3)).apply(torch.from_numpy(image)[None, None], params)[0, 0]
    expected = moved(image, length, direction, n=200)
    np.testing.assert_allclose(ours, expected, atol=0.01)
    assert np.abs(image - expected).mean() > (0.02 if length > 0.1 else 0.002)


def test_an_edge_becomes_a_slope_as_long_as_the_way_and_along_it_nothing_changes():
    edge = (torch.arange(40) >= 20).float()
    batch = torch.stack([edge[:, None].expand(40, 50), edge[:, None].expand(40, 50)])[:, None]
    params = {"length": torch.full((2,), 0.25), "direction": torch.eye(2)}
    across, along = Motion(2, (0, 0.25)).apply(batch, params)[:, 0]
    # 10 voxels long, about the edge between voxels 19 and 20.
    slope = ((torch.arange(40) - 19.5) / 10 + 0.5).clamp(0, 1)
    torch.testing.assert_close(across, slope[:, None].expand(40, 50), atol=0.04, rtol=0)
    torch.testing.assert_close(along, batch[1, 0], atol=1e-6, rtol=0)


@pytest.mark.parametrize("d", [2, 3])
def test_motion_has_no_direction_of_its_own(d):
    direction = stacked(Motion(d, probability=1), range(1000))["direction"]
    torch.testing.assert_close(direction.norm(dim=1), torch.ones(1000))
    assert direction.mean(dim=0).abs().max() < 5 / math.sqrt(1000 * d)
    torch.testing.assert_close(direction.T @ direction / 1000, torch.eye(d) / d, atol=0.06, rtol=0)
