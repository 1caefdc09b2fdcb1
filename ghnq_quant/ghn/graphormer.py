"""Attention between all nodes of a network's graph, biased by their distances (GHN-3, section 3).

A transformer encoder with pre-norm layers (Knyazev et al., "Can We Scale Transformers to Predict
Parameters of Diverse ImageNet Models?", 2023; Ying et al., "Graphormer", 2021). It sees the graph
through three embeddings of each node's place and one bias for each pair of nodes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from ghnq_quant.capture import ArchGraph
from ghnq_quant.ghn.per_graph import once_per_graph

#: Largest degree, and largest distance from the input, with its own row.
MAX_DEGREE, MAX_DISTANCE = 100, 1000
#: Rows of the table of edge lengths. The first two are never read, the third means no path.
EDGE_ROWS, NO_PATH = 257, 2
#: The longest path with a row in the table.
MAX_VIRTUAL_EDGES = EDGE_ROWS - NO_PATH - 1


@dataclass(frozen=True)
class Places:
    """The place of each node in a graph.

    Attributes:
        in_degree, out_degree, distance: (N,) number of edges to and from each node, and length of
            the shortest path to it from the input, 0 if there is none.
        pairs: (N, N) rows of :meth:`PathAttention.path_bias`.
    """

    in_degree: Tensor
    out_degree: Tensor
    distance: Tensor
    pairs: Tensor

    def to(self, device: torch.device) -> Places:
        """The same on another device."""
        tensors = (self.in_degree, self.out_degree, self.distance, self.pairs)
        return Places(*(t.to(device) for t in tensors))


@once_per_graph
def find_places(graph: ArchGraph, virtual_edges: int) -> Places:
    """Degrees, distances and pairs of a graph; paths count up to a length of ``virtual_edges``."""
    paths = graph.shortest_paths(virtual_edges)
    length = np.zeros((len(graph), len(graph)), dtype=np.int16)
    length[paths.source, paths.target] = paths.length
    edges = length == 1
    # the graph is acyclic, so no two nodes have paths both ways
    pairs = length + np.where(length.T > 0, length.T + virtual_edges, 0).astype(np.int16)
    return Places(
        torch.from_numpy(edges.sum(0).clip(max=MAX_DEGREE)),
        torch.from_numpy(edges.sum(1).clip(max=MAX_DEGREE)),
        torch.from_numpy(length[0].clip(max=MAX_DISTANCE).astype(np.int64)),
        torch.from_numpy(pairs),
    )


class Graphormer(nn.ModuleList):
    """Transformer layers; the first one also holds the embeddings of places.

    Args:
        hid: size C of the node features.
        heads: H of each layer's attention; a divisor of C.
        layers: how many there are.
    """

    def __init__(self, hid: int, heads: int, layers: int) -> None:
        first = FirstLayer(hid, heads)
        super().__init__([first, *(Layer(Attention(hid, heads)) for _ in range(layers - 1))])

    def forward(self, x: Tensor, graphs: Sequence[ArchGraph], virtual_edges: int) -> Tensor:
        """(N, C) features of a batch's nodes to their updated (N, C) features.

        Args:
            graphs: N nodes in total, concatenated; attention stays within each graph.
            virtual_edges: longest shortest path that differs from no path.
        """
        places = [find_places(graph, virtual_edges).to(x.device) for graph in graphs]
        first = self[0]
        assert isinstance(first, FirstLayer)
        x = x + torch.cat([first.embed_places(p) for p in places])
        by_row = first.attn.path_bias(virtual_edges)
        biases = [by_row[p.pairs.long()].permute(2, 0, 1) for p in places]
        for layer in self:
            x = layer(x, biases)
        return x


class Layer(nn.Module):
    """Attention, then two linear layers per node, both with a residual connection."""

    def __init__(self, attn: Attention) -> None:
        super().__init__()
        self.ln1 = nn.LayerNorm(attn.hid)
        self.attn = attn
        self.ln2 = nn.LayerNorm(attn.hid)
        self.ff = FeedForward(attn.hid)

    def forward(self, x: Tensor, biases: Sequence[Tensor]) -> Tensor:
        """(N, C) features of the graphs' nodes to new ones; ``biases`` as in :class:`Attention`."""
        x = x + self.attn(self.ln1(x), biases)
        return x + self.ff(self.ln2(x))


class FirstLayer(Layer):
    """A layer that also embeds the places of nodes and of pairs of nodes."""

    attn: PathAttention

    def __init__(self, hid: int, heads: int) -> None:
        super().__init__(PathAttention(hid, heads))
        self.centrality_embed_in = nn.Embedding(MAX_DEGREE + 1, hid)
        self.centrality_embed_out = nn.Embedding(MAX_DEGREE + 1, hid)
        self.input_dist_embed = nn.Embedding(MAX_DISTANCE + 1, hid)

    def embed_places(self, places: Places) -> Tensor:
        """(N, C) of a graph's nodes."""
        degrees = self.centrality_embed_in(places.in_degree) + self.centrality_embed_out(
            places.out_degree
        )
        return degrees + self.input_dist_embed(places.distance)


class Attention(nn.Module):
    """Multi-head attention among the nodes of each graph."""

    def __init__(self, hid: int, heads: int) -> None:
        super().__init__()
        self.hid = hid
        self.heads = heads
        self.to_qkv = nn.Linear(hid, 3 * hid, bias=False)
        self.to_out = nn.Sequential(nn.Linear(hid, hid))

    def forward(self, x: Tensor, biases: Sequence[Tensor]) -> Tensor:
        """(N, C) features of all nodes to the features that each attends to.

        Args:
            biases: (H, n, n) for each graph of n nodes, added to the attention logits of node i (row)
                for node j (column).
        """
        qkv = self.to_qkv(x).view(len(x), 3, self.heads, -1)
        sizes = [bias.shape[1] for bias in biases]
        attended = [
            self._attend(own, bias) for own, bias in zip(qkv.split(sizes), biases, strict=True)
        ]
        return self.to_out(torch.cat(attended))

    def _attend(self, qkv: Tensor, bias: Tensor) -> Tensor:
        """(n, 3, H, C / H) queries, keys and values of one graph to (n, C)."""
        q, k, v = qkv.permute(1, 2, 0, 3)
        logits = q @ k.transpose(1, 2)
        logits *= q.shape[2] ** -0.5
        logits += bias  # in place, because (H, n, n) takes much memory
        return (logits.softmax(dim=2) @ v).transpose(0, 1).flatten(1)


class PathAttention(Attention):
    """Attention that also computes the biases of all layers."""

    def __init__(self, hid: int, heads: int) -> None:
        super().__init__(hid, heads)
        self.edge_embed = EdgeEmbedding(hid)
        self.proj_e = nn.Sequential(nn.Linear(2 * hid, hid), nn.ReLU(), nn.Linear(hid, heads))

    def path_bias(self, virtual_edges: int) -> Tensor:
        """(1 + 2 · virtual_edges, H) biases, one row for each kind of pair of nodes (i, j).

        The first row is for pairs without a path between them; then come paths from i to j, and
        paths from j to i, of each length from 1.
        """
        steps = torch.arange(1, virtual_edges + 1, device=self.to_qkv.weight.device)
        none = torch.zeros_like(steps)
        there = torch.cat((none[:1], steps, none))
        back = torch.cat((none[:1], none, steps))
        lengths = torch.stack((there, back), dim=1)
        return self.proj_e(self.edge_embed(lengths).flatten(1))


class EdgeEmbedding(nn.Module):
    """Embeds the length of a path."""

    def __init__(self, hid: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(EDGE_ROWS, hid)

    def forward(self, lengths: Tensor) -> Tensor:
        """(…) lengths, 0 for no path, to (…, C)."""
        return self.embed(lengths + NO_PATH)


class FeedForward(nn.Module):
    """Linear–GELU–Linear of four times the width; the third module is dropout elsewhere."""

    def __init__(self, hid: int) -> None:
        super().__init__()
        wide = nn.Linear(hid, 4 * hid)
        self.net = nn.Sequential(wide, nn.GELU(), nn.Identity(), nn.Linear(4 * hid, hid))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


def check_graphormer(hid: int, heads: int, layers: int, virtual_edges: int) -> None:
    """Raise a :class:`ValueError` for invalid sizes."""
    if heads < 1 or hid % heads:
        raise ValueError(f"heads={heads}: hid={hid} is not divisible by it")
    if layers < 1:
        raise ValueError(f"layers={layers}: the transformer needs at least one")
    if not 1 <= virtual_edges <= MAX_VIRTUAL_EDGES:
        raise ValueError(f"virtual_edges={virtual_edges}: expected from 1 to {MAX_VIRTUAL_EDGES}")
