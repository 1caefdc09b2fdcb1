"""A comparison: its trainings, each start's best learning rate, accuracy by steps, and steps saved."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from ghnq_quant.quantization.scheme import Precision, precision_name
from ghnq_quant.research.runs.seeds import CHOICE_SEED
from ghnq_quant.research.starts.settings import CompareSettings, Trial
from ghnq_quant.research.starts.starts import STARTS
from ghnq_quant.research.table1.summary import Summary, summarize

#: The start that all others are compared with.
BASELINE = "pytorch"


@dataclass(frozen=True)
class TrialResult:
    """The result of one training.

    Attributes:
        trial: the training.
        first, accuracy: top-1 in % before the first quantized step and after the last, after
            recalibrating running statistics and ranges.
        loss: mean training loss of the last tenth; None if it is not finite.
        seconds: duration.
    """

    trial: Trial
    first: float
    accuracy: float
    loss: float | None
    seconds: float

    @property
    def key(self) -> Trial:
        """Identifies the training."""
        return self.trial

    def to_json(self) -> dict[str, Any]:
        """As plain lists, numbers and strings."""
        return asdict(self)

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> TrialResult:
        """The inverse of :meth:`to_json`."""
        trial = {**content["trial"], "bits": tuple(content["trial"]["bits"])}
        return cls(**{**content, "trial": Trial(**trial)})


@dataclass(frozen=True)
class Curve:
    """Results for one network, precision and start.

    Attributes:
        lr: the chosen learning rate.
        first: accuracy in % before the first quantized step (of the shortest training).
        first_steps: number of steps taken by then: 0, or those of float training.
        steps: lengths of the trainings, ascending.
        accuracy: by number of steps, over the seeds.
    """

    lr: float
    first: Summary
    first_steps: int
    steps: tuple[int, ...]
    accuracy: tuple[Summary, ...]

    def steps_to(self, accuracy: float) -> float | None:
        """Number of steps to reach an accuracy in %; None if the longest training does not.

        It is ``first_steps`` if the network has it before the first quantized step. Between trainings
        the mean accuracy is interpolated linearly in log2 of the steps; below the shortest nothing
        was measured, so its length is an upper bound.
        """
        assert self.first.mean is not None
        if self.first.mean >= accuracy:
            return float(self.first_steps)
        means = [s.mean for s in self.accuracy]
        before: tuple[int, float] | None = None
        for steps, mean in zip(self.steps, means, strict=True):
            assert mean is not None
            if mean >= accuracy:
                if before is None:
                    return float(steps)
                share = (accuracy - before[1]) / (mean - before[1])
                return float(before[0] * 2 ** (share * math.log2(steps / before[0])))
            before = steps, mean
        return None


def best_lr(results: Iterable[TrialResult]) -> float:
    """The learning rate with the highest accuracy; of equal ones that with the lowest training loss.

    With few held-out images accuracies are often equal. The lowest rate would then be a bad choice
    for trainings that are shorter than those it was chosen by.
    """
    return max(
        results, key=lambda r: (r.accuracy, -(math.inf if r.loss is None else r.loss))
    ).trial.lr


def curve(results: Mapping[Trial, TrialResult], arch: str, bits: Precision, start: str) -> Curve:
    """The curve of one network, precision and start, from all trainings."""
    mine = [
        r
        for r in results.values()
        if (r.trial.arch, r.trial.bits, r.trial.start) == (arch, bits, start)
        and r.trial.seed != CHOICE_SEED
    ]
    steps = tuple(sorted({r.trial.steps for r in mine}))
    by_steps = [[r for r in mine if r.trial.steps == count] for count in steps]
    return Curve(
        lr=by_steps[0][0].trial.lr,
        first=summarize(r.first for r in by_steps[0]),
        first_steps=STARTS[start].float_steps(steps[0]),
        steps=steps,
        accuracy=tuple(summarize(r.accuracy for r in of) for of in by_steps),
    )


@dataclass(frozen=True)
class Comparison:
    """The result of :func:`ghnq_quant.research.starts.compare_init`.

    Attributes:
        settings: as given.
        facts: how the numbers were obtained, as plain JSON values.
        results: of all trainings, including those that chose the learning rates.
    """

    settings: CompareSettings
    facts: dict[str, Any]
    results: Mapping[Trial, TrialResult]

    def cases(self) -> Iterator[tuple[str, Precision]]:
        """All networks at all precisions."""
        return ((arch, bits) for arch in self.settings.archs for bits in self.settings.bits)

    def curves(self, arch: str, bits: Precision) -> dict[str, Curve]:
        """Curves by start."""
        return {s: curve(self.results, arch, bits, s) for s in self.settings.starts}

    def ratios(self, arch: str, bits: Precision, start: str) -> dict[int, float | None]:
        """What a start saves: its steps to the mean accuracy of PyTorch's start, over PyTorch's steps.

        Returns:
            by the steps of each training from PyTorch's start; None if the start does not get there
            even with the most steps; empty if PyTorch's is not among the starts.
        """
        if BASELINE not in self.settings.starts:
            return {}
        mine, baseline = (curve(self.results, arch, bits, s) for s in (start, BASELINE))
        ratios: dict[int, float | None] = {}
        for steps, goal in zip(baseline.steps, baseline.accuracy, strict=True):
            assert goal.mean is not None
            needed = mine.steps_to(goal.mean)
            ratios[steps] = None if needed is None else needed / steps
        return ratios

    def to_json(self) -> dict[str, Any]:
        """The content of ``results.json``."""
        cases = [
            {
                "arch": arch,
                "precision": precision_name(bits),
                "curves": {s: asdict(c) for s, c in self.curves(arch, bits).items()},
                "steps_ratio": {s: self.ratios(arch, bits, s) for s in self.settings.starts},
            }
            for arch, bits in self.cases()
        ]
        trials = [result.to_json() for _, result in sorted(self.results.items())]
        return {**self.facts, "cases": cases, "trials": trials}
