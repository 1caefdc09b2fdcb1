"""Schemes and files follow each runtime's rules; some run in the runtimes themselves."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from small_networks import images
from torch import Tensor, nn

import ghnq_quant
from ghnq_quant import ConversionError, GhnqWarning, QuantScheme, SchemeError, cli
from ghnq_quant.quantization import QuantModel
from ghnq_quant.quantization.targets import TARGETS

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")
check_export = pytest.importorskip("ghnq_quant.deployment.check").check_export

#: Bit widths that each target with ONNX files supports.
BITS = {
    "onnxruntime": [(8, 8), (4, 8), (4, 4)],
    "openvino": [(8, 8), (4, 8), (4, 4)],
    "tensorrt": [(8, 8), (4, 5)],
    "qnn": [(8, 8)],
    "finn": [(4, 4), (8, 3)],
    "hls4ml": [(4, 4)],
}
CASES = [(target, bits) for target, several in BITS.items() for bits in several]
cases = pytest.mark.parametrize(("target", "bits"), CASES)
of_brevitas = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")


class Residual(nn.Module):
    """A sum followed by a ReLU, pooled over the whole image."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.conv = nn.Conv2d(8, 8, 3, padding=1)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = torch.relu(self.conv(x) + x)
        return self.head(self.pool(x).flatten(1))


def quantized(model: nn.Module, scheme: QuantScheme) -> QuantModel:
    qmodel = ghnq_quant.quantize(model, scheme=scheme, backend="reference")
    torch.manual_seed(1)
    # the range of a single batch is its largest sum, which puts many sums halfway between two levels
    return ghnq_quant.calibrate(qmodel, [images(16), images(16)]).eval()


@cache
def residual(target: str, bits: tuple[int, int]) -> QuantModel:
    torch.manual_seed(0)
    model = Residual()
    if not TARGETS[target].global_pooling:
        model.pool = nn.MaxPool2d(8)
    return quantized(model, QuantScheme.for_target(target, bits))


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    folder = tmp_path_factory.mktemp("files")

    @cache
    def file(target: str, bits: tuple[int, int]) -> Path:
        path = folder / f"{target}-{bits[0]}-{bits[1]}.onnx"
        return ghnq_quant.export_onnx(residual(target, bits), path, images(1), target=target)

    return file


def session(file: Path, *, optimized: bool) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    if optimized:
        options.optimized_model_filepath = str(file.with_suffix(".optimized.onnx"))
        options.log_severity_level = 3  # about this file
    else:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])


def run(file: Path, x: Tensor, *, optimized: bool = False) -> Tensor:
    return torch.from_numpy(session(file, optimized=optimized).run(None, {"input": x.numpy()})[0])


def in_openvino(file: Path, x: Tensor) -> Tensor:
    """OpenVINO's output; checks that every convolution runs on integers."""
    openvino = pytest.importorskip("openvino")
    settings = {"INFERENCE_NUM_THREADS": 1, "INFERENCE_PRECISION_HINT": "f32"}
    compiled = openvino.Core().compile_model(str(file), "CPU", settings)
    nodes = [node.get_rt_info() for node in compiled.get_runtime_model().get_ops()]
    layers = [n for n in nodes if n["layerType"].astype(str) == "Convolution"]
    assert {n["runtimePrecision"].astype(str) for n in layers} <= {"u8", "i8"}
    return torch.from_numpy(compiled(x.numpy())[0])


def in_qonnx(file: Path, x: Tensor) -> Tensor:
    from qonnx.core.modelwrapper import ModelWrapper
    from qonnx.core.onnx_exec import execute_onnx
    from qonnx.transformation.infer_shapes import InferShapes

    model = ModelWrapper(onnx.load(file))
    model.set_tensor_shape("input", list(x.shape))
    found = execute_onnx(model.transform(InferShapes()), {"input": x.numpy()})["output"]
    return torch.from_numpy(found)


def kinds(file: Path) -> list[str]:
    return [node.op_type for node in onnx.load(file).graph.node]


@pytest.mark.parametrize("name", TARGETS)
def test_scheme_of_each_target(name: str) -> None:
    bits = BITS.get(name, [(8, 8)])[0]
    scheme = QuantScheme.for_target(name, bits)
    assert (scheme.weights.bits, scheme.activations.bits) == bits
    assert scheme.weights.symmetric
    refuses = name in ("finn", "hls4ml")
    assert scheme.concatenations == ("refused" if refuses else "quantized")
    assert scheme.biases == ("int32" if name in ("onnxruntime", "qnn", "xnnpack") else "float")
    assert TARGETS[name].source.startswith("https://")


def test_bits_without_integer_kernels_are_refused_before_training() -> None:
    with pytest.raises(SchemeError, match=r"qnn has no .* activations of 4 bits.*onnxruntime\.ai"):
        QuantScheme.for_target("qnn", 4)
    with pytest.raises(SchemeError, match="weights of 32 bits"):
        QuantScheme.for_target("tensorrt", (32, 8))
    with pytest.raises(SchemeError, match="unknown target 'tflite'; known are: onnxruntime"):
        QuantScheme.for_target("tflite")


@of_brevitas
@cases
def test_files_keep_the_rules_of_their_target(
    target: str, bits: tuple[int, int], exported: Callable[..., Path]
) -> None:
    file = exported(target, bits)
    assert check_export(file, target) == []
    assert kinds(file).count("GlobalAveragePool") == TARGETS[target].global_pooling


@pytest.mark.parametrize(("target", "bits"), [c for c in CASES if TARGETS[c[0]].format == "qdq"])
def test_as_written_a_file_is_the_simulation(
    target: str, bits: tuple[int, int], exported: Callable[..., Path]
) -> None:
    x = images(20)
    found = run(exported(target, bits), x)
    torch.testing.assert_close(found, residual(target, bits)(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("bits", BITS["onnxruntime"])
def test_onnxruntime_runs_every_layer_on_integers(
    bits: tuple[int, int], exported: Callable[..., Path]
) -> None:
    """It computes what was simulated, as ``convert`` does: no bias is left to round."""
    x, file, qmodel = images(20), exported("onnxruntime", bits), residual("onnxruntime", bits)
    y = qmodel(x)
    torch.testing.assert_close(run(file, x, optimized=True), y, rtol=0, atol=1e-5)
    torch.testing.assert_close(ghnq_quant.convert(qmodel, integer=True)(x), y, rtol=0, atol=1e-5)
    weights = {t.name: tuple(t.dims) for t in onnx.load(file).graph.initializer}
    assert weights["stem.0.weight_levels"] == (
        8,
        4,
        3,
        3,
    )  # padded with a channel of zeros, for the fast kernel
    optimized = kinds(file.with_suffix(".optimized.onnx"))
    assert [optimized.count(k) for k in ("QLinearConv", "QLinearAdd", "Conv", "Add")] == [
        2,
        1,
        0,
        0,
    ]


@pytest.mark.parametrize("bits", BITS["openvino"])
def test_openvino_runs_every_convolution_on_integers(
    bits: tuple[int, int], exported: Callable[..., Path]
) -> None:
    x = images(20)
    y = residual("openvino", bits)(x)
    found = in_openvino(exported("openvino", bits), x)
    assert (found - y).abs().max() <= 2 * (y.max() - y.min()) / (2 ** bits[1] - 1)


def test_openvino_rounds_what_it_adds(tmp_path: Path) -> None:
    """Its fused kernel of convolution and sum does not, unless an operator precedes the quantizer."""

    class Deep(Residual):
        def __init__(self) -> None:
            super().__init__()
            self.second = nn.Conv2d(8, 8, 3, padding=1)
            self.pool = nn.MaxPool2d(8)  # averages of levels are often halfway between two levels

        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x)
            x = self.second(torch.relu(self.conv(x))) + x
            return self.head(self.pool(x).flatten(1))

    torch.manual_seed(0)
    qmodel, x = quantized(Deep(), QuantScheme.for_target("openvino", 4)), images(20)
    file = ghnq_quant.export_onnx(qmodel, tmp_path / "a.onnx", x[:1], target="openvino")
    torch.testing.assert_close(in_openvino(file, x), qmodel(x), rtol=1e-5, atol=1e-5)


@of_brevitas
@pytest.mark.parametrize("target", ["finn", "hls4ml"])
def test_files_of_qonnx_in_its_executor(target: str, exported: Callable[..., Path]) -> None:
    pytest.importorskip("qonnx")
    file, x = exported(target, (4, 4)), images(8)
    graph = onnx.load(file).graph
    values = {t.name: onnx.numpy_helper.to_array(t) for t in graph.initializer}
    quants = [node for node in graph.node if node.op_type == "Quant"]
    for scale, zero_point in ([values[name] for name in node.input[1:3]] for node in quants):
        # FINN's conversion requires these
        assert (scale.size, zero_point.size, zero_point.item()) == (1, 1, 0)
    y = residual(target, (4, 4))(x)
    torch.testing.assert_close(in_qonnx(file, x), y, rtol=1e-5, atol=1e-5)


@of_brevitas
def test_a_relu6_above_all_levels_is_a_relu_in_qonnx(tmp_path: Path) -> None:
    """A scale rounded up to a power of two may leave levels above 6; then the export is refused."""
    pytest.importorskip("qonnx")
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU6(), nn.Flatten(), nn.Linear(288, 10))
    nn.init.normal_(model[0].weight)  # so that some results exceed 6
    qmodel, x = quantized(model, QuantScheme.for_target("finn", 4)), images(4)
    file = ghnq_quant.export_onnx(qmodel, tmp_path / "a.onnx", x[:1], target="finn")
    assert (kinds(file).count("Relu"), kinds(file).count("Clip")) == (1, 0)
    torch.testing.assert_close(in_qonnx(file, x), qmodel(x), rtol=1e-5, atol=1e-5)
    qmodel = quantized(model, QuantScheme.for_target("hls4ml", 4))
    with pytest.raises(
        ConversionError, match=r"hls4ml does not support 1 nodes.*Clip \S+: .* ReLU"
    ):
        ghnq_quant.export_onnx(qmodel, tmp_path / "b.onnx", x[:1], target="hls4ml")


@of_brevitas
def test_hls4ml_would_misread_global_pooling(tmp_path: Path) -> None:
    model = quantized(Residual(), QuantScheme.for_target("hls4ml", 4))
    with pytest.raises(ConversionError, match=r"GlobalAveragePool .*channels-first; use max pool"):
        ghnq_quant.export_onnx(model, tmp_path / "a.onnx", images(1), target="hls4ml")


def test_asymmetric_weights_of_few_bits_are_int8_without_a_zero_point(tmp_path: Path) -> None:
    qmodel, x = quantized(Residual(), QuantScheme(4, 8)), images(20)
    file = ghnq_quant.export_onnx(qmodel, tmp_path / "a.onnx", x[:1], target="openvino")
    torch.testing.assert_close(run(file, x), qmodel(x), rtol=1e-5, atol=1e-5)
    constants = {t.name: onnx.numpy_helper.to_array(t) for t in onnx.load(file).graph.initializer}
    levels = constants["conv.weight_levels"]
    assert levels.dtype == np.int8
    assert abs(levels.astype(int)).max() <= 64
    assert not constants["conv.weight.zero_point"].any()


def test_asymmetric_weights_of_eight_bits_are_int8_in_onnxruntime(tmp_path: Path) -> None:
    """The zero point is shifted too; onnxruntime's integer kernel for uint8 weights is slower."""
    qmodel, x = quantized(Residual(), QuantScheme(8, 8)), images(20)
    plain = ghnq_quant.export_onnx(qmodel, tmp_path / "plain.onnx", x[:1])
    file = ghnq_quant.export_onnx(qmodel, tmp_path / "a.onnx", x[:1], target="onnxruntime")
    found = run(file, x, optimized=True)
    torch.testing.assert_close(found, run(plain, x, optimized=True), rtol=1e-5, atol=1e-5)
    for name in ("conv.weight_levels", "conv.weight.zero_point"):
        levels, others = (
            next(
                onnx.numpy_helper.to_array(t)
                for t in onnx.load(path).graph.initializer
                if t.name == name
            )
            for path in (file, plain)
        )
        assert levels.dtype == np.int8
        assert (levels.astype(int) + 128 == others).all()


def test_a_model_for_another_target_is_refused_by_node(tmp_path: Path) -> None:
    file = tmp_path / "model.onnx"
    for target, scheme, message in (
        ("openvino", QuantScheme(8, 8), r"'stem\.0' has 8 bits and a zero point"),
        ("tensorrt", QuantScheme(4, 8), r"QuantizeLinear '\S+\.x\.quantize': UINT8 activation"),
        ("qnn", QuantScheme.for_target("tensorrt"), "INT8 activation; qnn takes UINT8"),
        ("xnnpack", QuantScheme(4, 8), "does not read ONNX files"),
    ):
        with pytest.raises(ConversionError, match=message):
            ghnq_quant.export_onnx(quantized(Residual(), scheme), file, images(1), target=target)
    model = residual("openvino", (8, 8))
    with pytest.raises(ConversionError, match="openvino reads format 'qdq', not 'qonnx'"):
        ghnq_quant.export_onnx(model, file, images(1), target="openvino", format="qonnx")
    assert not file.exists()


def test_a_layer_that_reads_a_float_concatenation_is_told(tmp_path: Path) -> None:
    class Concatenation(Residual):
        def forward(self, x: Tensor) -> Tensor:
            x = self.conv(torch.cat([self.stem(x)[:, :4]] * 2, 1))
            return self.head(self.pool(x).flatten(1))

    scheme = replace(QuantScheme.for_target("tensorrt"), concatenations="float")
    model = quantized(Concatenation(), scheme)
    with pytest.warns(GhnqWarning, match=r"1 layers run in float.*Conv \S+: .*input"):
        ghnq_quant.export_onnx(model, tmp_path / "a.onnx", images(1), target="tensorrt")


def test_check_export_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def ghnq(*arguments: str) -> int:
        monkeypatch.setattr("sys.argv", ["ghnq", "check-export", *arguments])
        with pytest.raises(SystemExit) as exit:
            cli.main()
        return int(exit.value.code or 0)

    monkeypatch.chdir(tmp_path)
    ghnq_quant.export_onnx(residual("onnxruntime", (8, 8)), "a.onnx", images(1))
    assert ghnq("a.onnx", "--target", "onnxruntime") == 0
    assert "executes all of a.onnx on integers" in capsys.readouterr().out
    assert ghnq("a.onnx", "--target", "tensorrt") == 1
    assert "UINT8 activation; tensorrt takes INT8" in capsys.readouterr().out
    assert ghnq("none.onnx", "--target", "tensorrt") == 1
    assert "none.onnx cannot be read" in capsys.readouterr().err
