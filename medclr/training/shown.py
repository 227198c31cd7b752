"""What a network is shown in the place of an image: the image in the style of another, or as a worse scanner has it."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from hashlib import blake2b

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from torch import Tensor, nn

from medclr.config import Corruption
from medclr.data.crops import parts_of
from medclr.data.loader import Blocks
from medclr.training.adapt import Moved
from medclr.training.crossfit import Anew, Rows
from medclr.training.encode import Change, Volumes, changed, images
from medclr.transforms.corruption import CORRUPTIONS
from medclr.transforms.style import fourier_matched, histogram_matched

LOW_SHARE = 0.5  # of `fourier_matched`
STYLES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "histogram": histogram_matched,
    "fourier": partial(fourier_matched, share=LOW_SHARE),
}
"""From images and as many references to the former in the style of the latter."""


def styled(style: str, references: Volumes, seed: int) -> Change:
    """Each image in the style of a part of one of the references, drawn at random for it: one of STYLES.

    Which it is depends on the seed and on what the image is of, whatever is shown beside it. One part is read for each
    image, as the references themselves are shown.
    """
    parts, _ = parts_of(references.rows, references.spec, references.crops)
    blocks, match = Blocks(parts, references.store, references.spec), STYLES[style]

    def change(shown: Tensor, of: pd.DataFrame) -> Tensor:
        drawn = [int(rng.integers(len(parts))) for rng in _generators(of, seed)]
        batch = blocks.__getitems__([(0, row) for row in drawn])
        others = images(*(batch[name].to(shown.device) for name in ("blocks", "low", "high")))
        if references.change is not None:
            others = references.change(others, parts.iloc[drawn])
        return match(shown, others)

    return change


def corrupting(corruption: Corruption, strength: int, spatial_dims: int, seed: int) -> Change:
    """Each image through a corruption of `CORRUPTIONS`, at a strength from 1 to 5.

    What is drawn, such as the noise, depends on the seed and on what the image is of, whatever is shown beside it.
    """
    by = CORRUPTIONS[corruption](strength, spatial_dims)
    return lambda shown, of: changed(shown, by, _generators(of, seed))


def _generators(parts: pd.DataFrame, seed: int) -> list[np.random.Generator]:
    """Of each part random numbers of its own: a function of the seed, of the volume and of where in it the part is."""
    names = ["store_key", *(name for name in ("slice", "start") if name in parts)]
    keys = (repr(place).encode() for place in parts[names].astype(str).itertuples(index=False, name=None))
    return [np.random.default_rng([seed, int.from_bytes(blake2b(key, digest_size=8).digest())]) for key in keys]


def in_style(style: str, network: nn.Module, source: Volumes, target: Volumes, features: NDArray[np.floating]) -> Anew:
    """The source's images in the style of those to which is adapted, one drawn for each; the target as it is.

    features: (n, F) of all of the target, by the network.
    """

    def anew(own: Rows, fit: Rows, held: Rows, seed: int) -> Moved:
        there = replace(source.at(own), change=styled(style, target.at(fit), seed))
        return Moved(there.embed(network), features[fit], features[held])

    return anew
