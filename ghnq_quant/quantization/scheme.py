"""The quantizers of a model, by layer."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from typing import Any, Literal, get_args

from ghnq_quant.capture import QuantPoint
from ghnq_quant.errors import SchemeError
from ghnq_quant.quantization.folding import check_channel_limit
from ghnq_quant.quantization.quantizer import (
    FLOAT_BITS,
    ActRange,
    Quantizer,
    WeightRange,
    as_quantizer,
    check_bits,
    check_one_of,
)
from ghnq_quant.quantization.targets import find_target

BatchNormMode = Literal["running", "batch"]
Biases = Literal["float", "int32"]
Concatenations = Literal["float", "quantized", "refused"]
#: A quantizer, or just its bits.
Bits = int | Quantizer
#: (weights, activations)
Quantizers = tuple[Quantizer, Quantizer]
#: (weight bits, activation bits)
Precision = tuple[int, int]

#: (weight, activation) bits of a network that is not quantized.
FLOAT = (FLOAT_BITS, FLOAT_BITS)


@dataclass(frozen=True, init=False)
class QuantScheme:
    """The quantizers of a model's weights and activations.

    Attributes:
        weights: quantizer of all weights; bits alone mean ``Quantizer(bits)``.
        activations: quantizer of all activations.
        overrides: other quantizers for layers whose name matches a glob pattern: a quantizer for
            both, bits (the quantizer above with other bits), or a pair (weights, activations) of
            these. If several patterns match, the last one counts. A layer's activation is its
            output after batch norm and activation function.
        act_range: range of activation quantizers that do not name one: ``"ema"``, ``"batch"``,
            ``"percentile"``, ``"mse"`` or ``"learned"``, as in :class:`Quantizer`.
        bn: statistics that batch norm folds in eval: ``"running"`` or those of the ``"batch"``.
        biases: ``"float"``, or ``"int32"`` for biases, with the batch norm folded in, that are
            rounded to steps of input scale · weight scale, as integer kernels add them. A bias
            stays float where the input is not quantized or has no fixed range.
        concatenations: ``"float"``, as in the paper, so that what they join keeps its scales;
            ``"quantized"``, so that layers behind them read one scale; or ``"refused"``.
        channel_limit: the largest range of a channel of a weight with batch norm folded in, as a
            multiple of the median over its channels: γ of a channel above it is reduced to fit,
            which changes the function a little and leaves the other channels more levels. By
            default there is no limit.

    Raises:
        SchemeError: an invalid bit width, mode or limit, or a quantizer that weights or activations cannot
            have.

    Example:
        >>> scheme = QuantScheme(Quantizer(4, symmetric=True), 4, overrides={"features.0.*": 8})
        >>> str(scheme.weights_of("features.0.0")), str(scheme.weights_of("features.1.0"))
        ('8-symmetric', '4-symmetric')
    """

    weights: Quantizer
    activations: Quantizer
    overrides: Mapping[str, Quantizers] = field(default_factory=dict)
    act_range: ActRange = "ema"
    bn: BatchNormMode = "running"
    biases: Biases = "float"
    concatenations: Concatenations = "float"
    channel_limit: float | None = None

    # The arguments accept shorter forms than the attributes.
    def __init__(
        self,
        weights: Bits,
        activations: Bits,
        overrides: Mapping[str, Bits | tuple[Bits, Bits]] | None = None,
        act_range: ActRange = "ema",
        bn: BatchNormMode = "running",
        biases: Biases = "float",
        concatenations: Concatenations = "float",
        channel_limit: float | None = None,
    ) -> None:
        own = (
            check_weights(as_quantizer(weights, "weight bits"), "weights"),
            check_activations(as_quantizer(activations, "activation bits"), "activations"),
        )
        check_one_of(act_range, get_args(ActRange), "act_range")
        check_one_of(bn, get_args(BatchNormMode), "bn")
        check_one_of(biases, get_args(Biases), "biases")
        check_one_of(concatenations, get_args(Concatenations), "concatenations")
        others = {p: _override(own, other, p) for p, other in (overrides or {}).items()}
        limit = check_channel_limit(channel_limit)
        values = (*own, others, act_range, bn, biases, concatenations, limit)
        for name, value in zip(self.__dataclass_fields__, values, strict=True):
            object.__setattr__(self, name, value)

    @classmethod
    def for_target(cls, name: str, bits: int | Precision = 8) -> QuantScheme:
        """What a runtime executes in integers (docs/how-to/export.md has the table).

        Args:
            name: ``"onnxruntime"``, ``"openvino"``, ``"tensorrt"``, ``"xnnpack"``, ``"qnn"``,
                ``"finn"`` or ``"hls4ml"``.
            bits: for both, or as (weights, activations).

        Raises:
            SchemeError: an unknown runtime, or bits for which it has no integer kernels.

        Example:
            >>> str(QuantScheme.for_target("openvino", (4, 8)))
            'W4-symmetric-channel/A8'
        """
        target = find_target(name)
        return cls(
            *target.quantizers(as_pair(bits)),
            biases=target.biases,
            concatenations="refused" if target.format == "qonnx" else "quantized",
        )

    def weights_of(self, name: str) -> Quantizer:
        """The quantizer of the weight of the layer ``name``."""
        return self._quantizers_of(name)[0]

    def activations_of(self, point: QuantPoint) -> Quantizer:
        """The quantizer of an activation, with everything the plan and the scheme know about it."""
        if point.joined if self.concatenations == "quantized" else point.concatenation:
            return Quantizer(FLOAT_BITS)
        quantizer = self._quantizers_of(point.name)[1]
        return replace(
            quantizer,
            range=quantizer.range or self.act_range,
            never_negative=quantizer.never_negative
            or (quantizer.symmetric and point.never_negative),
        )

    def _quantizers_of(self, name: str) -> Quantizers:
        found = (self.weights, self.activations)
        for pattern, other in self.overrides.items():
            if fnmatchcase(name, pattern):
                found = other
        return found

    def over_each_batch(self) -> QuantScheme:
        """The same scheme with all activations over the range of each tensor."""
        others = {p: (w, replace(a, range="batch")) for p, (w, a) in self.overrides.items()}
        return replace(self, activations=replace(self.activations, range="batch"), overrides=others)

    def check_overrides(self, names: Iterable[str]) -> None:
        """Raise SchemeError for an override that matches none of a model's layers ``names``."""
        known = list(names)
        for pattern in self.overrides:
            if not any(fnmatchcase(name, pattern) for name in known):
                raise SchemeError(
                    f"overrides[{pattern!r}] matches no quantized layer of the model; they are: "
                    + ", ".join(known)
                )

    def __str__(self) -> str:
        return f"W{self.weights}/A{self.activations}"


def _override(own: Quantizers, other: Any, pattern: str) -> Quantizers:
    what = f"overrides[{pattern!r}]"
    weights, activations = (
        given if isinstance(given, Quantizer) else replace(default, bits=check_bits(given, what))
        for given, default in zip(_both(other, what), own, strict=True)
    )
    return check_weights(weights, what), check_activations(activations, what)


def check_weights(quantizer: Quantizer, what: str) -> Quantizer:
    """``quantizer`` itself; raises SchemeError if weights cannot have it."""
    if quantizer.range not in (None, *get_args(WeightRange)):
        raise SchemeError(
            f"{what}={quantizer}: range {quantizer.range!r} is for activations; weights have "
            + ", ".join(get_args(WeightRange))
        )
    if quantizer.never_negative:
        raise SchemeError(f"{what}={quantizer}: never_negative is for activations")
    return quantizer


def check_activations(quantizer: Quantizer, what: str) -> Quantizer:
    """``quantizer`` itself; raises SchemeError if activations cannot have it."""
    if quantizer.per_channel:
        raise SchemeError(
            f"{what}={quantizer}: activations are quantized per tensor; give weights and "
            "activations separate quantizers, as (weights, activations)"
        )
    if quantizer.range not in (None, *get_args(ActRange)):
        raise SchemeError(
            f"{what}={quantizer}: range {quantizer.range!r} is for weights; activations have "
            + ", ".join(get_args(ActRange))
        )
    return quantizer


def _both(given: Any, what: str) -> tuple[Any, Any]:
    """One for both, or a pair."""
    if not isinstance(given, (tuple, list)):
        return given, given
    if len(given) != 2:
        raise SchemeError(f"{what}={given!r}: a pair is (weight bits, activation bits)")
    return given[0], given[1]


def as_pair(bits: object, what: str = "bits") -> Precision:
    """One bit width for both, or a pair, as (weight, activation) bits."""
    weights, activations = _both(bits, what)
    return check_bits(weights, what), check_bits(activations, what)


def as_quantizers(bits: Bits | tuple[Bits, Bits], what: str = "bits") -> Quantizers:
    """One quantizer or bit width for both, or a pair, as (weights, activations)."""
    weights, activations = _both(bits, what)
    return as_quantizer(weights, what), as_quantizer(activations, what)


def parse_quantizers(
    text: str, weights: str | None = None, activations: str | None = None
) -> Quantizers:
    """(weights, activations) as users write them: as for :func:`parse_precision`, or with words.

    Args:
        text: quantizers of both.
        weights, activations: quantizer of one of them, instead of ``text``.

    Raises:
        SchemeError: another format, or an invalid quantizer.

    Example:
        >>> both = parse_quantizers("4-symmetric-channel/8")
        >>> both == parse_quantizers("8", weights="4-symmetric-channel")
        True
    """
    if re.search("[0-9]-[a-z]", text.lower()) is None:
        first, second = as_quantizers(parse_precision(text))
    else:
        words = [part.lstrip("wa") for part in text.strip().lower().split("/", 1)]
        first, second = Quantizer.parse(words[0]), Quantizer.parse(words[-1])
    first = first if weights is None else Quantizer.parse(weights)
    second = second if activations is None else Quantizer.parse(activations)
    return check_weights(first, "weights"), check_activations(second, "activations")


def parse_precision(text: str) -> tuple[int, int]:
    """(weight, activation) bits as users write them: ``float``, ``4``, ``4/8`` or ``W4/A8``.

    Raises:
        SchemeError: another format, or an invalid bit width.

    Example:
        >>> parse_precision("W4/A8"), parse_precision("4"), parse_precision("float")
        ((4, 8), (4, 4), (32, 32))
    """
    if text.strip().lower() == "float":
        return FLOAT
    match = re.fullmatch(r"[Ww]?([0-9]+)(?:/[Aa]?([0-9]+))?", text.strip())
    if match is None:
        raise SchemeError(f"precision {text!r}: write it as float, 4, 4/8 or W4/A8")
    return as_pair((int(match[1]), int(match[2] or match[1])), f"precision {text!r}")


def precision_name(precision: Precision) -> str:
    """The name as in the paper's Table 1, which :func:`parse_precision` reads.

    Example:
        >>> precision_name((4, 8)), precision_name((32, 32))
        ('W4/A8', 'float')
    """
    return "float" if precision == FLOAT else f"W{precision[0]}/A{precision[1]}"
