"""Public checkpoints on the command line: converted, and checked by their published norms."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import joblib
import pytest
import torch
from typer.testing import CliRunner

from ghnq_quant import GHN, CheckpointError, GhnqError, verification
from ghnq_quant.cli import app
from ghnq_quant.verification import predicted_norm, published_norms, verify_checkpoint


def hypernetwork(**settings: Any) -> GHN:
    torch.manual_seed(0)
    sizes = {"max_shape": (4, 4, 16, 16), "num_classes": 5, "hid": 8, "layers": 1}
    return GHN(**{**sizes, "encoder": "graphormer", **settings}).eval()


@pytest.fixture
def published(monkeypatch: pytest.MonkeyPatch) -> None:
    """The small hypernetwork's norms for two models are published, of one wrongly."""
    ghn = hypernetwork()
    norms = {"squeezenet1_1": predicted_norm("squeezenet1_1", ghn), "alexnet": 1.0, "vit_b_32": 2.0}
    monkeypatch.setattr(verification, "published_norms", lambda ghn: norms)


@pytest.mark.parametrize(
    ("settings", "resnet18"),
    [
        ({"max_shape": (64, 64, 16, 16), "hid": 64, "layers": 3}, 54.9382),
        ({"max_shape": (384, 384, 16, 16), "hid": 384, "layers": 24, "heads": 16}, 73.9089),
        ({"max_shape": (64, 64, 16, 16), "hid": 32, "encoder": "gated"}, 146.9574),
    ],
)
def test_norms_of_published_checkpoints(settings: dict[str, Any], resnet18: float) -> None:
    with torch.device("meta"):
        norms = published_norms(hypernetwork(num_classes=1000, **settings))
    assert len(norms) == 74
    assert norms["resnet18"] == resnet18


def test_others_have_none() -> None:
    with pytest.raises(CheckpointError, match=r"ghn2.pt, ghn3tm8.pt, ghn3xlm16.pt"):
        list(verify_checkpoint(hypernetwork()))


def test_verification(published: None) -> None:
    right, wrong, transformer = verify_checkpoint(hypernetwork())
    assert right.agrees
    assert not wrong.agrees
    assert wrong.found is not None
    assert transformer.found is None
    assert "MultiheadAttention" in transformer.reason
    with pytest.raises(GhnqError, match="resnet18: its norm is not published"):
        list(verify_checkpoint(hypernetwork(), ["resnet18"]))


def test_partly_predicted_models_are_not_compared() -> None:
    with pytest.raises(GhnqError, match=r"attn\.qkv\.weight', of shape .* is not predicted"):
        predicted_norm("swin_t", hypernetwork(encoder="gated"))


def test_position_biases_keep_their_own_values() -> None:
    assert predicted_norm("swin_t", hypernetwork()) > 0


def test_commands(published: None, tmp_path: Path) -> None:
    file, folder = tmp_path / "ghn3small.pt", tmp_path / "converted"
    joblib.dump(hypernetwork().state_dict(), file)
    result = CliRunner().invoke(app, ["convert-checkpoint", str(file), "-o", str(folder)])
    assert result.exit_code == 0, result.output
    config = json.loads((folder / "config.json").read_text())
    assert config["provenance"]["parent"]["file"] == "ghn3small.pt"
    for checkpoint in (file, folder):
        command = ["verify-checkpoint", str(checkpoint), "--model", "squeezenet1_1"]
        result = CliRunner().invoke(app, command)
        assert result.exit_code == 0, result.output
        assert "All 1 norms match the published ones" in result.output
    result = CliRunner().invoke(app, ["verify-checkpoint", str(folder)])
    assert isinstance(result.exception, CheckpointError)
    assert "1 of 2 norms differ from the published ones: alexnet" in str(result.exception)
