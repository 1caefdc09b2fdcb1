"""Empirical bias correction: restore every layer's mean output to the float network's.

Rounding a weight shifts the mean of its output channels, because their inputs are not zero on average;
quantized inputs shift it too. Nagel et al. 2019, "Data-Free Quantization Through Weight Equalization
and Bias Correction", section 4.2 (equation 17) and appendix D: E[y] of the float network minus E[y] of
the quantized one is added to the bias, layer by layer, each with the previous ones corrected.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from ghnq_quant.capture import Unit
from ghnq_quant.errors import DataError, warn
from ghnq_quant.quantization.calibration import image_batches
from ghnq_quant.quantization.graph_rewrite import QUANTIZERS
from ghnq_quant.quantization.layerwise import LayerwiseModel, as_layerwise
from ghnq_quant.quantization.model import QuantModel

#: One value for each batch.
Values = list[Any]


@torch.no_grad()
def correct_biases(
    qmodel: QuantModel, batches: Iterable[Tensor | tuple[Tensor, ...]]
) -> QuantModel:
    """Correct the shift that quantization causes in the mean of each layer's channels.

    Each layer's bias, or β of the batch norm that it folds, gets the difference between the float and
    the quantized network's means over all ``batches``, before the activation function. Layers are
    corrected in the order of execution, so each one reads the output of corrected ones. The float
    network is ``qmodel`` without quantizers; its batch norms normalize by the images at hand, as
    those of a trained network do on average. So with a batch norm the mean becomes β again, even if
    ``calibrate`` has estimated the statistics of the quantized network.

    A layer with neither bias nor batch norm stays as it is, and a warning names it. All feature maps
    of a layer are in memory at once: a few hundred images are enough.

    Args:
        qmodel: a calibrated model; it is changed in place.
        batches: batches of images (N, C, H, W) on the model's device, alone or first in a tuple.

    Returns:
        ``qmodel`` itself.

    Raises:
        DataError: there is no batch, a batch is empty or not a tensor, or the model is not
            calibrated.
        BackendError: a model of ``"pt2e"``, or of another backend that makes whole models.

    Example:
        >>> import ghnq_quant, torch
        >>> from torch import nn
        >>> images = torch.rand(64, 3, 8, 8)
        >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU())
        >>> qmodel = ghnq_quant.quantize(net, bits=(2, 8))
        >>> qmodel = ghnq_quant.calibrate(qmodel, [images])
        >>> before = (qmodel.eval()(images) - net(images)).mean((0, 2, 3)).abs().max()
        >>> qmodel = ghnq_quant.correct_biases(qmodel, [images])
        >>> bool((qmodel(images) - net(images)).mean((0, 2, 3)).abs().max() < before)
        True
    """
    model = as_layerwise(qmodel, "correct_biases")
    images = list(image_batches(batches, "correct_biases"))
    modes = {m: m.training for m in model.modules()}
    try:
        model.eval()
        missing = model.missing_statistics()
        if missing:
            raise DataError(
                f"{missing[0]!r} has no statistics yet, so eval uses those of each batch: call "
                "ghnq_quant.calibrate first"
            )
        without = _correct(model, images)
    finally:
        for module, training in modes.items():
            module.training = training
    if without:
        warn(
            f"{len(without)} layers ({without[0]!r}) have neither a bias nor a batch norm with one: "
            "their mean output was not corrected"
        )
    return model


def _correct(model: LayerwiseModel, images: list[Tensor]) -> list[str]:
    """Correct all layers; returns the names of those without a bias to correct."""
    units = {unit.name: unit for unit in model.plan.units}
    float_flow, quantized_flow = _Flow(model, images), _Flow(model, images)
    without = []
    for node in model.graph.nodes:
        expected = float_flow.run(node, _float_values(model, node))
        found = quantized_flow.run(node)
        if node.target not in units:
            continue
        bias = _bias(model, units[node.target])
        if bias is None:
            without.append(node.target)
            continue
        maps = found[0].dim() == 4
        dim = 1 if maps else -1
        shift = _means(expected, dim) - _means(found, dim)
        bias += shift
        for y in found:
            y += shift.view(-1, 1, 1) if maps else shift
    return without


class _Flow:
    """Values of a graph's nodes, for all batches, kept until the last node that reads them."""

    def __init__(self, model: LayerwiseModel, images: list[Tensor]) -> None:
        self._interpreter = fx.Interpreter(model)
        self._images = images
        self._values: dict[fx.Node, Values] = {}

    def run(self, node: fx.Node, instead: Callable[[Values], Values] | None = None) -> Values:
        """The value of ``node`` for each batch, once its inputs have run.

        Args:
            instead: applied to the first input's values, instead of what ``node`` calls.
        """
        if node.op == "placeholder":
            values: Values = self._images
        elif instead is not None:
            values = instead(self._values[node.all_input_nodes[0]])
        else:
            values = [self._run(node, number) for number in range(len(self._images))]
        self._values[node] = values
        for read in self._interpreter.user_to_last_uses.get(node, []):
            del self._values[read]
        return values

    def _run(self, node: fx.Node, number: int) -> Any:
        inputs = node.all_input_nodes
        self._interpreter.env = {read: self._values[read][number] for read in inputs}
        return self._interpreter.run_node(node)


def _float_values(model: LayerwiseModel, node: fx.Node) -> Callable[[Values], Values] | None:
    """What the float network does in place of ``node``; None if the same as the quantized one."""
    if node.op != "call_module":
        return None
    if str(node.target).startswith(f"{QUANTIZERS}."):
        return lambda values: values
    module = model.get_submodule(str(node.target))
    if isinstance(module, nn.modules.batchnorm._BatchNorm):
        return lambda values: _normalized(values, module)
    unit = next((u for u in model.plan.units if u.name == node.target), None)
    return None if unit is None else lambda values: _float_unit(model, unit, values)


def _float_unit(model: LayerwiseModel, unit: Unit, values: Values) -> Values:
    layer: Any = model.get_submodule(unit.name)
    if isinstance(layer, nn.Linear):
        return [F.linear(x, layer.weight, layer.bias) for x in values]
    z = [layer._conv_forward(x, layer.weight, layer.bias) for x in values]
    return z if unit.batch_norm is None else _normalized(z, model.get_submodule(unit.batch_norm))


def _normalized(values: Values, norm: Any) -> Values:
    """Batch norm with the statistics of all ``values``."""
    mean = _means(values, 1)
    columns = mean.view(-1, *[1] * (values[0].dim() - 2))
    variance = _means([(z - columns).square() for z in values], 1)
    parameters = mean, variance, norm.weight, norm.bias
    return [F.batch_norm(z, *parameters, eps=norm.eps) for z in values]


def _means(values: Values, dim: int) -> Tensor:
    """The mean of each channel; channels are along ``dim``."""
    rows = [v.movedim(dim, 0).flatten(1) for v in values]
    total: Tensor = sum(r.sum(1) for r in rows)
    return total / sum(r.shape[1] for r in rows)


def _bias(model: LayerwiseModel, unit: Unit) -> Tensor | None:
    """The parameter that shifts a layer's output."""
    owner: Any = model.get_submodule(unit.name if unit.batch_norm is None else unit.batch_norm)
    bias: Tensor | None = owner.bias
    return bias
