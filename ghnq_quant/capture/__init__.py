"""From an ``nn.Module`` to the two views of its graph, ``ArchGraph`` and ``QuantPlan``."""

from ghnq_quant.capture.arch_graph import PRIMITIVES, ArchGraph, Node, ShortestPaths
from ghnq_quant.capture.captured import Capture, capture
from ghnq_quant.capture.graph_rules import GraphRules
from ghnq_quant.capture.operations import Kind
from ghnq_quant.capture.quant_plan import QuantPlan, QuantPoint, Unit

__all__ = [
    "PRIMITIVES",
    "ArchGraph",
    "Capture",
    "GraphRules",
    "Kind",
    "Node",
    "QuantPlan",
    "QuantPoint",
    "ShortestPaths",
    "Unit",
    "capture",
]
