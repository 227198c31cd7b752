"""Near-duplicates between pre-training and test, as fine-tuning counts them."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from scipy import ndimage

from medclr.commands import finetune as module
from medclr.data.identity import Seen, pixel_hash
from medclr.data.signature import signature


@pytest.fixture
def count(monkeypatch):
    """Pre-training saw 0 to 3 of six images and left 4 and 5 out; what is tested is named by the caller."""
    images = ndimage.gaussian_filter(np.random.default_rng(0).standard_normal((6, 64, 64)), (0, 3, 3))

    def rows(arrays, prefix):
        return pd.DataFrame(
            {
                "volume_id": [f"{prefix}{n}" for n in range(len(arrays))],
                "pixel_hash": [pixel_hash(a) for a in arrays],
                "signature": [signature(a[None]) for a in arrays],
            }
        )

    manifest = rows(images, "m")
    seen = Seen("key", frozenset(), frozenset(manifest["pixel_hash"][:4]), 0).to_dict()
    written = {}

    def run(choose, drop=(), kept=True, forget=0):
        tested = rows([*choose(images), images[5]], "t").drop(columns=list(drop))
        table = SimpleNamespace(rows=tested, of=lambda split: np.arange(len(tested)))
        monkeypatch.setattr(module, "stocked", lambda source: (manifest[forget:], None) if kept else None)
        writer = SimpleNamespace(write_frame=lambda name, frame: written.update({name: frame}))
        encoder = SimpleNamespace(bundle=SimpleNamespace(details={"seen": seen}))
        return module._nearly_seen(writer, table, encoder, None), written

    return run


def test_changed_copies_of_what_was_seen_are_counted(count):
    n, written = count(lambda images: [images[1] * 2 + 1, images[2, 2:, 1:], images[4] * 2])
    assert n == 2
    pairs = written["private/near_duplicates.csv"]
    assert list(zip(pairs["test"], pairs["seen"], strict=True)) == [("t0", "m1"), ("t1", "m2")]


def test_identical_pixels_are_the_other_check(count):
    assert count(lambda images: [images[1]])[0] == 0


@pytest.mark.parametrize("without", [{"kept": False}, {"drop": ["signature"]}, {"forget": 1}])
def test_without_all_signatures_it_is_not_known(count, without):
    n, written = count(lambda images: [images[1] * 2], **without)
    assert n is None
    assert not written


@pytest.mark.parametrize(
    ("n", "words"),
    [
        (None, "not checkable"),
        (0, "No test image"),
        (1, "1 test image is a near-duplicate"),
        (1200, "1,200 test images are near-duplicates"),
    ],
)
def test_it_is_said(n, words):
    labelled = module.Labelled(None, None, None, None, None, 0, None, None, n)
    assert words in labelled.near_sentence
