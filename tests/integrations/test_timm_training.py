"""A quantized model in a training loop built from timm's parts."""

from __future__ import annotations

import copy
import importlib
import re
from pathlib import Path

import ghnq_timm  # noqa: F401
import pytest
import timm
import torch
from PIL import Image
from timm.data import dataset_factory
from timm.optim import create_optimizer_v2
from timm.utils import ModelEmaV3
from torch import nn

import ghnq_quant
from ghnq_quant import GhnqWarning

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "timm.md"
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL)


@pytest.fixture(scope="module")
def model() -> nn.Module:
    torch.manual_seed(0)
    model = timm.create_model("mobilenetv2_035", num_classes=10, drop_path_rate=0.5)
    return ghnq_quant.adapt_stem(model, 16, min_size=2)


@pytest.fixture(params=["brevitas", "reference"])
def qat(model, request) -> nn.Module:
    return ghnq_quant.quantize(model, bits=4, backend=request.param)


def images(count: int = 8) -> torch.Tensor:
    return torch.randn(count, 3, 16, 16, generator=torch.Generator().manual_seed(1))


class FewImages(torch.utils.data.Dataset):
    """Replaces torchvision's CIFAR10: 16 images for training, 8 for testing."""

    def __init__(self, root, train, download, **_):
        self.size, self.transform = 16 if train else 8, None

    def __len__(self):
        return self.size

    def __getitem__(self, index):
        image = Image.new("RGB", (32, 32), (10 * index, 255 - 10 * index, 40))
        return self.transform(image) if self.transform else image, index % 10


def test_the_page_runs(monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(dataset_factory._TORCH_BASIC_DS, "cifar10", FewImages)
    code = "\n".join(code for code in BLOCKS if not code.startswith("# "))
    few = {
        "num_epochs=10": "num_epochs=2",
        "batch_size=128": "batch_size=8",
        "num_workers=2": "num_workers=0",
    }
    for old, new in few.items():
        assert old in code
        code = code.replace(old, new)
    namespace: dict[str, object] = {}
    exec(compile(code, str(PAGE), "exec"), namespace)
    assert re.findall(r"epoch (\d+): \d+\.\d %", capsys.readouterr().out) == [
        str(epoch) for epoch in range(int(namespace["epochs"]))
    ]
    saved = torch.load("mobilenetv2_050-w4a4.pt", weights_only=True)
    again = ghnq_quant.quantize(namespace["model"], bits=4)
    again.load_state_dict(saved)
    with torch.no_grad():
        torch.testing.assert_close(
            again.eval()(torch.ones(2, 3, 32, 32)),
            namespace["ema"].module(torch.ones(2, 3, 32, 32)),
        )


def test_the_registered_model_is_what_the_script_creates(monkeypatch, tmp_path):
    (code,) = (code for code in BLOCKS if code.startswith("# quantized_mobilenet.py"))
    (tmp_path / "quantized_mobilenet.py").write_text(code, "utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    importlib.import_module("quantized_mobilenet")  # as the script does
    model = timm.create_model("mobilenetv2_050_w4a4", num_classes=3, drop_path_rate=0.1)
    assert isinstance(model, ghnq_quant.quantization.QuantModel)
    assert str(model.scheme.weights_of("conv_stem")) == "8"
    assert model(torch.randn(2, 3, 32, 32)).shape == (2, 3)


def test_weight_decay_spares_what_it_spares_in_the_float_model(model, qat):
    def spared(network):
        optimizer = create_optimizer_v2(network, opt="sgd", lr=0.1, weight_decay=0.1)
        names = {id(p): name for name, p in network.named_parameters()}
        return [
            (group["weight_decay"], [names[id(p)] for p in group["params"]])
            for group in optimizer.param_groups
        ]

    assert spared(qat) == spared(model)


def test_moving_average_follows_parameters_statistics_and_ranges(qat):
    ema = ModelEmaV3(qat, decay=0.9)
    qat.train()
    qat(images())
    ema.update(qat, step=1)
    first = copy.deepcopy(qat.state_dict())
    for key, value in ema.module.state_dict().items():
        assert torch.equal(value, first[key]), key
    with torch.no_grad():
        for p in qat.parameters():
            p.mul_(1.1)
    qat(3 * images())
    ema.update(qat, step=2)
    averaged = ema.module.state_dict()
    assert [*averaged] == [*first] == [*qat.state_dict()]
    for key, value in qat.state_dict().items():
        expected = value
        if value.is_floating_point():
            expected = torch.lerp(first[key], value, 0.1)
        torch.testing.assert_close(averaged[key], expected, msg=key)
    assert any(
        key.endswith("running_max") and not torch.equal(averaged[key], first[key])
        for key in averaged
    )
    assert not any(module.training for module in ema.module.modules())
    with torch.no_grad():  # no warning: it has statistics
        one, two = ema.module(images()), ema.module(images(4))
    torch.testing.assert_close(one[:4], two)
    assert one.isfinite().all()


def test_moving_average_before_any_update_warns(qat):
    ema = ModelEmaV3(qat)
    with pytest.warns(GhnqWarning, match="eval mode without running statistics"):
        ema(images())


def test_a_calibrated_model_gives_the_moving_average_its_first_ranges(qat):
    ghnq_quant.calibrate(qat, [images()])
    ema = ModelEmaV3(qat, decay=0.999)
    qat.train()(images())
    ema.update(qat)  # without the step: no copy
    state, averaged = qat.state_dict(), ema.module.state_dict()
    ranges = [key for key in state if key.endswith("range.running_max")]
    assert ranges
    for key in ranges:
        torch.testing.assert_close(averaged[key], state[key], atol=0.01, rtol=0.2, msg=key)
    assert ema(images()).isfinite().all()


def test_stochastic_depth_follows_train_and_eval(qat):
    ghnq_quant.calibrate(qat, [images()])
    with torch.no_grad():
        qat.train()
        assert not torch.equal(qat(images()), qat(images()))
        qat.eval()
        assert torch.equal(qat(images()), qat(images()))


def test_channels_last_computes_the_same(qat):
    other = copy.deepcopy(qat).to(memory_format=torch.channels_last)
    for network, x in (
        (qat, images()),
        (other, images().contiguous(memory_format=torch.channels_last)),
    ):
        torch.manual_seed(3)
        network.train()(x).square().mean().backward()
    for (name, p), q in zip(qat.named_parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, atol=1e-3, rtol=1e-2, msg=name)
    for (name, a), b in zip(qat.named_buffers(), other.buffers(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-3, rtol=1e-2, msg=name)
