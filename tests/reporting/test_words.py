import math

import numpy as np
import pytest

from medclr.reporting.numbers import percent
from medclr.reporting.words import in_words, number
from medclr.transforms.augmentation import Augmentation
from medclr.transforms.intensity import WindowJitter
from medclr.transforms.presets import PRESETS, Views, build_views
from medclr.transforms.spatial import ResizedCrop


def words(step: str, window_hu: tuple[float, float] | None = None, **params: object) -> list[str]:
    """Of one step with these parameters, whichever preset has it."""
    found: Augmentation = next(s for name in PRESETS for key, s in build_views(name, 3).steps.items() if key == step)
    values = {f"{step}.{name}": np.array(value, np.float32) for name, value in params.items()}
    return in_words(Views({step: found}), values, window_hu)


@pytest.mark.parametrize(
    ("step", "params", "expected"),
    [
        (
            "crop",
            {"size": [0.8, 0.5, 0.75], "flip": [0, 0, 0], "rotation_deg": [1.23, 0, -10]},
            "30% of the block, turned by 1.2°, 0°, −10° about left–right, front–back, foot–head",
        ),
        ("crop", {"size": [0.5, 1], "flip": [0, 0], "rotation_deg": [0]}, "50% of the block"),
        ("crop", {"size": [1, 1], "flip": [0, 0], "rotation_deg": [-3.25]}, "turned by −3.2°"),
        ("crop", {"size": [1, 1], "flip": [1, 0], "rotation_deg": [0]}, "mirrored left to right"),
        ("window", {"shift": -0.05, "scale": 1}, "window moved down by 5% of its width"),
        (
            "window",
            {"shift": 0.05, "scale": 0.8},
            "window moved up by 5% of its width, window narrowed to 80%",
        ),
        ("window", {"shift": 0, "scale": 1.25}, "window widened to 125%"),
        (
            "intensity",
            {"gamma": 0.5, "contrast": 1.25, "brightness": -0.1},
            "gamma 0.5, contrast × 1.25, darker by 10% of the grey range",
        ),
        ("intensity", {"gamma": 1, "contrast": 1, "brightness": 0.205}, "brighter by 20.5% of the grey range"),
        ("gain", {"factor": 1.5}, "grey values × 1.5"),
        ("histogram", {"points": [0, 0.1, 0.5, 1]}, "grey curve bent, slopes from 0.3 to 1.5"),
        ("equalise", {"amount": 0.3}, "histogram equalised to 30%"),
        ("blur", {"sigma": 1.5}, "blurred, σ 1.5 voxels"),
        ("noise", {"sigma": 0.04, "seed": 7}, "noise, σ 4% of the grey range"),
        # exp(1) and its inverse.
        ("bias", {"coefficients": [[0.5, -0.25], [0, 0.25]]}, "field from × 0.368 to × 2.72 at most"),
        # A radius of 0.5 * sqrt(1/2) of the side, where the finest frequency is half of the side.
        ("gibbs", {"alpha": 0.5}, "rings: frequencies above 70.7% of the finest are cut"),
        ("gibbs", {"alpha": 0.1}, "rings: frequencies above 100% of the finest are cut"),
    ],
)
def test_parameters_in_words_and_units(step, params, expected):
    assert words(step, **params) == [expected]


def test_of_ct_windows_and_noise_are_in_hounsfield_units():
    window = (-1000.0, 400.0)
    # Centre -300 + 0.1 * 1400, half width 0.5 * 700.
    (moved,) = words("window", window, shift=0.1, scale=0.5)
    assert moved.endswith("(−510 to 190 HU)")
    assert words("noise", window, sigma=0.02, seed=0) == ["noise, σ 2% of the grey range (28 HU)"]


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("dims", [2, 3])
def test_every_step_has_words_and_what_is_off_has_none(preset, dims):
    views = build_views(preset, dims, laterality=False)
    for name, step in views.steps.items():
        alone = Views({name: step})
        weakest, strongest = ({f"{name}.{key}": value for key, value in end.items()} for end in step.extremes())
        still = isinstance(step, WindowJitter) and step.shift == step.width == 0
        assert len(in_words(alone, strongest)) == (not still)
        if isinstance(step, ResizedCrop | WindowJitter):
            assert in_words(alone, weakest) == []
    rng = np.random.default_rng(0)
    for _ in range(50):
        assert all(in_words(views, views.draw(rng)))


def test_numbers_have_three_digits_and_a_true_minus():
    assert [number(x) for x in (0, 0.12345, -12.345, 1234.5, 100, 99.96, -1000)] == [
        "0", "0.123", "−12.3", "1,234", "100", "100", "−1,000"
    ]  # fmt: skip
    assert number(math.pi) == "3.14"


def test_whole_percent_never_make_some_none_or_nearly_all_all():
    assert [percent(part) for part in (0.0, 0.004, 0.01, 0.4, 0.99, 0.9975, 1.0)] == [
        "0%", "< 1%", "1%", "40%", "99%", "> 99%", "100%"
    ]  # fmt: skip
