"""ConvNets-250K: a quarter of a million networks that take no disk space."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

from ghnq_quant.capture import ArchGraph
from ghnq_quant.research.networks.architecture import Architecture
from ghnq_quant.research.networks.compiling import NUM_CLASSES, compile_program
from ghnq_quant.research.networks.draws import Draws
from ghnq_quant.research.networks.graphs import build_graph, canonical_hash
from ghnq_quant.research.networks.network import ConvNet
from ghnq_quant.research.networks.program import Program
from ghnq_quant.research.networks.sampling import sample_architecture
from ghnq_quant.research.networks.splits import MAX_PARAMETERS, NUM_SIDES, Split, find_split

#: Version of the space. A change to any network of any split needs a new one: the draws, the
#: sampling, the compilation and the hash all decide what "network 17 of test" is.
SCHEMA = 1


@dataclass(frozen=True, eq=False)
class SampledNetwork:
    """One network: its description, and what is made from it on demand.

    Attributes:
        split, index: its place in ConvNets-250K.
        description: equal descriptions make equal networks.
        num_classes: outputs; not a part of the description.
    """

    split: str
    index: int
    description: Architecture
    num_classes: int = NUM_CLASSES

    @cached_property
    def program(self) -> Program:
        """The instructions in order of execution, with parameters, MACs and depth."""
        return compile_program(self.description, self.num_classes)

    @cached_property
    def graph(self) -> ArchGraph:
        """What the hypernetwork reads; the same as ``capture(network.build()).arch_graph``."""
        return build_graph(self.program)

    def build(self, initialize: bool = True) -> ConvNet:
        """A new module: (N, 3, H, W) → (N, num_classes).

        Args:
            initialize: use PyTorch's own initialization, with its global generator; if False,
                weights are uninitialized memory, to be overwritten with a prediction.
        """
        return ConvNet(self.program, initialize)


class ConvNets250K:
    """A split of ConvNets-250K, as a map-style dataset.

    Item i depends only on the split's name and i: it is the same network on every machine, in every
    process and order.

    Args:
        split: ``train``, ``val``, ``test``, ``wide``, ``deep``, ``bn_free`` or ``mobile``.
        num_classes: outputs of the networks. ConvNets-250K's networks have ten, which its limits and
            the difference between its splits assume; with another number everything else is the same.

    Raises:
        DataError: there is no such split.

    Example:
        >>> network = ConvNets250K("test")[17]
        >>> network.description.family
        'residual'
        >>> network.graph.nodes[network.graph.classifier_weight].parameters
        ('head.classifier.weight',)
        >>> model = network.build(initialize=False)
    """

    def __init__(self, split: str, *, num_classes: int = NUM_CLASSES) -> None:
        self.split = split
        self.num_classes = num_classes
        self._rules = find_split(split)

    def __len__(self) -> int:
        return self._rules.size

    def __getitem__(self, index: int) -> SampledNetwork:
        """Network ``index`` of the split.

        Raises:
            IndexError: ``index`` is negative or not below ``len(self)``.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"split {self.split} has networks 0 to {len(self) - 1}, not {index}")
        description, program, graph = self._draw(index)
        item = SampledNetwork(self.split, int(index), description, self.num_classes)
        if self.num_classes == NUM_CLASSES:
            item.__dict__.update(program=program, graph=graph)  # fills the cached properties
        return item

    def __iter__(self) -> Iterator[SampledNetwork]:
        return (self[index] for index in range(len(self)))

    def _draw(self, index: int) -> tuple[Architecture, Program, ArchGraph]:
        """Draw until a network meets the limits and lies on one of the split's sides."""
        attempt = 0
        while True:
            draws = Draws(SCHEMA, self.split, index, attempt)
            description = sample_architecture(self._rules, draws)
            program = compile_program(description)
            if _fits(program, self._rules):
                graph = build_graph(program)
                if int(canonical_hash(graph), 16) % NUM_SIDES in self._rules.sides:
                    return description, program, graph
            attempt += 1


def _fits(program: Program, rules: Split) -> bool:
    return program.macs <= rules.max_macs and program.num_parameters <= MAX_PARAMETERS
