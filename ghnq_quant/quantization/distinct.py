"""Whether a quantized model still tells images apart; if not, it is dead before training."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from ghnq_quant.errors import warn
from ghnq_quant.quantization.graph_rewrite import QUANTIZERS
from ghnq_quant.quantization.model import QuantModel

#: With fewer images the share of different outputs says little.
_ENOUGH = 16


@dataclass(frozen=True)
class EqualOutputs:
    """A model hardly tells images apart.

    Attributes:
        images: number of different images.
        outputs: number of different outputs for them.
        place: the first quantized activation that hardly differs between images; None if there is
            none.
        one_pixel: whether its feature maps have a single pixel.
    """

    images: int
    outputs: int
    place: str | None
    one_pixel: bool


@torch.no_grad()
def equal_outputs(qmodel: QuantModel, images: Tensor) -> EqualOutputs | None:
    """Report it if ``images`` (N, C, H, W) have, in eval, fewer than half as many different outputs as
    there are different images; None otherwise, or if there are too few images to tell."""
    if len(images) < _ENOUGH:
        return None
    modes = {m: m.training for m in qmodel.modules()}
    try:
        qmodel.eval()
        expected = _distinct_rows(images)
        rows = _distinct_rows(qmodel(images))
        if expected is None or rows is None or 2 * rows >= expected:
            return None
        return EqualOutputs(expected, rows, *_first_place(qmodel, images, expected))
    finally:
        for module, training in modes.items():
            module.training = training


def warn_of_equal_outputs(qmodel: QuantModel, images: Tensor) -> None:
    """Warn if :func:`equal_outputs` has something to report."""
    found = equal_outputs(qmodel, images)
    if found is None:
        return
    larger = "larger images or a stem for small ones (adapt_stem), as one pixel is left there; or "
    warn(
        f"{found.images} images have only {found.outputs} different outputs"
        f"{f', from {found.place!r} on' if found.place else ''}: at this precision the model hardly "
        f"tells them apart, and will hardly train. Try {larger if found.one_pixel else ''}more bits "
        "in that layer and those before it (stem_bits=8, or the scheme's overrides)"
    )


def _distinct_rows(value: object) -> int | None:
    """The number of different rows of a tensor, or of the first of several; None for other types."""
    if isinstance(value, (tuple, list)) and value:
        value = value[0]
    if not isinstance(value, Tensor) or value.dim() == 0:
        return None
    return len(torch.unique(value.detach().flatten(1) if value.dim() > 1 else value, dim=0))


def _first_place(qmodel: QuantModel, images: Tensor, expected: int) -> tuple[str | None, bool]:
    found: dict[str, bool] = {}

    def look(name: str, _: nn.Module, __: object, output: Tensor) -> None:
        if 2 * (_distinct_rows(output) or expected) < expected:
            found[name] = output.shape[2:] == (1, 1)

    quantizers = dict(qmodel.get_submodule(QUANTIZERS).named_children())
    points = [point for point in qmodel.plan.points if point.key in quantizers]
    hooks = [quantizers[p.key].register_forward_hook(partial(look, p.name)) for p in points]
    try:
        qmodel(images)
    finally:
        for hook in hooks:
            hook.remove()
    place = next((p.name for p in points if p.name in found), None)
    return place, place is not None and found[place]
