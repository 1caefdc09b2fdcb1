"""Networks with concatenations, made for a target."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from backends import BACKENDS
from small_networks import images
from torch import Tensor, nn

import ghnq_quant
from ghnq_quant import QuantScheme, SchemeError
from ghnq_quant.quantization import QuantModel


class Joins(nn.Module):
    """Concatenations of a convolution, of a part of a tensor, and of what others read too.

    Args:
        shuffle: XNNPACK does not shuffle channels, nor cut tensors at once.
    """

    def __init__(self, *, shuffle: bool = True) -> None:
        super().__init__()
        self.shuffle = shuffle
        self.stem, self.left = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.mix, self.last = nn.Conv2d(8, 8, 1), nn.Conv2d(16, 8, 1)
        self.head = nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        one, two = x.chunk(2, 1) if self.shuffle else (x[:, :4], x[:, 4:])
        y = torch.cat((self.left(one), two), 1)
        y = F.channel_shuffle(y, 2) if self.shuffle else y
        x = self.last(torch.cat((x, F.relu6(self.mix(y))), 1))
        return self.head(F.relu(x).mean((2, 3), keepdim=True).flatten(1))


def made_for(target: str, backend: str = "reference") -> QuantModel:
    torch.manual_seed(0)
    model = Joins(shuffle=target != "xnnpack")
    scheme = QuantScheme.for_target(target, 8)
    qmodel = ghnq_quant.quantize(model, scheme=scheme, backend=backend)
    torch.manual_seed(1)
    return ghnq_quant.calibrate(qmodel, [images(16), images(16)]).eval()


def test_they_have_one_quantizer_instead_of_those_of_what_they_join() -> None:
    quantizers = made_for("onnxruntime").get_submodule("activation_quantizers")
    names = ["x", "stem", "cat", "cat_1", "last", "mean"]
    assert [name for name, _ in quantizers.named_children()] == names
    plain = ghnq_quant.quantize(Joins(), 8, backend="reference")
    names = [name for name, _ in plain.activation_quantizers.named_children()]
    assert names == ["x", "stem", "left", "mix", "last", "mean"]


@pytest.mark.parametrize("backend", BACKENDS[1:])
def test_backends_agree(backend: str) -> None:
    x = images()
    y, found = made_for("openvino")(x), made_for("openvino", backend)(x)
    torch.testing.assert_close(found, y, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("integer", [False, True])
def test_converted(integer: bool) -> None:
    qmodel, x = made_for("onnxruntime"), images(20)
    found = ghnq_quant.convert(qmodel, integer=integer)(x)
    torch.testing.assert_close(found, qmodel(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("target", ["onnxruntime", "openvino", "tensorrt", "qnn"])
def test_files_are_the_simulation_and_all_on_integers(target: str, tmp_path: Path) -> None:
    pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    from onnx_runs import run

    from ghnq_quant.deployment.check import check_export

    qmodel, x = made_for(target), images(20)
    file = ghnq_quant.export_onnx(qmodel, tmp_path / "a.onnx", x[:1], target=target)
    assert check_export(file, target) == []
    torch.testing.assert_close(run(file, x), qmodel(x), rtol=1e-5, atol=1e-5)
    if target == "onnxruntime":
        torch.testing.assert_close(run(file, x, optimized=True), qmodel(x), rtol=1e-5, atol=1e-5)
    if target == "openvino":  # what several read has its own scale
        scales = [line for line in check_export(file, "qnn") if "Concat" in line]
        assert ["2 scales; qnn needs one" in line for line in scales] == [True, True]


def test_xnnpack(tmp_path: Path) -> None:
    pytest.importorskip("executorch")
    from test_executorch import execute, plan

    qmodel, x = made_for("xnnpack"), images(20)
    file = ghnq_quant.export_pte(qmodel, tmp_path / "a.pte", x)
    assert [delegate.id for delegate in plan(file).delegates] == ["XnnpackBackend"]
    assert [operator.name for operator in plan(file).operators] == []
    y = qmodel(x)
    assert (execute(file, x) - y).abs().max() <= (y.max() - y.min()) / 255


@pytest.mark.parametrize("target", ["finn", "hls4ml"])
def test_what_was_not_verified_is_refused_before_training(target: str) -> None:
    with pytest.raises(SchemeError, match="'cat' is a concatenation, which this scheme refuses"):
        ghnq_quant.quantize(Joins(), scheme=QuantScheme.for_target(target, 4), backend="reference")
