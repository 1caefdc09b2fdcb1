"""Layers that adapters rewrite or keep, skipped modules, and a third party's adapter."""

from __future__ import annotations

import copy
import pickle
import sys
from pathlib import Path

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import ghnq_quant
from ghnq_quant import CaptureError, GhnqWarning, init_quantized, predict_parameters, quantize
from ghnq_quant.capture import adapters, capture
from ghnq_quant.quantization import fake_quantize
from ghnq_quant.zoos import create_zoo_model

STANDARDIZED = {
    "standardized": (timm.layers.StdConv2d, {}),
    "standardized, padded": (timm.layers.std_conv.StdConv2dSame, {"stride": 2}),
    "scaled": (timm.layers.ScaledStdConv2d, {"gamma": 1.7}),
    "scaled, padded": (timm.layers.ScaledStdConv2dSame, {"gamma": 1.7, "stride": 2}),
}


def standardized(conv: nn.Conv2d) -> Tensor:
    """Qiao et al. 2019, equation 5; if there is a gain, Brock et al. 2021, equation 1."""
    w = conv.weight.detach()
    mean = w.mean((1, 2, 3), keepdim=True)
    variance = w.var((1, 2, 3), correction=0, keepdim=True)
    scale = conv.gain.detach() * conv.scale if hasattr(conv, "gain") else 1.0
    return (w - mean) / (variance + conv.eps).sqrt() * scale


@pytest.mark.parametrize("backend", ["brevitas", "reference"])
@pytest.mark.parametrize("name", STANDARDIZED)
def test_the_standardized_weight_is_quantized(name: str, backend: str) -> None:
    torch.manual_seed(0)
    cls, settings = STANDARDIZED[name]
    model = nn.Sequential(cls(3, 8, 3, **settings), nn.ReLU())
    if hasattr(model[0], "gain"):
        nn.init.uniform_(model[0].gain, 0.5, 2)
    x = torch.randn(2, 3, 9, 9)
    plain = quantize(model, bits=32, backend=backend)
    torch.testing.assert_close(plain(x), model(x))
    assert plain.state_dict().keys() == model.state_dict().keys()
    assert [n for n, _ in plain.named_parameters()] == [n for n, _ in model.named_parameters()]

    quantized = quantize(model, bits=(3, 32), backend=backend)
    weight = quantized.get_submodule("0").quant_weight()
    weight = weight if isinstance(weight, Tensor) else weight.value
    torch.testing.assert_close(weight, fake_quantize(standardized(model[0]), 3))
    quantized(x).square().sum().backward()
    assert dict(quantized.named_parameters())["0.weight"].grad is not None
    again = copy.deepcopy(quantized)
    torch.testing.assert_close(again(x), quantized(x))
    if backend == "reference":
        torch.testing.assert_close(pickle.loads(pickle.dumps(quantized))(x), quantized(x))


@pytest.mark.parametrize("kernel_size", [3, 5])
def test_channel_attention(kernel_size: int) -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), timm.layers.EcaModule(kernel_size=kernel_size), nn.Conv2d(8, 4, 1)
    )
    x = torch.randn(2, 3, 9, 9)
    torch.testing.assert_close(quantize(model, bits=32)(x), model(x))
    new = predict_parameters(model)["1.conv.weight"]
    assert new.shape == (1, 1, kernel_size)
    assert not torch.equal(new, model[1].conv.weight)
    assert "1.conv" in [unit.name for unit in capture(model).quant_plan.units]


NORMS = [
    timm.layers.LayerNormAct2d(8),
    timm.layers.GroupNorm1Act(8),
    timm.layers.RmsNormAct2d(8),
    timm.layers.RmsNorm2d(8),
    timm.layers.SimpleNorm2d(8),
    timm.layers.EvoNorm2dS0(8, groups=4),
    timm.layers.EvoNorm2dS0a(8, groups=4),
    timm.layers.FilterResponseNormTlu2d(8),
]


@pytest.mark.parametrize("norm", NORMS, ids=lambda norm: type(norm).__name__)
def test_every_norm_of_timm_is_predicted(norm: nn.Module) -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), norm, nn.Conv2d(8, 4, 1))
    x = torch.randn(2, 3, 9, 9)
    torch.testing.assert_close(quantize(model, bits=32)(x), model(x))
    names = {f"1.{n}" for n in ("weight", "bias") if getattr(norm, n, None) is not None}
    assert names <= set(capture(model).arch_graph.parameters)


def test_gradient_of_a_convolution_that_skips_pixels() -> None:
    """oneDNN's own gradient of this convolution writes out of bounds."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 48, 1, stride=2), nn.BatchNorm2d(48))
    x = torch.randn(2, 3, 64, 64)
    target = torch.randn(2, 48, 32, 32)
    quantized = quantize(model, bits=32, backend="reference").train()
    F.mse_loss(quantized(x), target).backward()
    F.mse_loss(model(x), target).backward()
    for name, p in model.named_parameters():
        torch.testing.assert_close(quantized.get_parameter(name).grad, p.grad, atol=1e-6, rtol=1e-4)


class Branches(nn.Module):
    """Cannot be traced."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(8, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x) if x.mean() > -1e9 else x


def test_what_is_not_supported_can_be_left_float() -> None:
    blocks = nn.Sequential(Branches(), nn.Sequential(nn.Conv2d(8, 8, 1), Branches()))
    model = nn.Sequential(nn.Conv2d(3, 8, 3), blocks, nn.Conv2d(8, 4, 1))
    with pytest.raises(CaptureError, match=r"'1\.0' \(Branches\)"):
        init_quantized(model)
    with pytest.warns(GhnqWarning, match=r"2 modules stay float .*: 1\.0, 1\.1\.1") as warned:
        quantized = init_quantized(model, skip="unsupported")
    assert len(warned) == 1
    assert quantized.skipped == ("1.0", "1.1.1")
    with pytest.warns(GhnqWarning, match="2 modules stay float"):
        assert quantize(model, skip="unsupported").skipped == quantized.skipped
    assert type(quantized.get_submodule("1.0.conv")) is nn.Conv2d
    assert [unit.name for unit in quantized.plan.units] == ["0", "1.1.0", "2"]
    state, own = quantized.state_dict(), model.state_dict()
    assert torch.equal(state["1.0.conv.weight"], own["1.0.conv.weight"])
    assert not torch.equal(state["0.weight"], own["0.weight"])
    quantized(torch.zeros(2, 3, 8, 8)).sum().backward()


TOY = """
import torch
from torch import nn

class Doubled(nn.Conv2d):
    def forward(self, x):
        return super().forward(x) * 2

class ToyNet(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.stem = Doubled(3, 8, 3)
        self.fc = nn.Linear(8, num_classes)

    def forward(self, x):
        return self.fc(self.stem(x).mean((2, 3)))
"""
TOY_ADAPTER = """
from torch import nn
from ghnq_quant.capture.adapters import Surrounded, recast
from toyzoo import Doubled, ToyNet

class _ThenDoubled(Surrounded, nn.Conv2d):
    def after(self, x):
        return x * 2

class ToyAdapter:
    def is_leaf(self, module):
        return False

    def rewrite(self, module):
        return recast(module, _ThenDoubled) if type(module) is Doubled else None

    def create_model(self, name, num_classes):
        return ToyNet(num_classes) if name == "toynet" else None

    def model_names(self):
        return ["toynet"]

    def convolutional_models(self):
        return {"toys": ["toynet"]}
"""


def test_an_adapter_of_a_third_party(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "toyzoo.py").write_text(TOY)
    (tmp_path / "toyzoo_ghnq.py").write_text(TOY_ADAPTER)
    distribution = tmp_path / "toyzoo-1.0.dist-info"
    distribution.mkdir()
    (distribution / "METADATA").write_text("Metadata-Version: 2.1\nName: toyzoo\nVersion: 1.0\n")
    (distribution / "entry_points.txt").write_text(
        "[ghnq_quant.adapters]\ntoyzoo = toyzoo_ghnq:ToyAdapter\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    adapters._entries.cache_clear()
    try:
        model = create_zoo_model("toynet", 10)
        x = torch.randn(2, 3, 8, 8)
        torch.testing.assert_close(quantize(model, bits=32)(x), model(x))
        assert ghnq_quant.init_quantized(model, 4)(x).shape == (2, 10)
    finally:
        adapters._entries.cache_clear()
        for name in ("toyzoo", "toyzoo_ghnq"):
            sys.modules.pop(name, None)
