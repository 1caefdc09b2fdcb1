"""A start that cannot tell images apart gives a warning."""

from __future__ import annotations

import pytest
import torch
from rich.console import Console
from torch import nn

from ghnq_quant import GhnqWarning, calibrate, quantize
from ghnq_quant.quantization.layer_report import layer_table


def dead_network() -> nn.Module:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 4, 1), nn.Flatten())
    nn.init.constant_(model[0].bias, -100)  # so that nothing gets through the first unit
    return model


def test_the_table_marks_where_images_become_equal() -> None:
    model, console = dead_network(), Console(width=100)
    qmodel, images = quantize(model, bits=8, backend="reference"), torch.randn(32, 3, 4, 4)
    calibrate(qmodel, [images[:4]])
    for shown, mark in ((images, "│ 0 * │"), (images[:4], "│ 0 │")):  # four are too few to tell
        with console.capture() as capture:
            console.print(layer_table(model, qmodel, title="", seconds=0, images=shown))
        text = " ".join(capture.get().split())
        assert mark in text
        assert ("32 images have only 1 different outputs, from '0' (*) on." in text) == (
            "*" in mark
        )


def test_a_dead_start_is_named() -> None:
    model = dead_network()
    copied = quantize(model, bits=8, backend="reference").train()
    told = "32 images have only 1 different outputs, from '0' on"
    with pytest.warns(GhnqWarning, match=told) as warned:
        calibrate(copied, [torch.randn(32, 3, 4, 4)])
    assert warned[0].filename == __file__
    assert all(m.training for m in copied.modules())


@pytest.mark.parametrize("side", [1, 4])
def test_maps_of_one_pixel_ask_for_larger_images(side: int) -> None:
    copied = quantize(dead_network(), bits=8, backend="reference")
    with pytest.warns(GhnqWarning, match="hardly tells them apart") as warned:
        calibrate(copied, [torch.randn(32, 3, side, side)])
    assert ("adapt_stem" in str(warned[0].message)) == (side == 1)


def test_equal_images_are_no_fault_of_the_model() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Flatten())
    calibrate(quantize(model, bits=8, backend="reference"), [torch.ones(32, 3, 4, 4)])
