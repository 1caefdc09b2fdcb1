"""What 2, 3 and 4 bits reach by training with learned ranges, from three starts.

python docs/examples/float_networks.py resnet8 --data cifar10.npz -o runs/float
python docs/examples/low_bits.py resnet8 --data cifar10.npz --networks runs/float -o docs/results/low-bits

Weights are symmetric with a scale per channel, activations symmetric, all scales learned (LSQ, Esser et
al. 2020); the first and the last layer, and what they read, have 8 bits. Stopped and called again, it goes
on with what is missing. It ends with a table, which --table prints of what is there.
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from from_float import accuracy, cell, float_network
from torch import nn

import ghnq_quant
from ghnq_quant import Quantizer, QuantScheme
from ghnq_quant.capture import capture
from ghnq_quant.quantization import QuantModel
from ghnq_quant.research.data import ImageSet, evaluation_batches, first_epoch, load_images
from ghnq_quant.research.runs.journal import Journal, read_journal
from ghnq_quant.research.runs.tables import markdown
from ghnq_quant.research.starts.cifar_networks import CIFAR_NETWORKS
from ghnq_quant.research.starts.training import seeded, training_batches, warmup_cosine

BITS = (4, 3, 2)
#: Starts and their learning rates.
STARTS = {"float": 0.02, "ghnq": 0.1, "pytorch": 0.1}
STEPS, SEEDS, RANGE_RATE = 2000, 3, 0.01


@dataclass(frozen=True)
class Result:
    """Top-1 on the test images, %."""

    bits: int
    start: str
    seed: int
    top1: float
    seconds: float

    @property
    def key(self) -> tuple[int, str, int]:
        return self.bits, self.start, self.seed

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Result:
        return cls(**content)


def low_bit_scheme(model: nn.Module, bits: int) -> QuantScheme:
    captured = capture(model)
    points = captured.quant_plan.points
    ends = {name: (8, bits) for name in (*captured.stem, *captured.classifier)}
    ends |= {points[0].name: 8, points[-1].name: 8}  # the image, and the pooled features
    weights = Quantizer(bits, symmetric=True, granularity="channel", range="learned")
    return QuantScheme(
        weights, Quantizer(bits, symmetric=True, range="learned"), overrides=dict(ends)
    )


def started(
    name: str, networks: Path, data: ImageSet, result_key: tuple[int, str, int]
) -> QuantModel:
    bits, start, seed = result_key
    new = seeded(CIFAR_NETWORKS[name], len(data.train.classes), seed)
    scheme = low_bit_scheme(new, bits)
    if start == "ghnq":
        images = first_epoch(data.train, "cifar10", seed)
        return ghnq_quant.init_quantized(new, data=images, scheme=scheme, backend="reference")
    model = float_network(networks, name) if start == "float" else new
    qmodel = ghnq_quant.quantize(model, scheme=scheme, backend="reference")
    images = evaluation_batches(data.train.sample(512, seed))
    return ghnq_quant.calibrate(qmodel, images, ranges="mse")


def train(qmodel: QuantModel, data: ImageSet, seed: int, rate: float) -> None:
    ranges = list(qmodel.range_parameters())
    learned = {id(p) for p in ranges}
    others = [p for p in qmodel.parameters() if id(p) not in learned]
    groups = [{"params": others}, {"params": ranges, "lr": RANGE_RATE * rate, "weight_decay": 0.0}]
    optimizer = torch.optim.SGD(groups, rate, 0.9, weight_decay=1e-4, nesterov=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda s: warmup_cosine(s / STEPS))
    batch = training_batches(data.train, "cifar10", seed)
    qmodel.train()
    for step in range(STEPS):
        x, y = batch(step)
        optimizer.zero_grad()
        F.cross_entropy(qmodel(x), y).backward()
        nn.utils.clip_grad_norm_(qmodel.parameters(), 1.0)
        optimizer.step()
        schedule.step()


def measure(name: str, data: ImageSet, networks: Path, output: Path) -> None:
    header = {"steps": STEPS, "rates": STARTS, "range_rate": RANGE_RATE}
    journal = Journal(output / f"{name}.jsonl", header, Result)
    finished = journal.resume()
    for seed, bits, start in itertools.product(range(SEEDS), BITS, STARTS):
        if (bits, start, seed) in finished:
            continue
        began = time.perf_counter()
        qmodel = started(name, networks, data, (bits, start, seed))
        train(qmodel, data, seed, STARTS[start])
        seconds = round(time.perf_counter() - began, 1)
        result = Result(bits, start, seed, accuracy(qmodel, data), seconds)
        journal.append(result)
        print(name, result, flush=True)


def table(output: Path) -> str:
    """Mean and standard deviation over the seeds."""
    lines = [["top-1, %", *(f"{bits} bits" for bits in BITS)]]
    for file, start in itertools.product(sorted(output.glob("*.jsonl")), STARTS):
        found = read_journal(file, Result).values()
        cells = [cell([r.top1 for r in found if (r.bits, r.start) == (b, start)]) for b in BITS]
        lines.append([f"{file.stem}, {start}", *cells])
    return markdown(lines)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("network", nargs="*", choices=CIFAR_NETWORKS)
    parser.add_argument("--data", help="CIFAR-10")
    parser.add_argument("--networks", type=Path, help="of docs/examples/float_networks.py")
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--table", action="store_true", help="measure nothing")
    args = parser.parse_args()
    torch.set_num_threads(1)
    if not args.table:
        data = load_images(args.data)
        args.output.mkdir(parents=True, exist_ok=True)
        for name in args.network:
            measure(name, data, args.networks, args.output)
    print(table(args.output))


if __name__ == "__main__":
    main()
