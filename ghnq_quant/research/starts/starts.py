"""The starts that are compared: ways to get a quantized network's first parameters."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

import ghnq_quant
from ghnq_quant.ghn import GHN
from ghnq_quant.quantization import QuantModel


@dataclass(frozen=True)
class InitMethod:
    """A way to get first parameters.

    Attributes:
        title: for tables and plots.
        options: arguments of :func:`ghnq_quant.init_quantized`; None for the network's own
            initialization.
        float_share: share of the steps for training in float first.
    """

    title: str
    options: Mapping[str, Any] | None = None
    float_share: float = 0.0

    def float_steps(self, steps: int) -> int:
        """How many of ``steps`` are in float."""
        return round(self.float_share * steps)

    def quantized(
        self,
        model: nn.Module,
        bits: tuple[int, int],
        data: Iterable[tuple[Tensor, Tensor]],
        *,
        ghn: GHN | None,
        stem_bits: int | None,
        backend: str,
        example_input: Tensor,
    ) -> QuantModel:
        """A quantized copy of ``model`` with this start's parameters.

        Args:
            model: a float network.
            bits: (weight, activation) bits.
            data: batches to fit a classifier to.
            ghn: the hypernetwork; None for the shipped one.
            stem_bits: weight bits of the first layer; None for those of all layers.
            backend: a quantization backend's name.
            example_input: (1, C, H, W).
        """
        common: dict[str, Any] = {
            "stem_bits": stem_bits,
            "backend": backend,
            "example_input": example_input,
        }
        if self.options is None:
            return ghnq_quant.quantize(model, bits, **common)
        return ghnq_quant.init_quantized(model, bits, data, ghn=ghn, **common, **self.options)


STARTS: dict[str, InitMethod] = {
    "pytorch": InitMethod("PyTorch's"),
    "pytorch-fitted": InitMethod("PyTorch's, fitted classifier", {"share": 0.0}),
    "ghnq": InitMethod("GHN-Q", {}),
    "float-first": InitMethod("float first", float_share=0.5),
    "ghnq-as-predicted": InitMethod("GHN-Q as predicted", {"as_predicted": True}),
}
