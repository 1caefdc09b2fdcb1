"""QONNX files for the target ``hls4ml``, in hls4ml's compiled emulation."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from small_networks import images
from torch import Tensor, nn

import ghnq_quant
from ghnq_quant import QuantScheme

onnx = pytest.importorskip("onnx")
hls4ml = pytest.importorskip("hls4ml")


class Network(nn.Module):
    """Batch norms, a residual, max pooling and a flattened map."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU())
        self.conv, self.norm = nn.Conv2d(4, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)
        self.head = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = torch.relu(self.norm(self.conv(x)) + x)
        return self.head(nn.functional.max_pool2d(x, 2).flatten(1))


@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")
def test_compiled_emulation_is_the_simulation(tmp_path: Path) -> None:
    """After the transformations that its documentation requires, and with inputs and biases precise
    enough."""
    from qonnx.core.modelwrapper import ModelWrapper
    from qonnx.transformation.channels_last import ConvertToChannelsLastAndClean
    from qonnx.transformation.gemm_to_matmul import GemmToMatMul
    from qonnx.util.cleanup import cleanup_model

    torch.manual_seed(0)
    x = images(20)
    scheme = QuantScheme.for_target("hls4ml", 4)
    qmodel = ghnq_quant.quantize(Network(), scheme=scheme, backend="reference")
    qmodel = ghnq_quant.calibrate(qmodel, [x[:10], x[10:]]).eval()
    file = ghnq_quant.export_onnx(qmodel, tmp_path / "a.onnx", x[:1], target="hls4ml")
    model = ModelWrapper(str(file))
    model.set_tensor_shape("input", [1, 3, 8, 8])
    for step in (ConvertToChannelsLastAndClean(), GemmToMatMul()):
        model = cleanup_model(cleanup_model(model).transform(step))
    settings = hls4ml.utils.config.config_from_onnx_model(
        model, granularity="name", backend="Vitis", default_precision="fixed<32,12>"
    )
    converted = hls4ml.converters.convert_from_onnx_model(
        model, output_dir=str(tmp_path), io_type="io_stream", backend="Vitis", hls_config=settings
    )
    converted.compile()
    found = torch.from_numpy(np.asarray(converted.predict(x.numpy()))).view(20, 10)
    torch.testing.assert_close(found, qmodel(x), rtol=1e-5, atol=1e-5)
