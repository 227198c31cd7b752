import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.transforms import AdjustContrast, Compose, HistogramNormalize, RandHistogramShift, ScaleIntensityRange

from medclr.transforms import Equalise, Gain, HistogramShift, Intensity, Normalise, WindowJitter

few = settings(max_examples=30, deadline=None)
dims = pytest.mark.parametrize("shape", [(9, 13), (7, 8, 9)], ids=["2D", "3D"])


def stacked(transform, seeds):
    draws = [transform.draw(np.random.default_rng(seed)) for seed in seeds]
    return {name: torch.from_numpy(np.stack([draw[name] for draw in draws])) for name in draws[0]}


def test_normalise_is_monais_intensity_range_with_a_window_per_item():
    batch = torch.randn(3, 1, 6, 7) * 500
    low, high = torch.tensor([-1000.0, -160, 0]), torch.tensor([400.0, 240, 80])
    ours = Normalise.apply(batch, low, high)
    for i in range(3):
        theirs = ScaleIntensityRange(low[i].item(), high[i].item(), 0, 1, clip=True)(batch[i])
        torch.testing.assert_close(ours[i], torch.as_tensor(theirs), atol=1e-6, rtol=0)
    single = Normalise(-160, 240)(batch[1].numpy())
    torch.testing.assert_close(single, ours[1])


def test_a_moved_and_widened_window_is_the_window_it_says():
    batch = torch.randn(2, 1, 5, 5) * 300
    params = {"shift": torch.tensor([0.1, 0.0]), "scale": torch.tensor([1.0, 2.0])}
    window = {"low": torch.tensor([-100.0, 0.0]), "high": torch.tensor([100.0, 100.0])}
    ours = WindowJitter().apply(batch, params | window)
    # 20 HU up; then 100 wide becomes 200 wide about 50.
    torch.testing.assert_close(ours, Normalise.apply(batch, torch.tensor([-80.0, -50]), torch.tensor([120.0, 150])))


def test_a_window_that_is_not_moved_is_the_window_bit_for_bit():
    batch, window = torch.randn(50, 1, 5, 5) * 300, {"low": torch.randn(50) * 100}
    window["high"] = window["low"] + torch.rand(50) * 1000 + 1
    params = stacked(WindowJitter(probability=0), range(50))
    ours = WindowJitter().apply(batch, params | window)
    assert torch.equal(ours, Normalise.apply(batch, window["low"], window["high"]))


def test_no_jitter_is_normalise_and_the_window_given_at_the_start_serves_single_images():
    image = torch.randn(1, 5, 5) * 300
    ours = Compose([WindowJitter(shift=0, width=0, low=-160, high=240)])(image)
    torch.testing.assert_close(ours, Normalise(-160, 240)(image), atol=1e-6, rtol=0)


def test_window_jitter_draws_within_its_bounds():
    params = stacked(WindowJitter(shift=0.05, width=0.2), range(300))
    assert 0.045 < params["shift"].abs().max() <= 0.05
    assert 0.18 < params["scale"].log().abs().max() <= 0.2 + 1e-6
    assert params["shift"].min() < 0 < params["shift"].max()


@pytest.mark.parametrize("gamma", [0.5, 1.0, 1.8])
def test_gamma_is_monais_adjust_contrast(gamma):
    image = torch.rand(1, 8, 8)
    image[0, 0, :2] = torch.tensor([0.0, 1.0])  # MONAI stretches what does not fill [0, 1]
    params = {"gamma": torch.tensor([gamma]), "contrast": torch.ones(1), "brightness": torch.zeros(1)}
    ours = Intensity().apply(image[None], params)[0]
    torch.testing.assert_close(ours, AdjustContrast(gamma)(image).as_tensor(), atol=1e-5, rtol=0)


def test_contrast_is_about_the_mean_of_each_image_and_brightness_is_added():
    batch = torch.rand(3, 2, 4, 5)
    contrast, brightness = torch.tensor([0.5, 1.0, 1.5]), torch.tensor([0.1, -0.2, 0.0])
    params = {"gamma": torch.ones(3), "contrast": contrast, "brightness": brightness}
    before = batch.clone()
    ours = Intensity().apply(batch, params)
    for i in range(3):
        mean = batch[i].mean()
        expected = ((batch[i] - mean) * contrast[i] + mean + brightness[i]).clamp(0, 1)
        torch.testing.assert_close(ours[i], expected, atol=1e-6, rtol=0)
    assert torch.equal(batch, before), "the blocks are changed in place"


@few
@given(seed=st.integers(0, 2**31), strength=st.sampled_from([0.1, 0.5, 2.0]))
def test_grey_values_keep_their_order_and_their_range(seed, strength):
    transform = Intensity(brightness=strength, contrast=strength, gamma=strength)
    ramp = torch.linspace(-1e-6, 1 + 1e-6, 200).view(1, 1, 10, 20).repeat(30, 1, 1, 1)
    params = stacked(transform, range(seed, seed + 30))
    assert (params["contrast"] > 0).all()
    assert (params["gamma"] > 0).all()
    ours = transform.apply(ramp, params).flatten(1)
    assert torch.isfinite(ours).all()
    assert ours.min() >= 0
    assert ours.max() <= 1
    assert (ours.diff(dim=1) >= -1e-6).all()


def test_gain_multiplies_so_that_nothing_stays_nothing():
    batch = torch.tensor([[[0.0, 0.2, 0.9]], [[0.0, 0.5, 1.0]]])
    params = {"factor": torch.tensor([0.5, 1.2])}
    torch.testing.assert_close(Gain().apply(batch, params), torch.tensor([[[0.0, 0.1, 0.45]], [[0.0, 0.6, 1.0]]]))
    drawn = np.array([float(Gain(factor=0.4).draw(np.random.default_rng(seed))["factor"]) for seed in range(200)])
    assert np.exp(-0.4) <= drawn.min() < 0.75
    assert 1.35 < drawn.max() <= np.exp(0.4)


@dims
@pytest.mark.parametrize("n_points", [3, 6, 10])
def test_histogram_shift_is_monais_for_the_same_points(shape, n_points):
    transform = HistogramShift(n_points, strength=1, probability=1)
    batch = torch.randn(4, 2, *shape) * 50
    params = stacked(transform, range(4))
    ours = transform.apply(batch, params)
    theirs = RandHistogramShift(n_points, prob=1)
    for i in range(4):
        theirs.randomize()
        theirs.floating_control_points = params["points"][i].numpy()
        expected = theirs(batch[i], randomize=False)
        torch.testing.assert_close(ours[i], expected.as_tensor(), atol=1e-4, rtol=0)


@few
@given(seed=st.integers(0, 2**31), n_points=st.integers(3, 12), strength=st.floats(0.01, 1))
def test_histogram_shift_keeps_the_ends_and_its_slopes_within_its_strength(seed, n_points, strength):
    points = stacked(HistogramShift(n_points, strength, probability=1), range(seed, seed + 20))["points"]
    assert (points[:, 0] == 0).all()
    assert (points[:, -1] == 1).all()
    slopes = points.diff(dim=1) * (n_points - 1)
    assert slopes.min() >= 1 - strength - 1e-5
    assert slopes.max() <= 1 + strength + 1e-5


@dims
def test_equalising_is_monais_histogram_normalisation_and_a_share_of_it_is_mixed(shape):
    batch = torch.rand(3, 2, *shape) ** 3 * 0.8 + 0.1
    ours = Equalise().apply(batch, {"amount": torch.tensor([1.0, 1.0, 0.25])})
    for i, amount in enumerate([1, 1, 0.25]):
        equal = HistogramNormalize(num_bins=256, min=0, max=1)(batch[i]).as_tensor()
        # A voxel on the edge of two bins may be counted in either.
        torch.testing.assert_close(ours[i], batch[i] + amount * (equal - batch[i]), atol=2 / batch[0].numel(), rtol=0)


def test_equalised_grey_values_are_spread_evenly():
    image = torch.rand(1, 1, 100, 100) ** 4
    ours = Equalise().apply(image, {"amount": torch.ones(1)})
    counts = torch.histc(ours, bins=4, min=0, max=1) / ours.numel()
    assert torch.histc(image, bins=4, min=0, max=1)[0] > 0.6 * image.numel()
    # The first bin in 256 holds a quarter of such an image and cannot be spread.
    assert counts.min() > 0.1
    assert (ours.flatten()[image.flatten().argsort()].diff() >= -1e-6).all()


@pytest.mark.parametrize("transform", [HistogramShift(probability=1), Equalise(probability=1)])
@pytest.mark.parametrize("grey", [0.0, 0.37, 1.0])
def test_an_image_of_one_grey_value_keeps_it(transform, grey):
    batch = torch.full((2, 1, 6, 6), grey)
    torch.testing.assert_close(transform.apply(batch, stacked(transform, range(2))), batch, atol=1e-6, rtol=0)
