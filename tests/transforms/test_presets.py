import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.transforms import Compose

from medclr.data.loader import view_rng
from medclr.errors import UsageError
from medclr.transforms import PRESETS, Normalise, build_views
from medclr.transforms.presets import check_without, step_names

presets = pytest.mark.parametrize("preset", sorted(PRESETS))
dims = pytest.mark.parametrize("d", [2, 3])
few = settings(max_examples=8, deadline=None)


def stacked(views, rngs):
    draws = [views.draw(rng) for rng in rngs]
    return {name: torch.from_numpy(np.stack([draw[name] for draw in draws])) for name in draws[0]}


def some(views, n):
    return stacked(views, [np.random.default_rng(seed) for seed in range(n)])


@presets
@dims
def test_blocks_in_the_stores_unit_become_views_between_0_and_1(preset, d):
    views = build_views(preset, d)
    blocks = torch.randint(-1000, 1000, (6, 1, *[10] * d), dtype=torch.int16)
    images = views.apply(blocks, some(views, 6), torch.full((6,), -500.0), torch.full((6,), 500.0))
    assert images.shape == blocks.shape
    assert images.dtype == torch.float32
    assert images.min() >= 0
    assert images.max() <= 1 + 1e-6
    assert (images.flatten(1).std(dim=1) > 0.01).all()


@presets
@dims
def test_a_view_depends_on_its_own_block_and_parameters_alone(preset, d):
    views = build_views(preset, d)
    params, blocks = some(views, 4), torch.rand(4, 1, *[9] * d)
    low, high = torch.tensor([0.0, 0.1, 0.2, 0.3]), torch.tensor([1.0, 0.9, 0.8, 0.7])
    together = views.apply(blocks, params, low, high)
    for i in range(4):
        one = slice(i, i + 1)
        alone = views.apply(blocks[one], {name: value[one] for name, value in params.items()}, low[one], high[one])
        torch.testing.assert_close(together[one], alone, atol=1e-5, rtol=0)
    assert torch.equal(together, views.apply(blocks, params, low, high))


@presets
@dims
def test_parameters_are_flat_named_float32_of_fixed_shape(preset, d):
    views = build_views(preset, d)
    first, second = (views.draw(np.random.default_rng(seed)) for seed in (0, 1))
    assert {name.partition(".")[0] for name in first} == set(views.steps)
    assert first["crop.centre"].shape == (d,)
    for name, value in first.items():
        assert value.dtype == np.float32
        assert value.shape == second[name].shape


@presets
def test_another_seed_epoch_item_or_view_draws_another_view_and_the_same_draws_the_same(preset):
    views = build_views(preset, 2)
    keys = list(itertools.product(range(3), repeat=4))
    drawn = {key: views.draw(view_rng(*key))["crop.centre"].tobytes() for key in keys}
    assert len(set(drawn.values())) == len(keys)
    assert all(views.draw(view_rng(*key))["crop.centre"].tobytes() == drawn[key] for key in keys)


@presets
@dims
def test_left_and_right_are_swapped_only_where_they_mean_nothing_and_up_and_down_never(preset, d):
    assert some(build_views(preset, d), 60)["crop.flip"].sum() == 0
    flip = some(build_views(preset, d, laterality=False), 60)["crop.flip"]
    assert 10 < flip[:, 0].sum() < 50
    assert flip[:, 1:].sum() == 0


@presets
@dims
@few
@given(seed=st.integers(0, 2**31))
def test_intensities_of_no_preset_change_the_order_of_grey_values(preset, d, seed):
    views = build_views(preset, d)
    ramp = (
        torch.linspace(0, 1, 4**6 if d == 3 else 24**2).view(1, 1, *[16 if d == 3 else 24] * d).repeat(12, 1, *[1] * d)
    )
    params = stacked(views, [np.random.default_rng(seed + i) for i in range(12)])
    seen = set()
    for step in views.steps.keys() - {"crop"}:
        own = {name.partition(".")[2]: value for name, value in params.items() if name.startswith(f"{step}.")}
        dark, light = torch.full_like(ramp, 0.3), torch.full_like(ramp, 0.4)
        # Of whatever two images of one grey value each, the lighter stays the lighter, voxel by voxel.
        assert (views.steps[step].apply(light, own) >= views.steps[step].apply(dark, own) - 1e-6).all(), step
        if step in {"window", "histogram", "equalise", "intensity", "gain"}:
            assert (views.steps[step].apply(ramp, own).flatten(1).diff(dim=1) >= -1e-6).all(), step
            seen.add(step)
        else:
            assert step in {"blur", "noise", "bias", "gibbs"}
    assert len(seen) >= 2


@presets
@dims
@few
@given(seed=st.integers(0, 2**31))
def test_what_is_on_the_left_stays_on_the_left_and_what_is_below_below(preset, d, seed):
    # What maps grey values alone cannot move a thing, but would hide the ground.
    maps = {"histogram", "equalise", "intensity", "gain"} & set(step_names(preset))
    views, side = build_views(preset, d, without=sorted(maps)), 20
    block = torch.full((10, 1, *[side] * d), 0.2)
    for axis in range(d):
        middle = [slice(8, 12)] * d
        middle[axis] = slice(0, 4)
        marked = block.clone()
        marked[(slice(None), 0, *middle)] = 1.0
        params = stacked(views, [np.random.default_rng(seed + i) for i in range(10)])
        images = [views.apply(blocks, params, torch.zeros(10), torch.ones(10)) for blocks in (marked, block)]
        marker = (images[0] - images[1]).abs().movedim(2 + axis, 1).flatten(2).sum(dim=2)
        half = side // 2
        assert (marker[:, :half].sum(dim=1) >= marker[:, half:].sum(dim=1)).all(), axis


EXTREMES = [0.0, 1.0, -1.0, 1e38, -1e38, 1e-38, 32767, -32768, 3.5]


@presets
@dims
@few
@given(seed=st.integers(0, 2**31), data=st.data())
def test_views_stay_finite_and_between_0_and_1_whatever_the_blocks_hold(preset, d, seed, data):
    views = build_views(preset, d)
    rng = np.random.default_rng(seed)
    kept = data.draw(st.lists(st.sampled_from(EXTREMES), min_size=1, max_size=4))
    blocks = torch.from_numpy(rng.choice(np.array(kept, np.float32), (6, 1, *[9] * d)))
    blocks[3] = kept[0]  # a constant volume
    blocks[4, ..., 5:] = 0  # one smaller than the block, filled up
    low = torch.from_numpy(rng.choice(np.array(kept, np.float32), 6))
    high = low + data.draw(st.sampled_from([1e-3, 1.0, 1400.0, 1e38]))
    high = torch.where(high > low, high, torch.nextafter(low, torch.tensor(torch.inf)))
    images = views.apply(blocks, stacked(views, [np.random.default_rng(seed + i) for i in range(6)]), low, high)
    assert torch.isfinite(images).all()
    assert images.min() >= 0
    assert images.max() <= 1 + 1e-6


@presets
def test_steps_can_be_left_out(preset):
    for step in step_names(preset, laterality=False):
        whole, less = build_views(preset, 3, False), build_views(preset, 3, False, without=[step])
        params = some(less, 40)
        if step in {"crop", "rotation", "flip"}:
            name = {"crop": "crop.size", "rotation": "crop.rotation_deg", "flip": "crop.flip"}[step]
            assert (params[name] == (1 if step == "crop" else 0)).all()
            assert not (some(whole, 40)[name] == (1 if step == "crop" else 0)).all()
        elif step == "window":
            assert (params["window.shift"] == 0).all()
            assert (params["window.scale"] == 1).all()
        else:
            assert list(less.steps) == [name for name in whole.steps if name != step]
    blocks = torch.rand(4, 1, 8, 8, 8) * 50
    none = build_views(preset, 3, False, without=step_names(preset, laterality=False))
    low, high = torch.full((4,), 10.0), torch.full((4,), 40.0)
    assert torch.equal(none.apply(blocks, some(none, 4), low, high), Normalise.apply(blocks, low, high))


def test_a_step_that_a_preset_does_not_have_is_named_with_those_that_it_has():
    with pytest.raises(UsageError, match=r"--without gibbs: no step of preset ct, which has crop, rotation, window, "):
        build_views("ct", 3, without=["blur", "gibbs"])
    with pytest.raises(UsageError, match=r"--without flip"):
        build_views("ct", 3, laterality=True, without=["flip"])
    with pytest.raises(UsageError, match=r"--without window"):
        build_views("mr", 3, without=["window"])


def test_a_step_of_no_preset_is_told_before_the_preset_is_known():
    check_without(["gibbs", "flip", "window"])
    with pytest.raises(UsageError, match=r"--without hue: no preset has such a step; there are crop, .*gibbs"):
        check_without(["blur", "hue"])


@pytest.mark.parametrize("d", [2, 3])
def test_a_long_batch_is_the_same_as_its_items(d, monkeypatch):
    views = build_views("mr", d)
    params, blocks = some(views, 9), torch.rand(9, 1, *[8] * d)
    whole = views.apply(blocks, params, torch.zeros(9), torch.ones(9))
    monkeypatch.setattr("medclr.transforms.presets._CACHED", 2 * 8**d)
    parts = views.apply(blocks, params, torch.zeros(9), torch.ones(9))
    torch.testing.assert_close(parts, whole, atol=1e-6, rtol=0)


def test_only_ct_moves_its_window_since_only_hounsfield_units_have_one():
    moved = {preset: some(build_views(preset, 2), 20)["window.shift"].abs().sum() > 0 for preset in PRESETS}
    assert moved == {"ct": True, "mr": False, "pet": False, "xray": False, "us": False}


@presets
def test_the_share_that_a_view_shows_can_be_chosen(preset):
    assert some(build_views(preset, 2), 60)["crop.size"].prod(dim=1).min() < 0.4
    assert some(build_views(preset, 2, scale=(0.8, 1.0)), 60)["crop.size"].prod(dim=1).min() > 0.8 - 1e-5


def test_its_steps_make_a_monai_compose():
    compose = Compose(list(build_views("xray", 2).steps.values())).set_random_state(seed=3)
    image = torch.rand(1, 12, 12)
    first, second = compose(image), compose(image)
    assert first.shape == image.shape
    assert not torch.allclose(first, second)


def test_an_unknown_preset_is_named_with_the_ones_there_are():
    with pytest.raises(UsageError, match=r"'dental'.*ct, mr, pet, xray, us"):
        build_views("dental", 2)


def test_integers_are_the_views_of_the_same_floats_and_earlier_views_stay_as_they_were():
    views = build_views("ct", 3)
    rng = np.random.default_rng(0)
    drawn = [views.draw(rng) for _ in range(3)]
    params = {name: torch.from_numpy(np.stack([one[name] for one in drawn])) for name in drawn[0]}
    stored = [torch.from_numpy(rng.integers(-1000, 400, (3, 1, 12, 12, 12), dtype=np.int16)) for _ in range(2)]
    low, high = torch.full((3,), -1000.0), torch.full((3,), 400.0)
    with torch.inference_mode():
        views.apply(stored[1], params, low, high)
    first = views.apply(stored[0], params, low, high)
    before = first.clone()
    views.apply(stored[1], params, low, high)
    assert torch.equal(first, before)
    assert torch.equal(first, build_views("ct", 3).apply(stored[0].float(), params, low, high))
