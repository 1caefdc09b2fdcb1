"""ConvNets-250K: the convolutional networks that GHN-Q is trained and evaluated on."""

from ghnq_quant.research.networks.architecture import Architecture
from ghnq_quant.research.networks.dataset import SCHEMA, ConvNets250K, SampledNetwork
from ghnq_quant.research.networks.drawing import draw_network
from ghnq_quant.research.networks.graphs import canonical_hash
from ghnq_quant.research.networks.network import ConvNet
from ghnq_quant.research.networks.plotting import plot_statistics
from ghnq_quant.research.networks.program import SIDE
from ghnq_quant.research.networks.splits import SPLITS
from ghnq_quant.research.networks.statistics import (
    NetworkStatistics,
    space_statistics,
    statistics_table,
)

__all__ = [
    "SCHEMA",
    "SIDE",
    "SPLITS",
    "Architecture",
    "ConvNet",
    "ConvNets250K",
    "NetworkStatistics",
    "SampledNetwork",
    "canonical_hash",
    "draw_network",
    "plot_statistics",
    "space_statistics",
    "statistics_table",
]
