"""The command line for given settings: the inverse of how ``ghnq`` reads its options."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, get_type_hints

from ghnq_quant.quantization.scheme import Precision, precision_name

if TYPE_CHECKING:
    from _typeshed import DataclassInstance


def _joined(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


@dataclass(frozen=True)
class Option:
    """How a field is written on the command line, if not as ``--its-name value,value``.

    Attributes:
        name: the option's name; None for the field's own, empty for arguments without one.
        write: turns the value into text.
    """

    name: str | None = None
    write: Callable[[Any], str] = _joined


def bits_text(bits: Precision) -> str:
    """A precision as ``--bits`` takes it.

    Example:
        >>> bits_text((4, 8)), bits_text((32, 32))
        ('4/8', 'float')
    """
    return precision_name(bits).replace("W", "").replace("A", "")


def each(write: Callable[[Any], str]) -> Callable[[Iterable[Any]], str]:
    """Writes several values as one text."""
    return lambda values: ",".join(map(write, values))


def command_line(command: str, settings: DataclassInstance) -> str:
    """The words of a shell command, with options in the order of the settings' fields.

    Fields that are None, False or empty are left out.

    Args:
        command: a command of ``ghnq``.
        settings: a dataclass; ``Annotated[..., Option(...)]`` marks fields that are not written by
            their own names.

    Example:
        >>> from ghnq_quant.research.table1.settings import EvaluationSettings
        >>> command_line("evaluate", EvaluationSettings("digits", num_nets=5)).split()[:6]
        ['ghnq', 'evaluate', '--data', 'digits', '--ghn', 'ghnq-cifar10']
    """
    hints = get_type_hints(type(settings), include_extras=True)
    words = ["ghnq", command]
    for field in fields(settings):
        value = getattr(settings, field.name)
        marks = getattr(hints[field.name], "__metadata__", ())
        option = next((m for m in marks if isinstance(m, Option)), Option())
        if value is None or value is False or value == ():
            continue
        if option.name == "":
            words += map(str, value)
            continue
        words.append(option.name or "--" + field.name.replace("_", "-"))
        if value is not True:
            words.append(option.write(value))
    return shlex.join(words)
