"""Time of the paper's Table-1 evaluation of one network: five precisions at once or one by one.

    pytest tests/benchmarks/test_evaluation.py -s --benchmark-disable

One by one is meant in two ways. As evaluations, each of which also runs the float network, since the
error of the logits is measured against it: all at once takes at most 0.7 of their time. And bare:
each precision's prediction, folded weights and forward passes alone, without any report.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torchvision
from conftest import fastest
from torch import nn

from ghnq_quant import GHN
from ghnq_quant.capture import capture
from ghnq_quant.research.data import Images, evaluation_batches
from ghnq_quant.research.networks import ConvNets250K
from ghnq_quant.research.table1 import measure_network
from ghnq_quant.research.table1.settings import PAPER_PRECISIONS, parse_precisions
from ghnq_quant.research.table1.variants import channels_last, predicted_variants

PRECISIONS = parse_precisions(PAPER_PRECISIONS)
FLOAT = (32, 32)
NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "mobilenet_v2": lambda: torchvision.models.mobilenet_v2(num_classes=10),
    "test 3": lambda: ConvNets250K("test")[3].build(initialize=False),
    "test 17": lambda: ConvNets250K("test")[17].build(initialize=False),
    "mobile 0": lambda: ConvNets250K("mobile")[0].build(initialize=False),
}


def noise(count: int) -> Images:
    """Random images; the time does not depend on their content."""
    return Images(
        torch.randint(256, (count, 3, 32, 32), dtype=torch.uint8),
        torch.randint(10, (count,)),
        tuple("0123456789"),
        torch.full((3,), 0.5),
        torch.full((3,), 0.25),
    )


def evaluate(
    create: Callable[[], nn.Module],
    ghn: GHN,
    images: Images,
    precisions: tuple[tuple[int, int], ...],
) -> None:
    measure_network(create(), ghn, images, precisions, group="benchmark", index=0)


def one_by_one(create: Callable[[], nn.Module], ghn: GHN, images: Images) -> None:
    for precision in PRECISIONS:
        evaluate(create, ghn, images, tuple(dict.fromkeys((FLOAT, precision))))


@torch.inference_mode()
def bare(create: Callable[[], nn.Module], ghn: GHN, images: Images) -> None:
    first, _ = next(evaluation_batches(images, 64))
    for precision in PRECISIONS:
        (variants,) = predicted_variants(capture(create()), ghn, [precision], first)
        model = variants.quantized.get(precision, variants.float_model)
        for x, _ in evaluation_batches(images, 64):
            model(channels_last(x) if precision == FLOAT else x).argmax(1)


@pytest.mark.parametrize("name", NETWORKS)
def test_evaluation(name: str, benchmark: Any) -> None:
    ghn, images = GHN.from_pretrained(), noise(512)
    arguments = NETWORKS[name], ghn, images
    candidates = {
        "at once": partial(evaluate, *arguments, PRECISIONS),
        "one by one": partial(one_by_one, *arguments),
        "bare, one by one": partial(bare, *arguments),
    }
    times = fastest(candidates, rounds=2, clock=time.process_time)
    benchmark.pedantic(candidates["at once"], rounds=1)
    ratios = {key: round(times["at once"] / value, 2) for key, value in times.items()}
    benchmark.extra_info.update(ratios)
    print(f"\n{name}: at once over each {ratios}, {times['at once']:.1f} s")
    assert times["at once"] <= 0.7 * times["one by one"]
