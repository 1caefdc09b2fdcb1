"""Write a trained quantized model as an ExecuTorch program that XNNPACK runs."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn

from ghnq_quant.capture.operations import OPERATIONS, find_operation
from ghnq_quant.deployment.fold import fold
from ghnq_quant.deployment.int8_weights import int8_weight
from ghnq_quant.deployment.layers import FixedQuantizer, FoldedConv2d, FoldedLayer, FoldedLinear
from ghnq_quant.deployment.moves import clamp_bounds, quantize_behind_relu, quantize_joined
from ghnq_quant.errors import ConversionError, warn
from ghnq_quant.extras import how_to_install
from ghnq_quant.files import replacing
from ghnq_quant.quantization.integer_bias import LARGEST_BIAS
from ghnq_quant.quantization.model import QuantModel
from ghnq_quant.quantization.targets import find_target

#: From the levels 0 … 255 of a :class:`FixedQuantizer` to int8.
_SHIFT = 128
_INT8 = (-128, 127, torch.int8)
#: Operations whose result lies on the levels of their input.
_KEEP_LEVELS = [
    OPERATIONS[name] for name in ("max_pool", "flatten", "reshape", "squeeze", "unsqueeze")
]


def export_pte(model: QuantModel, path: str | Path, example_input: Tensor) -> Path:
    """Write a trained quantized model as an ExecuTorch program, lowered to XNNPACK.

    A convolution or linear layer whose input and output are quantized runs on integers. Others, such
    as the classifier, whose logits are not quantized, run in float with their quantized weights.

    Args:
        model: a trained or calibrated model with ``QuantScheme.for_target("xnnpack", …)``, of any
            backend except ``pt2e``; it is not changed.
        path: the file to write.
        example_input: (N, C, H, W), float32. The program accepts only this shape.

    Returns:
        ``path``.

    Raises:
        ConversionError: ExecuTorch is not installed, there are no running statistics or fixed
            ranges yet, XNNPACK has no integer kernels for a quantizer, or ExecuTorch cannot lower
            the model.

    Example:
        >>> import ghnq_quant, tempfile, torch
        >>> from torch import nn
        >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 1))
        >>> scheme = ghnq_quant.QuantScheme.for_target("xnnpack")
        >>> qat = ghnq_quant.quantize(model, scheme=scheme)
        >>> images = torch.rand(16, 3, 8, 8)
        >>> _ = qat(images)  # your training
        >>> file = ghnq_quant.export_pte(qat, tempfile.mkdtemp() + "/model.pte", images[:1])
    """
    try:
        from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
        from executorch.exir import to_edge_transform_and_lower
    except ImportError as error:
        raise ConversionError(
            f"export_pte needs the package 'executorch': {how_to_install('executorch')}"
        ) from error
    folded = fold(model).cpu()
    quantize_joined(folded, share=True)
    quantize_behind_relu(folded)
    _to_integers(folded)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's, about its own internals
            exported = torch.export.export(folded, (example_input.cpu(),))
            lowered = to_edge_transform_and_lower(exported, partitioner=[XnnpackPartitioner()])
            content = lowered.to_executorch().buffer
    except Exception as error:
        raise ConversionError(f"ExecuTorch cannot lower the model: {error}") from error
    with replacing(path) as temporary:
        temporary.write_bytes(content)
    return Path(path)


def _to_integers(folded: fx.GraphModule) -> None:
    """Express quantizers, and the weights of layers between two of them, in PT2E's operators."""
    _requantize(folded)
    modules = dict(folded.named_modules())
    for node in list(folded.graph.nodes):
        quantizer = _module(node, modules)
        if isinstance(quantizer, FixedQuantizer):
            _replace(node, quantizer)
    in_float: dict[str, str] = {}
    for node in folded.graph.nodes:
        layer, name = _module(node, modules), str(node.target)
        if isinstance(layer, (FoldedConv2d, FoldedLinear)) and layer.weight_quant is not None:
            reason = _why_float(node, layer, modules)
            if reason is None:
                folded.set_submodule(name, _IntegerLayer(name, layer))
            elif all(user.op != "output" for user in node.users):
                in_float[name] = reason
    folded.recompile()
    if in_float:
        name, reason = next(iter(in_float.items()))
        warn(f"{len(in_float)} layers run in float in xnnpack; the first is {name!r}: {reason}")


def _requantize(folded: fx.GraphModule) -> None:
    """Quantize again after pooling and reshaping, which changes no value: XNNPACK's integer kernels
    need a quantizer right before and right after each operation."""
    modules = dict(folded.named_modules())
    for node in list(folded.graph.nodes):
        source = node.args[0] if node.args else None
        if (
            isinstance(source, fx.Node)
            and isinstance(_module(source, modules), FixedQuantizer)
            and _keeps_levels(node, modules)
        ):
            with folded.graph.inserting_after(node):
                again = folded.graph.call_module(str(source.target), (node,))
            node.replace_all_uses_with(
                again, delete_user_cb=lambda user, own=again: user is not own
            )


def _keeps_levels(node: fx.Node, modules: dict[str, nn.Module]) -> bool:
    operation = find_operation(node, modules)
    if operation is OPERATIONS["pad"]:
        return not (node.args[3] if len(node.args) > 3 else node.kwargs.get("value"))
    return operation in _KEEP_LEVELS


def _replace(node: fx.Node, quantizer: FixedQuantizer) -> None:
    """A quantize, and a dequantize per user: XNNPACK's partitioner fuses each with its user."""
    if quantizer.levels != (0, 255):
        raise ConversionError(
            f"{node.target!r} is {quantizer.quantizer}, but xnnpack has integer kernels only for "
            "asymmetric 8-bit activations: make the model with "
            "QuantScheme.for_target('xnnpack')"
        )
    operators = torch.ops.quantized_decomposed
    parameters = (float(quantizer.scale), int(quantizer.zero_point) - _SHIFT, *_INT8)
    graph = node.graph
    with graph.inserting_before(node):
        quantize = graph.call_function(
            operators.quantize_per_tensor.default, (node.args[0], *parameters)
        )
    for user in list(node.users):
        with graph.inserting_before(user):
            dequantize = graph.call_function(
                operators.dequantize_per_tensor.default, (quantize, *parameters)
            )
        user.replace_input_with(node, dequantize)
    graph.erase_node(node)


def _why_float(node: fx.Node, layer: FoldedLayer, modules: dict[str, nn.Module]) -> str | None:
    """Why a layer cannot use XNNPACK's integer kernels; None if it can."""
    operators = torch.ops.quantized_decomposed
    source, user = node.all_input_nodes[0], _only_user(node)
    if source.target is not operators.dequantize_per_tensor.default:
        return "its input is not quantized"
    if user is not None and clamp_bounds(user, modules) is not None:
        user = _only_user(user)
    if user is None or user.target is not operators.quantize_per_tensor.default:
        return "no quantizer follows it, or its ReLU, ReLU6 or Hardtanh"
    if isinstance(layer, FoldedConv2d) and layer.padding_mode != "zeros":
        return f"its padding is {layer.padding_mode!r}"
    assert layer.weight_quant is not None
    step = float(source.args[1]) * layer.weight_quant.scale  # type: ignore[arg-type]
    if layer.bias is not None and (layer.bias.detach().abs() > LARGEST_BIAS * step).any():
        return "its bias does not fit in int32 in steps of input scale · weight scale"
    return None


def _only_user(node: fx.Node) -> fx.Node | None:
    return next(iter(node.users)) if len(node.users) == 1 else None


def _module(node: fx.Node, modules: dict[str, nn.Module]) -> Any:
    return modules[str(node.target)] if node.op == "call_module" else None


class _IntegerLayer(nn.Module):
    """A layer whose weight is int8, dequantized in the graph."""

    levels: Tensor
    scale: Tensor
    zero_point: Tensor

    def __init__(self, name: str, layer: FoldedLayer) -> None:
        super().__init__()
        levels, q = int8_weight(name, layer, find_target("xnnpack"))
        scale = q.scale.float().expand(len(levels)).contiguous()
        self.register_buffer("levels", levels.to(torch.int8))
        self.register_buffer("scale", scale)
        self.register_buffer("zero_point", torch.zeros(len(levels), dtype=torch.int64))
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        weight = torch.ops.quantized_decomposed.dequantize_per_channel.default(
            self.levels, self.scale, self.zero_point, 0, *_INT8
        )
        if isinstance(self.layer, FoldedConv2d):
            return self.layer._conv_forward(x, weight, self.layer.bias)
        return nn.functional.linear(x, weight, self.layer.bias)
