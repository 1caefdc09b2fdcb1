"""Models with every kind of quantizer: all backends agree with the naive simulation."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from backends import (
    ALL,
    BACKENDS,
    KINDS,
    assert_equal,
    is_quantizer_state,
    quantized_units,
    scheme,
)
from naive_simulation import NaiveSimulation
from small_networks import images, network, small_network

import ghnq_quant
from ghnq_quant import Quantizer, QuantScheme, SchemeError
from ghnq_quant.quantization.scheme import parse_quantizers

kinds = pytest.mark.parametrize("kind", KINDS, ids="/".join)
USUAL = ("symmetric-channel", "symmetric")


@pytest.mark.parametrize("backend", BACKENDS[1:])
@pytest.mark.parametrize("bits", [8, 4, 3, 2])
@kinds
def test_equals_the_reference(kind: tuple[str, str], bits: int, backend: str) -> None:
    compare("small", scheme(kind, bits), backend, images)


#: One width for each network, or all kinds and widths.
WHOLE = [("resnet18", 4), ("mobilenet_v2", 8), ("bn_free", 3), ("mobile", 2)]
CASES = [(name, USUAL, bits) for name, bits in WHOLE]
if ALL:
    CASES = [(name, kind, bits) for name, _ in WHOLE for kind in KINDS for bits in (8, 4, 3, 2)]


@pytest.mark.parametrize("backend", BACKENDS[1:])
@pytest.mark.parametrize(("name", "kind", "bits"), CASES)
def test_equals_the_reference_on_whole_networks(
    name: str, kind: tuple[str, str], bits: int, backend: str
) -> None:
    compare(name, scheme(kind, bits), backend, lambda: torch.randn(4, 3, 32, 32))


def compare(name: str, scheme: QuantScheme, backend: str, batch: Any) -> None:
    model = network(name)
    ours = ghnq_quant.quantize(model, scheme=scheme, backend=backend)
    theirs = ghnq_quant.quantize(model, scheme=scheme, backend="reference")
    torch.manual_seed(2)
    for mode in (True, True, False):
        assert_equal(ours.train(mode), theirs.train(mode), batch())
    state = {k: v for k, v in ours.state_dict().items() if not is_quantizer_state(k)}
    for key, value in state.items():
        torch.testing.assert_close(value, theirs.state_dict()[key], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("bits", [8, 4, 3, 2])
@kinds
def test_equals_the_naive_simulation(kind: tuple[str, str], bits: int) -> None:
    """In float64, so that another order of summation moves no value to the next level."""
    model, chosen = small_network(dropout=0.0).double(), scheme(kind, bits)
    naive = NaiveSimulation(copy.deepcopy(model), chosen)
    qmodel = ghnq_quant.quantize(model, scheme=chosen, backend="reference")
    for mode in (True, True, False):
        x = images().double()
        naive.model.train(mode)
        with torch.no_grad():
            expected = naive(x)
        y, seen = quantized_units(qmodel.train(mode), x)
        torch.testing.assert_close(y, expected)
        for name, (_, value) in seen.items():
            torch.testing.assert_close(value, naive.seen[name])


@pytest.mark.parametrize("backend", BACKENDS)
def test_symmetric_activations_are_unsigned_where_never_negative(backend: str) -> None:
    qmodel = ghnq_quant.quantize(small_network(), scheme=scheme(USUAL, 3), backend=backend)
    _, seen = quantized_units(qmodel, images())
    counts = {name: value.unique().numel() for name, (_, value) in seen.items()}
    assert counts["stem_0"] > 7  # 0 … 7
    assert counts["x"] == 7  # -3 … 3
    assert torch.all(seen["stem_0"][1] >= 0)


@pytest.mark.parametrize("backend", BACKENDS)
def test_copies_state_and_gradients_with_scales_for_each_channel(backend: str) -> None:
    chosen = scheme(USUAL, 4)
    make = lambda: ghnq_quant.quantize(  # noqa: E731
        small_network(dropout=0.0), scheme=chosen, backend=backend
    )
    qmodel, other, x = make(), make(), images()
    qmodel(x).square().sum().backward()
    for name, p in qmodel.named_parameters():
        assert not p.requires_grad or p.grad.isfinite().all(), name
    qmodel.eval()
    expected = qmodel(x)
    assert torch.equal(copy.deepcopy(qmodel)(x), expected)
    other.load_state_dict(qmodel.state_dict())
    assert torch.equal(other.eval()(x), expected)
    assert "W4-symmetric-channel/A4-symmetric" in repr(qmodel)


def test_overrides_take_quantizers_and_bits() -> None:
    chosen = QuantScheme(
        Quantizer(4, symmetric=True),
        4,
        overrides={
            "stem.*": 8,
            "plain": (Quantizer(2, granularity="channel"), 3),
            "head": Quantizer(5),
        },
    )
    weights = [str(chosen.weights_of(name)) for name in ("stem.0", "plain", "head", "depthwise")]
    assert weights == ["8-symmetric", "2-channel", "5", "4-symmetric"]
    assert chosen == QuantScheme(chosen.weights, chosen.activations, chosen.overrides)
    qmodel = ghnq_quant.quantize(small_network(), scheme=chosen, backend="reference")
    assert qmodel.get_submodule("plain").quant_weight()[0].unique().numel() <= 4


def test_a_range_of_its_own_goes_before_the_schemes() -> None:
    chosen = QuantScheme(4, 4, overrides={"x": (4, Quantizer(4, range="batch"))})
    qmodel = ghnq_quant.quantize(small_network(), scheme=chosen, backend="reference")
    names = {key.split(".")[1] for key in qmodel.state_dict() if key.startswith("activation_qu")}
    assert "x" not in names
    assert "stem_0" in names


def test_the_first_layers_bits_keep_the_kind() -> None:
    weights = Quantizer(4, symmetric=True, granularity="channel")
    qmodel = ghnq_quant.quantize(small_network(), (weights, 4), stem_bits=8, backend="reference")
    assert qmodel.scheme.weights_of("stem.0") == Quantizer(8, True, "channel")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((4, Quantizer(4, granularity="channel")), "activations=4-channel: .*per tensor"),
        ((Quantizer(4, range="ema"), 4), "weights=4-ema: range 'ema' is for activations"),
        ((4, Quantizer(4, range="minmax")), "activations=4-minmax: range 'minmax' is for wei"),
        ((Quantizer(4, True, never_negative=True), 4), "never_negative is for activations"),
        (
            (4, 4, {"head": Quantizer(4, granularity="channel")}),
            r"overrides\['head'\]=4-channel: .*give weights and activations separate quantizers",
        ),
    ],
)
def test_no_such_scheme(arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(SchemeError, match=message):
        QuantScheme(*arguments)


def test_as_people_write_them() -> None:
    weights, activations = parse_quantizers(" W4-Symmetric-channel/a8 ")
    assert (weights, activations) == (Quantizer(4, True, "channel"), Quantizer(8))
    assert parse_quantizers("3-symmetric")[1] == Quantizer(3, symmetric=True)
    assert parse_quantizers("float") == (Quantizer(32), Quantizer(32))
    assert parse_quantizers("8", weights="4-channel") == (
        Quantizer(4, granularity="channel"),
        Quantizer(8),
    )
    with pytest.raises(SchemeError, match="per tensor"):
        parse_quantizers("4-channel")
    with pytest.raises(SchemeError, match="precision '4-'"):
        parse_quantizers("4-")
