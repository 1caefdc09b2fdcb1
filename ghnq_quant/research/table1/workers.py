"""Measures networks one after another, or several at a time in processes of one thread each."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from ghnq_quant.ghn import GHN
from ghnq_quant.research.data import Images
from ghnq_quant.research.runs.processes import in_processes, one_thread
from ghnq_quant.research.table1.networks import open_network
from ghnq_quant.research.table1.protocol import measure_network, num_evaluated
from ghnq_quant.research.table1.results import NetworkResult
from ghnq_quant.research.table1.settings import BATCH_SIZE, EvaluationSettings

Place = tuple[str, int]


@dataclass(frozen=True, eq=False)
class Job:
    """What every process needs to measure any of a run's networks.

    Attributes:
        settings: of the run.
        ghn: the hypernetwork.
        images: the data set's whole test part.
        trained: a ``state_dict`` of the named model.
        device: that networks run on.
    """

    settings: EvaluationSettings
    ghn: GHN
    images: Images
    trained: Mapping[str, Tensor] | None
    device: str

    def measure(self, place: Place, on_batch: Callable[[], None] = lambda: None) -> NetworkResult:
        """Measure the network of one place."""
        group, index = place
        model = open_network(self.settings, group, index, self.images)
        return measure_network(
            model,
            self.ghn,
            self.images,
            self.settings.precisions,
            group=group,
            index=index,
            num_images=self.settings.num_images,
            trained=self.trained,
            on_batch=on_batch,
        )

    def results(self, place: Place) -> Iterator[NetworkResult]:
        """The same as :class:`ghnq_quant.research.runs.processes.Worker` has it."""
        yield self.measure(place)

    def prepared(self) -> Job:
        """The same with its tensors on the device."""
        ghn, images = self.ghn.to(self.device), self.images.to(self.device)
        return Job(self.settings, ghn, images, self.trained, self.device)


def measured(
    job: Job, places: Sequence[Place], workers: int, advance: Callable[[float], None]
) -> Iterator[NetworkResult]:
    """Measure the networks of ``places``; results come as they are finished.

    Args:
        job: what to measure them with.
        places: group and index of each network.
        workers: how many processes share them.
        advance: called with what was done since the last call, in networks.
    """
    if min(workers, len(places)) > 1:
        for result in in_processes(job, places, workers):
            advance(1)
            yield result
        return
    count = num_evaluated(len(job.images), job.settings.num_images)
    share = 1 / math.ceil(count / BATCH_SIZE)
    with one_thread():
        job = job.prepared()
        for place in places:
            yield job.measure(place, lambda: advance(share))
