"""MoCo against its paper: the queue, the momentum encoder, the shuffled keys, on one process and on two."""

import copy
import math
import multiprocessing
import os
import re
import socket
import types
import warnings
from collections import deque

import pytest
import torch
from pytorch_lightning import Trainer
from torch import nn
from torch.utils.data import DataLoader

from medclr.config import PretrainConfig
from medclr.data.loader import Blocks
from medclr.errors import UsageError
from medclr.training import start
from medclr.training.moco import MoCo, default_momentum, queue_length
from medclr.training.resume import newest_checkpoint
from medclr.training.trainer import contrast, pretrain_encoder
from medclr.transforms.presets import build_views

VIEWS = build_views("xray", 2)


def network(norm=None):
    torch.manual_seed(1)
    between = {"group": nn.GroupNorm(2, 4), "batch": nn.BatchNorm2d(4)}.get(norm, nn.Identity())
    return nn.Sequential(nn.Conv2d(1, 4, 3, stride=2), between, nn.ReLU(), nn.Flatten(), nn.Linear(100, 6))


def small(shape):
    """A network in place of the ResNet; it keeps statistics, and takes random numbers."""
    convolved = nn.Sequential(nn.Conv2d(1, 4, 3, stride=2), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten())
    return nn.Sequential(*convolved, nn.Linear(100, 64), nn.Dropout(0.2))


def build(encoder=None, queue=8, momentum=0.8, kind=MoCo, **settings):
    encoder = encoder or network()
    torch.manual_seed(2)
    settings = {"temperature": 0.2, "lr": 0.1, "weight_decay": 0.1, "warmup_steps": 0, "total_steps": 10} | settings
    return kind(encoder, nn.Linear(6, 3), VIEWS, queue=queue, momentum=momentum, seed=0, **settings)


def alone(module, lr=0.5):
    """A module without a Trainer: plain SGD, and what it logs in `module.logged`."""
    sgd = torch.optim.SGD([p for p in module.parameters() if p.requires_grad], lr)
    module.optimizers, module.lr_schedulers = lambda: sgd, lambda: types.SimpleNamespace(step=lambda: None)
    module.manual_backward, module.logged = torch.Tensor.backward, []
    module.log = lambda name, value, **rest: module.logged.append((name, float(value)))
    return module


def batches(families, n, size=4, seed=0):
    """Batches of one size, of four patients with three images each."""
    blocks = Blocks(families.rows, families.store, families.spec, VIEWS, 2, seed)
    random = torch.Generator().manual_seed(seed)
    return [
        blocks.__getitems__([(epoch, int(row)) for row in torch.randperm(12, generator=random)[:size]])
        for epoch in range(n)
    ]


def shown(batch, view):
    params = {name: value[:, view] for name, value in batch["params"].items()}
    return VIEWS.apply(batch["blocks"][:, view], params, batch["low"][:, view], batch["high"][:, view])


@pytest.mark.parametrize("negatives", ["all", "within", "across"])
def test_steps_are_those_of_the_papers_algorithm(families, negatives):
    """He et al. 2020, algorithm 1, with the keys of a query's own patient left out, over a queue that goes round."""
    steps = batches(families, 5)
    for batch in steps:
        batch["domain"] = batch["row"] % 2
    module = alone(build(momentum=0.8, negatives=negatives))
    query = copy.deepcopy(nn.Sequential(module.encoder, module.projector))
    key = copy.deepcopy(query)
    sgd = torch.optim.SGD(query.parameters(), 0.5)
    queue = deque(maxlen=8)
    for number, batch in enumerate(steps):
        patients = batch["patient"].tolist()
        q, k = query(shown(batch, 0)), key(shown(batch, 1)).detach()
        losses, chances = [], []
        domains = batch["domain"].tolist()
        for i, (patient, domain) in enumerate(zip(patients, domains, strict=True)):
            kept = {"all": {0, 1}, "within": {domain}, "across": {1 - domain}}[negatives]
            others = [other for other, whose, where in queue if whose != patient and where in kept]
            cosines = [nn.functional.cosine_similarity(q[i], other, dim=0) for other in [k[i], *others]]
            losses.append(-torch.log_softmax(torch.stack(cosines) / 0.2, 0)[0])
            chances.append(math.log(len(cosines)))
        loss = torch.stack(losses).mean()
        sgd.zero_grad()
        loss.backward()
        sgd.step()
        for slow, fast in zip(key.parameters(), query.parameters(), strict=True):
            slow.data = 0.8 * slow.data + 0.2 * fast.data
        queue.extend(zip(k, patients, domains, strict=True))

        module.logged.clear()
        torch.testing.assert_close(module.training_step(batch, number), loss.detach(), rtol=1e-4, atol=1e-5)
        logged = dict(module.logged)
        assert logged["loss"] == pytest.approx(loss.item(), rel=1e-4, abs=1e-5)
        assert logged["chance"] == pytest.approx(sum(chances) / 4)
    assert len(queue) == 8
    assert sum(chances) / 4 < math.log(9)  # some keys were of the query's own patient
    for found, expected in (
        (nn.Sequential(module.encoder, module.projector), query),
        (module.momentum_encoder, key),
    ):
        for one, other in zip(found.parameters(), expected.parameters(), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    # The fifth batch lies where the third was, before the fourth.
    held = [queue[place] for place in (4, 5, 6, 7, 0, 1, 2, 3)]
    torch.testing.assert_close(module.queue, torch.stack([k for k, _, _ in held]), rtol=1e-4, atol=1e-5)
    assert module.queue_patients.tolist() == [patient for _, patient, _ in held]
    assert negatives == "all" or module.queue_domains.tolist() == [domain for _, _, domain in held]


def test_an_empty_queue_is_no_negatives_and_moves_nothing(families):
    (batch,) = batches(families, 1)
    module = alone(build())
    before = copy.deepcopy(module.encoder.state_dict())
    assert module.training_step(batch, 0) == 0
    assert dict(module.logged) == {"loss": 0, "chance": 0}
    torch.testing.assert_close(module.encoder.state_dict(), before, rtol=0, atol=0)
    assert module.enqueued == 4


def test_the_momentum_encoder_has_no_gradient_and_is_not_the_optimisers(families):
    one, two = batches(families, 2)
    module = alone(build(network("batch")))
    optimised = {id(p) for g in module.configure_optimizers()["optimizer"].param_groups for p in g["params"]}
    assert optimised == {id(p) for part in (module.encoder, module.projector) for p in part.parameters()}
    module.training_step(one, 0)
    module.training_step(two, 1)
    assert all(p.grad is None for p in module.momentum_encoder.parameters())
    # Statistics of its own, of the keys that it saw.
    own, learned = module.momentum_encoder[0][1], module.encoder[1]
    assert own.num_batches_tracked > 0
    assert not torch.allclose(own.running_mean, learned.running_mean)


def test_a_loss_that_is_not_finite_changes_nothing(families):
    one, two = batches(families, 2)
    module = alone(build())
    module.training_step(one, 0)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    two["blocks"] = torch.full_like(two["blocks"], math.nan)
    assert torch.isnan(module.training_step(two, 1))
    torch.testing.assert_close(module.state_dict(), before, rtol=0, atol=0)
    assert module.enqueued == 4


@pytest.mark.parametrize("micro_batch", [2, 3])
def test_micro_batches_have_the_gradient_and_the_keys_of_the_whole(families, micro_batch):
    first, second = batches(families, 2, size=8)
    gradients = []
    modules = [alone(build(network("group"), micro_batch=size)) for size in (0, micro_batch)]
    for module in modules:
        module.training_step(first, 0)
        module.gradient(second)
        gradients.append(torch.cat([p.grad.flatten() for p in module.parameters() if p.requires_grad]))
    assert gradients[0].norm() > 0.01
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(modules[1].keys, modules[0].keys)


class Together(nn.Module):
    """Tells of each image its own mean, and the mean of those that are encoded with it."""

    def __init__(self, norm):
        super().__init__()
        self.weight, self.norm = nn.Parameter(torch.ones(1)), norm

    def forward(self, images):
        own = images.mean(dim=(1, 2, 3))
        return torch.stack([own, own.mean().expand(len(own))], dim=1)


def groups(keys):
    """Which keys were encoded together, as sets of places."""
    return {tuple((keys[:, 1] == value).nonzero().flatten().tolist()) for value in keys[:, 1].unique()}


@pytest.mark.parametrize("micro_batch", [0, 3])
def test_keys_are_encoded_in_other_groups_than_queries_and_come_back_in_order(families, micro_batch):
    (batch,) = batches(families, 1, size=6)
    module = build(micro_batch=micro_batch)
    module.momentum_encoder = Together(nn.BatchNorm2d(1))
    parts = 2 if micro_batch else 1
    keys = module._encode_keys(batch, parts)
    torch.testing.assert_close(keys[:, 0], shown(batch, 1).mean(dim=(1, 2, 3)))
    assert [len(group) for group in groups(keys)] == [3, 3]
    assert groups(keys) != {(0, 1, 2), (3, 4, 5)}
    # A function of the step.
    assert groups(module._encode_keys(batch, parts)) == groups(keys)
    module.enqueued = 6
    assert groups(module._encode_keys(batch, parts)) != groups(keys)
    # Where no image changes another's features there is nothing to hide.
    module.momentum_encoder = Together(nn.GroupNorm(1, 1))
    as_queries = {(0, 1, 2), (3, 4, 5)} if micro_batch else {(0, 1, 2, 3, 4, 5)}
    assert groups(module._encode_keys(batch, parts)) == as_queries


@pytest.mark.parametrize(("norm", "same"), [("batch", False), ("group", True)])
def test_shuffling_changes_keys_under_batch_norm_alone(families, norm, same):
    (batch,) = batches(families, 1, size=8)
    module = build(network(norm))
    keys = module._encode_keys(batch, 1)
    assert torch.allclose(keys, module.momentum_encoder(shown(batch, 1)), atol=1e-5) == same


def test_what_batch_norm_changes_is_measured_once_there_is_a_gradient(families):
    said = []
    module = alone(build(network("batch"), queue=12, micro_batch=3, tell=said.append))
    first, second, third = batches(families, 3, size=6)
    module.training_step(first, 0)
    assert said == []
    module.training_step(second, 1)
    assert re.search(r"from 2 instead of 3, this step's gradient would differ by [1-9]\d*%", said[1])
    module.training_step(third, 2)
    assert len(said) == 2


def rank_of_two(rank, port, folder, steps):
    """One process of two, each with half of every batch, under Lightning's DDP."""
    torch.set_num_threads(1)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "NODE_RANK": "0"}
    os.environ["LOCAL_RANK"] = str(rank)

    class Observed(MoCo):
        def on_train_end(self):
            self.momentum_encoder = Together(nn.BatchNorm2d(1))
            keys = []
            for self.enqueued in (8, 16, 32):
                keys.append(self._encode_keys(half(steps[0], rank), 1))
            torch.save((state, torch.stack(keys)), folder / f"{rank}.pt")

    module = build(network("group"), kind=Observed)
    state = module.state_dict()
    fit(module, [half(batch, rank) for batch in steps], devices=2, strategy="ddp")


def half(batch, rank):
    n = len(batch["row"]) // 2
    part = {name: value[rank * n :][:n] for name, value in batch.items() if name != "params"}
    return part | {"params": {name: value[rank * n :][:n] for name, value in batch["params"].items()}}


def fit(module, steps, **settings):
    warnings.simplefilter("ignore")  # Lightning's own, which the trainer silences too
    Trainer(
        accelerator="cpu",
        max_epochs=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        **settings,
    ).fit(module, DataLoader(steps, batch_size=None))


@pytest.mark.skipif(torch.cuda.is_available(), reason="autograd cannot be forked where it has started GPU threads")
def test_two_processes_have_one_queue_and_end_as_one(families, tmp_path):
    steps = batches(families, 3, size=8)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    fork = multiprocessing.get_context("fork")
    ranks = [fork.Process(target=rank_of_two, args=(rank, port, tmp_path, steps), daemon=True) for rank in range(2)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(60)
        assert process.exitcode == 0
    (state, keys), (other_state, other_keys) = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    torch.testing.assert_close(other_state, state, rtol=0, atol=0)
    assert torch.equal(other_keys, keys)
    # Batch norm would have seen volumes of both ranks together.
    dealt = set()
    for found in keys:
        torch.testing.assert_close(found[:, 0], shown(steps[0], 1).mean(dim=(1, 2, 3)))
        assert [len(group) for group in groups(found)] == [4, 4]
        dealt |= groups(found)
    assert len(dealt) == 6
    assert dealt & {(0, 1, 2, 3), (4, 5, 6, 7)} == set()
    with warnings.catch_warnings():
        whole = build(network("group"))
        fit(whole, steps, devices=1)
    assert whole.queue.abs().sum() > 0
    torch.testing.assert_close(state, whole.state_dict(), rtol=1e-3, atol=1e-4)


@pytest.fixture
def train(material, tmp_path, monkeypatch):
    """Two epochs of four steps of five images, and a queue of one of them."""
    monkeypatch.setattr(start, "build_encoder", small)

    def run(name, rows=None, **settings):
        rows = [] if rows is None else rows
        config = PretrainConfig(
            **{"data": tmp_path, "method": "moco", "width": 8, "epochs": 2, "batch_size": 5, "device": "cpu"}
            | {"workers": 0, "micro_batch": 3}
            | settings
        )
        blocks = Blocks(material.rows[:20], material.store, material.spec, VIEWS, 2, config.seed)
        folder = tmp_path / name
        resume = newest_checkpoint(folder, print)
        module, _ = pretrain_encoder(
            config, material.spec, VIEWS, blocks, folder, 1, lambda module: {}, rows.append, resume
        )
        return module, rows

    return run


def test_interrupted_and_resumed_equals_uninterrupted(train, monkeypatch):
    """In the middle of the second epoch, with micro-batches, batch norm and dropout."""
    whole, rows = train("whole")
    assert (len(whole.queue), whole.enqueued) == (5, 40)
    step = MoCo.training_step

    def stopping(self, *args):
        if self.trainer.global_step == 6:
            raise InterruptedError
        return step(self, *args)

    monkeypatch.setattr(MoCo, "training_step", stopping)
    rest = []
    with pytest.raises(InterruptedError):
        train("parts", rest, checkpoint_minutes=0)
    monkeypatch.setattr(MoCo, "training_step", step)
    torch.manual_seed(99)
    parts, rest = train("parts", rest)
    assert rest == rows
    torch.testing.assert_close(parts.state_dict(), whole.state_dict(), rtol=0, atol=0)
    assert parts.enqueued == whole.enqueued


def test_it_is_built_as_configured(train):
    module, _ = train("a", epochs=1, queue=6, momentum=0.5, temperature=0.3)
    assert (len(module.queue), module.momentum, module.temperature, module.seed) == (5, 0.5, 0.3, 0)
    # The head of v2: no batch norm.
    assert [type(layer) for layer in module.projector] == [nn.Linear, nn.ReLU, nn.Linear]
    assert module.queue.shape[1] == module.projector[-1].out_features == 128


@pytest.mark.parametrize(
    ("asked", "n_volumes", "batch_size", "length"),
    [(None, 4708, 256, 1024), (None, 10**6, 256, 65536), (600, 10**6, 256, 512), (256, 1024, 256, 256)],
)
def test_the_queue_is_whole_batches_in_at_most_a_quarter_of_the_set(asked, n_volumes, batch_size, length):
    assert queue_length(asked, n_volumes, batch_size) == length


def test_a_set_too_small_for_a_batch_in_the_queue_is_refused():
    with pytest.raises(
        UsageError, match=r"a quarter of 1,023 volumes does not hold a batch of 256; give --batch-size 255"
    ):
        queue_length(None, 1023, 256)


def test_momentum_lasts_four_queues_within_limits():
    assert default_momentum(65536, 256) == 0.999
    assert default_momentum(64 * 256, 256) == pytest.approx(1 - 1 / 256)
    assert default_momentum(1024, 256) == 0.99


def test_what_a_method_compares_with(tmp_path):
    def of(**settings):
        return contrast(PretrainConfig(data=tmp_path, batch_size=64, **settings), 512)

    assert of() == {"temperature": 0.1}
    assert of(temperature=0.5) == {"temperature": 0.5}
    assert of(method="moco", seed=3) == {"temperature": 0.2, "queue": 128, "momentum": 0.99, "seed": 3}
    given = {"queue": 64, "momentum": 0.0, "temperature": 0.07}
    assert of(method="moco", **given) == {**given, "seed": 0}
