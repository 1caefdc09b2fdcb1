"""What several test files share."""

from __future__ import annotations

import json
import math
import zlib
from pathlib import Path
from typing import Any

import pytest
import torch

from ghnq_quant import GHN

torch.set_num_threads(1)

SHARED = Path(__file__).parents[2] / "shared"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--kills", type=int, default=1, help="Kills of each long command in test_faults.py."
    )


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of reference data beside the repository."""
    if not SHARED.is_dir():
        pytest.skip(f"{SHARED.name}/ is not beside the repository")
    return SHARED


@pytest.fixture(scope="session")
def vectors(shared: Path) -> dict[str, Any]:
    """What the public GHN-2 predicts with the weights of :func:`formula_checkpoint`."""
    content: dict[str, Any] = json.loads((shared / "reference" / "ghn2_vectors.json").read_text())
    return content


@pytest.fixture(scope="session")
def formula_checkpoint(vectors: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A GHN-2 checkpoint in the public format whose weights follow from their names."""
    state = {}
    for key, shape in vectors["state_keys"].items():
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
    torch.save({"config": vectors["config"], "state_dict": state, "epoch": 0}, path)
    return path


@pytest.fixture(scope="session")
def tiny_ghn() -> GHN:
    """A hypernetwork for ten classes that takes no time, with weights of its own initialization."""
    torch.manual_seed(0)
    return GHN(max_shape=(16, 16, 7, 7), num_classes=10, hid=8).eval()
