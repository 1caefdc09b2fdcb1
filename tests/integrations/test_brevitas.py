"""The Brevitas backend from Brevitas's side: layers, proxies, quantized tensors and tools."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from small_networks import images, small_network
from torch import Tensor, nn

import ghnq_quant
from ghnq_quant import Quantizer
from ghnq_quant.quantization import QuantModel, fake_quantize

qnn = pytest.importorskip("brevitas.nn")

from brevitas.proxy import ActQuantProxyFromInjector, WeightQuantProxyFromInjector  # noqa: E402
from brevitas.quant import (  # noqa: E402
    Int8WeightPerTensorFloat,
    ShiftedUint8ActPerTensorFloat,
    ShiftedUint8WeightPerTensorFloat,
)
from brevitas.quant_tensor import IntQuantTensor  # noqa: E402
from ghnq_brevitas import (  # noqa: E402
    QuantConvBatchNorm2d,
    activation_quantizer,
    weight_quantizer,
)

FUSED = ("stem.0", "depthwise")
LAYERS = (*FUSED, "plain", "head")


def make(bits: int = 4, steps: int = 3) -> QuantModel:
    """A quantized model that has seen ``steps`` batches."""
    qmodel = ghnq_quant.quantize(small_network(), bits)
    for _ in range(steps):
        qmodel(images())
    return qmodel


def test_layers_and_quantizers_are_brevitas_own() -> None:
    qmodel = make()
    for name in LAYERS:
        layer = qmodel.get_submodule(name)
        assert isinstance(layer, qnn.QuantLinear if name == "head" else qnn.QuantConv2d)
        assert type(layer.weight_quant) is WeightQuantProxyFromInjector
        assert layer.weight_quant.is_quant_enabled
    for module in qmodel.activation_quantizers.children():
        assert type(module) is qnn.QuantIdentity
        assert type(module.act_quant) is ActQuantProxyFromInjector
    assert not isinstance(qmodel.get_submodule("plain"), QuantConvBatchNorm2d)


@pytest.mark.parametrize("bits", range(2, 9))
def test_quantizers_are_subclasses_of_brevitas_own(bits: int) -> None:
    weights, activations = (
        weight_quantizer(bits),
        activation_quantizer(Quantizer(bits, range="ema")),
    )
    assert issubclass(weights, ShiftedUint8WeightPerTensorFloat)
    assert issubclass(activations, ShiftedUint8ActPerTensorFloat)
    assert weights.bit_width == activations.bit_width == bits
    assert weight_quantizer(bits) is weights
    # they work in a user's own layer, too
    layer = qnn.QuantConv2d(3, 8, 3, weight_quant=weights, input_quant=activations)
    layer(images()).sum().backward()
    assert layer.quant_weight().value.unique().numel() <= 2**bits


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("name", LAYERS)
def test_quantized_weight_is_a_valid_quant_tensor(name: str, bits: int) -> None:
    qmodel = make(bits)
    layer = qmodel.get_submodule(name)
    weight = layer.quant_weight()
    assert isinstance(weight, IntQuantTensor)
    assert weight.is_valid
    assert not weight.signed
    levels = weight.int()
    assert levels.min() >= 0
    assert levels.max() <= 2**bits - 1
    assert torch.equal(weight.value, expected_weight(qmodel, name, bits))
    proxy = layer.weight_quant
    assert proxy.bit_width() == bits
    assert proxy.scale() == weight.scale
    assert proxy.zero_point() == weight.zero_point
    restored = (levels - weight.zero_point) * weight.scale
    torch.testing.assert_close(restored, weight.value, rtol=1e-6, atol=1e-7)


def expected_weight(qmodel: QuantModel, name: str, bits: int) -> Tensor:
    weight = qmodel.get_parameter(f"{name}.weight")
    if name in FUSED:
        norm = qmodel.get_submodule("stem.1" if name == "stem.0" else "norm")
        factor = norm.weight * (norm.running_var + norm.eps).rsqrt()
        weight = weight * factor.view(-1, 1, 1, 1)
    return fake_quantize(weight, bits)


def test_before_any_statistics_a_folded_weight_is_the_weight() -> None:
    layer = make(steps=0).get_submodule("stem.0")
    assert torch.equal(layer.quant_weight().value, fake_quantize(layer.weight, 4))
    assert layer.weight_quant.scale() > 0


@pytest.mark.parametrize("training", [True, False])
def test_asking_for_scales_changes_nothing(training: bool) -> None:
    qmodel = make().train(training)
    before = copy.deepcopy(qmodel.state_dict())
    for module in qmodel.modules():
        if isinstance(module, (WeightQuantProxyFromInjector, ActQuantProxyFromInjector)):
            module.scale(), module.zero_point(), module.bit_width()
    assert all(torch.equal(before[k], v) for k, v in qmodel.state_dict().items())
    assert all(module.training == training for module in qmodel.modules())


def test_activation_scales_are_those_of_the_running_range() -> None:
    qmodel = make(4).eval()
    proxy = qmodel.get_submodule("activation_quantizers.x.act_quant")
    state = {k.rpartition(".")[2]: v for k, v in proxy.state_dict().items()}
    assert proxy.bit_width() == 4
    torch.testing.assert_close(proxy.scale(), (state["running_max"] - state["running_min"]) / 15)
    assert proxy.zero_point() == (-state["running_min"] / proxy.scale()).round()


def test_a_quant_tensor_on_request() -> None:
    quantizer = make().eval().get_submodule("activation_quantizers.add")
    quantizer.return_quant_tensor = True
    y = quantizer(images())
    assert isinstance(y, IntQuantTensor)
    assert y.is_valid
    assert y.int().min() >= 0
    assert y.int().max() <= 15


def test_quantization_can_be_disabled_and_enabled() -> None:
    """As Brevitas's own status managers do, which set ``disable_quant`` of each proxy."""
    model = small_network(dropout=0.0)
    qmodel, x = ghnq_quant.quantize(model, 4), images()
    quantized = qmodel(x)
    proxies = [m for m in qmodel.modules() if hasattr(m, "disable_quant")]
    for proxy in proxies:
        proxy.disable_quant = True
    y = qmodel(x)
    torch.testing.assert_close(y, model(x), rtol=1e-4, atol=1e-5)
    y.sum().backward()
    for proxy in proxies:
        proxy.disable_quant = False
    difference = (qmodel(x) - y).abs().max()
    assert difference > 0.1 * (quantized - y).abs().max()


def test_brevitas_status_manager() -> None:
    calibrate = pytest.importorskip("brevitas.graph.calibrate")
    if not hasattr(calibrate, "quantization_status_manager"):
        pytest.skip("not in this version of Brevitas")
    qmodel, x = make().eval(), images()
    expected, reference = qmodel(x), make(32, steps=0)
    reference.load_state_dict(qmodel.state_dict(), strict=False)
    with calibrate.quantization_status_manager(
        qmodel, disable_act_quant=True, disable_weight_quant=True
    ):
        torch.testing.assert_close(qmodel(x), reference.eval()(x), rtol=1e-4, atol=1e-5)
    assert torch.equal(qmodel(x), expected)


def test_another_weight_quantizer_of_brevitas_in_a_fused_layer() -> None:
    """It is not straight-through: its scale is a parameter, which needs its own gradient."""

    class LearnedScale(Int8WeightPerTensorFloat):
        scaling_impl_type = "parameter_from_stats"

    qmodel, x = make(), images()
    layer = qmodel.get_submodule("stem.0")
    donor = qnn.QuantConv2d(3, 8, 3, padding=1, bias=False, weight_quant=LearnedScale)
    layer.weight_quant = donor.weight_quant
    qmodel(x).square().sum().backward()
    (scale,) = layer.weight_quant.parameters()
    assert scale.grad is not None
    assert scale.grad.abs() > 0
    assert layer.weight.grad.abs().sum() > 0


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")  # torch.jit's
@pytest.mark.parametrize("bits", [8, 4])
def test_brevitas_exports_to_integers(bits: int) -> None:
    """Quantize, clip and dequantize nodes and integer weights, in TorchScript."""
    from brevitas.export import export_torch_qcdq

    qmodel, x = make(bits).eval(), images()
    expected = qmodel(x)
    exported = export_torch_qcdq(copy.deepcopy(qmodel), args=x)
    assert (exported(x) - expected).abs().max() <= 1e-3 * (expected.max() - expected.min())
    other = images()
    assert (exported(other) - qmodel(other)).abs().max() <= 2e-2 * expected.abs().max()
    points = len(qmodel.activation_quantizers)
    assert str(exported.inlined_graph).count("aten::quantize_per_tensor") == points
    constants = [t for t in integer_constants(exported) if t.dim() == 4]
    assert {tuple(t.shape) for t in constants} >= {(8, 3, 3, 3), (8, 1, 3, 3), (8, 8, 1, 1)}
    assert all(int(t.max()) < 2**bits for t in constants)


def integer_constants(module: Any) -> list[Tensor]:
    graph, found = module.inlined_graph, []
    for node in graph.findAllNodes("prim::Constant"):
        if node.hasAttribute("value") and node.kindOf("value") == "t":
            found.append(node.t("value"))
    return [t for t in found if not t.is_floating_point()]


def test_a_copy_folds_its_own_batch_norm() -> None:
    qmodel = make()
    twin = copy.deepcopy(qmodel)
    with torch.no_grad():
        twin.get_submodule("stem.1").running_var.mul_(4)
    scales = [m.get_submodule("stem.0").weight_quant.scale() for m in (qmodel, twin)]
    torch.testing.assert_close(scales[1], scales[0] / 2, rtol=1e-3, atol=0)
    assert isinstance(twin.get_submodule("stem.0"), nn.Conv2d)
