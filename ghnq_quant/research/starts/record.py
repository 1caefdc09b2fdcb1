"""A finished comparison: its conditions and every training."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from ghnq_quant.quantization.scheme import Precision, precision_name
from ghnq_quant.research.starts.results import Curve, TrialResult, curve
from ghnq_quant.research.starts.settings import CompareSettings, Trial

#: The start that all others are compared with.
BASELINE = "pytorch"


@dataclass(frozen=True)
class Comparison:
    """What :func:`ghnq_quant.research.starts.compare_init` returns.

    Attributes:
        settings: as given.
        facts: how the numbers came about, as plain JSON values.
        results: of all trainings, those that chose the learning rates too.
    """

    settings: CompareSettings
    facts: dict[str, Any]
    results: Mapping[Trial, TrialResult]

    def cases(self) -> Iterator[tuple[str, Precision]]:
        """All networks at all precisions."""
        return ((arch, bits) for arch in self.settings.archs for bits in self.settings.bits)

    def curves(self, arch: str, bits: Precision) -> dict[str, Curve]:
        """By start."""
        return {s: curve(self.results, arch, bits, s) for s in self.settings.starts}

    def ratios(self, arch: str, bits: Precision, start: str) -> dict[int, float | None]:
        """What a start saves: steps to the mean accuracy of PyTorch's start, over those that it took.

        Returns:
            by the steps that PyTorch's start took, those of each training; None where the start does not
            get there with the most steps; empty where PyTorch's is not among the starts.
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
