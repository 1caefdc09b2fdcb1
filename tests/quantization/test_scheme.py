"""What a QuantScheme accepts, and which quantizers reach which layer."""

from __future__ import annotations

from typing import Any

import pytest
from small_networks import images, small_network

import ghnq_quant
from ghnq_quant import GhnqError, Quantizer, QuantScheme, SchemeError
from ghnq_quant.capture import QuantPoint
from ghnq_quant.quantization.scheme import parse_precision

NO_BITS: list[Any] = [0, 1, 9, 16, -4, "four", "4", True, False, 4.0, None, [4, 4], (4, 4)]


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 7, 8, 32])
def test_bit_widths(bits: int) -> None:
    assert bits_of(QuantScheme(bits, 4), "any") == (bits, 4)
    assert bits_of(QuantScheme(4, bits), "any") == (4, bits)


def bits_of(scheme: QuantScheme, name: str) -> tuple[int, int]:
    return scheme.weights_of(name).bits, scheme.activations_of(QuantPoint(name, name, name)).bits


@pytest.mark.parametrize("bits", NO_BITS)
def test_no_bit_width(bits: Any) -> None:
    with pytest.raises(SchemeError, match=r"weight bits=.*2 to 8, or 32"):
        QuantScheme(bits, 4)
    with pytest.raises(SchemeError, match=r"activation bits=.*2 to 8, or 32"):
        QuantScheme(4, bits)


@pytest.mark.parametrize("bits", [1, "four", True, (4,), (4, 4, 4), (4, 9), [], None])
def test_no_override(bits: Any) -> None:
    with pytest.raises(SchemeError, match="head"):
        QuantScheme(4, 4, overrides={"head": bits})


@pytest.mark.parametrize("name", ["act_range", "bn", "biases", "concatenations"])
@pytest.mark.parametrize("value", ["Batch", "", None, 0, "quantile"])
def test_no_mode(name: str, value: Any) -> None:
    with pytest.raises(
        SchemeError, match=f"{name}=.*expected one of .*(batch|float, int32|quantized)"
    ):
        QuantScheme(4, 4, **{name: value})


@pytest.mark.parametrize("limit", [0.5, float("nan"), float("inf"), "2"])
def test_no_limit(limit: Any) -> None:
    with pytest.raises(SchemeError, match=r"channel_limit=.*a number from 1"):
        QuantScheme(4, 4, channel_limit=limit)


def test_errors_are_the_packages_own() -> None:
    assert issubclass(SchemeError, GhnqError)
    assert issubclass(SchemeError, ValueError)


def test_overrides_by_glob() -> None:
    scheme = QuantScheme(4, 4, overrides={"stem.*": 8, "head": (2, 32), "*.0": (6, 5)})
    assert bits_of(scheme, "stem.1") == (8, 8)
    assert bits_of(scheme, "stem.0") == (6, 5)  # the last matching pattern counts
    assert bits_of(scheme, "head") == (2, 32)
    assert bits_of(scheme, "header") == (4, 4)
    assert bits_of(scheme, "Stem.1") == (4, 4)  # names are case-sensitive


@pytest.mark.parametrize("backend", ["reference", "brevitas"])
def test_overrides_reach_the_layers(backend: str) -> None:
    scheme = QuantScheme(4, 4, overrides={"stem.0": 8, "plain": (2, 32), "add": 3, "head": 32})
    qmodel = ghnq_quant.quantize(small_network(), scheme=scheme, backend=backend)
    outputs: dict[str, int] = {}
    for name, module in qmodel.activation_quantizers.named_children():
        module.register_forward_hook(
            lambda m, a, y, name=name: outputs.update({name: y.unique().numel()})
        )
    qmodel(images())
    assert "plain" not in outputs  # 32 bits: no quantizer at all
    assert 16 < outputs["stem_0"] <= 256
    assert 4 < outputs["add"] <= 8
    assert 8 < outputs["depthwise"] <= 16
    assert 8 < outputs["x"] <= 16
    plain, head = qmodel.get_submodule("plain"), qmodel.get_submodule("head")
    assert values(plain.quant_weight()).unique().numel() <= 4
    assert values(head.quant_weight()).unique().numel() == head.weight.numel()


def values(weight: Any) -> Any:
    return getattr(weight, "value", weight)


def test_an_override_that_matches_nothing() -> None:
    scheme = QuantScheme(4, 4, overrides={"stem.0": 8, "classifier.*": 8})
    with pytest.raises(SchemeError, match=r"classifier\.\*.*stem\.0.*depthwise.*plain.*head"):
        ghnq_quant.quantize(small_network(), scheme=scheme, backend="reference")


def test_is_a_value() -> None:
    assert QuantScheme(4, 8) == QuantScheme(4, 8)
    assert QuantScheme(4, 8) != QuantScheme(8, 4)
    assert str(QuantScheme(4, 8)) == "W4/A8"
    with pytest.raises(AttributeError):
        QuantScheme(4, 8).weights = Quantizer(4)  # type: ignore[misc]


def test_precisions_as_people_write_them() -> None:
    assert [parse_precision(t) for t in ("4", "4/8", " w4/a8 ", "Float", "W2")] == [
        (4, 4),
        (4, 8),
        (4, 8),
        (32, 32),
        (2, 2),
    ]
    for text in ("four", "", "4/", "4/8/2", "-4", "4.0", "²", "W1/A8", "9", "floats"):
        with pytest.raises(SchemeError, match="precision"):
            parse_precision(text)
