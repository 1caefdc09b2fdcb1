"""ONNX with standard operators: QuantizeLinear and DequantizeLinear around float ones.

torch.onnx exports the folded model with a marker in place of each quantizer and behind each weight;
here the markers become integers.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, fx, nn

from ghnq_quant.deployment.layers import (
    FixedQuantizer,
    FoldedConv2d,
    FoldedLayer,
    FoldedLinear,
    stretch,
)
from ghnq_quant.deployment.torch_onnx import to_onnx
from ghnq_quant.quantization.affine import QuantParams
from ghnq_quant.quantization.quantizer import Quantizer

_DOMAIN = "ghnq_quant"
#: The first opset whose QuantizeLinear and DequantizeLinear have 4-bit types, and the one that is
#: exported otherwise.
_OPSET_4_BITS, _OPSET = 21, 18


def export_qdq(folded: fx.GraphModule, example_input: Tensor) -> onnx.ModelProto:
    """The folded model as ONNX nodes QuantizeLinear, DequantizeLinear and float operators.

    Weights are integers, of 4 bits up to 4 bits, else of 8: unsigned with a zero point, or signed
    where they are symmetric; per channel with a scale for each output channel (axis 0). Activations
    have 8 bits, clipped to the levels that there are: onnxruntime stops at a UINT4 activation
    behind a ReLU6.

    Args:
        folded: on CPU; its layers are replaced.
        example_input: (N, C, H, W); N of the exported model is free.
    """
    layers: dict[str, FoldedLayer] = {}
    quantizers: dict[str, QuantParams] = {}
    for name, module in list(folded.named_modules()):
        if isinstance(module, FixedQuantizer):
            quantizers[name] = module.qparams
            folded.set_submodule(name, _MarkedQuantizer(name))
        elif isinstance(module, (FoldedConv2d, FoldedLinear)) and module.weight_quant is not None:
            layers[name] = module
            folded.set_submodule(name, _MarkedLayer(name, module))
    four_bits = any(_has_four_bits(layer) for layer in layers.values())
    model = to_onnx(folded, example_input, _OPSET_4_BITS if four_bits else _OPSET)
    graph = model.graph
    initializers = {i.name: i for i in graph.initializer}
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        if node.domain != _DOMAIN:
            nodes.append(node)
            continue
        name = helper.get_node_attr_value(node, "name").decode()
        if node.op_type == "Quantizer":
            new, constants = _activation(node, name, quantizers[name])
        else:
            graph.initializer.remove(initializers[node.input[0]])
            constant = _weight if node.op_type == "Weight" else _bias
            new, constants = constant(node, name, layers[name])
        nodes += new
        graph.initializer.extend(constants)
    del graph.node[:]
    graph.node.extend(nodes)
    opsets = [o for o in model.opset_import if o.domain != _DOMAIN]
    del model.opset_import[:]
    model.opset_import.extend(opsets)
    onnx.checker.check_model(model)
    return model


_Rewritten = tuple[list[onnx.NodeProto], list[TensorProto]]


def _has_four_bits(layer: FoldedLayer) -> bool:
    return layer.weight_quant is not None and layer.weight_quant.bits <= 4


def _weight(node: onnx.NodeProto, name: str, layer: FoldedLayer) -> _Rewritten:
    assert layer.weight_quant is not None
    q, levels = layer.weight_quant.qparams, layer.weight_levels()
    dtype: int = TensorProto.INT4 if q.quantizer.signed else TensorProto.UINT4
    if not _has_four_bits(layer):
        factor, dtype = stretch(q.quantizer), _eight_bits(q.quantizer)
        levels = levels * factor
        q = QuantParams(q.scale / factor, q.zero_point * factor, replace(q.quantizer, bits=8))
    constants = [
        _integers(f"{name}.weight_levels", levels, dtype),
        *_constants(f"{name}.weight", q, dtype),
    ]
    dequantize = _dequantize(node, f"{name}.weight", constants)
    if q.quantizer.per_channel:
        dequantize.attribute.append(helper.make_attribute("axis", 0))
    return [dequantize], constants


def _eight_bits(quantizer: Quantizer) -> int:
    return TensorProto.INT8 if quantizer.signed else TensorProto.UINT8


def _bias(node: onnx.NodeProto, name: str, layer: FoldedLayer) -> _Rewritten:
    """A float bias as integers of 31 bits. onnxruntime would round it to steps of input scale ·
    weight scale, too coarse for weights of few bits, were it not quantized already."""
    assert layer.bias is not None
    bias = layer.bias.detach().double().numpy()
    scale = np.float32(max(np.abs(bias).max() / 2**30, np.finfo(np.float32).tiny))
    constants = [
        numpy_helper.from_array(np.rint(bias / scale).astype(np.int32), f"{name}.bias_levels"),
        numpy_helper.from_array(np.array(scale), f"{name}.bias.scale"),
    ]
    return [_dequantize(node, f"{name}.bias", constants)], constants


def _dequantize(node: onnx.NodeProto, name: str, constants: list[TensorProto]) -> onnx.NodeProto:
    inputs = [constant.name for constant in constants]
    return helper.make_node("DequantizeLinear", inputs, list(node.output), f"{name}.dequantize")


def _activation(node: onnx.NodeProto, name: str, qparams: QuantParams) -> _Rewritten:
    dtype = _eight_bits(qparams.quantizer)
    scale, zero_point = constants = _constants(name, qparams, dtype)
    parameters = [scale.name, zero_point.name]
    quantized = f"{name}.quantized"
    nodes = [
        helper.make_node(
            "QuantizeLinear", [node.input[0], *parameters], [quantized], f"{name}.quantize"
        )
    ]
    if qparams.quantizer.levels != (0, 255):
        lowest, highest = (
            _integers(f"{name}.{end}", torch.tensor(level), dtype)
            for end, level in zip(("lowest", "highest"), qparams.quantizer.levels, strict=True)
        )
        clipped = f"{name}.clipped"
        nodes.append(
            helper.make_node(
                "Clip", [quantized, lowest.name, highest.name], [clipped], f"{name}.clip"
            )
        )
        quantized, constants = clipped, [*constants, lowest, highest]
    nodes.append(
        helper.make_node(
            "DequantizeLinear", [quantized, *parameters], list(node.output), f"{name}.dequantize"
        )
    )
    return nodes, constants


def _constants(name: str, qparams: QuantParams, dtype: int) -> list[TensorProto]:
    scale = numpy_helper.from_array(qparams.scale.float().numpy(), f"{name}.scale")
    return [scale, _integers(f"{name}.zero_point", qparams.zero_point, dtype)]


def _integers(name: str, values: Tensor, dtype: int) -> TensorProto:
    signed = dtype in (TensorProto.INT4, TensorProto.INT8)
    array = values.numpy().astype(np.int8 if signed else np.uint8)
    return helper.make_tensor(name, dtype, array.shape, array.reshape(-1))


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
    def __init__(self, name: str, layer: FoldedLayer) -> None:
        super().__init__()
        self.name = name
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        weight, bias = _mark("Weight", self.layer.weight, self.name), self.layer.bias
        if bias is not None and _has_four_bits(self.layer):
            bias = _mark("Bias", bias, self.name)
        if isinstance(self.layer, FoldedConv2d):
            return self.layer._conv_forward(x, weight, bias)
        return nn.functional.linear(x, weight, bias)
