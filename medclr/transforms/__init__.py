"""Augmentations: parameters drawn per item, applied to whole batches; each a MONAI transform."""

from medclr.transforms.artefact import BiasField, Blur, Gibbs, Motion, Noise, Resolution
from medclr.transforms.corruption import CORRUPTIONS
from medclr.transforms.intensity import Equalise, Gain, HistogramShift, Intensity, Normalise, WindowJitter
from medclr.transforms.presets import PRESETS, Views, build_views
from medclr.transforms.spatial import ResizedCrop

__all__ = [
    "CORRUPTIONS",
    "PRESETS",
    "BiasField",
    "Blur",
    "Equalise",
    "Gain",
    "Gibbs",
    "HistogramShift",
    "Intensity",
    "Motion",
    "Noise",
    "Normalise",
    "ResizedCrop",
    "Resolution",
    "Views",
    "WindowJitter",
    "build_views",
]
