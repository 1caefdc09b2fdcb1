"""Attention as a single module of a network, for hypernetworks that predict its parameters.

Its layers are not modules that run on their own, so they have no calls in a trace and no units in a
plan, and quantized copies of the network cannot have them.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol, runtime_checkable

from torch import nn

from ghnq_quant.capture.arch_graph import Node
from ghnq_quant.errors import CaptureError

#: The softmax over the keys, among the names in :meth:`AttentionAdapter.attention_parts`.
SOFTMAX = "softmax"
_OF_TORCH: tuple[str, ...] = ("in_proj_weight", "in_proj_bias", "out_proj.weight", "out_proj.bias")


@runtime_checkable
class AttentionAdapter(Protocol):
    """What the capture needs of an adapter that knows attention modules."""

    def attention_parts(self, module: nn.Module) -> tuple[str, ...]:
        """The parts of ``module``, in the order it computes them: names of weights and biases of
        linear layers, and :data:`SOFTMAX`; empty if ``module`` is not attention.

        Raises:
            CaptureError: GHN-3 has no rules for it.
        """


def attention_parts(module: nn.Module, adapters: Iterable[object]) -> tuple[str, ...]:
    """The parts of PyTorch's own attention, or those named by the first adapter that knows ``module``.

    PyTorch's has no softmax: its kernels are fused, so the public code of GHN-3 finds none either.

    Example:
        >>> attention_parts(nn.MultiheadAttention(8, 2, bias=False), ())
        ('in_proj_weight', 'out_proj.weight')
    """
    named = dict(module.named_parameters())  # reading attributes would be recorded
    if type(module) is nn.MultiheadAttention and "in_proj_weight" in named:
        parts = _OF_TORCH
    else:
        known = (a.attention_parts(module) for a in adapters if isinstance(a, AttentionAdapter))
        parts = next(filter(None, known), ())
    return tuple(part for part in parts if part == SOFTMAX or part in named)


def swin_v2_error(module: nn.Module) -> CaptureError:
    """The error for attention of Swin V2: the public code of GHN-3 builds a graph with a cycle for it,
    so there is nothing to agree with."""
    return CaptureError(
        f"{type(module).__name__} is attention of Swin V2, which GHN-3 has no rules for (a network of "
        "its own computes its position biases): predict a Swin V1, or train this model from its own "
        "initialization"
    )


def attention_nodes(name: str, module: nn.Module, parts: Iterable[str]) -> tuple[Node, ...]:
    """The chain of nodes that stands for attention ``module``."""
    named = dict(module.named_parameters())
    return tuple(
        Node("msa")
        if part == SOFTMAX
        else Node(
            "conv" if named[part].dim() > 1 else "bias",
            tuple(named[part].shape),
            (f"{name}.{part}",),
        )
        for part in parts
    )
