import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.optim.optimizer import register_optimizer_step_post_hook

from medclr.config import PretrainConfig
from medclr.data.loader import Blocks
from medclr.errors import MedclrError, UsageError
from medclr.training import simclr
from medclr.training import trainer as module
from medclr.training.ranks import Place
from medclr.training.resume import SafeCheckpointIO, checkpoints, newest_checkpoint
from medclr.training.simclr import SimCLR
from medclr.training.trainer import pretrain_encoder
from medclr.transforms.presets import build_views

# torch says so where a machine has fewer cores than the two workers that these tests need.
pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")


class Recorded(Blocks):
    """Blocks that note which (epoch, row) they were asked for."""

    def __getitems__(self, items):
        self.__dict__.setdefault("asked", []).extend(items)
        return super().__getitems__(items)


def no_health(module):
    return {}


@pytest.fixture
def train(material, tmp_path):
    """Train on twenty images, two steps an epoch; gives the module and the rows of `on_epoch`."""
    views = build_views("xray", 2)
    rows = material.rows[:20]

    def run(name="run", stop_after=None, health=no_health, blocks=None, tell=print, **settings):
        found = []

        def on_epoch(row):
            found.append(row)
            if row["epoch"] == stop_after:
                raise InterruptedError

        config = PretrainConfig(
            **{"data": tmp_path, "width": 8, "epochs": 4, "batch_size": 8, "device": "cpu", "workers": 0} | settings
        )
        blocks = blocks or Blocks(rows, material.store, material.spec, views, 2, config.seed)
        resume = newest_checkpoint(tmp_path / name, print)
        module, architecture = pretrain_encoder(
            config, material.spec, views, blocks, tmp_path / name, 2, health, on_epoch, resume, tell
        )
        return module, found, architecture

    run.views, run.rows, run.folder = views, rows, tmp_path
    return run


def states(module):
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def assert_same(one, other):
    assert one.keys() == other.keys()
    assert [name for name in one if not torch.equal(one[name], other[name])] == []


@pytest.mark.parametrize(("stop_after", "workers"), [(0, 0), (2, 0), (2, 2)])
def test_interrupted_and_resumed_equals_uninterrupted(train, stop_after, workers):
    whole, rows, _ = train("whole")
    with pytest.raises(InterruptedError):
        train("parts", stop_after=stop_after, workers=workers)
    torch.manual_seed(99)
    parts, rest, _ = train("parts", workers=workers)
    # Killed before its checkpoint was written, the epoch is run again.
    assert [row["epoch"] for row in rest] == list(range(stop_after, 4))
    assert rest == rows[stop_after:]
    assert_same(states(whole), states(parts))


def test_a_finished_run_is_not_trained_further(train):
    first, _, _ = train()
    again, rows, _ = train()
    assert rows == []
    assert_same(states(first), states(again))


def test_the_seed_decides(train):
    one, two, other = (states(train(name, seed=seed, epochs=1)[0]) for name, seed in (("a", 1), ("b", 1), ("c", 2)))
    assert_same(one, two)
    assert any(not torch.equal(one[name], other[name]) for name in one)


def test_every_epoch_has_an_order_and_views_of_its_own(train, material):
    blocks = Recorded(train.rows, material.store, material.spec, train.views, 2, 0)
    train(blocks=blocks)
    epochs = [blocks.asked[start : start + 16] for start in range(0, 64, 16)]
    assert [{epoch for epoch, _ in items} for items in epochs] == [{0}, {1}, {2}, {3}]
    orders = [tuple(row for _, row in items) for items in epochs]
    assert len(set(orders)) == 4
    assert all(len(set(order)) == 16 for order in orders)


def test_the_row_of_an_epoch(train, monkeypatch):
    losses = []
    step = SimCLR.training_step
    monkeypatch.setattr(SimCLR, "training_step", lambda self, *args: losses.append(step(self, *args)) or losses[-1])
    modes = []
    _, rows, _ = train(health=lambda module: modes.append(module.training) or {"rankme": 5.0}, lr=1e-3, warmup_epochs=1)
    assert [row["epoch"] for row in rows] == [0, 1, 2, 3]
    for epoch, row in enumerate(rows):
        assert row["loss"] == pytest.approx(sum(x.item() for x in losses[2 * epoch : 2 * epoch + 2]) / 2)
        assert row["chance"] == pytest.approx(math.log(2 * 8 - 1))
        assert row["rankme"] == 5
    # Scaled by the square root of the batch; the cosine ends at zero.
    peak = 1e-3 * math.sqrt(8 / 256)
    assert rows[0]["lr"] == pytest.approx(peak)
    assert rows[1]["lr"] == pytest.approx(peak * (1 + math.cos(math.pi / 3)) / 2)
    assert rows[3]["lr"] == pytest.approx(0)
    assert modes == [False] * 4


def test_what_comes_back_is_ready_to_use(train):
    module, _, architecture = train(epochs=1, depth=10)
    assert not module.training
    assert architecture.patch == (12, 12)
    assert module.encoder(torch.rand(2, 1, 12, 12)).shape == (2, architecture.feature_dim) == (2, 64)
    assert {path.name for path in (train.folder / "run").iterdir()} == {"checkpoints", "tensorboard"}


def test_it_learns(train):
    _, rows, _ = train(epochs=20, batch_size=20, lr=2e-2)
    assert rows[-1]["loss"] < 0.9 * rows[-1]["chance"]
    assert rows[-1]["loss"] < rows[0]["loss"]


def test_micro_batches_learn_what_whole_batches_learn(train):
    said = []
    settings = {"norm": "group", "epochs": 1, "projector_layers": 3}
    whole, _, _ = train("whole", micro_batch=0, **settings)
    split, _, _ = train("split", micro_batch=3, tell=said.append, **settings)
    for name, weight in whole.state_dict().items():
        torch.testing.assert_close(split.state_dict()[name], weight, rtol=1e-3, atol=1e-4)
    assert said == ["encoding 3 of 8 volumes at a time; the loss and its gradient are of all together"]
    assert len([layer for layer in whole.projector if isinstance(layer, torch.nn.Linear)]) == 3


@pytest.mark.parametrize("settings", [{"optimizer": "lars"}, {"precision": "bf16", "micro_batch": 4}])
def test_resumed_equals_uninterrupted_whatever_learns(train, settings):
    whole, rows, _ = train("whole", **settings)
    with pytest.raises(InterruptedError):
        train("parts", stop_after=2, **settings)
    parts, rest, _ = train("parts", **settings)
    assert rest == rows[2:]
    assert_same(states(whole), states(parts))


@pytest.mark.parametrize("method", ["simclr", "moco"])
def test_balanced_batches_go_on_in_the_middle_of_an_epoch(train, material, monkeypatch, method):
    settings = {"domains": "site", "balance": True, "negatives": "within", "method": method, "batch_size": 4}
    domains = (np.arange(20) % 5 == 0).astype(int)

    def blocks():
        return Blocks(train.rows, material.store, material.spec, train.views, 2, 0, domains=domains)

    whole, rows, _ = train("whole", blocks=blocks(), **settings)
    step = SimCLR.training_step

    def stopping(self, *args):
        if self.trainer.global_step == 7:
            raise InterruptedError
        return step(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(SimCLR, "training_step", stopping)
        with pytest.raises(InterruptedError):
            train("parts", blocks=blocks(), checkpoint_minutes=0, **settings)
    parts, rest, _ = train("parts", blocks=blocks(), **settings)
    assert rest == rows[1:]
    assert_same(states(whole), states(parts))
    # Two of each domain in a batch of SimCLR; of MoCo's, the queue of one batch has two of the query's own.
    assert rows[-1]["chance"] < math.log(3.01)


def test_what_fitted_is_not_looked_for_again_by_a_resumed_run(train, monkeypatch):
    fits = [3, 8]
    monkeypatch.setattr(simclr, "volumes_that_fit", lambda *arguments: fits.pop(0))
    with pytest.raises(InterruptedError):
        train(stop_after=1)
    module, _, _ = train()
    assert (module.micro_batch, fits) == (3, [8])


def test_precision_is_as_asked_and_float32_on_a_cpu(train):
    seen = []

    def health(module):
        seen.append(module.trainer.precision)
        return {}

    for precision in ("auto", "float32", "bf16"):
        train(precision, epochs=1, precision=precision, health=health)
    assert seen == ["32-true", "32-true", "bf16-mixed"]


@pytest.mark.parametrize(
    ("here", "seen", "index"),
    [
        (Place(), 8, 0),
        (Place(5, 8, 1, 4), 4, 1),
        (Place(5, 8, 1, 4, by_srun=True), 4, 1),
        # srun can show each task one GPU.
        (Place(5, 8, 1, 4, by_srun=True), 1, 0),
        (Place(5, 8, 1, 4), 1, None),
        (Place(7, 8, 3, 4, by_srun=True), 3, None),
    ],
)
def test_each_process_has_a_gpu_of_its_own(monkeypatch, here, seen, index):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: seen)
    assert module._own(torch.device("cpu"), here) == torch.device("cpu")
    if index is None:
        with pytest.raises(UsageError, match=f"4 processes on a machine where torch sees {seen} GPUs"):
            module._own(torch.device("cuda"), here)
    else:
        assert module._own(torch.device("cuda"), here) == torch.device("cuda", index)


def test_a_batch_job_is_trained_in_without_srun(train, monkeypatch):
    """Lightning would take SLURM_NTASKS for a step, and wait for others or refuse."""
    for name, value in {"SLURM_NTASKS": "2", "SLURM_JOB_ID": "7", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}.items():
        monkeypatch.setenv(name, value)
    _, rows, _ = train(epochs=1)
    assert len(rows) == 1


def test_the_gradient_is_clipped_once_and_whole(train, monkeypatch):
    norms = []
    step = torch.optim.AdamW.step

    def watched(self, *args, **kwargs):
        gradients = [p.grad.flatten() for group in self.param_groups for p in group["params"]]
        norms.append(torch.cat(gradients).norm().item())
        return step(self, *args, **kwargs)

    monkeypatch.setattr(torch.optim.AdamW, "step", watched)
    train("any", epochs=1, micro_batch=2)
    assert min(norms) > 0.01
    norms.clear()
    train("clipped", epochs=1, micro_batch=2, clip_norm=0.01)
    assert norms == pytest.approx([0.01] * 2, rel=1e-3)


class Broken(Blocks):
    """Blocks that turn to NaN in the third epoch."""

    def __getitems__(self, items):
        batch = super().__getitems__(items)
        if items[0][0] == 2:
            batch["blocks"].fill_(math.nan)
        return batch


def test_nan_stops_with_the_last_good_state_kept(train, material):
    blocks = Broken(train.rows, material.store, material.spec, train.views, 2, 0)
    with pytest.raises(MedclrError, match=r"the loss is nan in epoch 3; lower --lr or raise --temperature"):
        train(blocks=blocks)
    newest = checkpoints(train.folder / "run")[0]
    assert newest.name == "epoch0002-step000000.ckpt"
    checkpoint = SafeCheckpointIO().load_checkpoint(newest)
    assert all(torch.isfinite(tensor).all() for tensor in checkpoint["state_dict"].values())
    # And the run can go on from there.
    parts, rows, _ = train()
    assert [row["epoch"] for row in rows] == [2, 3]
    assert_same(states(parts), states(train("whole")[0]))


def test_weights_that_are_not_finite_are_never_kept(train):
    """A last step can spoil the weights after a loss that was sound."""

    steps = []

    def spoil(optimizer, *_):
        steps.append(optimizer)
        if len(steps) == 4:
            optimizer.param_groups[0]["params"][0].data.fill_(math.nan)

    hook = register_optimizer_step_post_hook(spoil)
    with pytest.raises(MedclrError, match="weights are not finite after step 2 of epoch 2"):
        train()
    hook.remove()
    assert checkpoints(train.folder / "run")[0].name == "epoch0001-step000000.ckpt"


def test_a_checkpoint_that_was_tampered_with_is_refused(train):
    train(epochs=1)
    (path,) = checkpoints(train.folder / "run")
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(MedclrError, match="damaged"):
        train(epochs=2)


def test_loader_processes_are_as_asked(train, monkeypatch):
    asked = []
    original = module.train_loader
    monkeypatch.setattr(
        module, "train_loader", lambda b, size, n, *rest, **more: asked.append(n) or original(b, size, 0, *rest, **more)
    )
    monkeypatch.setattr(module, "default_workers", lambda spec, cores: 7)
    train("a", epochs=1, workers=0)
    train("b", epochs=1, workers=None)
    assert asked == [0, 7]


def test_in_3d(train, material, tmp_path):
    rows = material.rows[:4].reset_index(drop=True)
    store, keys = material.store, [f"{number:032x}" for number in range(900, 904)]
    for key in keys:
        store.write(key, torch.rand(1, 8, 8, 8).numpy(), {})
    rows = rows.assign(store_key=keys, store_shape=[[8, 8, 8]] * 4, low=0.0, high=1.0)
    views = build_views("ct", 3)
    spec = replace(material.spec, spatial_dims=3, patch=(8, 8, 8))
    config = PretrainConfig(data=tmp_path, width=8, epochs=1, batch_size=4, device="cpu", norm="group")
    module, architecture = pretrain_encoder(
        config, spec, views, Blocks(rows, store, spec, views), tmp_path / "run", 1, no_health, lambda row: None
    )
    assert architecture.spatial_dims == 3
    assert module.encoder(torch.rand(1, 1, 8, 8, 8)).shape == (1, 64)
