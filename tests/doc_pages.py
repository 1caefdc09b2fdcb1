"""The code blocks of README and docs, and checks that do not run them."""

from __future__ import annotations

import itertools
import re
import shlex
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typer

from ghnq_quant.cli import app

ROOT = Path(__file__).parents[1]
LANGUAGES = {"python", "bash", "toml", "text", "math", "bibtex"}
_FENCE = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```$", re.MULTILINE | re.DOTALL)
#: A comment above a block, with at most the marker that ``.ci/run`` looks for in between.
_NOT_RUN = re.compile(
    r"^<!-- Not run by the tests: (.+)\. -->\n\s*(?:<!--[^\n]*-->\n)?\Z", re.MULTILINE
)
#: Pages whose commands produced the numbers on them.
_MEASURED = {
    "docs/checkpoints.md": "trains a hypernetwork",
    "docs/coverage.md": "measures 677 models",
    "docs/experiment_log.md": "trains and evaluates for hours",
    "docs/results.md": "trains and evaluates for hours",
    "docs/training.md": "trains a hypernetwork on CIFAR-10",
}
_HARMLESS = {".ci/run", "cd", "git", "mkdocs", "mypy", "python", "python3", "ruff", ".", "twine"}
_HARMLESS |= {"nvidia-cuda-mps-control", "pre-commit"}


def pages() -> list[str]:
    """README, CONTRIBUTING and all pages except the tables that ``ghnq evaluate`` writes."""
    docs = (p.relative_to(ROOT).as_posix() for p in (ROOT / "docs").rglob("*.md"))
    return [
        "README.md",
        "CONTRIBUTING.md",
        *sorted(p for p in docs if not p.startswith("docs/results/")),
    ]


@dataclass(frozen=True)
class Block:
    """A fenced block.

    Attributes:
        page: its path from the root.
        line: of its first line of code.
        language: as its fence says.
        code: without the fence.
        reason: why the tests do not run it, None where they do.
        output: the block of text right behind it, None where there is none.
    """

    page: str
    line: int
    language: str
    code: str
    reason: str | None
    output: str | None

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def blocks(page: str) -> list[Block]:
    text = (ROOT / page).read_text("utf-8")
    found = list(_FENCE.finditer(text))
    result = []
    for match, following in itertools.zip_longest(found, found[1:]):
        mark = _NOT_RUN.search(text[: match.start()])
        is_output = (
            following is not None
            and following[1] == "text"
            and not text[match.end() : following.start()].strip()
        )
        result.append(
            Block(
                page,
                text[: match.start(2)].count("\n") + 1,
                match[1],
                match[2],
                mark[1] if mark else _MEASURED.get(page),
                following[2] if following is not None and is_output else None,
            )
        )
    return result


def commands(code: str) -> Iterator[list[str]]:
    """The words of each command in a shell block, without comments, continuation lines joined."""
    for line in code.replace("\\\n", " ").splitlines():
        for command in line.split("&&"):
            if words := shlex.split(command, comments=True):
                yield words


def check_command(words: list[str]) -> None:
    """Raise if a command in the docs does not exist, or has an unknown option or path."""
    name, *arguments = words
    if "ghnq_quant.cli" in arguments:  # after accelerate or torchrun
        parse_ghnq(arguments[arguments.index("ghnq_quant.cli") + 1 :])
    elif name == "ghnq":
        parse_ghnq(arguments)
    elif name == "pip":
        _check_pip(arguments)
    elif name == "pytest":
        _check_paths(arguments)
    elif name in ("accelerate", "torchrun"):
        assert any(a.endswith(".py") for a in arguments), f"{name} runs nothing"
    else:
        assert name in _HARMLESS, f"unknown command {name!r}"
        _check_paths([a for a in words if a.startswith(("docs/", "tests/", ".ci/"))])


def parse_ghnq(arguments: list[str]) -> None:
    """Raise as ``ghnq`` would if these are not a command's arguments."""
    command: Any = typer.main.get_command(app)
    rest = list(arguments)
    while rest and rest[0] in getattr(command, "commands", {}):
        command = command.commands[rest.pop(0)]
    options = {option for p in command.params for option in p.opts} | {"--help"}
    if hasattr(command, "commands") or rest == ["--help"]:
        assert set(rest) <= options, f"ghnq has no command or option {rest}"
        return
    command.make_context("ghnq", rest)


def _check_pip(arguments: list[str]) -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]
    for argument in arguments:
        if match := re.fullmatch(r"(?:\.|ghnq-quant)\[([\w,]+)\]", argument):
            assert set(match[1].split(",")) <= set(extras), f"no extra {match[1]}"


def _check_paths(arguments: list[str]) -> None:
    for argument in arguments:
        if "/" in argument:
            path = ROOT / argument.partition("::")[0]
            assert path.exists(), f"no {path.relative_to(ROOT)}"
