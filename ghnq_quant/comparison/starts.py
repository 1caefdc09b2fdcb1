"""Where quantization-aware training begins: the ways to get a quantized network's first parameters."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

import ghnq_quant
from ghnq_quant.comparison.refinements import blend, chained, complete, rescale, reset_norms
from ghnq_quant.ghn import GHN

Refinement = Callable[[nn.Module, dict[str, Tensor]], dict[str, Tensor]]


@dataclass(frozen=True)
class Start:
    """One way to begin.

    Attributes:
        title: for tables and plots.
        predicts: whether GHN-Q's parameters are used.
        refine: what is done to them, from the network with its own initialization and them.
        float_share: share of the budget that a float training of the network takes first.
    """

    title: str
    predicts: bool = False
    refine: Refinement | None = None
    float_share: float = 0.0

    def parameters(
        self, model: nn.Module, ghn: GHN, bits: tuple[int, int], example: Tensor
    ) -> nn.Module:
        """A float copy of ``model`` with this start's parameters."""
        started = copy.deepcopy(model)
        if not self.predicts:
            return started
        predicted = ghnq_quant.predict_parameters(model, ghn, bits=bits, example_input=example)
        if self.refine is not None:
            predicted = self.refine(model, predicted)
        with torch.no_grad():
            for name, p in started.named_parameters():
                p.copy_(predicted[name])
        return started


STARTS: dict[str, Start] = {
    "pytorch": Start("PyTorch's initialization"),
    "float-first": Start("float training first", float_share=0.5),
    "ghnq": Start("GHN-Q", predicts=True),
    "ghnq-blend-0.25": Start("GHN-Q, 1/4 random", True, blend(0.25)),
    "ghnq-blend-0.5": Start("GHN-Q, 1/2 random", True, blend(0.5)),
    "ghnq-complete-0.3": Start("GHN-Q, rank completed at 0.3", True, complete(0.3)),
    "ghnq-complete-1": Start("GHN-Q, rank completed at 1", True, complete(1.0)),
    "ghnq-norms": Start("GHN-Q, new norms", True, reset_norms),
    "ghnq-rescale": Start("GHN-Q, channels rescaled", True, rescale),
    "ghnq-rescale-norms": Start(
        "GHN-Q, channels rescaled, new norms", True, chained(rescale, reset_norms)
    ),
    "ghnq-rescale-complete-0.3": Start("c", True, chained(rescale, complete(0.3))),
    "ghnq-rescale-complete-1": Start("c", True, chained(rescale, complete(1.0))),
    "ghnq-rescale-blend-0.5": Start("c", True, chained(rescale, blend(0.5))),
}
