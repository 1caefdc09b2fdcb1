"""Shapes of a network's values, found without running it."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, fx, nn

from ghnq_quant import CaptureError
from ghnq_quant.capture import capture


class Odd(nn.Module):
    """Layers and values whose shape no rule gives."""

    def __init__(self) -> None:
        super().__init__()
        self.same = nn.Conv2d(3, 6, (3, 2), padding="same", dilation=2)
        self.circular = nn.Conv2d(6, 6, 3, padding=1, padding_mode="circular")
        self.strided = nn.Conv2d(6, 8, (5, 3), stride=(2, 3), padding=(0, 2), dilation=(1, 2))
        self.prelu = nn.PReLU(8)
        self.scale = torch.ones(8, 1, 1)  # not a buffer, so never on a meta device

    def forward(self, x: Tensor) -> Tensor:
        x = self.prelu(self.strided(self.circular(self.same(x)))) * self.scale
        gate = torch.sigmoid(x.mean((2, 3), keepdim=True))
        return F.hardtanh(x * gate + x)


class Shapes(fx.Interpreter):
    def run_node(self, n: fx.Node) -> object:
        value = super().run_node(n)
        if isinstance(value, Tensor):
            self.found[n.name] = tuple(value.shape)
        return value


@pytest.mark.parametrize(
    "create",
    [
        Odd,
        *(
            getattr(torchvision.models, n)
            for n in ("googlenet", "mnasnet0_5", "shufflenet_v2_x0_5")
        ),
    ],
)
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_shapes_are_those_of_a_run(create):
    captured = capture(create().eval())
    real = Shapes(captured.root, graph=captured.graph)
    real.found = {}
    with torch.no_grad():
        real.run(torch.zeros(2, 3, 65, 64))
    assert captured.shapes((2, 3, 65, 64)) == real.found


@pytest.mark.parametrize(
    ("layers", "operation"),
    [
        ([nn.Conv2d(3, 8, 3), nn.BatchNorm2d(4)], "_1"),
        ([nn.Conv2d(4, 8, 3)], "_0"),
        ([nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 7)], "_2"),
        ([nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(7, 2)], "_2"),
    ],
    ids=["norm", "channels", "size", "linear"],
)
def test_what_does_not_fit_is_named(layers, operation):
    with pytest.raises(CaptureError, match=rf"shape \(1, 3, 8, 8\): operation {operation} "):
        capture(nn.Sequential(*layers)).shapes((1, 3, 8, 8))
