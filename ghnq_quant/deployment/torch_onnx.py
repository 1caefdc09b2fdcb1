"""torch.onnx as both exporters call it."""

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
    """Export a module in eval mode whose one input is a batch of images of any number.

    Raises:
        ConversionError: torch.onnx cannot export it; torch's own error is the cause.
    """
    program = exporting(torch.onnx.export, module, example_input, opset_version=opset)
    model: onnx.ModelProto = program.model_proto
    return model


@torch.no_grad()
def exporting(
    function: Callable[..., Any], module: nn.Module, example_input: Tensor, **settings: Any
) -> Any:
    """What ``function`` returns, called with the arguments of ``torch.onnx.export``."""
    batch = torch.cat([example_input] * 2)[:2].cpu()  # torch.export takes a 1 for a constant
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
    """Without the exporter's progress and warnings, which are about its own insides."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)
