"""One frozen dataclass per command: its command line, its YAML and its Python signature.

Every field carries its help text as metadata; `cli` turns the class into flags, and a class cannot be built
with a value that the command would have to refuse.
"""

import re
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, get_args

from medclr.errors import UsageError

METHODS = {"simclr": "SimCLR", "moco": "MoCo"}  # as they are written
ADOPTED = "adopted"  # in the place of a method, of weights from elsewhere

_CROP_SCALE = "smallest and largest share of the patch that a view shows"
_WITHOUT = "augmentations to leave out, such as blur noise; a wrong name lists them (default: none)"

Method = Literal["linear", "knn", "attention", "lp-ft", "full", "distill", "auto"]
Arm = Literal["scratch", "pca", "linear", "knn", "attention", "lp-ft", "full", "distill", "auto"]
Corruption = Literal["noise", "blur", "contrast", "resolution", "motion", "bias"]
Alignment = Literal["deep-coral", "mmd", "dann"]
Trained = Literal["simclr-target", "simclr-both", "finetuned", Alignment]  # ways of adapting that train a network
AdaptMethod = Literal["adabn", "adabn-coral", "coral", "pseudo", "histogram", "fourier", Trained, "auto"]
Tunable = Literal["scratch", "lp-ft", "full"]  # arms that train the whole network by one rate


def _say(default: Any, text: str) -> Any:
    return field(default=default, metadata={"help": text})


def _need(text: str) -> Any:
    return field(metadata={"help": text})


def _check_ranges(config: object, **bounds: float) -> None:
    for name, bound in bounds.items():
        value = getattr(config, name)
        if value is not None and not value >= bound:
            raise UsageError(f"--{name.replace('_', '-')} {value}: must be at least {bound}")
    seed = getattr(config, "seed", 0)
    if not seed < 2**32:
        raise UsageError(f"--seed {seed}: must be below 2^32")


def _check_crop_scale(scale: list[float]) -> None:
    if not (len(scale) == 2 and 0 < scale[0] <= scale[1] <= 1):
        raise UsageError(
            f"--crop-scale {' '.join(map(str, scale))}: must be two shares above 0 and at most 1, the smaller first, "
            "such as 0.3 1.0"
        )


def paths_of(config: Any) -> dict[str, Path | list[Path] | None]:
    """The fields of a config that name files or folders: they stay in `private/`, since a path can name a patient."""
    return {f.name: getattr(config, f.name) for f in fields(config) if f.type in (Path, Path | None, list[Path])}


@dataclass(frozen=True)
class ReadingConfig:
    """How a folder of scans is read: what scan, prepare and pretrain share."""

    data: Path = _need("folder with DICOM, NIfTI, MetaImage, PNG, JPEG or MedMNIST .npz files, read recursively")
    out: Path | None = _say(None, "run folder to write (default: runs/DATE-COMMAND)")
    key_file: Path | None = _say(None, "key of the pseudonyms (default: ~/.config/medclr/key, made when absent)")
    workers: int | None = _say(None, "processes that read (default: one per core)")
    burned_in: bool = _say(False, "keep secondary captures and images that say they have burned-in text")
    tilt: Literal["correct", "skip"] = _say("correct", "shear volumes of a tilted CT gantry upright, or skip them")
    uneven: Literal["skip", "resample"] = _say("skip", "skip volumes whose slices are uneven, or interpolate them")
    strict: bool = _say(False, "stop at the first file that has to be skipped for a fault")
    max_skipped: float = _say(1.0, "share of files that may be skipped for a fault before the exit code is 3")

    def __post_init__(self) -> None:
        _check_ranges(self, workers=0, max_skipped=0)


@dataclass(frozen=True)
class ScanConfig(ReadingConfig):
    """What is here: series by modality, vendor and geometry; what was skipped and why; the manifest."""

    report: bool = _say(False, "write scan.html into private/: the counts, what was skipped, middle slices as images")
    share_images: bool = _say(
        False, "with --report: write the page outside private/; look at every image before you share it"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.share_images and not self.report:
            raise UsageError("--share-images: there are no images without --report; give both")


@dataclass(frozen=True)
class PreviewConfig(ReadingConfig):
    """Show what the model will see, and how each augmentation changes it: contact sheets, as one page."""

    spec: Path | None = _say(
        None, "data spec: a YAML file, or the name of one that ships (default: for each modality the one that suits it)"
    )
    volumes: int = _say(8, "volumes to show of each kind, spread over scanners and sites")
    crop_scale: list[float] = field(default_factory=lambda: [0.3, 1.0], metadata={"help": _CROP_SCALE})
    without: list[str] = field(default_factory=list, metadata={"help": _WITHOUT})
    share_images: bool = _say(False, "write the page outside private/; look at every image before you share it")
    seed: int = _say(0, "seed of the views")

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_ranges(self, volumes=1, seed=0)
        _check_crop_scale(self.crop_scale)


@dataclass(frozen=True)
class StoreConfig(ReadingConfig):
    """What prepare and pretrain share: the store, and how volumes come into it."""

    store: Path | None = _say(
        None, "folder of prepared volumes (default: store/ beside the run folder, shared by all runs there)"
    )
    spec: Path | None = _say(
        None,
        "data spec: a YAML file, or the name of one that ships, which `medclr doctor` lists (default: chosen from the "
        "data)",
    )


@dataclass(frozen=True)
class PrepareConfig(StoreConfig):
    """Build or resume the store: every volume oriented, resampled and clipped, ready for random crops."""

    shard: str | None = _say(None, "prepare only part i of N, as i/N from 0/N to N-1/N: for array jobs (default: all)")
    scheduler: str | None = _say(
        None, "address of a Dask scheduler whose workers prepare (default: processes of this machine)"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.shard is not None:
            parts = re.fullmatch(r"(\d+)/(\d+)", self.shard)
            if not (parts and int(parts[1]) < int(parts[2])):
                raise UsageError(f"--shard {self.shard}: must be i/N with i from 0 to N-1, such as 0/8")

    @property
    def part(self) -> tuple[int, int] | None:
        """The shard as numbers: which, and of how many."""
        if self.shard is None:
            return None
        index, n_shards = self.shard.split("/")
        return int(index), int(n_shards)


@dataclass(frozen=True)
class PretrainConfig(StoreConfig):
    """Teach an encoder from unlabelled scans with SimCLR or MoCo; scans and prepares first where needed."""

    encoder: Path | None = _say(
        None,
        "pretrain or adopt run, or encoder bundle, to go on from: its weights, architecture and preprocessing "
        "(default: random weights)",
    )
    holdout: Path | None = _say(None, "label table whose val and test patients are left out of pre-training")
    label: str | None = _say(None, "label column for the online probes (default: the only one in --holdout)")
    method: Literal["simclr", "moco"] = _say(
        "simclr", "tell the volumes of a batch apart (simclr), or each from a queue of earlier ones (moco)"
    )
    depth: Literal[10, 18, 34, 50, 101, 152] | None = _say(
        None, "layers of the ResNet (default: 10, or those of --encoder)"
    )
    width: int | None = _say(
        None,
        "channels of the first stage (default: 16, which suits two CPU cores, or those of --encoder; 64 is the usual "
        "ResNet)",
    )
    norm: Literal["batch", "group"] | None = _say(
        None,
        "normalisation layers of the encoder; group is exact whatever the --micro-batch (default: batch, or those of "
        "--encoder)",
    )
    projector_layers: Literal[2, 3] | None = _say(
        None,
        "layers of the projector: 2 as in SimCLR, 3 as in SimCLRv2 (default: 2, or those of --encoder)",
    )
    epochs: int = _say(20, "passes over the volumes")
    batch_size: int = _say(256, "volumes per step, over all devices; each gives two views")
    micro_batch: int | Literal["auto"] = _say(
        "auto", "volumes encoded at a time for the gradient of the whole batch: auto for what fits, 0 for all"
    )
    temperature: float | None = _say(None, "temperature of the loss (default: 0.1 for SimCLR, 0.2 for MoCo)")
    queue: int | None = _say(
        None, "with --method moco: most keys in the queue, which is cut to a quarter of the volumes (default: 65536)"
    )
    momentum: float | None = _say(
        None,
        "with --method moco: share of the momentum encoder that a step leaves (default: 0.99 to 0.999, the longer the "
        "queue the more)",
    )
    crop_scale: list[float] = field(default_factory=lambda: [0.3, 1.0], metadata={"help": _CROP_SCALE})
    without: list[str] = field(default_factory=list, metadata={"help": _WITHOUT})
    optimizer: Literal["auto", "lars", "adamw"] = _say(
        "auto", "what moves the weights: auto is LARS from --batch-size 512 on, and AdamW below"
    )
    lr: float | None = _say(
        None,
        "peak learning rate at batch size 256, which LARS scales with the batch and AdamW with its square root "
        "(default: 0.3 for LARS, 0.002 for AdamW)",
    )
    weight_decay: float | None = _say(None, "weight decay (default: 1e-6 for LARS, 1e-4 for AdamW)")
    warmup_epochs: float | None = _say(
        None, "epochs of linear warm-up before the cosine, at most half of them (default: 10 for LARS, 2 for AdamW)"
    )
    clip_norm: float | None = _say(None, "largest norm of a step's whole gradient (default: any)")
    precision: Literal["auto", "float32", "bf16"] = _say(
        "auto", "of the encoder's arithmetic: auto is bf16 on GPUs that have it, and float32 elsewhere"
    )
    pairs: Literal["auto", "instance", "overlap", "study", "patient", "adjacent"] = _say(
        "auto",
        "what the second view of a volume shows: the volume (instance), a crop that overlaps the first (overlap), "
        "another volume of the study or patient, or a neighbouring slice (adjacent); auto suggests from the manifest",
    )
    overlap: float = _say(0.5, "with --pairs overlap: least share of the patch that both crops have in common")
    domains: Literal["site", "modality", "manufacturer", "model", "kernel", "field_strength"] | None = _say(
        None, "column of the manifest that tells domains apart, for --balance and --negatives"
    )
    balance: bool = _say(False, "with --domains: equal numbers of each domain in every batch")
    negatives: Literal["all", "within", "across"] = _say(
        "all",
        "with --domains: which volumes a volume is told apart from: all, those within its own domain, or those across, "
        "in other domains",
    )
    device: Literal["auto", "cpu", "gpu"] = _say("auto", "where to train")
    seed: int = _say(0, "seed of the weights, the order and the views")
    checkpoint_minutes: float = _say(10.0, "most training that a kill may cost; the state is also saved each epoch")
    requeue: bool = _say(False, "in a SLURM job, ask for it to be queued again after SIGUSR1; needs --out")
    health_every: int | None = _say(
        None,
        "epochs from one health check to the next; the first and the last always have one (default: as few as keep "
        "the checks to about a tenth of the training)",
    )
    logger: Literal["tensorboard", "mlflow"] = _say(
        "tensorboard", "where the measures go beside metrics.csv: TensorBoard's files, or these and an MLflow store"
    )
    tracking_uri: str | None = _say(
        None, "with --logger mlflow: the server or folder that it logs to, as http://HOST:PORT or file:///FOLDER"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_ranges(
            self, width=4, epochs=1, batch_size=2, temperature=0.002, lr=0, weight_decay=0, warmup_epochs=0, seed=0
        )
        _check_ranges(self, checkpoint_minutes=0, health_every=1)
        _check_crop_scale(self.crop_scale)
        for name, given in (("queue", self.queue), ("momentum", self.momentum)):
            if given is not None and self.method != "moco":
                raise UsageError(f"--{name} {given}: only with --method moco")
        _check_ranges(self, queue=self.batch_size)
        if (self.domains is not None) != (self.balance or self.negatives != "all"):
            raise UsageError(
                "--domains COLUMN and what it is for, --balance or --negatives within or across, need each other; give "
                "both"
            )
        if self.momentum is not None and not 0 <= self.momentum < 1:
            raise UsageError(f"--momentum {self.momentum}: must be 0 or more, and below 1")
        if self.requeue and self.out is None:
            raise UsageError("--requeue: needs --out, or the job would begin anew in another folder")
        if self.micro_batch != "auto":
            _check_ranges(self, micro_batch=0)
            if self.micro_batch > self.batch_size:
                raise UsageError(
                    f"--micro-batch {self.micro_batch}: must be at most --batch-size {self.batch_size}; 0 is all of it"
                )
        if self.clip_norm is not None and not self.clip_norm > 0:
            raise UsageError(f"--clip-norm {self.clip_norm}: must be above 0")
        if (self.logger == "mlflow") != (self.tracking_uri is not None):
            raise UsageError("--logger mlflow and --tracking-uri ADDRESS, where it logs to, need each other; give both")
        if not 0 < self.overlap <= 1:
            raise UsageError(f"--overlap {self.overlap}: must be above 0 and at most 1")


@dataclass(frozen=True, kw_only=True)
class AdoptConfig:
    """Make an encoder of weights from elsewhere (timm, MONAI): for curves, classifiers and embeddings."""

    weights: Path = _need(
        "file with them: .safetensors, or a PyTorch checkpoint with nothing but tensors; with --inflate also a 2D "
        "encoder bundle, or the run of one"
    )
    network: str | None = _say(
        None,
        "whose weights they are, such as monai:resnet18 or timm:convnext_tiny; timm's are 2D, and need the extra timm "
        "(default: that of the bundle)",
    )
    inflate: Literal["axial", "coronal", "sagittal"] | None = _say(
        None, "make a 3D encoder of 2D weights, which are repeated along the axis across this plane"
    )
    like: Path | None = _say(
        None,
        "run of pretrain or prepare whose spec it takes, and whose volumes are used where no others are given; or an "
        "encoder bundle",
    )
    spec: Path | None = _say(None, "data spec that has a patch, and a spacing where it needs one, instead of --like")
    trained_on: str = _say("", "what the weights were trained on, in words that reports will quote (default: unknown)")
    name: str | None = _say(None, "of its arms in a curve (default: that of the network)")
    mean: float | None = _say(
        None, "of the grey values it was trained on, on a scale from 0 to 1 (default: timm's for the network, or 0)"
    )
    std: float | None = _say(None, "their standard deviation (default: timm's for the network, or 1)")
    out: Path | None = _say(None, "run folder to write (default: runs/DATE-COMMAND)")

    def __post_init__(self) -> None:
        if self.network is not None and not re.fullmatch(r"(timm|monai):[A-Za-z][A-Za-z0-9_.-]*", self.network):
            raise UsageError(f"--network {self.network}: must be timm:NAME or monai:NAME")
        if (self.like is None) == (self.spec is None):
            raise UsageError("--like RUN or --spec FILE says how its volumes are prepared; give one of the two")
        if self.name is not None and not re.fullmatch(r"[A-Za-z][A-Za-z0-9_.]{0,39}", self.name):
            raise UsageError(f"--name {self.name}: must be a letter, then at most 39 of letters, digits, . and _")
        if not self.trained_on.isprintable() or len(self.trained_on) > 200:
            raise UsageError("--trained-on: must be one line of at most 200 characters")
        if self.std is not None and not self.std > 0:
            raise UsageError(f"--std {self.std}: must be above 0")

    @property
    def title(self) -> str:
        """The name of its arms: arms have hyphens of their own."""
        return self.name or (self.network or ":inflated").partition(":")[2].replace("-", "_")


@dataclass(frozen=True)
class LabelledConfig:
    """What all commands share that measure by labels: where volumes and labels are, and how intervals are made."""

    data: Path | None = _say(None, "folder of scans, if other than those of the pretrain run")
    store: Path | None = _say(None, "folder of prepared volumes (default: the pretrain run's)")
    out: Path | None = _say(None, "run folder to write (default: runs/DATE-COMMAND)")
    key_file: Path | None = _say(None, "key of the pseudonyms (default: the pretrain run's)")
    label: list[str] = field(
        default_factory=list,
        metadata={"help": "label column, or several of two classes each for several labels (default: the only one)"},
    )
    spec: Path | None = _say(
        None, "data spec of the public set whose own table --labels is (default: that of the encoder)"
    )
    resamples: int = _say(2000, "bootstrap resamples of test patients behind each interval")
    workers: int | None = _say(None, "processes that read (default: one per core)")
    device: Literal["auto", "cpu", "gpu"] = _say("auto", "where to train")
    seed: int = _say(0, "seed of the weights, the draws and the resamples")

    def __post_init__(self) -> None:
        _check_ranges(self, resamples=100, workers=0, seed=0)


@dataclass(frozen=True)
class ClassifierConfig(LabelledConfig):
    """What finetune, efficiency and distill share besides: how a whole network is trained."""

    epochs: int = _say(30, "passes over the labelled volumes when the whole network is trained")
    batch_size: int = _say(64, "volumes per step when the whole network is trained")
    lr: float = _say(1e-3, "peak learning rate when the whole network is trained")
    weight_decay: float = _say(0.01, "weight decay when the whole network is trained")
    min_steps: int = _say(100, "fewest steps when the whole network is trained, however few the labels")
    max_steps: int = _say(600, "most steps when the whole network is trained, so that cost is known beforehand")
    transductive: bool = _say(False, "allow test patients that pre-training saw, and mark the report")

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_ranges(self, epochs=1, batch_size=2, lr=0, min_steps=1, max_steps=1, weight_decay=0)
        if self.min_steps > self.max_steps:
            raise UsageError(f"--min-steps {self.min_steps}: must not be above --max-steps {self.max_steps}")


@dataclass(frozen=True, kw_only=True)
class LabelsConfig(ClassifierConfig):
    """What finetune and efficiency share: the label table, and how much of an encoder is kept and changed."""

    labels: Path = _need(
        "label table (.csv, .parquet, MedMNIST .npz) with a key column, a label column and maybe a split; or the "
        "folder of scans, where its folders are named by their class"
    )
    groups: list[str] = field(
        default_factory=list,
        metadata={"help": "columns of --labels by which results are broken down too, such as sex age view"},
    )
    projector_layer: int = _say(
        0, "hidden layers of the projector that the classifier keeps, 1 as in SimCLRv2; 0 is the encoder alone"
    )
    crops: int = _say(
        1,
        "most crops, spread evenly, by which a volume (or each slice of it) larger than the patch is judged; 1 is the "
        "centre",
    )
    layer_decay: float = _say(
        1.0, "learning rate of each stage of the network as a share of that of the next: below 1, early ones move less"
    )
    decay_to: Literal["zero", "start"] = _say(
        "zero", "where weight decay draws the weights: to zero, or back to those it started from (L2-SP)"
    )
    dropout: float = _say(0.0, "share of the features that is left out at random when the whole network is trained")
    class_weight: Literal["balanced", "none"] = _say(
        "balanced", "how classes count in training: all the same, or by their rows"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_ranges(self, projector_layer=0, crops=1)
        if not 0 < self.layer_decay <= 1:
            raise UsageError(f"--layer-decay {self.layer_decay}: must be above 0 and at most 1")
        if not 0 <= self.dropout < 1:
            raise UsageError(f"--dropout {self.dropout}: must be 0 or more, and below 1")


@dataclass(frozen=True)
class FinetuneConfig(LabelsConfig):
    """Turn labels into a classifier, and say how good it is on patients it never saw."""

    encoder: Path | None = _say(None, "pretrain run or encoder bundle (default: the newest complete run under runs/)")
    method: Method = _say(
        "linear",
        "train a linear head on frozen features, everything (full), or first that and then everything (lp-ft); let the "
        "head teach everything what volumes without labels show (distill); let the nearest neighbours vote (knn); "
        "learn how much each crop or slice counts (attention); or choose by cross-validation within the training "
        "labels (auto)",
    )
    tuned: bool = _say(
        False, "for full and lp-ft: choose the learning rate by such cross-validation, which takes five times as long"
    )
    init: Literal["encoder", "scratch"] = _say("encoder", "start from the encoder, or from random weights")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.tuned and self.method not in get_args(Tunable):
            raise UsageError(f"--tuned with --method {self.method}: it has no learning rate to choose")


@dataclass(frozen=True)
class PredictConfig(ReadingConfig):
    """Apply a classifier to new scans: a table with the probability of each class or label."""

    classifier: Path | None = _say(
        None, "run that made a classifier, or its classifier/ (default: the newest complete finetune run under runs/)"
    )
    store: Path | None = _say(None, "folder of prepared volumes (default: store/ beside the run folder)")
    key_file: Path | None = _say(None, "key of the pseudonyms (default: that of the classifier's run)")
    format: Literal["csv", "parquet"] = _say("csv", "of the tables: csv for people, parquet for programs")
    device: Literal["auto", "cpu", "gpu"] = _say("auto", "where to compute")


@dataclass(frozen=True)
class EmbedConfig(ReadingConfig):
    """Turn scans into the features of an encoder: a table with one row a volume."""

    data: Path | None = _say(None, "folder of scans (default: the volumes of the pretrain run)")  # type: ignore[assignment]
    encoder: Path | None = _say(None, "pretrain run or encoder bundle (default: the newest complete run under runs/)")
    projector_layer: int = _say(
        0, "hidden layers of the projector that the features go through; 0 is the encoder alone"
    )
    store: Path | None = _say(
        None, "folder of prepared volumes (default: store/ beside the run folder, or the pretrain run's)"
    )
    key_file: Path | None = _say(None, "key of the pseudonyms (default: that of the encoder's run)")
    device: Literal["auto", "cpu", "gpu"] = _say("auto", "where to compute")

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_ranges(self, projector_layer=0)


@dataclass(frozen=True)
class EfficiencyConfig(LabelsConfig):
    """Draw the label-efficiency curve: AUROC against the share of labelled patients, per arm, with intervals."""

    fractions: list[float] = field(
        default_factory=lambda: [0.01, 0.1, 1.0], metadata={"help": "shares of the labelled training patients"}
    )
    encoder: list[Path] = field(
        default_factory=list,
        metadata={
            "help": "pretrain runs or encoder bundles; of those that differ in their seed alone an arm has the "
            "mean (default: the newest complete run under runs/)"
        },
    )
    draws: int = _say(5, "random draws per fraction; twice as many at 1% and below")
    arms: list[Arm] = field(
        default_factory=lambda: ["scratch", "pca", "linear", "full"],
        metadata={
            "help": "ways of making a classifier: two baselines, and what finetune --method does with each encoder"
        },
    )
    tuned: list[Tunable] = field(
        default_factory=lambda: ["scratch"],
        metadata={
            "help": "arms that choose their learning rate by cross-validation within the draw, which takes five times "
            "as long"
        },
    )
    jobs: int | None = _say(None, "cells computed at a time (default: one per core, or one where there is a GPU)")
    examples: int = _say(
        0, "worst false positives, and as many false negatives, whose images private/errors.html shows; 0 for no page"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_ranges(self, draws=1, jobs=1, examples=0)
        for arm in self.tuned:
            if arm not in get_args(Tunable):
                raise UsageError(f"--tuned {arm}: it trains no whole network, so there is no learning rate to choose")
        if not self.fractions or not all(0 < f <= 1 for f in self.fractions):
            raise UsageError(f"--fractions {self.fractions}: each must be above 0 and at most 1")
        if not self.arms:
            raise UsageError("--arms: name at least one")


@dataclass(frozen=True, kw_only=True)
class DistillConfig(ClassifierConfig):
    """Teach a small network to predict what a fine-tuned one does, from volumes without labels."""

    teacher: Path = _need("finetune run, or the classifier/ of one")
    labels: Path | None = _say(
        None,
        "label table whose val and test patients are left out, and by which student and teacher are compared (default: "
        "the teacher's, unless --data is given)",
    )
    data: Path | None = _say(None, "folder of scans to learn from (default: those behind the teacher)")
    store: Path | None = _say(None, "folder of prepared volumes (default: the teacher's)")
    key_file: Path | None = _say(None, "key of the pseudonyms (default: the teacher's)")
    label: list[str] = field(default_factory=list, metadata={"help": "label columns (default: the teacher's)"})
    spec: Path | None = _say(
        None, "data spec of the public set whose own table --labels is (default: that of the teacher)"
    )
    depth: Literal[10, 18, 34, 50, 101, 152] | None = _say(
        None, "layers of the student (default: the teacher's; 10 where that was adopted)"
    )
    width: int | None = _say(
        None,
        "channels of the student's first stage (default: the most below half the teacher's, so that it has less than a "
        "quarter of the parameters; 16 where that was adopted)",
    )
    norm: Literal["batch", "group"] | None = _say(None, "normalisation layers of the student (default: the teacher's)")
    encoder: Path | None = _say(
        None, "pretrain run or encoder bundle that the student starts from (default: random weights)"
    )
    temperature: float = _say(1.0, "of both predictions: above 1, they are softer")
    alpha: float = _say(1.0, "share of the teacher in the loss; the rest is of the train split's labels")
    epochs: int = _say(30, "passes over the volumes")
    batch_size: int = _say(64, "volumes per step")
    lr: float = _say(2e-3, "peak learning rate")
    weight_decay: float = _say(0.01, "weight decay")
    min_steps: int = _say(100, "fewest steps, however few the volumes")
    max_steps: int = _say(3000, "most steps, so that cost is known beforehand")

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_ranges(self, width=4)
        if not self.temperature > 0:
            raise UsageError(f"--temperature {self.temperature}: must be above 0")
        if not 0 <= self.alpha <= 1:
            raise UsageError(f"--alpha {self.alpha}: must be a share from 0 to 1")
        if self.encoder is not None:
            for name in ("depth", "width", "norm"):
                if getattr(self, name) is not None:
                    raise UsageError(f"--{name}: the student has the architecture of --encoder; leave one of them out")


@dataclass(frozen=True)
class ShiftConfig(LabelledConfig):
    """Show what a classifier loses in other domains (scanner, view, hospital), and where that may come from."""

    by: list[str] = field(
        default_factory=list,
        metadata={
            "help": "how domains are told apart: columns of --labels or of the manifest, such as view manufacturer "
            "site; view=PA names the source, to which the others are compared (default: the archive where --data is "
            "given, else all columns of the manifest that differ)"
        },
    )
    classifier: list[Path] = field(
        default_factory=list,
        metadata={
            "help": "finetune runs, or the classifier/ of them; of several, such as seeds or draws, results are means "
            "(default: the newest complete run under runs/)"
        },
    )
    data: Path | None = _say(None, "folder of scans of another archive, which is compared with the classifier's own")
    labels: Path | None = _say(
        None,
        "label table of --data; without --data, of the classifier's own volumes (default: the one it learned from)",
    )
    store: Path | None = _say(None, "folder of prepared volumes (default: the classifier's)")
    key_file: Path | None = _say(None, "key of the pseudonyms (default: the classifier's)")
    label: list[str] = field(default_factory=list, metadata={"help": "label columns (default: the classifier's)"})
    attributes: list[str] = field(
        default_factory=list,
        metadata={
            "help": "further columns of --labels that may betray the label without any pixel; the scanner's, the image "
            "size and those of --by are looked at anyway"
        },
    )
    corruptions: list[Corruption] = field(
        default_factory=list,
        metadata={
            "help": "ways in which scanners differ that are tried on the volumes, each at five strengths, beside --by "
            "or without it"
        },
    )
    device: Literal["auto", "cpu", "gpu"] = _say("auto", "where to compute")
    seed: int = _say(0, "seed of the folds, the corruptions and the resamples")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.data is not None and self.labels is None:
            raise UsageError("--data: whose label table is not given; name it with --labels")
        names = [column.partition("=")[0] for column in self.by]
        if "" in names or len(set(names)) < len(names):
            raise UsageError(f"--by {' '.join(self.by)}: must name each column once, as COLUMN or COLUMN=SOURCE")

    @property
    def sources(self) -> dict[str, str]:
        """By column, the source that was named, or ""."""
        return {column: source for column, _, source in (given.partition("=") for given in self.by)}


@dataclass(frozen=True, kw_only=True)
class AdaptConfig(LabelledConfig):
    """Carry a classifier to another scanner, view or hospital without its labels, and show what that gained."""

    labels: Path = _need("label table of the source; without --target-data, of both domains")
    target: str | None = _say(
        None,
        "domain to adapt to, as COLUMN=VALUE of --labels or of the manifest, such as view=AP or manufacturer=GE; a "
        "COLUMN alone leaves out each of its values in turn, learned from all others",
    )
    source: str | None = _say(None, "domain with labels to learn from (default: all other values of that column)")
    balance: bool = _say(
        False, "all domains of the source count the same: volumes of the smaller ones are drawn several times"
    )
    target_data: Path | None = _say(None, "folder of scans of another archive, to which is adapted")
    target_labels: Path | None = _say(
        None, "label table of --target-data, or of some of it: no method sees it, but all figures need it"
    )
    target_label: list[str] = field(
        default_factory=list,
        metadata={
            "help": "label column of --target-labels, or several (default: those of --labels, if it has them, or else "
            "the only one)"
        },
    )
    unlabelled: int = _say(
        1000, "most volumes of the target without a label to adapt to as well, drawn at random; 0: none"
    )
    corruption: Corruption | None = _say(
        None, "show the target through this corruption; without --target and --target-data it is the source, corrupted"
    )
    strength: int = _say(3, "of --corruption: 1, hardly seen, to 5, severe; 0 leaves the volumes as they are")
    encoder: list[Path] = field(
        default_factory=list,
        metadata={
            "help": "pretrain runs or encoder bundles; of several, which differ in their seed alone, results are means "
            "(default: the newest complete run under runs/)"
        },
    )
    methods: list[AdaptMethod] = field(
        default_factory=list,
        metadata={
            "help": "on the encoder as it is: statistics of batch norm from the target (adabn), features of the source "
            "as the target's are distributed (coral), both (adabn-coral), self-training (pseudo), the source's images "
            "with the grey values (histogram) or amplitudes (fourier) of the target's too; by training it: more SimCLR "
            "on the target (simclr-target) or on both (simclr-both), fine-tuning on the source's labels alone "
            "(finetuned) or with features that become alike (deep-coral mmd dann); or the one that is chosen without "
            "labels of the target (auto; alone, among all that leave the encoder as it is) (default: those, and auto)"
        },
    )
    draws: int = _say(5, "random halvings of the target's patients: each half is scored by adapting to the other")
    target_shots: list[int] = field(
        default_factory=list,
        metadata={
            "help": "labels per class of the target to learn as well, such as 5 10 25 50, to see how many "
            "adaptation is worth (default: none)"
        },
    )
    lp_ft: bool = _say(
        False, "with --target-shots, train the whole network on these labels too, from their head (LP-FT)"
    )
    projector_layer: int = _say(
        0, "hidden layers of the projector that the features go through, 1 as in SimCLRv2; 0 is the encoder alone"
    )
    crops: int = _say(
        1, "most crops, spread evenly, by which a volume larger than the patch is judged; 1 is the centre"
    )
    steps: int = _say(200, "steps of each training of a network, so that cost is known beforehand")
    batch_size: int = _say(64, "volumes per step, of each domain; in SimCLR of all together")
    lr: float = _say(1e-3, "peak learning rate of a training")
    weight_decay: float = _say(0.01, "weight decay of a training")
    alignment: float = _say(1.0, "weight of the loss that makes domains alike (deep-coral mmd dann)")
    negatives: Literal["all", "within", "across"] = _say(
        "all", "what simclr-both tells a volume apart from: all others, or those within its domain, or of the other"
    )
    transductive: bool = _say(False, "allow target patients that pre-training saw, and mark the report")
    device: Literal["auto", "cpu", "gpu"] = _say("auto", "where to compute")
    seed: int = _say(0, "seed of the halves, the folds, the trainings and the resamples")

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_ranges(self, draws=1, projector_layer=0, crops=1, steps=1, batch_size=4, lr=0, weight_decay=0)
        _check_ranges(self, alignment=0, unlabelled=0)
        named = (self.target is not None) + (self.target_data is not None)
        if named > 1:
            raise UsageError("--target and --target-data: the target is a domain of the archive, or another archive")
        if not (named or self.corruption):
            raise UsageError(
                "name what to adapt to: a domain with --target COLUMN=VALUE, or an archive --target-data, or with "
                "--corruption what the source becomes by it"
            )
        if not 0 <= self.strength <= 5:
            raise UsageError(f"--strength {self.strength}: must be from 0 to 5")
        self._refuse_idle()
        if any(shots < 1 for shots in self.target_shots):
            raise UsageError(f"--target-shots {min(self.target_shots)}: must be at least 1; 0 is always there")
        if self.target_shots and self.target_data is not None and self.target_labels is None:
            raise UsageError("--target-shots: only with --target-labels, the labels to learn")
        if self.lp_ft and not self.target_shots:
            raise UsageError("--lp-ft: only with --target-shots, the labels to learn")
        if self.lp_ft and self.corruption:
            raise UsageError(
                "--lp-ft: learns from augmented views of what is stored, which --corruption does not change; leave one "
                "out"
            )
        if self.target_labels is not None and self.target_data is None:
            raise UsageError(f"--target-labels {self.target_labels}: only with --target-data, whose labels they are")
        if self.target_label and self.target_labels is None:
            raise UsageError(
                f"--target-label {' '.join(self.target_label)}: only with --target-labels, whose column it is"
            )
        if self.source is not None and self.target is None:
            raise UsageError(f"--source {self.source}: only with --target; with --target-data it is all of --labels")
        if self.data is not None and self.target_data is not None:
            raise UsageError("--data with --target-data: the source is the archive that the encoder is from")
        for name, given in (("target", self.target), ("source", self.source)):
            alone = name == "target" and self.each and given
            if given is not None and not all(given.partition("=")) and not alone:
                raise UsageError(f"--{name} {given}: must be COLUMN=VALUE, such as view=AP")
        if self.source is not None and self.each:
            raise UsageError(
                f"--source {self.source}: with --target {self.target}, a column alone, each domain is learned from all "
                f"others; name one, --target {self.target}=VALUE, or leave --source out"
            )
        if self.balance and (self.target is None or self.source is not None):
            raise UsageError(
                "--balance: the source is one domain; it takes several, as with --target COLUMN=VALUE without --source"
            )
        if self.source is not None and self.source.partition("=")[0] != self.column:
            raise UsageError(f"--source {self.source}: must be of the column of --target, {self.column}")
        if self.source is not None and self.source == self.target:
            raise UsageError(f"--target {self.target}: is the source too; name another domain")

    def _refuse_idle(self) -> None:
        """Raise UsageError where a setting would change nothing, though whoever gave it expects that it does."""
        aligning, training = f"--methods {' '.join(get_args(Alignment))}", f"--methods {' '.join(get_args(Trained))}"
        aligns, trains = ({*get_args(kind)} & {*self.methods} for kind in (Alignment, Trained))
        of_training = (trains or self.lp_ft, f"{training}, or with --lp-ft")
        takes = {
            "strength": (self.corruption, "--corruption"),
            "negatives": ("simclr-both" in self.methods, "--methods simclr-both"),
            "alignment": (aligns, aligning),
            **dict.fromkeys(("steps", "batch_size", "lr", "weight_decay"), of_training),
        }
        defaults = {setting.name: setting.default for setting in fields(self)}
        for name, (taken, by) in takes.items():
            if not taken and (value := getattr(self, name)) != defaults[name]:
                raise UsageError(f"--{name.replace('_', '-')} {value}: changes nothing here, it is only for {by}")

    @property
    def column(self) -> str:
        """By which source and target are told apart; "" where they are archives."""
        return (self.target or "").partition("=")[0]

    @property
    def each(self) -> bool:
        """Each value of the column is the target in turn."""
        return self.target is not None and "=" not in self.target


@dataclass(frozen=True)
class LeakageConfig:
    """What two sets of scans share: patients, studies, series, identical pixels, nearly the same pixels."""

    first: Path = _need("run folder, manifest.parquet or label table")
    second: Path | None = _say(None, "another (default: look within --first, across its splits or patients)")
    out: Path | None = _say(None, "run folder to write (default: runs/DATE-COMMAND)")
    key_file: Path | None = _say(None, "key of the pseudonyms (default: that of the first run named)")
    strict: bool = _say(False, "fail on near-duplicates too")


@dataclass(frozen=True)
class DemoConfig:
    """Run everything on generated phantoms: scans, encoder, classifier and curve, in minutes on a laptop."""

    out: Path | None = _say(None, "folder for the phantoms and all runs (default: runs/demo)")
    patients: int = _say(160, "phantom patients to generate")
    seed: int = _say(0, "seed of the phantoms and of every step")

    def __post_init__(self) -> None:
        _check_ranges(self, patients=20, seed=0)


@dataclass(frozen=True)
class DoctorConfig:
    """Check this machine: versions, DICOM decoders, GPU, free disk, write permission."""

    out: Path = _say(Path("runs"), "folder in which runs will be written")
