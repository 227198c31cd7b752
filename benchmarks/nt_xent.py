"""NT-Xent forward and backward, D = 128: medclr, lightly's loss, the plain matrix, and the matrix products alone.

    python benchmarks/nt_xent.py

N = 4,096 pairs, so 8,192 rows, in float32 on two threads, interleaved; the losses must agree. The limit is three matrix
products of the whole 8,192 x 8,192 x 128, 512 rows at a time: the similarities, and both sides of their gradient.
medclr makes only the upper triangle of the similarities, twice, and so may stay below the limit. Memory is the peak
above what the process had with the projections made, each way in a process apart. Targets: 0.35 of lightly's time and
0.1 of its memory, 2.5 times the limit; and at N = 16,384 below 450 MB. Negatives within and across domains are of four
domains of one size, and make another loss.

lightly asks for torchvision, whose wheel on PyPI fits no CPU build of torch; its loss does not use it. `make bench`
installs lightly alone, and the loss is imported here past all that it does not use.
"""

import importlib
import importlib.util
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from types import ModuleType

import torch
import torch.nn.functional as F
from torch import Tensor

from medclr.losses import nt_xent

N, LARGE, D, TEMPERATURE, ROUNDS = 4096, 16384, 128, 0.1, 12
TIME, MEMORY, LIMIT, LARGE_MB = 0.35, 0.1, 2.5, 450
APART = {"within 4 domains": "within", "across 4 domains": "across"}
Way = Callable[[Tensor, Tensor], Tensor]


def main() -> None:
    """Print each way's quickest and median round, its peak memory, and medclr's share of either, round by round."""
    ways = ["medclr", *APART, "lightly", "plain matrix", "three products"]
    if importlib.util.find_spec("lightly") is None:
        print("  lightly is missing, and left out: pip install --no-deps lightly")
        ways.remove("lightly")
    runs = {name: way(name) for name in ways}
    z1, z2 = projections(N)
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    losses: dict[str, float] = {}
    for number in range(ROUNDS + 2):  # the first two warm up
        for name, run in runs.items():
            started = time.perf_counter()
            losses[name] = step(run, z1, z2)
            if number >= 2:
                seconds[name].append(time.perf_counter() - started)
    for name in (*APART, "three products"):
        del losses[name]
    assert max(losses.values()) - min(losses.values()) < 1e-5, losses
    ratio, share = {}, {}
    megabytes = {name: peak(name, N) for name in ways}
    print(f"  N = {N:,}, D = {D}, {torch.get_num_threads()} threads")
    for name in ways:
        quickest, middle = min(seconds[name]), median(seconds[name])
        ratio[name] = median(own / other for own, other in zip(seconds["medclr"], seconds[name], strict=True))
        share[name] = megabytes["medclr"] / megabytes[name]
        print(
            f"  {name:16} {quickest:6.3f} s (median {middle:6.3f})  {megabytes[name]:6.0f} MB;"
            f"  medclr takes {ratio[name]:.2f} of the time, {share[name]:.2f} of the memory"
        )
    told("times the three products", ratio["three products"], LIMIT)
    told(f"MB at N = {LARGE:,}", peak("medclr", LARGE), LARGE_MB)
    if "lightly" in ways:
        told("of lightly's time", ratio["lightly"], TIME)
        told("of lightly's memory", share["lightly"], MEMORY)


def told(what: str, value: float, target: float) -> None:
    print(f"  {'kept  ' if value <= target else 'MISSED'}: {value:.3g} {what} (target: {target})")


def projections(n: int) -> tuple[Tensor, Tensor]:
    """Two views that agree somewhat."""
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(n, D, generator=generator)
    return z.clone().requires_grad_(), (z + torch.randn(n, D, generator=generator)).requires_grad_()


def step(run: Way, z1: Tensor, z2: Tensor) -> float:
    """The loss, once forward and backward."""
    z1.grad = z2.grad = None
    loss = run(z1, z2)
    if loss.requires_grad:
        loss.backward()
    return loss.item()


def way(name: str) -> Way:
    """A loss of two views, by its name."""
    if name == "lightly":
        return lightly()
    if name in APART:
        return lambda z1, z2: nt_xent(z1, z2, TEMPERATURE, None, torch.arange(len(z1)) % 4, APART[name])
    ways: dict[str, Way] = {
        "medclr": lambda z1, z2: nt_xent(z1, z2, TEMPERATURE),
        "plain matrix": plain,
        "three products": products,
    }
    return ways[name]


def lightly() -> Way:
    """lightly's own loss, imported without torchvision."""
    (root,) = importlib.util.find_spec("lightly").submodule_search_locations
    for package in ("lightly", "lightly.loss", "lightly.models", "lightly.models.modules", "lightly.utils"):
        bare = ModuleType(package)
        bare.__path__ = [str(Path(root, *package.split(".")[1:]))]
        sys.modules[package] = bare
    # For gathering and for its vision transformers.
    sys.modules["lightly.models"].utils = sys.modules["lightly.models.utils"] = ModuleType("lightly.models.utils")
    return importlib.import_module("lightly.loss.ntx_ent_loss").NTXentLoss(TEMPERATURE)


def plain(z1: Tensor, z2: Tensor) -> Tensor:
    """The whole matrix of similarities, and autograd's gradient."""
    z = F.normalize(torch.cat([z1, z2]), dim=1)
    similarity = (z @ z.T / TEMPERATURE).fill_diagonal_(-torch.inf)
    return F.cross_entropy(similarity, torch.arange(len(z)).roll(len(z1)))


@torch.no_grad()
def products(z1: Tensor, z2: Tensor) -> Tensor:
    """What no row-by-row way can do without: the similarities, and their gradient's product with either side."""
    z = torch.cat([z1, z2])
    result = torch.zeros_like(z)
    for rows, out in zip(z.split(512), result.split(512), strict=True):
        similarity = rows @ z.T
        out.addmm_(similarity, z)
        result.addmm_(similarity.T, rows)
    return result.sum()


def peak(name: str, n: int) -> float:
    """Peak memory of one step above the start, in MB, in a process apart."""
    done = subprocess.run([sys.executable, __file__, name, str(n)], capture_output=True, text=True, check=True)
    return float(done.stdout)


def measure(name: str, n: int) -> None:
    run, (z1, z2) = way(name), projections(n)
    step(run, *projections(8))  # what libraries keep for themselves
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins here
    before = highest()
    step(run, z1, z2)
    print(highest() - before)


def highest() -> float:
    """Peak resident memory of this process, in MB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    (kilobytes,) = [line.split()[1] for line in lines if line.startswith("VmHWM")]
    return int(kilobytes) * 1024 / 1e6


if __name__ == "__main__":
    torch.set_num_threads(2)
    if len(sys.argv) > 1:
        measure(sys.argv[1], int(sys.argv[2]))
    else:
        main()
