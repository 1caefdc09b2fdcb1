"""What is left of trained float networks after `quantize`, with each tool alone and together.

python docs/examples/float_networks.py resnet8 mobilenet_v2_small --data cifar10.npz -o runs/float
python docs/examples/from_float.py --data cifar10.npz --networks runs/float -o docs/results/from-float

The results are in the order of the seeds, draws of the calibration images. Stopped and called again, it
goes on with what is missing. It ends with the table of docs/how-to/from_float.md, which --table prints
of what is there.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import ghnq_quant
from ghnq_quant import Quantizer
from ghnq_quant.files import read_json, read_state
from ghnq_quant.quantization import QuantModel
from ghnq_quant.research.data import ImageSet, evaluation_batches, load_images
from ghnq_quant.research.runs.journal import Journal, read_journal
from ghnq_quant.research.runs.tables import markdown
from ghnq_quant.research.starts.cifar_networks import CIFAR_NETWORKS
from ghnq_quant.research.starts.training import SGD, optimize, training_batches

BITS = (8, 4, 3)
SEEDS = 3
BATCHES = 8  # of 64 images
QAT_STEPS, LEARNING_RATE = 500, 0.01


@dataclass(frozen=True)
class Method:
    """Which tools are used beside the calibration of activation ranges.

    Attributes:
        norms: whether batch norms' statistics are estimated anew too; else they stay the trained ones.
        search: whether ranges of weights and activations are those of least squared error.
    """

    title: str
    norms: bool = False
    equalize: bool = False
    biases: bool = False
    stem: bool = False
    search: bool = False
    steps: tuple[int, ...] = (0,)

    def quantized(self, model: nn.Module, bits: int, batches: list[Tensor]) -> QuantModel:
        """A quantized copy of a trained float network, in eval."""
        stem_bits = 8 if self.stem else None
        weights = Quantizer(bits, range="mse" if self.search else None)
        pair = (weights, Quantizer(bits))
        qmodel = ghnq_quant.quantize(model, pair, stem_bits=stem_bits, backend="reference")
        if self.equalize:
            ghnq_quant.equalize(qmodel)
        self.calibrate(qmodel, batches)
        if self.biases:
            ghnq_quant.correct_biases(qmodel, batches)
        return qmodel.eval()

    def calibrate(self, qmodel: QuantModel, batches: list[Tensor]) -> None:
        search = "mse" if self.search else None
        ghnq_quant.calibrate(qmodel, batches, ranges=search, batch_norms=self.norms)


_BOTH = (0, QAT_STEPS)
_ALL = {"norms": True, "equalize": True, "biases": True, "stem": True}
METHODS = {
    "ranges": Method("activation ranges"),
    "norms": Method("… and batch norms, as `calibrate`", norms=True, steps=_BOTH),
    "equalize": Method("ranges and `equalize`", equalize=True),
    "biases": Method("ranges and `correct_biases`", biases=True),
    "stem": Method("ranges and `stem_bits=8`", stem=True),
    "together": Method("ranges and these three", equalize=True, biases=True, stem=True),
    "all": Method("`calibrate` and these three", **_ALL, steps=_BOTH),
    "mse": Method('`calibrate(ranges="mse")`, weights too', norms=True, search=True),
    "all-mse": Method("… and these three", **_ALL, search=True, steps=_BOTH),
}


@dataclass(frozen=True)
class Result:
    """Top-1 on the test images, %, after ``steps`` of training."""

    bits: int
    method: str
    seed: int
    steps: int
    top1: float
    seconds: float

    @property
    def key(self) -> tuple[Any, ...]:
        return self.bits, self.method, self.seed, self.steps

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Result:
        return cls(**content)


def float_network(folder: Path, name: str) -> nn.Module:
    model = CIFAR_NETWORKS[name](10)
    model.load_state_dict(read_state(folder / f"{name}.safetensors")[0])
    return model


@torch.no_grad()
def accuracy(model: nn.Module, data: ImageSet) -> float:
    model.eval()
    right = sum(int((model(x).argmax(1) == y).sum()) for x, y in evaluation_batches(data.test))
    return 100 * right / len(data.test)


def measured(model: nn.Module, data: ImageSet, *key: Any) -> Result:
    """One tool on one network, straight after quantization or after training."""
    bits, method, seed, steps = key
    start = time.perf_counter()
    chosen = METHODS[method]
    batch = training_batches(data.train, "cifar10", seed)  # augmented, as the network was trained
    batches = [batch(number)[0] for number in range(BATCHES)]
    qmodel = chosen.quantized(model, bits, batches)
    if steps:
        optimize(qmodel, batch, range(steps), LEARNING_RATE, SGD)
        chosen.calibrate(qmodel, batches)
    top1 = accuracy(qmodel, data)
    return Result(*key, top1, round(time.perf_counter() - start, 1))


def measure(name: str, data: ImageSet, networks: Path, output: Path) -> None:
    """All that is missing of one network; what needs no training first."""
    header = {"batches": BATCHES, "learning_rate": LEARNING_RATE}
    header |= {"float": read_json(networks / f"{name}.json")}
    journal = Journal(output / f"{name}.jsonl", header, Result)
    finished = journal.resume()
    model = float_network(networks, name)
    for key in itertools.product((0, QAT_STEPS), range(SEEDS), BITS, METHODS):
        steps, seed, bits, method = key
        if steps in METHODS[method].steps and (bits, method, seed, steps) not in finished:
            result = measured(model, data, bits, method, seed, steps)
            journal.append(result)
            print(name, result, flush=True)


def table(output: Path) -> str:
    """Mean and standard deviation over the seeds."""
    files = sorted(output.glob("*.jsonl"), reverse=True)
    results = [read_journal(file, Result).values() for file in files]
    floats = [
        json.loads(file.read_text("utf-8").splitlines()[0])["float"]["top1"] for file in files
    ]
    titles = [f"{file.stem} ({top1:.1f})" for file, top1 in zip(files, floats, strict=True)]
    lines = [["top-1, %", *(f"{title}, {bits} bits" for title in titles for bits in BITS)]]
    for steps, (method, chosen) in itertools.product((0, QAT_STEPS), METHODS.items()):
        if steps in chosen.steps:
            cells = [
                cell(
                    [r.top1 for r in found if (r.bits, r.method, r.steps) == (bits, method, steps)]
                )
                for found in results
                for bits in BITS
            ]
            lines.append([f"{chosen.title}, then {steps} steps" if steps else chosen.title, *cells])
    return markdown(lines)


def cell(values: list[float]) -> str:
    if not values:
        return "–"
    spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.1f}{spread}"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", help="CIFAR-10")
    parser.add_argument("--networks", type=Path, help="of docs/examples/float_networks.py")
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--table", action="store_true", help="measure nothing")
    args = parser.parse_args()
    torch.set_num_threads(1)
    if not args.table:
        data = load_images(args.data)
        args.output.mkdir(parents=True, exist_ok=True)
        for name in CIFAR_NETWORKS:
            if (args.networks / f"{name}.json").exists():
                measure(name, data, args.networks, args.output)
    print(table(args.output))


if __name__ == "__main__":
    main()
