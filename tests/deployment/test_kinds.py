"""Symmetric, per-channel and power-of-two quantizers after training: folded, integers, ONNX."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from backends import BACKENDS
from onnx_runs import run, run_qonnx
from small_networks import images, small_network

import ghnq_quant
from ghnq_quant.quantization import QuantModel
from ghnq_quant.quantization.scheme import parse_quantizers

KINDS = [
    "8-symmetric/8-symmetric",
    "3-channel/4-symmetric",
    "4-symmetric-channel/8",
    "6-symmetric-channel-power_of_two/5-symmetric-power_of_two",
]
kinds = pytest.mark.parametrize("kind", KINDS)


def trained(kind: str, backend: str = "reference") -> QuantModel:
    qmodel = ghnq_quant.quantize(small_network(), parse_quantizers(kind), backend=backend)
    for _ in range(3):
        qmodel(images())
    return qmodel.eval()


@pytest.mark.parametrize("backend", BACKENDS)
@kinds
def test_a_folded_model_gives_the_simulation_s_very_values(kind: str, backend: str) -> None:
    qmodel, x = trained(kind, backend), images()
    folded = ghnq_quant.convert(qmodel, integer=False)
    torch.testing.assert_close(folded(x), qmodel(x), rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", [*KINDS, "8-channel/8", "8-symmetric-channel/8"])
def test_every_kind_runs_on_integers(kind: str) -> None:
    """Within a step of the outputs' range on every image (at most doubled by a power of two), and
    mostly equal."""
    qmodel, x = trained(kind), images(40)
    deployed = ghnq_quant.convert(qmodel, integer=True)
    layer: Any = deployed.get_submodule("stem.0")
    assert type(layer).__name__ == "IntegerLayer"
    weights, activations = qmodel.scheme.weights, qmodel.scheme.activations
    assert layer.weight_zero_point.shape == ((8,) if weights.per_channel else ())
    assert weights.symmetric == (not layer.weight_zero_point.any())
    y = qmodel(x)
    difference = (deployed(x) - y).abs()
    step = (y.max() - y.min()) / (2**activations.bits - 1)
    assert difference.max() <= (2 if activations.power_of_two else 1) * step
    assert difference.median() < 0.01 * step


def test_eight_bits_per_channel_run_on_integers_by_default() -> None:
    deployed = ghnq_quant.convert(trained("8-symmetric-channel/8"))
    assert type(deployed.get_submodule("stem.0")).__name__ == "IntegerLayer"


@kinds
def test_qdq_in_onnxruntime(kind: str, tmp_path: Path) -> None:
    onnx, _ = pytest.importorskip("onnx"), pytest.importorskip("onnxscript")
    qmodel, x = trained(kind), images(40)
    file = ghnq_quant.export_onnx(qmodel, tmp_path / "model.onnx", x[:1])
    torch.testing.assert_close(run(file, x), qmodel(x), rtol=1e-5, atol=1e-5)
    tensors = {t.name: t for t in onnx.load(file).graph.initializer}
    quantizer = qmodel.scheme.weights
    scale = onnx.numpy_helper.to_array(tensors["stem.0.weight.scale"])
    assert scale.shape == ((8,) if quantizer.per_channel else ())
    zero_point = tensors["stem.0.weight.zero_point"]
    if quantizer.symmetric:
        assert zero_point.data_type in (onnx.TensorProto.INT4, onnx.TensorProto.INT8)
        assert not onnx.numpy_helper.to_array(zero_point).any()


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")  # Brevitas's
@pytest.mark.parametrize("kind", KINDS[1:])
def test_qonnx_in_its_executor(kind: str, tmp_path: Path) -> None:
    for package in ("onnxscript", "brevitas"):
        pytest.importorskip(package)
    qmodel, x = trained(kind), images(20)
    file = ghnq_quant.export_onnx(qmodel, tmp_path / "m.onnx", images(1), format="qonnx")
    torch.testing.assert_close(run_qonnx(file, x), qmodel(x), rtol=1e-5, atol=1e-5)
