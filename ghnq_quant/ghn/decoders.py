"""From a node's features to its parameter at the size needed (GHN-2, section 3 and appendix C)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import groupby

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ghnq_quant.ghn.cpu_decoder import cpu_decode
from ghnq_quant.ghn.grid import Grid, KernelCut, Shape4d
from ghnq_quant.ghn.layers import takes_fast_path, weight_and_bias


class ConvDecoder(nn.Module):
    """Decodes weights of up to ``max_shape`` = (c_out, c_in, kh, kw).

    Args:
        linear: use linear layers at each position of the grid, as in GHN-3, instead of GHN-2's 1×1
            convolutions. They compute the same, but their weights have two dimensions instead of
            four.
    """

    def __init__(
        self,
        hid: int,
        max_shape: Shape4d,
        num_classes: int,
        kernel_cut: KernelCut,
        linear: bool = False,
    ) -> None:
        super().__init__()
        self.kernel_cut = kernel_cut
        self.grid = Grid(max_shape, kernel_cut)
        c_out, c_in, kh, kw = max_shape
        self.fc = nn.Sequential(nn.Linear(hid, 4 * hid * kh * kw), nn.ReLU())
        layer: Callable[[int, int], nn.Module] = (
            nn.Linear if linear else partial(nn.Conv2d, kernel_size=1)
        )
        self.conv = nn.Sequential(layer(4 * hid, 8 * hid), nn.ReLU(), layer(8 * hid, c_out * c_in))
        self.class_layer_predictor = nn.Sequential(nn.ReLU(), layer(c_out, num_classes))

    def forward(self, x: Tensor, shapes: Sequence[Shape4d], scale: Tensor) -> tuple[Tensor, ...]:
        """Decode the weights of some nodes.

        Args:
            x: (n, C) features.
            shapes: shape of each node's weight, up to ``max_shape``, sorted by kernel size and then by
                channels, as by :func:`decoding_order`.
            scale: (n,) factor on each node's weight.

        Returns:
            tensors (nodes, c_out, c_in, kh, kw) of consecutive nodes with equal shapes, together one
            item per node.
        """
        if takes_fast_path(x):
            layers = (self.fc[0], self.conv[0], self.conv[2])
            parameters = [weight_and_bias(layer) for layer in layers]
            return cpu_decode(x, shapes, scale, self.grid, parameters)
        weights, start = [], 0
        for shape, same in groupby(shapes):
            end = start + len(list(same))
            decoded = self.decode(x[start:end], shape)
            weights.append(decoded * scale[start:end].view(-1, 1, 1, 1, 1))
            start = end
        return tuple(weights)

    def decode(self, x: Tensor, shape: Shape4d) -> Tensor:
        """(n, C) features to (n, *shape) weights: the plain form, for any device.

        The last layer, by far the largest, computes only the rows that the shape needs.
        """
        c_out, c_in, kh, kw = shape
        max_out, max_in, max_kh, max_kw = self.grid.max_shape
        rows, columns = self.grid.window((kh, kw))
        y = self.fc(x).view(len(x), -1, max_kh, max_kw)[:, :, rows, columns]
        w, b = weight_and_bias(self.conv[0])
        y = F.conv2d(y, w.view(*w.shape[:2], 1, 1), b).relu()
        w, b = weight_and_bias(self.conv[2])
        w = w.view(max_out, max_in, -1)[:c_out, :c_in]
        b = b.view(max_out, max_in)[:c_out, :c_in]
        return torch.einsum("oiu,nuhw->noihw", w, y) + b[:, :, None, None]

    def classifier(self, w: Tensor) -> Tensor:
        """(max c_out, c_in, 1, 1) decoded weight to a classifier's (num_classes, c_in)."""
        head, b = weight_and_bias(self.class_layer_predictor[1])
        return torch.matmul(head.flatten(1), w.flatten(1).relu()) + b[:, None]


def decoding_order(shape: Shape4d) -> tuple[int, ...]:
    """Sort key that groups weights by kernel size, and within it by shape."""
    c_out, c_in, kh, kw = shape
    return kh, kw, c_out, c_in
