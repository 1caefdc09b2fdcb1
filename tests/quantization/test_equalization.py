"""equalize: the float function stays, and channels of consecutive layers get equal ranges."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from backends import backends
from small_networks import images, small_network
from torch import Tensor, nn

import ghnq_quant
from ghnq_quant import BackendError, DataError, Quantizer
from ghnq_quant.quantization import QuantModel
from ghnq_quant.research.starts.cifar_networks import CIFAR_NETWORKS


def conv_bn(inputs: int, outputs: int, size: int, **options: Any) -> list[nn.Module]:
    return [nn.Conv2d(inputs, outputs, size, **options), nn.BatchNorm2d(outputs)]


def uneven(model: nn.Module) -> nn.Module:
    """Give channels very different magnitudes, and running statistics of two batches."""
    torch.manual_seed(3)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn_like(p))
            p.mul_(
                torch.logspace(-1, 1, len(p))[torch.randperm(len(p))].view(-1, *[1] * (p.dim() - 1))
            )
    model.train()
    for _ in range(2):
        model(images())
    return model


def as_float(model: nn.Module, backend: str = "reference") -> QuantModel:
    return ghnq_quant.quantize(model, 32, backend=backend)


def separable(activation: Callable[[], nn.Module] = nn.ReLU) -> nn.Module:
    """A depthwise layer between two others, with and without batch norms and biases."""
    return nn.Sequential(
        *conv_bn(3, 6, 3, bias=False), activation(),
        *conv_bn(6, 6, 3, padding=1, groups=6), activation(),
        nn.Conv2d(6, 4, 1),
    )  # fmt: skip


def flattened() -> nn.Module:
    """Pooling, dropout, grouped convolutions, and a linear layer with several inputs per channel."""
    return nn.Sequential(
        *conv_bn(3, 8, 3, padding=1), nn.LeakyReLU(0.1), nn.MaxPool2d(2), nn.Dropout(0.0),
        nn.Conv2d(8, 12, 3, padding=1, groups=4), nn.PReLU(12), nn.AvgPool2d(2), nn.Flatten(),
        nn.Linear(48, 10), nn.ReLU(), nn.Linear(10, 3),
    )  # fmt: skip


class Averaged(nn.Module):
    """A mean over positions before the classifier; functions instead of modules."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.classifier = nn.Conv2d(3, 8, 3), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(F.leaky_relu(self.conv(x), 0.2).mean((2, 3)))


NETWORKS = {
    "separable": separable,
    "flattened": flattened,
    "averaged": Averaged,
    "shufflenet": lambda: CIFAR_NETWORKS["shufflenet_small"](10),
    "resnet8": lambda: CIFAR_NETWORKS["resnet8"](10),
}


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("training", [False, True])
def test_keeps_the_float_function(name: str, training: bool) -> None:
    qmodel = as_float(uneven(NETWORKS[name]())).train(training)
    before, x = copy.deepcopy(qmodel), images()
    assert ghnq_quant.equalize(qmodel) is qmodel
    assert any(
        not torch.equal(p, q) for p, q in zip(qmodel.parameters(), before.parameters(), strict=True)
    )
    expected = before(x)
    assert (qmodel(x) - expected).abs().max() <= 1e-5 * expected.abs().max()


def folded(qmodel: QuantModel, conv: str, norm: str | None = None) -> Tensor:
    """|W| with its batch norm folded in."""
    weight = qmodel.get_parameter(f"{conv}.weight").detach().abs()
    if norm is None:
        return weight
    bn: Any = qmodel.get_submodule(norm)
    return weight * (bn.weight.detach().abs() / (bn.running_var + bn.eps).sqrt()).view(-1, 1, 1, 1)


@backends
def test_ranges_of_a_depthwise_layer_and_its_neighbours_are_equal(backend: str) -> None:
    qmodel = as_float(uneven(separable()), backend)
    first = folded(qmodel, "0", "1").amax((1, 2, 3))
    depthwise = folded(qmodel, "3", "4").amax((1, 2, 3))
    last = folded(qmodel, "6").amax((0, 2, 3))
    geometric = (first * depthwise * last).pow(1 / 3)
    ghnq_quant.equalize(qmodel)
    for found in (
        folded(qmodel, "0", "1").amax((1, 2, 3)),
        folded(qmodel, "3", "4").amax((1, 2, 3)),
        folded(qmodel, "6").amax((0, 2, 3)),
    ):
        torch.testing.assert_close(found, geometric, rtol=1e-4, atol=0.0)


def test_equation_11_with_groups_and_behind_a_flattening() -> None:
    qmodel = as_float(uneven(flattened()))
    ghnq_quant.equalize(qmodel)
    grouped = folded(qmodel, "5")  # (12, 2, 3, 3), 4 groups
    of_inputs = grouped.view(4, 3, 2, 9).amax((1, 3)).flatten()
    torch.testing.assert_close(
        folded(qmodel, "0", "1").amax((1, 2, 3)), of_inputs, rtol=1e-4, atol=0.0
    )
    linear = folded(qmodel, "9")
    torch.testing.assert_close(
        grouped.amax((1, 2, 3)), linear.view(10, 12, 4).amax((0, 2)), rtol=1e-4, atol=0.0
    )
    torch.testing.assert_close(linear.amax(1), folded(qmodel, "11").amax(0), rtol=1e-4, atol=0.0)


def test_residuals_and_branches_end_a_row_of_layers() -> None:
    qmodel = as_float(uneven(CIFAR_NETWORKS["resnet8"](10)))
    before = {n: p.clone() for n, p in qmodel.named_parameters()}
    ghnq_quant.equalize(qmodel)
    changed = {n for n, p in qmodel.named_parameters() if not torch.equal(p, before[n])}
    # in each block only between its two convolutions; all else is added or read twice
    expected = {
        f"body.{block}.{name}"
        for block in (2, 3, 4)
        for name in ("first.1.weight", "first.1.bias", "second.0.weight")
    }
    assert changed == expected


def test_dead_channels_stay() -> None:
    model = uneven(separable())
    with torch.no_grad():
        model[1].weight[0] = 0.0
        model[6].weight[:, 1] = 0.0
    qmodel = as_float(model)
    ghnq_quant.equalize(qmodel)
    assert torch.equal(qmodel.get_submodule("1").bias[0], model[1].bias[0])
    assert all(p.isfinite().all() for p in qmodel.parameters())
    x = images()
    torch.testing.assert_close(qmodel.eval()(x), model.eval()(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("functional", [False, True])
def test_relu6_becomes_relu(functional: bool) -> None:
    class Clipped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.next, self.last = (nn.Conv2d(n, 4, 3) for n in (3, 4, 4))
            self.act = nn.ReLU6()

        def forward(self, x: Tensor) -> Tensor:
            act = F.relu6 if functional else self.act
            x = act(self.next(act(self.conv(x))))
            return act(self.last(x)).mul(x.mean())

    model = uneven(Clipped())
    qmodel = ghnq_quant.equalize(as_float(model))
    conv, following, last, x = model.conv, model.next, model.last, 9 * images()
    y = F.relu(following(F.relu(conv(x))))
    y = F.relu6(y)  # read twice: not between two equalized layers
    expected = F.relu6(last(y)) * y.mean()
    torch.testing.assert_close(qmodel(x), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(
        pickle.loads(pickle.dumps(qmodel))(x), expected, rtol=1e-5, atol=1e-5
    )


@backends
def test_ranges_start_anew(backend: str) -> None:
    qmodel = ghnq_quant.quantize(uneven(separable()), 4, backend=backend)
    ghnq_quant.equalize(ghnq_quant.calibrate(qmodel, [images()]))
    with pytest.warns(ghnq_quant.GhnqWarning, match="without running statistics"):
        qmodel.eval()(images())
    qmodel = ghnq_quant.calibrate(qmodel, [images()])
    assert qmodel(images()).isfinite().all()


@pytest.mark.parametrize("kind", ["mse", "learned"])
def test_ranges_of_weights_are_those_of_the_new_weights(kind: Any) -> None:
    model, bits, x = uneven(separable()).eval(), (Quantizer(4, range=kind), Quantizer(32)), images()
    qmodel = ghnq_quant.equalize(ghnq_quant.quantize(model, bits, backend="reference"))
    state = qmodel.state_dict()
    model.load_state_dict({name: state[name] for name in model.state_dict()})
    expected = ghnq_quant.quantize(model, bits, backend="reference")
    torch.testing.assert_close(qmodel(x), expected(x))


def test_helps_one_range_for_a_whole_weight() -> None:
    model, x = uneven(separable()).eval(), images(32)
    expected = model(x)

    def error(prepare: Callable[[QuantModel], QuantModel]) -> float:
        qmodel = prepare(ghnq_quant.quantize(model, (4, 32), backend="reference"))
        return float((qmodel.eval()(x) - expected).square().mean().detach())

    assert error(ghnq_quant.equalize) < 0.5 * error(lambda q: q)


def test_layers_with_tied_weights_stay() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 3, 3), nn.ReLU(), nn.Conv2d(3, 3, 3), nn.ReLU(), nn.Conv2d(3, 3, 1)
    )
    model[2].weight = model[0].weight
    qmodel, x = as_float(uneven(model)), images()
    ghnq_quant.equalize(qmodel)
    torch.testing.assert_close(qmodel(x), model(x))


def test_errors() -> None:
    with pytest.raises(BackendError, match="equalize got a Sequential: expected"):
        ghnq_quant.equalize(separable())  # type: ignore[arg-type]
    exported = ghnq_quant.quantize(small_network(), 4, backend="pt2e", example_input=images())
    with pytest.raises(BackendError, match="use backend 'reference'"):
        ghnq_quant.equalize(exported)
    qmodel = ghnq_quant.quantize(separable(), 4, backend="reference")
    before = [p.clone() for p in qmodel.parameters()]
    with pytest.raises(DataError, match=r"batch norm .1. has no running statistics.*calibrate"):
        ghnq_quant.equalize(qmodel)
    assert all(torch.equal(p, q) for p, q in zip(qmodel.parameters(), before, strict=True))
