import itertools

import numpy as np
import pytest
import torch
from monai.transforms import Compose

from medclr.data.loader import view_rng
from medclr.errors import UsageError
from medclr.transforms import PRESETS, build_views
from medclr.transforms.intensity import Gain, Intensity, WindowJitter

presets = pytest.mark.parametrize("preset", sorted(PRESETS))
dims = pytest.mark.parametrize("d", [2, 3])


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
def test_no_preset_inverts_contrast(preset):
    views = build_views(preset, 2)
    ramp = torch.linspace(0, 1, 256).view(1, 1, 16, 16).repeat(50, 1, 1, 1)
    params = some(views, 50)
    for step, transform in views.steps.items():
        if isinstance(transform, WindowJitter | Intensity | Gain):
            own = {name.partition(".")[2]: value for name, value in params.items() if name.startswith(f"{step}.")}
            assert (transform.apply(ramp, own).flatten(1).diff(dim=1) >= -1e-6).all(), step
        else:
            assert step in {"crop", "blur"}


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
