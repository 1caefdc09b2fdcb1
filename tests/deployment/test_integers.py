"""Integer layers equal exact sums, and onnxruntime's integer kernels to the bit."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import ghnq_quant
from ghnq_quant import Quantizer, QuantScheme
from ghnq_quant.deployment.integer_layers import IntegerLayer, Levels
from ghnq_quant.deployment.layers import FoldedLayer, folded_layer, stretch
from ghnq_quant.quantization import QuantModel, QuantParams
from ghnq_quant.quantization.affine import qparams_of

#: Activations whose integers range from -100 to 155, or from 0 to 255.
SOURCES = [Levels(0.02, -100, 155), Levels(0.02, 0, 255)]


def integers(levels: Levels, *shape: int) -> Tensor:
    return torch.randint(levels.lowest, levels.highest + 1, shape).float()


def quantized(module: nn.Conv2d | nn.Linear, quantizer: Quantizer) -> FoldedLayer:
    """The folded layer, with random weights whose ranges differ between channels."""
    weight = torch.randn_like(module.weight) * torch.rand(len(module.weight)).view(
        -1, *(1,) * (module.weight.dim() - 1)
    )
    return folded_layer(module, weight, module.bias, qparams_of(weight, quantizer))


def exact_sums(layer: FoldedLayer, integer: IntegerLayer, x: Tensor) -> Tensor:
    """Sums of the stored levels in float64, which holds integers up to 2^53."""
    zero_point = integer.weight_zero_point.view(-1, *(1,) * (integer.weight.dim() - 1))
    weight, bias = integer.weight.double() - zero_point, integer.bias_levels.double()
    if isinstance(layer, nn.Conv2d):
        return layer._conv_forward(x.double(), weight, bias)
    return F.linear(x.double(), weight, bias)


@settings(max_examples=60)
@given(
    seed=st.integers(0, 2**31),
    quantizer=st.builds(
        Quantizer,
        st.integers(2, 8),
        symmetric=st.booleans(),
        granularity=st.sampled_from(["tensor", "channel"]),
    ),
    source=st.sampled_from(SOURCES),
    kernel=st.sampled_from([1, 2, 3, 5]),
    stride=st.sampled_from([1, 2]),
    padding=st.sampled_from([0, 1, "same"]),
    dilation=st.sampled_from([1, 2]),
    groups=st.sampled_from([1, 2, 8]),
)
@example(0, Quantizer(8), SOURCES[1], 5, 1, "same", 1, 8)
def test_convolution_is_exact(
    seed: int,
    quantizer: Quantizer,
    source: Levels,
    kernel: int,
    stride: int,
    padding: int | str,
    dilation: int,
    groups: int,
) -> None:
    torch.manual_seed(seed)
    if padding == "same":
        stride, kernel = 1, kernel | 1
    layer = quantized(nn.Conv2d(8, 16, kernel, stride, padding, dilation, groups), quantizer)
    x = integers(source, 2, 8, 11, 11)
    simulated = copy.deepcopy(layer).double()(x.double() * source.scale).detach()
    result = Levels(float(simulated.abs().max()) / 100, -100, 90)  # some are clamped
    integer, values = IntegerLayer(layer, source, result), IntegerLayer(layer, source)
    assert torch.equal(integer.sums(x).double(), exact_sums(layer, integer, x))
    torch.testing.assert_close(values(x).double(), simulated, rtol=1e-5, atol=1e-5)
    # half a level, and half of a step that the bias is rounded to
    level = (simulated / result.scale).clamp(-100, 90)
    allowed = 0.5 + 0.51 * float(integer.multiplier.max()) + 1e-4
    assert (integer(x) - level).abs().max() <= allowed


@pytest.mark.parametrize(
    ("module", "shape"),
    [
        (nn.Conv2d(512, 4, 3), (1, 512, 3, 4)),
        (nn.Conv2d(1024, 4, 3, groups=2), (2, 1024, 3, 3)),
        (nn.Linear(4096, 4), (2, 5, 4096)),
    ],
)
@pytest.mark.parametrize("ones", [False, True])
def test_sums_beyond_float32_are_exact(
    module: nn.Conv2d | nn.Linear, shape: tuple[int, ...], ones: bool
) -> None:
    """With random levels and with the largest ones, whose sums are close to 2^28."""
    torch.manual_seed(0)
    layer = quantized(module, Quantizer(8))
    if ones:
        one = QuantParams(torch.tensor(1 / 255), torch.tensor(0.0), Quantizer(8))
        layer = folded_layer(module, torch.ones_like(module.weight), module.bias, one)
    source = SOURCES[1]
    integer = IntegerLayer(layer, source, Levels(1.0, -128, 127))
    x = torch.full(shape, 255.0) if ones else integers(source, *shape)
    sums = exact_sums(layer, integer, x)
    assert not ones or sums.max() > 2**27
    assert torch.equal(integer.sums(x), sums.float())


# onnxruntime


def session(model: Any) -> Any:
    ort = pytest.importorskip("onnxruntime")
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    # without it, int8 weights saturate sums of two products in 16 bits on CPUs without VNNI
    options.add_session_config_entry("session.x64quantprecision", "1")
    return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def run(operator: str, x: Tensor, constants: list[np.ndarray], **attributes: Any) -> Tensor:
    """Run a single node; x is uint8, and so are all results except sums."""
    onnx = pytest.importorskip("onnx")
    names = ["x", *(f"c{i}" for i in range(len(constants)))]
    node = onnx.helper.make_node(operator, names, ["y"], **attributes)
    kinds = {"x": onnx.TensorProto.UINT8, "y": onnx.TensorProto.UINT8}
    if operator.endswith("Integer"):
        kinds["y"] = onnx.TensorProto.INT32
    inputs, outputs = (
        [onnx.helper.make_tensor_value_info(name, kinds[name], None)] for name in ("x", "y")
    )
    values = map(onnx.numpy_helper.from_array, constants, names[1:])
    graph = onnx.helper.make_graph([node], "one", inputs, outputs, list(values))
    opsets = [onnx.helper.make_opsetid("", 18)]
    model = onnx.helper.make_model(graph, opset_imports=opsets, ir_version=10)
    return torch.from_numpy(session(model.SerializeToString()).run(None, {"x": x.numpy()})[0])


@pytest.mark.parametrize("groups", [1, 4, 16])
@pytest.mark.parametrize("kind", ["8", "8-symmetric", "8-symmetric-channel", "4", "2-symmetric"])
def test_a_convolution_is_that_of_onnxruntime_to_the_bit(kind: str, groups: int) -> None:
    torch.manual_seed(0)
    module = nn.Conv2d(16, 32, 3, 2, 1, groups=groups)
    of_onnx = compare(quantized(module, Quantizer.parse(kind)), (4, 16, 15, 15))
    of_onnx("Conv", strides=[2, 2], pads=[1] * 4, group=groups)


@pytest.mark.parametrize("kind", ["8", "8-symmetric", "4"])
def test_a_linear_layer_is_that_of_onnxruntime_to_the_bit(kind: str) -> None:
    torch.manual_seed(0)
    module = nn.Linear(96, 24, bias=False)  # MatMul has none
    compare(quantized(module, Quantizer.parse(kind)), (50, 96))("MatMul")


def compare(layer: FoldedLayer, shape: tuple[int, ...]) -> Callable[..., None]:
    """A function that compares with onnxruntime's integer operators, by name and attributes."""
    source, zero_points = SOURCES[0], (np.uint8(100), np.uint8(120))
    x = integers(source, *shape)
    result = Levels(float(layer(x * source.scale).detach().abs().max()) / 140, -120, 135)
    integer = IntegerLayer(layer, source, result)
    assert layer.weight_quant is not None
    scale = layer.weight_quant.scale / stretch(layer.weight_quant.quantizer)

    def with_onnxruntime(operator: str, **attributes: Any) -> None:
        weight = integer.weight if operator == "Conv" else integer.weight.T.contiguous()
        w = [weight.numpy(), scale.numpy(), integer.weight_zero_point.numpy().astype(np.int8)]
        levels = (x + zero_points[0]).to(torch.uint8)
        if not scale.dim():
            sums = run(f"{operator}Integer", levels, [w[0], zero_points[0], w[2]], **attributes)
            bias = integer.bias_levels.view(-1, *(1,) * (len(shape) - 2))
            assert torch.equal(sums + bias, integer.sums(x).int())
        constants = [np.float32(source.scale), zero_points[0], *w]
        constants += [np.float32(result.scale), zero_points[1]]
        if layer.bias is not None:
            constants.append(integer.bias_levels.numpy())
        y = run(f"QLinear{operator}", levels, constants, **attributes)
        assert len(y.unique()) > 100
        assert torch.equal(y, (integer(x) + zero_points[1]).to(torch.uint8))

    return with_onnxruntime


@cache
def network() -> QuantModel:
    """Layers whose sums are computed in one piece or in several, and a depthwise layer."""
    torch.manual_seed(0)
    model = nn.Sequential(
        *(nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU()),
        *(nn.Conv2d(16, 16, 3, 2, groups=16), nn.BatchNorm2d(16), nn.ReLU6(), nn.MaxPool2d(2)),
        *(nn.Conv2d(16, 512, 1), nn.BatchNorm2d(512), nn.Hardtanh(-0.5, 1.0)),
        *(nn.Conv2d(512, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8, 32), nn.ReLU()),
        nn.Linear(32, 10, bias=False),
    )
    scheme = QuantScheme.for_target("onnxruntime", 8)
    qmodel = ghnq_quant.quantize(model, scheme=scheme, backend="reference")
    return ghnq_quant.calibrate(qmodel, [torch.randn(32, 3, 16, 16)]).eval()


def test_a_network_is_exported_for_any_batch_size() -> None:
    deployed, x = ghnq_quant.convert(network()), torch.randn(7, 3, 16, 16)
    batch = torch.export.Dim("batch", min=1)
    program = torch.export.export(deployed, (x[:4],), dynamic_shapes=({0: batch},))
    assert torch.equal(program.module()(x), deployed(x))
    assert {t.dtype for n, t in program.state_dict.items() if n.endswith(".weight")} == {torch.int8}


def test_a_network_is_its_file_in_onnxruntime_to_the_bit(tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    qmodel, x = network(), torch.randn(32, 3, 16, 16)
    path, y = tmp_path / "m.onnx", ghnq_quant.convert(qmodel)(x)
    ghnq_quant.export_onnx(qmodel, path, x[:1], target="onnxruntime")
    assert torch.equal(torch.from_numpy(session(path).run(None, {"input": x.numpy()})[0]), y)
