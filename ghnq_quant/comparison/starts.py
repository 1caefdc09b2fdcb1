"""Where quantization-aware training begins: the ways to get a quantized network's first parameters."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ghnq_quant.api import predict_captured, with_stem_bits
from ghnq_quant.capture import capture
from ghnq_quant.comparison.refinements import Refinement, blend, complete, new_classifier
from ghnq_quant.ghn import GHN
from ghnq_quant.quantization import QuantScheme
from ghnq_quant.trainability import ready_for_training


@dataclass(frozen=True)
class Start:
    """One way to begin.

    Attributes:
        title: for tables and plots.
        predicts: whether GHN-Q's parameters are used.
        as_predicted: unchanged, not as :func:`ghnq_quant.init_quantized` gives them.
        untie: with filters that repeat others made half random.
        refine: what else is done to them.
        float_share: share of the budget that a float training of the network takes first.
    """

    title: str
    predicts: bool = False
    as_predicted: bool = False
    untie: bool = True
    refine: Refinement | None = None
    float_share: float = 0.0

    def float_steps(self, steps: int) -> int:
        """How many of ``steps`` the float training takes."""
        return round(self.float_share * steps)

    def started(
        self,
        model: nn.Module,
        ghn: GHN,
        bits: tuple[int, int],
        example: Tensor,
        stem_bits: int | None = None,
    ) -> nn.Module:
        """A float copy of ``model`` with this start's parameters."""
        started = copy.deepcopy(model)
        if not self.predicts:
            return started
        captured = capture(started, example)
        (values,) = predict_captured([captured], ghn, bits)
        if not self.as_predicted:
            scheme = with_stem_bits(captured, QuantScheme(*bits), stem_bits)
            ready_for_training(captured, values, scheme, untie=self.untie)
        named = zip(started.named_parameters(), values, strict=True)
        parameters = {name: p.detach() if new is None else new for (name, p), new in named}
        if self.refine is not None:
            parameters = self.refine(model, parameters)
        with torch.no_grad():
            for name, p in started.named_parameters():
                p.copy_(parameters[name])
        return started


STARTS: dict[str, Start] = {
    "ghnq": Start("GHN-Q", predicts=True),
    "pytorch": Start("PyTorch's initialization"),
    "float-first": Start("float training first", float_share=0.5),
    "ghnq-as-predicted": Start("GHN-Q as predicted", predicts=True, as_predicted=True),
    "ghnq-blend-0.25": Start("GHN-Q, 1/4 own", predicts=True, refine=blend(0.25)),
    "ghnq-blend-0.5": Start("GHN-Q, 1/2 own", predicts=True, refine=blend(0.5)),
    "ghnq-tied": Start("GHN-Q, repeated filters", predicts=True, untie=False),
    "ghnq-complete": Start("GHN-Q, rank completed", predicts=True, refine=complete),
    "ghnq-new-classifier": Start("GHN-Q, new classifier", predicts=True, refine=new_classifier),
}
