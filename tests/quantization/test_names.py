"""Every quantized activation has its own quantizer, whatever the network's parts are called."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from ghnq_quant import CaptureError, quantize


def chain(**parts: nn.Module) -> nn.Sequential:
    model = nn.Sequential()
    for name, part in parts.items():
        model.add_module(name, part)
    return model


def conv(channels: int = 4) -> nn.Conv2d:
    return nn.Conv2d(channels, 4, 1)


def quantizers(model: nn.Module) -> list[str]:
    copied = quantize(model, bits=8, backend="reference")
    copied(torch.randn(2, 3, 4, 4))
    return list(dict(copied.activation_quantizers.named_children()))


def test_a_dot_is_no_underscore() -> None:
    model = chain(block=nn.Sequential(conv(3)), block_0=conv(), block__0=conv(), last=conv())
    assert quantizers(model) == ["input_1", "block_0", "block_0_", "block__0"]


class Adds(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.add_1, self.last = conv(3), conv(), conv()

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        x = self.add_1(x + x.abs())
        return self.last(x + x.relu())


def test_the_number_of_an_operation_is_no_module() -> None:
    assert quantizers(Adds()) == ["x", "first", "add", "add_1", "add_2"]


@pytest.mark.parametrize("name", ["keys", "values", "weight", "training_mode"])
def test_any_usual_name(name: str) -> None:
    model = chain(first=conv(3), **{name: conv(), "last": conv()})
    assert len(quantizers(model)) == 3


RESERVED = ["code", "plan", "scheme", "backend", "skipped", "activation_quantizers"]


@pytest.mark.parametrize("name", [*RESERVED, 'a"b', "a\\b", "class"])
def test_a_name_that_cannot_be(name: str) -> None:
    with pytest.raises(CaptureError) as caught:
        quantize(chain(first=conv(3), **{name: conv()}), backend="reference")
    assert repr(name) in str(caught.value)


class Scaled(nn.Module):
    """Reads a tensor that is neither a parameter nor a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.scale = conv(3), torch.full((4, 1, 1), 3.0)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x) * self.scale


def test_a_plain_tensor_of_the_model() -> None:
    model, x = Scaled(), torch.randn(2, 3, 4, 4)
    copied = quantize(model, bits=32, backend="reference")
    torch.testing.assert_close(copied(x), model(x))
    assert copied.state_dict().keys() == model.state_dict().keys()
