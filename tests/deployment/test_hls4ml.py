"""QONNX files for the target ``hls4ml``, read by hls4ml itself."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

import ghnq_quant
from ghnq_quant import QuantScheme
from ghnq_quant.research.starts.cifar_networks import resnet8, vgg7

onnx = pytest.importorskip("onnx")
hls4ml = pytest.importorskip("hls4ml")


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("make", [vgg7, resnet8])
def test_hls4ml_converts_networks(make: Callable[..., nn.Module], tmp_path: Path) -> None:
    """After the transformations that its documentation requires."""
    from qonnx.core.modelwrapper import ModelWrapper
    from qonnx.transformation.channels_last import ConvertToChannelsLastAndClean
    from qonnx.transformation.gemm_to_matmul import GemmToMatMul
    from qonnx.util.cleanup import cleanup_model

    torch.manual_seed(0)
    x = torch.randn(8, 3, 32, 32)
    scheme = QuantScheme.for_target("hls4ml", 4)
    qmodel = ghnq_quant.quantize(make(), scheme=scheme, backend="reference")
    qmodel = ghnq_quant.calibrate(qmodel, [x]).eval()
    file = ghnq_quant.export_onnx(qmodel, tmp_path / "a.onnx", x[:1], target="hls4ml")
    model = ModelWrapper(str(file))
    model.set_tensor_shape("input", [1, 3, 32, 32])
    for step in (ConvertToChannelsLastAndClean(), GemmToMatMul()):
        model = cleanup_model(cleanup_model(model).transform(step))
    settings = hls4ml.utils.config.config_from_onnx_model(
        model, granularity="name", backend="Vitis"
    )
    converted = hls4ml.converters.convert_from_onnx_model(
        model, output_dir=str(tmp_path), io_type="io_stream", backend="Vitis", hls_config=settings
    )
    kinds = [layer.class_name for layer in converted.get_layers()]
    convolutions = sum(kind in ("Conv2D", "PointwiseConv2D") for kind in kinds)
    assert convolutions == sum(isinstance(m, nn.Conv2d) for m in qmodel.modules()), kinds
