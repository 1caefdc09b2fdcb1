"""What in an ONNX file a runtime refuses, or computes in float."""

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
    """Name the nodes of an ONNX file that keep a runtime from executing it on integers.

    Args:
        path: of the file.
        target: as in :meth:`QuantScheme.for_target`.

    Returns:
        a line for each node, the refused ones first; empty where all is well.

    Raises:
        SchemeError: an unknown target.
        ConversionError: the target reads no ONNX file, or this is none.
    """
    rules = find_target(target)
    if rules.format == "pt2e":
        raise ConversionError(f"{target} reads no ONNX file")
    try:
        graph = onnx.load(path).graph
    except (OSError, DecodeError) as error:
        raise ConversionError(f"{path} cannot be read as an ONNX file: {error}") from error
    return [*_refusals(graph, rules), *_float_layers(graph)]


def check_graph(graph: onnx.GraphProto, target: Target) -> None:
    """Raise ConversionError for a node that the target does not take, and warn of layers that it
    runs in float."""
    refused = _refusals(graph, target)
    if refused:
        raise ConversionError(
            f"{target.name} does not take {len(refused)} nodes; the first is {refused[0]}: make the "
            f"model of operations that it takes, with QuantScheme.for_target({target.name!r})"
        )
    in_float = _float_layers(graph)
    if in_float:
        warn(f"{len(in_float)} layers run in float in {target.name}; the first is {in_float[0]}")


def _refusals(graph: onnx.GraphProto, target: Target) -> list[str]:
    checker = _Checker(graph, target)
    check = checker.quant if target.format == "qonnx" else checker.qdq
    return [_line(node, reason) for node in graph.node for reason in check(node)]


def _float_layers(graph: onnx.GraphProto) -> list[str]:
    """The convolutions and linear layers that read something other than integers."""
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
        self.users: dict[str, list[str]] = {}
        for node in graph.node:
            for name in node.input:
                self.users.setdefault(name, []).append(node.op_type)

    def qdq(self, node: onnx.NodeProto) -> Iterator[str]:
        target = self.target
        if node.op_type == "DequantizeLinear" and node.input[0] in self.constants:
            kind = TensorProto.DataType.Name(self.constants[node.input[0]].data_type)
            known = (*target.weight_types, *target.bias_types)
            if kind not in known:
                yield f"{kind} constant; {target.name} takes {', '.join(known)}"
            if not target.weight_zero_points and self._has_zero_point(node):
                yield f"zero point; {target.name} takes weights without one"
        if node.op_type == "QuantizeLinear":
            zero_point = self.constants.get(node.input[2]) if len(node.input) > 2 else None
            kind = (
                "UINT8" if zero_point is None else TensorProto.DataType.Name(zero_point.data_type)
            )
            if kind not in target.activation_types:
                yield f"{kind} activation; {target.name} takes {', '.join(target.activation_types)}"
            if not target.activation_zero_points and self._has_zero_point(node):
                yield f"zero point; {target.name} takes activations without one"
            allowed = {"DequantizeLinear", *(["Clip"] if target.integer_clip else [])}
            behind = set(self.users.get(node.output[0], [])) - allowed
            if behind:
                yield f"{', '.join(sorted(behind))} on integers; {target.name} looks for a DequantizeLinear"
        if "FLOAT" not in target.bias_types and self._has_float_bias(node):
            yield f"float bias; {target.name} takes int32 ones"

    def quant(self, node: onnx.NodeProto) -> Iterator[str]:
        name = self.target.name
        if node.op_type in ("Clip", "ReduceMean"):
            yield f"{name} takes ReLU and GlobalAveragePool in its place"
        if node.op_type != "Quant":
            return
        if self._has_zero_point(node):
            yield f"zero point; {name} takes 0 alone"
        scale = numpy_helper.to_array(self.constants[node.input[1]])
        if self.target.weights.power_of_two and (np.frexp(scale)[0] != 0.5).any():
            yield f"a scale that is no power of two, which {name} needs"
        source = self.sources.get(node.input[0])
        signed = next(a.i for a in node.attribute if a.name == "signed")
        behind_relu = source is not None and source.op_type == "Relu"
        if node.input[0] not in self.constants and bool(signed) == behind_relu:
            yield f"{name} takes unsigned levels behind ReLU alone, and signed ones elsewhere"

    def _has_float_bias(self, node: onnx.NodeProto) -> bool:
        return node.op_type in ("Conv", "Gemm") and any(
            n in self.constants for n in node.input[2:3]
        )

    def _has_zero_point(self, node: onnx.NodeProto) -> bool:
        constant = self.constants.get(node.input[2]) if len(node.input) > 2 else None
        return constant is not None and bool(numpy_helper.to_array(constant).any())
