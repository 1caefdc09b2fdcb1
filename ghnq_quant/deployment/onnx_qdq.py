"""ONNX with standard operators: QuantizeLinear and DequantizeLinear around float ones.

torch.onnx exports the folded model with a marker in place of each quantizer and after each weight,
and this module replaces the markers with integers.
"""

from __future__ import annotations

import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, fx, nn

from ghnq_quant.deployment.check import check_graph
from ghnq_quant.deployment.layers import (
    FixedQuantizer,
    FoldedConv2d,
    FoldedLayer,
    FoldedLinear,
)
from ghnq_quant.deployment.moves import (
    absorb_clamps,
    keep_rounding,
    pad_input_channels,
    quantize_joined,
)
from ghnq_quant.deployment.onnx_bias import fine_bias, quantize_biases
from ghnq_quant.deployment.onnx_weights import (
    constants_of,
    has_four_bits,
    integers,
    weight_constants,
)
from ghnq_quant.deployment.torch_onnx import to_onnx
from ghnq_quant.quantization.targets import PLAIN, Target

_DOMAIN = "ghnq_quant"
#: The first opset with 4-bit types for QuantizeLinear and DequantizeLinear, and the opset for all
#: other files.
_OPSET_4_BITS, _OPSET = 21, 18

_Rewritten = tuple[list[onnx.NodeProto], list[TensorProto]]


def export_qdq(
    folded: fx.GraphModule, example_input: Tensor, target: Target = PLAIN
) -> onnx.ModelProto:
    """Export the folded model as QuantizeLinear, DequantizeLinear and float operators.

    Weights of up to 4 bits are 4-bit integers if the target has them, all others 8-bit integers;
    per channel there is one scale per output channel (axis 0). Activations are 8-bit integers,
    clipped to their levels, because onnxruntime fails on a UINT4 activation after ReLU6. A clip
    replaces the ReLU or ReLU6 next to it, and is left out if the integers' own range has the same
    effect.

    Args:
        folded: the folded model, on CPU; its layers are replaced.
        example_input: (N, C, H, W); the exported model accepts any N.
        target: the runtime whose types and rules to follow.

    Raises:
        ConversionError: the target does not support the integers.
    """
    if target.joins_one_scale:
        quantize_joined(folded, share=True)
    absorb_clamps(folded)
    if target.drops_rounding:
        keep_rounding(folded)
    pad_input_channels(folded, target.channel_multiple)
    layers: dict[str, FoldedLayer] = {}
    quantizers: dict[str, FixedQuantizer] = {}
    for name, module in list(folded.named_modules()):
        if isinstance(module, FixedQuantizer):
            quantizers[name] = module
            folded.set_submodule(name, _MarkedQuantizer(name))
        elif isinstance(module, (FoldedConv2d, FoldedLinear)) and module.weight_quant is not None:
            layers[name] = module
            marked = _MarkedLayer(name, module, has_four_bits(module, target))
            folded.set_submodule(name, marked)
    four_bits = any(has_four_bits(layer, target) for layer in layers.values())
    model = to_onnx(folded, example_input, _OPSET_4_BITS if four_bits else _OPSET)
    _replace_markers(model, layers, quantizers, target)
    if target.bias_types[0] == "INT32":
        quantize_biases(model.graph)
    onnx.checker.check_model(model)
    if target is not PLAIN:
        check_graph(model.graph, target)
    return model


def _replace_markers(
    model: onnx.ModelProto,
    layers: dict[str, FoldedLayer],
    quantizers: dict[str, FixedQuantizer],
    target: Target,
) -> None:
    graph = model.graph
    initializers = {i.name: i for i in graph.initializer}
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        if node.domain != _DOMAIN:
            nodes.append(node)
            continue
        name = helper.get_node_attr_value(node, "name").decode()
        if node.op_type == "Quantizer":
            new, constants = _activation(node, name, quantizers[name], target)
        else:
            graph.initializer.remove(initializers[node.input[0]])
            if node.op_type == "Weight":
                constants = weight_constants(name, layers[name], target)
            else:
                constants = fine_bias(name, layers[name])
            new = [_dequantize(node, constants, layers[name])]
        nodes += new
        graph.initializer.extend(constants)
    del graph.node[:]
    graph.node.extend(nodes)
    opsets = [o for o in model.opset_import if o.domain != _DOMAIN]
    del model.opset_import[:]
    model.opset_import.extend(opsets)


def _dequantize(
    node: onnx.NodeProto, constants: list[TensorProto], layer: FoldedLayer
) -> onnx.NodeProto:
    inputs = [constant.name for constant in constants]
    name = inputs[0].removesuffix("_levels")
    new = helper.make_node("DequantizeLinear", inputs, list(node.output), f"{name}.dequantize")
    assert layer.weight_quant is not None
    if node.op_type == "Weight" and layer.weight_quant.quantizer.per_channel:
        new.attribute.append(helper.make_attribute("axis", 0))
    return new


def _activation(
    node: onnx.NodeProto, name: str, quantizer: FixedQuantizer, target: Target
) -> _Rewritten:
    signed = quantizer.quantizer.signed
    dtype = TensorProto.INT8 if signed else TensorProto.UINT8
    limits = (-128, 127) if signed else (0, 255)
    parameters = constants_of(name, quantizer.qparams, dtype)
    x, output = node.input[0], node.output[0]
    clipped: list[onnx.NodeProto] = []
    bounds: list[TensorProto] = []
    if quantizer.levels != limits and not target.integer_clip:
        clipped, bounds = _float_clip(name, x, quantizer, limits)
        x = f"{name}.clipped"
    names = [p.name for p in parameters]
    q = f"{name}.quantized"
    nodes = [*clipped, helper.make_node("QuantizeLinear", [x, *names], [q], f"{name}.quantize")]
    if quantizer.levels != limits and target.integer_clip:
        bounds = [
            integers(f"{name}.{end}", torch.tensor(level), dtype)
            for end, level in zip(("lowest", "highest"), quantizer.levels, strict=True)
        ]
        inputs, q = [q, *(b.name for b in bounds)], f"{name}.clipped"
        nodes.append(helper.make_node("Clip", inputs, [q], f"{name}.clip"))
    nodes.append(helper.make_node("DequantizeLinear", [q, *names], [output], f"{name}.dequantize"))
    return nodes, [*parameters, *bounds]


def _float_clip(
    name: str, x: str, quantizer: FixedQuantizer, limits: tuple[int, int]
) -> _Rewritten:
    """For runtimes that expect a DequantizeLinear right after each QuantizeLinear: a Clip to the
    values of the lowest and the highest level, or a ReLU if that has the same effect."""
    low, high = quantizer.levels
    zero_point = int(quantizer.zero_point)
    if low == zero_point and high == limits[1]:
        return [helper.make_node("Relu", [x], [f"{name}.clipped"], f"{name}.clip")], []
    scale = quantizer.scale.float().numpy()
    bounds = [
        numpy_helper.from_array((level - zero_point) * scale, f"{name}.{end}")
        for end, level in (("lowest", low), ("highest", high))
    ]
    inputs = [x, *(b.name for b in bounds)]
    return [helper.make_node("Clip", inputs, [f"{name}.clipped"], f"{name}.clip")], bounds


def _mark(kind: str, x: Tensor, name: str) -> Tensor:
    return torch.onnx.ops.symbolic(
        f"{_DOMAIN}::{kind}", (x,), {"name": name}, dtype=x.dtype, shape=x.shape, version=1
    )


class _MarkedQuantizer(nn.Module):
    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name

    def forward(self, x: Tensor) -> Tensor:
        return _mark("Quantizer", x, self.name)


class _MarkedLayer(nn.Module):
    def __init__(self, name: str, layer: FoldedLayer, mark_bias: bool) -> None:
        super().__init__()
        self.name = name
        self.layer = layer
        self.mark_bias = mark_bias

    def forward(self, x: Tensor) -> Tensor:
        weight, bias = _mark("Weight", self.layer.weight, self.name), self.layer.bias
        if bias is not None and self.mark_bias:
            bias = _mark("Bias", bias, self.name)
        if isinstance(self.layer, FoldedConv2d):
            return self.layer._conv_forward(x, weight, bias)
        return nn.functional.linear(x, weight, bias)
