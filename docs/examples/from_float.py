"""What is left of trained float networks after `quantize`, with each tool alone and together.

python docs/examples/float_networks.py resnet8 mobilenet_v2_small --data cifar10.npz -o runs/float
python docs/examples/from_float.py --data cifar10.npz --networks runs/float -o docs/results/from-float

The results are in the order of the seeds, draws of the calibration images. Stopped and called again, it
goes on with what is missing. It ends with the table of docs/how-to/from_float.md, which --table prints
of what is there.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

from accuracies import Measured, Task, main
from float_networks import accuracy, float_network
from torch import Tensor, nn

import ghnq_quant
from ghnq_quant import Quantizer
from ghnq_quant.quantization import QuantModel
from ghnq_quant.research.runs.tables import markdown
from ghnq_quant.research.starts.training import SGD, Batch, optimize, training_batches

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
        trained: its title after training; not trained if empty.
    """

    title: str
    norms: bool = False
    equalize: bool = False
    biases: bool = False
    stem: bool = False
    search: bool = False
    trained: str = ""

    def titles(self) -> dict[int, str]:
        """By the number of training steps."""
        return {0: self.title} | ({QAT_STEPS: self.trained} if self.trained else {})

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

    def train(self, qmodel: QuantModel, batch: Batch, steps: int, batches: list[Tensor]) -> None:
        """With searched ranges as they are, or with new ones that are calibrated at the end."""
        if self.search:  # or they would be minima and maxima while training
            ghnq_quant.freeze_ranges(qmodel)
        optimize(qmodel, batch, range(steps), LEARNING_RATE, SGD)
        if not self.search:
            self.calibrate(qmodel, batches)
        if self.biases:
            ghnq_quant.correct_biases(qmodel, batches)


_TRAINED = f"{QAT_STEPS} steps behind"
_ALL = {"norms": True, "equalize": True, "biases": True, "stem": True}
METHODS = {
    "ranges": Method("activation ranges"),
    "norms": Method(
        "… and batch norms, as `calibrate`",
        norms=True,
        trained=f"{_TRAINED} `calibrate`, then again",
    ),
    "equalize": Method("ranges and `equalize`", equalize=True),
    "biases": Method("ranges and `correct_biases`", biases=True),
    "stem": Method("ranges and `stem_bits=8`", stem=True),
    "together": Method("ranges and these three", equalize=True, biases=True, stem=True),
    "all": Method(
        "`calibrate` and these three",
        **_ALL,
        trained=f"{_TRAINED} `calibrate` and these three, then `calibrate` and `correct_biases`",
    ),
    "mse": Method('`calibrate(ranges="mse")`, weights too', norms=True, search=True),
    "all-mse": Method(
        "… and these three",
        **_ALL,
        search=True,
        trained="… with searched ranges, frozen, then `correct_biases`",
    ),
}


def measure(task: Task) -> None:
    """All that is missing of one network; what needs no training first."""
    model = float_network(task.networks, task.name)

    def top1(bits: int, method: str, seed: int, steps: int) -> float:
        """Straight after quantization, or after ``steps`` of training."""
        chosen = METHODS[method]
        batch = training_batches(task.data.train, "cifar10", seed)  # augmented, as in float
        batches = [batch(number)[0] for number in range(BATCHES)]
        qmodel = chosen.quantized(model, bits, batches)
        if steps:
            chosen.train(qmodel, batch, steps, batches)
        return accuracy(qmodel, task.data.test)

    cases = [
        {"bits": bits, "method": method, "seed": seed, "steps": steps}
        for steps, seed, bits, method in itertools.product(
            (0, QAT_STEPS), range(SEEDS), BITS, METHODS
        )
        if steps in METHODS[method].titles()
    ]
    header = {"batches": BATCHES, "learning_rate": LEARNING_RATE, "float": task.float_result}
    task.measure(header, cases, top1)


def table(networks: list[Measured]) -> str:
    """Mean and standard deviation over the seeds."""
    lines = [["top-1, %", *(f"{n.title}, {bits} bits" for n in networks for bits in BITS)]]
    for steps, (method, chosen) in itertools.product((0, QAT_STEPS), METHODS.items()):
        if title := chosen.titles().get(steps):
            cells = [
                n.cell(bits=bits, method=method, steps=steps) for n in networks for bits in BITS
            ]
            lines.append([title, *cells])
    return markdown(lines)


if __name__ == "__main__":
    main(measure, table)
