"""From a node's features to its parameter at the size needed (GHN-2, section 3 and appendix C)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ghnq_quant.ghn.message_passing import weight_and_bias

Shape4d = tuple[int, int, int, int]


class ConvDecoder(nn.Module):
    """Decodes weights of up to ``max_shape`` = (c_out, c_in, kh, kw).

    Only the rows of its layers that the wanted shape needs are computed.
    """

    def __init__(self, hid: int, max_shape: Shape4d, num_classes: int) -> None:
        super().__init__()
        self.max_shape = max_shape
        c_out, c_in, kh, kw = max_shape
        self.fc = nn.Sequential(nn.Linear(hid, 4 * hid * kh * kw), nn.ReLU())
        self.conv = nn.Sequential(
            nn.Conv2d(4 * hid, 8 * hid, 1), nn.ReLU(), nn.Conv2d(8 * hid, c_out * c_in, 1)
        )
        self.class_layer_predictor = nn.Sequential(nn.ReLU(), nn.Conv2d(c_out, num_classes, 1))

    def forward(self, x: Tensor, shape: Shape4d) -> Tensor:
        """(n, C) features to (n, c_out, c_in, kh, kw) weights of ``shape`` up to ``max_shape``."""
        n = len(x)
        c_out, c_in, kh, kw = shape
        max_out, max_in, max_kh, max_kw = self.max_shape
        # window first, so that the rows after the first layer are n·kh·kw
        w, b = weight_and_bias(self.fc[0])
        w = w.view(-1, max_kh, max_kw, x.shape[1])[:, :kh, :kw]
        b = b.view(-1, max_kh, max_kw)[:, :kh, :kw]
        y = F.linear(x, w.permute(1, 2, 0, 3).flatten(0, 2), b.permute(1, 2, 0).flatten())
        y = F.relu(y).view(n * kh * kw, -1)
        w, b = weight_and_bias(self.conv[0])
        y = F.relu(F.linear(y, w.flatten(1), b))
        w, b = weight_and_bias(self.conv[2])
        w = w.view(max_out, max_in, -1)[:c_out, :c_in].flatten(0, 1)
        b = b.view(max_out, max_in)[:c_out, :c_in].flatten()
        y = F.linear(y, w, b)
        return y.view(n, kh, kw, c_out, c_in).permute(0, 3, 4, 1, 2)

    def classifier(self, x: Tensor, c_in: int) -> Tensor:
        """(n, C) features to (n, num_classes, c_in) weights of classification layers."""
        w = self(x, (self.max_shape[0], c_in, 1, 1)).flatten(2)
        head, b = weight_and_bias(self.class_layer_predictor[1])
        return torch.matmul(head.flatten(1), w.relu()) + b[:, None]
