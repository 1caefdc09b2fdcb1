"""What is quantized to how many bits."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Literal, get_args

from ghnq_quant.errors import SchemeError

ActRange = Literal["ema", "batch"]
BatchNormMode = Literal["running", "batch"]
Bits = int | tuple[int, int]
#: (weight bits, activation bits)
Precision = tuple[int, int]

#: Bit width that stands for no quantization.
FLOAT_BITS = 32
#: (weight, activation) bits of a network that is not quantized.
FLOAT = (FLOAT_BITS, FLOAT_BITS)


@dataclass(frozen=True)
class QuantScheme:
    """Bit widths and ranges of a quantized model; weights and activations are quantized tensorwise,
    asymmetrically and uniformly.

    Attributes:
        weight_bits: 2 to 8, or 32 for float.
        act_bits: 2 to 8, or 32 for float.
        overrides: other bits for the layers whose name matches a glob pattern, as one number or as
            (weight, activation); of several matching patterns the last one counts. A layer's
            activation is its unit's output (after batch norm and activation function).
        act_range: of activations: ``"ema"``, a moving average of the batches' ranges with momentum
            0.1, frozen in eval; ``"batch"``, the range of each tensor at hand.
        bn: statistics that batch norm folds in eval: ``"running"`` or those of the ``"batch"``.

    Raises:
        SchemeError: a bit width or a mode that does not exist.

    Example:
        >>> scheme = QuantScheme(4, 4, overrides={"features.0.*": 8})
        >>> scheme.bits_of("features.0.0"), scheme.bits_of("features.1.0")
        ((8, 8), (4, 4))
    """

    weight_bits: int
    act_bits: int
    overrides: Mapping[str, Bits] = field(default_factory=dict)
    act_range: ActRange = "ema"
    bn: BatchNormMode = "running"

    def __post_init__(self) -> None:
        check_bits(self.weight_bits, "weight bits")
        check_bits(self.act_bits, "activation bits")
        for pattern, bits in self.overrides.items():
            as_pair(bits, f"overrides[{pattern!r}]")
        for name, modes in (("act_range", ActRange), ("bn", BatchNormMode)):
            if getattr(self, name) not in get_args(modes):
                raise SchemeError(
                    f"{name}={getattr(self, name)!r}: expected one of {', '.join(get_args(modes))}"
                )

    def bits_of(self, name: str) -> tuple[int, int]:
        """(weight, activation) bits of the layer ``name``."""
        bits = (self.weight_bits, self.act_bits)
        for pattern, other in self.overrides.items():
            if fnmatchcase(name, pattern):
                bits = as_pair(other, pattern)
        return bits

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
        return f"W{self.weight_bits}/A{self.act_bits}"


def check_bits(bits: object, what: str = "bits") -> int:
    """``bits`` itself where it is a bit width; raises SchemeError where it is none."""
    if (
        isinstance(bits, int)
        and not isinstance(bits, bool)
        and (2 <= bits <= 8 or bits == FLOAT_BITS)
    ):
        return bits
    raise SchemeError(
        f"{what}={bits!r}: a bit width is an integer from 2 to 8, or {FLOAT_BITS} for float"
    )


def as_pair(bits: object, what: str = "bits") -> tuple[int, int]:
    """One bit width for both, or a pair, as (weight, activation) bits."""
    if isinstance(bits, (tuple, list)):
        if len(bits) != 2:
            raise SchemeError(f"{what}={bits!r}: a pair is (weight bits, activation bits)")
        return check_bits(bits[0], what), check_bits(bits[1], what)
    return check_bits(bits, what), check_bits(bits, what)


def parse_precision(text: str) -> tuple[int, int]:
    """(weight, activation) bits as people write them: ``float``, ``4``, ``4/8`` or ``W4/A8``.

    Raises:
        SchemeError: another form, or a bit width that does not exist.

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
