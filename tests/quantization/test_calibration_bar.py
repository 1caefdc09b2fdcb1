"""The progress bar of ``calibrate``."""

from __future__ import annotations

import io

import pytest
import torch
from small_networks import images, small_network

import ghnq_quant
from ghnq_quant.quantization import progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(scope="module")
def model() -> ghnq_quant.quantization.QuantModel:
    return ghnq_quant.quantize(small_network(), 8, backend="reference")


@pytest.mark.parametrize(
    ("stream", "delay", "has_length", "expected"),
    [
        (Terminal, 0.0, True, "\rcalibrate [###############               ] 2/4"),
        (Terminal, 0.0, False, "\rcalibrate 2 batches"),
        (Terminal, 60.0, True, None),
        (io.StringIO, 0.0, True, None),
    ],
    ids=["of known length", "of unknown length", "short", "no terminal"],
)
def test_a_bar_is_shown_on_a_terminal_alone(
    monkeypatch, model, stream, delay, has_length, expected
):
    monkeypatch.setattr(progress, "_DELAY", delay)
    stderr = stream()
    monkeypatch.setattr(progress.sys, "stderr", stderr)
    torch.manual_seed(0)
    batches = [images() for _ in range(4)]
    ghnq_quant.calibrate(model, batches if has_length else (batch for batch in batches))
    text = stderr.getvalue()
    if expected is None:
        assert text == ""
    else:
        assert expected in text
        assert text.endswith("\r\x1b[K")
