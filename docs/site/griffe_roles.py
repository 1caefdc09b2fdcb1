"""A Griffe extension: Sphinx's roles in docstrings, as in :func:`name`, become links."""

from __future__ import annotations

import re
from typing import Any

import griffe

_ROLE = re.compile(r":(?:class|func|meth|mod|attr|data|exc):`~?([\w.]+)`")


class Roles(griffe.Extension):
    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring is not None:
            text = _ROLE.sub(lambda match: _link(obj, match[1]), obj.docstring.value)
            # the section is «Examples» to Griffe; what it does not know it would take for prose
            obj.docstring.value = re.sub(r"^(\s*)Example:$", r"\1Examples:", text, flags=re.M)


def _link(obj: griffe.Object, name: str) -> str:
    try:
        target = obj.resolve(name) if "." not in name else name
    except griffe.NameResolutionError:
        target = f"{obj.path}.{name}"
    return f'<autoref identifier="{target}" optional><code>{name.split(".")[-1]}</code></autoref>'
