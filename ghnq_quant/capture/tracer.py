"""torch.fx tracing of a convolutional network, without running it and without changing it."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.nn.parameter import UninitializedParameter

from ghnq_quant.capture.adapters import Adapter, Surrounded, adapters_in_use
from ghnq_quant.capture.operations import Kind, module_kind
from ghnq_quant.capture.unchanged import copy_of_modules, unchanged
from ghnq_quant.errors import CaptureError

_UNSUPPORTED = (
    nn.Conv1d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
)
#: Layers that a quantization backend replaces: what they compute must be known.
_REPLACED = (nn.Conv2d, nn.Linear, nn.BatchNorm2d)
_NORMS = (nn.LayerNorm, nn.GroupNorm)
#: Functions whose second operand may be a weight.
_PRODUCTS: set[Any] = {
    *(F.conv1d, F.conv2d, F.conv3d, F.conv_transpose2d, F.linear),
    *(torch.matmul, torch.mm, torch.bmm, operator.matmul, "matmul"),
}


def trace(model: nn.Module, *, skip: bool = False) -> tuple[nn.Module, fx.Graph, tuple[str, ...]]:
    """Trace ``model`` as it runs in eval mode.

    Args:
        skip: keep whole, as one operation, each module that cannot be traced or is not supported.

    Returns:
        the module that the graph's names refer to (``model`` itself, or a copy that shares its
        tensors where an adapter rewrote layers or ``forward`` holds tensors), the graph, and the
        names of the modules that were skipped.

    Raises:
        CaptureError: the model has no 2-d convolution, has a convolution of another rank, or its
            ``forward`` cannot be traced.
    """
    if not isinstance(model, nn.Module):
        raise CaptureError(f"expected an nn.Module, got {type(model).__name__}")
    adapters = adapters_in_use()
    root = _rewritten(model, adapters)
    _check_layers(root, skip)
    tracer = _Tracer(adapters, skip)
    with unchanged(root):
        root.eval()
        try:
            graph = tracer.trace(root)
        except CaptureError:
            raise
        except Exception as error:
            raise CaptureError(_explain(error, tracer, model)) from error
        constants = _constants(root, graph)
    if constants:
        root = copy_of_modules(root)
        for name, value in constants.items():
            root.register_buffer(name, value, persistent=False)
    return root, graph, tuple(tracer.skipped)


def trace_training(root: nn.Module, skipped: tuple[str, ...]) -> fx.Graph:
    """Trace as it runs in training the root of a network that was traced before.

    Args:
        skipped: names of the modules that are kept whole.

    Raises:
        CaptureError: its ``forward`` cannot be traced in training.
    """
    tracer = _Tracer(adapters_in_use(), skip=False)
    tracer.skipped = list(skipped)
    with unchanged(root):
        root.train()
        try:
            return tracer.trace(root)
        except CaptureError:
            raise
        except Exception as error:
            raise CaptureError(_explain(error, tracer, root)) from error


def _constants(root: nn.Module, graph: fx.Graph) -> dict[str, Tensor]:
    """Tensors that ``forward`` makes or closes over: torch.fx made them attributes of the root."""
    names = [str(n.target) for n in graph.nodes if n.op == "get_attr"]
    return {n: vars(root)[n] for n in names if n.startswith("_tensor_constant") and n in vars(root)}


def _check_layers(model: nn.Module, skip: bool) -> None:
    has_conv = False
    for name, module in model.named_modules():
        if isinstance(module, _UNSUPPORTED) and not skip:
            raise CaptureError(
                f"module {name!r} is a {type(module).__name__}: only Conv2d convolutions are "
                "supported; replace it, or quantize the part of the model that has none"
            )
        if any(isinstance(p, UninitializedParameter) for p in module.parameters(recurse=False)):
            raise CaptureError(
                f"module {name!r} ({type(module).__name__}) has no shapes yet: run the model once "
                "on an input of yours, so that it makes its parameters"
            )
        has_conv = has_conv or isinstance(module, nn.Conv2d)
    if not has_conv:
        raise CaptureError(
            f"{type(model).__name__} has no nn.Conv2d: ghnq-quant predicts parameters of "
            "convolutional networks"
        )


def _rewritten(model: nn.Module, adapters: tuple[Adapter, ...]) -> nn.Module:
    """``model``, or where adapters rewrite layers, a copy with these replaced, tensors shared."""
    if all(_rewrite(m, adapters) is None for m in model.modules()):
        return model
    root = copy_of_modules(model)
    rewritten: dict[nn.Module, nn.Module | None] = {}
    for name, module in list(root.named_modules(remove_duplicate=False)):
        if module not in rewritten:
            rewritten[module] = _rewrite(module, adapters)
        replacement = rewritten[module]
        if replacement is not None and name:
            root.set_submodule(name, replacement)
    return rewritten[root] or root


def _rewrite(module: nn.Module, adapters: tuple[Adapter, ...]) -> nn.Module | None:
    candidates = (adapter.rewrite(module) for adapter in adapters)
    return next((new for new in candidates if new is not None), None)


class _Tracer(fx.Tracer):
    def __init__(self, adapters: tuple[Adapter, ...], skip: bool) -> None:
        super().__init__()
        self._adapters = adapters
        self._skip = skip
        self.skipped: list[str] = []

    def create_args_for_root(
        self, root_fn: Callable[..., Any], is_module: bool, concrete_args: Any = None
    ) -> tuple[Any, list[Any]]:
        """The network's first argument is its input; any other takes its default if it has one."""
        function, args = super().create_args_for_root(root_fn, is_module, concrete_args)
        for position, arg in enumerate(args[2:], 2):
            if isinstance(arg, fx.Proxy) and (default := _default(arg.node)) is not None:
                self.graph.erase_node(arg.node)
                args[position] = default[0]
        return function, args

    def create_arg(self, a: Any) -> Any:
        """The usual arguments without the base class's long row of questions about their type."""
        kind = type(a)
        if kind is fx.Proxy:
            return a.node
        if kind is tuple:
            return tuple(map(self.create_arg, a))
        if a is None or kind in (int, float, bool, str):
            return a
        return super().create_arg(a)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        if module_qualified_name in self.skipped:
            return True
        if isinstance(m, _REPLACED):
            _check_is_standard(m, module_qualified_name)
            return True
        if any(adapter.is_leaf(m) for adapter in self._adapters):
            return True
        if isinstance(m, _NORMS):
            _check_is_standard(m, module_qualified_name)
            return True
        is_leaf = super().is_leaf_module(m, module_qualified_name)
        if is_leaf:
            _check_is_known(m, module_qualified_name)
        return is_leaf

    def call_module(
        self,
        m: nn.Module,
        forward: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        if not self._skip:
            return self._call(m, forward, args, kwargs)
        last, stack = next(reversed(self.graph.nodes)), self.module_stack.copy()
        name = self.path_of_module(m)
        skipped = len(self.skipped)
        try:
            return self._call(m, forward, args, kwargs)
        except Exception:
            while (newest := next(reversed(self.graph.nodes))) is not last:
                self.graph.erase_node(newest)
            self.module_stack = stack
            self.skipped[skipped:] = [name]
            return super().call_module(m, forward, args, kwargs)

    def _call(
        self,
        m: nn.Module,
        forward: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        if not isinstance(m, Surrounded):
            return super().call_module(m, forward, args, kwargs)
        return m.after(super().call_module(m, forward, (m.before(*args, **kwargs),), {}))

    def create_proxy(
        self, kind: str, target: Any, args: Any, kwargs: Any, *more: Any, **others: Any
    ) -> Any:
        """The usual, but for a convolution or matrix product with a parameter no layer holds."""
        if target in _PRODUCTS and any(map(self._is_of_parameters, (*args[1:2], *kwargs.values()))):
            name, cls = next(reversed(self.module_stack.values()), ("", self.root))
            raise CaptureError(
                f"module {name!r} ({getattr(cls, '__name__', type(cls).__name__)}) calls "
                f"{getattr(target, '__name__', target)} with a parameter that belongs to no conv "
                "or linear layer, so it would be neither predicted nor quantized; use a layer, or "
                'leave the module float with skip="unsupported"'
            )
        return super().create_proxy(kind, target, args, kwargs, *more, **others)

    def _is_of_parameters(self, operand: Any) -> bool:
        """Whether a product's second operand is a parameter, or computed with one directly."""
        if isinstance(operand, Tensor):
            return operand.dim() > 1 and operand.requires_grad
        if not isinstance(operand, fx.Proxy):
            return False
        names = {name for name, _ in self.root.named_parameters(remove_duplicate=False)}
        pending, seen = [operand.node], set()
        while pending:
            node = pending.pop()
            if node.op == "get_attr" and node.target in names:
                return True
            if node.op in ("call_function", "call_method") and node not in seen:
                seen.add(node)
                pending += node.all_input_nodes
        return False


def _default(placeholder: fx.Node) -> tuple[Any] | None:
    """(default,) of an argument, None if it has none."""
    name = str(placeholder.target)
    if name.startswith("*"):
        return ({},) if name.startswith("**") else ((),)
    return (placeholder.args[0],) if placeholder.args else None


def _check_is_known(module: nn.Module, name: str) -> None:
    has_matrix = any(p.dim() > 1 for p in module.parameters())
    if has_matrix and module_kind(module) is Kind.OTHER:
        raise CaptureError(
            f"module {name!r} is a {type(module).__name__}, whose parameters are neither of a "
            "conv, linear nor norm layer; replace it, or leave it float with "
            'skip="unsupported"'
        )


def _check_is_standard(module: nn.Module, name: str) -> None:
    base = next(t for t in (*_REPLACED, *_NORMS) if isinstance(module, t))
    if any(
        getattr(type(module), method, None) is not getattr(base, method, None)
        for method in ("forward", "_conv_forward")
    ):
        raise CaptureError(
            f"module {name!r} ({type(module).__name__}) replaces {base.__name__}.forward, so what "
            "it computes is unknown; register an adapter for it (entry-point group "
            "ghnq_quant.adapters)"
        )


def _explain(error: Exception, tracer: fx.Tracer, model: nn.Module) -> str:
    name = next(reversed(tracer.module_stack), "") if tracer.module_stack else ""
    module = model.get_submodule(name) if name else model
    return (
        f"cannot trace {f'module {name!r}' if name else 'the model'} ({type(module).__name__}): "
        f"{type(error).__name__}: {error}. torch.fx records one path through the network, so "
        "`forward` must not branch on tensor values, sizes or outside state; move such a decision "
        "out of it, or register an adapter that keeps the module whole (entry-point group "
        "ghnq_quant.adapters)"
    )
