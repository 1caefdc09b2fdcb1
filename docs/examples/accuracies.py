"""What from_float.py and low_bits.py share: accuracies of several networks, each kept as it comes."""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ghnq_quant.files import read_json
from ghnq_quant.research.data import ImageSet, load_images
from ghnq_quant.research.runs.journal import Journal, read_journal
from ghnq_quant.research.starts.cifar_networks import CIFAR_NETWORKS


@dataclass(frozen=True)
class Result:
    """Top-1, %, of what ``of`` says, and the seconds that it took."""

    of: Mapping[str, Any]
    top1: float
    seconds: float

    @property
    def key(self) -> tuple[Any, ...]:
        return tuple(self.of.values())

    def to_json(self) -> dict[str, Any]:
        return {**self.of, "top1": self.top1, "seconds": self.seconds}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Result:
        of = dict(content)
        return cls(top1=of.pop("top1"), seconds=of.pop("seconds"), of=of)


@dataclass(frozen=True)
class Task:
    """A network, images, the folder of trained float networks and that of results."""

    name: str
    data: ImageSet
    networks: Path
    output: Path

    @property
    def float_result(self) -> dict[str, Any]:
        """Accuracy and epochs of the trained float network."""
        return read_json(self.networks / f"{self.name}.json")

    def measure(
        self,
        header: Mapping[str, Any],
        cases: Iterable[dict[str, Any]],
        top1: Callable[..., float],
        folder: str = ".",
    ) -> list[Result]:
        """Call ``top1`` with each of ``cases`` that is not in the network's file yet."""
        path = self.output / folder / f"{self.name}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        journal = Journal(path, header, Result)
        found = journal.resume()
        for of in cases:
            if tuple(of.values()) not in found:
                start = time.perf_counter()
                result = Result(of, top1(**of), round(time.perf_counter() - start, 1))
                journal.append(result)
                found[result.key] = result
                print(self.name, result.to_json(), flush=True)
        return list(found.values())


@dataclass(frozen=True)
class Measured:
    """What the file of a network holds."""

    title: str
    header: Mapping[str, Any]
    results: Iterable[Result]

    @classmethod
    def read(cls, path: Path) -> Measured:
        header = json.loads(path.read_text("utf-8").splitlines()[0])
        title = f"{path.stem} ({header['float']['top1']:.1f})"
        return cls(title, header, read_journal(path, Result).values())

    def cell(self, **of: Any) -> str:
        """Mean and standard deviation over the seeds."""
        values = [r.top1 for r in self.results if of.items() <= r.of.items()]
        if not values:
            return "–"
        spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
        return f"{statistics.mean(values):.1f}{spread}"


def options() -> argparse.ArgumentParser:
    """Those of every script that measures what is missing and prints a table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", help="CIFAR-10")
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--table", action="store_true", help="measure nothing")
    return parser


def main(measure: Callable[[Task], None], table: Callable[[list[Measured]], str]) -> None:
    """Measure what is missing of the networks and print the table of all that is there."""
    parser = options()
    parser.add_argument("network", nargs="*", help="all that were trained, if none is named")
    parser.add_argument("--networks", type=Path, help="of docs/examples/float_networks.py")
    args = parser.parse_args()
    torch.set_num_threads(1)
    if not args.table:
        data = load_images(args.data)
        trained = [n for n in CIFAR_NETWORKS if (args.networks / f"{n}.json").exists()]
        for name in args.network or trained:
            measure(Task(name, data, args.networks, args.output))
    files = [args.output / f"{name}.jsonl" for name in CIFAR_NETWORKS]
    print(table([Measured.read(file) for file in files if file.exists()]))
