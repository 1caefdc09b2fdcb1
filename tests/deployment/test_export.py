"""Exported ONNX files in onnxruntime and in QONNX's executor."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from onnx_runs import run, run_qonnx
from safetensors.torch import save_file
from small_networks import images, small_network
from torch import nn

import ghnq_quant
from ghnq_quant import ConversionError
from ghnq_quant.quantization import QuantModel

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

Ghnq = Callable[..., tuple[object, str, str]]
BITS: list[int | tuple[int, int]] = [2, 4, (3, 8), (8, 6)]


def trained(bits: int | tuple[int, int] = 4, backend: str = "reference") -> QuantModel:
    qmodel = ghnq_quant.quantize(small_network(), bits, backend=backend)
    for _ in range(3):
        qmodel(images())
    return qmodel.eval()


@pytest.mark.parametrize("bits", BITS)
def test_qdq_in_onnxruntime(bits: int | tuple[int, int], tmp_path: Path) -> None:
    """Without optimization the file equals the simulation; the optimizer's integer kernels may round
    a result halfway between two levels to the other one."""
    qmodel = trained(bits)
    file = ghnq_quant.export_onnx(qmodel, tmp_path / "model.onnx", images(1))
    x = images(40)  # any number of images
    y = qmodel(x)
    torch.testing.assert_close(run(file, x), y, rtol=1e-5, atol=1e-5)
    optimized = run(file, x, optimized=True)
    assert ((optimized - y).abs() < 1e-3).all(1).float().mean() > 0.5
    act_bits = bits if isinstance(bits, int) else bits[1]
    assert (optimized - y).abs().max() <= 2 * (y.max() - y.min()) / (2**act_bits - 1)


def test_qdq_weights_are_integers_of_their_levels(tmp_path: Path) -> None:
    qmodel = trained((3, 8))
    file = ghnq_quant.export_onnx(qmodel, tmp_path / "model.onnx", images(1))
    model = onnx.load(file)
    folded = ghnq_quant.convert(qmodel)
    tensors = {t.name: t for t in model.graph.initializer}
    for name in ("stem.0", "depthwise", "plain", "head"):
        stored = tensors[f"{name}.weight_levels"]
        assert stored.data_type == onnx.TensorProto.UINT4
        levels = onnx.numpy_helper.to_array(stored).astype(np.uint8)
        assert np.array_equal(levels, folded.get_submodule(name).weight_levels().numpy())
    assert {o.domain for o in model.opset_import} == {""}
    kinds = [n.op_type for n in model.graph.node]
    points = len(qmodel.activation_quantizers)
    assert kinds.count("QuantizeLinear") == points
    assert {n.op_type for n in model.graph.node} >= {"DequantizeLinear", "Conv", "Gemm"}
    assert "BatchNormalization" not in kinds


@pytest.mark.parametrize(("bits", "opset"), [(8, 18), (5, 18), (4, 21)])
def test_the_opset_is_as_low_as_the_types_allow(bits: int, opset: int, tmp_path: Path) -> None:
    file = ghnq_quant.export_onnx(trained(bits), tmp_path / "model.onnx", images(1))
    assert [o.version for o in onnx.load(file).opset_import] == [opset]


def test_onnxruntime_does_not_saturate(tmp_path: Path) -> None:
    """With extreme weights and activations, which overflow 16-bit sums of two products."""
    model = nn.Sequential(nn.Conv2d(64, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 1), nn.Flatten())
    with torch.no_grad():
        model[0].weight.fill_(1.0)
        model[0].bias.fill_(0.0)
    qmodel = ghnq_quant.quantize(model, 8, backend="reference")
    x = torch.ones(8, 64, 3, 3)
    x[0] = 0.5
    ghnq_quant.calibrate(qmodel, [x])
    file = ghnq_quant.export_onnx(qmodel, tmp_path / "model.onnx", x[:1])
    y = qmodel.eval()(x)
    torch.testing.assert_close(run(file, x, optimized=True), y, rtol=0, atol=1e-2)


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")  # Brevitas's
@pytest.mark.parametrize("bits", BITS)
def test_qonnx_in_its_executor(bits: int | tuple[int, int], tmp_path: Path) -> None:
    pytest.importorskip("brevitas")
    qmodel = trained(bits)
    file = ghnq_quant.export_onnx(qmodel, tmp_path / "m.onnx", images(1), format="qonnx")
    x = images(20)
    torch.testing.assert_close(run_qonnx(file, x), qmodel(x), rtol=1e-5, atol=1e-5)
    model = onnx.load(file)
    quants = [n for n in model.graph.node if n.op_type == "Quant"]
    assert {n.domain for n in quants} == {"qonnx.custom_op.general"}
    assert len(quants) == len(qmodel.activation_quantizers) + len(qmodel.plan.units)
    constants = {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer}
    widths = {float(constants[n.input[3]]) for n in quants}
    assert widths == {float(b) for b in np.atleast_1d(bits)}


def test_files_of_all_backends_are_the_same(tmp_path: Path) -> None:
    models = []
    for backend in ("reference", "brevitas", "torch_ao"):
        torch.manual_seed(1)
        file = ghnq_quant.export_onnx(trained(4, backend), tmp_path / f"{backend}.onnx", images(1))
        models.append(onnx.load(file))
    first, *others = ({t.name: t for t in m.graph.initializer} for m in models)
    assert all(other == first for other in others)
    first_ops, *others_ops = ([n.op_type for n in m.graph.node] for m in models)
    assert all(ops == first_ops for ops in others_ops)


def test_errors_leave_no_file(tmp_path: Path) -> None:
    untrained = ghnq_quant.quantize(small_network(), 4, backend="reference")
    with pytest.raises(ConversionError, match="calibrate"):
        ghnq_quant.export_onnx(untrained, tmp_path / "a.onnx", images(1))
    with pytest.raises(ConversionError, match=r"'tflite'; known are: qdq, qonnx"):
        ghnq_quant.export_onnx(trained(), tmp_path / "a.onnx", images(1), format="tflite")
    with pytest.raises(ConversionError, match=r"torch\.onnx cannot export"):
        ghnq_quant.export_onnx(trained(), tmp_path / "a.onnx", torch.zeros(1, 5, 8, 8))
    assert not list(tmp_path.iterdir())


# The command

NETS = """
import sys
sys.path.insert(0, {tests!r})
from small_networks import small_network
"""


@pytest.fixture
def checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "exportnets.py").write_text(NETS.format(tests=str(Path(__file__).parents[1])))
    monkeypatch.chdir(tmp_path)
    torch.save(trained(4, "brevitas").state_dict(), tmp_path / "trained.pt")
    return tmp_path / "trained.pt"


def test_export_command(checkpoint: Path, ghnq: Ghnq) -> None:
    export = ("export", "exportnets:small_network", "--weights")
    arguments = ["trained.pt", "-o", "model.onnx", "--image-size", "8", "--bits", "4"]
    code, out, _ = ghnq(*export, *arguments)
    assert code == 0
    assert "Saved to model.onnx" in out
    x, qmodel = images(), trained(4, "brevitas")
    qmodel.load_state_dict(torch.load(checkpoint, weights_only=True))
    torch.testing.assert_close(run(Path("model.onnx"), x), qmodel(x), rtol=1e-5, atol=1e-5)
    code, _, err = ghnq(*export, *arguments, "--backend", "reference")
    assert code == 1
    assert "error: trained.pt is of another model" in err
    code, _, err = ghnq(*export, "none.pt", "-o", "b.onnx")
    assert code == 1
    assert "error: none.pt cannot be read" in err


def test_export_command_takes_the_first_layers_bits_that_init_noted(
    checkpoint: Path, ghnq: Ghnq
) -> None:
    state = torch.load(checkpoint, weights_only=True)
    save_file(state, "noted.safetensors", {"stem_bits": "8"})
    qmodel = ghnq_quant.quantize(small_network(), 4, stem_bits=8)
    qmodel.load_state_dict(state)
    x = images()
    wanted = qmodel.eval()(x)
    for arguments in (
        ("--weights", "noted.safetensors", "--bits", "4"),
        ("--weights", "trained.pt", "--bits", "4", "--stem-bits", "8"),
    ):
        model = ("exportnets:small_network", *arguments, "-o", "model.onnx", "--image-size", "8")
        assert ghnq("export", *model)[0] == 0
        found = run(Path("model.onnx"), x)
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
