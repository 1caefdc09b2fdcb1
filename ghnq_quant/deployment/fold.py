"""Fold a quantized model: batch norms into convolutions, weights and ranges fixed for good."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import torch
from torch import fx, nn

from ghnq_quant.capture import Unit
from ghnq_quant.deployment.layers import FixedQuantizer, FoldedLayer, folded_layer
from ghnq_quant.deployment.moves import quantize_joined, quantize_parts
from ghnq_quant.errors import ConversionError
from ghnq_quant.quantization.backends import Backend
from ghnq_quant.quantization.batch_norm import fold_running_statistics, has_running_statistics
from ghnq_quant.quantization.graph_rewrite import QUANTIZERS
from ghnq_quant.quantization.integer_bias import fine_scale, rounding_of
from ghnq_quant.quantization.layerwise import LayerwiseModel
from ghnq_quant.quantization.model import QuantModel

_TRAIN = "train it, or call ghnq_quant.calibrate(model, batches)"


@torch.no_grad()
def fold(model: QuantModel) -> fx.GraphModule:
    """The model as one graph of folded layers and fixed quantizers, with the same names.

    Args:
        model: a model of any backend; it is not changed.

    Raises:
        ConversionError: a batch norm has no running statistics, an activation has no fixed range,
            or ``model`` is not a quantized model made of a backend's layers.
    """
    if not isinstance(model, QuantModel):
        raise ConversionError(
            f"expected a model from ghnq_quant.init_quantized or quantize, not {type(model).__name__}"
        )
    if not isinstance(model, LayerwiseModel):
        raise ConversionError(
            f"{type(model).__name__} comes from a toolkit that makes and converts whole models: use "
            "the toolkit's own conversion (docs/how-to/torch_ao.md)"
        )
    graph, backend = _Tracer().trace(model), model.backend
    units = {unit.name: unit for unit in model.plan.units}
    modules: dict[str, Any] = {}
    for node in list(graph.nodes):
        if node.op == "get_attr":
            modules[node.target] = copy.deepcopy(_attribute(model, node.target))
        if node.op != "call_module":
            continue
        module = model.get_submodule(node.target)
        if node.target in units:
            modules[node.target] = _folded(model, backend, units[node.target])
        elif node.target.startswith(f"{QUANTIZERS}."):
            modules[node.target] = _fixed(model, backend, node.target)
        elif isinstance(module, (nn.modules.dropout._DropoutNd, nn.Identity)):
            node.replace_all_uses_with(node.args[0])
            graph.erase_node(node)
        else:
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                _check_statistics(module, node.target)
            modules[node.target] = copy.deepcopy(module).eval()
    graph.lint()
    folded = fx.GraphModule(modules, graph, "FoldedModel").eval().requires_grad_(False)
    quantize_parts(folded)
    quantize_joined(folded)
    return folded


def _attribute(model: nn.Module, target: str) -> Any:
    owner, _, name = target.rpartition(".")
    return getattr(model.get_submodule(owner), name)


def _folded(model: LayerwiseModel, backend: Backend, unit: Unit) -> FoldedLayer:
    layer: Any = model.get_submodule(unit.name)
    weight, bias = layer.weight, layer.bias
    if unit.batch_norm is not None:
        norm = model.get_submodule(unit.batch_norm)
        assert isinstance(norm, nn.BatchNorm2d)
        _check_statistics(norm, unit.batch_norm)
        weight, bias = fold_running_statistics(layer, norm, layer.limit)
    if bias is not None:
        bias = rounding_of(layer)(bias, weight)
    qparams = backend.weight_qparams(layer, weight)
    if qparams is not None:
        qparams = replace(qparams, scale=fine_scale(qparams, weight))
    return folded_layer(layer, weight, bias, qparams)


def _fixed(model: LayerwiseModel, backend: Backend, target: str) -> FixedQuantizer:
    qparams = backend.activation_qparams(model.get_submodule(target))
    if qparams is None:
        raise ConversionError(
            f"{target!r} takes its range from each batch, so there is no fixed scale to convert: "
            "use QuantScheme(act_range='ema'), or Quantizer(range='ema')"
            if _is_of_batch(model, target)
            else f"{target!r} has no range yet: {_TRAIN}"
        )
    return FixedQuantizer(qparams)


def _is_of_batch(model: LayerwiseModel, target: str) -> bool:
    points = {point.key: point for point in model.plan.points}
    point = points[target.removeprefix(f"{QUANTIZERS}.")]
    return model.scheme.activations_of(point).range == "batch"


def _check_statistics(norm: nn.modules.batchnorm._BatchNorm, name: str) -> None:
    if not has_running_statistics(norm):
        hint = _TRAIN if norm.track_running_stats else "it needs track_running_stats=True"
        raise ConversionError(f"batch norm {name!r} has no running statistics: {hint}")


class _Tracer(fx.Tracer):
    """Keeps every module whole, and records which module each node calls: exporters name a node's
    parameters after it."""

    proxy_buffer_attributes = True

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return True
