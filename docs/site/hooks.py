"""What the site does beyond its plugins: equations without JavaScript, each command's help, and the
repository's CONTRIBUTING.md."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from latex2mathml.converter import convert


def on_config(config: Any) -> Any:
    """Let fences of ``math``, which GitHub draws too, become MathML."""
    fence = {"name": "math", "class": "math", "format": _math}
    config.mdx_configs.setdefault("pymdownx.superfences", {})["custom_fences"] = [fence]
    return config


def _math(source: str, *_: Any, **__: Any) -> str:
    lines = [line for line in source.splitlines() if line.strip()]
    return "\n".join(f'<div class="math">{convert(line, display="block")}</div>' for line in lines)


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Put every command's help in the place of the line ``<!-- commands -->``, and CONTRIBUTING.md in
    that of the page with the line ``<!-- contributing -->``."""
    if "<!-- contributing -->" in markdown:
        return Path("CONTRIBUTING.md").read_text("utf-8").replace("](docs/", "](")
    if "<!-- commands -->" not in markdown:
        return markdown
    return markdown.replace("<!-- commands -->", "\n".join(_sections()))


def _sections() -> Iterator[str]:
    os.environ["TERMINAL_WIDTH"] = os.environ["COLUMNS"] = "80"
    import typer
    from typer.testing import CliRunner

    from ghnq_quant.cli import app

    def names(command: Any, path: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
        yield path
        for name, child in getattr(command, "commands", {}).items():
            yield from names(child, (*path, name))

    for path in names(typer.main.get_command(app), ()):
        text = CliRunner().invoke(app, [*path, "--help"], prog_name="ghnq").output
        text = re.sub(r"\x1b\[[0-9;]*m", "", text)
        yield f"## `{' '.join(('ghnq', *path))}`\n\n```text\n{text.strip(chr(10))}\n```\n"
