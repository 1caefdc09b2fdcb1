"""Families of networks for which GHN-3's parameters are known to be a worse start than new ones.

Source: its authors' ImageNet accuracy after one epoch of training, from all parameters of GHN-3-XL
and from PyTorch's initialization.
"""

from __future__ import annotations

from torch import nn

from ghnq_quant.capture import ArchGraph, Capture
from ghnq_quant.errors import warn


def losing_family(captured: Capture) -> str | None:
    """Describe the family of a network that is known to lose, with the authors' figures.

    Example:
        >>> from ghnq_quant.capture import capture
        >>> losing_family(capture(nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8))))
    """
    graph = captured.arch_graph
    if any(isinstance(module, nn.MultiheadAttention) for module in captured.root.modules()):
        return "vision transformers (vit_b_32: 6.3 % against 8.0)"
    if _has_gated_depthwise(graph):
        return (
            "EfficientNet and MobileNetV3 (efficientnet_b0: 22.8 % against 24.6; "
            "mobilenet_v3_large: 18.4 against 23.9)"
        )
    primitives = graph.counts()
    if "concat" in primitives and not {"bn", "ln"} & primitives.keys():
        return "SqueezeNet (squeezenet1_1: 3.3 % against 3.7)"
    return None


def _has_gated_depthwise(graph: ArchGraph) -> bool:
    """Depthwise convolutions and squeeze-and-excitation."""
    depthwise = (
        node.primitive == "sep_conv" and node.shape is not None and node.shape[1] == 1
        for node in graph.nodes
    )
    return "cse" in graph.counts() and any(depthwise)


def warn_of_losing_family(captured: Capture) -> None:
    """Warn if a network is known to start worse from GHN-3's parameters."""
    family = losing_family(captured)
    if family is not None:
        warn(
            f"{type(captured.root).__name__} is like {family}, which its authors measured to be worse "
            "after one epoch on ImageNet from GHN-3's parameters than from PyTorch's "
            "initialization: compare with share=0 before a long training"
        )
