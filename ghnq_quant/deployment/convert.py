"""From a trained quantized model to one for inference."""

from __future__ import annotations

from torch import fx

from ghnq_quant.deployment.fold import fold
from ghnq_quant.deployment.integer import to_integers
from ghnq_quant.deployment.layers import FixedQuantizer, FoldedConv2d, FoldedLinear
from ghnq_quant.errors import ConversionError
from ghnq_quant.quantization.model import QuantModel


def convert(model: QuantModel, *, integer: bool | None = None) -> fx.GraphModule:
    """Turn a trained quantized model into one for inference.

    Batch norms are folded with their running statistics, weights are rounded to their levels and
    activation ranges are fixed, once and for all.

    Args:
        model: of any backend, trained or calibrated; it is not changed.
        integer: True for torch's integer kernels, on CPU, wherever there are some
            (docs/how-to/export.md); False for simulated quantization in float. By default
            integer kernels where all weights and activations have 8 bits, weights per tensor, and
            a simulation otherwise.

    Returns:
        a ``torch.fx.GraphModule`` in eval mode whose modules have the names they had.

    Raises:
        ConversionError: there are no running statistics or no fixed ranges yet, or with
            ``integer=True`` no engine of torch that is exact on this CPU, or weights per channel.

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
    weights = {
        name: m.weight_quant
        for name, m in folded.named_modules()
        if isinstance(m, (FoldedConv2d, FoldedLinear))
    }
    per_channel = [n for n, q in weights.items() if q is not None and q.quantizer.per_channel]
    if integer and per_channel:
        raise ConversionError(
            f"the weight of {per_channel[0]!r} is quantized per channel, which convert has no "
            'integer kernels for: use integer=False, export_onnx, or Quantizer(granularity="tensor")'
        )
    if integer is None:
        activations = [m for m in folded.modules() if isinstance(m, FixedQuantizer)]
        of_8_bits = all(q is not None and q.bits == 8 for q in [*weights.values(), *activations])
        integer = of_8_bits and not per_channel
    return to_integers(folded.cpu()) if integer else folded
