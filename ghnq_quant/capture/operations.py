"""The one table of operations, and the operation of each node in a traced graph.

Everything that the package knows about an operation is here: how networks call it, what it is to the
hypernetwork, and whether its result is quantized. All other modules read this table.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.nn.modules.dropout import _DropoutNd


class Kind(Enum):
    """What an operation does, as far as it matters to :class:`ArchGraph` and :class:`QuantPlan`.

    Attributes:
        value: its name in a plan.
        primitive: the primitive of its node in the hypernetwork's graph; None if it has no node.
            Grouped convolutions have other primitives: see :func:`conv_primitive`.
        quantized: whether its result is quantized although it belongs to no unit.

    Example:
        >>> Kind.ADD.value, Kind.ADD.primitive, Kind.ADD.quantized
        ('add', 'sum', True)
    """

    primitive: str | None
    quantized: bool

    def __new__(cls, value: str, primitive: str | None = None, quantized: bool = False) -> Kind:
        kind = object.__new__(cls)
        kind._value_ = value
        kind.primitive = primitive
        kind.quantized = quantized
        return kind

    INPUT = "input", "input", True
    CONV = "conv", "conv"
    LINEAR = "linear", "conv"
    BATCH_NORM = "batch_norm", "bn"
    OTHER_NORM = "other_norm", "ln"
    ACTIVATION = "activation"
    ADD = "add", "sum", True
    MULTIPLY = "mul", "cse", True
    CONCAT = "cat", "concat"
    MAX_POOL = "max_pool", "max_pool"
    AVG_POOL = "avg_pool", "avg_pool", True
    GLOBAL_AVG_POOL = "adaptive_avg_pool", "glob_avg", True
    SPATIAL_MEAN = "mean", "glob_avg", True
    #: Changes no value (dropout is the identity in eval), so a quantized tensor stays quantized.
    RESHAPE = "reshape"
    SOFTMAX = "softmax"
    #: An integer or a shape, not a tensor of activations.
    NOT_A_TENSOR = "not_a_tensor"
    OUTPUT = "output"
    OTHER = "other"


#: Layers whose weight is quantized.
WEIGHTED = (Kind.CONV, Kind.LINEAR)
#: Pooling with a window of its own size and stride.
WINDOWED_POOLS = (Kind.MAX_POOL, Kind.AVG_POOL)


@dataclass(frozen=True)
class Operation:
    """One operation and the ways to call it.

    Attributes:
        kind: what it does.
        modules: its layers, including their subclasses.
        functions: functions that compute it.
        methods: names of tensor methods that compute it.
    """

    kind: Kind
    modules: tuple[type[nn.Module], ...] = ()
    functions: tuple[Callable[..., Any], ...] = ()
    methods: tuple[str, ...] = ()


def _named(
    names: str,
    kind: Kind,
    *modules: type[nn.Module],
    functions: tuple[Callable[..., Any], ...] = (),
) -> Operation:
    """With the functions of ``torch`` and ``torch.nn.functional``, and the methods, of these names."""
    listed = names.split()
    found = [getattr(owner, name, None) for owner in (torch, F) for name in listed]
    methods = tuple(name for name in listed if hasattr(Tensor, name))
    return Operation(kind, modules, (*functions, *(f for f in found if callable(f))), methods)


#: A layer that is a subclass of another, as ReLU6 is of Hardtanh, comes first.
OPERATIONS: dict[str, Operation] = {
    "conv": Operation(Kind.CONV, (nn.Conv2d,)),
    "linear": Operation(Kind.LINEAR, (nn.Linear,)),
    "batch_norm": Operation(Kind.BATCH_NORM, (nn.BatchNorm2d, nn.BatchNorm1d, nn.SyncBatchNorm)),
    "layer_norm": Operation(Kind.OTHER_NORM, (nn.LayerNorm,)),
    "group_norm": Operation(Kind.OTHER_NORM, (nn.GroupNorm,)),
    "instance_norm": Operation(Kind.OTHER_NORM, (nn.InstanceNorm2d,)),
    "rms_norm": Operation(Kind.OTHER_NORM, (nn.RMSNorm,)),
    "relu": _named("relu relu_", Kind.ACTIVATION, nn.ReLU),
    "relu6": _named("relu6", Kind.ACTIVATION, nn.ReLU6),
    "leaky_relu": _named("leaky_relu leaky_relu_", Kind.ACTIVATION, nn.LeakyReLU),
    "prelu": _named("prelu", Kind.ACTIVATION, nn.PReLU),
    "rrelu": Operation(Kind.ACTIVATION, (nn.RReLU,)),
    "elu": _named("elu elu_", Kind.ACTIVATION, nn.ELU),
    "selu": _named("selu", Kind.ACTIVATION, nn.SELU),
    "celu": _named("celu", Kind.ACTIVATION, nn.CELU),
    "gelu": _named("gelu", Kind.ACTIVATION, nn.GELU),
    "silu": _named("silu", Kind.ACTIVATION, nn.SiLU),
    "mish": _named("mish", Kind.ACTIVATION, nn.Mish),
    "hardswish": _named("hardswish", Kind.ACTIVATION, nn.Hardswish),
    "hardsigmoid": _named("hardsigmoid", Kind.ACTIVATION, nn.Hardsigmoid),
    "hardtanh": _named("hardtanh", Kind.ACTIVATION, nn.Hardtanh),
    "clamp": _named("clamp clamp_ clip", Kind.ACTIVATION),
    "sigmoid": _named("sigmoid sigmoid_", Kind.ACTIVATION, nn.Sigmoid),
    "log_sigmoid": Operation(Kind.ACTIVATION, (nn.LogSigmoid,)),
    "tanh": _named("tanh tanh_", Kind.ACTIVATION, nn.Tanh),
    "softplus": _named("softplus", Kind.ACTIVATION, nn.Softplus),
    "softsign": Operation(Kind.ACTIVATION, (nn.Softsign,)),
    "threshold": _named("threshold", Kind.ACTIVATION, nn.Threshold),
    "softmax": _named(
        *("softmax log_softmax", Kind.SOFTMAX), *(nn.Softmax, nn.LogSoftmax, nn.Softmax2d)
    ),
    "max_pool": _named("max_pool2d", Kind.MAX_POOL, nn.MaxPool2d),
    "avg_pool": _named("avg_pool2d", Kind.AVG_POOL, nn.AvgPool2d),
    "adaptive_avg_pool": _named("adaptive_avg_pool2d", Kind.GLOBAL_AVG_POOL, nn.AdaptiveAvgPool2d),
    "mean": _named("mean", Kind.SPATIAL_MEAN),
    "add": _named("add add_", Kind.ADD, functions=(operator.add, operator.iadd)),
    "sub": _named("sub sub_", Kind.ADD, functions=(operator.sub, operator.isub)),
    "mul": _named("mul mul_", Kind.MULTIPLY, functions=(operator.mul, operator.imul)),
    "cat": _named("cat concat concatenate", Kind.CONCAT),
    "identity": Operation(Kind.RESHAPE, (nn.Identity,)),
    "dropout": Operation(Kind.RESHAPE, (_DropoutNd,), (F.dropout, F.dropout2d)),
    "flatten": _named("flatten", Kind.RESHAPE, nn.Flatten),
    "unflatten": Operation(Kind.RESHAPE, (nn.Unflatten,)),
    "view": _named("view", Kind.RESHAPE),
    "reshape": _named("reshape", Kind.RESHAPE),
    "squeeze": _named("squeeze", Kind.RESHAPE),
    "unsqueeze": _named("unsqueeze", Kind.RESHAPE),
    "permute": _named("permute", Kind.RESHAPE),
    "transpose": _named("transpose", Kind.RESHAPE),
    "contiguous": _named("contiguous", Kind.RESHAPE),
    "split": _named("chunk split unbind", Kind.RESHAPE, functions=(operator.getitem,)),
    "expand": _named("expand repeat", Kind.RESHAPE),
    "copy": _named("clone detach to float", Kind.RESHAPE),
    "pad": Operation(Kind.RESHAPE, (nn.ZeroPad2d,), (F.pad,)),
    "channel_shuffle": _named("channel_shuffle", Kind.RESHAPE, nn.ChannelShuffle),
    "pixel_shuffle": _named("pixel_shuffle", Kind.RESHAPE, nn.PixelShuffle),
    "pixel_unshuffle": Operation(Kind.RESHAPE, (nn.PixelUnshuffle,)),
    "size": Operation(Kind.NOT_A_TENSOR, methods=("size", "dim", "numel", "ndimension", "item")),
}
_BY_FUNCTION = {f: op for op in OPERATIONS.values() for f in op.functions}
_BY_METHOD = {name: op for op in OPERATIONS.values() for name in op.methods}
_WITH_MODULES = tuple(op for op in OPERATIONS.values() if op.modules)
_MEANS = {*OPERATIONS["mean"].functions, *OPERATIONS["mean"].methods}
_TENSOR_ATTRIBUTES = {"T", "mT", "H", "mH", "data", "real"}
_ARITHMETIC = {Kind.ADD, Kind.MULTIPLY, Kind.RESHAPE, Kind.OTHER, Kind.CONCAT}


def conv_primitive(groups: int, dilation: int) -> str:
    """Primitive of a convolution: if grouped, ``sep_conv``, or ``dil_conv`` if also dilated."""
    if groups == 1:
        return "conv"
    return "dil_conv" if dilation > 1 else "sep_conv"


def find_operation(node: fx.Node, modules: dict[str, nn.Module]) -> Operation | None:
    """The operation that a node calls; None if it is not in the table."""
    if node.op == "call_module":
        return _operation_of(modules[str(node.target)])
    if node.op == "call_function":
        return _BY_FUNCTION.get(node.target)  # type: ignore[arg-type]
    return _BY_METHOD.get(str(node.target)) if node.op == "call_method" else None


def _operation_of(module: nn.Module) -> Operation | None:
    return next((op for op in _WITH_MODULES if isinstance(module, op.modules)), None)


def module_kind(module: nn.Module) -> Kind:
    """The kind of operation that a call of ``module``, kept whole, performs."""
    operation = _operation_of(module)
    if operation is not None:
        return operation.kind
    weight = module._parameters.get("weight")
    is_norm = weight is not None and weight.dim() == 1  # a model zoo's own
    return Kind.OTHER_NORM if is_norm else Kind.OTHER


def classify(graph: fx.Graph, modules: dict[str, nn.Module]) -> dict[fx.Node, Kind]:
    """The kind of each node of ``graph``, in the graph's order.

    ``modules`` maps names, as call_module nodes use them, to modules.
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


def _classify_node(node: fx.Node, modules: dict[str, nn.Module]) -> Kind:
    if node.op == "placeholder":
        return Kind.INPUT
    if node.op == "output":
        return Kind.OUTPUT
    if node.op == "call_module":
        return module_kind(modules[str(node.target)])
    if node.target is getattr:
        return Kind.RESHAPE if node.args[1] in _TENSOR_ATTRIBUTES else Kind.NOT_A_TENSOR
    operation = find_operation(node, modules)
    if operation is None:
        return Kind.OTHER
    if operation.kind is Kind.SPATIAL_MEAN and not is_mean_over(node, (2, 3)):
        return Kind.OTHER
    return operation.kind


def _tensor_operands(node: fx.Node, kinds: dict[fx.Node, Kind]) -> int:
    operands = [*node.args[:2], node.kwargs.get("other")]
    return sum(isinstance(a, fx.Node) and kinds[a] is not Kind.NOT_A_TENSOR for a in operands)


def is_mean_over(node: fx.Node, dims: tuple[int, ...]) -> bool:
    """Whether a node is a mean over these dimensions of a 4-dimensional tensor."""
    if node.op not in ("call_function", "call_method") or node.target not in _MEANS:
        return False
    found = argument(node, 1, "dim", None)
    if not isinstance(found, (tuple, list)):
        return False
    return tuple(sorted(d % 4 if isinstance(d, int) else -1 for d in found)) == dims


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
    return 3, 3  # a size computed at run time; the public GHN-2 code uses 3 too


def keeps_dimensions(node: fx.Node) -> bool:
    """Whether a mean over H and W returns (N, C, 1, 1) rather than (N, C)."""
    return bool(argument(node, 2, "keepdim", False))
