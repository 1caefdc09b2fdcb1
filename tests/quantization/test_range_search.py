"""Searched ranges: against all candidates and torch.quantile, and in every backend's calibration."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from backends import activation_ranges, backends
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from small_networks import images, small_network
from torch import Tensor, nn

import ghnq_quant
from ghnq_quant import DataError, Quantizer, QuantScheme, SchemeError
from ghnq_quant.quantization import QuantModel, affine_parameters, quantize_dequantize, tensor_range
from ghnq_quant.quantization.range_search import Histogram, best_share

KINDS = ["2", "4", "8", "3-symmetric", "4-power_of_two", "2-symmetric-power_of_two"]


def heavy_tailed(*shape: int) -> Tensor:
    torch.manual_seed(5)
    return torch.randn(shape) * torch.randn(shape).exp()


def errors(x: Tensor, quantizer: Quantizer) -> Tensor:
    """(100,): the squared error for each hundredth of one tensor's range, in float64."""
    low, high = tensor_range(x)
    found = []
    for share in (i / 100 for i in range(1, 101)):
        qparams = affine_parameters(share * low, share * high, quantizer)
        y = quantize_dequantize(x, *qparams, quantizer)
        found.append((y.double() - x.double()).square().sum())
    return torch.stack(found)


@pytest.mark.parametrize("kind", KINDS)
def test_no_share_has_a_smaller_error(kind: str) -> None:
    quantizer, x = Quantizer.parse(kind), heavy_tailed(6, 500)
    of_all = errors(x, quantizer)
    found = round(float(best_share(x, quantizer)) * 100) - 1
    assert of_all[found] <= of_all.min() * (1 + 1e-5)
    assert found > 0
    of_channels = best_share(x, replace(quantizer, granularity="channel"))
    assert torch.equal(of_channels, torch.stack([best_share(row, quantizer) for row in x]))


@settings(deadline=None, max_examples=60)
@given(
    arrays(
        np.float32,
        array_shapes(min_dims=2, max_dims=3, max_side=5),
        elements=st.floats(width=32, allow_nan=False, allow_infinity=False),
    ),
    st.sampled_from(KINDS),
)
@example(np.zeros((3, 2), np.float32), "4")
@example(np.full((1, 1), 3.4e38, np.float32), "8")
@example(np.array([[1e-45, 0], [0.7, 0.7]], np.float32), "2")
@example(np.array([[3.4e38, -3.4e38]], np.float32), "3-symmetric")
@example(np.array([[1.0], [2.0**127]], np.float32), "2")
@example(np.array([[1e-40], [3e-40]], np.float32), "2")
def test_a_share_of_any_weight(array: np.ndarray, kind: str) -> None:
    x = torch.from_numpy(array)
    for quantizer in (Quantizer.parse(kind), Quantizer.parse(f"{kind}-channel")):
        share = best_share(x, quantizer)
        assert share.shape == (x.shape[:1] if quantizer.per_channel else ())
        assert torch.all((share > 0) & (share <= 1))
    histogram = Histogram()
    for row in x:
        histogram.add(row)
    low, high = tensor_range(x)
    for found_low, found_high in (
        histogram.percentile_range(99.99),
        histogram.least_error_range(Quantizer.parse(kind)),
    ):
        assert low <= found_low <= 0 <= found_high <= high
    assert histogram.percentile_range(100) == (low, high)


@pytest.mark.parametrize("percentile", [99.99, 99.9, 90, 51])
def test_percentiles_are_those_of_torch_quantile_to_a_bin(percentile: float) -> None:
    x, histogram = heavy_tailed(30, 400), Histogram()
    for part in x.sort().values:  # its bound doubles several times
        histogram.add(part * 1.0)
    low, high = histogram.percentile_range(percentile)
    values = x.flatten().double()
    for found, share in ((low, 1 - percentile / 100), (high, percentile / 100)):
        # give or take one value
        around = torch.tensor([share - 1 / len(values), share + 1 / len(values)])
        near = values.quantile(around.double().clamp(0, 1))
        assert near[0] - x.abs().max() / 2048 <= found <= near[1] + x.abs().max() / 2048


def test_a_percentile_where_nearly_all_is_zero_keeps_minimum_and_maximum() -> None:
    histogram, x = Histogram(), torch.zeros(1000)
    histogram.add(x)
    assert histogram.percentile_range(60) == (0, 0)
    histogram.add(torch.tensor([2.0, -1.0]))
    low, high = histogram.percentile_range(60)
    assert -1 <= low <= high <= 2
    assert low < high


@pytest.mark.parametrize("kind", KINDS)
def test_a_histogram_finds_nearly_the_least_error(kind: str) -> None:
    quantizer, x, histogram = Quantizer.parse(kind), heavy_tailed(20, 500), Histogram()
    for part in x:
        histogram.add(part)
    found = affine_parameters(*histogram.least_error_range(quantizer), quantizer)
    error = (quantize_dequantize(x, *found, quantizer) - x).double().square().sum()
    assert error <= errors(x, quantizer).min() * 1.01


# In models


def batches(count: int = 4) -> list[Tensor]:
    torch.manual_seed(11)
    return [images() * (i + 1) for i in range(count)]


def make(backend: str, act_range: str, weights: str = "4") -> QuantModel:
    scheme = QuantScheme(Quantizer.parse(weights), 4, act_range=act_range)  # type: ignore[arg-type]
    return ghnq_quant.quantize(small_network(steps=2), scheme=scheme, backend=backend)


@backends
@pytest.mark.parametrize("act_range", ["ema", "mse"])
def test_calibration_searches_over_all_batches(backend: str, act_range: str) -> None:
    data = batches()
    qmodel = ghnq_quant.calibrate(make(backend, act_range), data, ranges="mse")
    histogram = Histogram()
    for x in data:
        histogram.add(x)
    low, high = histogram.least_error_range(qmodel.scheme.activations)
    found = activation_ranges(qmodel)["x"]
    assert (found.low, found.high) == (low, high)
    assert low > torch.cat(data).min()


@backends
def test_a_searched_range_stays_and_a_moving_average_goes_on(backend: str) -> None:
    data = batches()
    for act_range, stays in (("percentile", True), ("mse", True), ("ema", False)):
        qmodel = make(backend, act_range)
        ghnq_quant.calibrate(qmodel, data, ranges="percentile", percentile=90)
        before = copy.deepcopy(activation_ranges(qmodel))
        qmodel.train()(data[-1])
        for name, found in activation_ranges(qmodel).items():
            assert torch.equal(found.high, before[name].high) == stays


@backends
def test_the_quantizers_own_range_says_how_calibration_finds_it(backend: str) -> None:
    data, found = batches(), []
    for act_range, ranges in (("percentile", None), ("ema", "percentile")):
        qmodel = ghnq_quant.calibrate(make(backend, act_range), data, ranges=ranges)  # type: ignore[arg-type]
        found.append(activation_ranges(qmodel))
    assert found[0] == found[1]


@backends
@pytest.mark.parametrize("mode", [True, False])
def test_a_range_that_needs_data_says_so(backend: str, mode: bool) -> None:
    qmodel = make(backend, "percentile").train(mode)
    with pytest.raises(
        DataError, match=r"activation_quantizers\.\S+ has range 'percentile', which need"
    ):
        qmodel(images())
    loaded = ghnq_quant.calibrate(make(backend, "percentile"), batches())
    qmodel.load_state_dict(loaded.state_dict())
    assert torch.equal(qmodel.eval()(images(2)[:1] * 0), loaded.eval()(images(2)[:1] * 0))


@backends
@pytest.mark.parametrize("kind", ["3-mse", "2-symmetric-channel-mse"])
def test_a_weights_share_is_found_once_and_kept(backend: str, kind: str) -> None:
    """From the running statistics, for the first batch after calibrate, and in a new calibrate."""
    qmodel = make(backend, "ema", kind)
    layer, quantizer = qmodel.get_submodule("stem.0"), qmodel.scheme.weights
    folded = layer.folded_weight()

    def expected(weight: Tensor, share: Tensor) -> Tensor:
        low, high = (share * end for end in channel_range(weight, quantizer))
        return quantize_dequantize(weight, *affine_parameters(low, high, quantizer), quantizer)

    first = best_share(folded, quantizer)
    assert first.max() < 1
    values = layer.quant_weight()
    values = values if isinstance(values, Tensor) else values.value
    assert torch.equal(values, expected(folded, first))
    with torch.no_grad():
        layer.weight[0, 0, 0, 0] *= 30
    (share,) = (
        v for k, v in qmodel.state_dict().items() if k.startswith("stem.0") and "share" in k
    )
    qmodel.train()(images())
    assert torch.equal(share, first)
    ghnq_quant.calibrate(qmodel, batches())
    assert not torch.equal(share, first)


def channel_range(weight: Tensor, quantizer: Quantizer) -> tuple[Tensor, Tensor]:
    rows = weight.detach().flatten(1) if quantizer.per_channel else weight.detach().view(1, -1)
    low, high = rows.amin(1).clamp(max=0), rows.amax(1).clamp(min=0)
    return (low, high) if quantizer.per_channel else (low[0], high[0])


@pytest.mark.parametrize("percentile", [50, 100.1, 0, True, float("nan")])
def test_no_such_percentile(percentile: float) -> None:
    with pytest.raises(SchemeError, match=r"percentile=.*above 50, up to 100"):
        ghnq_quant.calibrate(
            make("reference", "ema"), batches(), ranges="percentile", percentile=percentile
        )


def test_what_calibrate_refuses() -> None:
    with pytest.raises(SchemeError, match="ranges='max': expected one of None, percentile, mse"):
        ghnq_quant.calibrate(make("reference", "ema"), batches(), ranges="max")  # type: ignore[arg-type]
    with pytest.raises(SchemeError, match=r"ranges='mse': .*QuantScheme\(act_range='mse'\)"):
        ghnq_quant.calibrate(make("reference", "batch"), batches(), ranges="mse")
    with pytest.raises(
        DataError, match=r"'activation_quantizers\.x' got values that are not finite"
    ):
        ghnq_quant.calibrate(make("reference", "mse"), [images() / 0])


def test_a_constant_channel_does_not_begin_a_weights_range() -> None:
    conv = nn.Conv2d(2, 2, 1, groups=2, bias=False)
    nn.init.ones_(conv.weight)
    scheme = QuantScheme(Quantizer(4, symmetric=True, range="learned"), 8)
    model = nn.Sequential(conv, nn.BatchNorm2d(2), nn.ReLU())
    qmodel = ghnq_quant.quantize(model, scheme=scheme, backend="reference")
    x = torch.randn(16, 2, 4, 4)
    x[:, 1] = 0  # folded at 1/√ε its weight would be 316
    ghnq_quant.calibrate(qmodel, [x])
    (scale,) = qmodel.range_parameters()
    assert float(scale.detach()) == pytest.approx(1 / float(x[:, 0].std()) / 7, rel=0.1)
