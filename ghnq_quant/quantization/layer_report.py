"""What the start has set in each quantized layer, and how well its weight survives quantization."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from rich.table import Table
from torch import Tensor, nn

from ghnq_quant.quantization import Quantizer, QuantModel, fake_quantize
from ghnq_quant.quantization.distinct import EqualOutputs, equal_outputs

REPORTED_BITS = (8, 4, 2)


@dataclass(frozen=True)
class LayerRow:
    """One conv or linear layer.

    Attributes:
        name: the layer's name in the model.
        shape: its weight's shape.
        given: number of its parameters (weight and bias) that are predicted or fitted.
        snr_db: signal-to-noise ratio of the weight's quantization in dB, at each bit width.
    """

    name: str
    shape: tuple[int, ...]
    given: int
    snr_db: dict[int, float]


def signal_to_noise_db(weight: Tensor, quantizer: Quantizer | int) -> float:
    """10 · log10(Σ w² / Σ (w − Q(w))²), where Q is the quantizer, or the default one of that bit width.

    Returns:
        dB; infinite if quantization changes nothing, NaN for an all-zero tensor.

    Example:
        >>> import torch
        >>> round(signal_to_noise_db(torch.linspace(-1, 1, 1001), 8), 1)
        48.1
    """
    w = weight.detach().double()
    noise = (w - fake_quantize(weight.detach(), quantizer).double()).square().sum().item()
    signal = w.square().sum().item()
    if noise == 0:
        return math.inf if signal else math.nan
    return 10 * math.log10(signal / noise)


def layer_report(before: nn.Module, after: nn.Module) -> list[LayerRow]:
    """One row for each conv and linear layer of a quantized model.

    Weights are taken before batch norm is folded into them, because the folded weight is different
    for every batch.

    Args:
        before: the original float model.
        after: the result of ``init_quantized``, with the same module and parameter names.
    """
    old = dict(before.named_parameters())
    rows = []
    for name, layer in after.named_modules():
        weight = getattr(layer, "weight", None)
        if not isinstance(weight, Tensor) or weight.ndim < 2:
            continue
        given = sum(
            parameter.numel()
            for key, parameter in layer.named_parameters(name, recurse=False)
            if not _same(parameter, old.get(key))
        )
        own = after.scheme.weights_of(name) if isinstance(after, QuantModel) else Quantizer(8)
        snr = {bits: signal_to_noise_db(weight, replace(own, bits=bits)) for bits in REPORTED_BITS}
        rows.append(LayerRow(name, tuple(weight.shape), given, snr))
    return rows


def layer_table(
    before: nn.Module,
    after: nn.Module,
    *,
    title: str,
    seconds: float,
    images: Tensor | None = None,
) -> Table:
    """:func:`layer_report` for the terminal.

    Args:
        before: the original float model.
        after: the result of ``init_quantized``.
        title: above the table.
        seconds: how long it took, for the line below the table.
        images: (N, C, H, W); marks the layer from which on the model hardly tells them apart.
    """
    same = None
    if images is not None and isinstance(after, QuantModel):
        same = equal_outputs(after, images)
    table = Table(title=title, caption=_caption(before, after, seconds, same))
    table.add_column("layer", overflow="fold")
    table.add_column("weight", no_wrap=True)
    table.add_column("given", justify="right")
    for bits in REPORTED_BITS:
        table.add_column(f"{bits} bits\n(dB)", justify="right")
    for row in layer_report(before, after):
        shape = "×".join(map(str, row.shape))
        snr = (f"{row.snr_db[bits]:.1f}" for bits in REPORTED_BITS)
        mark = " *" if same and row.name == same.place else ""
        table.add_row(f"{row.name}{mark}", shape, f"{row.given:,}", *snr)
    return table


def _caption(before: nn.Module, after: nn.Module, seconds: float, same: EqualOutputs | None) -> str:
    old = dict(before.named_parameters())
    parameters = dict(after.named_parameters())
    total = sum(p.numel() for p in parameters.values())
    given = sum(p.numel() for n, p in parameters.items() if not _same(p, old.get(n)))
    caption = (
        f"{given:,} of {total:,} parameters predicted or fitted in {seconds:.1f} s; all others are "
        "new.\ndB: the weight's quantization signal-to-noise ratio."
    )
    if same is None:
        return caption
    where = f", from {same.place!r} (*) on" if same.place else ""
    return f"{caption}\n{same.images} images have only {same.outputs} different outputs{where}."


def _same(parameter: Tensor, old: Tensor | None) -> bool:
    """Whether the parameter still has its original value."""
    return old is not None and torch.equal(parameter.detach().cpu(), old.detach().cpu())
