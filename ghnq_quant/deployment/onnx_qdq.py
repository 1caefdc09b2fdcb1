"""ONNX with standard operators: QuantizeLinear and DequantizeLinear around float ones.

torch.onnx exports the folded model with a marker in place of each quantizer and behind each weight;
here the markers become integers.
"""

from __future__ import annotations


import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, fx, nn

from ghnq_quant.deployment.layers import FixedQuantizer, FoldedConv2d, FoldedLayer, FoldedLinear
from ghnq_quant.deployment.torch_onnx import to_onnx
from ghnq_quant.quantization.affine import QuantParams

_DOMAIN = "ghnq_quant"
#: The first opset whose QuantizeLinear and DequantizeLinear have 4-bit types, and the one that is
#: exported otherwise.
_OPSET_4_BITS, _OPSET = 21, 18


def export_qdq(folded: fx.GraphModule, example_input: Tensor) -> onnx.ModelProto:
    """The folded model as ONNX nodes QuantizeLinear, DequantizeLinear and float operators.

    Weights are unsigned integers with a zero point: UINT4 up to 4 bits, else UINT8. Activations of
    4 and 8 bits have these types too; those of other widths are UINT8 clipped to the levels that
    there are.

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
            marked = _MarkedConv2d if isinstance(module, FoldedConv2d) else _MarkedLinear
            folded.set_submodule(name, marked(name, module))
    bits = [*quantizers.values(), *(m.weight_quant for m in layers.values() if m.weight_quant)]
    four = any(q.bits <= 4 for q in bits)
    model = to_onnx(folded, example_input, _OPSET_4_BITS if four else _OPSET)
    graph = model.graph
    initializers = {i.name: i for i in graph.initializer}
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        if node.domain != _DOMAIN:
            nodes.append(node)
            continue
        name = helper.get_node_attr_value(node, "name").decode()
        if node.op_type == "Weight":
            graph.initializer.remove(initializers[node.input[0]])
            new, constants = _weight(node, name, layers[name])
        else:
            new, constants = _activation(node, name, quantizers[name])
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


def _weight(node: onnx.NodeProto, name: str, layer: FoldedLayer) -> _Rewritten:
    assert layer.weight_quant is not None
    qparams = layer.weight_quant.qparams
    dtype = TensorProto.UINT4 if qparams.bits <= 4 else TensorProto.UINT8
    levels = _integers(f"{name}.weight_levels", layer.weight_levels(), dtype)
    scale, zero_point = _constants(f"{name}.weight", qparams, dtype)
    inputs = [levels.name, scale.name, zero_point.name]
    dequantize = helper.make_node(
        "DequantizeLinear", inputs, list(node.output), f"{name}.weight.dequantize"
    )
    return [dequantize], [levels, scale, zero_point]


def _activation(node: onnx.NodeProto, name: str, qparams: QuantParams) -> _Rewritten:
    dtype = TensorProto.UINT4 if qparams.bits == 4 else TensorProto.UINT8
    scale, zero_point = constants = _constants(name, qparams, dtype)
    parameters = [scale.name, zero_point.name]
    quantized = f"{name}.quantized"
    nodes = [
        helper.make_node(
            "QuantizeLinear", [node.input[0], *parameters], [quantized], f"{name}.quantize"
        )
    ]
    if qparams.bits not in (4, 8):
        lowest = _integers(f"{name}.lowest", torch.tensor(0), dtype)
        highest = _integers(f"{name}.highest", torch.tensor(2**qparams.bits - 1), dtype)
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
    array = values.numpy().astype(np.uint8)
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


class _MarkedConv2d(nn.Module):
    def __init__(self, name: str, conv: FoldedConv2d) -> None:
        super().__init__()
        self.name = name
        self.layer = conv

    def forward(self, x: Tensor) -> Tensor:
        weight = _mark("Weight", self.layer.weight, self.name)
        return self.layer._conv_forward(x, weight, self.layer.bias)


class _MarkedLinear(nn.Module):
    def __init__(self, name: str, linear: FoldedLinear) -> None:
        super().__init__()
        self.name = name
        self.layer = linear

    def forward(self, x: Tensor) -> Tensor:
        weight = _mark("Weight", self.layer.weight, self.name)
        return nn.functional.linear(x, weight, self.layer.bias)
