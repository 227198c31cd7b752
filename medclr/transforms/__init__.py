"""Augmentations: parameters drawn per item, applied to whole batches; each a MONAI transform."""

from medclr.transforms.artefact import BiasField, Blur, Gibbs, Noise
from medclr.transforms.intensity import Equalise, Gain, HistogramShift, Intensity, Normalise, WindowJitter
from medclr.transforms.presets import PRESETS, Views, build_views
from medclr.transforms.spatial import ResizedCrop

__all__ = [
    "PRESETS",
    "BiasField",
    "Blur",
    "Equalise",
    "Gain",
    "Gibbs",
    "HistogramShift",
    "Intensity",
    "Noise",
    "Normalise",
    "ResizedCrop",
    "Views",
    "WindowJitter",
    "build_views",
]
