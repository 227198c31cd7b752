"""Augmentations: parameters drawn per item, applied to whole batches; each a MONAI transform."""

from medclr.transforms.intensity import Blur, Gain, Intensity, Normalise, WindowJitter
from medclr.transforms.presets import PRESETS, Views, build_views
from medclr.transforms.spatial import ResizedCrop

__all__ = ["PRESETS", "Blur", "Gain", "Intensity", "Normalise", "ResizedCrop", "Views", "WindowJitter", "build_views"]
