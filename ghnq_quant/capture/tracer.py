"""torch.fx tracing of a convolutional network, without running it and without changing it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, fx, nn
from torch.nn.parameter import UninitializedParameter

from ghnq_quant.capture.adapters import Adapter, Surrounded, adapters_in_use
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


def trace(model: nn.Module) -> tuple[nn.Module, fx.Graph]:
    """Trace ``model`` as it runs in eval mode.

    Returns:
        the module that the graph's names refer to (``model`` itself, or a copy that shares its
        tensors where an adapter rewrote layers or ``forward`` holds tensors) and the graph.

    Raises:
        CaptureError: the model has no 2-d convolution, has a convolution of another rank, or its
            ``forward`` cannot be traced.
    """
    if not isinstance(model, nn.Module):
        raise CaptureError(f"expected an nn.Module, got {type(model).__name__}")
    adapters = adapters_in_use()
    root = _rewritten(model, adapters)
    _check_layers(root)
    tracer = _Tracer(adapters)
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
    return root, graph


def _constants(root: nn.Module, graph: fx.Graph) -> dict[str, Tensor]:
    """Tensors that ``forward`` makes or closes over: torch.fx made them attributes of the root."""
    names = [str(n.target) for n in graph.nodes if n.op == "get_attr"]
    return {n: vars(root)[n] for n in names if n.startswith("_tensor_constant") and n in vars(root)}


def _check_layers(model: nn.Module) -> None:
    has_conv = False
    for name, module in model.named_modules():
        if isinstance(module, _UNSUPPORTED):
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
    def __init__(self, adapters: tuple[Adapter, ...]) -> None:
        super().__init__()
        self._adapters = adapters

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
        if isinstance(m, _REPLACED):
            _check_is_standard(m, module_qualified_name)
            return True
        if any(adapter.is_leaf(m) for adapter in self._adapters):
            return True
        if isinstance(m, _NORMS):
            _check_is_standard(m, module_qualified_name)
            return True
        return super().is_leaf_module(m, module_qualified_name)

    def call_module(
        self,
        m: nn.Module,
        forward: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        if not isinstance(m, Surrounded):
            return super().call_module(m, forward, args, kwargs)
        return m.after(super().call_module(m, forward, (m.before(*args, **kwargs),), {}))


def _default(placeholder: fx.Node) -> tuple[Any] | None:
    """(default,) of an argument, None if it has none."""
    name = str(placeholder.target)
    if name.startswith("*"):
        return ({},) if name.startswith("**") else ((),)
    return (placeholder.args[0],) if placeholder.args else None


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
