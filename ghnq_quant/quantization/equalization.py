"""Cross-layer equalization: bring channels of consecutive layers to a common range, without data.

A positive scale of a channel passes through ReLU unchanged, so it can be moved from a layer's output
channel to the next layer's input channel. Nagel et al. 2019, "Data-Free Quantization Through Weight
Equalization and Bias Correction", section 4.1: with r¹ᵢ and r²ᵢ the largest weights of the two,
sᵢ = sqrt(r¹ᵢ / r²ᵢ) makes both equal (equation 11).
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from ghnq_quant.capture import Unit
from ghnq_quant.capture.computed_weight import ComputedWeight
from ghnq_quant.capture.operations import (
    OPERATIONS,
    WEIGHTED,
    Kind,
    argument,
    classify,
    find_operation,
    keeps_dimensions,
)
from ghnq_quant.errors import DataError
from ghnq_quant.quantization.batch_norm import FoldsBatchNorm, has_running_statistics
from ghnq_quant.quantization.calibration import begin_weight_ranges
from ghnq_quant.quantization.graph_rewrite import QUANTIZERS
from ghnq_quant.quantization.layerwise import LayerwiseModel, as_layerwise
from ghnq_quant.quantization.model import QuantModel

#: What a scale of single channels passes through.
_PASSED = [OPERATIONS[n] for n in ("relu", "relu6", "leaky_relu", "prelu", "identity", "dropout")]
_POOLS = (Kind.MAX_POOL, Kind.AVG_POOL, Kind.GLOBAL_AVG_POOL, Kind.SPATIAL_MEAN)
#: Most rounds over all pairs; a MobileNetV2 with random batch norms takes 34.
_MAX_ROUNDS = 1000
_TOLERANCE = 1e-5


class _Layer:
    """A conv or linear layer whose channels may be scaled.

    Args:
        norm: the batch norm it folds, if any.
        inputs: number of its input channels; for a linear layer after a flattening, the channels of
            the feature map.

    Attributes:
        kernels: (groups, C_out / groups, C_in / groups), the largest magnitude in each kernel of the
            weight, with the batch norm folded in.
    """

    def __init__(self, module: Any, norm: nn.BatchNorm2d | None, inputs: int) -> None:
        self.module = module
        self.norm = norm
        weight = module.folded_weight() if isinstance(module, FoldsBatchNorm) else module.weight
        groups = getattr(module, "groups", 1)
        shape = (groups, weight.shape[0] // groups, inputs // groups, -1)
        self.kernels = weight.detach().abs().reshape(shape).amax(3)

    def scale_outputs(self, scale: Tensor) -> None:
        scaled = [self.module.weight, self.module.bias]
        if self.norm is not None:
            scaled = [self.norm.weight, self.norm.bias]
        for parameter in scaled:
            if parameter is not None:
                parameter.mul_(scale.view(-1, *[1] * (parameter.dim() - 1)))

    def scale_inputs(self, scale: Tensor) -> None:
        weight, groups = self.module.weight, len(self.kernels)
        if weight.dim() == 2:
            weight.mul_(scale.repeat_interleave(weight.shape[1] // len(scale)))
            return
        of_group = scale.view(groups, 1, -1).expand(self.kernels.shape)
        weight.mul_(of_group.reshape(*weight.shape[:2], 1, 1))


@torch.no_grad()
def equalize(qmodel: QuantModel) -> QuantModel:
    """Bring the weights' channels to a common range across layers, before calibration.

    One range for a whole weight is coarse where its channels have very different sizes, as in
    depthwise layers. Between two layers with nothing but ReLU, LeakyReLU, PReLU, pooling and dropout
    in between, each channel is scaled in the first (γ and β of its batch norm, or weight and bias)
    and by the reciprocal in the second, until both have the same largest weight, batch norms folded
    in. This is repeated over all pairs until nothing changes, so that a depthwise layer and its two
    neighbors end up alike. A residual, a branch, or any other operation ends such a chain.

    What it evens out in the weights it makes uneven in the activations, which matters where these
    have few bits. Weights quantized per channel do not need it.

    The float function does not change, in train or in eval, except for a ReLU6 between two such
    layers, which becomes a ReLU as in the paper. Ranges are reset: call
    :func:`ghnq_quant.calibrate` afterwards. Where there are ReLU6, load a state saved after
    ``equalize`` only into a model that was equalized too.

    Args:
        qmodel: a model from :func:`ghnq_quant.quantize`, with the running statistics of a trained
            network; it is changed in place.

    Returns:
        ``qmodel`` itself.

    Raises:
        DataError: a batch norm without running statistics; nothing was changed.
        BackendError: a model of ``"pt2e"``, or of another backend that makes whole models.

    Example:
        >>> import ghnq_quant, torch
        >>> from torch import nn
        >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3))
        >>> qmodel = ghnq_quant.equalize(ghnq_quant.quantize(net, bits=8))
        >>> first, second = (qmodel.get_submodule(n).weight.detach() for n in "02")
        >>> torch.allclose(first.abs().amax((1, 2, 3)), second.abs().amax((0, 2, 3)))
        True
    """
    model = as_layerwise(qmodel, "equalize")
    pairs, clipped = _pairs(model)
    for first, second, scale in _scales(pairs):
        first.scale_outputs(1 / scale)
        second.scale_inputs(scale)
    for node in clipped:
        node.op, node.target = "call_function", F.relu
        node.args, node.kwargs = tuple(node.all_input_nodes), {}
    model.recompile()
    for held in model.running_ranges().values():
        held.reset()  # type: ignore[operator]
    begin_weight_ranges(model)
    return model


def _scales(pairs: list[tuple[_Layer, _Layer]]) -> list[tuple[_Layer, _Layer, Tensor]]:
    """What to divide each first layer's outputs by and multiply the second's inputs by."""
    totals = [torch.ones_like(first.kernels[:, :, 0]).flatten() for first, _ in pairs]
    for _ in range(_MAX_ROUNDS):
        change = 0.0
        for (first, second), total in zip(pairs, totals, strict=True):
            r1, r2 = first.kernels.amax(2).flatten(), second.kernels.amax(1).flatten()
            used = (r1 > 0) & (r2 > 0)  # a dead channel has no range to share
            scale = torch.where(used, (r1 / r2).sqrt(), 1.0)
            first.kernels /= scale.view(*first.kernels.shape[:2], 1)
            second.kernels *= scale.view(len(second.kernels), 1, -1)
            total *= scale
            change = max(change, float(scale.log().abs().max()))
        if change < _TOLERANCE:
            break
    return [(*pair, total) for pair, total in zip(pairs, totals, strict=True)]


def _pairs(model: LayerwiseModel) -> tuple[list[tuple[_Layer, _Layer]], list[fx.Node]]:
    """The pairs of consecutive layers, in order of execution, and the ReLU6 between them."""
    path = _Path(model)
    scalable = _scalable_units(model)
    layers: dict[str, _Layer] = {}

    def layer(name: str, inputs: int | None = None) -> _Layer:
        if name not in layers:
            layers[name] = _layer(model, scalable[name], inputs)
        return layers[name]

    pairs: list[tuple[_Layer, _Layer]] = []
    clipped: list[fx.Node] = []
    for node in model.graph.nodes:
        if node.target not in scalable:
            continue
        reader, relu6 = path.next_layer(node)
        if reader in scalable:
            first = layer(str(node.target))
            pairs.append((first, layer(reader, len(first.module.weight))))
            clipped += relu6
    return pairs, clipped


def _scalable_units(model: LayerwiseModel) -> dict[str, Unit]:
    """The units that share no parameters and can take a channel's scale."""
    owners = Counter(id(p) for _, p in model.named_parameters(remove_duplicate=False))
    found = {}
    for unit in model.plan.units:
        modules = [model.get_submodule(n) for n in (unit.name, unit.batch_norm) if n is not None]
        tied = any(owners[id(p)] > 1 for m in modules for p in m.parameters(recurse=False))
        plain = all(getattr(m, "affine", True) for m in modules)
        if plain and not tied and not isinstance(modules[0], ComputedWeight):
            found[unit.name] = unit
    return found


def _layer(model: LayerwiseModel, unit: Unit, inputs: int | None) -> _Layer:
    module: Any = model.get_submodule(unit.name)
    if inputs is None:
        inputs = module.weight.shape[1] * getattr(module, "groups", 1)
    if unit.batch_norm is None:
        return _Layer(module, None, inputs)
    norm: Any = model.get_submodule(unit.batch_norm)
    if not has_running_statistics(norm):
        raise DataError(
            f"batch norm {unit.batch_norm!r} has no running statistics, which equalize needs to fold "
            "weights: "
            + (
                "train it, or call ghnq_quant.calibrate"
                if norm.track_running_stats
                else "it needs track_running_stats=True"
            )
        )
    return _Layer(module, norm, inputs)


class _Path:
    """Follows a value through a model's graph."""

    def __init__(self, model: LayerwiseModel) -> None:
        self._modules = dict(model.named_modules(remove_duplicate=False))
        self._kinds = classify(model.graph, self._modules)

    def next_layer(self, node: fx.Node) -> tuple[str | None, list[fx.Node]]:
        """The conv or linear module that is the only reader of a layer's channels, if any, and the
        ReLU6 in between."""
        relu6: list[fx.Node] = []
        maps = self._kinds[node] is Kind.CONV
        while len(node.users) == 1:
            (reader,) = node.users
            kind = self._kinds[reader]
            if kind in WEIGHTED:
                return (str(reader.target) if (kind is Kind.CONV) == maps else None), relu6
            operation = find_operation(reader, self._modules)
            if operation is OPERATIONS["relu6"]:
                relu6.append(reader)
            elif maps and (self._flattens(reader) or kind is Kind.SPATIAL_MEAN):
                maps = kind is Kind.SPATIAL_MEAN and keeps_dimensions(reader)
            elif not (
                operation in _PASSED
                or (maps and kind in _POOLS)
                or str(reader.target).startswith(f"{QUANTIZERS}.")
            ):
                break
            node = reader
        return None, relu6

    def _flattens(self, node: fx.Node) -> bool:
        """Whether a node flattens each image into a vector, with channels in order."""
        if find_operation(node, self._modules) is not OPERATIONS["flatten"]:
            return False
        module = self._modules.get(str(node.target))
        if isinstance(module, nn.Flatten):
            return (module.start_dim, module.end_dim) == (1, -1)
        return (argument(node, 1, "start_dim", 0), argument(node, 2, "end_dim", -1)) == (1, -1)
