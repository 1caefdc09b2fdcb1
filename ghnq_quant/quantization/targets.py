"""What runtimes run on integers, one entry for each."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from ghnq_quant.errors import SchemeError
from ghnq_quant.quantization.quantizer import Quantizer

Format = Literal["qdq", "qonnx", "pt2e"]
_ANY = tuple(range(2, 9))


@dataclass(frozen=True)
class Target:
    """A runtime: the quantizers it has integer kernels for, and how its files are written.

    Attributes:
        name: the name that users type.
        format: a format of :func:`ghnq_quant.export_onnx`, or ``"pt2e"`` for the program of
            :func:`ghnq_quant.export_pte` instead of an ONNX file.
        weights, activations: the kind of quantizer, here with 8 bits.
        weight_bits, activation_bits: the bit widths that it runs on integers.
        source: the runtime's own page that says so.
        weight_types, activation_types: element types of the integers in an ONNX file.
        weight_zero_points, activation_zero_points: whether zero points other than 0 are supported.
        bias_types: element types of biases, the one to write first: ``"FLOAT"``, or ``"INT32"`` in
            steps of input scale · weight scale.
        integer_clip: whether integers may be clipped between QuantizeLinear and DequantizeLinear.
        drops_rounding: whether a convolution's quantizer does not round if an addition follows,
            unless something is between the two.
        joins_one_scale: whether what a concatenation joins must have the scale of the result.
        global_pooling: whether it reads GlobalAveragePool.
        channel_multiple: fast integer convolutions need a multiple of this many input channels.
    """

    name: str
    format: Format
    weights: Quantizer
    activations: Quantizer
    source: str
    weight_bits: tuple[int, ...] = _ANY
    activation_bits: tuple[int, ...] = _ANY
    weight_types: tuple[str, ...] = ("INT8",)
    activation_types: tuple[str, ...] = ("UINT8", "INT8")
    weight_zero_points: bool = False
    activation_zero_points: bool = True
    bias_types: tuple[str, ...] = ("FLOAT",)
    integer_clip: bool = False
    drops_rounding: bool = False
    joins_one_scale: bool = False
    global_pooling: bool = True
    channel_multiple: int = 1

    @property
    def biases(self) -> Literal["float", "int32"]:
        """How training simulates its biases, as in a scheme."""
        return "int32" if self.bias_types[0] == "INT32" else "float"

    def quantizers(self, bits: tuple[int, int]) -> tuple[Quantizer, Quantizer]:
        """(weights, activations) with these bit widths.

        Raises:
            SchemeError: the runtime has no integer kernels for them.
        """
        for what, own, known in (
            ("weights", bits[0], self.weight_bits),
            ("activations", bits[1], self.activation_bits),
        ):
            if own not in known:
                raise SchemeError(
                    f"{self.name} has no integer kernels for {what} of {own} bits, only for "
                    f"{', '.join(map(str, known))} ({self.source})"
                )
        return replace(self.weights, bits=bits[0]), replace(self.activations, bits=bits[1])


_PER_CHANNEL = Quantizer(8, symmetric=True, granularity="channel")
_PER_TENSOR = Quantizer(8, symmetric=True)
_AFFINE = Quantizer(8)

#: Used if no runtime is named: files that onnxruntime computes exactly on any CPU.
PLAIN = Target(
    "ONNX",
    "qdq",
    _AFFINE,
    _AFFINE,
    "https://onnx.ai/onnx/operators/onnx__QuantizeLinear.html",
    weight_types=("UINT4", "INT4", "UINT8", "INT8"),
    weight_zero_points=True,
    integer_clip=True,
)

TARGETS = {
    target.name: target
    for target in (
        Target(
            "onnxruntime",
            "qdq",
            _PER_CHANNEL,
            _AFFINE,
            "https://onnxruntime.ai/docs/performance/model-optimizations/quantization.html",
            weight_zero_points=True,
            bias_types=("INT32", "FLOAT"),
            integer_clip=True,
            channel_multiple=4,
        ),
        Target(
            "openvino",
            "qdq",
            _PER_CHANNEL,
            _AFFINE,
            "https://docs.openvino.ai/2024/documentation/openvino-ir-format/"
            "intermediate-representation-int8-inference.html",
            bias_types=("FLOAT", "INT32"),
            integer_clip=True,
            drops_rounding=True,
        ),
        Target(
            "tensorrt",
            "qdq",
            _PER_CHANNEL,
            Quantizer(8, symmetric=True, always_signed=True),
            "https://docs.nvidia.com/deeplearning/tensorrt/latest/inference-library/"
            "work-quantized-types.html",
            activation_types=("INT8",),
            activation_zero_points=False,
        ),
        Target(
            "xnnpack",
            "pt2e",
            _PER_CHANNEL,
            _AFFINE,
            "https://docs.pytorch.org/executorch/stable/backends/xnnpack/xnnpack-quantization.html",
            activation_bits=(8,),
            bias_types=("INT32",),
            joins_one_scale=True,
        ),
        Target(
            "qnn",
            "qdq",
            _PER_CHANNEL,
            _AFFINE,
            "https://onnxruntime.ai/docs/execution-providers/QNN-ExecutionProvider.html",
            activation_bits=(8,),
            activation_types=("UINT8",),
            bias_types=("INT32",),
            joins_one_scale=True,
        ),
        Target(
            "finn",
            "qonnx",
            _PER_TENSOR,
            _PER_TENSOR,
            "https://github.com/Xilinx/finn/tree/main/src/finn/transformation/qonnx",
            activation_bits=tuple(range(3, 8)),
            activation_zero_points=False,
        ),
        Target(
            "hls4ml",
            "qonnx",
            replace(_PER_TENSOR, power_of_two=True),
            replace(_PER_TENSOR, power_of_two=True),
            "https://fastmachinelearning.org/hls4ml/frontend/qonnx.html",
            activation_bits=tuple(range(3, 8)),
            activation_zero_points=False,
            global_pooling=False,
        ),
    )
}


def find_target(name: str) -> Target:
    """Look up a runtime by name.

    Raises:
        SchemeError: an unknown name.

    Example:
        >>> find_target("tensorrt").activation_types
        ('INT8',)
    """
    if name not in TARGETS:
        raise SchemeError(f"unknown target {name!r}; known are: {', '.join(TARGETS)}")
    return TARGETS[name]
