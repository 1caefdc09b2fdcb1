"""Layers of a folded model: weights on their quantization levels, fixed activation ranges."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ghnq_quant.quantization.affine import QuantParams
from ghnq_quant.quantization.quantizer import Quantizer


class _QuantParamsBuffers(nn.Module):
    """Registers quantization parameters as buffers, so that they are saved with the model."""

    scale: Tensor
    zero_point: Tensor
    quantizer: Quantizer

    def _keep(self, qparams: QuantParams) -> None:
        self.quantizer = qparams.quantizer
        self.register_buffer("scale", qparams.scale.detach().clone())
        self.register_buffer("zero_point", qparams.zero_point.detach() + 0)  # not -0

    @property
    def qparams(self) -> QuantParams:
        return QuantParams(self.scale, self.zero_point, self.quantizer)

    @property
    def bits(self) -> int:
        """Bit width of the levels."""
        return self.quantizer.bits


class FixedQuantizer(_QuantParamsBuffers):
    """An activation quantizer over a fixed range.

    Args:
        qparams: scale, zero point and quantizer.

    Attributes:
        levels: the lowest and the highest one, possibly a part of the quantizer's.

    Shape:
        any shape; the output, of the same shape, has the value of the nearest level.

    Example:
        >>> two_bits = QuantParams(torch.tensor(1.0), torch.tensor(1.0), Quantizer(2))
        >>> FixedQuantizer(two_bits)(torch.tensor([-3.0, 0.4, 0.6, 9.0]))
        tensor([-1.,  0.,  1.,  2.])
    """

    def __init__(self, qparams: QuantParams) -> None:
        super().__init__()
        self._keep(qparams)
        self.levels = qparams.quantizer.levels

    def forward(self, x: Tensor) -> Tensor:
        low, high = (level - self.zero_point for level in self.levels)
        return torch.round(x / self.scale).clamp(low, high) * self.scale

    def extra_repr(self) -> str:
        scale, zero_point = self.scale.item(), self.zero_point.item()
        return f"quantizer={self.quantizer}, scale={scale:g}, zero_point={zero_point:g}"


class FixedWeight(_QuantParamsBuffers):
    """The quantization of a folded layer's weight: scale, zero point and quantizer."""

    def __init__(self, qparams: QuantParams) -> None:
        super().__init__()
        self._keep(qparams)

    def extra_repr(self) -> str:
        return f"quantizer={self.quantizer}"


class _Folded(nn.Module):
    """Mixin for layers whose weight lies on its levels.

    Attributes:
        weight_quant: the weight's quantization; None if it is float.
    """

    weight: Tensor
    weight_quant: FixedWeight | None

    def weight_levels(self) -> Tensor:
        """The levels of the weight, of its shape: uint8, or int8 if there are negative levels."""
        assert self.weight_quant is not None
        return self.weight_quant.qparams.levels(self.weight.detach())

    def extra_repr(self) -> str:
        text = super().extra_repr()
        return text if self.weight_quant is None else f"{text}, {self.weight_quant.extra_repr()}"


class FoldedConv2d(_Folded, nn.Conv2d):
    """A convolution whose weight lies on its levels; weight and bias contain the batch norm."""


class FoldedLinear(_Folded, nn.Linear):
    """A linear layer whose weight lies on its levels."""


FoldedLayer = FoldedConv2d | FoldedLinear


def stretch(quantizer: Quantizer) -> int:
    """The factor that stretches levels of few bits to 0 … 255 or −127 … 127, or just below.

    Integer kernels read the bias as an integer in steps of input scale · weight scale. At few bits
    these steps would be too coarse for it.
    """
    return (127 if quantizer.signed else 255) // quantizer.levels[1]


def folded_layer(
    module: nn.Module, weight: Tensor, bias: Tensor | None, qparams: QuantParams | None
) -> FoldedLayer:
    """A layer with the geometry of ``module``, an ``nn.Conv2d`` or ``nn.Linear``, and these
    values."""
    layer: FoldedLayer
    if isinstance(module, nn.Conv2d):
        layer = FoldedConv2d(
            module.in_channels,
            module.out_channels,
            module.kernel_size,  # type: ignore[arg-type]
            module.stride,  # type: ignore[arg-type]
            module.padding,  # type: ignore[arg-type]
            module.dilation,  # type: ignore[arg-type]
            module.groups,
            bias=bias is not None,
            padding_mode=module.padding_mode,
            device="meta",
        )
    else:
        assert isinstance(module, nn.Linear)
        layer = FoldedLinear(
            module.in_features, module.out_features, bias=bias is not None, device="meta"
        )
    if qparams is not None:
        weight = qparams.values(qparams.levels(weight))
    layer.weight = nn.Parameter(weight.detach().clone())
    if bias is not None:
        layer.bias = nn.Parameter(bias.detach().clone())
    layer.weight_quant = None if qparams is None else FixedWeight(qparams)
    return layer.eval()
