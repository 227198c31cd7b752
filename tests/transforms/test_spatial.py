import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.data import MetaTensor
from monai.transforms import Affine, Compose, Flip
from scipy.ndimage import map_coordinates

from medclr.transforms import ResizedCrop
from medclr.transforms.spatial import _gridded

SHAPES = {2: (12, 15), 3: (8, 9, 11)}
dims = pytest.mark.parametrize("d", [2, 3])
few = settings(max_examples=20, deadline=None)


def params_of(d, centre=0.5, size=1.0, rotation_deg=0.0, flip=0.0):
    def row(value, n):
        return torch.as_tensor(value, dtype=torch.float32).expand(n)[None]

    n_angles = 1 if d == 2 else 3
    return {
        "centre": row(centre, d),
        "size": row(size, d),
        "rotation_deg": row(rotation_deg, n_angles),
        "flip": row(flip, d),
    }


def stacked(transform, seeds):
    draws = [transform.draw(np.random.default_rng(seed)) for seed in seeds]
    return {name: torch.from_numpy(np.stack([draw[name] for draw in draws])) for name in draws[0]}


def naive(image, params):
    """One channel of one item, voxel by voxel coordinates, resampled by SciPy."""
    shape = np.array(image.shape)
    index = np.stack(np.meshgrid(*map(np.arange, image.shape), indexing="ij")).reshape(len(shape), -1)
    offset = ((index + 0.5) / shape[:, None] - 0.5) * (params["size"] * shape * (1 - 2 * params["flip"]))[:, None]
    angles = np.deg2rad(params["rotation_deg"].astype(float))
    turn = np.eye(len(shape))
    if len(shape) == 2:
        (a,) = angles
        turn = np.array([[np.cos(a), -np.sin(a)], [np.sin(a), np.cos(a)]])
    else:
        a, b, c = angles
        turn = (
            np.array([[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]])
            @ np.array([[np.cos(b), 0, np.sin(b)], [0, 1, 0], [-np.sin(b), 0, np.cos(b)]])
            @ np.array([[np.cos(c), -np.sin(c), 0], [np.sin(c), np.cos(c), 0], [0, 0, 1]])
        )
    place = turn @ offset + (params["centre"] * shape)[:, None] - 0.5
    return map_coordinates(image, place, order=1, mode="nearest").reshape(image.shape)


@dims
def test_the_whole_block_unturned_is_the_block(d):
    image = torch.rand(1, 2, *SHAPES[d])
    torch.testing.assert_close(ResizedCrop(d).apply(image, params_of(d)), image, atol=1e-5, rtol=0)


@dims
@few
@given(seed=st.integers(0, 2**31))
def test_what_is_drawn_is_what_scipy_resamples(d, seed):
    transform = ResizedCrop(d, scale=(0.2, 1.0), rotation_deg=30, flips=(True,) * d)
    drawn = transform.draw(np.random.default_rng(seed))
    image = np.random.default_rng(seed).random(SHAPES[d], dtype=np.float32)
    batch = {name: torch.from_numpy(value)[None] for name, value in drawn.items()}
    ours = transform.apply(torch.from_numpy(image)[None, None], batch)[0, 0]
    np.testing.assert_allclose(ours, naive(image, drawn), atol=2e-4)


def test_a_crop_on_voxel_borders_is_torchs_interpolation_of_that_box():
    image = torch.rand(1, 1, 16, 24)
    ours = ResizedCrop(2).apply(
        image, params_of(2, centre=torch.tensor([8 / 16, 9 / 24]), size=torch.tensor([0.5, 0.5]))
    )
    box = F.interpolate(image[:, :, 4:12, 3:15], (16, 24), mode="bilinear", align_corners=False)
    # At its border the box alone has no neighbours; inside the block it has.
    torch.testing.assert_close(ours[..., 1:-1, 1:-1], box[..., 1:-1, 1:-1], atol=1e-5, rtol=0)


@dims
def test_a_mirrored_axis_is_monais_flip(d):
    image = torch.rand(1, *SHAPES[d])
    for axis in range(d):
        flip = torch.zeros(d)
        flip[axis] = 1
        ours = ResizedCrop(d).apply(image[None], params_of(d, flip=flip))[0]
        torch.testing.assert_close(ours, Flip(axis)(image).as_tensor(), atol=1e-5, rtol=0)


@pytest.mark.parametrize("degrees", [[10.0], [-35.0], [10.0, -20.0, 30.0]])
def test_a_rotation_is_monais_affine(degrees):
    d = 2 if len(degrees) == 1 else 3
    image = torch.rand(1, *SHAPES[d])
    ours = ResizedCrop(d).apply(image[None], params_of(d, rotation_deg=torch.tensor(degrees)))[0]
    theirs, _ = Affine(rotate_params=np.deg2rad(degrees).tolist(), padding_mode="border")(image)
    torch.testing.assert_close(ours, theirs.as_tensor(), atol=2e-4, rtol=0)


@dims
@few
@given(seed=st.integers(0, 2**31), low=st.floats(0.05, 1), ratio=st.floats(1, 2))
def test_the_box_stays_inside_and_takes_the_share_that_was_asked_for(d, seed, low, ratio):
    drawn = ResizedCrop(d, scale=(low, 1.0), ratio=ratio).draw(np.random.default_rng(seed))
    centre, size = drawn["centre"], drawn["size"]
    assert (centre - size / 2 > -1e-6).all()
    assert (centre + size / 2 < 1 + 1e-6).all()
    assert low - 1e-5 <= np.prod(size) <= 1 + 1e-5
    assert size.max() / size.min() <= ratio + 1e-5
    assert np.abs(drawn["rotation_deg"]).max() <= 10


@dims
def test_every_item_has_its_own_parameters_and_depends_on_no_other(d):
    transform = ResizedCrop(d, flips=(True,) + (False,) * (d - 1))
    params = stacked(transform, range(4))
    batch = torch.rand(4, 1, *SHAPES[d])
    together = transform.apply(batch, params)
    for i in range(4):
        alone = transform.apply(batch[i : i + 1], {name: value[i : i + 1] for name, value in params.items()})
        torch.testing.assert_close(together[i : i + 1], alone, atol=1e-6, rtol=0)
    assert len({tuple(row.tolist()) for row in params["centre"]}) == 4


def test_only_axes_that_may_be_are_mirrored_half_of_the_time():
    flip = stacked(ResizedCrop(3, flips=(True, False, False)), range(400))["flip"]
    assert 0.4 < flip[:, 0].mean() < 0.6
    assert flip[:, 1:].sum() == 0
    assert stacked(ResizedCrop(3), range(50))["flip"].sum() == 0


def test_scale_and_centre_cover_their_whole_range():
    params = stacked(ResizedCrop(2, scale=(0.3, 1.0)), range(400))
    share = params["size"].prod(dim=1)
    assert share.min() < 0.33
    assert share.max() > 0.97
    place = (params["centre"] - params["size"] / 2) / (1 - params["size"]).clamp(min=1e-6)
    assert place.min() < 0.02
    assert place.max() > 0.98


@dims
def test_the_whole_block_as_it_is_passes_untouched(d):
    batch, params = torch.rand(3, 1, *SHAPES[d]), stacked(ResizedCrop(d), range(3))
    for name, value in params_of(d).items():
        params[name][1] = value[0]
    ours = ResizedCrop(d).apply(batch, params)
    assert torch.equal(ours[1], batch[1])
    assert not torch.equal(ours[0], batch[0])


@dims
@few
@given(seed=st.integers(0, 2**31), turned=st.sampled_from([0, 0.5, 1]), grow=st.sampled_from([0.4, 1.0, 1.7]))
def test_a_view_of_another_size_is_torchs_grid_sample(d, seed, turned, grow):
    size = tuple(max(1, round(side * grow)) + axis for axis, side in enumerate(SHAPES[d]))
    transform = ResizedCrop(d, size, (0.2, 1), turned=turned, flips=(True,) * d)
    params = stacked(transform, range(seed, seed + 5))
    batch = torch.rand(5, 2, *SHAPES[d], generator=torch.Generator().manual_seed(seed))
    ours = transform.apply(batch, params)
    assert ours.shape == (5, 2, *size)
    torch.testing.assert_close(ours, _gridded(batch, params, size), atol=2e-4 if turned else 2e-5, rtol=0)


@pytest.mark.parametrize("shape", [(1, 9, 10), (2, 9, 10), (9, 1, 10), (9, 10, 1)])
@pytest.mark.parametrize("turned", [0, 1])
def test_volumes_of_few_planes_are_resampled_too(shape, turned):
    params = stacked(ResizedCrop(3, turned=turned), range(4))
    batch = torch.rand(4, 1, *shape)
    ours = ResizedCrop(3).apply(batch, params)
    torch.testing.assert_close(ours, _gridded(batch, params, shape), atol=1e-4, rtol=0)


def test_in_a_large_volume_places_are_off_by_thousandths_of_a_voxel():
    side = 128
    ramp = torch.arange(side, dtype=torch.float32).expand(side, side, side)
    batch = torch.stack([ramp, ramp.transpose(1, 2), ramp.transpose(0, 2)])[:, None]
    params = {name: value[:1].expand(3, -1) for name, value in stacked(ResizedCrop(3), [4]).items()}
    ours = ResizedCrop(3, (24,) * 3).apply(batch, params)
    torch.testing.assert_close(ours, _gridded(batch, params, (24,) * 3), atol=4e-3, rtol=0)


def test_its_share_of_the_views_is_turned():
    degrees = stacked(ResizedCrop(3, turned=0.3), range(600))["rotation_deg"]
    assert 0.25 < (degrees != 0).any(dim=1).float().mean() < 0.35


@dims
def test_the_weakest_shows_all_and_the_strongest_the_smallest_box_turned_and_mirrored(d):
    weakest, strongest = ResizedCrop(d, scale=(0.3, 1.0), flips=(True,) + (False,) * (d - 1)).extremes()
    drawn = ResizedCrop(d).draw(np.random.default_rng(0))
    for params in (weakest, strongest):
        assert {name: value.shape for name, value in params.items()} == {n: v.shape for n, v in drawn.items()}
    batch = torch.rand(1, 1, *SHAPES[d])
    assert torch.equal(ResizedCrop(d).apply(batch, {n: torch.from_numpy(v)[None] for n, v in weakest.items()}), batch)
    assert strongest["size"].prod() == pytest.approx(0.3)
    assert strongest["centre"] == pytest.approx(strongest["size"] / 2)
    assert (strongest["rotation_deg"] == 10).all()
    assert strongest["flip"].tolist() == [1] + [0] * (d - 1)


def test_it_works_in_a_monai_compose_and_obeys_its_seed():
    image = MetaTensor(torch.rand(1, 12, 12))
    compose = Compose([ResizedCrop(2)])
    first, other = (compose.set_random_state(seed=seed)(image) for seed in (1, 2))
    again = compose.set_random_state(seed=1)(image.numpy())
    assert type(first) is torch.Tensor
    assert first.shape == image.shape
    torch.testing.assert_close(first, again)
    assert not torch.allclose(first, other)
