"""Batch-norm folding equals its formula and nn.BatchNorm2d."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import pytest
import torch
from backends import backends
from naive_simulation import conv_batch_norm as naive_conv_batch_norm
from torch import Tensor, nn

import ghnq_quant
from ghnq_quant import GhnqWarning, Quantizer, QuantScheme
from ghnq_quant.quantization import conv_batch_norm, fake_quantize

CONVS: dict[str, dict[str, Any]] = {
    "plain": {"kernel_size": 3, "padding": 1, "bias": False},
    "bias": {"kernel_size": 3, "bias": True},
    "pointwise": {"kernel_size": 1, "bias": False},
    "grouped": {"kernel_size": 3, "groups": 4, "stride": 2, "bias": False},
    "depthwise": {"kernel_size": 5, "groups": 8, "padding": 2, "bias": False},
    "dilated": {"kernel_size": 3, "dilation": 2, "padding": "same", "bias": True},
    "reflecting": {"kernel_size": 3, "padding": 1, "padding_mode": "reflect", "bias": False},
    "uneven": {"kernel_size": (1, 3), "padding": (0, 1), "stride": (2, 1), "bias": False},
    # fewer positions than output channels: computed tap by tap
    "few positions": {"kernel_size": (10, 9), "padding": (0, 1), "stride": (9, 3), "bias": True},
    "few, dilated": {
        "kernel_size": 3,
        "padding": 1,
        "stride": (12, 6),
        "dilation": 2,
        "bias": False,
    },
    "few, taps on padding": {"kernel_size": 5, "padding": 3, "stride": (14, 8), "bias": False},
}


def make(name: str = "plain", **norm: Any) -> tuple[Tensor, nn.Conv2d, nn.BatchNorm2d]:
    torch.manual_seed(5)
    conv, bn = nn.Conv2d(8, 16, **CONVS[name]), nn.BatchNorm2d(16, **norm)
    if bn.affine:
        nn.init.uniform_(bn.weight, -1, 2)
        nn.init.normal_(bn.bias)
    return torch.randn(6, 8, 12, 10) + 0.3, conv, bn


def run(
    function: Any, x: Tensor, conv: nn.Conv2d, bn: nn.BatchNorm2d
) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """Output, gradients, and the batch norm's buffers after three batches."""
    x = x.clone().requires_grad_()
    for scale in (1.0, 3.0):
        function(x.detach() * scale, conv, bn)
    y = function(x, conv, bn)
    (y * torch.linspace(-1, 1, y.numel()).view_as(y)).sum().backward()
    if conv.bias is not None:  # only rounding: batch norm removes the bias
        assert conv.bias.grad.abs().max() <= 1e-6 * y.numel()
    gradients = [x.grad, conv.weight.grad, *(p.grad for p in bn.parameters())]
    return y.detach(), gradients, list(bn.buffers())


def assert_all_close(ours: Any, theirs: Any, relative: float) -> None:
    """Each tensor within ``relative`` of the other's largest magnitude."""
    for a, b in zip(ours, theirs, strict=True):
        limit = relative * b.abs().max()
        assert (a.double() - b.double()).abs().max() <= limit


def quantized(bits: int, mode: str = "running", **kwargs: Any) -> Any:
    def function(x: Tensor, conv: nn.Conv2d, bn: nn.BatchNorm2d) -> Tensor:
        return conv_batch_norm(
            x,
            conv,
            bn,
            lambda w: fake_quantize(w, bits),
            mode,
            **kwargs,  # type: ignore[arg-type]
        )

    return function


@pytest.mark.parametrize("straight_through", [True, False])
@pytest.mark.parametrize("norm", [{}, {"momentum": 0.3}, {"momentum": None}, {"affine": False}])
@pytest.mark.parametrize("name", CONVS)
def test_float_weights_equal_torch_batch_norm(
    name: str, norm: dict[str, Any], straight_through: bool
) -> None:
    x, conv, bn = make(name, **norm)
    theirs = run(lambda x, conv, bn: bn(conv(x)), x, *copy.deepcopy((conv, bn)))
    ours = run(quantized(32, straight_through=straight_through), x, conv, bn)
    assert_all_close([ours[0]], [theirs[0]], 1e-5)
    assert_all_close(ours[2], theirs[2], 1e-5)
    assert_all_close(ours[1], theirs[1], 1e-5)
    assert bn.num_batches_tracked == 3


@pytest.mark.parametrize(("bits", "limit"), [(2, None), (4, None), (8, None), (32, 1.5)])
@pytest.mark.parametrize("name", CONVS)
def test_equals_the_formula_in_train(name: str, bits: int, limit: float | None) -> None:
    x, conv, bn = make(name)
    x, conv, bn = x.double(), conv.double(), bn.double()

    def naive(x: Tensor, conv: nn.Conv2d, bn: nn.BatchNorm2d) -> Tensor:
        return naive_conv_batch_norm(x, conv, bn, Quantizer(bits), "running", limit)

    theirs = run(naive, x, *copy.deepcopy((conv, bn)))
    # torch's fake quantization of the formula computes in float32
    ours = run(quantized(bits, limit=limit), x, *copy.deepcopy((conv, bn)))
    general = run(quantized(bits, limit=limit, straight_through=False), x, conv, bn)
    for fast, slow, formula in zip(ours[:2], general[:2], theirs[:2], strict=True):
        as_lists = [list(v) if isinstance(v, list) else [v] for v in (fast, slow, formula)]
        assert_all_close(as_lists[0], as_lists[1], 1e-9)
        assert_all_close(as_lists[0], as_lists[2], 1e-5)
    assert_all_close(ours[2], theirs[2], 1e-9)


@pytest.mark.parametrize("bits", [4, 8, 32])
@pytest.mark.parametrize("name", CONVS)
def test_equals_the_formula_in_eval(name: str, bits: int) -> None:
    x, conv, bn = make(name)
    bn(conv(x))
    bn.eval()
    before = copy.deepcopy(bn.state_dict())
    factor = bn.weight / (bn.running_var + bn.eps).sqrt()
    folded = fake_quantize((conv.weight * factor.view(-1, 1, 1, 1)).detach(), bits)
    bias = torch.zeros(16) if conv.bias is None else conv.bias
    expected = conv._conv_forward(x, folded, bn.bias + factor * (bias - bn.running_mean))
    assert_all_close([quantized(bits)(x, conv, bn)], [expected], 1e-5)
    assert all(torch.equal(before[k], v) for k, v in bn.state_dict().items())


def test_a_limit_reduces_gamma_of_the_channels_above_it() -> None:
    bn = nn.BatchNorm2d(4, eps=0.0).eval()
    conv = nn.Conv2d(4, 4, 1, groups=4, bias=False)
    bn.num_batches_tracked += 1
    with torch.no_grad():
        conv.weight.fill_(1.0)
        bn.weight.copy_(torch.tensor([1.0, -2.0, 12.0, 0.0]))  # the lower median is 1
        folded: list[Tensor] = []
        conv_batch_norm(
            torch.ones(1, 4, 1, 1), conv, bn, lambda w: folded.append(w) or w, "running", limit=1.5
        )
        assert folded[0].flatten().tolist() == [1.0, -1.5, 1.5, 0.0]
        bn.weight[:2] = 0.0  # with a median of zero there is nothing to compare with
        conv_batch_norm(
            torch.ones(1, 4, 1, 1), conv, bn, lambda w: folded.append(w) or w, "running", limit=1.5
        )
        assert folded[1].flatten().tolist() == [0.0, 0.0, 12.0, 0.0]


def test_batch_mode_uses_and_keeps_no_statistics_in_eval() -> None:
    x, conv, bn = make()
    bn.eval()
    bn.running_mean += 7
    before = copy.deepcopy(bn.state_dict())
    expected = naive_conv_batch_norm(x, conv, bn, Quantizer(8), "batch")
    y = quantized(8, "batch")(x, conv, bn)
    assert (y - expected).abs().max() <= 1e-5 * expected.abs().max()
    assert all(torch.equal(before[k], v) for k, v in bn.state_dict().items())


def test_without_running_statistics() -> None:
    x, conv, bn = make(track_running_stats=False)
    bn.eval()
    torch.testing.assert_close(quantized(32)(x, conv, bn), bn(conv(x)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("groups", [1, 2, 64])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_statistics_are_accurate(groups: int, layout: torch.memory_format) -> None:
    from ghnq_quant.quantization.channel_statistics import batch_statistics

    z = torch.randn(groups, 24, 31, 33) * torch.logspace(-1, 3, 24).view(1, -1, 1, 1) + 2
    mean, variance = batch_statistics(z.to(memory_format=layout))
    expected = torch.var_mean(z.double(), (0, 2, 3), correction=0)
    torch.testing.assert_close(variance.double(), expected[0], rtol=2e-6, atol=0)
    scale = z.double().abs().mean((0, 2, 3))
    assert ((mean - expected[1]).abs() / scale).max() < 1e-6


def test_large_images_are_as_accurate_as_small_ones() -> None:
    from ghnq_quant.quantization.channel_statistics import batch_statistics

    z = torch.randn(64, 8, 64, 64).to(memory_format=torch.channels_last) + 1
    mean, variance = batch_statistics(z)
    expected = torch.var_mean(z.double(), (0, 2, 3), correction=0)
    torch.testing.assert_close(variance.double(), expected[0], rtol=2e-6, atol=0)
    torch.testing.assert_close(mean.double(), expected[1], rtol=2e-6, atol=0)


def small_network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, bias=False),
        nn.BatchNorm2d(8),
    )


@backends
def test_a_frozen_batch_norm_folds_its_running_statistics(backend: str) -> None:
    model = small_network()
    for _ in range(3):
        model(torch.randn(8, 3, 10, 10))
    qmodel = ghnq_quant.quantize(model, 32, backend=backend).train()
    qmodel.get_submodule("1").eval()
    model.train()[1].eval()
    statistics = copy.deepcopy(model[1].state_dict())
    x = torch.randn(8, 3, 10, 10)
    torch.testing.assert_close(qmodel(x), model(x), rtol=1e-4, atol=1e-5)
    for name, value in qmodel.get_submodule("1").state_dict().items():
        assert torch.equal(value, statistics[name])
    assert qmodel.get_submodule("4").num_batches_tracked == 4


@backends
def test_eval_before_any_statistics_uses_the_batch_and_warns_once(backend: str) -> None:
    qmodel = ghnq_quant.quantize(small_network(), 8, backend=backend).eval()
    batch_mode = ghnq_quant.quantize(
        small_network(), scheme=QuantScheme(8, 8, act_range="batch", bn="batch"), backend=backend
    ).eval()
    x = torch.randn(4, 3, 10, 10)
    with pytest.warns(GhnqWarning, match="without running statistics"):
        y = qmodel(x)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(qmodel(x), y)
        assert torch.equal(batch_mode(x), y)
    assert qmodel.get_submodule("1").num_batches_tracked == 0


def depthwise_network(channels: int) -> nn.Module:
    """Depthwise filters with batch norm; with fewer channels, the last ones of the four."""
    torch.manual_seed(2)
    conv, bn = nn.Conv2d(4, 4, 3, padding=1, groups=4, bias=False), nn.BatchNorm2d(4)
    nn.init.normal_(bn.bias)
    first = 4 - channels
    part = nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False)
    norm = nn.BatchNorm2d(channels)
    part.weight.data, norm.bias.data = conv.weight.data[first:], bn.bias.data[first:]
    return nn.Sequential(part, norm)


@backends
@pytest.mark.parametrize("granularity", ["tensor", "channel"])
def test_a_constant_channel_does_not_silence_the_others(backend: str, granularity: Any) -> None:
    scheme = QuantScheme(Quantizer(3, granularity=granularity), 32)
    x = torch.randn(8, 4, 6, 6)
    x[:, 0] = 0
    ours, without = (
        ghnq_quant.quantize(depthwise_network(n), scheme=scheme, backend=backend) for n in (4, 3)
    )
    for training in (True, False):
        if not training:
            ghnq_quant.calibrate(ours, [x])
            ghnq_quant.calibrate(without, [x[:, 1:]])
        y = ours.train(training)(x)
        torch.testing.assert_close(y[:, 1:], without.train(training)(x[:, 1:]))
        beta = ours.get_parameter("1.bias")[0]
        torch.testing.assert_close(y[:, 0], beta.expand_as(y[:, 0]))


def test_the_papers_protocol_folds_constant_channels_too() -> None:
    conv, bn = nn.Conv2d(2, 2, 1, groups=2, bias=False), nn.BatchNorm2d(2)
    x = torch.randn(4, 2, 3, 3)
    x[:, 0] = 0
    seen: list[Tensor] = []
    conv_batch_norm(x, conv, bn, lambda w: seen.append(w) or w, "batch")
    torch.testing.assert_close(seen[0][0], conv.weight[0] / bn.eps**0.5)


def test_under_autocast() -> None:
    x, conv, bn = make()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = quantized(4)(x, conv, bn)
        y.float().square().sum().backward()
    assert y.isfinite().all()
    assert conv.weight.grad.isfinite().all()


def test_no_second_derivative() -> None:
    x, conv, bn = make()
    y = quantized(4)(x.requires_grad_(), conv, bn)
    (gradient,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError):
        gradient.sum().backward()
