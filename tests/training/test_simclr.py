import multiprocessing
import os
import socket
import warnings

import pytest
import torch
from pytorch_lightning import Trainer
from torch import nn
from torch.utils.data import DataLoader

from medclr.data.loader import Blocks
from medclr.errors import MedclrError
from medclr.losses.nt_xent import chance_level
from medclr.training import simclr
from medclr.training.simclr import SimCLR
from medclr.transforms.presets import build_views


def build(views, encoder=None, temperature=0.2, kind=SimCLR, **settings):
    torch.manual_seed(0)
    module = kind(
        encoder or nn.Sequential(nn.Flatten(), nn.Linear(144, 6)),
        nn.Linear(6, 4),
        views,
        temperature=temperature,
        lr=0.1,
        weight_decay=0.1,
        warmup_steps=2,
        total_steps=10,
        **settings,
    )
    module.manual_backward = torch.Tensor.backward  # there is no Trainer
    return module


def small_encoder(norm="group"):
    torch.manual_seed(1)
    norm = nn.GroupNorm(2, 4) if norm == "group" else nn.BatchNorm2d(4)
    return nn.Sequential(nn.Conv2d(1, 4, 3, stride=2), norm, nn.ReLU(), nn.Flatten(), nn.Linear(100, 6))


def gradient(module):
    return torch.cat([p.grad.flatten() for p in module.parameters()])


def batch_of(families, rows, seed=0):
    views = build_views("xray", 2)
    return views, Blocks(families.rows, families.store, families.spec, views, 2, seed).__getitems__(
        [(0, row) for row in rows]
    )


def by_hand(z, volume, patient, temperature, kept=lambda i, k: True):
    """Equation 1 of Chen et al. 2020 as loops, over views that know their volume and patient."""
    z = z / z.norm(dim=1, keepdim=True)
    losses = []
    for i in range(len(z)):
        terms = {}
        for k in range(len(z)):
            positive = k != i and volume[k] == volume[i]
            if k != i and (positive or (patient[k] != patient[i] and kept(i, k))):
                terms[k] = torch.exp(z[i] @ z[k] / temperature)
                if positive:
                    numerator = terms[k]
        losses.append(-torch.log(numerator / sum(terms.values())))
    return torch.stack(losses).mean()


@pytest.mark.parametrize("negatives", ["all", "within", "across"])
@pytest.mark.parametrize("rows", [[0, 3, 6, 9], [0, 1, 2, 3, 4, 9]])
def test_the_loss_is_that_of_the_paper_on_the_same_views(families, rows, negatives):
    views, batch = batch_of(families, rows)
    domains = [row % 2 for row in rows]
    batch["domain"] = torch.tensor(domains)
    module = build(views, negatives=negatives)
    loss = module.gradient(batch)
    # Views one at a time, each with its own block, parameters and window.
    z = []
    for view in range(2):
        for i in range(len(rows)):
            params = {name: value[i, view][None] for name, value in batch["params"].items()}
            image = views.apply(
                batch["blocks"][i, view][None], params, batch["low"][i, view, None], batch["high"][i, view, None]
            )
            z.append(module.projector(module.encoder(image))[0])
    patients = [row // 3 for row in rows]

    def kept(i, k):
        same = domains[i % len(rows)] == domains[k % len(rows)]
        return {"all": True, "within": same, "across": not same}[negatives]

    expected = by_hand(torch.stack(z), rows * 2, patients * 2, 0.2, kept)
    torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-5)


def test_other_volumes_of_the_patient_are_not_negatives(families):
    views, batch = batch_of(families, [0, 1, 2, 5])
    module = build(views)
    masked = module.gradient(batch)
    unmasked = module.gradient(batch | {"patient": torch.arange(4)})
    assert masked < unmasked


def test_a_collapsed_encoder_is_at_chance(families):
    class Constant(nn.Module):
        def __init__(self):
            super().__init__()
            self.one = nn.Parameter(torch.ones(1))

        def forward(self, images):
            return self.one.expand(len(images), 6)

    views, batch = batch_of(families, [0, 3, 6, 9])
    loss = build(views, Constant()).gradient(batch)
    assert loss.item() == pytest.approx(chance_level(batch["patient"]).item())


def test_gradients_reach_encoder_and_projector(families):
    views, batch = batch_of(families, [0, 3, 6])
    module = build(views)
    module.gradient(batch)
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in module.encoder.parameters())
    assert module.projector.weight.grad.abs().sum() > 0


def test_optimiser_and_schedule_tick_a_step(families):
    module = build(build_views("xray", 2))
    configured = module.configure_optimizers()
    assert configured["lr_scheduler"]["interval"] == "step"
    assert configured["optimizer"].param_groups[0]["lr"] == pytest.approx(0.05)  # half way up a warm-up of two steps
    assert configured["optimizer"].param_groups[0]["weight_decay"] == 0.1


@pytest.mark.parametrize("micro_batch", [1, 2, 4, 6])
def test_micro_batches_have_the_loss_and_the_gradient_of_the_whole(families, micro_batch):
    views, batch = batch_of(families, [0, 1, 3, 4, 6, 9])
    whole, split = (build(views, small_encoder(), micro_batch=size) for size in (0, micro_batch))
    split.gradient(batch)  # is of no consequence to the next
    torch.testing.assert_close(split.gradient(batch), whole.gradient(batch))
    torch.testing.assert_close(gradient(split), gradient(whole), rtol=1e-4, atol=1e-5)


class Failing(nn.Sequential):
    """An encoder for which so many images are too many, as on a full device."""

    most = 5

    def forward(self, images):
        if len(images) > self.most:
            raise torch.OutOfMemoryError
        return super().forward(images)


def test_out_of_memory_halves_the_micro_batch_and_loses_nothing(families):
    views, batch = batch_of(families, [0, 1, 3, 4, 6, 9])
    said = []
    whole = build(views, small_encoder())
    module = build(views, Failing(*small_encoder()), micro_batch=0, tell=said.append)
    module.gradient(batch)
    assert module.micro_batch == 2
    assert said == [f"out of memory: from now on {n} volumes are encoded at a time" for n in (3, 2)]
    whole.gradient(batch)
    torch.testing.assert_close(gradient(module), gradient(whole), rtol=1e-4, atol=1e-5)
    module.encoder.most = 1
    with pytest.raises(MedclrError, match="out of memory with a single volume; use a smaller patch"):
        module.gradient(batch)


def test_what_fits_is_found_once_and_kept_in_checkpoints(families, monkeypatch):
    views, batch = batch_of(families, [0, 1, 3, 4, 6, 9])
    asked, said = [], []

    def four(encoder, images_of, n, device):
        asked.append((images_of(2), n))
        return 4

    monkeypatch.setattr(simclr, "volumes_that_fit", four)
    module = build(views, small_encoder(), micro_batch=None, tell=said.append)
    module.micro_batch = module._fit(batch)
    module._tell_parts(batch)
    assert module.micro_batch == 4
    [(images, n)] = asked
    assert (images.shape, n) == ((4, 1, 12, 12), 6)
    assert said == ["encoding 4 of 6 volumes at a time; the loss and its gradient are of all together"]
    checkpoint = {}
    module.on_save_checkpoint(checkpoint)
    assert checkpoint == {"micro_batch": 4}
    other = build(views, micro_batch=None)
    other.on_load_checkpoint(checkpoint)
    assert other.micro_batch == 4


def test_batch_norm_says_what_micro_batches_change_and_changes_nothing_by_that(families):
    views, batch = batch_of(families, [0, 1, 3, 4, 6, 9])
    said = []
    module = build(views, small_encoder("batch"), micro_batch=3, tell=said.append)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    module._tell_parts(batch)
    whole, halves = (build(views, small_encoder("batch"), micro_batch=size) for size in (0, 2))
    first = {name: value[:3] for name, value in batch.items() if name != "params"}
    first["params"] = {name: value[:3] for name, value in batch["params"].items()}
    found = []
    for other in (whole, halves):
        other.gradient(first)
        found.append(torch.cat([p.grad.flatten() for p in other.encoder.parameters()]))
    apart = (found[1] - found[0]).norm() / found[0].norm()
    assert said[1] == (
        "batch norm takes its statistics from 3 volumes at a time, not from 6: from 2 instead of 3, this step's "
        f"gradient would differ by {apart:.0%}; with --norm group it is exact"
    )
    assert apart > 0.01
    torch.testing.assert_close(module.state_dict(), before, rtol=0, atol=0)


def rank_of_two(rank, port, folder, batch, micro_batch):
    """One process of two, each with half of the batch, under Lightning's DDP."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # Lightning's own, which the trainer silences too
    os.environ |= {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": "2",
        "NODE_RANK": "0",
        "LOCAL_RANK": str(rank),
    }

    class Once(SimCLR):
        def training_step(self, batch, index):
            loss = self.gradient(batch)
            torch.save((loss, gradient(self)), folder / f"{rank}.pt")

    n = len(batch["row"]) // 2
    half = {name: value[rank * n :][:n] for name, value in batch.items() if name != "params"}
    half["params"] = {name: value[rank * n :][:n] for name, value in batch["params"].items()}
    module = build(build_views("xray", 2), small_encoder(), micro_batch=micro_batch, kind=Once)
    del module.manual_backward  # Lightning's own
    trainer = Trainer(
        accelerator="cpu",
        devices=2,
        strategy="ddp",
        max_epochs=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )
    trainer.fit(module, DataLoader([half], batch_size=None))


@pytest.mark.skipif(torch.cuda.is_available(), reason="autograd cannot be forked where it has started GPU threads")
@pytest.mark.parametrize("micro_batch", [0, 2])
def test_two_processes_have_the_gradient_of_one(families, tmp_path, micro_batch):
    views, batch = batch_of(families, [0, 1, 3, 4, 6, 7, 9, 10])
    whole = build(views, small_encoder())
    loss = whole.gradient(batch)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    # Forked, since to import it all again would take longer than all other tests here.
    fork = multiprocessing.get_context("fork")
    arguments = (port, tmp_path, batch, micro_batch)
    ranks = [fork.Process(target=rank_of_two, args=(rank, *arguments), daemon=True) for rank in range(2)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(60)
        assert process.exitcode == 0
    for rank in range(2):
        found_loss, found = torch.load(tmp_path / f"{rank}.pt")
        torch.testing.assert_close(found_loss, loss)
        torch.testing.assert_close(found, gradient(whole), rtol=1e-4, atol=1e-5)


def test_a_loss_that_is_not_finite_moves_nothing(families):
    views, batch = batch_of(families, [0, 3, 6])
    module = build(views, small_encoder())
    module.log = lambda name, value, **rest: None
    module.optimizers = module.lr_schedulers = lambda: pytest.fail("the weights were moved")
    batch["blocks"] = torch.full_like(batch["blocks"], torch.nan)
    assert torch.isnan(module.training_step(batch, 0))
