"""Quantized models in training loops: resuming, averaging, mixed precision."""

from __future__ import annotations

import copy
import io
import math
import pickle
import warnings
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from small_networks import small_network
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import ghnq_quant
from ghnq_quant import BackendError
from ghnq_quant.quantization import QuantModel

all_backends = pytest.mark.parametrize("backend", ["reference", "brevitas", "torch_ao", "pt2e"])

ENDS = {"min": math.inf, "max": -math.inf}


def batch(step: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(step)
    return torch.randn(16, 3, 8, 8, generator=generator), torch.arange(16) % 4


def quantized(backend: str) -> QuantModel:
    pytest.importorskip({"brevitas": "brevitas", "pt2e": "torchao"}.get(backend, "torch"))
    network, x = small_network(4), batch(0)[0]
    return ghnq_quant.quantize(network, 4, backend=backend, example_input=x).train()


class Run:
    """A training run: model, optimizer, scheduler."""

    def __init__(self, backend: str) -> None:
        self.model = quantized(backend)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), 0.01)
        self.scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(self.optimizer, 10)

    def steps(self, *numbers: int) -> None:
        for number in numbers:
            torch.manual_seed(number)  # of dropout
            x, y = batch(number)
            self.optimizer.zero_grad()
            F.cross_entropy(self.model(x), y).backward()
            self.optimizer.step()
            self.scheduler.step()

    def parts(self) -> tuple[Any, ...]:
        return self.model, self.optimizer, self.scheduler


@all_backends
def test_resuming(backend: str) -> None:
    """Bit for bit, from state dicts in a file."""
    whole, file = Run(backend), io.BytesIO()
    whole.steps(0, 1)
    torch.save([part.state_dict() for part in whole.parts()], file)
    file.seek(0)
    resumed = Run(backend)
    for part, state in zip(resumed.parts(), torch.load(file), strict=True):
        part.load_state_dict(state)
    for run in (whole, resumed):
        run.steps(2, 3)
        run.model.eval()(batch(9)[0])
    state = resumed.model.state_dict()
    for key, value in whole.model.state_dict().items():
        assert torch.equal(state[key], value), key


@pytest.mark.parametrize("backend", ["brevitas", "pt2e"])
def test_models_that_cannot_be_pickled(backend: str) -> None:
    with pytest.raises(BackendError, match=r"save (its|the model's) state_dict"):
        pickle.dumps(quantized(backend))


@all_backends
def test_average_of_the_weights(backend: str) -> None:
    """Also from before the first batch. PyTorch's average takes the quantizers' state from the model,
    timm's averages it too."""
    utils = pytest.importorskip("timm.utils")
    run = Run(backend)
    ours = AveragedModel(run.model, multi_avg_fn=get_ema_multi_avg_fn(0.5))
    theirs = utils.ModelEmaV3(run.model, decay=0.5)
    ours.update_parameters(run.model)  # the first update copies
    before = copy.deepcopy(run.model.state_dict())
    run.steps(1)
    for average in (ours, theirs):
        average.update_parameters(run.model) if average is ours else average.update(run.model)
    state = run.model.state_dict()
    for key, value in state.items():
        learned = key in dict(run.model.named_parameters())
        middle = before[key].lerp(value, 0.5) if value.is_floating_point() else value
        torch.testing.assert_close(theirs.module.state_dict()[key], middle)
        found = ours.module.state_dict()[key]
        torch.testing.assert_close(found, middle if learned else value)
    x = batch(9)[0]
    with warnings.catch_warnings():
        warnings.simplefilter("error", ghnq_quant.GhnqWarning)  # about missing ranges
        assert all(average.eval()(x).isfinite().all() for average in (ours, theirs))


@pytest.mark.parametrize("steps", [0, 1])
def test_ranges_of_files_without_a_count(steps: int) -> None:
    """Files of version 0.2, whose ranges started at infinity."""
    run = Run("torch_ao")
    run.steps(*range(steps))
    state = run.model.state_dict()
    ranges = [key.removesuffix("min_val") for key in state if key.endswith("process.min_val")]
    ranges = [key for key in ranges if f"{key}num_batches_tracked" in state]
    assert ranges
    for key in ranges:
        del state[f"{key}num_batches_tracked"]
        if steps == 0:
            state |= {f"{key}{end}_val": torch.tensor(inf) for end, inf in ENDS.items()}
    loaded, x = Run("torch_ao"), batch(1)[0]
    loaded.model.load_state_dict(state)
    torch.manual_seed(0)  # of dropout
    y = loaded.model(x)
    torch.manual_seed(0)
    assert torch.equal(y, run.model(x))


@all_backends
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_mixed_precision(backend: str, dtype: torch.dtype) -> None:
    """Twenty steps are close to those in float32, and the state stays float32."""
    start, losses = quantized(backend), {}
    x, y = batch(0)
    for kind in (torch.float32, dtype):
        model, losses[kind] = copy.deepcopy(start), []
        optimizer = torch.optim.SGD(model.parameters(), 0.05)
        scaler = torch.amp.GradScaler("cpu", enabled=kind is torch.float16)
        for step in range(20):
            torch.manual_seed(step)  # of dropout
            with torch.autocast("cpu", kind, enabled=kind is not torch.float32):
                loss = F.cross_entropy(model(x), y)
            optimizer.zero_grad()
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            losses[kind].append(loss.item())
    floats = [v for v in model.state_dict().values() if v.is_floating_point()]
    assert all(value.dtype == torch.float32 for value in floats)
    assert losses[torch.float32][-1] < 0.7 * losses[torch.float32][0]
    assert sum(losses[dtype]) == pytest.approx(sum(losses[torch.float32]), rel=0.05)


def test_statistics_in_mixed_precision() -> None:
    """The batch's statistics are not rounded to the lower precision."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 1, bias=False), nn.BatchNorm2d(4))
    model = ghnq_quant.quantize(network, 8, backend="reference").train()
    x = torch.randn(64, 3, 8, 8)
    with torch.autocast("cpu", torch.bfloat16):
        model(x)
    quantizer = model.get_submodule("activation_quantizers").get_submodule("input_1")
    norm = model.get_submodule("1")
    z = F.conv2d(quantizer.eval()(x).bfloat16(), network[0].weight.bfloat16()).float()
    torch.testing.assert_close(norm.running_mean, 0.1 * z.mean((0, 2, 3)), rtol=1e-3, atol=1e-5)
    assert quantizer.range.running_max == x.max()
    assert not torch.equal(norm.running_mean, norm.running_mean.bfloat16().float())
