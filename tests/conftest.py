"""Fixtures for several test files."""

from __future__ import annotations

import math
import os
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from ghn2_vectors import VECTORS
from hypothesis import settings

from ghnq_quant import GHN, cli

torch.set_num_threads(1)
os.environ.setdefault("OMP_NUM_THREADS", "1")  # for processes that tests start

settings.register_profile("local", deadline=None)  # machines are sometimes busy
settings.register_profile(
    "ci", settings.get_profile("local"), derandomize=True, database=None, print_blob=True
)
settings.load_profile("ci" if "CI" in os.environ else "local")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--kills", type=int, default=1, help="Kills of each long command in test_faults.py."
    )


@pytest.fixture
def ghnq(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[object, str, str]]:
    """Run ``ghnq`` with arguments: (exit code, standard output, standard error)."""

    def run(*arguments: object) -> tuple[object, str, str]:
        monkeypatch.setattr(sys, "argv", ["ghnq", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        return stop.value.code or 0, *capsys.readouterr()

    return run


@pytest.fixture(scope="session")
def formula_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A GHN-2 checkpoint in the public format, with weights computed from their names."""
    state = {}
    for key, shape in VECTORS["state_keys"].items():
        generator = torch.Generator().manual_seed(zlib.crc32(key.encode()))
        x = torch.randn(shape, generator=generator)
        if "embed" in key:
            x *= 0.5
        elif key == "ln.weight":
            x = 1 + 0.1 * x
        else:
            x /= math.sqrt(shape[1] if len(shape) > 1 else 32)
        state[key] = x
    path = tmp_path_factory.mktemp("public") / "ghn2.pt"
    torch.save({"config": VECTORS["config"], "state_dict": state, "epoch": 0}, path)
    return path


@pytest.fixture(scope="session")
def tiny_ghn() -> GHN:
    """A tiny, fast hypernetwork for ten classes, freshly initialized."""
    torch.manual_seed(0)
    return GHN(max_shape=(16, 16, 7, 7), num_classes=10, hid=8).eval()
