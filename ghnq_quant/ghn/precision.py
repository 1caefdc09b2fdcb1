"""How the hypernetwork is told the precision of a network: at its input, and before it decodes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

#: (weight, activation) bits of a network that is not quantized.
FLOAT = (32, 32)
#: Bit widths with a row in the tables; 32 is float.
_BITS = (2, 3, 4, 5, 6, 7, 8, 32)


class PrecisionTable(nn.Embedding):
    """A row for each weight bit width, then one for each activation bit width.

    Zeros at first, so a hypernetwork predicts the same until they are trained.
    """

    def __init__(self, width: int) -> None:
        super().__init__(2 * len(_BITS), width)
        nn.init.zeros_(self.weight)

    def of(self, bits: Sequence[tuple[int, int]]) -> Tensor:
        """(networks, width): the sum of the two rows of each (weight, activation) pair."""
        rows = [(_BITS.index(w), len(_BITS) + _BITS.index(a)) for w, a in bits]
        summed: Tensor = self(torch.tensor(rows, device=self.weight.device)).sum(dim=1)
        return summed


def add_offsets(x: Tensor, offsets: Tensor, sizes: Sequence[int]) -> Tensor:
    """Add a network's offset (C,) to the features (N, C) of all its nodes.

    Args:
        x: features of some networks' nodes, one network after the other.
        offsets: (networks, C).
        sizes: number of nodes of each network.
    """
    return x + offsets.repeat_interleave(torch.tensor(sizes, device=x.device), dim=0)


def add_maps(x: Tensor, maps: Tensor, sizes: Sequence[int]) -> Tensor:
    """Add an affine map of each node's features to them, with the coefficients of its network.

    Args:
        x: as for :func:`add_offsets`.
        maps: (networks, C + C²): the offset, then the matrix by rows.
        sizes: as for :func:`add_offsets`.
    """
    width = x.shape[1]
    offsets, matrices = maps[:, :width], maps[:, width:].view(-1, width, width)
    mapped = [part @ m for part, m in zip(x.split(list(sizes)), matrices, strict=True)]
    return add_offsets(x + torch.cat(mapped), offsets, sizes)
