"""Starts from a GHN-3: by name or file, at ImageNet's image size, and where it is known to lose."""

from __future__ import annotations

from pathlib import Path

import joblib
import pytest
import torch
import torchvision
from backends import BACKENDS
from torch import nn

import ghnq_quant
from ghnq_quant import GHN, CheckpointError, GhnqWarning
from ghnq_quant.capture import capture
from ghnq_quant.families import losing_family


@pytest.fixture(scope="module")
def ghn() -> GHN:
    torch.manual_seed(0)
    sizes = {"hid": 8, "heads": 2, "layers": 1}
    return GHN((8, 8, 16, 16), 1000, encoder="graphormer", **sizes).eval()


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_resnet_at_224_pixels(backend: str, ghn: GHN) -> None:
    model = torchvision.models.resnet18()
    images = torch.randn(1, 3, 224, 224)
    qat = ghnq_quant.init_quantized(
        model, 4, backend=backend, ghn=ghn, as_predicted=True, example_input=images
    )
    expected = ghnq_quant.predict_parameters(model, ghn)
    own = dict(qat.named_parameters())
    for name in ("conv1.weight", "layer3.0.conv2.weight", "fc.weight"):
        torch.testing.assert_close(own[name], expected[name], rtol=0, atol=0)
        assert not torch.equal(expected[name], model.get_parameter(name))
    assert qat(images).shape == (1, 1000)


def test_the_export_flow_at_224_pixels(ghn: GHN) -> None:
    model = torchvision.models.resnet18().eval()
    images = torch.randn(2, 3, 224, 224)
    settings = {"ghn": ghn, "as_predicted": True, "example_input": images}
    qat, reference = (
        ghnq_quant.init_quantized(model, 8, backend=backend, **settings)
        for backend in ("pt2e", "reference")
    )
    expected = ghnq_quant.predict_parameters(model, ghn)
    own = dict(qat.named_parameters())
    assert all(torch.equal(own[name], value) for name, value in expected.items())
    with torch.no_grad():
        ours, theirs = qat.train()(images), reference.train()(images)
    assert ours.shape == (2, 1000)
    assert (ours - theirs).norm() < 0.1 * theirs.norm()


def test_another_number_of_classes_keeps_the_classifier(ghn: GHN) -> None:
    model = torchvision.models.squeezenet1_1(num_classes=7)
    with pytest.warns(GhnqWarning, match=r"2 parameters keep .*: classifier.1.weight"):
        parameters = ghnq_quant.predict_parameters(model, ghn)
    assert torch.equal(parameters["classifier.1.weight"], model.classifier[1].weight)
    assert torch.equal(parameters["classifier.1.bias"], model.classifier[1].bias)
    assert not torch.equal(parameters["features.0.weight"], model.features[0].weight)


def test_files_and_names(ghn: GHN, tmp_path: Path) -> None:
    joblib.dump(ghn.state_dict(), tmp_path / "ghn3.pt")
    ghn.save_pretrained(tmp_path / "folder")
    model = torchvision.models.resnet18()
    expected = ghnq_quant.predict_parameters(model, ghn)
    for name in (tmp_path / "folder", str(tmp_path / "ghn3.pt")):
        parameters = ghnq_quant.predict_parameters(model, name)
        assert torch.equal(parameters["conv1.weight"], expected["conv1.weight"])
    with pytest.raises(CheckpointError, match="no such"):
        ghnq_quant.init_quantized(model, 4, ghn=tmp_path / "elsewhere" / "ghn3.pt")


@pytest.mark.parametrize(
    ("name", "family"),
    [
        ("mobilenet_v3_small", "EfficientNet and MobileNetV3"),
        ("efficientnet_v2_s", "EfficientNet and MobileNetV3"),
        ("squeezenet1_0", "SqueezeNet"),
        *((name, None) for name in ("mobilenet_v2", "regnet_y_400mf", "densenet121", "googlenet")),
        *(
            (name, None)
            for name in ("mnasnet0_5", "shufflenet_v2_x0_5", "convnext_tiny", "alexnet")
        ),
    ],
)
def test_families(name: str, family: str | None) -> None:
    settings = {"init_weights": False} if name == "googlenet" else {}
    with torch.device("cpu" if name.startswith("regnet") else "meta"):
        model = torchvision.models.get_model(name, **settings)
    found = losing_family(capture(model))
    assert found is None if family is None else str(found).startswith(family)


def test_warning_of_a_family(ghn: GHN) -> None:
    model = torchvision.models.mobilenet_v3_small(num_classes=10)
    with pytest.warns(GhnqWarning, match="MobileNetV3 is like EfficientNet and MobileNetV3"):
        ghnq_quant.initialize(model, ghn=ghn)
    ghnq_quant.initialize(model, ghn=ghn, share=0)
    ghnq_quant.initialize(model)


def test_warning_of_a_transformer(ghn: GHN) -> None:
    class Attends(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.patches, self.head = nn.Conv2d(3, 8, 4, 4), nn.Linear(8, 10)
            self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.patches(x).flatten(2).transpose(1, 2)
            return self.head(self.attention(x, x, x, need_weights=False)[0].mean(1))

    with pytest.warns(GhnqWarning) as caught:
        ghnq_quant.initialize(Attends(), ghn=ghn, skip="unsupported")
    messages = [str(warning.message) for warning in caught]
    assert any("like vision transformers" in message for message in messages)
