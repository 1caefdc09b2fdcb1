"""Runs trainings one after another, or several at a time in processes of one thread each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ghnq_quant.ghn import GHN
from ghnq_quant.research.data import Images
from ghnq_quant.research.runs.processes import in_processes, one_thread
from ghnq_quant.research.starts.results import TrialResult
from ghnq_quant.research.starts.settings import CompareSettings, Trial
from ghnq_quant.research.starts.training import run_trial


@dataclass(frozen=True, eq=False)
class Bench:
    """What every process needs to run any of a comparison's trainings.

    Attributes:
        settings: of the comparison.
        ghn: the hypernetwork.
        train, test: images.
    """

    settings: CompareSettings
    ghn: GHN
    train: Images
    test: Images

    def prepared(self) -> Bench:
        """Itself: everything is on the CPU."""
        return self

    def results(self, trial: Trial) -> Iterator[TrialResult]:
        """Train and measure once."""
        yield run_trial(
            trial,
            self.train,
            self.test,
            self.ghn,
            backend=self.settings.backend,
            stem_bits=self.settings.stem_bits,
            data=self.settings.data,
            test_images=self.settings.test_images,
        )


def run_trials(bench: Bench, trials: Sequence[Trial], workers: int) -> Iterator[TrialResult]:
    """Run all of ``trials``; results come as they are finished."""
    if min(workers, len(trials)) > 1:
        yield from in_processes(bench, trials, workers)
        return
    with one_thread():
        for trial in trials:
            yield from bench.results(trial)
