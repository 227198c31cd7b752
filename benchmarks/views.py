"""Two 64³ views of 128³ volumes in memory: crop, zoom, rotation, flip, intensity, blur and noise, all on every view.

The limit is one bare batched trilinear `grid_sample` of the same views, its grid made beforehand. Peers augment one
volume at a time, as they are used: they run in two processes of one thread each, and keep what they make; medclr and
the limit are one process of two threads. All take turns, round after round. "From the store" are the same views of
the same volumes, read by the loader of pre-training from a store on disk, which the page cache holds.

    python benchmarks/views.py

Prints pairs of views a second as medians over the rounds, and the ratio to the limit in the same round; the target is
0.55 of the limit, better 0.75, and ahead of all peers; from the store, 0.9 of the rate in memory. A peer that is not
installed is skipped.
"""

import importlib
import multiprocessing
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F

from medclr.data.loader import Blocks, train_loader
from medclr.data.prepare import statistics
from medclr.data.spec import load_spec
from medclr.data.store import Store
from medclr.transforms import Blur, Intensity, Noise, ResizedCrop, Views, WindowJitter

N_VOLUMES, BLOCK, VIEW, ROUNDS, CORES = 8, 128, 64, 7, 2
ZOOM = (0.3, 1.0)  # share of the block that a view shows
PEERS = {"batchgeneratorsv2": "batchgeneratorsv2", "MONAI": "monai", "TorchIO": "torchio"}


def main() -> None:
    torch.set_num_threads(CORES)
    blocks = torch.from_numpy(volumes()).repeat(2, 1, 1, 1, 1)
    runs: dict[str, Callable[[], Any]] = {
        "bare grid_sample (limit)": bare(blocks),
        "medclr": ours(blocks, turned=1),
        "medclr, nothing turned": ours(blocks, turned=0),
    }
    with (
        tempfile.TemporaryDirectory() as folder,
        multiprocessing.get_context("spawn").Pool(CORES, initializer=torch.set_num_threads, initargs=(1,)) as pool,
    ):
        runs["medclr, from the store"] = stored(Path(folder))
        for name, module in PEERS.items():
            try:
                importlib.import_module(module)
            except ImportError as error:
                print(f"{name} skipped: {error}")
            else:
                runs[name] = lambda name=name: pool.map(peer, [name] * N_VOLUMES, chunksize=N_VOLUMES // CORES)
        rates: dict[str, list[float]] = {name: [] for name in runs}
        for round_ in range(ROUNDS + 1):  # the first warms up
            for name, run in runs.items():
                start = time.perf_counter()
                run()
                if round_:
                    rates[name].append(N_VOLUMES / (time.perf_counter() - start))
    limit = rates["bare grid_sample (limit)"]
    print(f"{N_VOLUMES} volumes of {BLOCK}³, two views of {VIEW}³ each, {CORES} cores, {ROUNDS} rounds")
    for name, rate in rates.items():
        ratio = median(mine / theirs for mine, theirs in zip(rate, limit, strict=True))
        print(f"{name:26} {median(rate):7.1f} pairs/s, {ratio:5.2f} of the limit")
    pairs = zip(rates["medclr, from the store"], rates["medclr"], strict=True)
    print(f"from the store, {median(mine / memory for mine, memory in pairs):.2f} of the rate in memory")


def bare(blocks: torch.Tensor) -> Callable[[], Any]:
    theta = torch.eye(3, 4).repeat(len(blocks), 1, 1)
    theta[:, :, :3] *= 0.85  # the mean share of an axis
    theta[:, 0, 1], theta[:, 1, 0] = 0.1, -0.1
    grid = F.affine_grid(theta, [len(blocks), 1, VIEW, VIEW, VIEW], align_corners=False)
    return lambda: F.grid_sample(blocks, grid, mode="bilinear", padding_mode="border", align_corners=False)


def ours(blocks: torch.Tensor, turned: float) -> Callable[[], Any]:
    views, rng = augmentations(turned), np.random.default_rng(0)
    low, high = torch.zeros(len(blocks)), torch.ones(len(blocks))

    def run() -> torch.Tensor:
        drawn = [views.draw(rng) for _ in blocks]
        params = {name: torch.from_numpy(np.stack([one[name] for one in drawn])) for name in drawn[0]}
        return views.apply(blocks, params, low, high)

    return run


def augmentations(turned: float) -> Views:
    steps = {
        "crop": ResizedCrop(3, (VIEW,) * 3, ZOOM, rotation_deg=10, turned=turned, flips=(True, False, False)),
        "window": WindowJitter(),
        "intensity": Intensity(),
        "blur": Blur(probability=1),
        "noise": Noise(probability=1),
    }
    return Views(steps)


def stored(folder: Path) -> Callable[[], Any]:
    store, rows, views = Store(folder), [], augmentations(turned=1)
    for i, volume in enumerate(volumes()):
        array = (1400 * volume - 1000).astype(np.int16)
        store.write(f"{i:032x}", array, {})
        row = {"store_key": f"{i:032x}", "store_shape": [BLOCK] * 3, "patient_key": str(i)}
        rows.append(row | statistics(array))
    spec = replace(load_spec(Path("ct")), patch=(BLOCK,) * 3)
    loader = train_loader(Blocks(pd.DataFrame(rows), store, spec, views), N_VOLUMES, 0, 0)

    def batches() -> Iterator[Any]:
        while True:  # an epoch is one batch
            yield from loader

    endless = batches()

    def run() -> torch.Tensor:
        batch = next(endless)
        params = {name: value.flatten(0, 1) for name, value in batch["params"].items()}
        blocks, low, high = (batch[name].flatten(0, 1) for name in ("blocks", "low", "high"))
        return views.apply(blocks, params, low, high)

    return run


def peer(name: str) -> None:
    """Two views of one volume, in a process of the pool."""
    volume, augment = some_volume(), PEER_VIEWS[name]()
    for _ in range(2):
        view = augment(volume)
        assert tuple(view.shape) == (1, VIEW, VIEW, VIEW), view.shape


def volumes() -> np.ndarray:
    return np.random.default_rng(0).random((N_VOLUMES, 1, BLOCK, BLOCK, BLOCK), dtype=np.float32)


@cache
def some_volume() -> np.ndarray:
    return volumes()[0]


@cache
def batchgeneratorsv2() -> Callable[[np.ndarray], Any]:
    from batchgeneratorsv2.transforms.intensity.brightness import MultiplicativeBrightnessTransform
    from batchgeneratorsv2.transforms.intensity.contrast import BGContrast, ContrastTransform
    from batchgeneratorsv2.transforms.intensity.gamma import GammaTransform
    from batchgeneratorsv2.transforms.intensity.gaussian_noise import GaussianNoiseTransform
    from batchgeneratorsv2.transforms.noise.gaussian_blur import GaussianBlurTransform
    from batchgeneratorsv2.transforms.spatial.mirroring import MirrorTransform
    from batchgeneratorsv2.transforms.spatial.spatial import SpatialTransform
    from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms

    side = tuple(share ** (1 / 3) * BLOCK / VIEW for share in ZOOM)
    augment = ComposeTransforms(
        [
            SpatialTransform(
                (VIEW,) * 3,
                patch_center_dist_from_border=VIEW * 3 // 4,
                random_crop=True,
                p_rotation=1,
                rotation=(-np.pi / 18, np.pi / 18),
                p_scaling=1,
                scaling=side,
                p_synchronize_scaling_across_axes=1,
                padding_mode_image="border",
            ),
            MirrorTransform((0,)),
            GammaTransform((0.7, 1.3), 0, True, 1, 0),
            ContrastTransform(BGContrast((0.75, 1.3)), True, True),
            MultiplicativeBrightnessTransform(BGContrast((0.9, 1.1)), True),
            GaussianBlurTransform((0.3, 1.0), synchronize_channels=True, synchronize_axes=True),
            GaussianNoiseTransform((0, 0.0025)),
        ]
    )
    return lambda volume: augment(image=torch.from_numpy(volume))["image"]


@cache
def monai() -> Callable[[np.ndarray], Any]:
    from monai.transforms import (
        Compose,
        RandAdjustContrast,
        RandAffine,
        RandFlip,
        RandGaussianNoise,
        RandGaussianSmooth,
        RandScaleIntensity,
    )

    # RandAffine takes its patch at the centre, so that the zoom is in its scale and the place in its shift.
    return Compose(
        [
            RandAffine(
                prob=1,
                rotate_range=(np.pi / 18,) * 3,
                translate_range=(12,) * 3,
                scale_range=((0.34, 1.0),) * 3,
                spatial_size=(VIEW,) * 3,
                padding_mode="border",
                cache_grid=True,
            ),
            RandFlip(prob=0.5, spatial_axis=0),
            RandAdjustContrast(prob=1, gamma=(0.7, 1.4)),
            RandScaleIntensity(prob=1, factors=0.1),
            RandGaussianSmooth(prob=1, sigma_x=(0.3, 1.0), sigma_y=(0.3, 1.0), sigma_z=(0.3, 1.0)),
            RandGaussianNoise(prob=1, std=0.05),
        ]
    )


@cache
def torchio() -> Callable[[np.ndarray], Any]:
    import torchio as tio

    rng = np.random.default_rng(0)
    # Resized before it is turned: a 64³ volume is turned more quickly than a 128³ one.
    after = tio.Compose(
        [
            tio.Resize(VIEW),
            tio.RandomAffine(scales=0, degrees=10, default_pad_value="minimum"),
            tio.RandomFlip(axes=(0,)),
            tio.RandomGamma(log_gamma=0.3),
            tio.RandomBlur(std=(0.3, 1.0)),
            tio.RandomNoise(std=(0.01, 0.05)),
        ]
    )

    def augment(volume: np.ndarray) -> Any:
        side = int(BLOCK * rng.uniform(*ZOOM) ** (1 / 3))
        x, y, z = rng.integers(BLOCK - side + 1, size=3)
        box = volume[:, x : x + side, y : y + side, z : z + side]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return after(tio.ScalarImage(tensor=torch.from_numpy(box))).data

    return augment


PEER_VIEWS = {"batchgeneratorsv2": batchgeneratorsv2, "MONAI": monai, "TorchIO": torchio}

if __name__ == "__main__":
    main()
