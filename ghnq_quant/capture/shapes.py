"""Shapes of all values in a traced graph, found with meta tensors: no kernel runs."""

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
    """Skips layers whose output shape is obvious: on meta tensors PyTorch decomposes a normalization
    or an activation into dozens of operations, which take up to half a millisecond each."""

    def __init__(self, root: nn.Module, graph: fx.Graph, kinds: dict[fx.Node, Kind]) -> None:
        super().__init__(root, graph)
        self.kinds = kinds

    def run_node(self, n: fx.Node) -> object:
        inputs = [self.env[node] for node in n.all_input_nodes]
        known = None
        if inputs and all(isinstance(x, Tensor) and x.shape == inputs[0].shape for x in inputs):
            known = self._known(n, inputs[0], len(inputs))
        if known is None:
            known = getattr(self, n.op)(n.target, *self.fetch_args_kwargs_from_env(n))
        if isinstance(known, Tensor):
            self.shapes[n.name] = tuple(known.shape)
        return known

    def _known(self, n: fx.Node, x: Tensor, inputs: int) -> Tensor | None:
        """A result of the right shape if that takes no operation; all inputs have the shape of ``x``."""
        kind = self.kinds[n]
        if kind in (Kind.ADD, Kind.MULTIPLY):
            return x
        if inputs > 1:
            return None
        if n.op != "call_module":
            return x if kind is Kind.ACTIVATION else None
        module = self.submodules[str(n.target)]
        if kind is Kind.ACTIVATION:
            return None if module._parameters else x
        if isinstance(module, nn.BatchNorm2d):
            return x if x.dim() == 4 and x.shape[1] == module.num_features else None
        if type(module) is nn.Conv2d and x.dim() == 4 and x.shape[1] == module.in_channels:
            return _convolved(x, module)
        return None


def _convolved(x: Tensor, conv: nn.Conv2d) -> Tensor | None:
    if isinstance(conv.padding, str) or conv.padding_mode != "zeros":
        return None
    extents = zip(
        x.shape[2:], conv.kernel_size, conv.stride, conv.padding, conv.dilation, strict=True
    )
    size = [(n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d in extents]
    return x.new_empty((len(x), conv.out_channels, *size)) if min(size) > 0 else None


def propagate_shapes(
    root: nn.Module, graph: fx.Graph, kinds: dict[fx.Node, Kind], input_shape: tuple[int, ...]
) -> dict[str, tuple[int, ...]]:
    """Shape of each tensor-valued node for an input of shape (N, C, H, W).

    Args:
        kinds: what each node of the graph does.

    Raises:
        CaptureError: the network does not run on such an input; the message names the operation.
    """
    quick = _QuickInterpreter(_on_meta(root), graph, kinds)
    dtype = next(root.parameters()).dtype
    try:
        with torch.no_grad():
            quick.run(torch.empty(input_shape, dtype=dtype, device="meta"))
    except Exception:  # perhaps the device of some constant; the slower way finds out
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
    copied = twin(root).eval()  # in eval, batch norms do not update their statistics
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
    """Silence PyTorch's log of a failing operation, which repeats the exception with a trace."""
    logger = logging.getLogger("torch._subclasses.fake_tensor")
    own_thread = threading.get_ident()

    def is_of_others(record: logging.LogRecord) -> bool:
        return record.thread != own_thread

    logger.addFilter(is_of_others)
    try:
        yield
    finally:
        logger.removeFilter(is_of_others)
