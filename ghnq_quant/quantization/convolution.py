"""A convolution and its gradients with several weights over one input."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor


class Geometry(NamedTuple):
    """How a convolution moves over its input."""

    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int

    def output_size(self, size: Sequence[int], kernel: Sequence[int]) -> tuple[int, ...]:
        """(H', W') of an input (H, W)."""
        extents = zip(size, kernel, self.stride, self.padding, self.dilation, strict=True)
        return tuple((n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d in extents)


class Convolution(Protocol):
    """A convolution's input, ready for any weight of one shape."""

    def __call__(self, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """(N, C_out, H', W')"""

    def grad_weight(self, grad: Tensor) -> Tensor:
        """The gradient of the weight."""

    def grad_input(self, terms: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
        """The sum of the input's gradients through each (gradient, weight)."""


def convolution(x: Tensor, weight: Tensor, geometry: Geometry) -> Convolution:
    """The faster of two ways to convolve ``x`` (N, C_in, H, W) with weights of ``weight``'s shape.

    Where there are more output channels than output positions in the batch, as behind the last
    downsampling of a network on small images, a convolution's time on CPU is that of bringing the
    weight into its layout, which a matrix product over the input's patches does not do.

    Example:
        >>> x, weight = torch.ones(1, 2, 3, 3), torch.ones(4, 2, 3, 3)
        >>> convolution(x, weight, Geometry((1, 1), (0, 0), (1, 1), 1))(weight).flatten()
        tensor([18., 18., 18., 18.])
    """
    height, width = geometry.output_size(x.shape[2:], weight.shape[2:])
    few = len(x) * height * width <= len(weight)
    if few and geometry.groups == 1 and x.device.type == "cpu":
        return _OfPatches(x, weight.shape, geometry)
    return _Direct(x, weight.shape, geometry)


class _Direct:
    def __init__(self, x: Tensor, weight_shape: torch.Size, geometry: Geometry) -> None:
        self._x, self._weight_shape, self._geometry = x, weight_shape, geometry

    def __call__(self, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        return F.conv2d(self._x, weight, bias, *self._geometry)

    def grad_weight(self, grad: Tensor) -> Tensor:
        weight = grad.new_empty(1).expand(self._weight_shape)  # its shape alone is read
        if self._skips_pixels():
            # oneDNN's kernel writes beyond its memory here (seen in torch 2.13 with three channels)
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
        """Whether a 1×1 convolution of few channels reads a grid of the image's pixels alone."""
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


class _OfPatches:
    def __init__(self, x: Tensor, weight_shape: torch.Size, geometry: Geometry) -> None:
        self._weight_shape, self._input_size = weight_shape, x.shape[2:]
        self._output_size = geometry.output_size(x.shape[2:], weight_shape[2:])
        self._window = {
            "kernel_size": weight_shape[2:],
            "dilation": geometry.dilation,
            "padding": geometry.padding,
            "stride": geometry.stride,
        }
        patches = F.unfold(x, **self._window)  # (N, C_in · kh · kw, H' · W')
        self._batch = len(patches)
        self._patches = patches.transpose(1, 2).flatten(0, 1)

    def __call__(self, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        shape = (self._batch, len(weight), *self._output_size)
        y = torch.empty(
            shape, dtype=weight.dtype, device=weight.device, memory_format=torch.channels_last
        )
        rows = _rows(y)  # of a tensor of its own: a view must not leave an autograd function
        torch.mm(self._patches, weight.flatten(1).t(), out=rows)
        return y if bias is None else y.add_(bias.view(-1, 1, 1))

    def grad_weight(self, grad: Tensor) -> Tensor:
        return torch.mm(_rows(grad).t(), self._patches).view(self._weight_shape)

    def grad_input(self, terms: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
        rows = torch.zeros_like(self._patches)
        for grad, weight in terms:
            rows.addmm_(_rows(grad), weight.flatten(1))
        patches = rows.view(self._batch, -1, rows.shape[1]).transpose(1, 2)
        return F.fold(patches, self._input_size, **self._window)


def _rows(grad: Tensor) -> Tensor:
    """(N, C, H, W) to (N · H · W, C)."""
    return grad.permute(0, 2, 3, 1).flatten(0, 2)
