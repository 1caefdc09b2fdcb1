"""Calls torch.onnx, for both exporters."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import onnx
import torch
from torch import Tensor, nn

from ghnq_quant.errors import ConversionError


def to_onnx(module: nn.Module, example_input: Tensor, opset: int) -> onnx.ModelProto:
    """Export a module in eval mode whose one input is a batch of any number of images.

    Raises:
        ConversionError: torch.onnx cannot export it; torch's own error is the cause.
    """
    program = exporting(torch.onnx.export, module, example_input, opset_version=opset)
    model: onnx.ModelProto = program.model_proto
    name_global_pooling(model.graph)
    return model


def name_global_pooling(graph: onnx.GraphProto) -> None:
    """Write means over height and width that keep both dimensions as GlobalAveragePool, for which
    runtimes have integer kernels."""
    constants = {i.name: i for i in graph.initializer}
    constants |= {n.output[0]: n.attribute[0].t for n in graph.node if n.op_type == "Constant"}
    ranks = {v.name: len(v.type.tensor_type.shape.dim) for v in graph.value_info}
    for node in graph.node:
        if node.op_type != "ReduceMean" or len(node.input) < 2 or node.input[1] not in constants:
            continue
        keep = next((a.i for a in node.attribute if a.name == "keepdims"), 1)
        axes = {int(a) % 4 for a in onnx.numpy_helper.to_array(constants[node.input[1]])}
        if keep and axes == {2, 3} and ranks.get(node.input[0]) == 4:
            node.op_type = "GlobalAveragePool"
            del node.input[1:], node.attribute[:]


@torch.no_grad()
def exporting(
    function: Callable[..., Any], module: nn.Module, example_input: Tensor, **settings: Any
) -> Any:
    """Call ``function`` with the arguments of ``torch.onnx.export``."""
    batch = torch.cat([example_input] * 2)[:2].cpu()  # torch.export treats a 1 as a constant
    try:
        with _quiet():
            return function(
                module,
                (batch,),
                input_names=["input"],
                output_names=["output"],
                dynamic_shapes=({0: torch.export.Dim("batch")},),
                dynamo=True,
                verbose=False,
                **settings,
            )
    except Exception as error:
        raise ConversionError(f"torch.onnx cannot export the model: {error}") from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Hide the exporter's progress and warnings, which are about its own internals."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)
