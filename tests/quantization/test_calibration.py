"""calibrate equals the average of the batches' statistics, computed independently."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from backends import activation_ranges, backends
from naive_simulation import quantize
from small_networks import images, small_network
from torch import Tensor, nn

import ghnq_quant
from ghnq_quant import DataError, Quantizer, QuantScheme
from ghnq_quant.quantization import QuantModel


def batches(count: int = 4) -> list[Tensor]:
    torch.manual_seed(11)
    return [images() * (i + 1) + 0.1 * i for i in range(count)]


def make(backend: str, scheme: QuantScheme | None = None) -> QuantModel:
    model = small_network(steps=2)
    return ghnq_quant.quantize(model, 4, scheme=scheme, backend=backend)


@backends
def test_running_statistics_are_the_average_over_the_batches(backend: str) -> None:
    qmodel = make(backend, QuantScheme(4, 4, act_range="batch"))
    conv, norm = qmodel.get_submodule("stem.0"), qmodel.get_submodule("stem.1")
    data = batches()
    z = [
        nn.functional.conv2d(quantize(x, Quantizer(4)), conv.weight, None, padding=1) for x in data
    ]
    mean = torch.stack([v.mean((0, 2, 3)) for v in z]).mean(0)
    variance = torch.stack([v.transpose(0, 1).flatten(1).var(1) for v in z]).mean(0)
    ghnq_quant.calibrate(qmodel, data)
    torch.testing.assert_close(norm.running_mean, mean.detach(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(norm.running_var, variance.detach(), rtol=1e-5, atol=1e-6)
    assert norm.num_batches_tracked == 4


@backends
def test_ranges_are_the_moving_average(backend: str) -> None:
    qmodel, data = make(backend), batches()
    ghnq_quant.calibrate(qmodel, data)
    low, high = data[0].min(), data[0].max()
    for x in data[1:]:
        low, high = 0.9 * low + 0.1 * x.min(), 0.9 * high + 0.1 * x.max()
    found = activation_ranges(qmodel)["x"]
    torch.testing.assert_close(found.low, low)
    torch.testing.assert_close(found.high, high)


def test_ranges_alone() -> None:
    """Trained batch norms stay unchanged, and the ranges are those of their outputs."""
    qmodel, data = make("reference"), batches()
    norms = {key: v.clone() for key, v in qmodel.state_dict().items() if "norm" in key}
    trained = copy.deepcopy(qmodel).train()
    ghnq_quant.freeze_batch_norms(trained)
    for x in data:
        trained(x)
    ghnq_quant.calibrate(qmodel, data, batch_norms=False)
    for key, value in norms.items():
        assert torch.equal(qmodel.state_dict()[key], value), key
    found, expected = activation_ranges(qmodel), activation_ranges(trained)
    for name, (low, high) in expected.items():
        assert torch.equal(found[name].low, low), name
        assert torch.equal(found[name].high, high), name
    new = ghnq_quant.quantize(small_network(), 4, backend="reference")
    with pytest.raises(DataError, match=r"'stem\.1' has no running statistics to keep"):
        ghnq_quant.calibrate(new, data, batch_norms=False)


def change_nothing(qmodel: QuantModel) -> QuantModel:
    return qmodel


def freeze_one_norm(qmodel: QuantModel) -> QuantModel:
    qmodel.get_submodule("norm").eval()
    return qmodel


@backends
@pytest.mark.parametrize("prepare", [change_nothing, nn.Module.eval, freeze_one_norm])
def test_everything_else_stays(backend: str, prepare: Callable[[Any], QuantModel]) -> None:
    qmodel = prepare(make(backend))
    parameters = copy.deepcopy(dict(qmodel.named_parameters()))
    modes = {name: module.training for name, module in qmodel.named_modules()}
    assert ghnq_quant.calibrate(qmodel, batches()) is qmodel
    assert {name: module.training for name, module in qmodel.named_modules()} == modes
    assert qmodel.get_submodule("stem.1").momentum == 0.1
    assert qmodel.get_submodule("norm").momentum == 0.3
    for name, p in qmodel.named_parameters():
        assert torch.equal(p, parameters[name])
        assert p.grad is None


@backends
def test_makes_eval_silent_and_repeatable(backend: str) -> None:
    qmodel = ghnq_quant.quantize(small_network(), 4, backend=backend)
    ghnq_quant.calibrate(qmodel, batches())
    x = images()
    assert torch.equal(qmodel.eval()(x), qmodel(x))  # GhnqWarning is an error in these tests


@backends
def test_dropout_is_off(backend: str) -> None:
    twins = [make(backend), make(backend)]
    for seed, qmodel in enumerate(twins):
        data = batches()
        torch.manual_seed(seed)
        ghnq_quant.calibrate(qmodel, data)
    for a, b in zip(*(twin.state_dict().values() for twin in twins), strict=True):
        assert torch.equal(a, b)


def test_takes_labelled_batches_and_iterators() -> None:
    plain, labelled = make("reference"), make("reference")
    ghnq_quant.calibrate(plain, iter(batches()))
    ghnq_quant.calibrate(labelled, [(x, torch.zeros(6)) for x in batches()])
    as_lists = make("reference")
    ghnq_quant.calibrate(as_lists, [[x, torch.zeros(6)] for x in batches()])  # type: ignore[list-item]
    for other in (labelled, as_lists):
        for a, b in zip(plain.state_dict().values(), other.state_dict().values(), strict=True):
            assert torch.equal(a, b)


@backends
def test_no_batch(backend: str) -> None:
    qmodel = make(backend)
    before = copy.deepcopy(qmodel.state_dict())
    with pytest.raises(DataError, match="no batch"):
        ghnq_quant.calibrate(qmodel, [])
    assert all(torch.equal(before[k], v) for k, v in qmodel.state_dict().items())
    assert all(module.training for module in qmodel.modules())


def test_modes_and_momenta_are_restored_after_a_failure() -> None:
    qmodel = make("reference")
    with pytest.raises(RuntimeError):
        ghnq_quant.calibrate(qmodel, [images(), torch.zeros(2, 5, 8, 8)])
    assert all(module.training for module in qmodel.modules())
    assert qmodel.get_submodule("norm").momentum == 0.3
