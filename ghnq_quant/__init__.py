"""Parameters for quantized CNNs, predicted by a graph hypernetwork (GHN-Q)."""

from ghnq_quant.torchvision_ops import define_missing_operators

define_missing_operators()
