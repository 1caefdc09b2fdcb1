"""What a quantized network returns, and its errors for unusable input."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from backends import backends
from torch import Tensor, nn

from ghnq_quant import DataError, QuantScheme, SchemeError, calibrate, quantize


class Net(nn.Module):
    """Returns logits, with or without softmax, and a feature map that later layers also read."""

    def __init__(self, softmax: nn.Module) -> None:
        super().__init__()
        self.a, self.b, self.fc = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1), nn.Linear(4, 5)
        self.softmax = softmax

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        features = self.a(x)
        logits = self.fc(torch.flatten(self.b(features), 2).mean(2))
        return self.softmax(logits), features


@pytest.mark.parametrize("softmax", [nn.Identity(), nn.Softmax(1), nn.LogSoftmax(1)])
def test_logits_are_float_and_features_are_not(softmax: nn.Module) -> None:
    copied = quantize(Net(softmax), bits=2, backend="reference")
    assert list(dict(copied.activation_quantizers.named_children())) == ["x", "a", "b"]
    logits, features = copied(torch.randn(64, 3, 8, 8))
    assert features.unique().numel() <= 4
    assert logits.unique().numel() > 64


@backends
def test_one_value_a_channel_has_no_variance(backend: str) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3, stride=2, padding=1), nn.BatchNorm2d(4))
    copied = quantize(model, bits=8, backend=backend)
    with pytest.raises(DataError, match="batch norm '1' got one value per channel"):
        copied(torch.randn(1, 3, 2, 2))
    copied(torch.randn(2, 3, 2, 2))
    assert copied.eval()(torch.randn(1, 3, 2, 2)).isfinite().all()


@backends
@pytest.mark.parametrize("norm", [nn.BatchNorm2d(6), nn.Identity()])
def test_idle_dilation_does_not_crash(backend: str, norm: nn.Module) -> None:
    conv = nn.Conv2d(8, 6, 1, stride=2, padding=1, dilation=2)
    copied = quantize(nn.Sequential(conv, norm), bits=32, backend=backend)
    x = torch.randn(4, 8, 8, 1).contiguous(memory_format=torch.channels_last)
    assert copied(x).shape == (4, 6, 5, 2)
    assert conv.dilation == (2, 2)


def small() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 1))


@backends
def test_an_average_of_models_from_before_the_first_batch(backend: str) -> None:
    model = quantize(small(), bits=8, backend=backend)
    average = copy.deepcopy(model)
    x = torch.randn(8, 3, 4, 4)
    model(x)
    with torch.no_grad():
        for mean, value in zip(
            average.state_dict().values(), model.state_dict().values(), strict=True
        ):
            if mean.is_floating_point():
                mean.lerp_(value, 0.1)
    calibrate(average, [x])
    assert average.eval()(x).isfinite().all()
    torch.testing.assert_close(average(x), calibrate(model, [x]).eval()(x))


@backends
def test_calibration_starts_anew(backend: str) -> None:
    model = quantize(small(), bits=8, backend=backend)
    x = torch.randn(8, 3, 4, 4)
    expected = calibrate(model, [x]).eval()(x)
    calibrate(model, [100 * x])
    assert torch.equal(calibrate(model, [x]).eval()(x), expected)


@pytest.mark.parametrize("batches", [torch.ones(2, 3, 4, 4), [torch.ones(0, 3, 4, 4)], [()]])
def test_calibration_says_what_it_needs(batches: Any) -> None:
    model = quantize(small(), bits=8, backend="reference")
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(DataError, match=r"\(N, C, H, W\)|a list"):
        calibrate(model, batches)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_other_misuse_gets_words() -> None:
    model = small()
    with pytest.raises(SchemeError, match="expected a QuantScheme"):
        quantize(model, scheme="4", backend="reference")
    with pytest.raises(SchemeError, match="pass it by name, scheme="):
        quantize(model, QuantScheme(4, 4), backend="reference")  # type: ignore[arg-type]
    with pytest.raises(AttributeError, match="none of its other attributes"):
        quantize(model, backend="reference").features  # noqa: B018
