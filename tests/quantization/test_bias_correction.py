"""correct_biases equals a handwritten pass over one network, and helps others."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from backends import backends
from small_networks import images, small_network
from torch import Tensor, nn

import ghnq_quant
from ghnq_quant import BackendError, DataError, GhnqWarning, QuantScheme
from ghnq_quant.quantization import QuantModel, fake_quantize


def plain() -> nn.Sequential:
    """A network without batch norms."""
    torch.manual_seed(5)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 4, 3, groups=2), nn.ReLU(), nn.Flatten(),
        nn.Linear(64, 5),
    )  # fmt: skip


def data(count: int = 3) -> list[Tensor]:
    torch.manual_seed(13)
    return [images(5 + i) + 0.5 for i in range(count)]


def calibrated(model: nn.Module, bits: Any, backend: str = "reference") -> QuantModel:
    return ghnq_quant.calibrate(ghnq_quant.quantize(model, bits, backend=backend), data())


def means(y: Tensor) -> Tensor:
    return y.mean((0, 2, 3)) if y.dim() == 4 else y.mean(0)


@backends
def test_each_layer_gets_the_difference_with_those_before_it_corrected(backend: str) -> None:
    model, x = plain(), torch.cat(data())
    qmodel = calibrated(model, (3, 32), backend)
    assert ghnq_quant.correct_biases(qmodel, data()) is qmodel
    float_x = quantized_x = x
    for name, layer in model.named_children():
        if isinstance(layer, (nn.Conv2d, nn.Linear)):
            rounded = copy.deepcopy(layer)
            rounded.weight.data = fake_quantize(layer.weight.detach(), 3)
            float_y, quantized_y = layer(float_x), rounded(quantized_x)
            shift = means(float_y) - means(quantized_y)
            bias = qmodel.get_parameter(f"{name}.bias")
            torch.testing.assert_close(bias, layer.bias + shift, rtol=1e-5, atol=1e-5)
            float_x = float_y
            quantized_x = quantized_y + (shift.view(-1, 1, 1) if float_y.dim() == 4 else shift)
        else:
            float_x, quantized_x = layer(float_x), layer(quantized_x)
    torch.testing.assert_close(means(qmodel.eval()(x)), means(model(x)), rtol=1e-5, atol=1e-5)


def outputs(qmodel: QuantModel, names: list[str], x: Tensor) -> dict[str, Tensor]:
    seen: dict[str, Tensor] = {}
    for name in names:
        qmodel.get_submodule(name).register_forward_hook(
            lambda m, args, y, name=name: seen.update({name: y.detach().clone()})
        )
    qmodel.eval()(x)
    return seen


@backends
def test_with_a_batch_norm_the_mean_is_beta_again(backend: str) -> None:
    model = small_network(steps=2)
    with torch.no_grad():
        model.stem[1].bias.uniform_(-1, 1)
        model.norm.bias.uniform_(-1, 1)
    beta = {"stem.0": model.stem[1].bias.clone(), "depthwise": model.norm.bias.clone()}
    qmodel = calibrated(model, 2, backend)
    before = outputs(copy.deepcopy(qmodel), list(beta), torch.cat(data()))
    ghnq_quant.correct_biases(qmodel, data())
    after = outputs(qmodel, list(beta), torch.cat(data()))
    for name, expected in beta.items():
        assert (means(before[name]) - expected).abs().max() > 0.01
        torch.testing.assert_close(means(after[name]), expected, rtol=1e-4, atol=1e-5)


def test_float_batch_norms_and_functions_follow_the_float_network() -> None:
    class PreActivation(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.conv, self.last = nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            x = self.conv(F.relu(self.norm(x)))
            return self.last((x * 2 + x).mean((2, 3)))

    model, x = PreActivation(), torch.cat(data())
    qmodel = ghnq_quant.correct_biases(calibrated(model, 3), data())
    torch.testing.assert_close(
        means(qmodel.eval()(x)), means(model.train()(x)), rtol=1e-4, atol=1e-5
    )


def test_a_float_model_and_all_modes_stay() -> None:
    model = plain()
    qmodel = calibrated(model, 32)
    qmodel.get_submodule("2").eval()
    modes = [m.training for m in qmodel.modules()]
    ghnq_quant.correct_biases(qmodel, data())
    for found, expected in zip(qmodel.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
    assert [m.training for m in qmodel.modules()] == modes


def test_statistics_of_each_batch() -> None:
    scheme = QuantScheme(3, 8, act_range="batch", bn="batch")
    qmodel = ghnq_quant.quantize(small_network(steps=2), scheme=scheme, backend="reference")
    ghnq_quant.correct_biases(qmodel, data(1))
    after = outputs(qmodel, ["stem.0"], data(1)[0])["stem.0"]
    torch.testing.assert_close(means(after), torch.zeros(8), rtol=0.0, atol=1e-5)


def test_layers_without_a_bias_are_named() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.ReLU(), nn.Conv2d(4, 2, 3))
    qmodel = calibrated(model, 3)
    with pytest.warns(GhnqWarning, match="1 layers .'0'. have neither"):
        ghnq_quant.correct_biases(qmodel, data())
    x = torch.cat(data())
    torch.testing.assert_close(means(qmodel.eval()(x)), means(model(x)), rtol=1e-4, atol=1e-5)


def test_errors() -> None:
    fresh = ghnq_quant.quantize(small_network(steps=2), 4, backend="reference")
    with pytest.raises(DataError, match=r"has no statistics yet.*calibrate first"):
        ghnq_quant.correct_biases(fresh, data())
    assert all(module.training for module in fresh.modules())
    with pytest.raises(DataError, match="correct_biases got no batch"):
        ghnq_quant.correct_biases(fresh, [])
    with pytest.raises(DataError, match="correct_biases got one tensor"):
        ghnq_quant.correct_biases(fresh, images())
    with pytest.raises(BackendError, match="correct_biases got a SmallNetwork"):
        ghnq_quant.correct_biases(small_network(), data())  # type: ignore[arg-type]
