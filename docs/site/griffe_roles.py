"""A Griffe extension: Sphinx's roles in docstrings, as in :func:`name`, become links, and arguments that
share a line, as in ``scale, offset: scalars``, each get a row of the table."""

from __future__ import annotations

import re
from typing import Any

import griffe

_ROLE = re.compile(r":(?:class|func|meth|mod|attr|data|exc):`~?([\w.]+)`")
#: Several names, what is said of them, and its continued lines.
_SHARED = re.compile(r"^( +)(\w+(?:, \w+)+): (.+(?:\n\1 +.+)*)", re.MULTILINE)


class Roles(griffe.Extension):
    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring is not None:
            text = _ROLE.sub(lambda match: _link(obj, match[1]), obj.docstring.value)
            text = _SHARED.sub(_one_line_each, text)
            # the section is «Examples» to Griffe; what it does not know it would take for prose
            obj.docstring.value = re.sub(r"^(\s*)Example:$", r"\1Examples:", text, flags=re.M)


def _one_line_each(match: re.Match[str]) -> str:
    return "\n".join(f"{match[1]}{name}: {match[3]}" for name in match[2].split(", "))


def _link(obj: griffe.Object, name: str) -> str:
    try:
        target = obj.resolve(name) if "." not in name else name
    except griffe.NameResolutionError:
        target = f"{obj.path}.{name}"
    return f'<autoref identifier="{target}" optional><code>{name.split(".")[-1]}</code></autoref>'
