"""Volumes to features: the encoder with the preprocessing that it carries."""

from pathlib import Path

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from medclr.data.loader import Blocks, eval_loader, grey_range
from medclr.data.prepare import prepared_array, statistics
from medclr.data.spec import DataSpec, parse_spec
from medclr.data.store import Store, cut_block
from medclr.data.volume import Volume
from medclr.errors import UsageError
from medclr.models.bundle import Bundle, check_dims, load_bundle
from medclr.transforms.intensity import Normalise


class Encoder(nn.Module):
    """An encoder bundle ready for use: a torch module, and its preprocessing.

    Attributes:
        bundle: as loaded; spec: the preprocessing; network: the encoder f.
    """

    def __init__(self, bundle: Bundle) -> None:
        super().__init__()
        self.bundle, self.network = bundle, bundle.encoder
        self.spec = parse_spec(bundle.details["spec"], "encoder bundle")

    def forward(self, images: Tensor) -> Tensor:
        """Images float32 (B, C, *patch) in [0, 1] to features (B, F)."""
        features: Tensor = self.network(images)
        return features

    @torch.inference_mode()
    def embed(self, volume: Volume) -> NDArray[np.float32]:
        """The features (F,) of one volume as a reader gives it, with the preprocessing of the training data.

        Raises:
            BundleError: the encoder is for other spatial dimensions.
            Unreadable: the volume is larger than any scan is.
        """
        assert self.spec.patch is not None
        check_dims(self.bundle, volume.array.ndim - 1)
        array = prepared_array(volume, self.spec)
        low, high = grey_range(pd.DataFrame([statistics(array)]), self.spec)
        start = tuple((n - p) // 2 for n, p in zip(array.shape[1:], self.spec.patch, strict=True))
        block = cut_block(array, start, self.spec.patch, fill=low[0])
        device = next(self.parameters()).device
        batch = (torch.from_numpy(values).to(device) for values in (block[None, None], low, high))
        return np.asarray(self(images(*batch))[0].cpu().numpy())


def load_encoder(path: Path | str) -> Encoder:
    """Load an encoder bundle, or the one of a pretrain run, in evaluation mode.

    Raises:
        BundleError: it is missing, damaged, or its weights do not all fit.
    """
    return Encoder(load_bundle(Path(path))).eval()


def training_device(choice: str) -> torch.device:
    """The device of a config: "auto" is the GPU where there is one.

    Raises:
        UsageError: a GPU was asked for, and this torch sees none.
    """
    if choice == "gpu" and not torch.cuda.is_available():
        raise UsageError("--device gpu: torch sees no GPU here (`medclr doctor` says why); use --device auto")
    return torch.device("cpu" if choice == "cpu" or not torch.cuda.is_available() else "cuda")


def images(batch_blocks: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """One-view blocks (B, 1, C, *patch) to images (B, C, *patch) in [0, 1]."""
    return Normalise.apply(batch_blocks.flatten(0, 1).float(), low.flatten(), high.flatten())


@torch.inference_mode()
def embed_rows(
    network: nn.Module, rows: pd.DataFrame, store: Store, spec: DataSpec, workers: int = 0
) -> NDArray[np.float32]:
    """Features (n, F) of manifest rows, from the centre of each volume, on the device of the network."""
    device = next(network.parameters()).device
    network.eval()
    features = [
        network(images(batch["blocks"].to(device), batch["low"].to(device), batch["high"].to(device))).cpu()
        for batch in eval_loader(Blocks(rows, store, spec), workers)
    ]
    return torch.cat(features).numpy()


def pixel_rows(rows: pd.DataFrame, store: Store, spec: DataSpec, workers: int = 0) -> NDArray[np.float32]:
    """Grey values in [0, 1], one flat row (n, voxels) a volume: what the network sees, for the plain baseline."""
    return torch.cat(
        [images(b["blocks"], b["low"], b["high"]).flatten(1) for b in eval_loader(Blocks(rows, store, spec), workers)]
    ).numpy()
