"""The training in each of two processes, for the test that starts them."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from small_networks import images, small_network
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import ghnq_quant

STEPS = 3


def quantized(backend: str) -> nn.Module:
    network = small_network(4, dropout=0.0)
    return ghnq_quant.quantize(network, 8, backend=backend, example_input=images())


def batch(step: int) -> tuple[Tensor, Tensor]:
    """The batch of both processes; its second half has a wider range."""
    x = torch.randn(8, 3, 8, 8, generator=torch.Generator().manual_seed(step))
    return torch.cat((x[:4], 1.5 * x[4:])), torch.arange(8) % 4


def train(model: nn.Module, share: slice, *, average: bool = False) -> None:
    """A few steps. ``average`` averages the processes' gradients as ``DistributedDataParallel`` does,
    which refuses ``SyncBatchNorm`` on CPU."""
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
    for step in range(STEPS):
        x, y = batch(step)
        optimizer.zero_grad()
        F.cross_entropy(model(x[share]), y[share]).backward()
        for p in model.parameters():
            if average and p.grad is not None:
                dist.all_reduce(p.grad)
                p.grad /= 2
        optimizer.step()


def states(rank: int) -> dict[str, Any]:
    """Each backend's model after training, with and without shared batch statistics."""
    found = {}
    for backend in ("reference", "torch_ao"):
        for synced in (False, True):
            qmodel, share = quantized(backend).train(), slice(4 * rank, 4 * rank + 4)
            if synced:
                qmodel = nn.SyncBatchNorm.convert_sync_batchnorm(qmodel)
                train(qmodel, share, average=True)
            else:
                train(DistributedDataParallel(qmodel), share)
            found[f"{backend}, {synced}"] = qmodel.state_dict()
    return found


if __name__ == "__main__":
    rank, folder = int(sys.argv[1]), Path(sys.argv[2])
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder / 'meet'}", rank=rank, world_size=2)
    torch.save(states(rank), folder / f"{rank}.pt")
    dist.destroy_process_group()
