"""The measurements of one network."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class PrecisionResult:
    """One network at one precision.

    Attributes:
        top1, top5: accuracy in %.
        nonfinite_images: images with a logit that is not finite; they count as wrong.
        weight_mse, weight_snr_db: error of all quantized weights against the float ones, both
            folded with the float network's statistics of the first batch; None for float.
        output_mse, output_snr_db: error of the logits of all images against the float network with
            the same parameters; None for float, or if a logit is not finite.
    """

    top1: float
    top5: float
    nonfinite_images: int
    weight_mse: float | None = None
    weight_snr_db: float | None = None
    output_mse: float | None = None
    output_snr_db: float | None = None


@dataclass(frozen=True)
class LayerResult:
    """The weight of one conv or linear layer from several sources.

    Attributes:
        name: the layer's name in the network.
        shape: shape of the weight.
        depthwise: whether each output channel reads only one input channel.
        sources: by ``predicted``, ``initial`` (PyTorch's own initialization) and, if given,
            ``trained``: the fields of :class:`~ghnq_quant.research.table1.distributions.Distribution`
            and ``folded_mismatch``, the mismatch after folding batch norm into the weight.
    """

    name: str
    shape: tuple[int, ...]
    depthwise: bool
    sources: dict[str, dict[str, float | None]]


@dataclass(frozen=True)
class NetworkResult:
    """One network.

    Attributes:
        group: its split, or the model's name.
        index: its number in the split.
        parameters: number of elements in its parameters.
        images: number of images it was measured on.
        seconds: duration.
        precisions: results by name.
        layers: in order of execution.
    """

    group: str
    index: int
    parameters: int
    images: int
    seconds: float
    precisions: dict[str, PrecisionResult]
    layers: tuple[LayerResult, ...]

    @property
    def key(self) -> tuple[str, int]:
        """Identifies the network."""
        return self.group, self.index

    def change(self, precision: str) -> float:
        """Top-1 accuracy at a precision minus float's, in percentage points."""
        return self.precisions[precision].top1 - self.precisions["float"].top1

    def to_json(self) -> dict[str, Any]:
        """As plain lists, numbers and strings."""
        return asdict(self)

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> NetworkResult:
        """The inverse of :meth:`to_json`."""
        precisions = {k: PrecisionResult(**v) for k, v in content["precisions"].items()}
        layers = tuple(
            LayerResult(**{**layer, "shape": tuple(layer["shape"])}) for layer in content["layers"]
        )
        return cls(**{**content, "precisions": precisions, "layers": layers})


def finite_or_none(value: float) -> float | None:
    """The value, or None for infinities and NaN, which JSON cannot hold."""
    return value if math.isfinite(value) else None
