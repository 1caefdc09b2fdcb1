"""Which of torch's integer engines computes exactly on this machine."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import torch

from ghnq_quant.errors import ConversionError

#: In the order of speed; ``onednn`` takes no asymmetric weights.
_ENGINES = ("x86", "fbgemm", "qnnpack")


@cache
def exact_engine() -> str:
    """The first engine of torch whose 8-bit convolution is exact on this CPU.

    On x86 without VNNI instructions, ``x86`` and ``fbgemm`` add pairs of products in 16 bits, which
    saturate with weights of 8 bits; with them, their depthwise kernels still do where the weight is
    asymmetric. ``qnnpack`` does not. A probe of extreme values decides.

    Raises:
        ConversionError: none is.
    """
    for engine in _ENGINES:
        if engine in torch.backends.quantized.supported_engines and _is_exact(engine):
            return engine
    raise ConversionError(
        "torch has no exact engine for 8-bit convolutions on this machine (found "
        f"{', '.join(torch.backends.quantized.supported_engines)}): use convert(model, "
        "integer=False)"
    )


@contextmanager
def engine(name: str) -> Iterator[None]:
    """Pack weights for this engine inside the block."""
    before = torch.backends.quantized.engine
    torch.backends.quantized.engine = name
    try:
        yield
    finally:
        torch.backends.quantized.engine = before


def quantized_tensor(levels: torch.Tensor, scale: float, zero_point: int) -> torch.Tensor:
    """A tensor of torch's quint8 or qint8 from uint8 or int8 levels."""
    return torch._make_per_tensor_quantized_tensor(levels, scale, zero_point)


def _is_exact(name: str) -> bool:
    """Whether products of 255 and the extreme weights, summed up by dense, depthwise and 1×1
    convolutions and a linear layer, come out."""
    return all(_sum_is_exact(name, weight, shape) for weight in (127, -128) for shape in _PROBES)


#: (groups, kernel size): weights are (16, 16 / groups, k, k); kernel size 0 is a linear layer.
#: Images are padded by k // 2: other depthwise convolutions take another kernel.
_PROBES = ((1, 3), (16, 3), (16, 5), (1, 1), (1, 0))
#: Engines have kernels of their own for weights whose zero point is 0.
_WEIGHT_ZERO_POINT = 1


def _sum_is_exact(name: str, weight: int, shape: tuple[int, int]) -> bool:
    groups, kernel = shape
    size = (16, 16 // groups, kernel, kernel) if kernel else (16, 16)
    w = quantized_tensor(torch.full(size, weight, dtype=torch.int8), 1.0, _WEIGHT_ZERO_POINT)
    image = (1, 16, kernel, kernel) if kernel else (1, 16)
    x = quantized_tensor(torch.full(image, 255, dtype=torch.uint8), 1.0, 0)
    total = 255 * (weight - _WEIGHT_ZERO_POINT) * w[0].numel()
    scale = abs(total) / 100  # lands 100 levels from the zero point
    with engine(name):
        if kernel:
            conv = torch.ops.quantized.conv2d_prepack(
                w, torch.zeros(16), [1, 1], [kernel // 2] * 2, [1, 1], groups
            )
            y = torch.ops.quantized.conv2d.new(x, conv, scale, 128)
            y = y[..., kernel // 2, kernel // 2]  # where the whole kernel lies on the image
        else:
            linear = torch.ops.quantized.linear_prepack(w, torch.zeros(16))
            y = torch.ops.quantized.linear(x, linear, scale, 128)
    return bool((y.int_repr() == 128 + round(total / scale)).all())
