"""Gradient caching: is it exact, what does it hold in memory, and what does it cost?

    python benchmarks/gradient_caching.py [--batch N] [--micro-batch M] [--exact N]

1. The gradient of a batch of 512 in micro-batches of 32 against that of one batch, in one process and in two
   (gloo, 256 each, the same micro-batches), with group norm; with batch norm the difference that its statistics make.
2. Peak memory of a step at logical batch 1,024, against one micro-batch in one piece plus the features of the whole
   batch, their gradient and the source blocks (target: at most 1.15 times). Each is measured in a process of its own.
3. The encoder's time at 1,024, against plain training on the same images in one piece (target: at most 1.4 times),
   with the views drawn but once; and apart from that what it takes to draw them again.
"""

import argparse
import json
import multiprocessing
import os
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from itertools import accumulate as accumulate_sum
from multiprocessing.queues import Queue
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from medclr.losses.gather import gathered
from medclr.losses.nt_xent import nt_xent
from medclr.models.encoder import Architecture, build_encoder
from medclr.models.projector import build_projector
from medclr.training.gradcache import accumulate
from medclr.transforms.presets import build_views

SIDE, TEMPERATURE, REPEATS = 28, 0.1, 5


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--batch", type=int, default=1024, help="logical batch of the figures of memory and time")
    parser.add_argument("--micro-batch", type=int, default=32)
    parser.add_argument("--exact", type=int, default=512, help="batch of the comparison of gradients")
    args = parser.parse_args()
    size = args.micro_batch
    print(f"ResNet-10 of width 16, {SIDE} x {SIDE}, {torch.get_num_threads()} threads, {torch.__version__}")
    for norm in ("group", "batch"):
        whole = _gradient(norm, args.exact, args.exact)
        apart = _relative(_gradient(norm, args.exact, size), whole)
        print(f"{norm} norm: gradient of {args.exact} by {size} against {args.exact} in one piece: {apart:.2e}")
        if norm == "group":
            for of_two in (args.exact // 2, size):
                found = _in_two_processes(norm, args.exact, of_two)
                print(
                    f"{norm} norm: two processes of {args.exact // 2}, {of_two} at a time, against one batch in one "
                    f"process: {max(_relative(g, whole) for g in found):.2e}"
                )
    _memory(args.batch, size)
    _time(args.batch, size)


def _networks(norm: str) -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(0)
    architecture = Architecture(10, 16, 2, 1, norm, (SIDE, SIDE))
    return build_encoder(architecture), build_projector(architecture.feature_dim, architecture.feature_dim)


def _blocks(n: int) -> Tensor:
    """Two views (2n, C, *patch) of random volumes: smooth enough that pairs have something in common."""
    generator = torch.Generator().manual_seed(1)
    coarse = torch.rand(n, 1, 7, 7, generator=generator)
    base = nn.functional.interpolate(coarse, size=(SIDE, SIDE), mode="bilinear").repeat_interleave(2, dim=0)
    return base + 0.1 * torch.rand(base.shape, generator=generator)


def _parts(n: int, size: int) -> list[slice]:
    return [slice(2 * i, 2 * min(i + size, n)) for i in range(0, n, size)]


def _loss_of(projector: nn.Module) -> Callable[[Tensor], Tensor]:
    def loss_of(features: Tensor) -> Tensor:
        z = projector(gathered(features))
        return nt_xent(z[0::2], z[1::2], TEMPERATURE)

    return loss_of


def _gradient(norm: str, n: int, size: int, part: slice = slice(None), synchronise: bool = False) -> Tensor:
    """Of encoder and projector together, flat."""
    encoder, projector = _networks(norm)
    blocks = _blocks(n)[part]
    parts = _parts(len(blocks) // 2, size)
    accumulate(encoder, projector, parts, lambda items: blocks[items], _loss_of(projector))
    weights = [*encoder.parameters(), *projector.parameters()]
    flat = torch.cat([p.grad.flatten() for p in weights if p.grad is not None])
    if synchronise:  # what DDP does
        dist.all_reduce(flat)
        flat /= dist.get_world_size()
    return flat


def _relative(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


def _in_two_processes(norm: str, n: int, size: int) -> list[Tensor]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"tcp://127.0.0.1:{probe.getsockname()[1]}"
    return _spawned(_rank, [(rank, address, norm, n, size) for rank in range(2)])


def _rank(rank: int, address: str, norm: str, n: int, size: int) -> Any:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=address, rank=rank, world_size=2)
    found = _gradient(norm, n, size, slice(rank * n, (rank + 1) * n), synchronise=True)
    dist.destroy_process_group()
    return found.numpy()


def _spawned(work: Callable[..., Any], arguments: Sequence[tuple[Any, ...]]) -> list[Any]:
    """What each process gives, all at the same time."""
    context = multiprocessing.get_context("spawn")
    results: Queue[Any] = context.Queue()
    processes = [context.Process(target=_put, args=(results, work, each)) for each in arguments]
    for process in processes:
        process.start()
    found = [results.get(timeout=600) for _ in processes]
    for process in processes:
        process.join()
    return [torch.from_numpy(value) if hasattr(value, "dtype") else value for value in found]


def _put(results: "Queue[Any]", work: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    results.put(work(*arguments))


def _memory(n: int, size: int) -> None:
    """Of tensors, by torch's own count, and of the process, where allocator and oneDNN keep what is free for later."""
    [micro], [cached], [whole] = (_spawned(_peak, [each]) for each in ((size, size, n), (n, size, n), (n, n, n)))
    features = 2 * 2 * n * 128 * 4  # and their gradient
    blocks = 2 * n * SIDE * SIDE * 4
    for kind, one, all_, plain in zip(("tensors", "process"), micro, cached, whole, strict=True):
        print(
            f"peak memory of a step of {n} by {size}, {kind}: {all_ / 1e6:.0f} MB, {all_ / (one + features):.2f} of "
            f"one micro-batch {(one - blocks) / 1e6:.0f} + features and their gradient {features / 1e6:.1f} + blocks "
            f"{blocks / 1e6:.1f} MB (target: at most 1.15); in one piece {plain / 1e6:.0f} MB"
        )


def _peak(n: int, size: int, held: int) -> tuple[int, int]:
    """Most bytes of tensors, and of the process, during a step of n volumes beside the blocks of `held`."""
    torch.set_num_threads(1)
    encoder, projector = _networks("group")
    with torch.no_grad():
        encoder(_blocks(2))  # what a first convolution sets up once
    before = _resident()
    blocks = _blocks(held)
    most, stop = 0, threading.Event()

    def step() -> None:
        accumulate(encoder, projector, _parts(n, size), lambda items: blocks[items], _loss_of(projector))

    def watch() -> None:
        nonlocal most
        while not stop.wait(0.001):
            most = max(most, _resident())

    watcher = threading.Thread(target=watch)
    watcher.start()
    step()
    stop.set()
    watcher.join()
    return blocks.nbytes + _allocated(step), most - before


def _allocated(work: Callable[[], None]) -> int:
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        work()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(path))
        events = [e for e in json.loads(path.read_text())["traceEvents"] if e.get("name") == "[memory]"]
    return int(max(accumulate_sum(e["args"]["Bytes"] for e in sorted(events, key=lambda e: e["ts"]))))


def _resident() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _time(n: int, size: int) -> None:
    encoder, projector = _networks("group")
    views = build_views("xray", 2)
    drawn = [views.draw(np.random.default_rng(i)) for i in range(2 * n)]
    params = {name: torch.from_numpy(np.stack([d[name] for d in drawn])) for name in drawn[0]}
    blocks, low, high = _blocks(n), torch.zeros(2 * n), torch.full((2 * n,), 1.1)

    def drawn_again(items: slice) -> Tensor:
        own = {name: value[items] for name, value in params.items()}
        return views.apply(blocks[items], own, low[items], high[items])

    plain, cached, redrawn = [], [], []
    for repeat in range(REPEATS + 1):  # the first warms up
        marks = [time.perf_counter()]
        accumulate(encoder, projector, _parts(n, n), lambda items: blocks[items], _loss_of(projector))
        marks.append(time.perf_counter())
        accumulate(encoder, projector, _parts(n, size), lambda items: blocks[items], _loss_of(projector))
        marks.append(time.perf_counter())
        for items in _parts(n, size):
            drawn_again(items)
        marks.append(time.perf_counter())
        if repeat:
            for times, start, end in zip((plain, cached, redrawn), marks[:-1], marks[1:], strict=True):
                times.append(end - start)
    print(
        f"time of a step of {n}, views apart: in one piece {median(plain):.2f} s, by {size} {median(cached):.2f} s, "
        f"{median(c / p for c, p in zip(cached, plain, strict=True)):.2f} times (target: at most 1.4); "
        f"drawing the views again {median(redrawn):.2f} s, "
        f"{median(r / p for r, p in zip(redrawn, plain, strict=True)):.2f}"
    )


if __name__ == "__main__":
    main()
