"""From a config to a trained SimCLR, by Lightning; takes up an interrupted run by itself."""

import logging
import math
import socket
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer, seed_everything
from pytorch_lightning.loggers import TensorBoardLogger

from medclr.config import PretrainConfig
from medclr.data.loader import Blocks, Steps, default_workers, train_loader
from medclr.data.spec import DataSpec
from medclr.errors import MedclrError
from medclr.models.encoder import Architecture, build_encoder
from medclr.models.projector import build_projector
from medclr.training.encode import training_device
from medclr.training.resume import SafeCheckpointIO
from medclr.training.simclr import SimCLR
from medclr.transforms.presets import Views

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
) -> tuple[SimCLR, Architecture]:
    """Train an encoder with SimCLR.

    Args:
        config: of the command.
        spec: filled; its patch decides the stem.
        views: the augmentations that `blocks` draws from.
        blocks: the volumes to learn from, two views each.
        folder: run folder; checkpoints/last.ckpt in it is taken up where it exists.
        cores: processor cores to use.
        health: measures the encoder after each epoch.
        on_epoch: gets each epoch's row: epoch, loss, chance, lr and what health measured.

    Returns:
        The module, with its weights after the last epoch, and the encoder's architecture.

    Raises:
        MedclrError: the loss is not finite; the last good state stays in the checkpoint.
    """
    assert spec.patch is not None
    seed_everything(config.seed, verbose=False)
    workers = default_workers(spec, cores) if config.workers is None else config.workers
    loader = train_loader(blocks, config.batch_size, workers, config.seed)
    order = loader.batch_sampler
    assert isinstance(order, Steps)
    batch_size, steps = order.batch_size, len(order)
    architecture = Architecture(config.depth, config.width, spec.spatial_dims, 1, config.norm, spec.patch)
    module = SimCLR(
        build_encoder(architecture),
        build_projector(architecture.feature_dim, hidden=architecture.feature_dim),
        views,
        temperature=config.temperature,
        lr=config.lr * math.sqrt(batch_size / 256),
        weight_decay=config.weight_decay,
        warmup_steps=round(min(config.warmup_epochs, config.epochs / 2) * steps),
        total_steps=config.epochs * steps,
    )
    with _quiet_lightning():
        trainer = Trainer(
            accelerator="gpu" if training_device(config.device).type == "cuda" else "cpu",
            devices=1,
            max_epochs=config.epochs,
            logger=TensorBoardLogger(folder, name=None, version="tensorboard"),
            callbacks=[_Epochs(order, health, on_epoch), _Checkpoint(folder)],
            plugins=[SafeCheckpointIO()],
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            use_distributed_sampler=False,
            log_every_n_steps=1,
        )
        last = checkpoint_path(folder)
        try:
            trainer.fit(module, loader, ckpt_path=last if last.is_file() else None, weights_only=True)
        finally:
            _drop_host(folder / "tensorboard")
    return module.cpu().eval(), architecture


def checkpoint_path(folder: Path) -> Path:
    """Where a run keeps the state that it resumes from."""
    return folder / "checkpoints" / "last.ckpt"


class _Checkpoint(Callback):
    """One checkpoint, replaced after each epoch; randomness depends on the epoch alone, so nothing else is needed."""

    def __init__(self, folder: Path) -> None:
        self.path = checkpoint_path(folder)

    def on_train_epoch_end(self, trainer: Trainer, module: LightningModule) -> None:
        trainer.save_checkpoint(self.path)


class _Epochs(Callback):
    """The order and views of each epoch before it, its row of measures after it."""

    def __init__(self, order: Steps, health: Callable[[SimCLR], Row], on_epoch: Callable[[Row], None]) -> None:
        self.order, self.health, self.on_epoch = order, health, on_epoch

    def on_load_checkpoint(self, trainer: Trainer, module: LightningModule, checkpoint: dict[str, Any]) -> None:
        # Now, not when the epoch starts: loader processes ask for their first batches before that.
        self.order.set_epoch(checkpoint["epoch"] + 1)

    def on_train_batch_end(self, trainer: Trainer, module: LightningModule, outputs: object, *rest: object) -> None:
        assert isinstance(outputs, dict)
        if not torch.isfinite(outputs["loss"]):
            raise MedclrError(_diverged(f"the loss is {float(outputs['loss'])} in epoch {trainer.current_epoch}"))

    def on_train_epoch_end(self, trainer: Trainer, module: LightningModule) -> None:
        assert isinstance(module, SimCLR)
        loss, chance = (float(trainer.callback_metrics[name]) for name in ("loss", "chance"))
        if not all(torch.isfinite(p).all() for p in module.parameters()):
            raise MedclrError(_diverged(f"weights are not finite after epoch {trainer.current_epoch}"))
        lr = trainer.optimizers[0].param_groups[0]["lr"]
        module.eval()
        measured = self.health(module)
        module.train()
        if trainer.logger:
            trainer.logger.log_metrics(measured, step=trainer.global_step)
        # Lightning tells only samplers of single rows which epoch it is.
        self.order.set_epoch(trainer.current_epoch + 1)
        self.on_epoch({"epoch": trainer.current_epoch, "loss": loss, "chance": chance, "lr": lr, **measured})


def _drop_host(folder: Path) -> None:
    """TensorBoard names its files after the host, which is nobody's business who is given the run."""
    for path in folder.glob(f"events.out.tfevents.*.{socket.gethostname()}.*"):
        path.rename(path.with_name(path.name.replace(f".{socket.gethostname()}.", ".host.")))


def _diverged(how: str) -> str:
    return f"{how}; lower --lr or raise --temperature. The checkpoint of the last good epoch, if any, is kept"


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
