"""Learned ranges equal the formulas of LSQ and LSQ+, and work in models of every backend."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from backends import backends
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from small_networks import images, small_network
from torch import Tensor

import ghnq_quant
from ghnq_quant import GhnqWarning, Quantizer, QuantScheme
from ghnq_quant.quantization import QuantModel, fake_quantize
from ghnq_quant.quantization.ranges import LearnedRange, make_range, make_weight_range

KINDS = ["", "symmetric", "channel", "symmetric-channel", "symmetric-power_of_two"]


def papers_gradients(
    x: Tensor, scale: Tensor, offset: Tensor, quantizer: Quantizer, grad: Tensor, count: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of one tensor x, its scale and offset: equations 3 of LSQ, 3 to 6 of LSQ+."""
    lowest, highest = quantizer.levels
    of_x, of_scale, of_offset = torch.zeros_like(x), 0.0, 0.0
    factor = 1 / math.sqrt(count * highest)
    for i, value in enumerate(x.tolist()):
        v = (value - float(offset)) / float(scale)
        g = float(grad[i])
        if lowest < v < highest:
            of_x[i] = g
            of_scale += g * (round(v) - v)
        else:
            of_scale += g * (lowest if v <= lowest else highest)
            of_offset += g
    return of_x, torch.tensor(of_scale * factor), torch.tensor(of_offset * factor)


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_those_of_the_papers(kind: str, bits: int) -> None:
    torch.manual_seed(3)
    quantizer = Quantizer.parse(f"{bits}-{kind}-learned".replace("--", "-"))
    x = torch.randn(4, 30, dtype=torch.float64)
    module = make_weight_range(quantizer, 4).double()
    assert isinstance(module, LearnedRange)
    module.set_range(
        *(f(x) for f in (lambda x: ends(x, quantizer)[0], lambda x: ends(x, quantizer)[1]))
    )
    x.requires_grad_(True)
    y, scale, zero_point = module.quantize(x)
    grad = torch.randn_like(x)
    y.backward(grad)
    rows = x.detach() if quantizer.per_channel else x.detach().view(1, -1)
    grads, scales = grad.view_as(rows), scale.expand(len(rows))
    offset = -(zero_point * scale).expand(len(rows))
    expected = [
        papers_gradients(row, s, b, quantizer, g, rows.shape[1])
        for row, s, b, g in zip(rows, scales, offset, grads, strict=True)
    ]
    slope = 64 / 65  # slope of the squareplus at the start
    torch.testing.assert_close(x.grad, torch.stack([e[0] for e in expected]).view_as(x))
    of_scale = torch.stack([e[1] for e in expected]).double().view_as(scale)
    torch.testing.assert_close(module.scale.grad, of_scale * slope, rtol=1e-5, atol=1e-9)
    assert 0 < (x.grad == 0).sum() < x.numel() / 2
    if module.offset is not None:
        of_offset = torch.stack([e[2] for e in expected]).double().view_as(scale)
        torch.testing.assert_close(module.offset.grad, of_offset, rtol=1e-5, atol=1e-9)


def ends(x: Tensor, quantizer: Quantizer) -> tuple[Tensor, Tensor]:
    """A range that clips some of the values, with its ends between values."""
    rows = x.detach() if quantizer.per_channel else x.detach().view(1, -1)
    low, high = rows.quantile(0.13, 1), rows.quantile(0.83, 1)
    return (low, high) if quantizer.per_channel else (low[0], high[0])


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("kind", KINDS)
def test_gradients_in_pieces_are_those_of_the_whole(
    kind: str, layout: torch.memory_format, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also if the gradient has another memory layout than the values."""
    torch.manual_seed(4)
    quantizer = Quantizer.parse(f"3-{kind}-learned".replace("--", "-"))
    x, grad = torch.randn(2, 5, 4, 3, 2, dtype=torch.float64).unbind()
    gradients = []
    for piece in (2**17, 30):
        monkeypatch.setattr("ghnq_quant.quantization.affine.PIECE", piece)
        monkeypatch.setattr("ghnq_quant.quantization.learned.PIECE", piece)
        module = make_weight_range(quantizer, 5).double()
        module.set_range(*ends(x.flatten(1), quantizer))  # type: ignore[attr-defined]
        values = x.contiguous(memory_format=layout).requires_grad_()
        module.quantize(values)[0].backward(grad)
        gradients.append([values.grad, *(p.grad for p in module.parameters())])
    torch.testing.assert_close(*gradients)


def test_zeros_behind_a_relu_do_not_pull_at_the_offset() -> None:
    """They lie exactly on the lowest level, whatever the offset."""
    module = make_range(Quantizer(4, range="learned"))
    assert isinstance(module, LearnedRange)
    module.set_range(torch.tensor(0.0), torch.tensor(1.0))
    y, *_ = module.quantize(torch.zeros(5, 7))
    y.sum().backward()
    assert (module.offset.grad, module.scale.grad) == (0, 0)


def test_of_an_activation_n_counts_the_values_of_one_image() -> None:
    x = torch.rand(1, 3, 4, 4) * 3
    gradients = []
    for batch in (x, x.expand(5, -1, -1, -1) * 1.0):
        module = make_range(Quantizer(2, range="learned"))
        module.set_range(torch.tensor(0.0), torch.tensor(1.5))  # type: ignore[attr-defined]
        module.quantize(batch)[0].sum().div(len(batch)).backward()
        gradients.append(module.scale.grad)  # type: ignore[union-attr]
    torch.testing.assert_close(*gradients)


@settings(deadline=None, max_examples=100)
@given(
    arrays(np.float32, (3, 4), elements=st.floats(width=32, allow_nan=False, allow_infinity=False)),
    st.sampled_from([*KINDS, "power_of_two"]),
    st.integers(2, 8),
    st.floats(-1e6, 1e6),
)
@example(np.zeros((3, 4), np.float32), "channel", 4, 0.0)
@example(np.full((3, 4), 3.4e38, np.float32), "symmetric", 8, 1e6)
@example(np.full((3, 4), 1e-45, np.float32), "", 2, -1e6)
@example(np.full((3, 4), 0.7, np.float32), "symmetric-power_of_two", 3, -5.0)
def test_no_step_of_an_optimizer_makes_a_scale_negative_or_zero(
    array: np.ndarray, kind: str, bits: int, step: float
) -> None:
    x = torch.from_numpy(array)
    quantizer = Quantizer.parse(f"{bits}-{kind}-learned".replace("--", "-"))
    module = make_weight_range(quantizer, len(x))
    assert isinstance(module, LearnedRange)
    low, high = x.amin(1).clamp(max=0), x.amax(1).clamp(min=0)
    module.set_range(*((low, high) if quantizer.per_channel else (low.min(), high.max())))
    usual = Quantizer.parse(str(quantizer).replace("-learned", ""))
    y = module.quantize(x)[0]
    size = x.abs().max()
    assert torch.all((y / size - fake_quantize(x, usual) / size).abs() <= 1e-5) or size < 1e-35
    with torch.no_grad():
        module.scale.add_(step * module.start)
        if module.offset is not None:
            module.offset.sub_(step * module.start)
    y, scale, zero_point = module.quantize(x)
    assert torch.all(scale > 0)
    assert scale.isfinite().all()
    assert y.isfinite().all()
    assert torch.all(y[x == 0] == 0)
    lowest, highest = quantizer.levels
    assert torch.all((zero_point >= min(lowest, 0)) & (zero_point <= highest))
    if quantizer.power_of_two:
        assert torch.all(torch.frexp(scale)[0] == 0.5)


# In models


def scheme(
    kind: str = "3-symmetric-channel-learned", activations: str = "3-learned"
) -> QuantScheme:
    return QuantScheme(Quantizer.parse(kind), Quantizer.parse(activations))


def make(backend: str, steps: int = 2) -> QuantModel:
    """A quantized model that ran ``steps`` batches before it was quantized."""
    model = small_network(steps=steps, dropout=0.0)
    return ghnq_quant.quantize(model, scheme=scheme(), backend=backend)


def batches() -> list[Tensor]:
    torch.manual_seed(12)
    return [images() for _ in range(3)]


@backends
def test_ranges_are_a_group_of_their_own(backend: str) -> None:
    qmodel = make(backend)
    parameters = list(qmodel.range_parameters())
    assert len(parameters) == len(qmodel.plan.units) + 2 * len(qmodel.plan.points)
    own = {id(p) for p in parameters}
    others = [n for n, p in qmodel.named_parameters() if id(p) not in own]
    assert others == [n for n, _ in small_network().named_parameters()]
    usual = ghnq_quant.quantize(small_network(), 4, backend=backend)
    assert list(usual.range_parameters()) == []


@backends
def test_trains_saves_loads_copies_and_converts(backend: str) -> None:
    qmodel, data = make(backend, steps=0), batches()
    parameters = list(qmodel.range_parameters())
    optimizer = torch.optim.SGD(qmodel.parameters(), 0.01)  # before any range exists
    for x in data:
        optimizer.zero_grad()
        qmodel(x).square().mean().backward()
        before = [p.detach().clone() for p in parameters]
        optimizer.step()
    assert all(p is q for p, q in zip(parameters, qmodel.range_parameters(), strict=True))
    moved = [not torch.equal(p, b) for p, b in zip(parameters, before, strict=True)]
    assert sum(moved) > len(moved) / 2
    x = images()
    expected = qmodel.eval()(x)
    assert torch.equal(copy.deepcopy(qmodel)(x), expected)
    folded = ghnq_quant.convert(qmodel, integer=False)
    torch.testing.assert_close(folded(x), expected, rtol=0, atol=1e-5)
    other = make(backend, steps=0)
    held = list(other.range_parameters())
    other.load_state_dict(qmodel.state_dict())
    assert all(p is q for p, q in zip(held, other.range_parameters(), strict=True))
    assert torch.equal(other.eval()(x), expected)


@backends
def test_calibration_begins_them_and_keeps_what_is_learned(backend: str) -> None:
    data = [torch.cat(batches())]  # one: during a second, they would differ by its statistics
    qmodel, usual = (
        make(backend),
        ghnq_quant.quantize(
            small_network(steps=2, dropout=0.0),
            scheme=scheme("3-symmetric-channel-mse", "3-mse"),
            backend=backend,
        ),
    )
    for model in (qmodel, usual):
        ghnq_quant.calibrate(model, data)
    y, expected = qmodel.eval()(data[0]), usual.eval()(data[0])
    assert (y - expected).abs().max() <= 1e-3 * (expected.max() - expected.min())
    with torch.no_grad():
        for p in qmodel.range_parameters():
            p.mul_(1.25)
    changed = [p.detach().clone() for p in qmodel.range_parameters()]
    ghnq_quant.calibrate(qmodel, data)
    assert all(map(torch.equal, qmodel.range_parameters(), changed))
    ghnq_quant.calibrate(qmodel, data, ranges="mse")
    pairs = zip(qmodel.range_parameters(), changed, strict=True)
    assert not any(torch.equal(p, b) for p, b in pairs if b.any())  # some offsets are 0


@backends
def test_eval_before_any_batch_takes_the_one_at_hand_and_warns(backend: str) -> None:
    qmodel, x = make(backend).eval(), images()
    before = copy.deepcopy(qmodel.state_dict())
    with pytest.warns(GhnqWarning, match="eval mode without running statistics"):
        qmodel(x)
    for key, value in qmodel.state_dict().items():
        if ".range." in key or "begun" in key:
            assert torch.equal(value, before[key])


def test_weights_without_statistics_begin_with_the_first_batch() -> None:
    qmodel = make("reference", steps=0).train()
    ranges = {n: m for n, m in qmodel.named_modules() if isinstance(m, LearnedRange)}
    begun = {n for n, m in ranges.items() if m.has_statistics()}
    assert begun == {"plain.weight_quant.range", "head.weight_quant.range"}
    qmodel(images())
    assert all(m.has_statistics() for m in ranges.values())


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
def test_pt2e_refuses_learned_weights_of_unknown_size() -> None:
    pytest.importorskip("torchao.quantization.pt2e")
    with pytest.raises(ghnq_quant.BackendError, match=r"'stem\.0' has a learned range.*'stem\.1'"):
        ghnq_quant.quantize(
            small_network(), scheme=scheme(), backend="pt2e", example_input=images()
        )
