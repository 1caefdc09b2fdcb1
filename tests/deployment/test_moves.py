"""A quantizer takes over the clamps around it without changing any value."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from onnx_runs import run
from small_networks import images
from torch import Tensor, nn

import ghnq_quant

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")


class Clamped(nn.Module):
    """A convolution with ReLU6, a sum with ReLU, and a value also read before its ReLU."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 1)
        self.c = nn.Conv2d(4, 10, 8)
        nn.init.normal_(self.a.weight)  # so that some results exceed 6

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu6(self.a(x))
        x = F.relu(self.b(x) - x)
        y = x - 0.5
        return self.c(F.relu(y) + y).flatten(1)


@pytest.mark.parametrize("bits", [8, 2, "4-symmetric"])
def test_no_relu_is_left_where_a_quantizer_clamps(bits: int | str, tmp_path: Path) -> None:
    quantizer = bits if isinstance(bits, int) else ghnq_quant.Quantizer.parse(bits)
    torch.manual_seed(0)
    qmodel = ghnq_quant.quantize(Clamped(), quantizer, backend="reference")
    x = 3 * images(32)
    ghnq_quant.calibrate(qmodel, [x[:16]]).eval()  # the other images exceed the ranges
    file = ghnq_quant.export_onnx(qmodel, tmp_path / "model.onnx", x[:1])
    torch.testing.assert_close(run(file, x), qmodel(x), rtol=1e-5, atol=1e-5)
    kinds = [node.op_type for node in onnx.load(file).graph.node]
    assert kinds.count("Relu") == 1  # for the value that is read twice
