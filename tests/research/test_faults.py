"""Long commands that are killed at random moments and started again end as if nothing had been.

``pytest tests/research/test_faults.py -n0 -s --kills 20`` kills each of them twenty times.
"""

from __future__ import annotations

import csv
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from digits_file import save_digits
from safetensors import safe_open

#: The times in a run's files.
TIMES = {"seconds"}


class Command(NamedTuple):
    """A command, and the files that must be the same as without a kill."""

    arguments: tuple[str, ...]
    files: tuple[str, ...]
    resume: tuple[str, ...] = ()


#: Paths as a process in its folder sees them.
DIGITS = "../digits.npz"
COMMANDS = {
    "finetune": Command(
        ("finetune", "--data", DIGITS, "--steps", "40", "--validate-every", "10", "--bits",
         "float,4", "--precision-embedding", "--new-batch-norms", "--meta-batch-size", "1",
         "--image-batch-size", "10", "--architectures", "20", "--image-size", "32", "--max-macs",
         "2M", "--val-networks", "1", "--val-images", "32"),
        ("state.safetensors", "history.csv", "best/model.safetensors", "best/config.json",
         "last/model.safetensors", "last/config.json"),
        ("--resume",),
    ),
    "evaluate": Command(
        ("evaluate", "--data", DIGITS, "--split", "mobile", "--num-nets", "4", "--num-images",
         "64", "--precision", "W4/A4"),
        ("networks.jsonl", "results.json", "table.md", "table.csv", "networks.csv"),
    ),
    "compare-init": Command(
        ("compare-init", "resnet8", "--data", DIGITS, "--steps", "1,2", "--seeds", "1",
         "--start", "pytorch,ghnq", "--lr", "0.03,0.1", "--lr-steps", "2", "--images-per-class",
         "8", "--test-images", "64", "--backend", "reference"),
        ("trials.jsonl", "results.json", "table.md"),
    ),
    "coverage": Command(
        ("coverage", "test_[er]*net", "--library", "timm", "--backend", "reference"),
        ("coverage.jsonl", "coverage.md"),
    ),
}  # fmt: skip


#: A run removes this from its folder as soon as it has locked the folder.
MARK = ".tmp-mark"


def begin(command: Command, folder: Path, *more: str) -> subprocess.Popen[bytes]:
    """Start a command in a folder, with its results in ``out`` there."""
    folder.mkdir(exist_ok=True)
    if (folder / "out").exists():
        (folder / "out" / MARK).touch()
    words = [sys.executable, "-W", "ignore", "-m", "ghnq_quant.cli", *command.arguments, *more]
    return subprocess.Popen(
        [*words, "-o", "out"],
        cwd=folder,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        start_new_session=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def finish(process: subprocess.Popen[bytes]) -> None:
    _, err = process.communicate(timeout=900)
    assert process.returncode == 0, err.decode()


def killed(process: subprocess.Popen[bytes], out: Path, chance: random.Random, run: float) -> bool:
    """Kill it at a random moment, most often after it has begun; False if it ended before."""
    if chance.random() < 0.75:
        wait_until_begun(process, out)
    try:
        process.wait(chance.uniform(0, run))
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        return True
    finish(process)
    return False


def wait_until_begun(process: subprocess.Popen[bytes], out: Path) -> None:
    while process.poll() is None and (not out.exists() or (out / MARK).exists()):
        time.sleep(0.01)


def content(file: Path) -> Any:
    """The content of a file, without times."""
    if file.suffix == ".jsonl":
        return [timeless(json.loads(line)) for line in file.read_text().splitlines()]
    if file.suffix == ".json":
        return timeless(json.loads(file.read_text()))
    if file.suffix == ".csv":
        return [timeless(row) for row in csv.DictReader(file.read_text().splitlines())]
    if file.name == "state.safetensors":
        with safe_open(file, "pt") as opened:
            facts = {k: timeless(json.loads(v)) for k, v in opened.metadata().items()}
            tensors = {k: opened.get_tensor(k) for k in opened.keys()}  # noqa: SIM118
        return facts, {k: (v.shape, v.numpy().tobytes()) for k, v in sorted(tensors.items())}
    return file.read_bytes()


def timeless(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: timeless(v) for k, v in value.items() if k not in TIMES}
    return [timeless(v) for v in value] if isinstance(value, list) else value


def assert_same(command: Command, one: Path, other: Path) -> None:
    for name in command.files:
        assert content(one / name) == content(other / name), name
    left = [path.name for path in other.rglob(".tmp-*")]
    assert not left


@pytest.mark.parametrize("name", COMMANDS)
def test_a_killed_command_ends_as_if_nothing_had_been(
    name: str, tmp_path: Path, pytestconfig: pytest.Config
) -> None:
    wanted: int = pytestconfig.getoption("kills")
    command, chance = COMMANDS[name], random.Random(wanted)
    save_digits(tmp_path / "digits.npz")
    whole = tmp_path / "whole"
    process = begin(command, whole)
    wait_until_begun(process, whole / "out")
    begun = time.monotonic()
    finish(process)
    seconds = time.monotonic() - begun
    kills = runs = 0
    while kills < wanted:
        runs += 1
        folder = tmp_path / f"killed-{runs}"
        more: tuple[str, ...] = ()
        while kills < wanted:
            if not killed(begin(command, folder, *more), folder / "out", chance, seconds):
                break
            kills += 1
            written = {path.name for path in (folder / "out").glob("*")} - {MARK}
            more = command.resume if written else ()
        else:
            finish(begin(command, folder, *more))
        assert_same(command, whole / "out", folder / "out")
    print(f"{name}: {kills} kills of {runs} runs")
