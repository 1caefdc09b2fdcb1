"""Shapes of every value in a traced graph, found with fake tensors: no kernel runs."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from ghnq_quant.capture.twin import twin
from ghnq_quant.errors import CaptureError


class _ShapeInterpreter(fx.Interpreter):
    def __init__(self, root: nn.Module, graph: fx.Graph) -> None:
        super().__init__(root, garbage_collect_values=True, graph=graph)
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.current = ""

    def run_node(self, n: fx.Node) -> object:
        self.current = f"{n.name} ({n.target})"
        value = super().run_node(n)
        if isinstance(value, Tensor):
            self.shapes[n.name] = tuple(value.shape)
        return value


def propagate_shapes(
    root: nn.Module, graph: fx.Graph, input_shape: tuple[int, ...]
) -> dict[str, tuple[int, ...]]:
    """Shape of each tensor-valued node for an input of shape (N, C, H, W).

    Raises:
        CaptureError: the network does not run on such an input; the message names the operation.
    """
    copied = twin(root).eval()  # in eval no batch norm updates its statistics
    interpreter = _ShapeInterpreter(copied, graph)
    parameter = next(root.parameters())
    try:
        with (
            torch.no_grad(),
            _no_log_of_failures(),
            FakeTensorMode(allow_non_fake_inputs=True),
        ):
            interpreter.run(
                torch.empty(input_shape, dtype=parameter.dtype, device=parameter.device)
            )
    except Exception as error:
        raise CaptureError(
            f"the model does not run on an input of shape {tuple(input_shape)}: operation "
            f"{interpreter.current}: {str(error).partition(chr(10))[0]}"
        ) from error
    return interpreter.shapes


@contextmanager
def _no_log_of_failures() -> Iterator[None]:
    """An operation that fails is logged with a trace, beside the exception that it raises."""
    logger = logging.getLogger("torch._subclasses.fake_tensor")
    own_thread = threading.get_ident()

    def is_of_others(record: logging.LogRecord) -> bool:
        return record.thread != own_thread

    logger.addFilter(is_of_others)
    try:
        yield
    finally:
        logger.removeFilter(is_of_others)
