"""What the emitted model keeps of the user's model, in every backend."""

from __future__ import annotations

import copy
import io
import pickle
import pkgutil
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from backends import (
    backends,
    is_quantizer_state,
    lasting_state,
)
from small_networks import SmallNetwork, images, small_network
from torch import Tensor, nn

import ghnq_quant
from ghnq_quant import CaptureError, QuantScheme


@pytest.fixture
def model() -> SmallNetwork:
    return small_network(steps=2)


@backends
def test_names_survive(backend: str, model: SmallNetwork) -> None:
    qmodel = ghnq_quant.quantize(model, 4, backend=backend)
    assert [n for n, _ in qmodel.named_parameters()] == [n for n, _ in model.named_parameters()]
    assert [p.shape for p in qmodel.parameters()] == [p.shape for p in model.parameters()]
    assert [p.requires_grad for p in qmodel.parameters()] == [
        p.requires_grad for p in model.parameters()
    ]
    buffers = dict(qmodel.named_buffers())
    for name, buffer in model.named_buffers():
        assert torch.equal(buffers[name], buffer)
    for name, module in model.named_modules():
        assert qmodel.get_submodule(name).training == module.training
        if name:
            assert isinstance(qmodel.get_submodule(name), type(module))


@backends
def test_float_state_loads(backend: str, model: SmallNetwork) -> None:
    qmodel = ghnq_quant.quantize(small_network(), 4, backend=backend)
    result = qmodel.load_state_dict(model.state_dict(), strict=False)
    assert result.unexpected_keys == []
    assert result.missing_keys
    assert all(is_quantizer_state(key) for key in result.missing_keys)
    for name, value in model.state_dict().items():
        assert torch.equal(qmodel.state_dict()[name], value)


@backends
def test_original_is_left_alone(backend: str, model: SmallNetwork) -> None:
    before, modules = copy.deepcopy(model.state_dict()), dict(model.named_modules())
    qmodel = ghnq_quant.quantize(model, 4, backend=backend)
    own = {t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers())}
    others = (*qmodel.parameters(), *qmodel.buffers())
    assert not own & {t.untyped_storage().data_ptr() for t in others if t.numel()}
    train_a_little(qmodel)
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert dict(model.named_modules()) == modules
    assert all(p.grad is None for p in model.parameters())


def train_a_little(qmodel: nn.Module, steps: int = 2) -> None:
    optimizer = torch.optim.SGD(qmodel.parameters(), 0.05, momentum=0.9)
    for _ in range(steps):
        optimizer.zero_grad()
        qmodel(images()).square().mean().backward()
        optimizer.step()


@backends
def test_deepcopy_is_independent_and_equal(backend: str, model: SmallNetwork) -> None:
    qmodel = ghnq_quant.quantize(model, 4, backend=backend)
    train_a_little(qmodel)
    twin, x = copy.deepcopy(qmodel), images()
    expected = qmodel.eval()(x)
    assert torch.equal(twin.eval()(x), expected)
    train_a_little(twin.train())
    assert torch.equal(qmodel(x), expected)
    assert not torch.equal(twin.eval()(x), expected)


@backends
def test_state_dict_round_trip(backend: str, model: SmallNetwork, tmp_path: Path) -> None:
    qmodel, x = ghnq_quant.quantize(model, 4, backend=backend), images()
    train_a_little(qmodel)
    torch.save(qmodel.state_dict(), tmp_path / "model.pt")
    other = ghnq_quant.quantize(small_network(), 4, backend=backend)
    state = torch.load(tmp_path / "model.pt", weights_only=True)
    other.load_state_dict(state, strict=True)
    assert torch.equal(other.eval()(x), qmodel.eval()(x))
    train_a_little(other.train())  # loaded statistics go on
    assert other.get_submodule("norm").num_batches_tracked == 6


@pytest.mark.parametrize("backend", ["reference", "torch_ao"])
def test_pickles_whole(backend: str, model: SmallNetwork) -> None:
    qmodel, x = ghnq_quant.quantize(model, 4, backend=backend), images()
    train_a_little(qmodel)
    twin = pickle.loads(pickle.dumps(qmodel))
    assert twin.code == qmodel.code
    assert repr(twin) == repr(qmodel)
    assert torch.equal(twin.eval()(x), qmodel.eval()(x))
    train_a_little(twin.train())
    file = io.BytesIO()
    torch.save(qmodel, file)
    file.seek(0)
    assert torch.equal(torch.load(file, weights_only=False)(x), qmodel(x))


def test_weights_only_refuses_a_whole_model_whatever_is_allowed(model: SmallNetwork) -> None:
    qmodel, file = ghnq_quant.quantize(model, 4, backend="reference"), io.BytesIO()
    torch.save(qmodel, file)
    file.seek(0)
    found = torch.serialization.get_unsafe_globals_in_checkpoint(file)
    allowed = [pkgutil.resolve_name(name) for name in found]
    file.seek(0)
    with (
        torch.serialization.safe_globals(allowed),
        pytest.raises(pickle.UnpicklingError, match="GraphModuleImpl"),
    ):
        torch.load(file, weights_only=True)


@backends
@pytest.mark.parametrize("twin_of", [lambda m: m, copy.deepcopy, copy.copy])
def test_layers_fold_the_models_own_batch_norm(
    backend: str, twin_of: Callable[[nn.Module], nn.Module], model: SmallNetwork
) -> None:
    """The batch norm keeps its place and is not a child of the layer."""
    qmodel = twin_of(ghnq_quant.quantize(model, 4, backend=backend))
    assert isinstance(qmodel, torch.fx.GraphModule)
    for conv, norm in (("stem.0", "stem.1"), ("depthwise", "norm")):
        layer = qmodel.get_submodule(conv)
        assert layer.bn is qmodel.get_submodule(norm)
        assert layer.bn not in layer.modules()


@backends
def test_a_batch_norm_that_is_replaced(backend: str, model: SmallNetwork) -> None:
    qmodel, x = ghnq_quant.quantize(model, 4, backend=backend), images()
    train_a_little(qmodel)
    expected = copy.deepcopy(qmodel).eval()(x)
    other = nn.SyncBatchNorm.convert_sync_batchnorm(qmodel).eval()
    assert torch.equal(other(x), expected)
    other.get_submodule("stem.1").running_mean.add_(1)
    assert not torch.equal(other(x), expected)


def test_a_network_with_a_name_that_the_model_needs() -> None:
    network = nn.Sequential(OrderedDict(stem=nn.Conv2d(3, 8, 3), graph=nn.Conv2d(8, 8, 1)))
    with pytest.raises(CaptureError, match="'graph' of the network"):
        ghnq_quant.quantize(network, 4, backend="reference")


@backends
def test_double_precision(backend: str, model: SmallNetwork) -> None:
    qmodel, x = ghnq_quant.quantize(model, 8, backend=backend), images()
    train_a_little(qmodel)
    expected = qmodel.eval()(x)
    double = copy.deepcopy(qmodel).to(torch.float64)
    state = double.state_dict()
    for _ in range(2):
        y = double(x.double())
        assert y.dtype == torch.float64
        assert all(t.dtype != torch.float32 for t in double.state_dict().values())
        scale = expected.abs().max()
        assert (y - expected).abs().max() <= 2e-2 * scale  # a level or two of 256
        double.load_state_dict(state)
    train_a_little_in(double.train(), torch.float64)
    from_double = ghnq_quant.quantize(copy.deepcopy(model).double(), 8, backend=backend)
    train_a_little_in(from_double, torch.float64)
    assert all(t.dtype != torch.float32 for t in from_double.state_dict().values())


def train_a_little_in(qmodel: nn.Module, dtype: torch.dtype) -> None:
    y = qmodel(images().to(dtype))
    assert y.dtype == dtype
    y.square().mean().backward()
    for p in qmodel.parameters():
        assert p.grad is None or p.grad.dtype == dtype


@backends
def test_gradient_reaches_every_trainable_parameter(backend: str, model: SmallNetwork) -> None:
    qmodel = ghnq_quant.quantize(model, 4, backend=backend)
    x = images().requires_grad_()
    # a bias before a batch norm has none: the batch norm removes it
    (qmodel(x) * torch.randn(6, 10)).sum().backward()
    assert x.grad is not None
    assert x.grad.abs().sum() > 0
    for name, p in qmodel.named_parameters():
        if not p.requires_grad:
            assert p.grad is None
        else:
            assert p.grad is not None, name
            assert p.grad.isfinite().all()
            assert (p.grad.abs().sum() > 0) == (name != "depthwise.bias"), name


@backends
def test_train_and_eval_and_functional_dropout(backend: str, model: SmallNetwork) -> None:
    qmodel, x = ghnq_quant.quantize(model, 4, backend=backend), images()
    train_a_little(qmodel)
    qmodel.eval()
    assert not any(m.training for m in qmodel.modules())
    before = lasting_state(qmodel)
    assert torch.equal(qmodel(x), qmodel(x))
    assert all(torch.equal(before[k], v) for k, v in lasting_state(qmodel).items())
    batch_independent = torch.cat([qmodel(x[i : i + 1]) for i in range(6)])
    torch.testing.assert_close(batch_independent, qmodel(x), rtol=1e-4, atol=1e-4)
    qmodel.train()
    assert all(m.training for m in qmodel.modules())
    for module in qmodel.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    assert not torch.equal(qmodel(x), qmodel(x))  # the functional dropout is back


@backends
def test_an_eval_model_is_emitted_in_eval(backend: str, model: SmallNetwork) -> None:
    qmodel = ghnq_quant.quantize(model.eval(), 4, backend=backend)
    assert not any(m.training for m in qmodel.modules())


@backends
def test_hooks_survive_and_work(backend: str, model: SmallNetwork) -> None:
    seen: list[tuple[str, tuple[int, ...]]] = []

    def hook(module: nn.Module, args: Any, output: Tensor) -> None:
        seen.append((type(module).__name__, tuple(output.shape)))

    qmodel = ghnq_quant.quantize(model, 4, backend=backend)
    for name in ("stem.0", "head", "activation_quantizers.add"):
        qmodel.get_submodule(name).register_forward_hook(hook)
    qmodel(images())
    assert [shape for _, shape in seen] == [(6, 8, 8, 8), (6, 8, 8, 8), (6, 10)]


@backends
def test_repr_shows_bits_and_scheme(backend: str, model: SmallNetwork) -> None:
    scheme = QuantScheme(3, 5, overrides={"head": 7}, act_range="batch")
    text = repr(ghnq_quant.quantize(model, scheme=scheme, backend=backend))
    assert "W3/A5, act_range=batch, bn=running" in text
    assert "overrides={'head': 'W7/A7'}" in text
    for bits in (3, "5-batch", 7):
        words = ("weight_bits", "weight_quantizer", "quantizer")
        assert any(f"{word}={bits}" in text for word in words)
