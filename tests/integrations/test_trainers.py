"""The code on the pages about Lightning and Hugging Face's Trainer, unchanged, on a few images."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import nn

import ghnq_quant

PAGES = Path(__file__).parents[2] / "docs" / "how-to"


@pytest.fixture
def run_page(monkeypatch, tmp_path):
    """Run a page's code with few epochs and batches, on 16 images."""
    monkeypatch.chdir(tmp_path)
    for split, name, shade in [
        (s, n, i) for s in ("train", "test") for n in "ab" for i in range(4)
    ]:
        folder = tmp_path / "images" / split / name
        folder.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (32, 32), (60 * shade, 100, 200)).save(folder / f"{shade}.png")

    def run(page: str, few: dict[str, str]) -> dict[str, Any]:
        text = (PAGES / page).read_text("utf-8")
        code = "\n".join(re.findall(r"```python\n(.*?)```", text, re.DOTALL))
        for old, new in {
            **few,
            "epoch=8": "epoch=1",
            "=64": "=4",
            "mobilenet_v2(": "resnet18(",
        }.items():
            assert old in code
            code = code.replace(old, new)
        namespace: dict[str, Any] = {"__name__": "page"}
        exec(compile(code, page, "exec"), namespace)
        return namespace

    return run


def assert_frozen(names: dict[str, Any]) -> None:
    """No batch norm counted the two steps of the last epoch, only calibration's two batches."""
    qat = names["qat"]
    norms = [m for m in qat.modules() if isinstance(m, nn.BatchNorm2d)]
    assert {int(norm.num_batches_tracked) for norm in norms} == {2}
    again = ghnq_quant.quantize(names["model"], bits=4, stem_bits=8)
    again.load_state_dict(torch.load("mobilenet_v2-w4a4.pt", weights_only=True))
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(again.eval()(images), qat.eval()(images))


def test_lightning(run_page):
    pytest.importorskip("lightning")
    assert_frozen(run_page("lightning.md", {"max_epochs=10": 'max_epochs=2, accelerator="cpu"'}))


def test_hugging_face(run_page):
    pytest.importorskip("transformers")
    few = {"num_train_epochs=10": "num_train_epochs=2, use_cpu=True"}
    assert_frozen(run_page("hugging_face.md", few))
