"""What the packages' files may import, and how long files may be, read from their source."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[1]
#: The one file of the library that knows the laboratory: it mounts its commands.
CLI = "ghnq_quant.cli"
#: Their functions import what a command runs, so that ``ghnq --help`` need not wait for it.
COMMANDS = (
    CLI, "ghnq_quant.cli_checkpoints", "ghnq_quant.cli_options", "ghnq_quant.research.cli",
)  # fmt: skip
#: What the library does without, or imports where it is used.
FOREIGN = {"brevitas", "timm", "torchvision", "torchao", "matplotlib", "sklearn", "pandas"}
#: What ``import ghnq_quant`` leaves for when it is used, since each takes a tenth of a second or more.
HEAVY = FOREIGN | {"scipy", "sympy", "torch._dynamo", "onnx", "rich"}
MOST_LINES = 400


class Import(NamedTuple):
    """An import of ``target``, a module or what a module holds, in a line of a file."""

    target: str
    line: int
    in_function: bool
    for_types: bool


@cache
def files() -> dict[str, Path]:
    """The packages' files by the names they are imported under."""
    found = {}
    for folder in (ROOT, ROOT / "integrations"):
        for path in folder.glob("ghnq_*/**/*.py"):
            parts = path.relative_to(folder).with_suffix("").parts
            found[".".join(parts).removesuffix(".__init__")] = path
    return found


def is_in(name: str, *packages: str) -> bool:
    return any(name == package or name.startswith(package + ".") for package in packages)


def library() -> list[str]:
    return [
        name
        for name in files()
        if is_in(name, "ghnq_quant") and not is_in(name, "ghnq_quant.research")
    ]


@cache
def imports(name: str) -> tuple[Import, ...]:
    return tuple(_imports(ast.parse(files()[name].read_text("utf-8")), False, False))


def _imports(tree: ast.AST, in_function: bool, for_types: bool) -> Iterator[Import]:
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(alias.name, node.lineno, in_function, for_types)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            for alias in node.names:
                target = f"{node.module}.{alias.name}"
                yield Import(target, node.lineno, in_function, for_types)
        else:
            function = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            typing = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
            yield from _imports(node, in_function or function, for_types or typing)


def imported_files(name: str) -> set[str]:
    targets = {i.target for i in imports(name)}
    return {t if t in files() else t.rpartition(".")[0] for t in targets} & set(files())


def check(names: Iterable[str], wrong: Callable[[Import], bool]) -> None:
    """Fail with a line for each import that is wrong there."""
    found = ((files()[name], i) for name in names for i in imports(name) if wrong(i))
    lines = [f"{path.relative_to(ROOT)}:{i.line} imports {i.target}" for path, i in found]
    if lines:
        pytest.fail("\n".join(lines), pytrace=False)


def test_the_library_does_without_the_laboratory():
    names = [name for name in library() if name != CLI]
    check(names, lambda i: is_in(i.target, "ghnq_quant.research"))


def test_the_library_imports_no_toolkit_and_no_zoo():
    def is_foreign(i: Import) -> bool:
        return not i.in_function and not i.for_types and i.target.partition(".")[0] in FOREIGN

    check(library(), is_foreign)


def test_no_files_import_each_other():
    """Not in a longer circle either, nor inside a function or for types alone."""
    try:
        TopologicalSorter({name: imported_files(name) for name in files()}).prepare()
    except CycleError as error:
        pytest.fail(" is imported by ".join(error.args[1]), pytrace=False)


def test_functions_import_nothing_of_ours():
    ours = {name.partition(".")[0] for name in files()}
    names = [name for name in files() if not is_in(name, *COMMANDS)]
    check(names, lambda i: i.in_function and is_in(i.target, *ours))


def test_no_file_is_long():
    """Neither of the packages nor of the tests."""
    paths = [*files().values(), *(ROOT / "tests").rglob("*.py")]
    lengths = {str(p.relative_to(ROOT)): p.read_text("utf-8").count("\n") for p in paths}
    assert not {path: length for path, length in lengths.items() if length > MOST_LINES}


def loaded(code: str, names: set[str]) -> list[str]:
    """Those of the modules ``names`` that a new process has imported after ``code``."""
    code += f"\nimport sys; print(*sorted({names!r} & set(sys.modules)), file=sys.stderr)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return run.stderr.split()


def test_the_package_is_imported_without_what_is_heavy():
    assert loaded("import ghnq_quant", HEAVY | {"torch", "numpy"}) == []
    assert loaded("import ghnq_quant; ghnq_quant.quantize", HEAVY) == []


def test_a_hypernetwork_is_loaded_without_what_is_heavy():
    assert loaded("import ghnq_quant; ghnq_quant.GHN.from_pretrained()", HEAVY) == []


def test_help_is_shown_without_torch():
    code = """
from ghnq_quant.cli import app
for arguments in (["--help"], ["init", "--help"], ["evaluate", "--help"], ["--version"]):
    app(arguments, standalone_mode=False)
"""
    assert loaded(code, {"torch", "numpy", "scipy", "matplotlib"}) == []
