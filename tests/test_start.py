"""The start of training: which parameters are predicted, and the classifier fitted to a task."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from backends import backends
from sklearn.linear_model import LogisticRegression
from small_networks import small_network
from torch import Tensor, nn

import ghnq_quant
from ghnq_quant import GHN, DataError, GhnqWarning, PredictionError
from ghnq_quant.capture import capture
from ghnq_quant.start import first_convolutions

Batch = tuple[Tensor, Tensor]


def task(count: int = 200, classes: int = 10, side: int = 8) -> list[Batch]:
    """Batches of images whose class is the place where they are bright."""
    generator = torch.Generator().manual_seed(3)
    labels = torch.arange(count) % classes
    images = torch.randn(count, 3, side, side, generator=generator)
    for i, label in enumerate(labels):
        images[i, label % 3, label // 3 * 2 % side] += 3
    return list(zip(images.split(40), labels.split(40), strict=True))


def chain(depth: int = 5, width: int = 8, classes: int = 10) -> nn.Sequential:
    """Convolutions with batch norms, pooled, and a linear layer."""
    torch.manual_seed(1)
    layers: list[nn.Module] = []
    for i in range(depth):
        conv = nn.Conv2d(width if i else 3, width, 3, padding=1)
        layers += [conv, nn.BatchNorm2d(width), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, classes))


def own(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def changed(model: nn.Module, other: nn.Module) -> list[str]:
    """Names of the parameters that differ."""
    values = own(other)
    return [n for n, p in model.named_parameters() if not torch.equal(p, values[n])]


# --- how much is predicted


@pytest.mark.parametrize(
    ("share", "weights"),
    [(None, "0 3"), (0.0, ""), (0.2, "0"), (0.21, "0 3"), (0.6, "0 3 6"), (1, "0 3 6 9 12")],
)
def test_share_counts_convolutions_from_the_image_and_rounds_up(
    share: float | None, weights: str, tiny_ghn: GHN
) -> None:
    model = chain()
    started = ghnq_quant.initialize(model, ghn=tiny_ghn, share=share)
    assert changed(started, model) == [f"{name}.weight" for name in weights.split()]
    predicted = ghnq_quant.predict_parameters(model, tiny_ghn)
    for name in weights.split():
        wanted = predicted[f"{name}.weight"]
        weight = started.get_parameter(f"{name}.weight").detach()
        torch.testing.assert_close(weight / weight.norm(), wanted / wanted.norm())
        size = 8 / (3 * weight[0].numel()) ** 0.5  # 8 times a new layer's
        assert float(weight.square().mean().sqrt()) == pytest.approx(size)


class Branches(nn.Module):
    """Two branches; the short one runs last."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.long = nn.Sequential(nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1))
        self.short = nn.Conv2d(4, 4, 1)
        self.logits = nn.Conv2d(4, 10, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.logits(self.long(x) + self.short(x)).mean((2, 3))


@pytest.mark.parametrize(
    ("share", "layers"),
    [
        (0.25, {"stem"}),
        (0.5, {"stem", "long.0", "short"}),  # a block's branches go together
        (0.75, {"stem", "long.0", "short"}),
        (1.0, {"stem", "long.0", "short", "long.1"}),
    ],
)
def test_the_order_is_that_of_depth_and_the_classifier_is_not_counted(
    share: float, layers: set[str], tiny_ghn: GHN
) -> None:
    model = Branches()
    started = ghnq_quant.initialize(model, ghn=tiny_ghn, share=share)
    assert {name.rpartition(".")[0] for name in changed(started, model)} == layers


def test_a_convolution_without_batch_norm_keeps_its_layers_size(tiny_ghn: GHN) -> None:
    model = Branches()
    started = ghnq_quant.initialize(model, ghn=tiny_ghn, share=1.0)
    predicted = ghnq_quant.predict_parameters(model, tiny_ghn)["stem.weight"]
    weight = started.get_parameter("stem.weight").detach()
    torch.testing.assert_close(weight.square().mean(), model.stem.weight.detach().square().mean())
    torch.testing.assert_close(weight / weight.norm(), predicted / predicted.norm())


def test_a_filter_that_repeats_another_is_new(tiny_ghn: GHN) -> None:
    decoded = tiny_ghn.max_shape[0]
    model = chain(depth=2, width=3 * decoded)
    started = ghnq_quant.initialize(model, ghn=tiny_ghn)
    predicted = ghnq_quant.predict_parameters(model, tiny_ghn)["0.weight"]
    weight = started.get_parameter("0.weight")
    assert torch.equal(predicted[decoded : 2 * decoded], predicted[:decoded])
    assert F.cosine_similarity(weight[:decoded].flatten(), predicted[:decoded].flatten(), 0) > 0.999
    assert torch.equal(weight[decoded:], model.get_parameter("0.weight")[decoded:])


def test_a_predicted_classifier_is_the_hypernetworks_and_only_on_request(tiny_ghn: GHN) -> None:
    model = chain()
    started = ghnq_quant.initialize(model, task(), ghn=tiny_ghn, classifier="predicted")
    predicted = ghnq_quant.predict_parameters(model, tiny_ghn)
    for name in ("17.weight", "17.bias"):
        assert torch.equal(started.get_parameter(name), predicted[name])
    with pytest.raises(PredictionError, match=r"no prediction for '17.weight'.*\(7, 8\).*data="):
        ghnq_quant.initialize(chain(classes=7), ghn=tiny_ghn, classifier="predicted")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"share": 1.5}, "share=1.5.*from 0 to 1"),
        ({"share": "half"}, "share='half'.*from 0 to 1"),
        ({"share": float("nan")}, "share=nan"),
        ({"classifier": "old"}, "'old'.*fitted, new, predicted"),
        ({"share": 0.5, "as_predicted": True}, "share=0.5 with as_predicted"),
    ],
)
def test_options_that_mean_nothing(options: dict[str, Any], message: str, tiny_ghn: GHN) -> None:
    with pytest.raises(PredictionError, match=message):
        ghnq_quant.init_quantized(chain(), ghn=tiny_ghn, **options)


# --- the fitted classifier


def features(model: nn.Module, data: list[Batch]) -> Tensor:
    """The last layer's input, (N, C), with batch norms on batches of 50."""
    body = copy.deepcopy(model)[:-1].train()
    with torch.no_grad():
        return torch.cat([body(x) for x in torch.cat([x for x, _ in data]).split(50)])


def test_the_classifier_is_the_logistic_regression_of_scikit_learn(tiny_ghn: GHN) -> None:
    model, data = chain(), task()
    started = ghnq_quant.initialize(model, data, ghn=tiny_ghn)
    x = features(started, data).double()
    deviation = x.std(0, correction=0)
    deviation = deviation.clamp_min(0.1 * deviation.square().mean().sqrt())
    labels = torch.cat([y for _, y in data])
    regression = LogisticRegression(C=1 / (2 * x.shape[1]), tol=1e-10, max_iter=10_000)
    regression.fit(((x - x.mean(0)) / deviation).numpy(), labels.numpy())
    wanted = torch.from_numpy(regression.predict_proba(((x - x.mean(0)) / deviation).numpy()))
    probability = started[-1](x.float()).softmax(1).detach()
    torch.testing.assert_close(probability, wanted.float(), rtol=0, atol=2e-3)


def test_a_fitted_network_knows_the_task_in_eval(tiny_ghn: GHN) -> None:
    model, data = chain(width=16, classes=3), task(classes=3)
    before = copy.deepcopy(model)
    started = ghnq_quant.initialize(model, data, ghn=tiny_ghn).eval()
    x, y = (torch.cat(parts) for parts in zip(*data, strict=True))
    assert float((started(x).argmax(1) == y).float().mean()) > 0.6
    assert changed(model, before) == []
    assert model.training
    assert int(model[1].num_batches_tracked) == 0


@pytest.mark.parametrize("backend", ["reference", "brevitas", "torch_ao", "pt2e"])
def test_all_backends_get_the_same_start(backend: str, tiny_ghn: GHN) -> None:
    model, data = chain(depth=3), task()
    example = data[0][0][:1]
    qmodel, reference = (
        ghnq_quant.init_quantized(model, 4, data, ghn=tiny_ghn, backend=name, example_input=example)
        for name in (backend, "reference")
    )
    for name, p in reference.named_parameters():
        assert torch.equal(qmodel.get_parameter(name), p), name
    assert changed(reference, model) == ["0.weight", "11.weight", "11.bias"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # ranges and statistics exist
        y = qmodel.eval()(data[0][0])
    assert y.isfinite().all()


def test_the_classifier_fits_what_the_quantized_layers_give_it(tiny_ghn: GHN) -> None:
    model, data = chain(width=16, classes=4), task(400, classes=4)
    x, y = (torch.cat(parts) for parts in zip(*data, strict=True))
    qmodel = ghnq_quant.init_quantized(
        model, (3, 3), data, ghn=tiny_ghn, backend="reference", share=0.0
    )
    fitted = float((qmodel.eval()(x).argmax(1) == y).float().mean())
    weight = ghnq_quant.initialize(model, data, ghn=tiny_ghn, share=0.0)[-1].weight
    assert not torch.equal(weight, qmodel.get_parameter("17.weight"))
    assert fitted > 0.5


class Conv1x1Head(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU())
        self.logits = nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.logits(self.body(x)).mean((2, 3))


def without_bias() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(),
                         nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4, bias=False))  # fmt: skip


def two_layers() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(),
                         nn.AdaptiveAvgPool2d(1), nn.Flatten(),
                         nn.Linear(8, 16), nn.ReLU(), nn.Dropout(), nn.Linear(16, 4))  # fmt: skip


@pytest.mark.parametrize("make", [Conv1x1Head, without_bias, two_layers])
def test_heads_of_several_kinds(make: Callable[[], nn.Module], tiny_ghn: GHN) -> None:
    model, data = make(), task(classes=4)
    last = [name for name, _ in model.named_parameters()][-1].rpartition(".")[0]
    started = ghnq_quant.initialize(model, data, ghn=tiny_ghn, share=0.0).eval()
    assert {name.rpartition(".")[0] for name in changed(started, model)} == {last}
    x, y = (torch.cat(parts) for parts in zip(*data, strict=True))
    found, untrained = (
        float((m.eval()(x).argmax(1) == y).float().mean()) for m in (started, model)
    )
    assert found > untrained + 0.1


class TwoHeads(Conv1x1Head):
    def __init__(self) -> None:
        super().__init__()
        self.other = nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.body(x)
        return self.logits(x).mean((2, 3)) + self.other(x).amax((2, 3))


class ReluHead(Conv1x1Head):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).relu()


@pytest.mark.parametrize("make", [TwoHeads, ReluHead])
def test_other_heads_stay_new_with_a_warning(make: Callable[[], nn.Module], tiny_ghn: GHN) -> None:
    model = make()
    with pytest.warns(GhnqWarning, match=f"{make.__name__} does not end in one linear") as caught:
        started = ghnq_quant.initialize(model, task(classes=4), ghn=tiny_ghn)
    assert caught[0].filename == __file__
    assert changed(started, model) == ["body.0.weight"]
    assert int(started.get_buffer("body.1.num_batches_tracked")) == 4


def test_classes_without_an_image_start_at_zero(tiny_ghn: GHN) -> None:
    data = [(x, y * 2) for x, y in task(classes=3)]
    with pytest.warns(GhnqWarning, match=r"2 of 5 classes have no image.* 200 of data: 1, 3") as w:
        layer = ghnq_quant.initialize(chain(classes=5), data, ghn=tiny_ghn)[-1]
    assert w[0].filename == __file__
    assert not layer.weight[[1, 3]].any()
    assert layer.weight[[0, 2, 4]].any(1).all()
    assert layer.bias[[1, 3]].tolist() == [layer.bias.min().item()] * 2


def test_fewer_images_than_classes(tiny_ghn: GHN) -> None:
    x, y = task()[0]
    with pytest.warns(GhnqWarning, match="7 of 10 classes have no image among the first 3"):
        model = ghnq_quant.initialize(chain(), [(x[:3], y[:3])], ghn=tiny_ghn).eval()
    assert model(x[:3]).argmax(1).tolist() == [0, 1, 2]


def test_a_thousand_images_are_read_and_no_more(tiny_ghn: GHN) -> None:
    read = 0

    def endless() -> Any:
        nonlocal read
        while True:
            for x, y in task():
                read += len(y)
                yield x, y, "a loader may say more"

    ghnq_quant.initialize(chain(), endless(), ghn=tiny_ghn)
    assert read == 1000


def nan(x: Tensor) -> Tensor:
    return x.masked_fill(torch.arange(x.shape[-1]) == 2, float("nan"))


BAD_DATA: dict[str, tuple[Callable[[Tensor, Tensor], Any], str]] = {
    "nothing": (lambda x, y: [], "no batch"),
    "no labels": (lambda x, y: [x], "batch 0 is not a pair"),
    "bytes": (lambda x, y: [(x.byte(), y)], r"uint8 of shape \(40, 3, 8, 8\).*normalized"),
    "one image": (lambda x, y: [(x[0], y[0])], r"float32 of shape \(3, 8, 8\)"),
    "NaN": (lambda x, y: [(x, y), (nan(x), y)], "batch 1 hold NaN"),
    "one-hot": (lambda x, y: [(x, nn.functional.one_hot(y))], r"labels.*\(40, 10\).*40 integers"),
    "floats": (lambda x, y: [(x, y.float())], "labels.*float32.*40 integers"),
    "too few labels": (lambda x, y: [(x, y[:5])], r"\(5,\).*40 integers"),
    "one class": (lambda x, y: [(x, y * 0 + 4)], "40 images.*label 4.*shuffle"),
    "labels from 1": (lambda x, y: [(x, y + 1)], "from 1 to 10.*outputs 0 to 9"),
    "negative": (lambda x, y: [(x, y - 1)], "from -1 to 8"),
    "sizes": (lambda x, y: [(x, y), (x[..., :6], y)], r"\(3, 8, 6\), batch 0 of \(3, 8, 8\)"),
}


@pytest.mark.parametrize("case", BAD_DATA)
def test_bad_data_is_named_and_leaves_the_model(case: str, tiny_ghn: GHN) -> None:
    make, message = BAD_DATA[case]
    model = chain()
    before = copy.deepcopy(model)
    data = make(*task()[0])
    for function in (ghnq_quant.initialize, ghnq_quant.init_quantized):
        with pytest.raises(DataError, match=message):
            function(model, data=data, ghn=tiny_ghn)
    assert changed(model, before) == []
    assert model.training


@backends
def test_as_predicted_is_calibrated_alone(backend: str, tiny_ghn: GHN) -> None:
    model = small_network()
    qmodel = ghnq_quant.init_quantized(
        model, 4, task(), ghn=tiny_ghn, backend=backend, as_predicted=True
    )
    for name, value in ghnq_quant.predict_parameters(model, tiny_ghn).items():
        assert torch.equal(qmodel.get_parameter(name), value)
    assert int(qmodel.get_buffer("norm.num_batches_tracked")) == 4


def test_data_are_of_the_models_dtype(tiny_ghn: GHN) -> None:
    started = ghnq_quant.initialize(chain().double(), task(), ghn=tiny_ghn)
    assert started(task()[0][0].double()).dtype == torch.float64


def test_filters_count_as_repeated_by_all_of_their_values() -> None:
    """The first 64 of the 72 values of each are equal; two of the filters are."""
    torch.manual_seed(1)
    model = nn.Sequential(nn.Conv2d(8, 4, 3, bias=False), nn.ReLU(), nn.Conv2d(4, 2, 1))
    captured = capture(model)
    filters = torch.ones(4, 72)
    filters[:, 64:] = torch.tensor([1.0, 2.0, 1.0, 3.0])[:, None]
    values = first_convolutions(captured, [filters.view(4, 8, 3, 3).clone(), None, None], 0.5)
    assert values[0] is not None
    started, own_values = values[0].flatten(1), model[0].weight.detach().flatten(1)
    assert [torch.equal(a, b) for a, b in zip(started, own_values, strict=True)] == [
        False, False, True, False
    ]  # fmt: skip
