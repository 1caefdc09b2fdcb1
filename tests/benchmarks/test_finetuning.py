"""CPU time of a finetuning step: 4 networks of ConvNets-250K, 32 images, forward, backward and Adam; and
images a second of a step by the recipe.

    pytest tests/benchmarks/test_finetuning.py -s --benchmark-disable

With the public GHN-2 code at hand (see conftest.py) that is compared too. Graphs are made outside of
the time, as its loader's processes do, and its networks too.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import public_ghn
import pytest
import torch
import torch.nn.functional as F
from conftest import MAX_SHAPE, fastest
from torch import Tensor

from ghnq_quant import GHN
from ghnq_quant.quantization.convolution import Geometry
from ghnq_quant.research.finetuning import functional
from ghnq_quant.research.finetuning.functional import FunctionalNetwork
from ghnq_quant.research.finetuning.kernel_cache import keep_many_kernels
from ghnq_quant.research.finetuning.order import TrainingNetworks
from ghnq_quant.research.finetuning.step import backward_meta_batch
from ghnq_quant.research.networks import ConvNets250K

ROUNDS = 5
#: The recipe's networks per step and images of each, and the architectures to measure.
NETWORKS, IMAGES, ARCHITECTURES = 4, 130, 100


class Step:
    """A step as ``finetune`` does it."""

    def __init__(self, virtual_edges: int, bits: tuple[int, int], indices: Sequence[int]) -> None:
        self.ghn = GHN(MAX_SHAPE, virtual_edges=virtual_edges).train()
        self.optimizer = torch.optim.Adam(self.ghn.parameters(), lr=1e-4, fused=True)
        self.items, self.bits = [ConvNets250K("train")[i] for i in indices], bits

    def __call__(self, images: Tensor, labels: Tensor) -> None:
        items = self.items
        self.optimizer.zero_grad()
        images = images.contiguous(memory_format=torch.channels_last)
        backward_meta_batch(
            self.ghn,
            [item.graph for item in items],
            [FunctionalNetwork(item.program, self.bits) for item in items],
            [self.bits] * len(items),
            [[(images, labels)]] * len(items),
        )
        torch.nn.utils.clip_grad_norm_(self.ghn.parameters(), 5.0)
        self.optimizer.step()


class NetworksAlone:
    """The same float networks with their own parameters: time that no hypernetwork can save."""

    def __init__(self, indices: Sequence[int]) -> None:
        self.networks = [ConvNets250K("train")[i].build().train() for i in indices]

    def __call__(self, images: Tensor, labels: Tensor) -> None:
        images = images.contiguous(memory_format=torch.channels_last)
        for network in self.networks:
            F.cross_entropy(network(images), labels).backward()


@pytest.mark.parametrize("side", [32, 16])
@pytest.mark.parametrize("virtual_edges", [50, 10])
@pytest.mark.parametrize("indices", [(0, 1, 2, 3), (5, 7, 8, 9)], ids=str)
def test_step(
    side: int,
    virtual_edges: int,
    indices: tuple[int, ...],
    benchmark: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    batch = torch.randn(32, 3, side, side), torch.randint(10, (32,))
    candidates: dict[str, Callable[[], object]] = {
        "float": partial(Step(virtual_edges, (32, 32), indices), *batch),
        "W4/A4": partial(Step(virtual_edges, (4, 4), indices), *batch),
        "networks alone": partial(NetworksAlone(indices), *batch),
    }
    prepare: dict[str, Callable[[], object]] = {}
    public = public_ghn.load()
    if public is not None:
        step = public_ghn.Step(public, indices, virtual_edges, monkeypatch)
        candidates["public code"], prepare["public code"] = partial(step, *batch), step.build
    times = fastest(candidates, ROUNDS, time.process_time, prepare)
    benchmark.pedantic(candidates["float"], rounds=3)
    ratios = {key: round(times["float"] / value, 3) for key, value in times.items()}
    benchmark.extra_info.update(ratios)
    milliseconds = {key: round(1e3 * value) for key, value in times.items()}
    print(f"\n{side}×{side}, {virtual_edges} virtual edges, networks {indices}: ms {milliseconds}")
    print(f"the float step's time over each: {ratios}")
    if public is not None:
        assert times["float"] < times["public code"]  # by how much depends on the CPU


class RecipeSteps:
    """One process's steps with the recipe, over fixed architectures that each occur once."""

    def __init__(self, side: int) -> None:
        self.ghn = GHN().train()
        self.optimizer = torch.optim.AdamW(self.ghn.parameters(), lr=1e-4, fused=True)
        networks = TrainingNetworks(10, 3000, seed=0)
        spread = networks.fixed(6_000_000, True)[:: 3000 // ARCHITECTURES]
        self.jobs = [(item.graph, networks.runner(item, (32, 32))) for item in spread]
        images = torch.randn(IMAGES, 3, side, side)
        self.batch = (
            images.contiguous(memory_format=torch.channels_last),
            torch.randint(10, (IMAGES,)),
        )

    def __call__(self) -> None:
        for first in range(0, len(self.jobs), NETWORKS):
            graphs, networks = zip(*self.jobs[first : first + NETWORKS], strict=True)
            self.optimizer.zero_grad(set_to_none=False)
            batches = [[self.batch]] * len(graphs)
            backward_meta_batch(self.ghn, graphs, networks, [(32, 32)] * len(graphs), batches)
            torch.nn.utils.clip_grad_norm_(self.ghn.parameters(), 5.0)
            self.optimizer.step()

    def with_pytorchs_convolutions(self) -> None:
        """The same without special convolutions for small maps."""
        small_maps, functional.convolve = functional.convolve, _conv2d
        try:
            self()
        finally:
            functional.convolve = small_maps

    def hypernetwork_alone(self) -> None:
        """Predictions and their backward pass."""
        for first in range(0, len(self.jobs), NETWORKS):
            predicted = self.ghn([graph for graph, _ in self.jobs[first : first + NETWORKS]])
            values = [p for parameters in predicted for p in parameters.values()]
            torch.autograd.backward(values, [torch.ones_like(p) for p in values])


def _conv2d(x: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry) -> Tensor:
    return F.conv2d(x, weight, bias, *geometry)


@pytest.mark.parametrize("side", [16, 32])
def test_images_a_second_by_the_recipe(side: int, benchmark: Any) -> None:
    keep_many_kernels()
    steps = RecipeSteps(side)
    candidates: dict[str, Callable[[], object]] = {
        "recipe": steps,
        "with PyTorch's convolutions": steps.with_pytorchs_convolutions,
        "hypernetwork alone": steps.hypernetwork_alone,
    }
    times = fastest(candidates, 3, clock=time.process_time)
    benchmark.pedantic(steps.hypernetwork_alone, rounds=1)
    images = len(steps.jobs) * IMAGES
    print(f"\n{side}×{side}: {images / times['recipe']:.0f} images a second of a core's time")
    print({key: round(times["recipe"] / value, 3) for key, value in times.items()})
