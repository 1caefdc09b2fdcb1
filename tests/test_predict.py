"""``predict_parameters``: what it returns for a model, and what it warns of."""

from __future__ import annotations

import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torchvision
from safetensors.torch import save_file
from torch import Tensor, nn

from ghnq_quant import (
    GHN,
    CaptureError,
    GhnqWarning,
    PredictionError,
    init_quantized,
    predict_parameters,
)
from ghnq_quant.capture import capture


def small(num_classes: int = 10, width: int = 20) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, width, 3, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        nn.Conv2d(width, width, 3, groups=width),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(width, num_classes),
    )


def assert_for(model: nn.Module, predicted: dict[str, Tensor]) -> None:
    own = dict(model.named_parameters())
    assert list(predicted) == list(own)
    for name, p in predicted.items():
        assert type(p) is Tensor
        assert (p.shape, p.dtype, p.device) == (own[name].shape, own[name].dtype, own[name].device)
        assert not p.requires_grad
        assert p.is_contiguous()
        assert p.isfinite().all()


def assert_independent(model: nn.Module, predicted: dict[str, Tensor]) -> None:
    """No tensor shares memory with another or with the model, or holds more than its own."""
    memory = [p.untyped_storage() for p in predicted.values()]
    pointers = {m.data_ptr() for m in memory}
    assert len(pointers) == len(predicted)
    assert pointers.isdisjoint(p.untyped_storage().data_ptr() for p in model.parameters())
    assert all(m.nbytes() == p.nbytes for m, p in zip(memory, predicted.values(), strict=True))


@pytest.mark.parametrize(
    "make",
    [
        small,
        lambda: small(width=200),
        lambda: torchvision.models.resnet18(num_classes=10),
        lambda: torchvision.models.shufflenet_v2_x0_5(num_classes=10),
        lambda: timm.create_model("mobilenetv3_small_050", num_classes=10),
        lambda: timm.create_model("regnetx_002", num_classes=10),
    ],
    ids=["narrow", "wide", "resnet18", "shufflenet", "timm", "timm regnet"],
)
def test_one_tensor_for_every_parameter(make: Callable[[], nn.Module], tmp_path: Path) -> None:
    model = make()
    before = {name: p.clone() for name, p in model.state_dict().items()}
    # by default batch norms are new, as the model's own are
    predicted = predict_parameters(model, GHN.from_pretrained("ghnq-cifar10"))
    assert_for(model, predicted)
    assert_independent(model, predicted)
    assert all(torch.equal(p, before[name]) for name, p in model.state_dict().items())
    save_file(predicted, tmp_path / "predicted.safetensors")
    assert not any(torch.equal(p, before[name]) for name, p in predicted.items())


def test_shipped_hypernetwork_is_the_default() -> None:
    model = small()
    expected = predict_parameters(model, GHN.from_pretrained("ghnq-cifar10"))
    for actual in (predict_parameters(model), predict_parameters(model, "ghnq-cifar10")):
        assert all(torch.equal(actual[name], p) for name, p in expected.items())


def test_what_is_predicted_is_what_the_hypernetwork_says(tiny_ghn: GHN) -> None:
    model = small(width=50)
    with torch.no_grad():
        (expected,) = tiny_ghn([capture(model).arch_graph])
    predicted = predict_parameters(model, tiny_ghn)
    assert all(torch.equal(predicted[name], expected[name]) for name in expected)


def test_a_list_of_models_is_one_by_one(tiny_ghn: GHN) -> None:
    models: list[nn.Module] = [
        small(),
        small(width=7),
        torchvision.models.mobilenet_v2(num_classes=10),
    ]
    together = predict_parameters(models, tiny_ghn)
    assert isinstance(together, list)
    for model, predicted in zip(models, together, strict=True):
        assert_for(model, predicted)
        for name, p in predict_parameters(model, tiny_ghn).items():
            torch.testing.assert_close(predicted[name], p, rtol=1e-4, atol=1e-6)
    assert predict_parameters([], tiny_ghn) == []


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_dtype_of_the_model(dtype: torch.dtype, tiny_ghn: GHN) -> None:
    model = small()
    expected = predict_parameters(model, tiny_ghn)
    predicted = predict_parameters(model.to(dtype), tiny_ghn)
    assert_for(model, predicted)
    assert_independent(model, predicted)
    assert all(torch.equal(p, expected[name].to(dtype)) for name, p in predicted.items())


def test_model_without_memory(tiny_ghn: GHN) -> None:
    with torch.device("meta"):
        model = small()
    predicted = predict_parameters(model, tiny_ghn)
    assert all(
        p.device.type == "meta" and p.shape == model.get_parameter(name).shape
        for name, p in predicted.items()
    )


def test_frozen_and_training_settings_do_not_matter(tiny_ghn: GHN) -> None:
    model = small().requires_grad_(False)
    expected = predict_parameters(model.eval(), tiny_ghn)
    predicted = predict_parameters(model.train(), tiny_ghn)
    assert all(torch.equal(p, expected[name]) for name, p in predicted.items())


def test_example_input_is_checked(tiny_ghn: GHN) -> None:
    model = torchvision.models.resnet18(num_classes=10)
    predict_parameters(model, tiny_ghn, example_input=torch.zeros(1, 3, 32, 32))
    with pytest.raises(CaptureError, match="operation conv1"):
        predict_parameters(model, tiny_ghn, example_input=torch.zeros(1, 1, 32, 32))


# --- parameters that keep their own values -------------------------------------------------------


def kept_by(model: nn.Module, ghn: GHN) -> tuple[dict[str, Tensor], set[str]]:
    """The prediction, and the parameters that keep their values, according to its one warning."""
    with pytest.warns(GhnqWarning) as caught:
        predicted = predict_parameters(model, ghn)
    assert len(caught) == 1
    assert_for(model, predicted)
    assert_independent(model, predicted)
    kept = {n for n, p in model.named_parameters() if torch.equal(p, predicted[n])}
    assert str(caught[0].message).startswith(f"{len(kept)} parameters keep their own")
    for name in sorted(kept, key=list(predicted).index)[:8]:
        assert name in str(caught[0].message)
    return predicted, kept


@pytest.mark.parametrize("num_classes", [1, 9, 1000])
def test_another_number_of_classes(num_classes: int, tiny_ghn: GHN) -> None:
    _, kept = kept_by(small(num_classes), tiny_ghn)
    assert kept == {"6.weight", "6.bias"}


def test_another_number_of_classes_without_bias(tiny_ghn: GHN) -> None:
    model = small()
    model[6] = nn.Linear(20, 11, bias=False)
    assert kept_by(model, tiny_ghn)[1] == {"6.weight"}


def test_auxiliary_heads(tiny_ghn: GHN) -> None:
    model = torchvision.models.googlenet(num_classes=10, init_weights=False)
    for p in model.parameters():
        p.data.add_(1e-3)  # no two values are equal, not even biases of zero
    predicted, kept = kept_by(model, tiny_ghn)
    assert kept == {n for n in predicted if n.startswith("aux")}
    assert len(kept) == 14


class Custom(nn.Module):
    """A PReLU, a scale parameter, and a layer that is never used."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3)
        self.act = nn.PReLU(6)
        self.scale = nn.Parameter(torch.full((6, 1, 1), 0.5))
        self.unused = nn.Linear(4, 4)
        self.whole = nn.LayerNorm([6, 6, 6])
        self.head = nn.Linear(6, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.whole(self.scale * self.act(self.conv(x))).mean((2, 3)))


def test_parameters_that_no_node_stands_for(tiny_ghn: GHN) -> None:
    _, kept = kept_by(Custom(), tiny_ghn)
    assert kept == {
        "act.weight",
        "scale",
        "unused.weight",
        "unused.bias",
        "whole.weight",
        "whole.bias",
    }


def test_everything_predicted_gives_no_warning(tiny_ghn: GHN) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        predict_parameters(small(), tiny_ghn)


def test_tied_parameters_stay_one(tiny_ghn: GHN) -> None:
    """The result has the first name, with the prediction for its first use."""
    model = small()
    model[3] = nn.Conv2d(20, 20, 3, bias=False)
    model.insert(4, nn.Conv2d(20, 20, 3, bias=False))
    model[4].weight = model[3].weight
    predicted = predict_parameters(model, tiny_ghn)
    assert_for(model, predicted)
    assert "3.weight" in predicted
    assert "4.weight" not in predicted
    with torch.no_grad():
        (expected,) = tiny_ghn([capture(model).arch_graph])
    assert torch.equal(predicted["3.weight"], expected["3.weight"])
    missing, unexpected = model.load_state_dict(predicted, strict=False)
    assert not unexpected
    assert "4.weight" in missing
    assert torch.equal(model[4].weight, predicted["3.weight"])


def test_one_module_under_two_names(tiny_ghn: GHN) -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.a = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 6, 3, padding=1)
            self.b = self.a

        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x)
            return self.b(x + self.a(x))

    model = Twice()
    assert_for(model, predict_parameters(model, tiny_ghn))


# --- what cannot be predicted --------------------------------------------------------------------


@pytest.mark.parametrize("function", [predict_parameters, init_quantized])
def test_not_finite(function: Callable[..., Any]) -> None:
    torch.manual_seed(0)
    ghn = GHN(max_shape=(8, 8, 3, 3), hid=8)
    ghn.ln.bias.data[3] = float("nan")
    with pytest.raises(PredictionError, match=r"not finite for '\d\.(weight|bias)'.*load another"):
        function(small(), ghn=ghn)


def test_too_large_a_value_for_half_precision() -> None:
    """Finite for the hypernetwork, infinite in the model's own dtype."""
    torch.manual_seed(0)
    ghn = GHN(max_shape=(8, 8, 3, 3), hid=8)
    ghn.decoder.conv[2].weight.data.mul_(1e8)
    predict_parameters(small(), ghn)
    with pytest.raises(PredictionError, match=r"'0\.weight'"):
        predict_parameters(small().half(), ghn)


def test_kernel_larger_than_any() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 13), nn.ReLU())
    with pytest.raises(PredictionError, match=r"'0\.weight' has a 13×13 kernel.* is 11×11"):
        predict_parameters(model)


# --- importing -----------------------------------------------------------------------------------


def run(code: str) -> str:
    process = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120
    )
    assert process.returncode == 0, process.stderr
    return process.stdout.strip()


def test_zoos_can_be_imported_after_the_package() -> None:
    code = """
import ghnq_quant, torchvision, timm
from ghnq_quant.torchvision_ops import define_missing_operators
define_missing_operators()
define_missing_operators()
print(torchvision.models.resnet18(num_classes=3).fc.out_features)
"""
    assert run(code) == "3"


@pytest.mark.parametrize(
    ("prepare", "defined"),
    [
        ("", ["nms", "qnms"]),
        ("ops._compiled_operators_load = lambda: True", []),
        ("sys.modules['torchvision'] = None", []),
        ("torch.library.define('torchvision::nms', ops._SCHEMAS['nms'])", ["qnms"]),
    ],
    ids=["operators are missing", "operators load", "torchvision is imported", "one is there"],
)
def test_operators_are_defined_only_where_they_are_missing(
    prepare: str, defined: list[str]
) -> None:
    """Only the module, without the package, whose import defines them."""
    source = Path(sys.modules["ghnq_quant.torchvision_ops"].__file__ or "")
    code = f"""
import importlib.util, sys
import torch
spec = importlib.util.spec_from_file_location("ops", {str(source)!r})
ops = importlib.util.module_from_spec(spec)
spec.loader.exec_module(ops)
ops._compiled_operators_load = lambda: False
calls = []
define = torch.library.define
{prepare}
torch.library.define = lambda name, schema: (calls.append(name), define(name, schema))
ops.define_missing_operators()
if "torchvision" not in sys.modules:
    ops.define_missing_operators()
print(*calls)
"""
    assert run(code).split() == [f"torchvision::{name}" for name in defined]
