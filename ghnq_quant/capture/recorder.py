"""Records one call of a network as a torch.fx graph, by changing only the network's modules.

``torch.fx.Tracer`` patches ``nn.Module`` while it traces, so no other thread can run a network in the
meantime. Here each module of a throwaway copy gets its own methods.
"""

from __future__ import annotations

import builtins
import inspect
import math
import random
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from types import FrameType
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.fx import _symbolic_trace
from torch.utils.checkpoint import CheckpointFunction

from ghnq_quant.capture.twin import is_of_torch

#: Held while functions of ``math``, or registered by ``fx.wrap``, record calls with proxies.
_WRAPPED = threading.RLock()
WITHOUT_GRADIENT = "computes without gradient (torch.no_grad)"
_GETATTR = nn.Module.__getattr__.__code__
_APPLY = torch.autograd.Function.apply.__func__.__code__  # type: ignore[attr-defined]

_BY_SIZE = ("size", "dim", "numel", "ndimension")
_DEVICES = ("cpu", "cuda")
_MATH = {id(f) for f in vars(math).values() if callable(f)}


class _Parameters(dict[str, Any]):
    """A module's parameters, which its own code reads as proxies; and its mode, to see it read."""

    recorder: Recorder
    training: bool

    def __contains__(self, name: object) -> bool:
        if name == "training":  # which may be set like any attribute
            return sys._getframe(1).f_code is _GETATTR
        return super().__contains__(name)

    def __getitem__(self, name: str) -> Any:
        if name == "training":
            self.recorder.follows_mode = True
            return self.training
        parameter = super().__getitem__(name)
        return parameter if parameter is None else self.recorder.proxy_of(parameter)


class Recorder(fx.Tracer):
    """Records a module that nothing else uses, see :func:`ghnq_quant.capture.twin.twin`.

    Attributes:
        owners: for each node, the name of the module whose code made it.
        lost: names of modules whose code does something that no graph holds, and what that is.
        follows_mode: whether another call, or one in the other mode, may be recorded differently:
            code asked for the mode, used a tensor other than parameters or drew random numbers.
    """

    def __init__(self) -> None:
        super().__init__()
        self.owners: dict[fx.Node, str] = {}
        self.lost: dict[str, str] = {}
        self.follows_mode = False
        self._entered: list[tuple[str, bool]] = [("", True)]  # and whether gradients were enabled
        self._names: dict[nn.Parameter | None, str] = {}
        self._proxies: dict[nn.Parameter, fx.Proxy] = {}
        self._calls: Counter[str] = Counter()
        self._without_autocast = [d for d in _DEVICES if not torch.is_autocast_enabled(d)]

    @property
    def current_module(self) -> str:
        """Name of the module that is being recorded, or was when an error stopped it."""
        return str(next(reversed(self.module_stack.values()), ("",))[0])

    def record(self, root: nn.Module, *, training: bool) -> fx.Graph:
        """The graph of ``root`` in training or eval; ``root`` is used up."""
        self.root = root
        self.graph = fx.Graph()
        self.tensor_attrs = {}
        self.submodule_paths = {module: name for name, module in root.named_modules()}
        if not all(map(_has_usual_mode, self.submodule_paths)):
            root.train(training)
            self.follows_mode = True
        for module, name in self.submodule_paths.items():
            self._prepare(name, module, training)
        forward: Any = type(root).forward
        random_states = _random_states()
        with torch.enable_grad(), _wrapped_functions(self.submodule_paths):
            forward, args = self.create_args_for_root(forward, True)
            self.create_node("output", "output", (self.create_arg(forward(*args)),), {})
        self.follows_mode |= random_states != _random_states()
        return self.graph

    def _prepare(self, name: str, module: nn.Module, training: bool) -> None:
        attributes = vars(module)
        prefix = f"{name}." if name else ""
        attributes["_compiled_call_impl"] = partial(self.call, module)
        parameters = attributes["_parameters"] = _Parameters(module._parameters)
        parameters.recorder = self
        for key, parameter in module._parameters.items():
            self._names.setdefault(parameter, prefix + key)
        if _has_usual_mode(module):
            del attributes["training"]
            parameters.training = training
        if not is_of_torch(module):
            for key, value in attributes.items():
                if isinstance(value, Tensor):
                    self.tensor_attrs[value] = prefix + key

    def proxy_of(self, parameter: nn.Parameter) -> fx.Proxy | nn.Parameter:
        """What the network's code computes with in place of one of its parameters."""
        if parameter not in self._names:
            return parameter
        if parameter not in self._proxies:
            name = self._names[parameter]
            self._proxies[parameter] = self.create_proxy("get_attr", name, (), {})
        return self._proxies[parameter]

    def call(self, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        """Replaces a call of ``module`` while it is recorded."""
        name = self.path_of_module(module)
        count = self._calls[name]
        self._calls[name] += 1
        key = f"{name}@{count}" if count else name
        self.module_stack[key] = (name, type(module))
        if self.is_leaf_module(module, name):
            result = self.create_proxy("call_module", name, args, kwargs)
        else:
            self._entered.append((name, torch.is_grad_enabled()))
            result = module.forward(*args, **kwargs)
            self._entered.pop()
        del self.module_stack[key]
        return result

    def create_node(
        self,
        kind: str,
        target: Any,
        args: Any,
        kwargs: Any,
        name: str | None = None,
        type_expr: Any = None,
    ) -> fx.Node:
        # arguments are set afterwards, because a graph would search them for symbolic integers
        node = self.graph.create_node(kind, target, (), {}, name, type_expr)
        node._update_args_kwargs(args, kwargs)
        if self.module_stack:
            node.meta["nn_module_stack"] = dict(self.module_stack)
        self.owners[node] = self._entered[-1][0]
        if kind.startswith("call"):
            self._note_what_is_lost(node)
        return node

    def create_arg(self, a: Any) -> Any:
        """The base class's result, without its long series of type checks."""
        kind = type(a)
        if kind is fx.Proxy:
            return a.node
        if kind is tuple:
            return tuple(map(self.create_arg, a))
        if kind is dict and not a:
            return {}
        if a is None or kind in (int, float, bool, str):
            return a
        self.follows_mode |= isinstance(a, Tensor)
        return super().create_arg(a)

    def _note_what_is_lost(self, node: fx.Node) -> None:
        function = _autograd_function(sys._getframe(2))
        if function is CheckpointFunction:  # the gradient is that of the operations
            return
        if function is not None:
            self.lost[self._entered[-1][0]] = f"has a gradient of its own ({function.__name__})"
        elif any(map(torch.is_autocast_enabled, self._without_autocast)):
            self.lost[self._entered[-1][0]] = "computes under autocast"
        elif not torch.is_grad_enabled() and not self._is_a_size(node):
            owner = next(name for name, enabled in reversed(self._entered) if enabled)
            self.lost[owner] = WITHOUT_GRADIENT

    def _is_a_size(self, node: fx.Node) -> bool:
        if node.target is getattr or node.target in _BY_SIZE:
            return True
        return node.op == "call_function" and all(map(self._is_a_size, node.all_input_nodes))


def _has_usual_mode(module: nn.Module) -> bool:
    """Whether its class sets and reads the mode in no way of its own."""
    kind, usual = type(module), nn.Module
    is_usual = kind.train is usual.train and kind.__getattr__ is usual.__getattr__
    return is_usual and "training" in vars(module)


def _random_states() -> tuple[object, ...]:
    """States of the random number generators of Python, NumPy and PyTorch."""
    in_numpy, in_torch = np.random.get_state(legacy=False), torch.get_rng_state()
    key, position = in_numpy.pop("state").values()
    return random.getstate(), key.tobytes(), position, in_numpy, in_torch.numpy().tobytes()


def _autograd_function(frame: FrameType | None) -> Any:
    """The ``autograd.Function`` whose forward a frame is in, None if there is none."""
    while frame is not None and frame.f_code is not Recorder.record.__code__:
        if frame.f_code is _APPLY:
            return frame.f_locals["cls"]
        frame = frame.f_back
    return None


@contextmanager
def _wrapped_functions(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Make functions record a call as one operation if they are given a proxy.

    These are the functions of ``math`` and those registered by ``fx.wrap``. Without a proxy they do
    what they always do, so other threads may call them in the meantime.
    """
    with _WRAPPED:
        replaced: list[tuple[dict[str, Any], str, Any]] = []
        try:
            for scope, name in _names_to_wrap(modules):
                function = scope.get(name) or getattr(builtins, name)
                replaced.append((scope, name, scope.get(name)))
                scope[name] = _recording(function)
            yield
        finally:
            for scope, name, function in reversed(replaced):
                if function is None:  # a builtin, not in the module's own scope
                    del scope[name]
                else:
                    scope[name] = function


def _names_to_wrap(modules: Iterable[nn.Module]) -> list[tuple[dict[str, Any], str]]:
    registered = _symbolic_trace._wrapped_fns_to_patch.items()
    names = [(scope, name) for (_, name), scope in list(registered)]
    forwards = {type(m).forward for m in modules if not is_of_torch(m)}
    scopes = [getattr(inspect.unwrap(f), "__globals__", {}) for f in forwards]
    for scope in {id(scope): scope for scope in (vars(math), *scopes)}.values():
        names += [(scope, n) for n, f in list(scope.items()) if id(f) in _MATH and n[0] != "_"]
    return names


@cache
def _recording(function: Callable[..., Any]) -> Any:
    return _symbolic_trace._create_wrapped_func(function)
