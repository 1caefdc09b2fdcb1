"""How the cost of prediction and of a finetuning step grows.

pytest tests/benchmarks/test_growth.py -s --benchmark-disable
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from conftest import MAX_SHAPE, fastest
from test_finetuning import Step
from torch import nn

import ghnq_quant
from ghnq_quant import GHN
from ghnq_quant.capture import capture

ROUNDS = 4


def plain(layers: int, channels: int) -> nn.Module:
    """A chain of convolutions with batch norm, two nodes per layer."""
    model = nn.Sequential()
    before = 3
    for _ in range(layers):
        model.append(nn.Conv2d(before, channels, 3, padding=1, bias=False))
        model.append(nn.BatchNorm2d(channels)).append(nn.ReLU())
        before = channels
    return model.append(nn.AdaptiveAvgPool2d(1)).append(nn.Flatten()).append(nn.Linear(before, 10))


def report(title: str, times: dict[str, float], per: list[int], benchmark: Any) -> None:
    """Report milliseconds, and microseconds per unit."""
    print(f"\n{title}")
    for (name, seconds), count in zip(times.items(), per, strict=True):
        print(f"{name}: {1e3 * seconds:.1f} ms, {1e6 * seconds / count:.3g} µs each")
    benchmark.extra_info.update({name: round(1e3 * s, 1) for name, s in times.items()})


@pytest.mark.usefixtures("all_cores")
@pytest.mark.parametrize("virtual_edges", [10, 50])
def test_nodes(virtual_edges: int, benchmark: Any) -> None:
    ghn = GHN(MAX_SHAPE, virtual_edges=virtual_edges)
    models = [plain(layers, 16) for layers in (10, 30, 100, 300)]
    nodes = [len(capture(model).arch_graph) for model in models]
    work: dict[str, Callable[[], object]] = {
        f"{count} nodes": partial(ghnq_quant.predict_parameters, model, ghn)
        for count, model in zip(nodes, models, strict=True)
    }
    times = fastest(work, ROUNDS)
    benchmark.pedantic(work[f"{nodes[0]} nodes"], rounds=3)
    report(f"prediction by nodes, {virtual_edges} virtual edges", times, nodes, benchmark)


@pytest.mark.usefixtures("all_cores")
def test_parameters(benchmark: Any) -> None:
    ghn = GHN(MAX_SHAPE, virtual_edges=10)
    models = [plain(20, channels) for channels in (16, 64, 256, 512)]
    counts = [sum(p.numel() for p in model.parameters()) for model in models]
    work: dict[str, Callable[[], object]] = {
        f"{count / 1e6:.2f} million parameters": partial(ghnq_quant.predict_parameters, model, ghn)
        for count, model in zip(counts, models, strict=True)
    }
    times = fastest(work, ROUNDS)
    benchmark.pedantic(next(iter(work.values())), rounds=3)
    report("prediction of 20 layers by parameters", times, counts, benchmark)


@pytest.mark.usefixtures("all_cores")
@pytest.mark.parametrize("bits", [(32, 32), (4, 4)])
def test_meta_batch(bits: tuple[int, int], benchmark: Any) -> None:
    batch = torch.randn(32, 3, 32, 32), torch.randint(10, (32,))
    sizes = [2, 4, 8, 16]
    # repeats the first two networks, so that every size has the same mean network
    steps = [Step(10, bits, [i % 2 for i in range(size)]) for size in sizes]
    work: dict[str, Callable[[], object]] = {
        f"meta-batch {size}": partial(step, *batch) for size, step in zip(sizes, steps, strict=True)
    }
    times = fastest(work, ROUNDS)
    benchmark.pedantic(work["meta-batch 2"], rounds=3)
    report(f"step by meta-batch, bits {bits}", times, sizes, benchmark)
