"""The quantizer: bits, symmetry, granularity and the source of its range."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, get_args

from ghnq_quant.errors import SchemeError

Granularity = Literal["tensor", "channel"]
WeightRange = Literal["minmax", "mse", "learned"]
ActRange = Literal["ema", "batch", "percentile", "mse", "learned"]
Range = WeightRange | ActRange

#: Bit width that means no quantization.
FLOAT_BITS = 32

#: How each non-default setting is written, as in ``4-symmetric-channel``.
_WORDS: dict[str, tuple[str, Any]] = {
    "symmetric": ("symmetric", True),
    "channel": ("granularity", "channel"),
    "power_of_two": ("power_of_two", True),
    "minmax": ("range", "minmax"),
    "ema": ("range", "ema"),
    "batch": ("range", "batch"),
    "percentile": ("range", "percentile"),
    "mse": ("range", "mse"),
    "learned": ("range", "learned"),
    "never_negative": ("never_negative", True),
    "always_signed": ("always_signed", True),
}


@dataclass(frozen=True)
class Quantizer:
    """A uniform quantizer: x̂ = (clamp(round(x / scale) + zero point) − zero point) · scale.

    The default is the paper's: asymmetric, with one scale for the whole tensor.
    ``dataclasses.asdict`` gives JSON and ``str`` text; ``Quantizer(**…)`` and :meth:`parse` read them.

    Attributes:
        bits: 2 to 8, or 32 for float.
        symmetric: False for the levels 0 … 2^bits − 1 with a zero point; True for zero point 0 and
            the levels −2^(bits−1) + 1 … 2^(bits−1) − 1 (narrow range).
        granularity: one scale for the ``"tensor"``, or for each output ``"channel"`` of a weight.
        power_of_two: whether the scale is rounded up to a power of two.
        range: for weights ``"minmax"``; ``"mse"``, the share of minimum and maximum with the smallest
            squared error; or ``"learned"``, by gradient (LSQ, LSQ+). For activations ``"ema"``, a
            moving average of the batches' ranges with momentum 0.1, frozen in eval; ``"batch"``, the
            range of each tensor; ``"percentile"`` or ``"mse"``, which
            :func:`~ghnq_quant.calibrate` finds and nothing else changes; or ``"learned"``. None for
            the default: ``"minmax"``, and the scheme's ``act_range``.
        never_negative: the tensor of a symmetric quantizer has no negative values, so its levels
            are 0 … 2^bits − 1. The plan sets it for activations; you never need to.
        always_signed: a symmetric quantizer has signed levels even then, for runtimes with only
            signed integers.

    Raises:
        SchemeError: an invalid bit width or other setting.

    Example:
        >>> str(Quantizer(4, symmetric=True, granularity="channel"))
        '4-symmetric-channel'
        >>> Quantizer(4).levels, Quantizer(4, symmetric=True).levels
        ((0, 15), (-7, 7))
    """

    bits: int
    symmetric: bool = False
    granularity: Granularity = "tensor"
    power_of_two: bool = False
    range: Range | None = None
    never_negative: bool = False
    always_signed: bool = False

    def __post_init__(self) -> None:
        check_bits(self.bits)
        for name in ("symmetric", "power_of_two", "never_negative", "always_signed"):
            if not isinstance(getattr(self, name), bool):
                raise SchemeError(f"{name}={getattr(self, name)!r}: expected True or False")
        check_one_of(self.granularity, get_args(Granularity), "granularity")
        ranges = dict.fromkeys((*get_args(WeightRange), *get_args(ActRange)))
        check_one_of(self.range, (None, *ranges), "range")
        if self.never_negative and not self.symmetric:
            raise SchemeError(
                "never_negative=True: an asymmetric quantizer has unsigned levels in any case"
            )
        if self.always_signed and not self.symmetric:
            raise SchemeError("always_signed=True: an asymmetric quantizer has unsigned levels")

    @property
    def is_float(self) -> bool:
        """Whether it leaves tensors unchanged."""
        return self.bits == FLOAT_BITS

    @property
    def per_channel(self) -> bool:
        """Whether each output channel has its own scale."""
        return self.granularity == "channel"

    @property
    def learned(self) -> bool:
        """Whether its range has a gradient."""
        return self.range == "learned"

    @property
    def calibrated(self) -> bool:
        """Whether only calibration sets an activation's range."""
        return self.range in ("percentile", "mse")

    @property
    def running(self) -> bool:
        """Whether an activation's range is kept as a running minimum and maximum."""
        return self.range == "ema" or self.calibrated

    @property
    def signed(self) -> bool:
        """Whether there are negative levels."""
        return self.symmetric and (self.always_signed or not self.never_negative)

    @property
    def levels(self) -> tuple[int, int]:
        """The lowest and the highest level."""
        if self.signed:
            highest = 2 ** (self.bits - 1) - 1
            return -highest, highest
        return 0, 2**self.bits - 1

    def __str__(self) -> str:
        words = [w for w, (name, value) in _WORDS.items() if getattr(self, name) == value]
        return "-".join([str(self.bits), *words])

    @staticmethod
    def parse(text: str) -> Quantizer:
        """Parse the text made by ``str``.

        Raises:
            SchemeError: another format.

        Example:
            >>> Quantizer.parse("8-symmetric").symmetric
            True
        """
        bits, *words = text.strip().lower().split("-")
        if not (bits.isascii() and bits.isdigit()) or not set(words) <= _WORDS.keys():
            raise SchemeError(
                f"quantizer {text!r}: write it as 4 or 4-symmetric-channel: bits, then any of "
                + ", ".join(_WORDS)
            )
        return Quantizer(int(bits), **dict(_WORDS[word] for word in words))


def check_one_of(value: object, known: tuple[object, ...], what: str) -> None:
    """Raise SchemeError unless ``value`` is one of the known ones."""
    if value not in known:
        names = ", ".join(map(str, known))
        raise SchemeError(f"{what}={value!r}: expected one of {names}")


def check_bits(bits: object, what: str = "bits") -> int:
    """``bits`` itself; raises SchemeError if it is not a bit width."""
    if (
        isinstance(bits, int)
        and not isinstance(bits, bool)
        and (2 <= bits <= 8 or bits == FLOAT_BITS)
    ):
        return bits
    raise SchemeError(
        f"{what}={bits!r}: a bit width is an integer from 2 to 8, or {FLOAT_BITS} for float"
    )


def as_quantizer(quantizer: Quantizer | int, what: str = "bits") -> Quantizer:
    """The quantizer itself, or the default one of that many bits.

    Raises:
        SchemeError: neither a quantizer nor a bit width.
    """
    if isinstance(quantizer, Quantizer):
        return quantizer
    return _default(check_bits(quantizer, what))


@lru_cache
def _default(bits: int) -> Quantizer:
    return Quantizer(bits)
