"""A start that tells no images apart is named."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from ghnq_quant import GhnqWarning, calibrate, quantize


def test_a_dead_start_is_named() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 4, 1), nn.Flatten())
    nn.init.constant_(model[0].bias, -100)  # so that nothing gets through the first unit
    copied = quantize(model, bits=8, backend="reference").train()
    told = "32 images have only 1 different outputs, from '0' on"
    with pytest.warns(GhnqWarning, match=told) as warned:
        calibrate(copied, [torch.randn(32, 3, 4, 4)])
    assert warned[0].filename == __file__
    assert all(m.training for m in copied.modules())


def test_equal_images_are_no_fault_of_the_model() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Flatten())
    calibrate(quantize(model, bits=8, backend="reference"), [torch.ones(32, 3, 4, 4)])
