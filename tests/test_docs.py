"""README and docs as readers use them: every code block runs, or is marked and parses."""

from __future__ import annotations

import doctest
import importlib
import re
import shlex
import sys
import tomllib
from pathlib import Path

import pytest
import torch
import typer
from doc_pages import LANGUAGES, ROOT, Block, blocks, check_command, commands, pages, parse_ghnq
from typer.testing import CliRunner

from ghnq_quant.cli import app

#: Pages whose Python another test file runs, on other data.
ELSEWHERE = {
    "docs/how-to/hugging_face.md": "integrations/test_trainers.py",
    "docs/how-to/lightning.md": "integrations/test_trainers.py",
    "docs/how-to/timm.md": "integrations/test_timm_training.py",
}
MARKED = [block for page in pages() for block in blocks(page) if block.reason]


def folder_of(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty working folder from which a page's files can be imported."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    for block in blocks(page):
        if match := re.match(r"# (\w+)\.py\n", block.code):
            monkeypatch.delitem(sys.modules, match[1], raising=False)


@pytest.mark.filterwarnings("default::ghnq_quant.errors.GhnqWarning")
@pytest.mark.parametrize("page", [p for p in pages() if any(not b.reason for b in blocks(p))])
def test_blocks_run(page, tmp_path, monkeypatch, capsys):
    folder_of(page, tmp_path, monkeypatch)
    torch.manual_seed(0)
    namespace: dict[str, object] = {"__name__": "docs"}
    for block in blocks(page):
        assert block.language in LANGUAGES, f"{block}: a fence of {block.language!r}"
        if block.reason or (page in ELSEWHERE and block.language == "python"):
            continue
        capsys.readouterr()
        if block.language == "python":
            run_python(block, namespace)
        elif block.language == "bash":
            run_commands(block)
        elif block.language == "toml":
            tomllib.loads(block.code)
        if block.output is not None:
            assert without_numbers(capsys.readouterr().out) == without_numbers(block.output), block


def run_python(block: Block, namespace: dict[str, object]) -> None:
    """A block that begins with ``# name.py`` is a file, and later ones import it."""
    if match := re.match(r"# (\w+\.py)\n", block.code):
        Path(match[1]).write_text(block.code, "utf-8")
    lines = "\n" * (block.line - 1)  # so that tracebacks show the page's line numbers
    exec(compile(lines + block.code, str(ROOT / block.page), "exec"), namespace)


def run_commands(block: Block) -> None:
    """Run ``ghnq``; commands that install, test or version this package are only checked."""
    for words in commands(block.code):
        check_command(words)
        if words[0] == "ghnq":
            result = CliRunner().invoke(app, words[1:])
            print(result.stdout, end="")
            assert result.exit_code == 0, (str(block), shlex.join(words), result.exception)


def without_numbers(text: str) -> list[str]:
    """The lines with # for each number: what is the same on every machine."""
    return [
        re.sub(r"-?\d+(\.\d+)?(e-?\d+)?", "#", line.rstrip()) for line in text.strip().splitlines()
    ]


@pytest.mark.parametrize("block", MARKED, ids=str)
def test_marked_blocks_parse(block):
    if block.language == "python":
        compile(block.code, str(block), "exec")
    elif block.language == "bash":
        for words in commands(block.code):
            check_command(words)
    pytest.skip(f"{block} is not run: {block.reason}")


@pytest.mark.parametrize("page", pages())
def test_each_reason_stands_above_a_block(page):
    written = re.findall(r"^<!-- Not run.*$", (ROOT / page).read_text("utf-8"), re.MULTILINE)
    marks = [f"<!-- Not run by the tests: {block.reason}. -->" for block in blocks(page)]
    assert [mark for mark in marks if mark in written] == written


def test_pages_that_other_tests_run_exist():
    for page, test in ELSEWHERE.items():
        assert Path(page).name in (ROOT / "tests" / test).read_text()


@pytest.mark.parametrize("page", ["README.md", "CHANGELOG.md", "CONTRIBUTING.md"])
def test_links_from_outside_of_the_site_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", (ROOT / page).read_text("utf-8")):
        assert target.startswith("https://") or (ROOT / target).exists(), target


def modules_with_examples() -> list[str]:
    files = [*ROOT.glob("ghnq_quant/**/*.py"), *ROOT.glob("integrations/**/*.py")]
    names = [
        f.relative_to(ROOT).as_posix().removeprefix("integrations/").removesuffix(".py")
        for f in sorted(files)
        if ">>>" in f.read_text("utf-8")
    ]
    return [name.replace("/", ".").removesuffix(".__init__") for name in names]


@pytest.mark.filterwarnings("default::ghnq_quant.errors.GhnqWarning")
@pytest.mark.parametrize("module", modules_with_examples())
def test_examples_of_docstrings_run(module, tmp_path, monkeypatch):
    if module == "ghnq_quant.deployment.pte":
        pytest.importorskip("executorch")
    monkeypatch.chdir(tmp_path)
    assert doctest.testmod(importlib.import_module(module)).failed == 0


# The command line's own help


def all_commands() -> list[tuple[str, ...]]:
    def walk(command, path):
        yield path
        for name, child in getattr(command, "commands", {}).items():
            yield from walk(child, (*path, name))

    return list(walk(typer.main.get_command(app), ()))


@pytest.mark.parametrize("command", all_commands(), ids=" ".join)
def test_help_fits_80_columns_and_has_an_example_that_parses(command, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERMINAL_WIDTH", "80")
    text = CliRunner().invoke(app, [*command, "--help"], prog_name="ghnq").output
    assert max(map(len, text.splitlines())) <= 80
    assert "..." not in text.partition("Commands:")[2]  # no sentence is cut off
    example = re.search(r"Example:\n +ghnq (.+)", text)
    assert example, text
    words = shlex.split(example[1])
    assert tuple(words[: len(command)]) == command
    parse_ghnq(words)


def test_completion_offers_commands_and_options(monkeypatch):
    script = CliRunner().invoke(app, [], env={"_GHNQ_COMPLETE": "source_bash"}, prog_name="ghnq")
    assert "complete -o default -F _ghnq_completion ghnq" in script.output
    for line, offered in (("ghnq quick", "quickstart"), ("ghnq init --num", "--num-classes")):
        words = {"COMP_WORDS": line, "COMP_CWORD": str(line.count(" "))}
        environment = {"_GHNQ_COMPLETE": "complete_bash", **words}
        assert offered in CliRunner().invoke(app, [], env=environment, prog_name="ghnq").output
