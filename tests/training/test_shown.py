"""Images of one domain in the style of another: each by a reference of its own, whatever it is shown with."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from medclr.models.encoder import Architecture, build_encoder
from medclr.training.encode import Volumes, embed_rows, pixel_rows
from medclr.training.shown import STYLES, _generators, corrupting, styled
from medclr.transforms import CORRUPTIONS
from medclr.transforms.style import fourier_matched, histogram_matched


class Pixels(nn.Module):
    """Images to their pixels: what a network is shown."""

    def __init__(self):
        super().__init__()
        self.nothing = nn.Parameter(torch.zeros(()))

    def forward(self, images):
        return images.flatten(1)


@pytest.fixture
def volumes(material):
    return Volumes(material.rows, material.store, material.spec)


def seen(volumes, change):
    return replace(volumes, change=change).embed(Pixels())


SOURCE, TARGET = np.arange(20), np.arange(20, 40)


@pytest.mark.parametrize("style", STYLES)
def test_each_image_has_the_style_of_one_reference(volumes, style):
    pixels = torch.from_numpy(pixel_rows(volumes.rows, volumes.store, volumes.spec)).view(40, 1, 12, 12)
    found = seen(volumes.at(SOURCE), styled(style, volumes.at(TARGET), 0))
    match = {"histogram": histogram_matched, "fourier": lambda *both: fourier_matched(*both, 0.5)}[style]
    drawn = []
    for image, one in zip(pixels[SOURCE], found, strict=True):
        every = match(image.expand(20, 1, 12, 12), pixels[TARGET]).flatten(1).numpy()
        (which,) = np.flatnonzero(np.isclose(every, one, atol=1e-5).all(axis=1))
        drawn.append(which)
    assert len(set(drawn)) > 8


@pytest.mark.parametrize("style", STYLES)
def test_which_it_is_depends_on_the_seed_and_the_image_alone(volumes, style):
    source, target = volumes.at(SOURCE), volumes.at(TARGET)
    together = seen(source, styled(style, target, 0))
    some = np.array([17, 3, 8])
    np.testing.assert_allclose(seen(source.at(some), styled(style, target, 0)), together[some], atol=1e-6)
    assert not np.allclose(seen(source, styled(style, target, 1)), together, atol=1e-3)


@pytest.mark.parametrize("corruption", CORRUPTIONS)
def test_a_corrupted_volume_is_the_same_in_any_company(volumes, corruption):
    change = corrupting(corruption, 4, 2, 0)
    together, some = seen(volumes, change), np.array([31, 3, 8])
    np.testing.assert_allclose(seen(volumes.at(some), change), together[some], atol=1e-6)
    other = np.abs(seen(volumes, corrupting(corruption, 4, 2, 1)) - together).max()
    assert (other > 0.01) == (corruption in ("noise", "motion", "bias"))  # the others draw nothing
    clean = embed_rows(Pixels(), volumes.rows, volumes.store, volumes.spec)
    assert (np.abs(together - clean).max(axis=1) > 0.01).all()


def test_what_is_drawn_differs_between_volumes(volumes):
    black = replace(volumes, change=lambda images, parts: torch.full_like(images, 0.5))
    grey = black.embed(Pixels())
    by = corrupting("noise", 5, 2, 0)
    noise = seen(volumes, lambda images, parts: by(torch.full_like(images, 0.5), parts)) - grey
    assert noise.std() == pytest.approx(0.2, rel=0.1)
    assert np.abs(np.corrcoef(noise) - np.eye(40)).max() < 0.5


def test_statistics_are_of_what_is_shown(volumes):
    """AdaBN of a target at half the grey values: those of its activations."""
    network = build_encoder(Architecture(10, 8, 2, 1, "batch", (12, 12)))
    plain = volumes.renormalised(network, 0).bn1
    halved = replace(volumes, change=lambda images, parts: images / 2).renormalised(network, 0).bn1
    torch.testing.assert_close(halved.running_mean, plain.running_mean / 2)
    torch.testing.assert_close(halved.running_var, plain.running_var / 4)


def test_references_are_shown_as_they_are_shown_themselves(volumes):
    """Of a target whose images are changed, the style is that of the changed ones."""
    black = replace(volumes.at(TARGET), change=lambda images, parts: torch.full_like(images, 0.25))
    found = seen(volumes.at(SOURCE), styled("histogram", black, 0))
    np.testing.assert_allclose(found, 0.25)


def test_a_change_is_told_what_each_image_is_of(volumes):
    """In batches, of crops too, and where statistics are estimated."""
    told = []

    def change(images, parts):
        assert len(images) == len(parts)
        told.extend(parts["store_key"])
        return images

    plain = embed_rows(Pixels(), volumes.rows, volumes.store, volumes.spec)
    np.testing.assert_array_equal(seen(volumes, change), plain)
    assert told == list(volumes.rows["store_key"])


def test_slices_of_a_volume_have_references_of_their_own(volumes):
    parts = pd.DataFrame({"store_key": ["a", "a", "b", "a"], "slice": [0, 1, 0, 0], "start": [(0, 0)] * 4})
    first, second, other, again = (rng.random() for rng in _generators(parts, 3))
    assert len({first, second, other}) == 3
    assert first == again
