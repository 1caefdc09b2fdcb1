"""The decoder on the CPU, with its gradient written by hand.

Autograd would allocate a gradient as large as the decoder's large parameters for every shape that
reads a part of them; here each parameter has one. Layers compute only the rows that are read.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain, groupby, product
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from ghnq_quant.ghn.grid import Grid, Shape4d

#: Weights with more elements are not copied as a whole.
LARGE = 1 << 21


def cpu_decode(
    x: Tensor,
    shapes: Sequence[Shape4d],
    scale: Tensor,
    grid: Grid,
    layers: Sequence[tuple[Tensor, Tensor]],
) -> tuple[Tensor, ...]:
    """Compute the same as ``ConvDecoder``, from weights and biases of its three ``layers``."""
    parameters = [p for layer in layers for p in layer]
    differentiable = torch.is_grad_enabled()
    settings = (tuple(shapes), grid, differentiable)
    weights: tuple[Tensor, ...] = _Decode.apply(x, scale, *settings, *parameters)
    return weights


class _Run(NamedTuple):
    """Consecutive nodes with the same kernel size and, in ``parts``, with the same shape."""

    rows: slice
    kernel: tuple[int, int]
    parts: list[tuple[slice, int, int]]


def _runs(shapes: tuple[Shape4d, ...]) -> Iterator[_Run]:
    start = 0
    for kernel, of_kernel in groupby(shapes, lambda shape: shape[2:]):
        parts, end = [], start
        for (c_out, c_in, _, _), same in groupby(of_kernel):
            count = len(list(same))
            parts.append((slice(end - start, end - start + count), c_out, c_in))
            end += count
        yield _Run(slice(start, end), (kernel[0], kernel[1]), parts)
        start = end


class _Window:
    """The parts of the decoder's layers that one kernel size needs; of parameters or gradients.

    A node has a row for each of the k = kh · kw positions of its kernel.
    """

    def __init__(self, parameters: Sequence[Tensor], grid: Grid, kernel: tuple[int, int]):
        w1, b1, self.w2, self.b2, w3, b3 = parameters
        max_out, max_in, max_kh, max_kw = grid.max_shape
        rows, columns = grid.window(kernel)
        #: (units, kh, kw, C) and (units, kh, kw), views
        self.w1 = w1.view(-1, max_kh, max_kw, w1.shape[1])[:, rows, columns]
        self.b1 = b1.view(-1, max_kh, max_kw)[:, rows, columns]
        self.w2 = self.w2.flatten(1)
        #: (max c_out, max c_in, units) and (max c_out, max c_in)
        self.w3, self.b3 = w3.view(max_out, max_in, -1), b3.view(max_out, max_in)

    def first(self) -> tuple[Tensor, Tensor]:
        """(k · units, C) weight and (k · units,) bias."""
        return self.w1.permute(1, 2, 0, 3).flatten(0, 2), self.b1.permute(1, 2, 0).flatten()

    def apply_first(self, x: Tensor) -> Tensor:
        """(n, C) to (n, k · units). A large weight is applied one kernel position at a time, because
        the other way copies it."""
        if self.w1.numel() <= LARGE:
            return F.linear(x, *self.first())
        places = product(*map(range, self.b1.shape[1:]))
        return torch.cat([F.linear(x, self.w1[:, i, j], self.b1[:, i, j]) for i, j in places], 1)


class _Decode(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        scale: Tensor,
        shapes: tuple[Shape4d, ...],
        grid: Grid,
        differentiable: bool,
        *parameters: Tensor,
    ) -> tuple[Tensor, ...]:
        # allocated before temporaries, whose memory would leave holes between them
        results = list(_empty_weights(x, shapes, one_each=not differentiable))
        of_parts, saved = iter(results), []
        for rows, kernel, parts in _runs(shapes):
            layers = _Window(parameters, grid, kernel)
            k = kernel[0] * kernel[1]
            y1 = layers.apply_first(x[rows]).relu_().view((rows.stop - rows.start) * k, -1)
            y2 = F.linear(y1, layers.w2, layers.b2).relu_()
            if differentiable:
                saved += [y1, y2]
            for nodes, c_out, c_in in parts:
                y = y2[nodes.start * k : nodes.stop * k]
                w3, b3 = layers.w3[:c_out, :c_in], layers.b3[:c_out, :c_in]
                w = torch.baddbmm(b3.unsqueeze(1), y.expand(c_out, -1, -1), w3.transpose(1, 2))
                w = w.view(c_out, -1, *kernel, c_in).permute(1, 0, 4, 2, 3)
                factors = scale[rows][nodes].view(-1, 1, 1, 1, 1)
                same = next(of_parts)
                sizes = [len(result) for result in same]
                for result, *scaled in zip(same, w.split(sizes), factors.split(sizes), strict=True):
                    torch.mul(*scaled, out=result)
        if differentiable:
            ctx.save_for_backward(x, scale, *parameters, *saved)
        ctx.shapes, ctx.grid = shapes, grid
        return tuple(chain.from_iterable(results))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, scale, *rest = ctx.saved_tensors
        parameters, saved = rest[:6], iter(rest[6:])
        of_weights = iter(grads)
        d_x = torch.empty_like(x)
        d_parameters = [torch.zeros_like(p) for p in parameters]
        for rows, kernel, parts in _runs(ctx.shapes):
            layers = _Window(parameters, ctx.grid, kernel)
            d = _Window(d_parameters, ctx.grid, kernel)
            k = kernel[0] * kernel[1]
            y1, y2 = next(saved), next(saved)
            d_y2 = torch.empty_like(y2)
            for nodes, c_out, c_in in parts:
                at = slice(nodes.start * k, nodes.stop * k)
                d_w = next(of_weights).permute(1, 2, 0, 3, 4)
                d_w = _scaled(d_w, scale[rows][nodes].view(-1, 1, 1)).view(c_out, c_in, -1)
                d.w3[:c_out, :c_in].baddbmm_(d_w, y2[at].expand(c_out, -1, -1))
                d.b3[:c_out, :c_in] += d_w.sum(2)
                w3 = layers.w3[:c_out, :c_in].flatten(0, 1)
                torch.mm(d_w.flatten(0, 1).t(), w3, out=d_y2[at])
            d_y2.mul_(y2 > 0)
            d.w2.addmm_(d_y2.t(), y1)
            d.b2.add_(d_y2.sum(0))
            d_y1 = torch.mm(d_y2, layers.w2).mul_(y1 > 0).view(rows.stop - rows.start, -1)
            units = d.w1.shape[0]
            d.w1 += (d_y1.t() @ x[rows]).view(*kernel, units, -1).permute(2, 0, 1, 3)
            d.b1 += d_y1.sum(0).view(*kernel, units).permute(2, 0, 1)
            torch.mm(d_y1, layers.first()[0], out=d_x[rows])
        return d_x, None, None, None, None, *d_parameters


def _empty_weights(
    x: Tensor, shapes: Sequence[Shape4d], *, one_each: bool
) -> Iterator[list[Tensor]]:
    """For each run of equal shapes one tensor or, with ``one_each``, one per node, whose memory is
    freed once that node's is no longer used."""
    for shape, same in groupby(shapes):
        count = len(list(same))
        yield [x.new_empty((n, *shape)) for n in ([1] * count if one_each else [count])]


def _scaled(w: Tensor, scale: Tensor) -> Tensor:
    """The product in contiguous memory, in one pass; ``w * scale`` would keep the strides of ``w``."""
    return torch.mul(w, scale, out=w.new_empty(w.shape))
