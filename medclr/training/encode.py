"""Volumes to features: the encoder with the preprocessing that it carries."""

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim.swa_utils import update_bn

from medclr.data.crops import parts_of
from medclr.data.loader import Blocks, eval_loader, grey_range, most_at_once, outside
from medclr.data.prepare import prepared_array, statistics
from medclr.data.slices import kept_slices
from medclr.data.spec import DataSpec, parse_spec
from medclr.data.store import Store, cut_block
from medclr.data.volume import Volume
from medclr.errors import UsageError
from medclr.models.bundle import Bundle, check_dims, load_bundle
from medclr.models.classifier import Classifier
from medclr.transforms.augmentation import Augmentation
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

        Of an encoder of slices, the mean over those that stand for the volume.

        Raises:
            BundleError: the encoder is for other spatial dimensions.
            Unreadable: the volume is larger than any scan is.
        """
        assert self.spec.patch is not None
        check_dims(self.bundle, volume.array.ndim - 1)
        array = prepared_array(volume, self.spec)
        measured = statistics(array)
        row = pd.DataFrame([measured])
        low, high = grey_range(row, self.spec)
        planes = [array]
        if self.spec.slice_axis is not None:
            spacing_mm = volume.spacing_mm[self.spec.slice_axis]
            kept = kept_slices(array, measured["low"], measured["high"], spacing_mm, self.spec.slice_step_mm)
            planes = [array[:, index] for index in kept]
        start = tuple((n - p) // 2 for n, p in zip(planes[0].shape[1:], self.spec.patch, strict=True))
        device = next(self.parameters()).device
        features = []
        for plane in planes:
            block = cut_block(plane, start, self.spec.patch, fill=outside(row, self.spec)[0])
            batch = (torch.from_numpy(values).to(device) for values in (block[None, None], low, high))
            features.append(self(images(*batch))[0])
        return np.asarray(torch.stack(features).mean(0).cpu().numpy())


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


Change = Callable[[Tensor, pd.DataFrame], Tensor]
"""From images (B, C, *patch) in [0, 1] and their rows of `parts_of` to what is shown instead, of each by itself."""


def images(batch_blocks: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """One-view blocks (B, 1, C, *patch) to images (B, C, *patch) in [0, 1]."""
    return Normalise.apply(batch_blocks.flatten(0, 1).float(), low.flatten(), high.flatten())


@dataclass(frozen=True, eq=False)
class Bags:
    """Features of the parts of volumes, those of one volume together: a bag.

    Attributes:
        features: (m, F), in the order of the volumes; counts: (n,), how many are of each volume, at least 1.
    """

    features: NDArray[np.float32]
    counts: NDArray[np.intp]

    def of(self, at: NDArray[np.intp]) -> "Bags":
        """The bags at some positions, in that order."""
        ends = self.counts.cumsum()
        chosen = [self.features[ends[i] - self.counts[i] : ends[i]] for i in at]
        return Bags(np.concatenate(chosen), self.counts[at])

    def mean(self) -> NDArray[np.float32]:
        """(n, F): of each bag."""
        return np.asarray(
            np.add.reduceat(self.features, self.counts.cumsum() - self.counts) / self.counts[:, None], np.float32
        )


@dataclass(frozen=True, eq=False)
class Volumes:
    """Manifest rows, with the store and the spec to read them by; crops, change: as for `embed_rows`."""

    rows: pd.DataFrame
    store: Store
    spec: DataSpec
    crops: int = 1
    change: Change | None = None

    def at(self, positions: NDArray[np.intp]) -> "Volumes":
        return replace(self, rows=self.rows.iloc[positions].reset_index(drop=True))

    def embed(self, network: nn.Module) -> NDArray[np.float32]:
        return embed_rows(network, self.rows, self.store, self.spec, crops=self.crops, change=self.change)

    def renormalised(self, network: nn.Module, seed: int) -> nn.Module:
        return renormalised(network, self.rows, self.store, self.spec, seed, self.crops, self.change)


@torch.inference_mode()
def embed_rows(
    network: nn.Module,
    rows: pd.DataFrame,
    store: Store,
    spec: DataSpec,
    workers: int = 0,
    crops: int = 1,
    change: Change | None = None,
) -> NDArray[np.float32]:
    """Features (n, F) of manifest rows, on the device of the network: of each volume the mean over its parts.

    These are its slices, under a spec with slices, and of each volume or slice that is larger than the patch up to
    `crops` crops; one is the centre. With a `change`, the network is shown what that makes of each.
    """
    return _mean(_embed(network), rows, store, spec, workers, crops, change)


@torch.inference_mode()
def bag_rows(
    network: nn.Module, rows: pd.DataFrame, store: Store, spec: DataSpec, workers: int = 0, crops: int = 1
) -> Bags:
    """The features of which `embed_rows` gives the mean: all of them are in memory at once."""
    found, counts = _of_parts(_embed(network), rows, store, spec, workers, crops)
    return Bags(torch.cat(list(found)).numpy(), counts)


@torch.inference_mode()
def classify_rows(
    classifier: Classifier, rows: pd.DataFrame, store: Store, spec: DataSpec, workers: int = 0
) -> NDArray[np.float32]:
    """Logits (n, K) of manifest rows: of the features of each volume, pooled over its parts as the classifier does."""
    return head_logits(classifier, feature_rows(classifier, rows, store, spec, workers))


@torch.inference_mode()
def head_logits(classifier: Classifier, features: NDArray[np.float32]) -> NDArray[np.float32]:
    """Logits (n, K) of what `feature_rows` gives."""
    there = torch.from_numpy(features).to(next(classifier.parameters()).device)
    return np.asarray(classifier.head(there).cpu().numpy())


@torch.inference_mode()
def feature_rows(
    classifier: Classifier, rows: pd.DataFrame, store: Store, spec: DataSpec, workers: int = 0
) -> NDArray[np.float32]:
    """What the head of a classifier is given of manifest rows, (n, F)."""
    network, pool, device = classifier.eval().network, classifier.pool, next(classifier.parameters()).device
    if pool is None:
        return embed_rows(network, rows, store, spec, workers, classifier.crops)
    bags = bag_rows(network, rows, store, spec, workers, classifier.crops)
    pooled = pool(torch.from_numpy(bags.features).to(device), torch.from_numpy(bags.counts).to(device))
    return np.asarray(pooled.cpu().numpy())


def corrupted(classifier: Classifier, by: Augmentation, seed: int) -> Classifier:
    """The same classifier, to which every image is shown changed, the next one by the next of the random numbers."""
    network = _Corrupted(classifier.network, by, np.random.default_rng(seed))
    return Classifier(network, 0, 0, head=classifier.head, crops=classifier.crops, pool=classifier.pool).eval()


class _Corrupted(nn.Module):
    def __init__(self, network: nn.Module, by: Augmentation, rng: np.random.Generator) -> None:
        super().__init__()
        self.network, self.by, self.rng = network, by, rng

    def forward(self, images: Tensor) -> Tensor:
        features: Tensor = self.network(changed(images, self.by, [self.rng] * len(images)))
        return features


def changed(shown: Tensor, by: Augmentation, rngs: Sequence[np.random.Generator]) -> Tensor:
    """Images (B, C, *patch), each by parameters drawn from a generator of its own."""
    drawn = [by.draw(rng) for rng in rngs]
    params = {name: torch.from_numpy(np.stack([one[name] for one in drawn])) for name in drawn[0]}
    return by.apply(shown, {name: value.to(shown.device) for name, value in params.items()})


def has_batch_norm(network: nn.Module) -> bool:
    """Whether a network normalises by statistics that are estimated from data."""
    return any(isinstance(layer, _BatchNorm) and layer.track_running_stats for layer in network.modules())


def renormalised(
    network: nn.Module,
    rows: pd.DataFrame,
    store: Store,
    spec: DataSpec,
    seed: int,
    crops: int = 1,
    change: Change | None = None,
) -> nn.Module:
    """A copy of a network whose batch-norm statistics are those of other volumes: AdaBN (Li et al. 2016).

    Means and variances are averaged over batches of nearly one size, of rows in random order: one pass over them.

    Args:
        network: with batch norm; rows: manifest rows to estimate from; seed: of their order.
        crops, change: as for `embed_rows`.
    """
    device, copied = next(network.parameters()).device, copy.deepcopy(network)
    parts, _ = parts_of(rows, spec, crops)
    shuffled = parts.iloc[np.random.default_rng(seed).permutation(len(parts))].reset_index(drop=True)
    size = math.ceil(len(parts) / math.ceil(len(parts) / most_at_once(spec.patch or ())))
    update_bn(shown_images(shuffled, store, spec, device, size, change=change), copied, device)
    return copied.eval()


def pixel_rows(rows: pd.DataFrame, store: Store, spec: DataSpec, workers: int = 0) -> NDArray[np.float32]:
    """Grey values in [0, 1], one flat row (n, voxels) a volume: what the network sees, for the plain baseline.

    Of volumes under a spec with slices, the mean over the slices of each.
    """
    return _mean(_Seen(lambda shown: shown.flatten(1)), rows, store, spec, workers, 1)


def shown_images(
    parts: pd.DataFrame,
    store: Store,
    spec: DataSpec,
    device: torch.device,
    size: int | None = None,
    workers: int = 0,
    change: Change | None = None,
) -> Iterator[Tensor]:
    """Images (B, C, *patch) in [0, 1] of rows of `parts_of`, in order, changed if asked.

    size: of a batch; None for as many as memory has room for; change: as for `embed_rows`.
    """
    for batch in eval_loader(Blocks(parts, store, spec), workers, size):
        shown = images(*(batch[name].to(device) for name in ("blocks", "low", "high")))
        yield shown if change is None else change(shown, parts.iloc[batch["row"].numpy()])


class _Seen(NamedTuple):
    """What is made of images, on which device."""

    of: Callable[[Tensor], Tensor]
    device: torch.device = torch.device("cpu")


def _embed(network: nn.Module) -> _Seen:
    """Images to features, on the device of the network and back."""
    network.eval()
    return _Seen(lambda shown: network(shown).cpu(), next(network.parameters()).device)


def _mean(
    seen: _Seen,
    rows: pd.DataFrame,
    store: Store,
    spec: DataSpec,
    workers: int,
    crops: int,
    change: Change | None = None,
) -> NDArray[np.float32]:
    """What `seen` makes of images, one row for each of `rows`: the mean over its parts."""
    found, counts = _of_parts(seen, rows, store, spec, workers, crops, change)
    each = torch.from_numpy(counts)
    owner = torch.repeat_interleave(each)
    # Added up as they come: all parts at once may be more than memory holds.
    total, done = torch.zeros(0), 0
    for values in found:
        if not done:
            total = torch.zeros(len(rows), *values.shape[1:])
        total.index_add_(0, owner[done : done + len(values)], values)
        done += len(values)
    return (total / each.reshape(-1, *[1] * (total.ndim - 1))).numpy()


def _of_parts(
    seen: _Seen,
    rows: pd.DataFrame,
    store: Store,
    spec: DataSpec,
    workers: int,
    crops: int,
    change: Change | None = None,
) -> tuple[Iterator[Tensor], NDArray[np.intp]]:
    """What `seen` makes of the parts, a batch at a time; and how many parts each of `rows` has."""
    parts, counts = parts_of(rows, spec, crops)
    shown = shown_images(parts, store, spec, seen.device, workers=workers, change=change)
    return map(seen.of, shown), counts
