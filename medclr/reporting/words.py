"""The parameters of augmentations in words and units."""

import math
from collections.abc import Callable, Mapping

import numpy as np

from medclr.transforms.artefact import BiasField, Blur, Gibbs, Noise
from medclr.transforms.augmentation import Augmentation, Params
from medclr.transforms.intensity import Equalise, Gain, HistogramShift, Intensity, WindowJitter
from medclr.transforms.presets import Views
from medclr.transforms.spatial import ResizedCrop

Window = tuple[float, float]
_AXES = ("left–right", "front–back", "foot–head")


def in_words(views: Views, params: Mapping[str, object], window_hu: Window | None = None) -> list[str]:
    """What the parameters of one item do, in the order in which it is done; nothing of a step that changes nothing.

    Args:
        views: whose parameters they are.
        params: as `Views.draw` gives them.
        window_hu: the grey values that become 0 and 1, where they have a unit; None where they have none.
    """
    found = []
    for name, step in views.steps.items():
        prefix = f"{name}."
        own = {key.removeprefix(prefix): np.asarray(v) for key, v in params.items() if key.startswith(prefix)}
        found.append(_WORDS[type(step)](own, window_hu))
    return [words for words in found if words]


def number(value: float) -> str:
    """Three significant digits, or more where it takes more to write a whole number; with a true minus."""
    return (f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}").replace("-", "−")


def _crop(params: Params, window_hu: Window | None) -> str:
    share = float(np.prod(params["size"].astype(float)))
    parts = [] if share > 1 - 1e-6 else [f"{share:.0%} of the block"]
    turns = [f"{number(round(float(degrees), 1))}°" for degrees in params["rotation_deg"]]
    if params["rotation_deg"].any():
        parts.append(f"turned by {', '.join(turns)}" + (f" about {', '.join(_AXES)}" if len(turns) == 3 else ""))
    if params["flip"].any():
        parts.append("mirrored left to right")
    return ", ".join(parts)


def _window(params: Params, window_hu: Window | None) -> str:
    shift, scale = float(params["shift"]), float(params["scale"])
    parts = []
    if shift:
        move = "up" if shift > 0 else "down"
        parts.append(f"window moved {move} by {_percent(abs(shift))} of its width")
    if scale != 1:
        parts.append(f"window {'widened' if scale > 1 else 'narrowed'} to {_percent(scale)}")
    if parts and window_hu:
        low, high = window_hu
        centre, half = (low + high) / 2 + shift * (high - low), scale * (high - low) / 2
        parts[-1] += f" ({number(centre - half)} to {number(centre + half)} HU)"
    return ", ".join(parts)


def _intensity(params: Params, window_hu: Window | None) -> str:
    brightness, contrast, gamma = (float(params[name]) for name in ("brightness", "contrast", "gamma"))
    parts = []
    if gamma != 1:
        parts.append(f"gamma {number(gamma)}")
    if contrast != 1:
        parts.append(f"contrast × {number(contrast)}")
    if brightness:
        parts.append(f"{'brighter' if brightness > 0 else 'darker'} by {_percent(abs(brightness))} of the grey range")
    return ", ".join(parts)


def _gain(params: Params, window_hu: Window | None) -> str:
    factor = float(params["factor"])
    return "" if factor == 1 else f"grey values × {number(factor)}"


def _histogram(params: Params, window_hu: Window | None) -> str:
    points = params["points"].astype(float)
    slopes = np.diff(points) * (len(points) - 1)
    if np.allclose(slopes, 1, atol=1e-4):
        return ""
    return f"grey curve bent, slopes from {number(slopes.min())} to {number(slopes.max())}"


def _equalise(params: Params, window_hu: Window | None) -> str:
    amount = float(params["amount"])
    return f"histogram equalised to {_percent(amount)}" if amount else ""


def _blur(params: Params, window_hu: Window | None) -> str:
    sigma = float(params["sigma"])
    return f"blurred, σ {number(sigma)} voxels" if sigma else ""


def _noise(params: Params, window_hu: Window | None) -> str:
    sigma = float(params["sigma"])
    hu = f" ({number(sigma * (window_hu[1] - window_hu[0]))} HU)" if window_hu else ""
    return f"noise, σ {_percent(sigma)} of the grey range{hu}" if sigma else ""


def _bias(params: Params, window_hu: Window | None) -> str:
    most = math.exp(float(np.abs(params["coefficients"]).sum()))
    return f"field from × {number(1 / most)} to × {number(most)} at most" if most > 1 else ""


def _gibbs(params: Params, window_hu: Window | None) -> str:
    alpha = float(params["alpha"])
    # The radius is a share of the longest side, of which the finest frequency is half.
    kept = min(1.0, (1 - alpha) * math.sqrt(2))
    return f"rings: frequencies above {_percent(kept)} of the finest are cut" if alpha else ""


def _percent(share: float) -> str:
    return f"{number(round(100 * share, 1))}%"


_WORDS: dict[type[Augmentation], Callable[[Params, Window | None], str]] = {
    ResizedCrop: _crop,
    WindowJitter: _window,
    Intensity: _intensity,
    Gain: _gain,
    HistogramShift: _histogram,
    Equalise: _equalise,
    Blur: _blur,
    Noise: _noise,
    BiasField: _bias,
    Gibbs: _gibbs,
}
