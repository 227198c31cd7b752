"""Networks that learn from two domains at once, of which one has no labels."""

import copy
from collections.abc import Callable, Iterator, Sequence
from itertools import count

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import DataLoader

from medclr.config import AdaptConfig, LabelsConfig
from medclr.data.labels import Task
from medclr.data.loader import Batch, Blocks, Steps, train_loader
from medclr.data.slices import by_slice
from medclr.errors import MedclrError
from medclr.losses import (
    class_weights,
    coral_loss,
    label_loss,
    mmd,
    nt_xent,
    reversal_strength,
    reverse_gradient,
)
from medclr.models.classifier import Classifier
from medclr.models.projector import build_projector, hidden_layers
from medclr.training.adapt import Moved
from medclr.training.classify import fit_full
from medclr.training.crossfit import Anew, Domain, Rows, Tune
from medclr.training.encode import Encoder, Volumes, head_logits, training_device
from medclr.training.optim import adamw
from medclr.training.probe import Linear, fit_linear, log_prior
from medclr.training.steps import shown, take_steps
from medclr.training.trainer import TEMPERATURES
from medclr.transforms.presets import Views, build_views

FINETUNED = "finetuned"  # what ALIGNMENTS are compared with: the same training, of which the source is all
CONTINUED = ("simclr-target", "simclr-both")

_LEAST_SPREAD = 1e-6  # of a feature, below which it is dead


def align(
    method: str,
    network: nn.Sequential,
    head: Linear,
    source: Volumes,
    y: NDArray[np.floating],
    target: Volumes,
    views: Views,
    config: AdaptConfig,
    seed: int,
    exclusive: bool,
) -> Classifier:
    """Fine-tune a network and its head on labels of the source, while its features of both domains become alike.

    AdamW, a tenth of the steps of warm-up and a cosine, as in `fit_full`; each step sees as many volumes of one domain
    as of the other, in one batch, so that batch norm has one set of statistics for both.

    Args:
        method: of ALIGNMENTS.
        network: an encoder, and what is kept of its projector; its weights are changed.
        head: of a linear probe on its features of the source, to start from (LP-FT, Kumar et al. 2022).
        source: labelled volumes; y: (n, K) of 0, 1 and NaN, their labels.
        target: volumes without labels.
        views: augmentations, one view a volume.
        config: steps, batch_size (volumes of each domain in a step), lr, weight_decay, alignment (the weight of the
            second loss).
        seed: of the order, the views and the critic.
        exclusive: the K columns are classes, of which each row has one.

    Returns:
        The classifier in evaluation mode, whose logits are as if all classes were equally frequent.
    """
    device = next(network.parameters()).device
    torch.manual_seed(seed)
    classifier = Classifier(network, len(head.weight), y.shape[1]).to(device).train()
    rows = _units(source, volume=np.arange(len(source.rows)))
    y = y[rows["volume"]]
    prior = log_prior(y, exclusive)
    classifier.set_head(head.weight, head.bias - prior)
    labels = torch.tensor(y, dtype=torch.float32, device=device)
    weight = class_weights(labels, exclusive)
    between = ALIGNMENTS[method](len(head.weight)).to(device) if method in ALIGNMENTS else None
    both = nn.ModuleList([classifier, between] if between else [classifier])
    loader = _loader(rows, source, views, 1, config.batch_size, seed)
    # Its own random numbers: of one seed, the first volumes of both domains would be augmented alike.
    others = _endless(target, views, 1, config.batch_size, seed + 1, device)
    done = count()

    def loss(images: Tensor, batch: Batch) -> Tensor:
        known = labels[batch["row"]]
        if between is None:
            return label_loss(classifier(images), known, weight, exclusive)
        features = network(torch.cat([images, next(others)[0]]))
        own, there = features[: len(images)], features[len(images) :]
        told = label_loss(classifier.head(own), known, weight, exclusive)
        result: Tensor = told + config.alignment * between(own, there, next(done) / config.steps)
        return result

    optimizer = adamw(both, config.lr, config.weight_decay)
    take_steps(both, loader, views, optimizer, config.steps, seed, loss)
    return classifier.eval()


def continue_simclr(
    encoder: nn.Module,
    projector: nn.Module,
    domains: Sequence[Volumes],
    views: Views,
    temperature: float,
    config: AdaptConfig,
    seed: int,
) -> None:
    """Go on with SimCLR on volumes of other domains: adaptive pre-training (Azizi et al. 2023, REMEDIS).

    Args:
        encoder, projector: f and g, whose weights are changed; they are left in evaluation mode.
        domains: volumes of one or several; each gives the same share of every batch.
        views: augmentations, two views a volume.
        temperature: of NT-Xent.
        config: steps, batch_size (of all domains together), lr, weight_decay, negatives (by domain, see `nt_xent`).
        seed: of the order and the views.
    """
    device = next(encoder.parameters()).device
    both = nn.Sequential(encoder, projector).to(device).train()
    share = max(2, config.batch_size // len(domains))
    negatives = config.negatives if len(domains) > 1 else "all"
    rows = [_units(volumes) for volumes in domains]
    # A patient may be in several domains, and volumes of one patient are never told apart.
    keys = pd.factorize(pd.concat([one["patient_key"] for one in rows]))[0]
    ends = np.cumsum([len(one) for one in rows])
    patients = [torch.from_numpy(part).to(device) for part in np.split(keys, ends[:-1])]
    first = domains[0]
    loader = _loader(rows[0], first, views, 2, share, seed)
    others = [_endless(volumes, views, 2, share, seed + 1 + place, device) for place, volumes in enumerate(domains[1:])]

    def loss(images: Tensor, batch: Batch) -> Tensor:
        parts, groups = [images], [patients[0][batch["row"]]]
        for place, other in enumerate(others):
            more, of = next(other)
            parts.append(more)
            groups.append(patients[place + 1][of["row"]])
        domain = torch.cat([torch.full_like(group, place) for place, group in enumerate(groups)])
        z = both(torch.cat(parts)).unflatten(0, (-1, 2))
        return nt_xent(z[:, 0], z[:, 1], temperature, torch.cat(groups), domain, negatives)

    optimizer = adamw(both, config.lr, config.weight_decay)
    take_steps(both, loader, views, optimizer, config.steps, seed, loss)
    both.eval()


def aligned(
    method: str,
    network: nn.Sequential,
    known: Domain,
    source: Volumes,
    target: Volumes,
    views: Views,
    config: AdaptConfig,
    exclusive: bool,
) -> Anew:
    """Of a network that `align` fine-tunes: the logits of its own head.

    network: that starts; known: what is known of the source by it; the others as for `align`.
    """

    def anew(own: Rows, fit: Rows, held: Rows, seed: int) -> Moved:
        y, there, start = known.y[own], target.at(fit), copy.deepcopy(network)
        head = fit_linear(known.features[own], y, known.patients[own], seed, exclusive=exclusive)
        trained = align(method, start, head, source.at(own), y, there, views, config, seed, exclusive)
        scored = (source.at(own), there, target.at(held))
        a, b, c = (head_logits(trained, volumes.embed(trained.network)) for volumes in scored)
        return _finite(Moved(a, b, c, trained), config)

    return anew


def continued(method: str, encoder: Encoder, source: Volumes, target: Volumes, config: AdaptConfig) -> Anew:
    """Of an encoder that `continue_simclr` takes further, by the views and the temperature that it learned with."""
    spec, learned = encoder.spec, encoder.bundle.details["hyperparameters"]
    smallest, largest = learned.get("crop_scale", (0.3, 1.0))
    scale, without = (smallest, largest), learned.get("without", ())
    views = build_views(spec.preset, spec.spatial_dims, spec.laterality, scale, without)
    # Of MoCo, and of weights from elsewhere, it is none of SimCLR's.
    own_temperature = learned.get("temperature") if encoder.bundle.details["method"] == "simclr" else None
    temperature = own_temperature or TEMPERATURES["simclr"]
    width = encoder.bundle.architecture.feature_dim

    def anew(own: Rows, fit: Rows, held: Rows, seed: int) -> Moved:
        torch.manual_seed(seed)
        start, projector = copy.deepcopy(encoder.bundle.encoder), copy.deepcopy(encoder.bundle.projector)
        if not len(projector):  # weights from elsewhere come without one
            projector = build_projector(width, width)
        start.to(training_device(config.device))
        there = target.at(fit)
        domains = [there] if method == "simclr-target" else [source.at(own), there]
        continue_simclr(start, projector, domains, views, temperature, config, seed)
        network = nn.Sequential(start, *hidden_layers(projector, config.projector_layer))
        a, b, c = (volumes.embed(network) for volumes in (source.at(own), there, target.at(held)))
        return _finite(Moved(a, b, c, network), config)

    return anew


def _finite(moved: Moved, config: AdaptConfig) -> Moved:
    """Raise MedclrError where training has ended in numbers that are none."""
    if not all(np.isfinite(features).all() for features in moved[:3]):
        raise MedclrError(f"--lr {config.lr:g}: the training diverged, and its features are not finite; lower it")
    return moved


def fine_tuned(
    network: nn.Sequential, target: Volumes, y: NDArray[np.float64], views: Views, config: AdaptConfig, task: Task
) -> Tune:
    """Of LP-FT: the whole network learns labels of the target, for as many steps as are asked for.

    network: that starts; y: (n, K) of the target.
    """
    settings = LabelsConfig(
        labels=config.labels, device=config.device, crops=config.crops, batch_size=config.batch_size, lr=config.lr,
        weight_decay=config.weight_decay, min_steps=config.steps, max_steps=config.steps,
    )  # fmt: skip

    def tune(
        at: Rows, head: Linear, fit: Rows, held: Rows, seed: int
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        own, start = target.at(at), copy.deepcopy(network).to(training_device(config.device))
        tuned = fit_full(
            start, len(head.weight), own.rows, y[at], own.store, own.spec, views, settings, seed,
            task.kind == "multiclass", head,
        )  # fmt: skip
        there = (target.at(fit), target.at(held))
        told, scores = (task.scores(head_logits(tuned, volumes.embed(tuned.network))) for volumes in there)
        return told, scores

    return tune


class _Distance(nn.Module):
    """A distance of two sets of features, each in units of its standard deviation over both.

    The gradient goes through that unit too. Without, it could always lower the distance by making all features smaller,
    which the next unit takes back, step after step, until nothing is left of them.
    """

    def __init__(self, distance: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.distance = distance

    def forward(self, own: Tensor, there: Tensor, _: float) -> Tensor:
        """Features (n, F) and (m, F), and the share of the training that is done."""
        both = torch.cat([own, there])
        centre, scale = both.mean(dim=0), both.std(dim=0).clamp(min=_LEAST_SPREAD)
        return self.distance((own - centre) / scale, (there - centre) / scale)


class _Critic(nn.Module):
    """Tells domains apart by features that learn to make this hard: Ganin et al. 2016 (DANN), section 4.2."""

    def __init__(self, feature_dim: int) -> None:
        super().__init__()
        self.tell = nn.Sequential(nn.Linear(feature_dim, feature_dim), nn.ReLU(), nn.Linear(feature_dim, 1))

    def forward(self, own: Tensor, there: Tensor, progress: float) -> Tensor:
        """Features (n, F) and (m, F), and the share of the training that is done."""
        features = reverse_gradient(torch.cat([own, there]), reversal_strength(progress))
        domain = torch.cat([own.new_zeros(len(own)), own.new_ones(len(there))])
        return F.binary_cross_entropy_with_logits(self.tell(features)[:, 0], domain)


ALIGNMENTS: dict[str, Callable[[int], nn.Module]] = {
    "deep-coral": lambda n: _Distance(lambda own, there: n * coral_loss(own, there)),
    "mmd": lambda n: _Distance(mmd),
    "dann": _Critic,
}
"""From the length F of features to a loss that is small where those of two domains are alike.

Deep CORAL (Sun and Saenko 2016) leaves the weight of its loss to be found. Of standardised features it is a mean over
F^2 pairs, nearly all of which differ little; times F it is about as large as the loss of the label.
"""


def _loader(
    rows: pd.DataFrame, volumes: Volumes, views: Views, n_views: int, size: int, seed: int
) -> "DataLoader[Batch]":
    """Batches of rows; where these have a column "domain", with as many of each domain.

    A batch is then as large as that allows: the domains have as many rows, as `equal_draws` gives them.
    """
    of = pd.factorize(rows["domain"])[0] if "domain" in rows else None
    each = 1 if of is None else int(of.max()) + 1
    blocks = Blocks(rows, volumes.store, volumes.spec, views, n_views, seed, domains=of)
    most = max(1, min(size, len(rows)) // each) * each
    return train_loader(blocks, most, 0, seed, balance=of is not None)


def _endless(
    volumes: Volumes, views: Views, n_views: int, size: int, seed: int, device: torch.device
) -> Iterator[tuple[Tensor, Batch]]:
    """Augmented views (B * V, C, *patch) of batch after batch, and the batch that they are of."""
    loader = _loader(_units(volumes), volumes, views, n_views, size, seed)
    order = loader.batch_sampler
    assert isinstance(order, Steps)
    for epoch in count():
        order.set_epoch(epoch)
        for batch in loader:
            yield shown(batch, views, device), batch


def _units(volumes: Volumes, **columns: NDArray[np.generic]) -> pd.DataFrame:
    """What is learned from, one at a time: volumes, or their slices."""
    rows = volumes.rows.assign(**columns)
    return by_slice(rows) if volumes.spec.slices else rows
