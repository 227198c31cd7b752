import numpy as np
import pytest
import torch
from monai.transforms import Compose
from torch.nn.functional import interpolate

from medclr.transforms import (
    BiasField,
    Blur,
    Equalise,
    Gain,
    Gibbs,
    HistogramShift,
    Intensity,
    Motion,
    Noise,
    ResizedCrop,
    Resolution,
    WindowJitter,
)
from medclr.transforms.augmentation import Augmentation

dims = pytest.mark.parametrize("shape", [(9, 13), (7, 8, 9)], ids=["2D", "3D"])
KINDS = {
    "window": lambda d, p: WindowJitter(probability=p),
    "histogram": lambda d, p: HistogramShift(probability=p),
    "equalise": lambda d, p: Equalise(probability=p),
    "intensity": lambda d, p: Intensity(probability=p),
    "gain": lambda d, p: Gain(probability=p),
    "blur": lambda d, p: Blur(probability=p),
    "noise": lambda d, p: Noise(probability=p),
    "bias": lambda d, p: BiasField(d, probability=p),
    "gibbs": lambda d, p: Gibbs(probability=p),
    "resolution": lambda d, p: Resolution(probability=p),
    "motion": lambda d, p: Motion(d, probability=p),
}
kinds = pytest.mark.parametrize("make", KINDS.values(), ids=list(KINDS))


def stacked(transform, seeds):
    draws = [transform.draw(np.random.default_rng(seed)) for seed in seeds]
    return {name: torch.from_numpy(np.stack([draw[name] for draw in draws])) for name in draws[0]}


def test_no_augmentation_is_left_out_here():
    drawn = {type(make(2, 1)) for make in KINDS.values()} | {ResizedCrop}
    assert drawn == set(Augmentation.__subclasses__())


@kinds
@dims
def test_every_item_has_its_own_parameters_and_depends_on_no_other(make, shape):
    transform = make(len(shape), 1)
    params = stacked(transform, range(4))
    batch = torch.rand(4, 1, *shape)
    before = batch.clone()
    together = transform.apply(batch, params)
    assert together.shape == batch.shape
    assert torch.equal(batch, before), "the blocks are changed in place"
    for i in range(4):
        alone = transform.apply(batch[i : i + 1], {name: value[i : i + 1] for name, value in params.items()})
        torch.testing.assert_close(together[i : i + 1], alone, atol=1e-6, rtol=0)
        assert not torch.allclose(together[i], batch[i], atol=1e-4)
    for name, value in params.items():
        assert len(value.unique(dim=0)) == 4, name


@kinds
@dims
def test_items_that_do_not_get_it_are_untouched_and_no_work_is_done_on_them(make, shape, monkeypatch):
    transform = make(len(shape), 0.5)
    params, batch = stacked(transform, range(24)), torch.rand(24, 1, *shape)
    off = make(len(shape), 0)
    assert torch.equal(off.apply(batch, stacked(off, range(24))), batch)
    worked = []
    change = transform.change
    monkeypatch.setattr(transform, "change", lambda some, own: worked.append(len(some)) or change(some, own))
    ours = transform.apply(batch, params)
    same = torch.tensor([torch.equal(a, b) for a, b in zip(ours, batch, strict=True)])
    assert 4 <= same.sum() <= 20
    if not isinstance(transform, WindowJitter):  # which windows all
        assert worked == [int((~same).sum())]
        transform.apply(batch[same], {name: value[same] for name, value in params.items()})
        assert len(worked) == 1


@kinds
@dims
def test_what_is_not_a_number_stays_so_for_training_to_see_and_harms_no_neighbour(make, shape):
    transform, batch = make(len(shape), 1), torch.rand(3, 1, *shape)
    params, clean = stacked(transform, range(3)), batch.clone()
    batch[1, 0, 4, 4] = torch.nan
    ours, expected = transform.apply(batch, params), transform.apply(clean, params)
    assert ours[1].isnan().any()
    torch.testing.assert_close(ours[::2], expected[::2], atol=1e-6, rtol=0)


@kinds
def test_its_share_of_the_views_gets_it(make):
    transform = make(2, 0.3)
    weakest, _ = make(2, 0).extremes()
    params = stacked(transform, range(600))
    if isinstance(transform, WindowJitter):
        got = (params["shift"] != 0).float().mean()
        assert weakest["shift"] == 0
    else:
        got = transform.active(params).float().mean()
    assert 0.25 < got < 0.35


@kinds
@dims
def test_they_work_in_a_monai_compose_and_obey_its_seed(make, shape):
    image = torch.rand(1, *shape)
    compose = Compose([make(len(shape), 1)])
    first, again, other = (compose.set_random_state(seed=seed)(image) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.allclose(first, other)


@kinds
@dims
def test_what_is_drawn_lies_between_the_weakest_and_the_strongest(make, shape):
    transform = make(len(shape), 1)
    # Dark for the most part: equalisation hardly moves grey values that are spread evenly. And smooth: the weakest loss
    # of resolution takes all that differs from each voxel to the next.
    coarse = torch.rand(1, 1, *[4] * len(shape), generator=torch.Generator().manual_seed(0)).square()
    batch = interpolate(coarse, shape, mode="bilinear" if len(shape) == 2 else "trilinear").clamp(0.02, 0.98)
    weakest, strongest = (
        {name: torch.from_numpy(value)[None] for name, value in params.items()} for params in transform.extremes()
    )
    drawn = stacked(transform, range(200))
    assert {name: (value.shape[1:], value.dtype) for name, value in drawn.items()} == {
        name: (value.shape[1:], value.dtype) for name, value in strongest.items()
    }
    factors = {"scale", "contrast", "gamma", "factor"}  # as far down as up in their logarithms
    for name in drawn.keys() - {"seed", "direction"}:
        least, value, most = (
            values[name].log() if name in factors else values[name] for values in (weakest, drawn, strongest)
        )
        bound = (most - least).abs().sum()
        distance = (value - least).reshape(len(value), -1).abs().sum(dim=1)
        assert (distance <= bound + 1e-5).all(), name
        assert distance.max() > 0.3 * bound, name
    much = (transform.apply(batch, strongest) - batch).abs().mean()
    little = (transform.apply(batch, weakest) - batch).abs().mean()
    assert much > max(1.5 * little, 0.01)
