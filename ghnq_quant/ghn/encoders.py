"""The two encoders, and the other differences between GHN-2 and GHN-3."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import nn

from ghnq_quant.capture import GraphRules
from ghnq_quant.ghn.graphormer import Graphormer
from ghnq_quant.ghn.message_passing import GatedGNN

Encoder = Literal["gated", "graphormer"]


@dataclass(frozen=True)
class Conventions:
    """What the public hypernetworks with an encoder were trained with.

    Attributes:
        virtual_edges: default s(max). GHN-Q's for the gated encoder; GHN-2 has 50.
        graph_rules: how networks become graphs.
        linear_decoder: whether the decoder has linear layers instead of 1×1 convolutions; they
            compute the same with parameters of another shape.
        predicts_any_size: whether kernels larger than the decoder's grid are enlarged from it, and
            classification layers of any number of classes are tiled.
    """

    virtual_edges: int
    graph_rules: GraphRules
    linear_decoder: bool
    predicts_any_size: bool


CONVENTIONS: dict[Encoder, Conventions] = {
    "gated": Conventions(10, "ghn2", linear_decoder=False, predicts_any_size=False),
    "graphormer": Conventions(50, "ghn3", linear_decoder=True, predicts_any_size=True),
}


def make_encoder(encoder: Encoder, hid: int, heads: int, layers: int) -> nn.Module:
    """A module from (N, C) node features, graphs and s(max) to (N, C) features; only "graphormer" has
    heads and layers."""
    return GatedGNN(hid) if encoder == "gated" else Graphormer(hid, heads, layers)
