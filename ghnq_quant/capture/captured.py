"""A traced network, from which ``ArchGraph`` and ``QuantPlan`` are derived."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Literal

from torch import Tensor, fx, nn

from ghnq_quant.capture.arch_graph import ArchGraph
from ghnq_quant.capture.build_arch_graph import build_arch_graph
from ghnq_quant.capture.graph_rules import GraphRules, build_ghn3_graph
from ghnq_quant.capture.modes import ModeArgument
from ghnq_quant.capture.operations import WEIGHTED, Kind, classify
from ghnq_quant.capture.quant_plan import QuantPlan, build_quant_plan
from ghnq_quant.capture.shapes import propagate_shapes
from ghnq_quant.capture.tracer import trace
from ghnq_quant.errors import CaptureError


@dataclass(frozen=True, eq=False)
class Capture:
    """A traced network; everything else is derived from it on demand.

    Attributes:
        root: module that the graph's names refer to.
        graph: the torch.fx graph.
        skipped: names of modules that are kept whole because they are not supported.
        mode_arguments: arguments in the graph that are False, as in eval, but True in training.
        kept_whole: names of modules without parameters that behave differently in training or have
            their own gradient.
        more_outputs: whether training returns more values than eval, which the graph leaves out.
        attention: names of modules that are kept whole as attention, and what each computes with,
            see :mod:`ghnq_quant.capture.attention`.
    """

    root: nn.Module
    graph: fx.Graph
    skipped: tuple[str, ...] = ()
    mode_arguments: tuple[ModeArgument, ...] = ()
    kept_whole: tuple[str, ...] = ()
    more_outputs: bool = False
    attention: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @cached_property
    def modules(self) -> dict[str, nn.Module]:
        return dict(self.root.named_modules(remove_duplicate=False))

    @cached_property
    def kinds(self) -> dict[fx.Node, Kind]:
        """What each node of the graph does."""
        return classify(self.graph, self.modules)

    @cached_property
    def arch_graph(self) -> ArchGraph:
        """What the hypernetwork reads, by GHN-2's rules."""
        return build_arch_graph(self.graph, self.kinds, self.modules)

    def arch_graph_by(self, rules: GraphRules) -> ArchGraph:
        """What a hypernetwork with these rules reads; see :mod:`ghnq_quant.capture.graph_rules`.

        Example:
            >>> model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.AdaptiveAvgPool2d(1))
            >>> [node.primitive for node in capture(model).arch_graph_by("ghn2").nodes]
            ['input', 'conv', 'bias', 'glob_avg']
            >>> [node.primitive for node in capture(model).arch_graph_by("ghn3").nodes]
            ['input', 'glob_avg', 'conv', 'bias']
        """
        return self.arch_graph if rules == "ghn2" else self._ghn3_graph

    @cached_property
    def _ghn3_graph(self) -> ArchGraph:
        whole = (*self.skipped, *self.attention)
        return build_ghn3_graph(
            self.root, self.graph, self.kinds, self.modules, whole, self.attention
        )

    @cached_property
    def quant_plan(self) -> QuantPlan:
        """What a quantization backend executes."""
        return build_quant_plan(self.graph, self.kinds, self.modules)

    @cached_property
    def stem(self) -> tuple[str, ...]:
        """Names of the conv and linear modules that read the image, with no other in between."""
        sources = [node for node, kind in self.kinds.items() if kind is Kind.INPUT]
        return self._first_layers(sources, lambda node: list(node.users))

    @cached_property
    def classifier(self) -> tuple[str, ...]:
        """Names of the conv and linear modules that the output comes from, with no other in between.

        Example:
            >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(8, 10))
            >>> capture(model).stem, capture(model).classifier
            (('0',), ('2',))
        """
        outputs = [node for node, kind in self.kinds.items() if kind is Kind.OUTPUT]
        return self._first_layers(outputs, lambda node: node.all_input_nodes)

    @cached_property
    def float_parts(self) -> tuple[str, ...]:
        """Names of what a plan leaves in float: skipped modules, norms that are not folded into a
        convolution and whose result is used directly, and parameters used outside of layers.

        Example:
            >>> model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.GroupNorm(2, 8), nn.Conv2d(8, 8, 1))
            >>> capture(model).float_parts
            ('1',)
        """
        parameters = {name for name, _ in self.root.named_parameters(remove_duplicate=False)}
        names = [
            str(node.target)
            for node, kind in self.kinds.items()
            if (kind is Kind.OTHER_NORM or (node.op == "get_attr" and node.target in parameters))
            and not all(self.kinds[user].quantized for user in node.users)
        ]
        return tuple(dict.fromkeys((*self.skipped, *names)))

    def _first_layers(
        self, pending: list[fx.Node], neighbours: Callable[[fx.Node], list[fx.Node]]
    ) -> tuple[str, ...]:
        seen: set[fx.Node] = set()
        while pending:
            new = [n for n in neighbours(pending.pop()) if n not in seen]
            seen.update(new)
            pending += [
                n for n in new if self.kinds[n] not in (Kind.CONV, Kind.LINEAR, Kind.NOT_A_TENSOR)
            ]
        layers = [n for n in self.kinds if n in seen and self.kinds[n] in WEIGHTED]
        return tuple(dict.fromkeys(str(n.target) for n in layers))

    def copied(self, replaced: dict[int, nn.Parameter]) -> Capture:
        """The same capture with its modules copied.

        Args:
            replaced: parameters of the copy, by the ``id`` of those they replace; neither is copied.
        """
        return replace(self, root=copy.deepcopy(self.root, dict(replaced)))

    def shapes(self, input_shape: tuple[int, ...] | None = None) -> dict[str, tuple[int, ...]]:
        """Shape of each node's value, by the node's name; by default for one 224×224 image."""
        return propagate_shapes(
            self.root, self.graph, self.kinds, input_shape or (1, self.input_channels, 224, 224)
        )

    @property
    def input_channels(self) -> int:
        """Channels of the images, as the network's first convolution takes them."""
        return next(m.in_channels for m in self.root.modules() if isinstance(m, nn.Conv2d))


def capture(
    model: nn.Module,
    example_input: Tensor | None = None,
    *,
    skip: Literal["unsupported"] | None = None,
    attention: bool = False,
) -> Capture:
    """Trace a convolutional network without running its kernels and without changing it.

    Args:
        model: any network of Conv2d, Linear, norm, activation and pooling layers, as modules or
            functional calls, that torch.fx can trace in eval mode.
        example_input: (N, C, H, W); if given, also checks that the network runs on this shape.
        skip: ``"unsupported"`` keeps each module that would raise as one operation without parameters
            to predict: the innermost module that can be called that way.
        attention: keep attention modules whole, for a graph by GHN-3's rules; otherwise they are
            refused. Such a capture is of no use for quantization.

    Raises:
        CaptureError: the network cannot be captured; the message names the module.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU())
        >>> capture(model).arch_graph.counts()
        {'input': 1, 'conv': 1, 'bias': 1, 'bn': 1}
        >>> capture(model).quant_plan.units[0].batch_norm
        '1'
    """
    if skip not in (None, "unsupported"):
        raise CaptureError(f'skip={skip!r}: expected None or "unsupported"')
    captured = Capture(**vars(trace(model, skip=skip is not None, attention=attention)))
    if example_input is not None:
        captured.shapes(tuple(example_input.shape))
    return captured
