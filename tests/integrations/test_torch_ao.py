"""The torch.ao backend from torch.ao's side: layers, fake quantizers, observers, switches."""

from __future__ import annotations

import copy
import subprocess
import sys
from typing import Any

import pytest
import torch
from backends import is_quantizer_state, quantized_units
from ghnq_torch_ao import activation_quantizer, weight_quantizer
from small_networks import images, small_network
from torch import Tensor, nn
from torch.ao.nn import qat
from torch.ao.nn.intrinsic import qat as intrinsic_qat
from torch.ao.quantization import (
    FakeQuantize,
    MinMaxObserver,
    MovingAverageMinMaxObserver,
    disable_fake_quant,
    disable_observer,
    enable_fake_quant,
    enable_observer,
)

import ghnq_quant
from ghnq_quant import Quantizer, QuantScheme
from ghnq_quant.quantization import QuantModel, fake_quantize

LAYERS = {
    "stem.0": intrinsic_qat.ConvBn2d,
    "depthwise": intrinsic_qat.ConvBn2d,
    "plain": qat.Conv2d,
    "head": qat.Linear,
}


def make(bits: int = 4, steps: int = 3, **scheme: Any) -> QuantModel:
    """A quantized model that has seen ``steps`` batches."""
    model = small_network(dropout=0.0)
    qmodel = ghnq_quant.quantize(
        model, scheme=QuantScheme(bits, bits, **scheme), backend="torch_ao"
    )
    for _ in range(steps):
        qmodel(images())
    return qmodel


def test_parts_are_torch_ao_own() -> None:
    qmodel = make()
    for name, kind in LAYERS.items():
        layer = qmodel.get_submodule(name)
        assert isinstance(layer, kind)
        assert isinstance(layer.weight_fake_quant, FakeQuantize)
        assert isinstance(layer.weight_fake_quant.activation_post_process, MinMaxObserver)
        assert type(layer.qconfig.weight()) is type(layer.weight_fake_quant)
    for quantizer in qmodel.get_submodule("activation_quantizers").children():
        assert isinstance(quantizer, FakeQuantize)
        assert isinstance(quantizer.activation_post_process, MovingAverageMinMaxObserver)
    for module in qmodel.modules():
        if isinstance(module, FakeQuantize):
            assert (module.quant_min, module.quant_max) == (0, 15)
            assert module.qscheme == torch.per_tensor_affine


@pytest.mark.parametrize("bits", range(2, 9))
def test_fake_quantizers_equal_torch_ao_own(bits: int) -> None:
    """Values, scale and zero point equal the stock ``FakeQuantize`` with its stock observers."""
    levels = {"quant_min": 0, "quant_max": 2**bits - 1, "dtype": torch.quint8}
    ours = {name: activation_quantizer(Quantizer(bits, range=name))() for name in ("batch", "ema")}
    ema = FakeQuantize(MovingAverageMinMaxObserver, averaging_constant=0.1, **levels)
    torch.manual_seed(bits)
    for scale in (1.0, 5.0, 0.2):
        x = torch.randn(5, 3, 7, 7) * scale
        for name, theirs in {"batch": FakeQuantize(MinMaxObserver, **levels), "ema": ema}.items():
            torch.testing.assert_close(ours[name](x), theirs(x), rtol=1e-5, atol=1e-6)
            torch.testing.assert_close(ours[name].scale, theirs.scale, rtol=1e-6, atol=0)
            assert torch.equal(ours[name].zero_point, theirs.zero_point)
            scale_, zero_point = ours[name].calculate_qparams()
            assert torch.equal(scale_, ours[name].scale)
            assert torch.equal(zero_point, ours[name].zero_point)


def test_quantizers_work_in_a_layer_of_the_users_own() -> None:
    qconfig = torch.ao.quantization.QConfig(
        activation=activation_quantizer(Quantizer(4, range="ema")), weight=weight_quantizer(3)
    )
    layer = qat.Conv2d(3, 8, 3, qconfig=qconfig)
    y = qconfig.activation()(layer(images()))
    y.sum().backward()
    assert y.unique().numel() <= 16
    assert layer.weight_fake_quant(layer.weight).unique().numel() <= 8


def test_gradient_is_straight_through_outside_of_the_range_where_torch_masks_it() -> None:
    ours = activation_quantizer(Quantizer(8, range="ema"))()
    theirs = FakeQuantize(
        MovingAverageMinMaxObserver, averaging_constant=0.1, quant_min=0, quant_max=255
    )
    gradients = {}
    for quantizer in (ours, theirs):
        quantizer(torch.tensor([-1.0, 1.0]))
        x = torch.tensor([-3.0, -0.5, 0.5, 3.0], requires_grad=True)
        quantizer.apply(disable_observer)
        quantizer(x).sum().backward()
        gradients[quantizer] = x.grad
    assert torch.equal(gradients[ours], torch.ones(4))
    assert torch.equal(gradients[theirs], torch.tensor([0.0, 1.0, 1.0, 0.0]))


def test_fake_quantization_off_and_on() -> None:
    """Without it the model equals the float model; the observers go on."""
    model, qmodel, x = small_network(dropout=0.0), make(steps=0), images()
    quantized = copy.deepcopy(qmodel)(x)
    qmodel.apply(disable_fake_quant)
    torch.testing.assert_close(qmodel(x), model(x), rtol=1e-4, atol=1e-5)
    assert qmodel.get_submodule("activation_quantizers.x").scale != 1
    qmodel.apply(enable_fake_quant)
    fresh = make(steps=0)
    assert torch.equal(fresh(x), quantized)
    assert not torch.equal(qmodel(x), model(x))


@pytest.mark.parametrize("act_range", ["ema", "batch"])
def test_disabled_observers_freeze_scales_in_train(act_range: str) -> None:
    qmodel = make(act_range=act_range)
    qmodel.apply(disable_observer)

    def frozen() -> dict[str, Tensor]:
        return {k: v.clone() for k, v in qmodel.state_dict().items() if is_quantizer_state(k)}

    before = frozen()
    _, seen = quantized_units(qmodel, images() * 100)
    assert all(torch.equal(before[k], v) for k, v in frozen().items())
    x = qmodel.get_submodule("activation_quantizers.x")
    assert seen["x"][1].max() == (15 - x.zero_point) * x.scale
    qmodel.apply(enable_observer)
    qmodel(images() * 100)
    assert x.scale > before["activation_quantizers.x.scale"]


def test_disabled_observers_survive_a_state_dict_round_trip() -> None:
    qmodel, x = make(), images()
    qmodel.apply(disable_observer)
    other = make(steps=0)
    other.load_state_dict(qmodel.state_dict(), strict=True)
    assert torch.equal(other(x * 7), qmodel(x * 7))


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_weights_can_be_read_and_reading_changes_nothing(name: str, bits: int) -> None:
    qmodel = make(bits).eval()
    before = copy.deepcopy(qmodel.state_dict())
    layer = qmodel.get_submodule(name)
    norm = {"stem.0": "stem.1", "depthwise": "norm"}.get(name)
    weight = layer.weight
    if norm is not None:
        bn = qmodel.get_submodule(norm)
        assert layer.bn is bn
        weight = weight * (bn.weight * (bn.running_var + bn.eps).rsqrt()).view(-1, 1, 1, 1)
    assert layer.weight_bits == bits
    assert torch.equal(layer.quant_weight(), fake_quantize(weight, bits))
    assert all(torch.equal(before[k], v) for k, v in qmodel.state_dict().items())


def test_float_layers_and_activations() -> None:
    qmodel = make(overrides={"plain": 32, "stem.*": (32, 4)})
    assert qmodel.get_submodule("plain").weight_bits == 32
    assert not hasattr(qmodel.get_submodule("activation_quantizers"), "plain")
    assert torch.equal(
        qmodel.get_submodule("plain").quant_weight(), qmodel.get_parameter("plain.weight")
    )
    assert qmodel.get_submodule("activation_quantizers.stem_0").quantizer.bits == 4


def test_frozen_batch_norm_statistics_stay_frozen_in_train() -> None:
    """With torch.ao's layer method, whose effect outlasts ``model.train()``."""
    qmodel = make()
    qmodel.get_submodule("stem.0").freeze_bn_stats()
    norm = qmodel.train().get_submodule("stem.1")
    before = norm.running_mean.clone()
    qmodel(images())
    assert torch.equal(norm.running_mean, before)
    qmodel.get_submodule("stem.0").update_bn_stats()
    qmodel(images())
    assert not torch.equal(norm.running_mean, before)


def test_another_fake_quantizer_in_a_fused_layer() -> None:
    """torch's own masks the gradient, so folding must not treat it as straight-through."""
    qmodel = make()
    layer = qmodel.get_submodule("stem.0")
    layer.weight_fake_quant = FakeQuantize(MinMaxObserver, quant_min=0, quant_max=15)
    qmodel(images()).square().sum().backward()
    assert layer.weight_bits == 4
    assert layer.quant_weight().unique().numel() <= 16
    assert layer.weight.grad.abs().sum() > 0


def test_torch_ao_is_imported_with_the_backend_alone() -> None:
    """It is deprecated, so users of other backends must not depend on it."""
    code = (
        "import sys, ghnq_quant; from torch import nn\n"
        "ghnq_quant.quantize(nn.Sequential(nn.Conv2d(3, 8, 3)), 4, backend='reference')\n"
        "assert 'ghnq_torch_ao' not in sys.modules\n"
        "for m in [m for m in sys.modules if m.startswith('torch.ao')]: del sys.modules[m]\n"
        "sys.modules['torch.ao.quantization'] = None\n"
        "ghnq_quant.quantize(nn.Sequential(nn.Conv2d(3, 8, 3)), 4, backend='torch_ao')\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "BackendError: this version of PyTorch has no torch.ao.quantization" in result.stderr


def test_a_copy_folds_its_own_batch_norm() -> None:
    qmodel = make()
    twin = copy.deepcopy(qmodel)
    assert twin.get_submodule("stem.0").bn is twin.get_submodule("stem.1")
    assert isinstance(twin.get_submodule("stem.0"), nn.Conv2d)
