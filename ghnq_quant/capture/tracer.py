"""torch.fx tracing of a convolutional network, without running it and without changing it."""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from ghnq_quant.capture.adapters import Adapter, Surrounded, adapters_in_use
from ghnq_quant.capture.attention import attention_parts
from ghnq_quant.capture.checks import (
    NORMS,
    REPLACED,
    check_is_known,
    check_is_standard,
    check_layers,
    check_weight,
)
from ghnq_quant.capture.modes import ModeArgument, ModeDifference, compare_modes
from ghnq_quant.capture.recorder import WITHOUT_GRADIENT, Recorder
from ghnq_quant.capture.twin import copy_of_modules, twin
from ghnq_quant.errors import CaptureError

#: Functions whose second operand may be a weight.
_PRODUCTS: set[Any] = {
    *(F.conv1d, F.conv2d, F.conv3d, F.conv_transpose2d, F.linear),
    *(torch.matmul, torch.mm, torch.bmm, operator.matmul, "matmul"),
}
_IN_TRAINING = "behaves differently in training than in eval, or draws random numbers"
_ADVICE = {
    WITHOUT_GRADIENT: "; or freeze parameters by requires_grad_(False) instead of torch.no_grad"
}


@dataclass(frozen=True)
class Trace:
    """A network as it runs in eval.

    Attributes:
        root: module that the graph's names refer to: the model itself, or a copy that shares its
            tensors if an adapter rewrote layers or ``forward`` holds tensors.
        graph: the torch.fx graph in eval.
        skipped: names of modules that are kept whole because they are not supported.
        mode_arguments: arguments that are True in training.
        kept_whole: names of modules without parameters that behave differently in training or have
            their own gradient.
        more_outputs: whether training returns further values, which are left out.
        attention: names of modules that are kept whole as attention, and what each computes with,
            see :mod:`ghnq_quant.capture.attention`.
    """

    root: nn.Module
    graph: fx.Graph
    skipped: tuple[str, ...]
    mode_arguments: tuple[ModeArgument, ...]
    kept_whole: tuple[str, ...]
    more_outputs: bool
    attention: dict[str, tuple[str, ...]]


def trace(model: nn.Module, *, skip: bool = False, attention: bool = False) -> Trace:
    """Trace ``model`` as it runs in eval, and check that training loses nothing.

    A module without parameters that behaves differently in training, or has its own gradient, is
    kept whole.

    Args:
        skip: keep each module that cannot be traced or is not supported whole, as one operation.
        attention: keep attention whole, which is otherwise refused.

    Raises:
        CaptureError: the model has no 2-d convolution, has a convolution of another rank, its
            ``forward`` cannot be traced or does something that the eval graph does not hold.
    """
    if not isinstance(model, nn.Module):
        raise CaptureError(f"expected an nn.Module, got {type(model).__name__}")
    adapters = adapters_in_use()
    root = _rewritten(model, adapters)
    check_layers(root, skip)
    whole: tuple[str, ...] = ()
    while True:
        tracer = _Tracer(adapters, skip, whole, attention)
        graph = _record(tracer, root, training=False)
        difference, lost = _losses(tracer, root)
        if not lost:
            break
        whole += tuple(lost)
        for name, what in lost.items():
            _check_can_be_whole(root, name, what, skip)
    skipped = (*tracer.skipped, *(n for n in whole if _has_parameters(root, n)))
    kept_whole = tuple(n for n in whole if n not in skipped)
    constants = _constants(tracer.root, graph)
    if constants:
        root = copy_of_modules(root)
        for name, value in constants.items():
            vars(root).pop(name, None)
            root.register_buffer(name, value, persistent=False)
    return Trace(
        root,
        graph,
        skipped,
        tuple(difference.arguments),
        kept_whole,
        difference.more_outputs,
        tracer.attention_in,
    )


def trace_training(root: nn.Module, skipped: tuple[str, ...]) -> fx.Graph:
    """Trace the root of a previously traced network as it runs in training.

    Args:
        skipped: names of the modules that are kept whole.

    Raises:
        CaptureError: its ``forward`` cannot be traced in training.
    """
    tracer = _Tracer(adapters_in_use(), False, skipped)
    return _record(tracer, root, training=True)


def _record(tracer: _Tracer, root: nn.Module, *, training: bool) -> fx.Graph:
    copied = twin(root)
    try:
        return tracer.record(copied, training=training)
    except CaptureError:
        raise
    except Exception as error:
        raise CaptureError(_explain(error, tracer, root, training)) from error


def _losses(tracer: _Tracer, root: nn.Module) -> tuple[ModeDifference, dict[str, str]]:
    """How training differs from eval, and the modules that do more than their graph holds."""
    difference, lost = ModeDifference(), dict(tracer.lost)
    if tracer.follows_mode and not lost:
        whole = (*tracer.whole, *tracer.skipped, *tracer.attention_in)
        trained = _Tracer(tracer.adapters, tracer.skip, whole)
        try:
            _record(trained, root, training=True)
        except CaptureError:
            name = trained.current_module
            if not name or _has_parameters(root, name):
                raise
            return difference, {name: _IN_TRAINING}
        difference = compare_modes(tracer, trained)
        lost = dict.fromkeys(sorted(difference.owners), _IN_TRAINING) | trained.lost
    return difference, lost


def _check_can_be_whole(root: nn.Module, name: str, what: str, skip: bool) -> None:
    if name and (skip or not _has_parameters(root, name)):
        return
    module = root.get_submodule(name)
    raise CaptureError(
        f"{f'module {name!r}' if name else 'the model'} ({type(module).__name__}) {what}, which its "
        "quantized copy would lose: move that part into a module of its own without parameters, "
        "which is kept whole" + _ADVICE.get(what, "")
    )


def _has_parameters(root: nn.Module, name: str) -> bool:
    return next(root.get_submodule(name).parameters(), None) is not None


def _constants(recorded: nn.Module, graph: fx.Graph) -> dict[str, Tensor]:
    """Tensors that ``forward`` makes, closes over or reads, as attributes of the root."""
    names = [str(n.target) for n in graph.nodes if n.op == "get_attr"]
    attributes = vars(recorded)
    return {n: attributes[n] for n in names if isinstance(attributes.get(n), Tensor)}


def _rewritten(model: nn.Module, adapters: tuple[Adapter, ...]) -> nn.Module:
    """``model`` or, if adapters rewrite layers, a copy with these replaced and tensors shared."""
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


class _Tracer(Recorder):
    def __init__(
        self,
        adapters: tuple[Adapter, ...],
        skip: bool,
        whole: tuple[str, ...],
        attention: bool = False,
    ) -> None:
        super().__init__()
        self.adapters = adapters
        self.skip = skip
        self.whole = whole
        self.attention = attention
        self.skipped: list[str] = []
        self.attention_in: dict[str, tuple[str, ...]] = {}

    def create_args_for_root(
        self, root_fn: Callable[..., Any], is_module: bool, concrete_args: Any = None
    ) -> tuple[Any, list[Any]]:
        """The network's first argument is its input; others take their default, if any."""
        function, args = super().create_args_for_root(root_fn, is_module, concrete_args)
        for position, arg in enumerate(args[2:], 2):
            if isinstance(arg, fx.Proxy) and (default := _default(arg.node)) is not None:
                self.graph.erase_node(arg.node)
                args[position] = default[0]
        return function, args

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        if module_qualified_name in self.skipped or module_qualified_name in self.whole:
            return True
        if self.attention and (parts := attention_parts(m, self.adapters)):
            self.attention_in[module_qualified_name] = parts
            return True
        if isinstance(m, REPLACED):
            check_is_standard(m, module_qualified_name)
            check_weight(m, module_qualified_name)
            return True
        if any(adapter.is_leaf(m) for adapter in self.adapters):
            return True
        if isinstance(m, NORMS):
            check_is_standard(m, module_qualified_name)
            check_weight(m, module_qualified_name)
            return True
        is_leaf = super().is_leaf_module(m, module_qualified_name)
        if is_leaf:
            check_is_known(m, module_qualified_name)
        return is_leaf

    def call(self, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        if not self.skip:
            return self._call(module, *args, **kwargs)
        last, stack = next(reversed(self.graph.nodes)), self.module_stack.copy()
        entered, lost, skipped = len(self._entered), self.lost.copy(), len(self.skipped)
        name = self.path_of_module(module)
        try:
            return self._call(module, *args, **kwargs)
        except Exception:
            self._forget(last, entered, lost)
            self.module_stack = stack
            self.skipped[skipped:] = [name]
            return super().call(module, *args, **kwargs)

    def _forget(self, last: fx.Node, entered: int, lost: dict[str, str]) -> None:
        """Forget everything recorded after ``last``."""
        while (newest := next(reversed(self.graph.nodes))) is not last:
            self._proxies = {p: x for p, x in self._proxies.items() if x.node is not newest}
            self.graph.erase_node(newest)
        del self._entered[entered:]
        self.lost = lost

    def _call(self, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        if not isinstance(module, Surrounded):
            return super().call(module, *args, **kwargs)
        return module.after(super().call(module, module.before(*args, **kwargs)))

    def create_proxy(
        self, kind: str, target: Any, args: Any, kwargs: Any, *more: Any, **others: Any
    ) -> Any:
        """Refuse a convolution or matrix product with a parameter that no layer holds."""
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
        """Whether a product's second operand is a parameter, or computed directly with one."""
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


def _explain(error: Exception, tracer: _Tracer, model: nn.Module, training: bool) -> str:
    name = tracer.current_module
    module = model.get_submodule(name)
    return (
        f"cannot trace {f'module {name!r}' if name else 'the model'} ({type(module).__name__})"
        f"{' in training' if training else ''}: {type(error).__name__}: {error}. torch.fx records "
        "one path through the network, so `forward` must not branch on tensor values, sizes or "
        "outside state; move such a decision out of it, or register an adapter that keeps the "
        "module whole (entry-point group ghnq_quant.adapters)"
    )
