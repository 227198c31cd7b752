"""From a config to a trained SimCLR, by Lightning; takes up an interrupted run by itself."""

import logging
import math
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from pytorch_lightning import Callback, LightningModule, Trainer, seed_everything
from pytorch_lightning.loggers import TensorBoardLogger

from medclr.config import PretrainConfig
from medclr.data.loader import Blocks, default_workers, train_loader
from medclr.data.spec import DataSpec
from medclr.errors import MedclrError
from medclr.losses.nt_xent import chance_level
from medclr.models.encoder import Architecture, build_encoder
from medclr.models.projector import build_projector
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
    loader = train_loader(blocks, config.batch_size, config.workers or default_workers(spec, cores), config.seed)
    batch_size, steps = min(config.batch_size, len(blocks)), len(loader)
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
            accelerator=config.device,
            devices=1,
            max_epochs=config.epochs,
            logger=TensorBoardLogger(folder, name=None, version="tensorboard"),
            callbacks=[_Epochs(batch_size, health, on_epoch), _Checkpoint(folder)],
            plugins=[SafeCheckpointIO()],
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            use_distributed_sampler=False,
            log_every_n_steps=1,
        )
        last = checkpoint_path(folder)
        trainer.fit(module, loader, ckpt_path=last if last.is_file() else None, weights_only=True)
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

    def __init__(self, batch_size: int, health: Callable[[SimCLR], Row], on_epoch: Callable[[Row], None]) -> None:
        self.chance, self.health, self.on_epoch = chance_level(batch_size), health, on_epoch

    def on_train_batch_end(self, trainer: Trainer, module: LightningModule, outputs: object, *rest: object) -> None:
        assert isinstance(outputs, dict)
        if not torch.isfinite(outputs["loss"]):
            raise MedclrError(
                f"the loss is {float(outputs['loss'])} in epoch {trainer.current_epoch}; lower --lr or raise "
                "--temperature. The checkpoint of the last good epoch is kept"
            )

    def on_train_epoch_end(self, trainer: Trainer, module: LightningModule) -> None:
        assert isinstance(module, SimCLR)
        loss = float(trainer.callback_metrics["loss"])
        lr = trainer.optimizers[0].param_groups[0]["lr"]
        module.eval()
        measured = self.health(module)
        module.train()
        if trainer.logger:
            trainer.logger.log_metrics({"chance": self.chance, **measured}, step=trainer.global_step)
        self.on_epoch({"epoch": trainer.current_epoch, "loss": loss, "chance": self.chance, "lr": lr, **measured})


class _quiet_lightning(warnings.catch_warnings):  # noqa: N801 - a context manager, used as a function
    """Lightning prints tips and warns of what is meant here (few batches, few workers, no validation)."""

    def __enter__(self) -> None:
        super().__enter__()
        warnings.filterwarnings("ignore", module="pytorch_lightning")
        self.level = logging.getLogger("pytorch_lightning").level
        logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)

    def __exit__(self, *error: object) -> None:
        logging.getLogger("pytorch_lightning").setLevel(self.level)
        super().__exit__(*error)
