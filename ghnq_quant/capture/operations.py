"""What each node of a traced graph does, in the few kinds that its two readings tell apart."""

from __future__ import annotations

import operator
from collections.abc import Callable
from enum import Enum
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn


class Kind(Enum):
    """The kinds of operation that :class:`ArchGraph` and :class:`QuantPlan` are derived from."""

    INPUT = "input"
    CONV = "conv"
    LINEAR = "linear"
    BATCH_NORM = "batch_norm"
    OTHER_NORM = "other_norm"
    ACTIVATION = "activation"
    ADD = "add"
    MULTIPLY = "mul"
    CONCAT = "cat"
    MAX_POOL = "max_pool"
    AVG_POOL = "avg_pool"
    GLOBAL_AVG_POOL = "adaptive_avg_pool"
    SPATIAL_MEAN = "mean"
    #: Keeps every value (dropout is the identity in eval), so a quantized tensor stays quantized.
    RESHAPE = "reshape"
    #: An integer or a shape, not a tensor of activations.
    NOT_A_TENSOR = "not_a_tensor"
    OUTPUT = "output"
    OTHER = "other"


_ACTIVATION_NAMES = (
    *("ReLU", "ReLU6", "LeakyReLU", "PReLU", "RReLU", "ELU", "SELU", "CELU", "GELU", "SiLU"),
    *("Mish", "Hardswish", "Hardsigmoid", "Hardtanh", "Sigmoid", "Tanh", "Softplus"),
    *("Softsign", "LogSigmoid", "Threshold"),
)
_ACTIVATION_FUNCTIONS = (
    *("relu", "relu_", "relu6", "leaky_relu", "leaky_relu_", "prelu", "elu", "elu_", "selu"),
    *("celu", "gelu", "silu", "mish", "hardswish", "hardsigmoid", "hardtanh", "sigmoid"),
    *("tanh", "softplus", "threshold", "clamp", "clamp_", "clip", "sigmoid_", "tanh_"),
)
_RESHAPE_METHODS = (
    *("flatten", "view", "reshape", "squeeze", "unsqueeze", "permute", "transpose"),
    *("contiguous", "chunk", "split", "expand", "repeat", "clone", "detach", "unbind", "to"),
    *("float",),
)

_MODULES: tuple[tuple[tuple[type[nn.Module], ...], Kind], ...] = (
    ((nn.Conv2d,), Kind.CONV),
    ((nn.Linear,), Kind.LINEAR),
    ((nn.BatchNorm2d, nn.BatchNorm1d, nn.SyncBatchNorm), Kind.BATCH_NORM),
    ((nn.LayerNorm, nn.GroupNorm, nn.InstanceNorm2d, nn.RMSNorm), Kind.OTHER_NORM),
    (tuple(getattr(nn, name) for name in _ACTIVATION_NAMES), Kind.ACTIVATION),
    ((nn.MaxPool2d,), Kind.MAX_POOL),
    ((nn.AvgPool2d,), Kind.AVG_POOL),
    ((nn.AdaptiveAvgPool2d,), Kind.GLOBAL_AVG_POOL),
    (
        (
            *(nn.Identity, nn.Flatten, nn.Unflatten, nn.ChannelShuffle, nn.PixelShuffle),
            *(nn.PixelUnshuffle, nn.ZeroPad2d, nn.modules.dropout._DropoutNd),
        ),
        Kind.RESHAPE,
    ),
)


def _functions() -> dict[Callable[..., Any], Kind]:
    kinds: dict[Callable[..., Any], Kind] = {
        **dict.fromkeys((operator.add, operator.iadd, torch.add), Kind.ADD),
        **dict.fromkeys((operator.sub, operator.isub, torch.sub), Kind.ADD),
        **dict.fromkeys((operator.mul, operator.imul, torch.mul), Kind.MULTIPLY),
        **dict.fromkeys((torch.cat, torch.concat, torch.concatenate), Kind.CONCAT),
        **dict.fromkeys((F.max_pool2d, torch.max_pool2d), Kind.MAX_POOL),
        F.avg_pool2d: Kind.AVG_POOL,
        F.adaptive_avg_pool2d: Kind.GLOBAL_AVG_POOL,
        torch.mean: Kind.SPATIAL_MEAN,
        **dict.fromkeys((F.dropout, F.dropout2d, F.pad, operator.getitem), Kind.RESHAPE),
        **dict.fromkeys((F.pixel_shuffle, F.channel_shuffle), Kind.RESHAPE),
    }
    for name in _ACTIVATION_FUNCTIONS:
        for owner in (torch, F):
            if hasattr(owner, name):
                kinds[getattr(owner, name)] = Kind.ACTIVATION
    for name in _RESHAPE_METHODS:
        if hasattr(torch, name):
            kinds[getattr(torch, name)] = Kind.RESHAPE
    return kinds


_FUNCTIONS = _functions()
_METHODS: dict[str, Kind] = {
    **dict.fromkeys(("add", "add_", "sub", "sub_"), Kind.ADD),
    **dict.fromkeys(("mul", "mul_"), Kind.MULTIPLY),
    **dict.fromkeys(_ACTIVATION_FUNCTIONS, Kind.ACTIVATION),
    **dict.fromkeys(_RESHAPE_METHODS, Kind.RESHAPE),
    **dict.fromkeys(("size", "dim", "numel", "ndimension", "item"), Kind.NOT_A_TENSOR),
    "mean": Kind.SPATIAL_MEAN,
}
_TENSOR_ATTRIBUTES = {"T", "mT", "H", "mH", "data", "real"}
_ARITHMETIC = {Kind.ADD, Kind.MULTIPLY, Kind.RESHAPE, Kind.OTHER, Kind.CONCAT}


def classify(graph: fx.Graph, modules: dict[str, nn.Module]) -> dict[fx.Node, Kind]:
    """The kind of each node of ``graph``, in the graph's order.

    ``modules`` maps the names that call_module nodes refer to.
    """
    kinds: dict[fx.Node, Kind] = {}
    for node in graph.nodes:
        kind = _classify_node(node, modules)
        inputs = node.all_input_nodes
        if kind in _ARITHMETIC and inputs and all(kinds[n] is Kind.NOT_A_TENSOR for n in inputs):
            kind = Kind.NOT_A_TENSOR  # arithmetic on sizes
        elif kind in (Kind.ADD, Kind.MULTIPLY) and _tensor_operands(node, kinds) < 2:
            kind = Kind.OTHER  # by a constant
        kinds[node] = kind
    return kinds


def _tensor_operands(node: fx.Node, kinds: dict[fx.Node, Kind]) -> int:
    operands = [*node.args[:2], node.kwargs.get("other")]
    return sum(isinstance(a, fx.Node) and kinds[a] is not Kind.NOT_A_TENSOR for a in operands)


def _classify_node(node: fx.Node, modules: dict[str, nn.Module]) -> Kind:
    if node.op == "placeholder":
        return Kind.INPUT
    if node.op == "output":
        return Kind.OUTPUT
    if node.op == "call_module":
        module = modules[str(node.target)]
        return module_kind(module)
    if node.op == "call_function":
        if node.target is getattr:
            return Kind.RESHAPE if node.args[1] in _TENSOR_ATTRIBUTES else Kind.NOT_A_TENSOR
        kind = _FUNCTIONS.get(node.target, Kind.OTHER)  # type: ignore[arg-type]
    elif node.op == "call_method":
        kind = _METHODS.get(str(node.target), Kind.OTHER)
    else:
        return Kind.OTHER
    if kind is Kind.SPATIAL_MEAN and not _is_spatial(argument(node, 1, "dim", None)):
        return Kind.OTHER
    return kind


def module_kind(module: nn.Module) -> Kind:
    """What a call of ``module``, kept whole, does."""
    kind = next((kind for types, kind in _MODULES if isinstance(module, types)), Kind.OTHER)
    weight = module._parameters.get("weight")
    if kind is Kind.OTHER and weight is not None and weight.dim() == 1:
        return Kind.OTHER_NORM  # a zoo's own
    return kind


def _is_spatial(dims: Any) -> bool:
    if not isinstance(dims, (tuple, list)):
        return False
    return sorted(d % 4 if isinstance(d, int) else -1 for d in dims) == [2, 3]


def argument(node: fx.Node, position: int, name: str, default: Any) -> Any:
    """The argument of a call node, given by position or by name."""
    if len(node.args) > position:
        return node.args[position]
    return node.kwargs.get(name, default)


def pooling_window(node: fx.Node, modules: dict[str, nn.Module]) -> tuple[int, int]:
    """(kh, kw) of a max or average pooling node."""
    if node.op == "call_module":
        size = modules[str(node.target)].kernel_size
    else:
        size = argument(node, 1, "kernel_size", None)
    if isinstance(size, int):
        return size, size
    if isinstance(size, (tuple, list)) and all(isinstance(s, int) for s in size):
        return int(size[0]), int(size[-1])
    return 3, 3  # a size computed while the network runs; the public GHN-2 code takes 3 too


def keeps_dimensions(node: fx.Node) -> bool:
    """Whether a mean over H and W gives (N, C, 1, 1) and not (N, C)."""
    return bool(argument(node, 2, "keepdim", False))
