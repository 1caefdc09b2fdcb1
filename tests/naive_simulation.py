"""The quantized simulation in its naive form: the plain formulas, one graph node at a time.

It shares the trace and the plan with the package, and no code that computes anything: the
quantizer is PyTorch's own, batch norm is folded by its formula and differentiated by autograd.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from ghnq_quant import Quantizer, QuantScheme
from ghnq_quant.capture import Capture, QuantPoint, capture


def scale_of(low: Tensor, high: Tensor, quantizer: Quantizer) -> tuple[Tensor, Tensor, int, int]:
    """The scale over [low, high], the value of the lowest level, and the levels."""
    low, high = low.clamp(max=0), high.clamp(min=0)
    lowest, highest = 0, 2**quantizer.bits - 1
    if quantizer.symmetric and quantizer.never_negative:
        low = torch.zeros_like(low)
    elif quantizer.symmetric:
        highest = 2 ** (quantizer.bits - 1) - 1
        lowest, high = -highest, torch.maximum(-low, high)
        low = -high
    scale = (high - low) / (highest - lowest)
    if quantizer.power_of_two and scale > 0:
        scale = 2 ** scale.log2().ceil()
    return scale, low, lowest, highest


def quantize_over(x: Tensor, low: Tensor, high: Tensor, quantizer: Quantizer) -> Tensor:
    """x over [low, high], straight through: with ``torch.fake_quantize_per_tensor_affine``, or in
    float64, which that does not compute in, by the formula."""
    if quantizer.bits == 32:
        return x
    scale, low, lowest, highest = scale_of(low, high, quantizer)
    if not scale > 0:
        return x - x.detach()  # zero, straight through
    zero_point = torch.zeros_like(scale)
    if not quantizer.symmetric:
        zero_point = (-low / scale).round().clamp(lowest, highest)
    data = x.detach()
    if data.dtype == torch.float64:
        level = ((data / scale).round() + zero_point).clamp(lowest, highest)
        quantized = (level - zero_point) * scale
    else:
        quantized = torch.fake_quantize_per_tensor_affine(
            data, scale.item(), int(zero_point), lowest, highest
        )
    return x + (quantized - data)


def round_bias(
    bias: Tensor, weight: Tensor, quantizer: Quantizer, input_scale: Tensor | None
) -> Tensor:
    """The bias in whole steps of input scale · weight scale, straight through."""
    if input_scale is None:
        return bias
    rows = weight.detach() if quantizer.granularity == "channel" else [weight.detach()]
    scales = torch.stack([scale_of(row.min(), row.max(), quantizer)[0] for row in rows])
    return (
        bias + (torch.round(bias / (scales * input_scale)) * scales * input_scale - bias).detach()
    )


def quantize(x: Tensor, quantizer: Quantizer) -> Tensor:
    """x, or each channel of it, over its own range."""
    if quantizer.granularity == "channel":
        alone = replace(quantizer, granularity="tensor")
        return torch.stack([quantize(channel, alone) for channel in x])
    return quantize_over(x, x.detach().min(), x.detach().max(), quantizer)


class NaiveSimulation(fx.Interpreter):
    """A float network run as its quantized simulation.

    Args:
        model: float; its modes (train, eval) are those of the simulation, and its running
            statistics are updated by it.
        scheme: the quantizers.

    Attributes:
        seen: the quantized activations of the last run, by the names that their quantizers have.
    """

    def __init__(self, model: nn.Module, scheme: QuantScheme) -> None:
        captured: Capture = capture(model)
        super().__init__(captured.root, graph=captured.graph)
        self.model, self.scheme, plan = model, scheme, captured.quant_plan
        self.units = {unit.node: unit for unit in plan.units}
        self.folded = {unit.batch_norm_node for unit in plan.units if unit.batch_norm_node}
        self.points = {point.node: point for point in plan.points}
        self.ranges: dict[str, tuple[Tensor, Tensor]] = {}
        self.seen: dict[str, Tensor] = {}
        self.scales: dict[str | None, Tensor] = {}

    def __call__(self, x: Tensor) -> Any:
        return self.run(x)

    def run_node(self, n: fx.Node) -> Any:
        if n.name in self.units:
            x = self.fetch_args_kwargs_from_env(n)[0][0]
            value = self._layer(x, n.name)
        elif n.name in self.folded:
            value = self.env[n.args[0]]
        else:
            value = super().run_node(n)
        if n.name in self.points:
            point = self.points[n.name]
            value = self._activation(value, point)
            self.seen[point.name.replace(".", "_")] = value.detach().clone()
        return value

    def _layer(self, x: Tensor, node: str) -> Tensor:
        unit = self.units[node]
        quantizer = self.scheme.weights_of(unit.name)
        layer = self.module.get_submodule(unit.name)
        input_scale = self.scales.get(unit.input) if self.scheme.biases == "int32" else None
        bias = layer.bias
        if bias is not None and unit.batch_norm is None:
            bias = round_bias(bias, layer.weight, quantizer, input_scale)
        if isinstance(layer, nn.Linear):
            return F.linear(x, quantize(layer.weight, quantizer), bias)
        assert isinstance(layer, nn.Conv2d)
        if unit.batch_norm is None:
            return layer._conv_forward(x, quantize(layer.weight, quantizer), bias)
        norm = self.module.get_submodule(unit.batch_norm)
        assert isinstance(norm, nn.BatchNorm2d)
        limit = self.scheme.channel_limit
        return conv_batch_norm(x, layer, norm, quantizer, self.scheme.bn, limit, input_scale)

    def _activation(self, x: Tensor, point: QuantPoint) -> Tensor:
        name, quantizer = point.name, self.scheme.activations_of(point)
        low, high = x.detach().min().clamp(max=0), x.detach().max().clamp(min=0)
        if quantizer.range == "ema":
            if self.model.training and name in self.ranges:
                old_low, old_high = self.ranges[name]
                low, high = 0.9 * old_low + 0.1 * low, 0.9 * old_high + 0.1 * high
            elif name in self.ranges:
                low, high = self.ranges[name]
            if self.model.training:
                self.ranges[name] = low, high
        self.scales[point.key] = scale_of(low, high, quantizer)[0]
        return quantize_over(x, low, high, quantizer)


def conv_batch_norm(
    x: Tensor,
    conv: nn.Conv2d,
    norm: nn.BatchNorm2d,
    quantizer: Quantizer,
    mode: str,
    limit: float | None = None,
    input_scale: Tensor | None = None,
) -> Tensor:
    """Batch-norm folding, written exactly as its formulas."""
    if norm.training or mode == "batch" or norm.running_mean is None:
        z = conv._conv_forward(x, conv.weight, conv.bias)
        mean = z.mean((0, 2, 3))
        variance = (z - mean.view(1, -1, 1, 1)).square().mean((0, 2, 3))
        if norm.training:
            norm(z.detach())  # moves the running statistics
    else:
        mean, variance = norm.running_mean, norm.running_var
    gamma = torch.ones_like(mean) if norm.weight is None else norm.weight
    beta = torch.zeros_like(mean) if norm.bias is None else norm.bias
    bias = torch.zeros_like(mean) if conv.bias is None else conv.bias
    factor = gamma / (variance + norm.eps).sqrt()
    if mode == "running":
        rounding = 8 * torch.finfo(mean.dtype).eps * mean.abs()
        factor = torch.where(variance.sqrt() <= rounding, 0.0, factor)
    if limit is not None:
        channels = zip(factor.detach(), conv.weight.detach(), strict=True)
        ranges = [float((f * w).abs().max()) for f, w in channels]
        most = limit * sorted(ranges)[(len(ranges) - 1) // 2]
        factor = factor * torch.tensor([min(1.0, most / r) for r in ranges]).to(factor)
    folded = factor.view(-1, 1, 1, 1) * conv.weight
    shift = round_bias(beta + factor * (bias - mean), folded, quantizer, input_scale)
    return conv._conv_forward(x, quantize(folded, quantizer), shift)
