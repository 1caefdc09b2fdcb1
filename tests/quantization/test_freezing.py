"""Frozen batch norms and activation ranges."""

from __future__ import annotations

import copy

import pytest
import torch
from backends import activation_ranges
from small_networks import images, small_network
from torch import Tensor, nn

import ghnq_quant
from ghnq_quant import (
    DataError,
    Quantizer,
    QuantScheme,
    SchemeError,
    freeze_batch_norms,
    freeze_ranges,
    unfreeze_batch_norms,
    unfreeze_ranges,
)
from ghnq_quant.quantization import QuantModel

ALL_BACKENDS = ["reference", "brevitas", "torch_ao", "pt2e"]
all_backends = pytest.mark.parametrize("backend", ALL_BACKENDS)


def calibrated(backend: str) -> QuantModel:
    pytest.importorskip({"brevitas": "brevitas", "pt2e": "torchao"}.get(backend, "torch"))
    network = small_network(4, dropout=0.0)
    qmodel = ghnq_quant.quantize(network, 4, backend=backend, example_input=images())
    return ghnq_quant.calibrate(qmodel.train(), [images()])


def statistics(qmodel: QuantModel) -> dict[str, Tensor]:
    state = qmodel.state_dict()
    return {k: v.clone() for k, v in state.items() if "running_" in k or "num_batches" in k}


def norm_statistics(qmodel: QuantModel) -> list[Tensor]:
    return [v for k, v in statistics(qmodel).items() if not k.startswith("activation_quantizers.")]


def ranges(qmodel: QuantModel) -> list[Tensor]:
    return [end for found in activation_ranges(qmodel).values() for end in found]


def shares(qmodel: QuantModel) -> list[Tensor]:
    return [v for k, v in qmodel.state_dict().items() if k.endswith("share")]


def train(qmodel: nn.Module, steps: int = 2) -> None:
    optimizer = torch.optim.SGD(qmodel.parameters(), 0.1)
    for _ in range(steps):
        optimizer.zero_grad()
        qmodel(2 * images()).square().mean().backward()
        optimizer.step()


def equal(first: list[Tensor], second: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@all_backends
def test_frozen_batch_norms(backend: str) -> None:
    """Training computes the same as eval; their parameters learn, their statistics stay."""
    qmodel = freeze_ranges(freeze_batch_norms(calibrated(backend)))
    x = images()
    assert torch.equal(qmodel.train()(x), copy.deepcopy(qmodel).eval()(x))
    before, gamma = norm_statistics(qmodel), qmodel.get_submodule("norm").weight.clone()
    before = [value.clone() for value in before]
    for _ in range(2):  # through eval and back
        train(qmodel.train())
        qmodel.eval()(x)
    assert equal(norm_statistics(qmodel), before)
    assert not torch.equal(qmodel.get_submodule("norm").weight, gamma)
    twin = copy.deepcopy(qmodel).train()
    assert twin.batch_norms_frozen
    train(twin)
    assert equal(norm_statistics(twin), before)
    train(unfreeze_batch_norms(twin))
    assert not equal(norm_statistics(twin), before)


@all_backends
def test_frozen_ranges(backend: str) -> None:
    qmodel = freeze_ranges(calibrated(backend))
    before = [value.clone() for value in ranges(qmodel)]
    train(qmodel.eval().train())
    assert equal(ranges(qmodel), before)
    assert not torch.equal(qmodel.get_submodule("norm").running_mean, torch.zeros(8))
    train(unfreeze_ranges(qmodel))
    assert not equal(ranges(qmodel), before)


@all_backends
def test_one_convolution_is_enough(backend: str) -> None:
    qmodel = calibrated(backend).train()
    counts = []
    for model in (qmodel, freeze_batch_norms(copy.deepcopy(qmodel))):
        with torch.profiler.profile() as profile, torch.no_grad():
            model(images())
        counts.append(sum(e.count for e in profile.key_averages() if e.key == "aten::conv2d"))
    expected = 3 if backend == "pt2e" else 5  # pt2e always folds running statistics
    assert counts == [expected, 3]


def test_a_state_dict_does_not_tell() -> None:
    qmodel = freeze_batch_norms(calibrated("reference"))
    other = calibrated("reference")
    other.load_state_dict(qmodel.state_dict())
    assert not other.train().batch_norms_frozen
    qmodel.load_state_dict(other.state_dict())
    assert not qmodel.train().get_submodule("norm").training


def test_what_cannot_be_frozen() -> None:
    new = ghnq_quant.quantize(small_network(), 4, backend="reference")
    with pytest.raises(DataError, match=r"'stem\.1' and 1 more"):
        freeze_batch_norms(new)
    with pytest.raises(DataError, match="calibrate"):
        freeze_ranges(new)
    assert new.train().get_submodule("norm").training
    scheme = QuantScheme(4, 4, act_range="batch", bn="batch")
    by_batch = ghnq_quant.quantize(small_network(), scheme=scheme, backend="reference")
    with pytest.raises(SchemeError, match="bn='batch'"):
        freeze_batch_norms(by_batch)
    with pytest.raises(SchemeError, match="act_range='batch'"):
        freeze_ranges(by_batch)


def test_learned_ranges() -> None:
    """Freezing also covers weights and copies; after unfreezing, all ranges learn again."""
    learned = Quantizer(4, range="learned")
    qmodel = ghnq_quant.quantize(small_network(4), (learned, learned), backend="reference")
    with pytest.raises(DataError, match="calibrate"):
        freeze_ranges(qmodel)
    assert all(p.requires_grad for p in qmodel.range_parameters())
    qmodel = copy.deepcopy(freeze_ranges(ghnq_quant.calibrate(qmodel, [images()]))).train()
    before = [p.detach().clone() for p in qmodel.range_parameters()]
    train(qmodel)
    assert before
    assert equal(before, list(qmodel.range_parameters()))
    train(unfreeze_ranges(qmodel))
    assert not equal(before, list(qmodel.range_parameters()))


@all_backends
def test_calibration_keeps_what_is_frozen(backend: str) -> None:
    """Searched ranges of weights too, which training has made the most of."""
    by_search = Quantizer(3, range="mse")
    network = small_network(4, dropout=0.0)
    qmodel = ghnq_quant.quantize(network, (by_search, 3), backend=backend, example_input=images())
    ghnq_quant.calibrate(qmodel, [images()], ranges="mse")
    other = [3 * images().square()]

    def kept(model: QuantModel) -> tuple[bool, bool, bool]:
        """Whether calibration keeps running statistics, activation ranges and weights' shares."""
        new = ghnq_quant.calibrate(copy.deepcopy(model), other)
        parts = (norm_statistics, ranges, shares)
        return tuple(equal(part(new), part(model)) for part in parts)  # type: ignore[return-value]

    assert kept(qmodel) == (False, False, False)
    assert kept(freeze_batch_norms(copy.deepcopy(qmodel))) == (True, False, True)
    assert kept(freeze_ranges(qmodel)) == (False, True, True)
    assert kept(freeze_batch_norms(qmodel)) == (True, True, True)
    with pytest.raises(SchemeError, match="unfreeze_ranges"):
        ghnq_quant.calibrate(qmodel, other, ranges="mse")


def test_ranges_that_do_not_move() -> None:
    by_search = Quantizer(4, range="mse")
    qmodel = ghnq_quant.quantize(small_network(), (4, by_search), backend="reference")
    ghnq_quant.calibrate(qmodel, [images()])
    with pytest.raises(SchemeError, match="no range of this model is moving or learned"):
        freeze_ranges(qmodel)
