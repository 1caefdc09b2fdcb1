"""The public GHN-2 code as the benchmarks call it; see conftest.py for how to have it."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conftest import MAX_SHAPE
from torch import Tensor, nn

from ghnq_quant.research.networks import ConvNets250K


def load() -> ModuleType | None:
    """``ppuda.ghn.nn``, or None if it cannot be imported."""
    try:
        import ppuda.ghn.nn as public
    except ImportError:
        return None
    return public  # type: ignore[no-any-return]


def hypernetwork(public: ModuleType) -> nn.Module:
    """A new public GHN-2."""
    ghn: nn.Module = public.GHN(
        max_shape=MAX_SHAPE,
        num_classes=10,
        hypernet="gatedgnn",
        decoder="conv",
        weight_norm=True,
        ve=True,
        layernorm=True,
        hid=32,
    )
    return ghn


def predict(ghn: nn.Module, model: nn.Module) -> None:
    """Graph and prediction, as its README does it, for 32×32 images."""
    ghn.eval()
    ghn(_sized(model.eval()))


class Step:
    """A finetuning step of networks of ConvNets-250K, as its training script does it."""

    def __init__(
        self,
        public: ModuleType,
        indices: Sequence[int],
        virtual_edges: int,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        graphs = sys.modules["ppuda.deepnets1m.graph"]
        # it reads a cell number from names that begin like ours
        monkeypatch.setattr(graphs, "get_cell_ind", lambda name, layers=1: 0)
        self.items = [ConvNets250K("train")[i] for i in indices]
        self.ghn = hypernetwork(public).train()
        self.optimizer = torch.optim.Adam(self.ghn.parameters(), lr=1e-4)
        self.graphs = graphs.GraphBatch(
            [
                graphs.Graph(_sized(item.build().eval()), ve_cutoff=virtual_edges)
                for item in self.items
            ]
        )
        self.graphs.to_device("cpu")
        self.networks: list[Any] = []

    def build(self) -> None:
        """Make new networks, as its loader does outside the step."""
        layers = sys.modules["ppuda.deepnets1m.net"].named_layered_modules
        self.networks = [item.build(initialize=False).train() for item in self.items]
        for network in self.networks:
            network.__dict__["_layered_modules"] = layers(network)

    def __call__(self, images: Tensor, labels: Tensor) -> None:
        self.optimizer.zero_grad()
        networks = self.ghn(self.networks, self.graphs)
        losses = [F.cross_entropy(network(images), labels) for network in networks]
        (sum(losses) / len(losses)).backward()
        torch.nn.utils.clip_grad_norm_(self.ghn.parameters(), 5.0)
        self.optimizer.step()


def _sized(model: nn.Module) -> nn.Module:
    """Set the image size that the public code reads from a model; its default is 224×224."""
    model.expected_input_sz = (3, 32, 32)  # type: ignore[assignment]
    return model
