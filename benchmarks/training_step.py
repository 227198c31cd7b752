"""How much of a pre-training step is spent outside the encoder: reading, drawing, views, projector, loss, optimiser.

The limit is the encoder's own forward and backward, measured in the same process, interleaved with whole steps.

    python benchmarks/training_step.py

Prints medians, and the share of a step outside the encoder; the target is below 25% with the default encoder at
28 px and batch size 256 on two cores.
"""

import tempfile
import time
from pathlib import Path
from statistics import median

import numpy as np
import pandas as pd
import torch

from medclr.config import PretrainConfig
from medclr.data.loader import Blocks, train_loader
from medclr.data.prepare import statistics
from medclr.data.spec import load_spec
from medclr.data.store import Store
from medclr.models.encoder import build_encoder
from medclr.models.projector import build_projector
from medclr.training.simclr import SimCLR
from medclr.training.start import architecture_of
from medclr.transforms.presets import build_views

N_IMAGES, SIDE, REPEATS = 1024, 28, 12


def main() -> None:
    config = PretrainConfig(data=Path())
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        store, rows = Store(Path(folder)), []
        for i in range(N_IMAGES):
            image = rng.random((1, SIDE, SIDE), dtype=np.float32)
            store.write(f"{i:032x}", image, {})
            row = {"store_key": f"{i:032x}", "store_shape": [SIDE, SIDE], "patient_key": str(i)}
            rows.append(row | statistics(image))
        spec = load_spec(Path("cxr")).filled(pd.DataFrame({"shape": [[SIDE, SIDE]]}))
        architecture = architecture_of(config, spec, None)
        views = build_views(spec.preset, 2)
        encoder = build_encoder(architecture)
        module = SimCLR(
            encoder,
            build_projector(architecture.feature_dim, architecture.feature_dim),
            views,
            temperature=0.1,
            lr=2e-3,
            weight_decay=1e-4,
            warmup_steps=10,
            total_steps=1000,
        )
        module.manual_backward = torch.Tensor.backward  # type: ignore[method-assign, assignment]  # there is no Trainer
        optimizer = module.configure_optimizers()["optimizer"]
        loader = train_loader(Blocks(pd.DataFrame(rows), store, spec, views), config.batch_size, 0, 0)
        images = torch.rand(2 * config.batch_size, 1, SIDE, SIDE)
        whole, alone = [], []
        batches = iter(loader)
        for repeat in range(REPEATS + 2):  # the first two warm up
            start = time.perf_counter()
            encoder(images).square().mean().backward()
            between = time.perf_counter()
            batch = next(batches, None)
            if batch is None:
                batches = iter(loader)
                batch = next(batches)
            module.gradient(batch)
            optimizer.step()
            end = time.perf_counter()
            if repeat >= 2:
                alone.append(between - start)
                whole.append(end - between)
    shares = [1 - a / w for a, w in zip(alone, whole, strict=True)]
    print(f"{architecture.title}, batch {config.batch_size}, {torch.get_num_threads()} threads")
    print(f"encoder alone    {median(alone):.3f} s (limit)")
    print(f"whole step       {median(whole):.3f} s, {median(whole) / median(alone):.2f} of the limit")
    print(f"outside encoder  {median(shares):.1%} of the step (target: below 25%)")


if __name__ == "__main__":
    main()
