"""From a config to a trained SimCLR or MoCo, by Lightning; takes up an interrupted run by itself."""

import logging
import socket
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from lightning_fabric.plugins.environments.cluster_environment import ClusterEnvironment
from pytorch_lightning import Callback, LightningModule, Trainer, seed_everything
from pytorch_lightning.loggers import TensorBoardLogger
from pytorch_lightning.strategies import DDPStrategy

from medclr.config import PretrainConfig
from medclr.data.loader import Blocks, Steps, default_workers, train_loader
from medclr.data.spec import DataSpec
from medclr.errors import UsageError
from medclr.models.bundle import Bundle
from medclr.models.encoder import Architecture
from medclr.training.checkpoints import Checkpoints, Signals
from medclr.training.encode import training_device
from medclr.training.moco import MoCo, default_momentum, queue_length
from medclr.training.optim import recipe
from medclr.training.ranks import Place, Ranks
from medclr.training.resume import SafeCheckpointIO
from medclr.training.simclr import SimCLR
from medclr.training.start import architecture_of, networks
from medclr.transforms.presets import Views

TEMPERATURES = {"simclr": 0.1, "moco": 0.2}  # MoCo: Chen, Fan, Girshick and He 2020, section 3

Row = dict[str, float]


def pretrain_encoder(
    config: PretrainConfig,
    spec: DataSpec,
    views: Views,
    blocks: Blocks,
    folder: Path,
    cores: int,
    health: Callable[[SimCLR], Row],
    on_epoch: Callable[[Row], None],
    resume: Path | None = None,
    tell: Callable[[str], None] = lambda line: None,
    ranks: Ranks | None = None,
    start: Bundle | None = None,
) -> tuple[SimCLR, Architecture]:
    """Train an encoder with SimCLR or MoCo, on one device or, with as many processes that call this, on several.

    Args:
        config: of the command.
        spec: filled; its patch decides the stem.
        views: the augmentations that `blocks` draws from.
        blocks: the volumes to learn from, two views each.
        folder: run folder, for checkpoints/ and tensorboard/, where all processes can see it.
        cores: processor cores that the processes of this machine may use.
        health: measures the encoder after each epoch; the first process does.
        on_epoch: gets each epoch's row: epoch, loss, chance, lr and what health measured; in the first process.
        resume: the checkpoint to go on from (`newest_checkpoint`), or None.
        tell: gets a line that the user should read: how the batch was split, and why.
        ranks: the processes that train together; None is this one alone.
        start: the bundle whose weights it goes on from; None for random ones.

    Returns:
        The module, with its weights after the last epoch, and the encoder's architecture.

    Raises:
        UsageError: more processes on this machine than GPUs.
        MedclrError: the loss or a weight is not finite; the last good state stays in the checkpoints.
        Interrupted: by a signal, once the step it came in is done and saved.
    """
    assert spec.patch is not None
    ranks = ranks or Ranks()
    here = ranks.place
    seed_everything(config.seed, verbose=False)
    workers = default_workers(spec, here.cores(cores)) if config.workers is None else config.workers
    loader = train_loader(
        blocks, config.batch_size, workers, config.seed, here.rank, here.world, balance=config.balance
    )
    order = loader.batch_sampler
    assert isinstance(order, Steps)
    batch_size, steps = order.batch_size, len(order)
    optimizer, lr, weight_decay, warmup_epochs = recipe(config, batch_size)
    device = _own(training_device(config.device), here)
    architecture = architecture_of(config, spec, start)
    kind = MoCo if config.method == "moco" else SimCLR
    module = kind(
        *networks(config, spec, start),
        views,
        **contrast(config, len(blocks)),
        optimizer=optimizer,
        lr=lr,
        weight_decay=weight_decay,
        warmup_steps=round(warmup_epochs * steps),
        total_steps=config.epochs * steps,
        clip_norm=config.clip_norm,
        micro_batch=None if config.micro_batch == "auto" else config.micro_batch,
        negatives=config.negatives,
        tell=tell,
    )
    ranks.join(device)
    with _quiet_lightning(), Signals() as signals:
        checkpoints = Checkpoints(folder, order, config.checkpoint_minutes, signals, ranks)
        trainer = Trainer(
            accelerator="gpu" if device.type == "cuda" else "cpu",
            devices=1 if device.index is None else [device.index],
            num_nodes=here.world,
            # What batch norm keeps is each rank's own, and the first one's is what is saved.
            strategy=DDPStrategy(broadcast_buffers=False) if here.world > 1 else "auto",
            precision=_precision(config.precision, device),
            max_epochs=config.epochs,
            logger=TensorBoardLogger(folder, name=None, version="tensorboard"),
            callbacks=[_Epochs(checkpoints, health, on_epoch), checkpoints],
            plugins=[SafeCheckpointIO(), _Met(here)],
            default_root_dir=folder,  # else, under SLURM, an hpc_ckpt_*.ckpt that lies about would be taken up
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            use_distributed_sampler=False,
            log_every_n_steps=1,
        )
        try:
            trainer.fit(module, loader, ckpt_path=resume, weights_only=True)
        finally:
            if here.first:
                _drop_host(folder / "tensorboard")
    return module.cpu().eval(), architecture


def contrast(config: PretrainConfig, n_volumes: int) -> dict[str, Any]:
    """What a method compares with: the temperature and, for MoCo, the queue, its momentum and the seed of its order.

    Args:
        config: of the command; where it leaves something open there is a default.
        n_volumes: to learn from.

    Raises:
        UsageError: they are too few for a queue.
    """
    temperature = TEMPERATURES[config.method] if config.temperature is None else config.temperature
    if config.method == "simclr":
        return {"temperature": temperature}
    queue = queue_length(config.queue, n_volumes, config.batch_size)
    momentum = default_momentum(queue, config.batch_size) if config.momentum is None else config.momentum
    return {"temperature": temperature, "queue": queue, "momentum": momentum, "seed": config.seed}


def _own(device: torch.device, here: Place) -> torch.device:
    """The GPU of this process, among those of its machine."""
    if device.type == "cpu":
        return device
    seen = torch.cuda.device_count()
    # SLURM may show each process no GPU but its own.
    index = 0 if here.by_srun and seen == 1 else here.local
    if index >= seen:
        raise UsageError(
            f"{here.neighbours} processes on a machine where torch sees {seen} GPUs; start one for each, or give "
            "--device cpu"
        )
    return torch.device("cuda", index)


class _Met(ClusterEnvironment):
    """Our processes as Lightning is to see them: each a node of its own with one device, and connected already.

    Its own view of SLURM takes a job for a step, refuses --ntasks, counts the GPUs of a machine in each process, and
    answers signals in its own way.
    """

    def __init__(self, here: Place) -> None:
        super().__init__()
        self._here = here

    @property
    def creates_processes_externally(self) -> bool:
        return True

    @property
    def main_address(self) -> str:
        return self._here.address

    @property
    def main_port(self) -> int:
        return self._here.port

    @staticmethod
    def detect() -> bool:
        return False

    def world_size(self) -> int:
        return self._here.world

    def set_world_size(self, size: int) -> None:
        pass

    def global_rank(self) -> int:
        return self._here.rank

    def set_global_rank(self, rank: int) -> None:
        pass

    def local_rank(self) -> int:
        return 0

    def node_rank(self) -> int:
        return self._here.rank


def _precision(choice: str, device: torch.device) -> Literal["bf16-mixed", "32-true"]:
    # Weights, losses and statistics stay in float32 either way.
    if choice == "auto":
        has = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
        choice = "bf16" if has else "float32"
    return "bf16-mixed" if choice == "bf16" else "32-true"


class _Epochs(Callback):
    """The row of measures after each epoch."""

    def __init__(
        self, checkpoints: Checkpoints, health: Callable[[SimCLR], Row], on_epoch: Callable[[Row], None]
    ) -> None:
        self.checkpoints, self.health, self.on_epoch = checkpoints, health, on_epoch

    def on_train_epoch_end(self, trainer: Trainer, module: LightningModule) -> None:
        assert isinstance(module, SimCLR)
        lr = trainer.optimizers[0].param_groups[0]["lr"]
        first, measured = self.checkpoints.ranks.place.first, {}
        with self.checkpoints.aside(trainer):
            if first:
                module.eval()
                measured = self.health(module)
                module.train()
        if not first:
            return
        row = {**self.checkpoints.averages(), "lr": lr, **measured}
        if trainer.logger:
            trainer.logger.log_metrics(row, step=trainer.global_step)
        self.on_epoch({"epoch": self.checkpoints.epoch, **row})


def _drop_host(folder: Path) -> None:
    """TensorBoard names its files after the host, which is nobody's business who is given the run."""
    for path in folder.glob(f"events.out.tfevents.*.{socket.gethostname()}.*"):
        path.rename(path.with_name(path.name.replace(f".{socket.gethostname()}.", ".host.")))


@contextmanager
def _quiet_lightning() -> Iterator[None]:
    """Lightning prints tips and warns of what is meant here (few batches, few workers, no validation)."""
    logger = logging.getLogger("pytorch_lightning")
    level = logger.level
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="pytorch_lightning")
        logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            logger.setLevel(level)
