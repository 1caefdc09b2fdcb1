"""Biases as integers in an ONNX file."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from ghnq_quant.deployment.layers import FoldedLayer
from ghnq_quant.quantization.integer_bias import LARGEST_BIAS

#: Operators that do not change the levels of a quantized tensor.
KEEP_LEVELS = {"Flatten", "MaxPool", "Reshape", "Squeeze", "Transpose", "Unsqueeze"}


def fine_bias(name: str, layer: FoldedLayer) -> list[TensorProto]:
    """A bias as 31-bit integers and their scale. Next to 4-bit weights onnxruntime would round a
    float bias to steps of input scale · weight scale, although it convolves in float."""
    assert layer.bias is not None
    bias = layer.bias.detach().double().numpy()
    scale = np.float32(max(np.abs(bias).max() / 2**30, np.finfo(np.float32).tiny))
    return [
        numpy_helper.from_array(np.rint(bias / scale).astype(np.int32), f"{name}.bias_levels"),
        numpy_helper.from_array(np.array(scale), f"{name}.bias.scale"),
    ]


def quantize_biases(graph: onnx.GraphProto) -> None:
    """Round the bias of each layer that reads integers to steps of input scale · weight scale, as
    its kernel does (Jacob et al. 2018, section 2.4)."""
    values = {i.name: i for i in graph.initializer}
    sources = {output: node for node in graph.node for output in node.output}
    nodes = []
    for node in graph.node:
        bias = node.input[2] if node.op_type in ("Conv", "Gemm") and len(node.input) > 2 else ""
        scales = [
            scale for x in node.input[:2] if (scale := _scale(x, sources, values)) is not None
        ]
        if bias in values and len(scales) == 2:
            steps = np.multiply(scales[0], scales[1]).astype(np.float32)
            levels = np.rint(numpy_helper.to_array(values[bias]) / steps.astype(np.float64))
            if np.abs(levels).max() < LARGEST_BIAS:
                names = [f"{bias}_levels", f"{bias}.scale"]
                constants = (levels.astype(np.int32), steps)
                graph.initializer.extend(map(numpy_helper.from_array, constants, names))
                graph.initializer.remove(values[bias])
                dequantize = helper.make_node(
                    "DequantizeLinear", names, [bias], f"{bias}.dequantize", axis=0
                )
                nodes.append(dequantize)
        nodes.append(node)
    del graph.node[:]
    graph.node.extend(nodes)


def _scale(
    name: str, sources: dict[str, onnx.NodeProto], values: dict[str, TensorProto]
) -> np.ndarray | None:
    """The scale of a tensor dequantized from integers; None for others."""
    node = sources.get(name)
    while node is not None and node.op_type in KEEP_LEVELS:
        node = sources.get(node.input[0])
    if node is None or node.op_type != "DequantizeLinear":
        return None
    return numpy_helper.to_array(values[node.input[1]])
