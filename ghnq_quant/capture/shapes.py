"""Shapes of every value in a traced graph, found with tensors that hold nothing: no kernel runs."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from ghnq_quant.capture.operations import Kind
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


class _QuickInterpreter(_ShapeInterpreter):
    """Passes over what keeps a shape: on meta tensors PyTorch takes normalizations and activations
    apart into dozens of operations, and needs ten times a convolution's time for each."""

    def __init__(self, root: nn.Module, graph: fx.Graph, kinds: dict[fx.Node, Kind]) -> None:
        super().__init__(root, graph)
        self.kinds = kinds

    def run_node(self, n: fx.Node) -> object:
        inputs = n.all_input_nodes
        value = self.env[inputs[0]] if len(inputs) == 1 else None
        if not (isinstance(value, Tensor) and self._keeps_shape(n, value)):
            value = getattr(self, n.op)(n.target, *self.fetch_args_kwargs_from_env(n))
        if isinstance(value, Tensor):
            self.shapes[n.name] = tuple(value.shape)
        return value

    def _keeps_shape(self, n: fx.Node, value: Tensor) -> bool:
        if self.kinds[n] not in (Kind.ACTIVATION, Kind.BATCH_NORM):
            return False
        if n.op != "call_module":
            return True
        module = self.submodules[str(n.target)]
        if isinstance(module, nn.BatchNorm2d):
            return value.dim() == 4 and value.shape[1] == module.num_features
        return not module._parameters


def propagate_shapes(
    root: nn.Module, graph: fx.Graph, kinds: dict[fx.Node, Kind], input_shape: tuple[int, ...]
) -> dict[str, tuple[int, ...]]:
    """Shape of each tensor-valued node for an input of shape (N, C, H, W).

    Args:
        kinds: of the graph's nodes.

    Raises:
        CaptureError: the network does not run on such an input; the message names the operation.
    """
    quick = _QuickInterpreter(_on_meta(root), graph, kinds)
    dtype = next(root.parameters()).dtype
    try:
        with torch.no_grad():
            quick.run(torch.empty(input_shape, dtype=dtype, device="meta"))
    except Exception:  # it may be the device that some constant is on; the careful way tells
        return _with_fake_tensors(root, graph, input_shape)
    return quick.shapes


def _on_meta(root: nn.Module) -> nn.Module:
    copied = twin(root)
    for module in copied.modules():
        vars(module)["training"] = False
        for kind in ("_parameters", "_buffers"):
            tensors = vars(module)[kind]
            if tensors:
                vars(module)[kind] = {
                    name: None if t is None else torch.empty_like(t, device="meta")
                    for name, t in tensors.items()
                }
    return copied


def _with_fake_tensors(
    root: nn.Module, graph: fx.Graph, input_shape: tuple[int, ...]
) -> dict[str, tuple[int, ...]]:
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
