"""Exact changes to a folded model, after which runtimes can run more of it on integers."""

from __future__ import annotations

import copy
import math
import operator
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch.nn.functional as F
from torch import fx, nn

from ghnq_quant.capture.operations import OPERATIONS, Kind, find_operation
from ghnq_quant.deployment.layers import FixedQuantizer, FoldedConv2d
from ghnq_quant.quantization.graph_rewrite import QUANTIZERS

Bounds = tuple[float, float]
#: Operations that leave each value on its level.
_KEEP_LEVELS = (Kind.RESHAPE, Kind.MAX_POOL)


def clamp_bounds(node: fx.Node, modules: dict[str, nn.Module]) -> Bounds | None:
    """The bounds of an activation function that only clamps; None for others."""
    operation = find_operation(node, modules)
    module: Any = modules[str(node.target)] if node.op == "call_module" else None
    if operation is OPERATIONS["relu"]:
        return 0.0, math.inf
    if operation is OPERATIONS["relu6"]:
        return 0.0, 6.0
    if isinstance(module, nn.Hardtanh):
        return float(module.min_val), float(module.max_val)
    return None


def quantize_behind_relu(folded: fx.GraphModule) -> None:
    """Move quantizers that only a ReLU reads behind that ReLU: round(x / scale) and ReLU commute.

    A residual's sum is quantized before its ReLU, but runtimes fuse the addition with the ReLU and
    expect the input of a convolution to be quantized.
    """
    modules = dict(folded.named_modules())
    for quantize, _ in _quantizers(folded):
        relu = _relu_behind(quantize, modules)
        if relu is not None:
            relu.replace_input_with(quantize, quantize.all_input_nodes[0])
            relu.append(quantize)
            relu.replace_all_uses_with(quantize)
            quantize.update_arg(0, relu)
    folded.recompile()


def quantize_joined(folded: fx.GraphModule, *, share: bool = False) -> None:
    """Quantize what a quantized concatenation joins, by the same quantizer, so that the layers before
    it run on integers too: rounding and concatenating commute.

    Args:
        share: also what is quantized already, with another scale. onnxruntime would merge two such
            quantizers in a row into one, which is not exact.
    """
    for quantize, quantizer in _quantizers(folded):
        join = quantize.all_input_nodes[0]
        modules = dict(folded.named_modules())
        if find_operation(join, modules) is not OPERATIONS["cat"]:
            continue
        for source in join.all_input_nodes:
            own = _quantizer_of(source, modules)
            if own is None or (share and own.qparams != quantizer.qparams):
                _insert_copy(quantizer, folded, source, [join])
    folded.recompile()


def quantize_parts(folded: fx.GraphModule) -> None:
    """Quantize again what was cut from a quantized tensor, which changes no value: integer kernels
    need a quantizer near their input, and runtimes look for it only behind some operations."""
    modules = dict(folded.named_modules())
    for node in list(folded.graph.nodes):
        is_tuple = all(user.target is operator.getitem for user in node.users)
        if is_tuple or find_operation(node, modules) is not OPERATIONS["split"]:
            continue
        quantizer = _quantizer_of(node, modules)
        if quantizer is not None:
            _insert_copy(quantizer, folded, node, list(node.users))
    folded.recompile()


def _quantizer_of(node: fx.Node, modules: dict[str, nn.Module]) -> FixedQuantizer | None:
    """The quantizer on whose levels a value lies."""
    while (operation := find_operation(node, modules)) and operation.kind in _KEEP_LEVELS:
        node = node.all_input_nodes[0]
    quantizer = modules.get(str(node.target))
    return quantizer if isinstance(quantizer, FixedQuantizer) else None


def _insert_copy(
    quantizer: FixedQuantizer, folded: fx.GraphModule, node: fx.Node, users: list[fx.Node]
) -> None:
    """Quantize what ``users`` read of ``node``, by a quantizer of its own, which exporters may change."""
    name = f"{QUANTIZERS}.{node.name}_again"
    while name in dict(folded.named_modules()):
        name += "_"
    folded.add_submodule(name, copy.deepcopy(quantizer))
    with folded.graph.inserting_after(node):
        again = folded.graph.call_module(name, (node,))
    for user in users:
        user.replace_input_with(node, again)


def unclamp_covered(folded: fx.GraphModule) -> None:
    """Turn a ReLU6 into a ReLU if only a quantizer reads it, with no level above 6."""
    modules = dict(folded.named_modules())
    for quantize, quantizer in _quantizers(folded):
        clamp = quantize.all_input_nodes[0]
        low, high = clamp_bounds(clamp, modules) or (-math.inf, math.inf)
        covered = _levels_between(quantizer, (low, high))[1] == quantizer.levels[1]
        if low == 0 and covered and len(clamp.users) == 1:
            with folded.graph.inserting_before(clamp):
                relu = folded.graph.call_function(F.relu, (clamp.all_input_nodes[0],))
            clamp.replace_all_uses_with(relu)
            folded.graph.erase_node(clamp)
    folded.recompile()


def match_signs(folded: fx.GraphModule) -> None:
    """Give symmetric quantizers unsigned levels right after a ReLU and signed levels elsewhere, with
    one bit less or more, so that they stand for the same values."""
    modules = dict(folded.named_modules())
    for quantize, quantizer in _quantizers(folded):
        kind, source = quantizer.quantizer, quantize.all_input_nodes[0]
        unsigned = find_operation(source, modules) is OPERATIONS["relu"]
        bits = kind.bits - 1 if unsigned else kind.bits + 1
        if kind.symmetric and kind.signed == unsigned and 2 <= bits <= 8:
            other = replace(kind, bits=bits, never_negative=unsigned)
            matched = FixedQuantizer(replace(quantizer.qparams, quantizer=other))
            folded.set_submodule(str(quantize.target), matched)


def absorb_clamps(folded: fx.GraphModule) -> None:
    """Let quantizers clamp in place of a ReLU or ReLU6 before them that has no other reader, and of
    a ReLU after them: rounding is monotone, so each bound becomes a level."""
    modules = dict(folded.named_modules())
    for quantize, quantizer in _quantizers(folded):
        before = quantize.all_input_nodes[0]
        bounds = clamp_bounds(before, modules) if len(before.users) == 1 else None
        if bounds is not None:
            quantizer.levels = _levels_between(quantizer, bounds)
            quantize.replace_input_with(before, before.all_input_nodes[0])
            folded.graph.erase_node(before)
        relu = _relu_behind(quantize, modules)
        if relu is not None:
            quantizer.levels = _levels_between(quantizer, (0.0, math.inf))
            relu.replace_all_uses_with(quantize)
            folded.graph.erase_node(relu)
    folded.recompile()


def keep_rounding(folded: fx.GraphModule) -> None:
    """Put a leaky ReLU of slope 1, which changes no value, between a convolution and its quantizer
    if the result is added to something.

    OpenVINO's CPU plugin fuses convolution, quantizer, addition and the quantizer after it into one
    kernel, and drops the first rounding unless something else comes before it.
    """
    modules = dict(folded.named_modules())
    for quantize, _ in _quantizers(folded):
        layer = quantize.all_input_nodes[0]
        joined = any(len(user.all_input_nodes) > 1 for user in quantize.users)
        if joined and isinstance(modules.get(str(layer.target)), FoldedConv2d):
            with folded.graph.inserting_before(quantize):
                same = folded.graph.call_function(F.leaky_relu, (layer, 1.0))
            quantize.replace_input_with(layer, same)
    folded.recompile()


def pad_input_channels(folded: fx.GraphModule, multiple: int) -> None:
    """Pad the image with channels of zeros to a multiple, and the weights of the convolutions that
    read it to match, also with zeros."""
    modules = dict(folded.named_modules())
    for quantize, _ in _quantizers(folded):
        image = quantize.all_input_nodes[0]
        layers = [modules.get(str(user.target)) for user in quantize.users]
        convolutions = [m for m in layers if isinstance(m, FoldedConv2d) and m.groups == 1]
        if image.op != "placeholder" or not layers or len(convolutions) < len(layers):
            continue
        more = -convolutions[0].in_channels % multiple
        padding = (0, 0, 0, 0, 0, more)
        if more:
            for layer in convolutions:
                layer.weight = nn.Parameter(F.pad(layer.weight, padding), requires_grad=False)
            with folded.graph.inserting_before(quantize):
                padded = folded.graph.call_function(F.pad, (image, padding))
            quantize.replace_input_with(image, padded)
    folded.recompile()


def _levels_between(quantizer: FixedQuantizer, bounds: Bounds) -> tuple[int, int]:
    """The lowest and highest level of a quantizer for values between two bounds."""
    low, high = quantizer.levels

    def level(bound: float) -> int:
        """Rounded as tensors are, in the quantizer's own dtype."""
        if math.isinf(bound):
            return low if bound < 0 else high
        steps = (quantizer.scale.new_tensor(bound) / quantizer.scale).round()
        return int((steps + quantizer.zero_point).clamp(low, high))

    return level(bounds[0]), level(bounds[1])


def _quantizers(folded: fx.GraphModule) -> Iterator[tuple[fx.Node, FixedQuantizer]]:
    for node in list(folded.graph.nodes):
        module = folded.get_submodule(str(node.target)) if node.op == "call_module" else None
        if isinstance(module, FixedQuantizer):
            yield node, module


def _relu_behind(quantize: fx.Node, modules: dict[str, nn.Module]) -> fx.Node | None:
    user = next(iter(quantize.users)) if len(quantize.users) == 1 else None
    if user is not None and find_operation(user, modules) is OPERATIONS["relu"]:
        return user
    return None
