"""``torch.compile`` and ``torch.export`` of quantized models."""

from __future__ import annotations

import copy

import pytest
import torch
from backends import backends
from small_networks import images
from torch import nn
from torch.export import Dim

import ghnq_quant
from ghnq_quant import GhnqError, Quantizer, QuantScheme
from ghnq_quant.quantization import QuantModel


def quantized(backend: str, scheme: QuantScheme | None = None) -> QuantModel:
    """Only two layers, because compilers are slow. Their sums on integers are often exactly 0, where the
    gradient of ReLU would depend on the last bit."""
    pytest.importorskip({"brevitas": "brevitas", "pt2e": "torchao"}.get(backend, "torch"))
    torch.manual_seed(0)
    conv = nn.Conv2d(3, 4, 3, bias=False)
    network = nn.Sequential(conv, nn.BatchNorm2d(4), nn.SiLU(), nn.Flatten(), nn.Linear(144, 4))
    return ghnq_quant.quantize(
        network, scheme=scheme or QuantScheme(4, 4), backend=backend, example_input=images()
    )


def gradients(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@backends
def test_compiled_equals_eager(backend: str) -> None:
    """As a single graph, in outputs, gradients, running statistics and ranges."""
    channels = Quantizer(4, symmetric=True, granularity="channel")
    weights = channels if backend != "brevitas" else 4
    eager = quantized(backend, QuantScheme(weights, 4, biases="int32"))
    twin = copy.deepcopy(eager)
    compiled = torch.compile(twin, backend="aot_eager", fullgraph=True)
    for training in (True, False):
        x = images()
        y, z = eager.train(training)(x), compiled.train(training)(x)
        torch.testing.assert_close(z, y, rtol=1e-5, atol=1e-5)
        y.square().mean().backward()
        z.square().mean().backward()
        torch.testing.assert_close(gradients(twin), gradients(eager), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(
            dict(twin.state_dict()), dict(eager.state_dict()), rtol=1e-5, atol=1e-5
        )


def test_pt2e_trains_uncompiled() -> None:
    """The compiler would read running statistics after they have changed."""
    pytest.importorskip("torchao")
    layers = [layer for _ in "12" for layer in (nn.Conv2d(3, 3, 3), nn.BatchNorm2d(3))]
    network = nn.Sequential(*layers)
    eager = ghnq_quant.quantize(network, 4, backend="pt2e", example_input=images()).train()
    twin, x = copy.deepcopy(eager), images()
    eager(x).square().mean().backward()
    with pytest.warns(ghnq_quant.GhnqWarning, match="trains uncompiled"):
        torch.compile(twin, backend="aot_eager")(x).square().mean().backward()
    torch.testing.assert_close(gradients(twin), gradients(eager), rtol=0, atol=0)


def test_switches_of_a_compiled_model() -> None:
    """torch.ao's switches are buffers, so they cause no new graph."""
    eager = quantized("torch_ao")
    twin = copy.deepcopy(eager)
    compiled = torch.compile(twin, backend="eager", fullgraph=True)
    for switch in ("disable_observer", "disable_fake_quant", "enable_observer"):
        for model in (eager, twin):
            model.apply(getattr(torch.ao.quantization, switch))
        x = images()
        torch.testing.assert_close(compiled(x), eager(x), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(
            dict(twin.state_dict()), dict(eager.state_dict()), rtol=1e-5, atol=1e-5
        )


@pytest.mark.parametrize("backend", ["reference", "brevitas", "torch_ao", "pt2e"])
def test_export(backend: str) -> None:
    """For any number of images, if the model has statistics."""
    qmodel, x = quantized(backend), images()
    batch = ({0: Dim("batch", min=1)},)
    with pytest.raises(GhnqError, match="no running statistics"):
        torch.export.export(qmodel.eval(), (x,), dynamic_shapes=batch)
    ghnq_quant.calibrate(qmodel, [x])
    exported = torch.export.export(qmodel, (x,), dynamic_shapes=batch).module()
    for count in (1, 9):
        x = images(count)
        torch.testing.assert_close(exported(x), qmodel(x), rtol=1e-5, atol=1e-5)


def test_export_of_a_converted_model() -> None:
    qmodel, x = quantized("reference"), images()
    converted = ghnq_quant.convert(ghnq_quant.calibrate(qmodel, [x]))
    program = torch.export.export(converted, (x,), dynamic_shapes=({0: Dim("batch", min=1)},))
    compiled = torch.compile(converted, backend="eager", fullgraph=True)
    y = images(9)
    assert torch.equal(program.module()(y), converted(y))
    assert torch.equal(compiled(y), converted(y))
    assert torch.equal(torch.jit.trace(converted, x)(y), converted(y))


def test_a_compiler_that_finds_no_statistics() -> None:
    """It leaves eval to eager mode, which warns and uses the batch's statistics."""
    qmodel, x = quantized("reference").eval(), images()
    with pytest.warns(ghnq_quant.GhnqWarning, match="without running statistics"):
        y = torch.compile(qmodel, backend="eager")(x)
    torch.testing.assert_close(y, qmodel(x), rtol=1e-5, atol=1e-5)
