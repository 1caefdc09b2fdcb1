"""A convolution and its gradients with several weights over one input."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import product
from typing import Any, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

#: Pixels of a tensor (N, H, W, C).
Place = tuple[slice, slice, slice]


class Geometry(NamedTuple):
    """How a convolution moves over its input."""

    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int

    def output_size(self, size: Sequence[int], kernel: Sequence[int]) -> tuple[int, ...]:
        """(H', W') for an input (H, W)."""
        extents = zip(size, kernel, self.stride, self.padding, self.dilation, strict=True)
        return tuple((n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d in extents)


class Convolution(Protocol):
    """A convolution's input, prepared for any weight of one shape."""

    def arranged(self, weight: Tensor) -> Tensor:
        """The weight in the layout that is read; any other is converted on each call."""

    def __call__(self, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """(N, C_out, H', W')"""

    def grad_weight(self, grad: Tensor) -> Tensor:
        """The gradient of the weight."""

    def grad_input(self, terms: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
        """The input's gradient, summed over pairs (gradient, weight)."""


def convolution(x: Tensor, weight: Tensor, geometry: Geometry) -> Convolution:
    """The faster of two ways to convolve ``x`` (N, C_in, H, W) with weights of ``weight``'s shape.

    If there are at least as many output channels as output positions in the batch, as after the last
    downsampling of a network on small images, each tap of the kernel is a matrix product with the
    pixels it meets. Most of what other algorithms multiply there is padding: five ninths for a 3×3
    kernel on a 2×2 map.

    Example:
        >>> x, weight = torch.ones(1, 2, 3, 3), torch.ones(4, 2, 3, 3)
        >>> convolution(x, weight, Geometry((1, 1), (0, 0), (1, 1), 1))(weight).flatten()
        tensor([18., 18., 18., 18.])
    """
    height, width = geometry.output_size(x.shape[2:], weight.shape[2:])
    few = len(x) * height * width <= len(weight)
    exact = weight.dtype.itemsize >= 4  # enough for sums rounded after each tap
    if few and exact and geometry.groups == 1 and x.device.type == "cpu":
        return _ByTaps(x, weight.shape, geometry)
    return _Direct(x, weight.shape, geometry)


def convolve(x: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry) -> Tensor:
    """:func:`convolution` with gradients; PyTorch's own under autocast and in a compiler."""
    if torch.compiler.is_compiling() or torch.is_autocast_enabled(x.device.type):
        return F.conv2d(x, weight, bias, *geometry)
    y: Tensor = _Convolve.apply(x, weight, bias, geometry)
    return y


class _Convolve(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry
    ) -> Tensor:
        run = convolution(x, weight, geometry)
        weight = run.arranged(weight)
        ctx.save_for_backward(x, weight)
        ctx.geometry = geometry
        return run(weight, bias)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        of_x, of_weight, of_bias, _ = ctx.needs_input_grad
        run = convolution(x, weight, ctx.geometry)
        grad_x = run.grad_input([(grad, weight)]) if of_x else None
        grad_weight = run.grad_weight(grad) if of_weight else None
        return grad_x, grad_weight, grad.sum((0, 2, 3)) if of_bias else None, None


class _Direct:
    def __init__(self, x: Tensor, weight_shape: torch.Size, geometry: Geometry) -> None:
        self._x, self._weight_shape, self._geometry = x, weight_shape, geometry

    def arranged(self, weight: Tensor) -> Tensor:
        return weight

    def __call__(self, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        return F.conv2d(self._x, weight, bias, *self._geometry)

    def grad_weight(self, grad: Tensor) -> Tensor:
        weight = grad.new_empty(1).expand(self._weight_shape)  # only its shape is read
        if self._skips_pixels():
            # oneDNN's kernel writes out of bounds here (seen in torch 2.13 with three channels)
            height, width = self._geometry.stride
            read = _Direct(
                self._x[:, :, ::height, ::width],
                self._weight_shape,
                self._geometry._replace(stride=(1, 1)),
            )
            return read.grad_weight(grad)
        return self._backward(grad, weight, (False, True, False))[1]

    def grad_input(self, terms: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
        total, *rest = (self._backward(*term, (True, False, False))[0] for term in terms)
        for other in rest:
            total += other
        return total

    def _skips_pixels(self) -> bool:
        """Whether this is a strided 1×1 convolution of few channels, which skips pixels."""
        few = self._x.device.type == "cpu" and self._x.shape[1] < 8
        unpadded = tuple(self._geometry.padding) == (0, 0)
        pointwise = tuple(self._weight_shape[2:]) == (1, 1)
        return few and unpadded and pointwise and max(self._geometry.stride) > 1

    def _backward(
        self, grad: Tensor, weight: Tensor, wanted: tuple[bool, bool, bool]
    ) -> tuple[Tensor, Tensor, Tensor]:
        stride, padding, dilation, groups = self._geometry
        gradients: tuple[Tensor, Tensor, Tensor] = torch.ops.aten.convolution_backward(
            grad, self._x, weight, None, stride, padding, dilation, False, (0, 0), groups, wanted
        )
        return gradients


class _ByTaps:
    def __init__(self, x: Tensor, weight_shape: torch.Size, geometry: Geometry) -> None:
        self._x = x.contiguous(memory_format=torch.channels_last)
        self._weight_shape = weight_shape
        size, kernel = x.shape[2:], weight_shape[2:]
        self._output_size = geometry.output_size(size, kernel)
        rows, columns = map(_overlaps, size, self._output_size, kernel, *geometry[:3])
        #: taps that meet pixels: their index in the weight, the pixels read, the pixels written
        self._taps = [
            ((..., i, j), (slice(None), read_i, read_j), (slice(None), written_i, written_j))
            for (i, read_i, written_i), (j, read_j, written_j) in product(rows, columns)
        ]

    def arranged(self, weight: Tensor) -> Tensor:
        return weight.contiguous(memory_format=torch.channels_last)

    def __call__(self, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        weight = self.arranged(weight)
        y = self._zeros(len(self._x), len(weight), *self._output_size)
        if bias is not None:
            y += bias.view(-1, 1, 1)
        for tap, read, written in self._taps:
            _add(y, written, _rows(self._x, read) @ weight[tap].t())
        return y

    def grad_weight(self, grad: Tensor) -> Tensor:
        total = self._zeros(*self._weight_shape)
        for tap, read, written in self._taps:
            torch.mm(_rows(grad, written).t(), _rows(self._x, read), out=total[tap])
        return total

    def grad_input(self, terms: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
        total = self._zeros(*self._x.shape)
        for grad, weight in terms:
            weight = self.arranged(weight)
            for tap, read, written in self._taps:
                _add(total, read, _rows(grad, written) @ weight[tap])
        return total

    def _zeros(self, *shape: int) -> Tensor:
        x = self._x
        empty = torch.empty(
            shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last
        )
        return empty.zero_()


def _overlaps(
    size: int, output: int, kernel: int, stride: int, padding: int, dilation: int
) -> Iterator[tuple[int, slice, slice]]:
    """Along one dimension, the taps that meet more than padding, each with the input positions that
    it reads and the output positions that it adds to."""
    for tap in range(kernel):
        offset = tap * dilation - padding
        first = max(0, -(offset // stride))
        last = min(output - 1, (size - 1 - offset) // stride)
        if first <= last:
            read = slice(first * stride + offset, last * stride + offset + 1, stride)
            yield tap, read, slice(first, last + 1)


def _rows(x: Tensor, place: Place) -> Tensor:
    """Pixels of x (N, C, H, W) as (n, C): matrix products of more dimensions are slow."""
    return x.permute(0, 2, 3, 1)[place].flatten(0, 2)


def _add(x: Tensor, place: Place, rows: Tensor) -> None:
    pixels = x.permute(0, 2, 3, 1)[place]
    pixels += rows.view(pixels.shape)
