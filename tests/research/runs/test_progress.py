"""The progress bar of a long run."""

from __future__ import annotations

import io

from rich.console import Console

from ghnq_quant.research.runs.progress import Progress


def test_a_bar_counts_on_from_what_was_finished_and_takes_fractions() -> None:
    console = Console(file=io.StringIO(), width=150)
    with Progress(4, console, unit="network", done=1) as progress:
        for _ in range(3):
            progress.advance(1 / 3)
        progress.advance(1, "that went well")
    assert isinstance(console.file, io.StringIO)
    line = console.file.getvalue().splitlines()[-1]
    assert line.startswith("3/4 networks ")
    assert " 75% " in line
    assert "that went well" in line


def test_a_run_of_another_length_than_its_count_says_it_in_its_own_words() -> None:
    console = Console(file=io.StringIO(), width=150)
    with Progress(60.0, console, unit="step") as progress:
        progress.show(15.0, "step 1200", "loss 2.1")
    assert isinstance(console.file, io.StringIO)
    line = console.file.getvalue().splitlines()[-1]
    assert line.startswith("step 1200 ")
    assert " 25% loss 2.1" in line
