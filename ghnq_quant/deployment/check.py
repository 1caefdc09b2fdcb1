"""Find the nodes of an ONNX file that a runtime refuses, or runs in float."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from onnx import TensorProto, numpy_helper

from ghnq_quant.deployment.onnx_bias import KEEP_LEVELS
from ghnq_quant.errors import ConversionError, warn
from ghnq_quant.quantization.targets import Target, find_target

_LAYERS = ("Conv", "Gemm", "MatMul")


def check_export(path: str | Path, target: str) -> list[str]:
    """List the nodes of an ONNX file that a runtime refuses, or would run in float.

    Args:
        path: the file.
        target: the runtime, as in :meth:`QuantScheme.for_target`.

    Returns:
        one line per node, refused nodes first; empty if there are none.

    Raises:
        SchemeError: an unknown target.
        ConversionError: the target does not read ONNX files, or the file is not one.
    """
    rules = find_target(target)
    if rules.format == "pt2e":
        raise ConversionError(f"{target} does not read ONNX files")
    try:
        graph = onnx.load(path).graph
    except (OSError, DecodeError) as error:
        raise ConversionError(f"{path} cannot be read as an ONNX file: {error}") from error
    return [*_refusals(graph, rules), *_float_layers(graph)]


def check_graph(graph: onnx.GraphProto, target: Target) -> None:
    """Raise ConversionError if the target does not support a node, and warn of layers that it
    would run in float."""
    refused = _refusals(graph, target)
    if refused:
        raise ConversionError(
            f"{target.name} does not support {len(refused)} nodes; the first is {refused[0]}: use "
            f"operations that it supports, and QuantScheme.for_target({target.name!r})"
        )
    in_float = _float_layers(graph)
    if in_float:
        warn(f"{len(in_float)} layers run in float in {target.name}; the first is {in_float[0]}")


def _refusals(graph: onnx.GraphProto, target: Target) -> list[str]:
    checker = _Checker(graph, target)
    check = checker.quant if target.format == "qonnx" else checker.qdq
    return [_line(node, reason) for node in graph.node for reason in check(node)]


def _float_layers(graph: onnx.GraphProto) -> list[str]:
    """Convolutions and linear layers whose input or weight is not quantized."""
    sources = {output: node for node in graph.node for output in node.output}
    found = []
    for node in graph.node:
        for what, name in zip(("input", "weight"), node.input[:2], strict=False):
            if node.op_type in _LAYERS and not _is_quantized(name, sources):
                found.append(_line(node, f"runs in float: its {what} is not quantized"))
    return found


def _is_quantized(name: str, sources: dict[str, onnx.NodeProto]) -> bool:
    node = sources.get(name)
    while node is not None and node.op_type in KEEP_LEVELS:
        node = sources.get(node.input[0])
    return node is not None and node.op_type in ("DequantizeLinear", "Quant")


def _line(node: onnx.NodeProto, reason: str) -> str:
    return f"{node.op_type} {node.name or node.output[0]!r}: {reason}"


class _Checker:
    """A target's rules for one node, given the graph around it."""

    def __init__(self, graph: onnx.GraphProto, target: Target) -> None:
        self.target = target
        self.constants = {i.name: i for i in graph.initializer}
        self.sources = {output: node for node in graph.node for output in node.output}
        self.readers: dict[str, list[onnx.NodeProto]] = {}
        for node in graph.node:
            for name in node.input:
                self.readers.setdefault(name, []).append(node)

    def qdq(self, node: onnx.NodeProto) -> Iterator[str]:
        target = self.target
        if node.op_type == "DequantizeLinear" and node.input[0] in self.constants:
            kind = TensorProto.DataType.Name(self.constants[node.input[0]].data_type)
            known = (*target.weight_types, *target.bias_types)
            if kind not in known:
                yield f"{kind} constant; {target.name} takes {', '.join(known)}"
            if not target.weight_zero_points and self._has_zero_point(node):
                yield f"zero point; {target.name} needs weights without one"
        if node.op_type == "QuantizeLinear":
            zero_point = self.constants.get(node.input[2]) if len(node.input) > 2 else None
            kind = (
                "UINT8" if zero_point is None else TensorProto.DataType.Name(zero_point.data_type)
            )
            if kind not in target.activation_types:
                yield f"{kind} activation; {target.name} takes {', '.join(target.activation_types)}"
            if not target.activation_zero_points and self._has_zero_point(node):
                yield f"zero point; {target.name} needs activations without one"
            allowed = {"DequantizeLinear", *(["Clip"] if target.integer_clip else [])}
            behind = {n.op_type for n in self.readers.get(node.output[0], [])} - allowed
            if behind:
                yield f"{', '.join(sorted(behind))} on integers; {target.name} expects a DequantizeLinear"
        if node.op_type == "Concat" and target.joins_one_scale:
            scales = {self._scale(name) for name in [*node.input, *node.output]}
            if len(scales) > 1:
                yield f"{len(scales)} scales; {target.name} needs one for inputs and output"
        if "FLOAT" not in target.bias_types and self._has_float_bias(node):
            yield f"float bias; {target.name} needs an int32 one"

    def quant(self, node: onnx.NodeProto) -> Iterator[str]:
        name = self.target.name
        if node.op_type in ("Clip", "ReduceMean"):
            yield f"{name} has only ReLU and GlobalAveragePool instead"
        if node.op_type == "GlobalAveragePool" and not self.target.global_pooling:
            yield (
                f"{name} reads it as channels-last, but QONNX's transformations leave it "
                "channels-first; use max pooling, or flatten the map"
            )
        if node.op_type != "Quant":
            return
        if self._has_zero_point(node):
            yield f"zero point; {name} supports only 0"
        scale = numpy_helper.to_array(self.constants[node.input[1]])
        if self.target.weights.power_of_two and (np.frexp(scale)[0] != 0.5).any():
            yield f"scale is not a power of two, which {name} needs"
        source = self.sources.get(node.input[0])
        signed = next(a.i for a in node.attribute if a.name == "signed")
        behind_relu = source is not None and source.op_type == "Relu"
        if node.input[0] not in self.constants and bool(signed) == behind_relu:
            yield f"{name} needs unsigned levels after ReLU, and signed ones everywhere else"

    def _has_float_bias(self, node: onnx.NodeProto) -> bool:
        return node.op_type in ("Conv", "Gemm") and any(
            n in self.constants for n in node.input[2:3]
        )

    def _scale(self, name: str) -> float | None:
        """The scale of a tensor that was dequantized or is quantized next; None for others."""
        node = self.sources.get(name)
        while node is not None and node.op_type in KEEP_LEVELS:
            node = self.sources.get(node.input[0])
        if node is not None and node.op_type == "Concat":
            node = next(
                (n for n in self.readers.get(name, []) if n.op_type == "QuantizeLinear"), None
            )
        if node is None or node.op_type not in ("DequantizeLinear", "QuantizeLinear"):
            return None
        return float(numpy_helper.to_array(self.constants[node.input[1]]))

    def _has_zero_point(self, node: onnx.NodeProto) -> bool:
        constant = self.constants.get(node.input[2]) if len(node.input) > 2 else None
        return constant is not None and bool(numpy_helper.to_array(constant).any())
