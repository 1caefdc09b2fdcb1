"""CPU time of predicting a network's parameters: tracing, graph and prediction, 50 virtual edges.

    pytest tests/benchmarks/test_prediction.py -s --benchmark-disable

With the public GHN-2 code at hand (see conftest.py) that is compared too.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import naive_ghn
import public_ghn
import pytest
import torch
import torchvision
from conftest import MAX_SHAPE, fastest

import ghnq_quant
from ghnq_quant import GHN
from ghnq_quant.capture import capture

ROUNDS = 5


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "mobilenet_v2", "densenet121"])
def test_prediction(name: str, benchmark: Any) -> None:
    ghn = GHN(MAX_SHAPE, virtual_edges=50)
    create = getattr(torchvision.models, name)
    model = create(num_classes=10)
    images = torch.randn(1, 3, 32, 32)
    candidates: dict[str, Callable[[], object]] = {
        "ghnq_quant": lambda: ghnq_quant.predict_parameters(model, ghn),
        "with an example input": lambda: ghnq_quant.predict_parameters(
            model, ghn, example_input=torch.zeros(1, 3, 64, 64)
        ),
        "recording alone": lambda: capture(model),
        "recording and graph": lambda: capture(model).arch_graph,
        "the model's own construction": lambda: create(num_classes=10),
        "its forward pass of one image": lambda: model.eval()(images),
    }
    public = public_ghn.load()
    if public is not None:
        public_model, public_hypernetwork = create(num_classes=10), public_ghn.hypernetwork(public)
        candidates["public code"] = lambda: public_ghn.predict(public_hypernetwork, public_model)
    times = fastest(candidates, ROUNDS, time.process_time)
    times |= fastest({"naive": lambda: naive(ghn, model)}, rounds=1, clock=time.process_time)
    benchmark.pedantic(candidates["ghnq_quant"], rounds=3)
    ratios = {key: round(times["ghnq_quant"] / value, 3) for key, value in times.items()}
    benchmark.extra_info.update(ratios)
    milliseconds = {key: round(1e3 * value, 1) for key, value in times.items()}
    print(f"\n{name}: ms {milliseconds}; ghnq_quant's time over each {ratios}")
    assert times["ghnq_quant"] < times["naive"] / 3
    assert times["with an example input"] < 2 * times["ghnq_quant"]
    if public is not None:
        assert times["ghnq_quant"] < times["public code"]  # by how much depends on free memory


@torch.no_grad()
def naive(ghn: GHN, model: torch.nn.Module) -> None:
    """Predict node by node, and decode every weight at full size."""
    naive_ghn.predict(
        ghn.state_dict(),
        capture(model).arch_graph,
        virtual_edges=ghn.virtual_edges,
        max_shape=ghn.max_shape,
        num_classes=ghn.num_classes,
        centred=ghn.decoder.kernel_cut == "centre",
    )
