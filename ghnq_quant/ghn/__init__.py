"""The hypernetwork: node features, message passing, decoders, tiling and checkpoints."""

from ghnq_quant.ghn.model import GHN

__all__ = ["GHN"]
