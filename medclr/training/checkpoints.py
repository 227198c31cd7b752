"""A run that can be stopped at any step and goes on as if it had not been: what is kept, when, and by which signals."""

import math
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer

from medclr.data.loader import Batch, Steps
from medclr.errors import Interrupted, MedclrError
from medclr.training.ranks import Ranks
from medclr.training.resume import checkpoint_name, prune

AVERAGED = ("loss", "chance")  # what a module logs at each step, and an epoch's row gives as the mean of
STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


class Signals:
    """A context in which a signal to stop is noted, so that no step is left half done; Ctrl-C twice stops at once.

    Attributes:
        noted: the first signal that came, or 0.
        at_once: raise `Interrupted` where a signal comes, instead of noting it.
    """

    def __init__(self) -> None:
        self.noted, self.at_once = 0, False
        self._owner = os.getpid()
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "Signals":
        self._before = {signum: signal.getsignal(signum) for signum in STOPPING}
        self.install()
        return self

    def __exit__(self, *_: object) -> None:
        if threading.current_thread() is threading.main_thread():
            for signum, handler in self._before.items():
                signal.signal(signum, handler)

    def install(self) -> None:
        """Take the signals; in a thread of somebody's program they stay with the main one."""
        if threading.current_thread() is threading.main_thread():
            for signum in STOPPING:
                signal.signal(signum, self._handle)

    def check(self) -> None:
        """Raise `Interrupted` where a signal was noted."""
        if self.noted:
            raise Interrupted(self.noted)

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        if os.getpid() != self._owner:  # a loader process that was forked a moment ago: its parent will end it
            return
        impatient = signum == self.noted == signal.SIGINT
        self.noted = self.noted or signum
        if self.at_once or impatient:
            self.check()


class Checkpoints(Callback):
    """Saves the state of a run after every epoch, every so many minutes within one, and when it is told to stop.

    A state is "so many steps of this epoch are done": weights, optimiser, schedule, random state, and the sums behind
    the epoch's row. With all steps done, the epoch has still to be measured and told. Of several processes, all save
    and stop after the same step, whichever got the signal; the first one writes.

    Args:
        folder: run folder.
        order: of the batches; told where to start.
        minutes: most that a kill may cost; 0 saves after every step.
        signals: in force while the trainer fits.
        ranks: the processes that train together.
    """

    def __init__(self, folder: Path, order: Steps, minutes: float, signals: Signals, ranks: Ranks) -> None:
        self.folder, self.order, self.minutes, self.signals, self.ranks = folder, order, minutes, signals, ranks
        self.epoch, self.step = 0, 0
        self.sums = dict.fromkeys(AVERAGED, 0.0)
        self.saved = time.monotonic()

    def averages(self) -> dict[str, float]:
        """Means over the steps of the epoch, those before an interruption among them."""
        return {name: total / self.step for name, total in self.sums.items()}

    @contextmanager
    def aside(self, trainer: Trainer) -> Iterator[None]:
        """For what is done between epochs and changes nothing: it may be cut short, and leaves no trace."""
        random = _random_state()
        try:
            self.signals.at_once = True
            self.signals.check()
            yield
        except Interrupted:
            pass  # and raised again below, on all ranks
        finally:
            self.signals.at_once = False
            _set_random_state(random)
        self._agree()
        if self.signals.noted:
            self._save(trainer)
        self.signals.check()

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        # Lightning has put its own handlers before ours: they end the process with code 0, and save in mid-step.
        self.signals.install()
        self.saved = time.monotonic()

    def on_train_batch_end(
        self, trainer: Trainer, module: LightningModule, outputs: Any, batch: Batch, batch_index: int
    ) -> None:
        values = {name: float(trainer.callback_metrics[name]) for name in AVERAGED}
        if not math.isfinite(values["loss"]):
            raise MedclrError(_diverged(f"the loss is {values['loss']} in epoch {self.epoch + 1}"))
        self.step += 1
        self.sums = {name: total + values[name] for name, total in self.sums.items()}
        due = self._agree(self.ranks.place.first and time.monotonic() - self.saved >= 60 * self.minutes)
        if self.step == len(self.order):
            self._check_finite(trainer, module)
        if due or self.signals.noted:
            self._save(trainer)
        self.signals.check()

    def on_train_epoch_end(self, trainer: Trainer, module: LightningModule) -> None:
        self.epoch, self.step = self.epoch + 1, 0
        self.sums = dict.fromkeys(AVERAGED, 0.0)
        # Lightning tells only samplers of single rows which epoch it is.
        self.order.set_epoch(self.epoch)
        self._save(trainer)
        self._agree()
        self.signals.check()

    def on_save_checkpoint(self, trainer: Trainer, module: LightningModule, checkpoint: dict[str, Any]) -> None:
        self._check_finite(trainer, module)
        checkpoint["medclr"] = {
            "epoch": self.epoch,
            "step": self.step,
            "sums": self.sums,
            "random": _random_state(),
        }
        _set_progress(checkpoint["loops"]["fit_loop"], self.epoch, self.step, len(self.order))

    def on_load_checkpoint(self, trainer: Trainer, module: LightningModule, checkpoint: dict[str, Any]) -> None:
        ours = checkpoint["medclr"]
        self.epoch, self.step, self.sums = ours["epoch"], ours["step"], ours["sums"]
        _set_random_state(ours["random"])
        # Now, not when the epoch starts: loader processes ask for their first batches before that.
        self.order.set_epoch(self.epoch, self.step)

    def _agree(self, due: bool = False) -> bool:
        """A signal that one rank noted is noted by all; gives whether any is due to save."""
        self.signals.noted, due_anywhere = self.ranks.largest(self.signals.noted, due)
        return bool(due_anywhere)

    def _save(self, trainer: Trainer) -> None:
        trainer.save_checkpoint(self.folder / "checkpoints" / checkpoint_name(self.epoch, self.step))
        if self.ranks.place.first:
            prune(self.folder)
        self.saved = time.monotonic()

    def _check_finite(self, trainer: Trainer, module: LightningModule) -> None:
        """A sound loss can have a gradient that spoils the weights: such a state is never kept."""
        states = [state for optimizer in trainer.optimizers for state in optimizer.state.values()]
        tensors = [*module.state_dict().values()]
        tensors += [value for state in states for value in state.values() if isinstance(value, torch.Tensor)]
        if not all(torch.isfinite(tensor).all() for tensor in tensors):
            raise MedclrError(_diverged(f"weights are not finite after step {self.step} of epoch {self.epoch + 1}"))


def _set_progress(loop: dict[str, Any], epoch: int, step: int, steps: int) -> None:
    """Write into the state of Lightning's loop that `step` batches of an epoch are done, and no more is under way.

    Its own counts, taken within a hook, are of an epoch that is neither done nor open, and it would leave out the end
    of an epoch whose last batch was saved.
    """
    begun = epoch + (step > 0)
    done = {"ready": begun, "started": begun, "processed": epoch, "completed": epoch}
    loop["epoch_progress"] = {"total": dict(done), "current": dict(done)}
    names = ("ready", "started", "processed", "completed")
    counts = {"total": dict.fromkeys(names, epoch * steps + step), "current": dict.fromkeys(names, step)}
    loop["epoch_loop.batch_progress"] = {**counts, "is_last_batch": False}
    loop["epoch_loop.state_dict"]["_batches_that_stepped"] = epoch * steps + step


def _random_state() -> dict[str, Any]:
    return {"cpu": torch.get_rng_state(), "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []}


def _set_random_state(state: dict[str, Any]) -> None:
    torch.set_rng_state(state["cpu"])
    if len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])


def _diverged(how: str) -> str:
    return f"{how}; lower --lr or raise --temperature. The last good state, if any, is kept in checkpoints/"
