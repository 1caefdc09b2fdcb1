"""Precisions by their names in the paper: ``float``, ``W8/A8``, ``W4/A8``, …"""

from __future__ import annotations

from collections.abc import Iterable

from ghnq_quant.quantization.scheme import FLOAT, parse_precision

#: (weight bits, activation bits)
Precision = tuple[int, int]

#: The rows of the paper's Table 1.
PAPER_PRECISIONS = ("float", "W8/A8", "W4/A8", "W4/A4", "W2/A2")


def precision_name(precision: Precision) -> str:
    """The name as in Table 1, which ``parse_precision`` reads.

    Example:
        >>> precision_name((4, 8)), precision_name((32, 32))
        ('W4/A8', 'float')
    """
    return "float" if precision == FLOAT else f"W{precision[0]}/A{precision[1]}"


def parse_precisions(names: Iterable[str]) -> tuple[Precision, ...]:
    """Several precisions without repetition, float first: everything else is compared with it.

    Float is put in where it is not named.

    Example:
        >>> parse_precisions(["W4/A4", "W8/A8"])
        ((32, 32), (4, 4), (8, 8))
    """
    return tuple(dict.fromkeys((FLOAT, *(parse_precision(name) for name in names))))
