"""From captured networks to predicted parameters."""

from __future__ import annotations

import warnings
from functools import cache

import torch
from torch import Tensor, nn

from ghnq_quant.capture import Capture
from ghnq_quant.errors import GhnqWarning, PredictionError
from ghnq_quant.ghn import GHN

#: Of each parameter of a network, in their order, the new value; None where it keeps its own.
NewValues = list[Tensor | None]


@cache
def default_ghn() -> GHN:
    """The checkpoint that the package ships, loaded once."""
    return GHN.from_pretrained()


def predict_captured(
    captures: list[Capture], ghn: GHN | str | None, bits: tuple[int, int]
) -> list[NewValues]:
    """For each network the new value of each of its parameters, None where nothing is predicted.

    Raises:
        PredictionError: a parameter cannot be predicted, or its prediction is not finite.
    """
    if isinstance(ghn, str):
        ghn = GHN.from_pretrained(ghn)
    ghn = ghn if ghn is not None else default_ghn()
    with torch.no_grad():
        by_name = ghn([c.arch_graph for c in captures], [bits] * len(captures))
    return [_by_parameter(c.root, new) for c, new in zip(captures, by_name, strict=True)]


def _by_parameter(root: nn.Module, predicted: dict[str, Tensor]) -> NewValues:
    by_id: dict[int, Tensor] = {}
    for name, p in root.named_parameters(remove_duplicate=False):
        if name in predicted and id(p) not in by_id:  # a tied parameter: its first use counts
            by_id[id(p)] = _own_memory(predicted.pop(name), p, name)
    return [by_id.get(id(p)) for p in root.parameters()]


def _own_memory(value: Tensor, parameter: nn.Parameter, name: str) -> Tensor:
    if value.numel() == parameter.numel():
        value = value.reshape(parameter.shape)  # of a conv1d, which is captured as a 1×k conv2d
    if value.shape != parameter.shape:
        raise PredictionError(
            f"{name!r} has shape {tuple(parameter.shape)}, predicted was {tuple(value.shape)}"
        )
    value = value.to(device=parameter.device, dtype=parameter.dtype)
    if value.dtype != torch.float32 and not value.isfinite().all():
        raise PredictionError(f"{name!r}: a predicted value is too large for {value.dtype}")
    whole = value.is_contiguous() and value.untyped_storage().nbytes() == value.nbytes
    return value if whole else value.clone(memory_format=torch.contiguous_format)


def warn_of_kept(captured: Capture, values: NewValues, *, stacklevel: int) -> None:
    """One warning that names the parameters for which nothing was predicted, if there are any."""
    named = zip(captured.root.named_parameters(), values, strict=True)
    kept = [name for (name, _), value in named if value is None]
    if kept:
        warnings.warn(
            f"{len(kept)} parameters keep their own initialization: {', '.join(kept[:8])}"
            f"{', …' if len(kept) > 8 else ''}. The hypernetwork predicts classification layers of "
            "its own number of classes, and the weights and biases of Conv2d, Linear and norm "
            "layers that the network runs in eval mode",
            GhnqWarning,
            stacklevel=stacklevel + 1,
        )


def warn_of_losses(captured: Capture, *, stacklevel: int) -> None:
    """What the quantized copy of a network leaves float or out, beside skipped modules."""
    parts = [name for name in captured.float_parts if name not in captured.skipped]
    if parts:
        warnings.warn(
            f"{len(parts)} parts stay float, of which layers read values that are not quantized: "
            f"{', '.join(parts[:8])}{', …' if len(parts) > 8 else ''} (norms that no convolution "
            "folds, parameters used outside of layers); the model's float_parts names them all",
            GhnqWarning,
            stacklevel=stacklevel + 1,
        )
    if captured.more_outputs:
        warnings.warn(
            f"{type(captured.root).__name__} returns further values in training, such as those of "
            "auxiliary classifiers: its quantized copy returns what it returns in eval",
            GhnqWarning,
            stacklevel=stacklevel + 1,
        )


def warn_of_skipped(captured: Capture, *, stacklevel: int) -> None:
    """One warning that names the modules that were skipped, if there are any."""
    if captured.skipped:
        warnings.warn(
            f"{len(captured.skipped)} modules stay float with their own initialization, as they are "
            f"not made of supported layers: {', '.join(captured.skipped)}",
            GhnqWarning,
            stacklevel=stacklevel + 1,
        )
