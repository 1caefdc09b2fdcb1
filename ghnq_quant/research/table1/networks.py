"""The networks to evaluate: which they are, and how each is opened and measured."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

from torch import Tensor, nn

from ghnq_quant.errors import GhnqError
from ghnq_quant.ghn import GHN
from ghnq_quant.research.data import Images
from ghnq_quant.research.networks import ConvNets250K
from ghnq_quant.research.table1.measurement import measure_network
from ghnq_quant.research.table1.results import NetworkResult
from ghnq_quant.research.table1.settings import EvaluationSettings
from ghnq_quant.stem.small_images import adapt_stem
from ghnq_quant.zoos import create_zoo_model

#: A split and a network's index in it, or a model's name and 0.
Place = tuple[str, int]


def network_places(settings: EvaluationSettings) -> list[Place]:
    """The places of all networks, in order.

    Raises:
        DataError: there is no such split.
        GhnqError: a split has fewer networks than requested.
    """
    if settings.models:
        return [(name, 0) for name in settings.models]
    places = []
    for split in settings.splits:
        size = len(ConvNets250K(split))
        count = size if settings.num_nets is None else settings.num_nets
        if count > size:
            raise GhnqError(f"split {split} has {size} networks, not {count}")
        places += [(split, index) for index in range(count)]
    return places


def open_network(settings: EvaluationSettings, place: Place, images: Images) -> nn.Module:
    """The network at a place; networks of the splits are not initialized.

    Args:
        settings: the run's settings.
        place: the network's place.
        images: give a named model its number of classes, and its image size if it is adapted.

    Raises:
        GhnqError: there is no model of that name, or it cannot be adapted.
    """
    group, index = place
    if settings.models:
        model = create_zoo_model(group, len(images.classes))
        side = min(images.images.shape[2:])
        return adapt_stem(model, side) if settings.adapt_stem else model
    return ConvNets250K(group)[index].build(initialize=False)


@dataclass(frozen=True, eq=False)
class Evaluator:
    """Measures any of a run's networks, in any process.

    Attributes:
        settings: the run's settings.
        ghn: the hypernetwork.
        images: the data set's whole test part.
        trained: a ``state_dict`` of the named model.
        device: device for the networks.
    """

    settings: EvaluationSettings
    ghn: GHN
    images: Images
    trained: Mapping[str, Tensor] | None
    device: str

    @cached_property
    def _on_device(self) -> tuple[GHN, Images]:
        return self.ghn.to(self.device), self.images.to(self.device)

    def network(self, place: Place) -> nn.Module:
        """The network at a place."""
        return open_network(self.settings, place, self.images)

    def measure(self, place: Place, on_batch: Callable[[], None] = lambda: None) -> NetworkResult:
        """Measure the network at a place."""
        group, index = place
        return measure_network(
            self.network(place),
            *self._on_device,
            self.settings.precisions,
            group=group,
            index=index,
            num_images=self.settings.num_images,
            channel_limit=self.settings.channel_limit,
            trained=self.trained,
            on_batch=on_batch,
        )

    def results(self, place: Place) -> Iterator[NetworkResult]:
        """The same in the form for :func:`ghnq_quant.research.runs.processes.in_processes`."""
        yield self.measure(place)
