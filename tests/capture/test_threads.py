"""A capture changes no global state, so several can run at the same time."""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor

import torch
import torchvision
from torch import Tensor, nn

from ghnq_quant import quantize
from ghnq_quant.capture import capture


class Watches(nn.Module):
    """Runs another network while it is being recorded."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)
        other = nn.Sequential(nn.Conv2d(3, 2, 1), nn.BatchNorm2d(2))
        self.pool = ThreadPoolExecutor(1)
        self.seen: list[object] = []
        self.run = lambda: (
            nn.Module.__call__,
            nn.Module.__getattr__,
            other(torch.ones(1, 3, 2, 2)),
        )

    def forward(self, x: Tensor) -> Tensor:
        *methods, y = self.pool.submit(self.run).result()
        assert methods == [ORIGINAL_CALL, ORIGINAL_GETATTR]
        assert y.shape == (1, 2, 2, 2)
        return self.conv(x)


ORIGINAL_CALL, ORIGINAL_GETATTR = nn.Module.__call__, nn.Module.__getattr__


def test_other_networks_run_while_one_is_captured() -> None:
    assert capture(Watches()).arch_graph.counts()["conv"] == 1


def test_captures_in_several_threads() -> None:
    model = torchvision.models.resnet18(num_classes=10).train()
    expected = repr(capture(model).quant_plan)

    def work(_: int) -> str:
        assert model(torch.zeros(2, 3, 32, 32)).shape == (2, 10)
        quantize(model, bits=4, backend="reference")
        return repr(capture(model, torch.zeros(1, 3, 32, 32)).quant_plan)

    with ThreadPoolExecutor(4) as pool:
        assert set(pool.map(work, range(8))) == {expected}
    assert all(m.training for m in model.modules())
    assert math.sqrt.__module__ == "math"
