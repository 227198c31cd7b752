"""Would torch.compile pay, and a fused AdamW on a CPU? The encoder's step as it is against the same one compiled.

    python benchmarks/compiled_encoder.py [--depth N] [--width N] [--batch N] [--patch N N [N]] [--repeats N]

On the GPU where there is one, in bf16. Prints how long the first compiled step takes, the median ratio of the times of
forward and backward, interleaved, and how far the gradients are apart. Needs a C++ compiler.
"""

import argparse
import time
from collections.abc import Callable
from statistics import median

import torch
from torch import nn
from torch.optim import AdamW

from medclr.models.encoder import Architecture, build_encoder


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--depth", type=int, default=10)
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--patch", type=int, nargs="+", default=[28, 28])
    parser.add_argument("--repeats", type=int, default=20)
    given = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    architecture = Architecture(given.depth, given.width, len(given.patch), 1, "batch", tuple(given.patch))
    images = torch.rand(given.batch, 1, *given.patch, device=device)

    def encoder() -> nn.Module:
        torch.manual_seed(0)
        return build_encoder(architecture).to(device)

    def step(network: nn.Module) -> float:
        def run() -> None:
            network.zero_grad()
            with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
                loss = network(images).float().square().mean()
            loss.backward()

        return seconds(run, device)

    plain, compiled = encoder(), encoder()
    compiled.compile()
    step(plain)
    first = step(compiled)
    times = [(step(plain), step(compiled)) for _ in range(given.repeats)]
    eager = median(a for a, _ in times)
    one, other = (
        torch.cat([p.grad.flatten() for p in e.parameters() if p.grad is not None]) for e in (plain, compiled)
    )
    print(f"ResNet-{given.depth} of width {given.width}, {' x '.join(map(str, given.patch))}, batch {given.batch}")
    print(f"first compiled step     {first:.1f} s, as {first / eager:,.0f} others")
    print(f"compiled against plain  {median(b / a for a, b in times):.2f} of {eager:.3f} s")
    print(f"gradients apart by      {float((other - one).norm() / one.norm()):.1e}")

    optimizers = [AdamW(e.parameters(), lr=0.0, fused=fused) for e, fused in ((plain, False), (compiled, True))]
    pairs = [[seconds(o.step, device) for o in optimizers] for _ in range(given.repeats)]
    print(f"fused AdamW             {median(b / a for a, b in pairs):.2f} of {median(a for a, _ in pairs):.4f} s")


def seconds(run: Callable[[], object], device: torch.device) -> float:
    start = time.perf_counter()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
