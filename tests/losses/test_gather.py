import subprocess
import sys

import torch

from medclr.losses import gathered

# Two processes, each with its half of the items: through an encoder, gathered, and then all of them through a projector
# with batch norm and into the loss. The gradients are averaged as DistributedDataParallel does. Then one process.
RUN = """if True:
    import sys
    import torch
    import torch.distributed as dist
    import torch.multiprocessing
    from torch import nn
    from medclr.losses import gathered, nt_xent

    folder = sys.argv[1]
    torch.manual_seed(0)
    x1, x2 = torch.randn(2, 10, 6, dtype=torch.float64)
    groups = torch.tensor([7, 1, 2, 3, 4, 7, 5, 1, 6, 7])  # patients with items on both ranks
    encoder, projector = nn.Linear(6, 5).double(), nn.Sequential(nn.BatchNorm1d(5), nn.Linear(5, 4)).double()

    def loss_and_gradients(items, average):
        z = projector(torch.cat([gathered(encoder(x1[items])), gathered(encoder(x2[items]))]))
        loss = nt_xent(*z.chunk(2), 0.1, gathered(groups[items]))
        loss.backward()
        return [loss.detach(), *(average(p.grad) for part in (encoder, projector) for p in part.parameters())]

    def averaged(gradient):
        dist.all_reduce(gradient)
        return gradient / 2

    def run(rank):
        dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
        torch.save(loss_and_gradients(slice(5 * rank, 5 * rank + 5), averaged), f"{folder}/{rank}.pt")
        dist.destroy_process_group()

    torch.multiprocessing.start_processes(run, nprocs=2, start_method="fork")
    torch.save(loss_and_gradients(slice(None), lambda gradient: gradient), f"{folder}/one.pt")
"""


def test_two_processes_give_the_loss_and_the_gradients_of_one(tmp_path):
    run = [sys.executable, "-c", RUN, str(tmp_path)]
    done = subprocess.run(run, capture_output=True, text=True, check=False, timeout=240)
    assert done.returncode == 0, done.stderr
    one = torch.load(tmp_path / "one.pt")
    assert one[1].abs().max() > 1e-3  # the encoder's weights move
    for rank in range(2):
        torch.testing.assert_close(torch.load(tmp_path / f"{rank}.pt"), one, rtol=1e-9, atol=1e-12)


def test_without_a_process_group_all_rows_are_here():
    z = torch.randn(3, 2, requires_grad=True)
    assert gathered(z) is z
