"""ExecuTorch programs in its own runtime, with XNNPACK."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from small_networks import images
from torch import Tensor, nn

import ghnq_quant
from ghnq_quant import ConversionError, GhnqWarning, QuantScheme, cli, zoos
from ghnq_quant.files import save_state
from ghnq_quant.quantization import QuantModel

XNNPACK = QuantScheme.for_target("xnnpack")


class Network(nn.Module):
    """Operations that XNNPACK has integer kernels for: sums, pooling, padding, groups, and clamps
    after them."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU6())
        self.conv = nn.Conv2d(8, 8, 3, padding=1, groups=2)
        self.down = nn.Conv2d(8, 8, 3, stride=2)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(self.stem(x), 2)
        x = torch.relu(self.conv(x) + x)
        x = self.down(F.pad(x, (0, 1, 0, 1)))
        return self.head(self.pool(x).flatten(1))


def quantized(
    model: nn.Module, scheme: QuantScheme = XNNPACK, backend: str = "reference"
) -> QuantModel:
    qmodel = ghnq_quant.quantize(model, scheme=scheme, backend=backend)
    torch.manual_seed(1)
    return ghnq_quant.calibrate(qmodel, [images(32)]).eval()


def network() -> Network:
    torch.manual_seed(0)
    return Network()


def execute(file: Path, x: Tensor) -> Tensor:
    from executorch.runtime import Runtime

    return Runtime.get().load_program(file).load_method("forward").execute([x])[0]


def plan(file: Path) -> Any:
    from executorch.exir._serialize._program import deserialize_pte_binary

    return deserialize_pte_binary(file.read_bytes()).program.execution_plan[0]


def hide_executorch(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [n for n in sys.modules if n.partition(".")[0] == "executorch"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "executorch", None)


def test_a_missing_package_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hide_executorch(monkeypatch)
    with pytest.raises(ConversionError, match=r"pip install 'ghnq-quant\[executorch\]'"):
        ghnq_quant.export_pte(quantized(network()), tmp_path / "model.pte", images(1))


@pytest.mark.parametrize(
    ("bits", "backend"), [((8, 8), "reference"), ((4, 8), "reference"), ((8, 8), "torch_ao")]
)
def test_xnnpack_runs_all_of_it_and_agrees(
    bits: tuple[int, int], backend: str, tmp_path: Path
) -> None:
    pytest.importorskip("executorch")
    qmodel, x = quantized(network(), QuantScheme.for_target("xnnpack", bits), backend), images(20)
    file = ghnq_quant.export_pte(qmodel, tmp_path / "model.pte", x)  # no layer in float
    assert [operator.name for operator in plan(file).operators] == []
    assert [delegate.id for delegate in plan(file).delegates] == ["XnnpackBackend"]
    y = qmodel(x)
    assert (execute(file, x) - y).abs().max() <= (y.max() - y.min()) / 255


def test_what_has_no_integer_kernel_runs_in_float_and_is_told(tmp_path: Path) -> None:
    pytest.importorskip("executorch")

    class Swish(Network):
        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.pool(self.down(F.silu(self.conv(self.stem(x))))).flatten(1))

    torch.manual_seed(0)
    reflecting, faint = network(), network()
    reflecting.conv.padding_mode, reflecting.conv._reversed_padding_repeated_twice = (
        "reflect",
        [1] * 4,
    )
    faint.conv.weight.data[0] *= 1e-9
    for model, reason in (
        (Swish(), "no quantizer follows it"),
        (reflecting, "its padding is 'reflect'"),
        (faint, "its bias does not fit in int32"),
    ):
        qmodel, x = quantized(model), images(4)
        with pytest.warns(GhnqWarning, match=f"1 layers run in float .* 'conv': {reason}"):
            file = ghnq_quant.export_pte(qmodel, tmp_path / "model.pte", x)
        y = qmodel(x)
        assert (execute(file, x) - y).abs().max() <= (y.max() - y.min()) / 255


def test_other_quantizers_are_refused_by_name(tmp_path: Path) -> None:
    pytest.importorskip("executorch")
    for scheme, message in (
        (QuantScheme(8, 4), r"'activation_quantizers\.x' .* only for asymmetric 8-bit activations"),
        (QuantScheme(8, 8), r"'stem\.0' has 8 bits and a zero point"),
    ):
        with pytest.raises(ConversionError, match=message):
            ghnq_quant.export_pte(quantized(network(), scheme), tmp_path / "a.pte", images(1))
    assert not list(tmp_path.iterdir())


@pytest.fixture
def ghnq(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., str]:
    """The output of ``ghnq export --target xnnpack`` with these arguments."""
    noted = {"bits": "8-symmetric-channel/8", "backend": "reference"}
    save_state(quantized(network()), tmp_path / "noted.safetensors", noted)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(zoos, "create_model", lambda *_: network())

    def run(*arguments: str) -> str:
        where = ("net", "--weights", "noted.safetensors", "--image-size", "8")
        monkeypatch.setattr(
            "sys.argv", ["ghnq", "export", *where, "--target", "xnnpack", *arguments]
        )
        with pytest.raises(SystemExit):
            cli.main()
        return "".join(capsys.readouterr())

    return run


def test_export_command_writes_a_program(ghnq: Callable[..., str]) -> None:
    pytest.importorskip("executorch")
    assert ghnq("-o", "model.pte") == "Saved to model.pte\n"
    x, qmodel = images(1), quantized(network())
    y = qmodel(x)
    assert (execute(Path("model.pte"), x) - y).abs().max() <= (y.max() - y.min()) / 255


def test_export_command_tells_what_a_program_needs(
    ghnq: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    hide_executorch(monkeypatch)
    assert "error: model.onnx must end in .pte" in ghnq("-o", "model.onnx")
    assert "error: --format is for ONNX files" in ghnq("-o", "model.pte", "--format", "qdq")
    assert "pip install 'ghnq-quant[executorch]'" in ghnq("-o", "model.pte")
    assert not Path("model.pte").exists()
