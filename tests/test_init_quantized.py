"""init_quantized: what it accepts and returns, and that errors leave no trace."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from importlib.metadata import EntryPoint
from typing import Any

import pytest
import torch
from small_networks import images, small_network
from torch import nn

import ghnq_quant
from ghnq_quant import (
    GHN,
    BackendError,
    CaptureError,
    GhnqError,
    GhnqWarning,
    PredictionError,
    QuantScheme,
    SchemeError,
)

BACKENDS = ["reference", "brevitas"]
backends = pytest.mark.parametrize("backend", BACKENDS)


@pytest.fixture
def ghn(tiny_ghn: GHN) -> GHN:
    return tiny_ghn


@backends
def test_parameters_are_the_predicted_ones(backend: str, ghn: GHN) -> None:
    model = small_network(steps=2)
    expected = ghnq_quant.predict_parameters(model, ghn)
    qmodel = ghnq_quant.init_quantized(model, 4, ghn=ghn, backend=backend, as_predicted=True)
    assert list(dict(qmodel.named_parameters())) == list(expected)
    for name, p in qmodel.named_parameters():
        assert torch.equal(p, expected[name])
        assert p.is_leaf
    assert not qmodel.get_parameter("plain.bias").requires_grad
    assert not torch.equal(qmodel.get_parameter("plain.weight"), model.plain.weight)


@backends
def test_the_first_convolution_is_predicted_and_all_else_is_new(backend: str, ghn: GHN) -> None:
    model = small_network()
    expected = dict(model.named_parameters())
    started = ghnq_quant.initialize(model, ghn=ghn)
    expected["stem.0.weight"] = started.get_parameter("stem.0.weight")
    assert not torch.equal(expected["stem.0.weight"], model.stem[0].weight)
    qmodel = ghnq_quant.init_quantized(model, 4, ghn=ghn, backend=backend)
    for name, p in qmodel.named_parameters():
        assert torch.equal(p, expected[name]), name
        assert p is not expected[name]


@backends
def test_running_statistics_start_anew(backend: str, ghn: GHN) -> None:
    model = small_network(steps=2)
    qmodel = ghnq_quant.init_quantized(model, 4, ghn=ghn, backend=backend)
    for name in ("stem.1", "norm"):
        fresh = nn.BatchNorm2d(8)
        norm = qmodel.get_submodule(name)
        for key in ("running_mean", "running_var", "num_batches_tracked"):
            assert torch.equal(getattr(norm, key), getattr(fresh, key))
    assert torch.equal(qmodel.get_buffer("gain"), model.gain)
    assert model.norm.num_batches_tracked == 2


@pytest.mark.parametrize(
    ("arguments", "scheme"),
    [
        ({}, QuantScheme(4, 4)),
        ({"bits": 8}, QuantScheme(8, 8)),
        ({"bits": (4, 8)}, QuantScheme(4, 8)),
        ({"bits": 2, "act_bits": 8}, QuantScheme(2, 8)),
        ({"bits": (2, 3), "act_bits": 32}, QuantScheme(2, 32)),
        ({"bits": 32}, QuantScheme(32, 32)),
        ({"scheme": QuantScheme(5, 6, bn="batch")}, QuantScheme(5, 6, bn="batch")),
        ({"stem_bits": 8}, QuantScheme(4, 4, overrides={"stem.0": (8, 4)})),
        (
            {"scheme": QuantScheme(4, 8, overrides={"st*": 2}), "stem_bits": 8},
            QuantScheme(4, 8, overrides={"stem.0": (8, 8), "st*": 2}),
        ),
    ],
)
@backends
def test_bits(arguments: dict[str, Any], scheme: QuantScheme, backend: str, ghn: GHN) -> None:
    qmodel = ghnq_quant.init_quantized(small_network(), ghn=ghn, backend=backend, **arguments)
    assert qmodel.scheme == scheme
    assert qmodel(images()).shape == (6, 10)


@backends
def test_32_bits_are_the_float_network(backend: str, ghn: GHN) -> None:
    model = small_network(dropout=0.0)
    qmodel = ghnq_quant.init_quantized(model, 32, ghn=ghn, backend=backend, as_predicted=True)
    model.load_state_dict(ghnq_quant.predict_parameters(model, ghn), strict=False)
    x = images()
    torch.testing.assert_close(qmodel(x), model(x), rtol=1e-4, atol=1e-5)


@backends
def test_another_number_of_classes(backend: str, ghn: GHN) -> None:
    model = small_network(num_classes=7)
    with pytest.warns(
        GhnqWarning, match=r"keep their own initialization: .*head\.weight"
    ) as caught:
        ghnq_quant.init_quantized(model, 4, ghn=ghn, backend=backend, as_predicted=True)
    assert len(caught) == 1
    assert caught[0].filename == __file__
    qmodel = ghnq_quant.init_quantized(model, 4, ghn=ghn, backend=backend)  # predicts no classifier
    assert torch.equal(qmodel.get_parameter("head.weight"), model.head.weight)
    assert qmodel.get_parameter("head.weight") is not model.head.weight
    y = qmodel(images())
    y.sum().backward()
    assert y.shape == (6, 7)
    ghnq_quant.calibrate(qmodel, [images()])
    assert qmodel.eval()(images()).isfinite().all()


def test_the_shipped_hypernetwork_is_the_default() -> None:
    qmodel = ghnq_quant.init_quantized(small_network(), backend="reference")
    y = qmodel(images())
    assert y.isfinite().all()
    assert y.std() > 0


@backends
def test_a_model_in_eval_or_double(backend: str, ghn: GHN) -> None:
    model = small_network(steps=1).double().eval()
    qmodel = ghnq_quant.init_quantized(model, 4, ghn=ghn, backend=backend)
    assert not any(module.training for module in qmodel.modules())
    assert all(p.dtype == torch.float64 for p in qmodel.parameters())
    with pytest.warns(GhnqWarning, match="without running statistics"):
        assert qmodel(images().double()).dtype == torch.float64


def test_tied_parameters_stay_tied(ghn: GHN) -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
            self.stem, self.head = nn.Conv2d(3, 8, 3), nn.Linear(8, 10)
            self.b.weight = self.a.weight

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.b(self.a(self.stem(x)).relu()).relu().mean((2, 3)))

    for backend in BACKENDS:
        qmodel = ghnq_quant.init_quantized(Tied(), 4, ghn=ghn, backend=backend)
        assert qmodel.get_parameter("a.weight") is qmodel.get_submodule("b").weight
        qmodel(images()).sum().backward()


class DataDependent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(x) if x.sum() > 0 else x


def rank(dimensions: int) -> Callable[[], nn.Module]:
    conv = {1: nn.Conv1d, 3: nn.Conv3d}[dimensions]
    return lambda: nn.Sequential(nn.Conv2d(3, 8, 3), conv(8, 8, 3))


ERRORS: dict[str, tuple[Callable[[], nn.Module], dict[str, Any], type[GhnqError], str]] = {
    "1 bit": (small_network, {"bits": 1}, SchemeError, "bits=1.*2 to 8"),
    "9 bits": (small_network, {"bits": 9}, SchemeError, "bits=9.*2 to 8"),
    "four": (small_network, {"bits": "four"}, SchemeError, "'four'.*2 to 8"),
    "True": (small_network, {"bits": True}, SchemeError, "True.*2 to 8"),
    "triple": (small_network, {"bits": (4, 4, 4)}, SchemeError, "a pair is"),
    "act_bits": (small_network, {"act_bits": 16}, SchemeError, "act_bits=16.*2 to 8"),
    "stem_bits": (small_network, {"stem_bits": 9}, SchemeError, "stem_bits=9.*2 to 8"),
    "override": (
        small_network,
        {"scheme": QuantScheme(4, 4, overrides={"nowhere": 8})},
        SchemeError,
        "nowhere.*stem",
    ),
    "backend": (
        small_network,
        {"backend": "tpu"},
        BackendError,
        "'tpu'.*brevitas, pt2e, reference, torch_ao",
    ),
    "control flow": (DataDependent, {}, CaptureError, "DataDependent.*cannot trace|branch"),
    "1-d": (rank(1), {}, CaptureError, "'1' is a Conv1d"),
    "3-d": (rank(3), {}, CaptureError, "'1' is a Conv3d"),
    "no conv": (lambda: nn.Sequential(nn.Linear(3, 4)), {}, CaptureError, r"no nn\.Conv2d"),
    "not a module": (lambda: "resnet18", {}, CaptureError, "nn.Module"),  # type: ignore[dict-item,return-value]
    "example input": (
        small_network,
        {"example_input": torch.zeros(1, 5, 8, 8)},
        CaptureError,
        "stem",
    ),
}


@pytest.mark.parametrize("case", ERRORS)
def test_errors_say_what_and_leave_no_trace(case: str, ghn: GHN) -> None:
    make, arguments, error, message = ERRORS[case]
    model = make()
    before = snapshot(model)
    with pytest.raises(error, match=message):
        ghnq_quant.init_quantized(model, ghn=ghn, **arguments)
    assert_unchanged(model, before)


Snapshot = tuple[dict[str, Any], dict[str, bool], dict[str, int]]


def snapshot(model: nn.Module) -> Snapshot | None:
    if not isinstance(model, nn.Module):
        return None
    modes = {name: module.training for name, module in model.named_modules()}
    identities = {name: id(module) for name, module in model.named_modules()}
    return copy.deepcopy(model.state_dict()), modes, identities


def assert_unchanged(model: nn.Module, before: Snapshot | None) -> None:
    if before is None:
        return
    state, modes, identities = before
    assert all(torch.equal(state[k], v) for k, v in model.state_dict().items())
    assert {name: module.training for name, module in model.named_modules()} == modes
    assert {name: id(module) for name, module in model.named_modules()} == identities


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_prediction_that_is_not_finite(value: float, ghn: GHN) -> None:
    broken, model = copy.deepcopy(ghn), small_network()
    with torch.no_grad():
        for p in broken.parameters():
            p.fill_(value)
    before = snapshot(model)
    with pytest.raises(PredictionError, match=r"not finite|NaN|finite"):
        ghnq_quant.init_quantized(model, ghn=broken, backend="reference")
    assert_unchanged(model, before)


@pytest.mark.parametrize("broken", ["no_such_toolkit.layers", "no_such_toolkit"])
def test_a_backend_whose_toolkit_is_missing(
    broken: str, ghn: GHN, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = EntryPoint("other", f"{broken}:Backend", "ghnq_quant.backends")
    monkeypatch.setattr("ghnq_quant.quantization.backends.entry_points", lambda group: [entry])
    with pytest.raises(BackendError, match=r"'other' needs.*pip install no_such_toolkit$"):
        ghnq_quant.init_quantized(small_network(), ghn=ghn, backend="other")


def test_brevitas_missing(ghn: GHN, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    for name in [n for n in sys.modules if n.partition(".")[0] in ("brevitas", "ghnq_brevitas")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "brevitas", None)
    with pytest.raises(BackendError, match=r"'brevitas' needs.*pip install brevitas$"):
        ghnq_quant.init_quantized(small_network(), ghn=ghn)


def test_the_model_is_untouched_by_success_too(ghn: GHN) -> None:
    model = small_network(steps=2)
    model.norm.eval()
    before = snapshot(model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        qmodel = ghnq_quant.init_quantized(model, 4, ghn=ghn)
    qmodel(images()).sum().backward()
    assert_unchanged(model, before)
    assert not qmodel.get_submodule("norm").training
    assert all(p.grad is None for p in model.parameters())
