"""Exact large batches in small memory: the loss of a whole batch, the graph of one micro-batch at a time."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

MEMORY_SHARE = 0.5  # of what is free that saved activations may take on a CPU, where too much ends more than this run

Part = TypeVar("Part")


def accumulate(
    encoder: nn.Module,
    head: nn.Module,
    parts: Sequence[Part],
    images_of: Callable[[Part], Tensor],
    loss_of: Callable[[Tensor], Tensor],
    backward: Callable[[Tensor], None] = Tensor.backward,
) -> Tensor:
    """Add the gradient of the whole batch's loss to the parameters' `.grad`, micro-batch by micro-batch.

    Gradient caching (Gao et al. 2021, "Scaling deep contrastive learning batch size under memory limited setup",
    section 3.2), at the encoder's features: all micro-batches are encoded without a graph, the loss of all features
    gives its gradient with respect to each, and then each micro-batch is encoded again, from the same random state, and
    takes its share of that gradient back. A single micro-batch keeps its graph, which is plain training.

    Where no item's features depend on its neighbours (group norm, frozen statistics), the gradient is that of the
    whole batch. Batch norm sees one micro-batch at a time; its running statistics move once, by the mean and variance
    of all of them together.

    Args:
        encoder: images (M, C, *spatial) to features (M, F).
        head: the module between the features and the loss, all of whose parameters take part in `loss_of`.
        parts: the micro-batches, of any type.
        images_of: draws the views of one micro-batch; called again for its second pass.
        loss_of: features (N, F) of the whole batch, in order, to the scalar loss.
        backward: runs once, last, on a scalar that reaches every parameter: where ranks synchronise. What comes before
            is added to `.grad` without a word to other ranks, as under `no_sync`.

    Returns:
        The loss, without a graph.
    """
    device = next(encoder.parameters()).device
    norms = batch_norms(encoder) + batch_norms(head)
    several = len(parts) > 1
    states, features = [], []
    with _updated_once(norms):
        with torch.set_grad_enabled(not several):
            for part in parts:
                states.append(_random_state(device))
                features.append(_encode(encoder, images_of, part))
        # torch 2.10's autocast hands weights that it cast without a graph to the passes that need one.
        torch.clear_autocast_cache()
        # `cat` copies, so that this is a leaf; and it is the only place where the batch is whole.
        whole = torch.cat([f.detach() for f in features]).requires_grad_()
        loss = loss_of(whole)
        weights = [p for p in head.parameters() if p.requires_grad]
        cached, *steps = torch.autograd.grad(loss, [whole, *weights])
        # A scalar whose gradient is `steps` at the head's weights.
        at_head = sum(((p * step).sum().float() for p, step in zip(weights, steps, strict=True)), whole.new_zeros(()))
        shares = cached.split([len(f) for f in features])
        again = features[-1]
        with _untracked(norms):
            for i, (part, state, share) in enumerate(zip(parts, states, shares, strict=True), 1):
                if several:
                    with _replayed(state, device):
                        again = _encode(encoder, images_of, part)
                if i < len(parts):
                    torch.autograd.backward(again, share)
        backward((again * shares[-1]).sum().float() + at_head)
    return loss.detach()


def volumes_that_fit(encoder: nn.Module, images_of: Callable[[int], Tensor], n: int, device: torch.device) -> int:
    """How many volumes the encoder can be trained on at a time: n, or the first of n/2, n/4, … that fits.

    On a GPU found by trying. On a CPU, where trying would take the memory of all else that runs, by measuring what
    one volume's graph holds. Leaves gradients, running statistics and random state as they were.

    Args:
        encoder: images to features.
        images_of: the images of that many volumes.
        n: volumes of a whole batch.
        device: of the encoder.
    """
    with torch.random.fork_rng(_gpus(device)), _untracked(batch_norms(encoder)):
        if device.type == "cpu":
            each = _graph_bytes(encoder, _images(images_of, 1))
            free = free_memory()
            while n > 1 and free is not None and n * each > MEMORY_SHARE * free:
                n = -(-n // 2)
            return n
        while n > 1:
            try:
                _try(encoder, _images(images_of, n))
                return n
            except torch.OutOfMemoryError:
                n = -(-n // 2)
            # Not in the handler, whose traceback still holds the tensors.
            torch.cuda.empty_cache()
        return n


def batch_norms(module: nn.Module) -> list[_BatchNorm]:
    """The layers of a module that now take their statistics from the batch."""
    return [m for m in module.modules() if isinstance(m, _BatchNorm) and m.training]


def free_memory() -> int | None:
    """Bytes that this process may still take, by Linux's count and the limit of its control group; else None."""
    meminfo = Path("/proc/meminfo")
    if not meminfo.is_file():
        return None
    lines = dict(line.split(":") for line in meminfo.read_text().splitlines())
    free = 1024 * int(lines["MemAvailable"].split()[0])
    limit, used = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")
    if limit.is_file() and (most := limit.read_text().strip()) != "max":
        free = min(free, int(most) - int(used.read_text()))
    return free


def _encode(encoder: nn.Module, images_of: Callable[[Part], Tensor], part: Part) -> Tensor:
    features: Tensor = encoder(_images(images_of, part))
    return features


@torch.no_grad()
def _images(images_of: Callable[[Part], Tensor], part: Part) -> Tensor:
    return images_of(part)


def _try(encoder: nn.Module, images: Tensor) -> None:
    weights = [p for p in encoder.parameters() if p.requires_grad]
    torch.autograd.grad(encoder(images).sum(), weights)


def _graph_bytes(encoder: nn.Module, images: Tensor) -> int:
    """What a forward pass keeps for the backward pass, weights apart."""
    weights = {p.untyped_storage().data_ptr() for p in [*encoder.parameters(), *encoder.buffers()]}
    held: dict[int, int] = {images.untyped_storage().data_ptr(): images.untyped_storage().nbytes()}

    def hold(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            held[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(hold, lambda tensor: tensor):
        features = encoder(images)
    del features
    return sum(held.values())


_State = tuple[Tensor, Tensor | None]


def _gpus(device: torch.device) -> list[torch.device]:
    return [device] if device.type == "cuda" else []


def _random_state(device: torch.device) -> _State:
    return torch.get_rng_state(), torch.cuda.get_rng_state(device) if device.type == "cuda" else None


@contextmanager
def _replayed(state: _State, device: torch.device) -> Iterator[None]:
    """The random numbers of the first pass again; afterwards as if nothing had been drawn."""
    with torch.random.fork_rng(_gpus(device)):
        cpu, gpu = state
        torch.set_rng_state(cpu)
        if gpu is not None:
            torch.cuda.set_rng_state(gpu, device)
        yield


@contextmanager
def _untracked(norms: Sequence[_BatchNorm]) -> Iterator[None]:
    """Running statistics stay as they are."""
    before = [norm.track_running_stats for norm in norms]
    for norm in norms:
        norm.track_running_stats = False
    try:
        yield
    finally:
        for norm, tracked in zip(norms, before, strict=True):
            norm.track_running_stats = tracked


@contextmanager
def _updated_once(norms: Sequence[_BatchNorm]) -> Iterator[None]:
    """However many batches pass, running statistics move once, by those of all together; on an error, not at all."""
    totals: dict[_BatchNorm, tuple[int, Tensor, Tensor]] = {}

    def add(norm: _BatchNorm, inputs: tuple[Tensor], output: Tensor) -> None:
        if not norm.track_running_stats:
            return
        assert norm.running_mean is not None
        assert norm.running_var is not None
        n = inputs[0].numel() // norm.num_features
        mean, squares = norm.running_mean.clone(), norm.running_var * (n - 1)
        if norm in totals:
            # Chan, Golub and LeVeque 1979, "Updating formulae and a pairwise algorithm", equation 2.1.
            n_before, mean_before, squares_before = totals[norm]
            apart = mean - mean_before
            mean = mean_before + apart * (n / (n_before + n))
            squares += squares_before + apart**2 * (n_before * n / (n_before + n))
            n += n_before
        totals[norm] = (n, mean, squares)

    before = [(norm, norm.momentum, [b.clone() for b in norm.buffers(recurse=False)]) for norm in norms]
    hooks = [norm.register_forward_hook(add) for norm in norms]
    for norm in norms:
        norm.momentum = 1.0  # so that the running statistics are those of the batch that passed last
    try:
        yield
    except BaseException:
        totals.clear()
        raise
    finally:
        for hook in hooks:
            hook.remove()
        for norm, momentum, buffers in before:
            norm.momentum = momentum
            for buffer, old in zip(norm.buffers(recurse=False), buffers, strict=True):
                buffer.copy_(old)
        for norm, (n, mean, squares) in totals.items():
            assert norm.running_mean is not None
            assert norm.running_var is not None
            assert norm.num_batches_tracked is not None
            assert norm.momentum is not None
            norm.running_mean.lerp_(mean, norm.momentum)
            norm.running_var.lerp_(squares / (n - 1), norm.momentum)
            norm.num_batches_tracked += 1
