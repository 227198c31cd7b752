"""An encoder with a head that gives a logit for each label or class, and the folder that carries it to new data."""

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn
from torch.nn.functional import normalize

from medclr.data.identity import Seen
from medclr.data.labels import Task
from medclr.data.spec import DataSpec, parse_spec
from medclr.models.encoder import Architecture, build_encoder, channels_last
from medclr.models.projector import build_projector, describe_projector, hidden_layers
from medclr.models.sealed import Kind, read_sealed, write_sealed

_DETAILS = frozenset({"temperature", "encoder", "seen", "domains", "method", "code_version"})
CLASSIFIER = Kind(
    "classifier",
    "classifier",
    "--classifier",
    "finetune",
    2,
    _DETAILS | {"architecture", "projector", "head", "pooling", "task", "spec"},
)


class Classifier(nn.Module):
    """Images float32 (B, C, *patch) in [0, 1] to logits (B, K).

    Args:
        network: gives features (B, feature_dim).
        feature_dim: their length.
        outputs: K.
        dropout: share of the features that training leaves out before the head.
        head: features (B, feature_dim) to logits (B, K); None is a linear one, at zero.
        crops: the most that it sees of one volume, or of one slice.
        pool: from the features of the parts of volumes to those of the volumes; None is the mean. Images are each a
            volume of one part, which none changes.
    """

    def __init__(
        self,
        network: nn.Module,
        feature_dim: int,
        outputs: int,
        dropout: float = 0.0,
        head: nn.Module | None = None,
        crops: int = 1,
        pool: "AttentionPool | None" = None,
    ) -> None:
        super().__init__()
        self.network, self.crops, self.pool = network, crops, pool
        self.dropout = nn.Dropout(dropout)
        if head is None:
            head = nn.Linear(feature_dim, outputs)
            nn.init.zeros_(head.weight)
            nn.init.zeros_(head.bias)
        self.head = head

    def forward(self, images: Tensor) -> Tensor:
        """See the class."""
        logits: Tensor = self.head(self.dropout(self.network(images)))
        return logits

    @torch.no_grad()
    def set_head(self, weight: NDArray[np.floating], bias: NDArray[np.floating]) -> None:
        """Take over a head that was fitted elsewhere: weight (F, K) and bias (K,) of the logits."""
        assert isinstance(self.head, nn.Linear)
        self.head.weight.copy_(torch.from_numpy(weight.T))
        self.head.bias.copy_(torch.from_numpy(bias))

    @torch.no_grad()
    def shift_logits(self, by: NDArray[np.floating]) -> None:
        """Add (K,) to the logits of a linear head."""
        assert isinstance(self.head, nn.Linear)
        self.head.bias.add_(torch.from_numpy(by).to(self.head.bias))


class AttentionPool(nn.Module):
    """Gated attention over the parts of a volume (Ilse, Tomczak and Welling, "Attention-based deep multiple instance
    learning", ICML 2018, equation 9, with biases), at first their mean.

    Args:
        feature_dim: F.
        hidden: length of what the attention is computed from.
    """

    def __init__(self, feature_dim: int, hidden: int = 64) -> None:
        super().__init__()
        self.content, self.gate = nn.Linear(feature_dim, hidden), nn.Linear(feature_dim, hidden)
        self.weigh = nn.Linear(hidden, 1, bias=False)
        nn.init.zeros_(self.weigh.weight)

    def forward(self, features: Tensor, counts: Tensor) -> Tensor:
        """Features (m, F) of parts, those of one volume together, and how many each volume has, (n,), to (n, F)."""
        score = self.weigh(self.content(features).tanh() * self.gate(features).sigmoid())[:, 0]
        owner = torch.repeat_interleave(counts)
        # Relative to the largest of a volume, or exp would overflow.
        top = score.new_full((len(counts),), -torch.inf).scatter_reduce(0, owner, score.detach(), "amax")
        weight = (score - top[owner]).exp()
        whole = features.new_zeros(len(counts), features.shape[1]).index_add(0, owner, weight[:, None] * features)
        mean: Tensor = whole / weight.new_zeros(len(counts)).index_add(0, owner, weight)[:, None]
        return mean


class NeighboursHead(nn.Module):
    """The vote of the k labelled rows nearest by cosine (Wu et al. 2018, section 3.4), as a head that can be saved.

    Features (B, F) to logits (B, K), as if one more vote were spread evenly, so that none is infinite.

    Args:
        features: (n, F) of the labelled rows.
        y: (n, K) of 0, 1 and NaN (unknown, no vote).
        k: how many of them vote; where there are fewer, all do.
        exclusive: one class of several, rather than labels of their own.
        temperature: a vote weighs exp(cosine / temperature).
    """

    features: Tensor
    y: Tensor

    def __init__(self, features: ArrayLike, y: ArrayLike, k: int, exclusive: bool, temperature: float = 0.1) -> None:
        super().__init__()
        self.register_buffer("features", torch.as_tensor(features, dtype=torch.float32))
        self.register_buffer("y", torch.as_tensor(y, dtype=torch.float32))
        self.k, self.exclusive, self.temperature = min(k, len(self.features)), exclusive, temperature

    def forward(self, features: Tensor) -> Tensor:
        """See the class."""
        cosine = normalize(features.double()) @ normalize(self.features.double()).T
        near = cosine.topk(self.k)
        # Relative to the nearest, or exp would overflow at a small temperature.
        weight = ((near.values - near.values[:, :1]) / self.temperature).exp()
        y = self.y.double()[near.indices]
        cast = torch.einsum("bk,bko->bo", weight, (~y.isnan()).double())
        won = torch.einsum("bk,bko->bo", weight, y.nan_to_num(0))
        share = torch.where(cast > 0, won / cast, 0.5)
        if self.exclusive:
            logits = ((share * self.k + 1 / share.shape[1]) / (self.k + 1)).log()
        else:
            logits = ((share * self.k + 0.5) / (self.k + 1)).logit()
        return logits.to(features.dtype)


@dataclass(frozen=True)
class LoadedClassifier:
    """A classifier that was loaded, every weight of it, and all that it takes to use it.

    Attributes:
        classifier: maps (B, channels, *patch) to logits (B, K); in evaluation mode, on the CPU.
        architecture: of its encoder.
        task: what the K logits mean.
        spec: how volumes are read, sized and normalised for it.
        temperature: that logits are divided by before they become probabilities; 1 where none was fitted.
        trained_on, pretrained_on: what its labels and its pre-training saw; the latter None where there was none.
        details: plain JSON types; keys temperature, encoder (fingerprint of the bundle that it came from, or None),
            seen ("training" and "pretraining"), domains (the modalities and manufacturers that it was trained on),
            method, code_version.
        digest: of all of it, hexadecimal.
    """

    classifier: Classifier
    architecture: Architecture
    task: Task
    spec: DataSpec
    temperature: float
    trained_on: Seen
    pretrained_on: Seen | None
    details: dict[str, Any]
    digest: str


def save_classifier(
    folder: Path,
    classifier: Classifier,
    architecture: Architecture,
    task: Task,
    spec: DataSpec,
    details: dict[str, Any],
) -> None:
    """Write classifier.safetensors and classifier.json, whole or not at all; an older one is replaced.

    Args:
        folder: of the classifier; its parent exists.
        classifier: whose network is a Sequential of `build_encoder(architecture)` and the hidden layers that are kept
            of a projector, and whose head is linear or a NeighboursHead.
        architecture: of the encoder.
        task, spec: what it tells, and from what.
        details: as in LoadedClassifier, all keys of it; JSON types, and never a path.

    Raises:
        MedclrError: it cannot be written.
    """
    assert isinstance(classifier.network, nn.Sequential)
    kept = list(classifier.network)[1:]
    record = {
        "architecture": architecture.to_dict(),
        "projector": describe_projector(nn.Sequential(*kept)) if kept else None,
        "head": _describe_head(classifier.head),
        "pooling": {"crops": classifier.crops, "attention": classifier.pool and classifier.pool.weigh.in_features},
        "task": asdict(task),
        "spec": spec.to_dict(),
        **details,
    }
    write_sealed(CLASSIFIER, folder, classifier, record)


def load_classifier(path: Path | str, flag: str = CLASSIFIER.flag) -> LoadedClassifier:
    """Read a classifier, and accept nothing less than all of its weights.

    Args:
        path: the classifier, or a finetune run that holds it as classifier/.
        flag: that names it, for messages.

    Raises:
        BundleError: it is missing, damaged, from another version, or its weights do not fit its architecture.
    """
    classifier, record = read_sealed(replace(CLASSIFIER, flag=flag), Path(path), _build)
    architecture = Architecture.of(record["architecture"])
    assert isinstance(classifier.network, nn.Sequential)
    # Making room anew drops the layout where there is a single input channel.
    channels_last(classifier.network[0], architecture.spatial_dims)
    before = record["seen"]["pretraining"]
    return LoadedClassifier(
        classifier,
        architecture,
        _task(record),
        parse_spec(record["spec"], "classifier"),
        float(record["temperature"]),
        Seen.from_dict(record["seen"]["training"]),
        None if before is None else Seen.from_dict(before),
        {key: record[key] for key in record if key in _DETAILS},
        record["digest"],
    )


def _build(record: dict[str, Any]) -> Classifier:
    architecture, task = Architecture.of(record["architecture"]), _task(record)
    network, width = nn.Sequential(build_encoder(architecture)), architecture.feature_dim
    if kept := record["projector"]:
        projector = build_projector(width, **kept | {"layers": kept["layers"] + 1})
        network.extend(hidden_layers(projector, kept["layers"]))
        width = kept["hidden"]
    head, outputs = None, len(task.outputs)
    if record["head"] is not None:
        own = dict(record["head"])
        rows = own.pop("rows")
        head = NeighboursHead(torch.zeros(rows, width), torch.zeros(rows, outputs), **own)
    pooling = record["pooling"]
    pool = None if pooling["attention"] is None else AttentionPool(width, pooling["attention"])
    return Classifier(network, width, outputs, head=head, crops=pooling["crops"], pool=pool)


def _describe_head(head: nn.Module) -> dict[str, Any] | None:
    if not isinstance(head, NeighboursHead):
        return None
    rows = len(head.features)
    return {"rows": rows, "k": head.k, "exclusive": head.exclusive, "temperature": head.temperature}


def _task(record: dict[str, Any]) -> Task:
    own = record["task"]
    return Task(own["kind"], tuple(own["columns"]), tuple(own["classes"]))
