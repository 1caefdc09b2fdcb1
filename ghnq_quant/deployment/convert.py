"""Turn a trained quantized model into one for inference."""

from __future__ import annotations

from torch import fx

from ghnq_quant.deployment.fold import fold
from ghnq_quant.deployment.integer import to_integers
from ghnq_quant.deployment.layers import FixedQuantizer, FoldedConv2d, FoldedLinear
from ghnq_quant.quantization.model import QuantModel


def convert(model: QuantModel, *, integer: bool | None = None) -> fx.GraphModule:
    """Turn a trained quantized model into one for inference.

    Batch norms are folded with their running statistics, weights are rounded to their levels and
    activation ranges are fixed, all for good.

    Args:
        model: a trained or calibrated model of any backend; it is not changed.
        integer: True for layers that compute on integers, as devices do
            (docs/how-to/export.md); False for simulated quantization in float. By default,
            integers if all weights and activations have 8 bits, else simulation.

    Returns:
        a ``torch.fx.GraphModule`` in eval mode; modules keep their names. Its tensors are plain
        ones, so ``torch.export`` accepts it, with any batch size.

    Raises:
        ConversionError: there are no running statistics or no fixed ranges yet.

    Example:
        >>> import ghnq_quant, torch
        >>> from torch import nn
        >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 1))
        >>> qat = ghnq_quant.quantize(model, bits=8)
        >>> images = torch.rand(16, 3, 8, 8)
        >>> _ = qat(images)  # your training
        >>> deployed = ghnq_quant.convert(qat)
        >>> deployed.get_submodule("0").weight.dtype, deployed(images).shape
        (torch.int8, torch.Size([16, 4, 6, 6]))
    """
    folded = fold(model)
    if integer is None:
        modules = list(folded.modules())
        layers = [m for m in modules if isinstance(m, (FoldedConv2d, FoldedLinear))]
        quantizers = [m for m in modules if isinstance(m, FixedQuantizer)]
        quantizations = [*(layer.weight_quant for layer in layers), *quantizers]
        integer = all(q is not None and q.bits == 8 for q in quantizations)
    return to_integers(folded.cpu()) if integer else folded
