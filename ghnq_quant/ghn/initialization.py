"""Initialization of a new hypernetwork before training.

It differs from PyTorch's in three ways. Embeddings are small: with a standard deviation of one they
outweigh the messages between nodes. Embeddings of channel counts are smooth, because most counts
occur in few networks and learn from their neighbors. The decoders' first outputs are small and not
the same for all nodes: large biases would have to be unlearned first.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

#: Standard deviation of the noise on rows of channel counts, relative to that of other embeddings.
NOISE = 0.1
#: Weights of the decoders' last layers, relative to PyTorch's.
LAST_LAYER = 0.2
#: Half periods of the slowest wave in an octave, and how many times faster the fastest one is.
SLOWEST, FASTEST = 0.15, 8.0


@torch.no_grad()
def initialize_embedding(embedding: nn.Embedding, hid: int) -> None:
    """Normal with a standard deviation of C^-½: of unit length if a row has all C elements."""
    embedding.weight.normal_(0, hid**-0.5)


@torch.no_grad()
def initialize_channels(embedding: nn.Embedding, counts: Sequence[int], hid: int) -> None:
    """As large as other embeddings, but smooth in log₂ of the channel count, with some noise.

    Args:
        counts: channel counts of the rows in order, without the last row, for nodes without a shape;
            that one starts like the row of one channel, with its own noise.
    """
    waves = smooth_rows([*counts, 1], embedding.embedding_dim) * (2 / hid) ** 0.5
    embedding.weight.normal_(0, NOISE * hid**-0.5).add_(waves)


def smooth_rows(counts: Sequence[int], width: int) -> Tensor:
    """(counts, width) sines, then cosines, of log₂ of each count at frequencies of equal ratios."""
    octave = torch.tensor(counts, dtype=torch.float32).log2()
    frequency = SLOWEST * math.pi * FASTEST ** torch.linspace(0, 1, (width + 1) // 2)
    angle = octave[:, None] * frequency
    return torch.cat((angle.sin(), angle.cos()), 1)[:, :width]


@torch.no_grad()
def initialize_last_layers(layers: Iterable[nn.Module]) -> None:
    """Weights a fifth of PyTorch's, zero biases."""
    for layer in layers:
        assert isinstance(layer, (nn.Linear, nn.Conv2d))
        assert layer.bias is not None
        layer.weight.mul_(LAST_LAYER)
        layer.bias.zero_()
