"""Summaries, quantization errors and distributions equal NumPy's and SciPy's."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.stats
import torch
from table1_setting import Net

from ghnq_quant.research.table1 import distribution, parameter_distributions, summarize
from ghnq_quant.research.table1.tally import QuantizationError


def test_mean_standard_error_and_maximum():
    values = [71.5, 10.0, 64.25, 80.0]
    summary = summarize([*values, None])
    assert summary.count == 4
    assert summary.mean == pytest.approx(np.mean(values))
    assert summary.standard_error == pytest.approx(scipy.stats.sem(values))
    assert summary.maximum == 80.0
    alone = summarize([3.0])
    assert (alone.mean, alone.standard_error, alone.maximum) == (3.0, None, 3.0)
    assert summarize([]).mean is None


def test_quantization_error_adds_up_over_tensors():
    rng = np.random.default_rng(0)
    pairs = [(rng.normal(size=s), rng.normal(size=s)) for s in ((3, 4), (5,))]
    error = QuantizationError()
    for r, q in pairs:
        error.add(torch.from_numpy(r), torch.from_numpy(q))
    r, q = (np.concatenate([p[i].ravel() for p in pairs]) for i in (0, 1))
    assert error.mse == pytest.approx(np.mean((r - q) ** 2))
    assert error.snr_db == pytest.approx(10 * np.log10(np.sum(r**2) / np.sum((r - q) ** 2)))
    exact, broken = QuantizationError(), QuantizationError()
    exact.add(torch.ones(2), torch.ones(2))
    broken.add(torch.ones(2), torch.tensor([1.0, math.nan]))
    assert (exact.mse, exact.snr_db) == (0.0, None)
    assert (broken.mse, broken.snr_db) == (None, None)
    assert QuantizationError().mse is None


@pytest.mark.parametrize("shape", [(5, 3, 3, 3), (6, 7)])
def test_distribution_against_scipy(shape):
    w = torch.randn(shape, generator=torch.Generator().manual_seed(0)) + 0.4
    w[0] = w[0].abs()  # a channel of one sign: zero belongs to its range
    d, array = distribution(w), w.double().numpy()
    assert (d.low, d.high) == (array.min(), array.max())
    assert d.std == pytest.approx(array.std())
    assert d.kurtosis == pytest.approx(scipy.stats.kurtosis(array.ravel(), fisher=False))
    rows = array.reshape(shape[0], -1)
    ranges = np.maximum(rows.max(1), 0) - np.minimum(rows.min(1), 0)
    whole = max(array.max(), 0) - min(array.min(), 0)
    assert d.mismatch == pytest.approx(whole / np.median(ranges))


def test_distribution_of_constant_and_of_zero_weights():
    constant, zero = distribution(torch.full((2, 3), 0.5)), distribution(torch.zeros(2, 3))
    assert (constant.low, constant.high, constant.kurtosis) == (0.0, 0.5, None)
    assert constant.mismatch == 1.0
    assert (zero.std, zero.kurtosis, zero.mismatch) == (0.0, None, None)


def test_parameter_distributions_takes_models_and_states():
    net = Net()
    by_layer = parameter_distributions(net)
    assert list(by_layer) == ["stem", "depthwise", "conv", "head"]
    assert parameter_distributions(net.state_dict()) == by_layer
    assert by_layer["conv"] == distribution(net.conv.weight)
