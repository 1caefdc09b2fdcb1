"""What 2, 3 and 4 bits reach by training with learned ranges, from three starts.

python docs/examples/float_networks.py resnet8 --data cifar10.npz -o runs/float
python docs/examples/low_bits.py resnet8 --data cifar10.npz --networks runs/float -o docs/results/low-bits

Weights are symmetric with a scale per channel, activations symmetric, all scales learned (LSQ, Esser et
al. 2020); the first and the last layer, and what they read, have 8 bits. Each start has the learning rate
that is best on held-out training images after 400 steps at 3 bits. Stopped and called again, it goes on
with what is missing, at the rates that the file of results begins with. It ends with a table, which
--table prints of what is there.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from functools import partial

import torch
from accuracies import Measured, Task, main
from float_networks import accuracy, float_network
from torch import nn

import ghnq_quant
from ghnq_quant import Quantizer, QuantScheme
from ghnq_quant.capture import capture
from ghnq_quant.quantization import QuantModel
from ghnq_quant.research.data import Images, evaluation_batches, first_epoch, hold_out
from ghnq_quant.research.runs.tables import markdown
from ghnq_quant.research.starts.cifar_networks import CIFAR_NETWORKS
from ghnq_quant.research.starts.training import (
    Recipe,
    optimize,
    seeded,
    training_batches,
    warmup_cosine,
)

BITS, STARTS = (4, 3, 2), ("float", "ghnq", "pytorch")
STEPS, SEEDS, RANGE_RATE = 2000, 3, 0.01
#: What the learning rate is chosen from, and how.
RATES, CHOICE_BITS, CHOICE_STEPS, CHOICE_SEED = (0.01, 0.03, 0.1, 0.3), 3, 400, 1_000_000


def low_bit_scheme(model: nn.Module, bits: int) -> QuantScheme:
    captured = capture(model)
    points = captured.quant_plan.points
    ends = {name: (8, bits) for name in (*captured.stem, *captured.classifier)}
    ends |= {points[0].name: 8, points[-1].name: 8}  # the image, and the pooled features
    weights = Quantizer(bits, symmetric=True, granularity="channel", range="learned")
    return QuantScheme(
        weights, Quantizer(bits, symmetric=True, range="learned"), overrides=dict(ends)
    )


def started(task: Task, train: Images, bits: int, start: str, seed: int) -> QuantModel:
    new = seeded(CIFAR_NETWORKS[task.name], len(train.classes), seed)
    scheme = low_bit_scheme(new, bits)
    if start == "ghnq":
        fitted = first_epoch(train, "cifar10", seed)
        qmodel = ghnq_quant.init_quantized(new, data=fitted, scheme=scheme, backend="reference")
    else:
        model = float_network(task.networks, task.name) if start == "float" else new
        qmodel = ghnq_quant.quantize(model, scheme=scheme, backend="reference")
    images = evaluation_batches(train.sample(512, seed))
    return ghnq_quant.calibrate(qmodel, images, ranges="mse")


def with_ranges(
    qmodel: QuantModel, parameters: Iterable[nn.Parameter], rate: float
) -> torch.optim.SGD:
    """Of all ``parameters``; those of ranges have a rate of their own and no weight decay."""
    ranges = list(qmodel.range_parameters())
    learned = {id(p) for p in ranges}
    groups = [
        {"params": [p for p in parameters if id(p) not in learned]},
        {"params": ranges, "lr": RANGE_RATE * rate, "weight_decay": 0.0},
    ]
    return torch.optim.SGD(groups, rate, 0.9, weight_decay=1e-4, nesterov=True)


def trained(
    task: Task, train: Images, *, bits: int, start: str, seed: int, rate: float, steps: int
) -> QuantModel:
    qmodel = started(task, train, bits, start, seed)
    recipe = Recipe(partial(with_ranges, qmodel), warmup_cosine)
    optimize(qmodel, training_batches(train, "cifar10", seed), range(steps), rate, recipe)
    return qmodel


def chosen_rates(task: Task) -> dict[str, float]:
    """Of each start the best one on held-out training images, which float networks have seen."""
    train, held_out = hold_out(task.data.train)
    how = {"bits": CHOICE_BITS, "steps": CHOICE_STEPS, "seed": CHOICE_SEED}

    def top1(start: str, rate: float) -> float:
        return accuracy(trained(task, train, start=start, rate=rate, **how), held_out)

    cases = [{"start": s, "rate": r} for s, r in itertools.product(STARTS, RATES)]
    header = {**how, "float": task.float_result}
    results = task.measure(header, cases, top1, folder="rates")
    best = {r.of["start"]: r.of["rate"] for r in sorted(results, key=lambda r: r.top1)}
    return {start: best[start] for start in STARTS}


def measure(task: Task) -> None:
    file = task.output / f"{task.name}.jsonl"
    rates = Measured.read(file).header["rates"] if file.exists() else chosen_rates(task)
    header = {"steps": STEPS, "rates": rates, "range_rate": RANGE_RATE}

    def top1(bits: int, start: str, seed: int) -> float:
        how = {"rate": rates[start], "steps": STEPS}
        qmodel = trained(task, task.data.train, bits=bits, start=start, seed=seed, **how)
        return accuracy(qmodel, task.data.test)

    order = itertools.product(range(SEEDS), BITS, STARTS)
    cases = [{"bits": bits, "start": start, "seed": seed} for seed, bits, start in order]
    task.measure(header | {"float": task.float_result}, cases, top1)


def table(networks: list[Measured]) -> str:
    """Mean and standard deviation over the seeds."""
    lines = [["top-1, %", *(f"{bits} bits" for bits in BITS)]]
    for network, start in itertools.product(networks, STARTS):
        cells = [network.cell(bits=bits, start=start) for bits in BITS]
        lines.append([f"{network.title}, {start}", *cells])
    return markdown(lines)


if __name__ == "__main__":
    main(measure, table)
