"""Whether predicted parameters rank networks as training does, and layers by the harm of few bits.

python docs/examples/ranking.py --data cifar10.npz -o docs/results/ranking.jsonl

Of the first small networks of the split test: top-1 as predicted against top-1 after training from
PyTorch's initialization, in float; and the harm of quantizing each layer's weight
(ghnq_quant.sensitivity) with predicted and with initial parameters against the harm with trained ones.
Both by Kendall's tau: 1 for the same order, 0 for none. Stopped and called again, it goes on with what
is missing; with --table it prints the tables of what is there.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from typing import Any

import torch
from accuracies import options
from float_networks import accuracy, accuracy_as_it_is
from scipy.stats import bootstrap, kendalltau
from torch import nn
from torch.optim.swa_utils import update_bn

import ghnq_quant
from ghnq_quant.research.data import ImageSet, evaluation_batches, load_images
from ghnq_quant.research.networks import ConvNets250K, SampledNetwork
from ghnq_quant.research.runs.journal import Journal, read_journal
from ghnq_quant.research.runs.tables import markdown
from ghnq_quant.research.starts.training import SGD, optimize, seeded, training_batches
from ghnq_quant.research.table1.summary import summarize

NETWORKS, MAX_MACS = 20, 15_000_000
STEPS, RATE, SEED = 2000, 0.1, 0
#: Layers' harm is measured at these bits, on so many training images.
BITS, IMAGES = (2, 3, 4), 512


@dataclass(frozen=True)
class Result:
    """One network: top-1 in %, and Kendall's tau over its layers by parameters and bits."""

    index: int
    parameters: int
    macs: int
    predicted: float
    trained: float
    layers: Mapping[str, Mapping[str, float]]
    seconds: float

    @property
    def key(self) -> int:
        return self.index

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Result:
        return cls(**content)


def small_networks() -> list[SampledNetwork]:
    small = (n for n in ConvNets250K("test") if n.program.macs <= MAX_MACS)
    return list(islice(small, NETWORKS))


def measure(item: SampledNetwork, data: ImageSet) -> Result:
    begun = time.perf_counter()
    calibration = [x for x, _ in evaluation_batches(data.train, limit=IMAGES)]
    initial, predicted, trained = (seeded(lambda _: item.build(), 10, SEED) for _ in range(3))
    with torch.no_grad():
        for name, p in ghnq_quant.predict_parameters(predicted).items():
            predicted.get_parameter(name).copy_(p)
    optimize(trained, training_batches(data.train, "cifar10", SEED), range(STEPS), RATE, SGD)
    harms = {}
    for source, model in (("initial", initial), ("predicted", predicted), ("trained", trained)):
        update_bn(calibration, model)  # of the same images for all three
        harms[source] = harm_of_layers(model.eval(), calibration)
    return Result(
        item.index,
        item.program.num_parameters,
        item.program.macs,
        # with the statistics of each batch, as the paper measures it
        round(accuracy_as_it_is(predicted.train(), data.test), 2),
        round(accuracy(trained, data.test), 2),
        {
            source: {str(b): round(tau(harms[source][b], harms["trained"][b]), 4) for b in BITS}
            for source in ("initial", "predicted")
        },
        round(time.perf_counter() - begun, 1),
    )


def harm_of_layers(model: nn.Module, batches: list[torch.Tensor]) -> dict[int, list[float]]:
    layers = ghnq_quant.sensitivity(model, batches, bits=BITS).layers
    return {b: [layer.harm[b] for layer in layers] for b in BITS}


def tau(a: Sequence[float], b: Sequence[float]) -> float:
    return float(kendalltau(a, b).statistic)


def table(results: Sequence[Result]) -> str:
    """Over networks with a standard error by the bootstrap; over layers, mean and standard error."""
    trained = [r.trained for r in results]
    predictors: dict[str, Callable[[Result], float]] = {
        "top-1 as predicted": lambda r: r.predicted,
        "parameters": lambda r: r.parameters,
        "multiply-accumulates": lambda r: r.macs,
    }
    networks = [[f"{len(results)} networks, ranked by", "tau with top-1 as trained"]]
    for title, value in predictors.items():
        pairs = ([value(r) for r in results], trained)
        error = bootstrap(
            pairs, tau, paired=True, vectorized=False, rng=0, n_resamples=1000, method="percentile"
        )
        networks.append([title, f"{tau(*pairs):.2f} ± {error.standard_error:.2f}"])
    layers = [["layers, ranked by the harm with", *(f"{b} bits" for b in BITS)]]
    for source in ("initial", "predicted"):
        cells = []
        for bits in BITS:
            found = summarize(r.layers[source][str(bits)] for r in results)
            cells.append(f"{found.mean:.2f} ± {found.standard_error:.2f}")
        layers.append([f"{source} parameters", *cells])
    spread = f"{min(trained):.1f} to {max(trained):.1f}"
    return f"Trained: {spread} %.\n\n{markdown(networks)}\n\n{markdown(layers)}"


def main() -> None:
    args = options().parse_args()
    torch.set_num_threads(1)
    if not args.table:
        data = load_images(args.data)
        header = {"steps": STEPS, "rate": RATE, "max_macs": MAX_MACS, "images": IMAGES}
        journal = Journal(args.output, header, Result)
        finished = journal.resume()
        for item in small_networks():
            if item.index not in finished:
                result = measure(item, data)
                journal.append(result)
                print(result, flush=True)
    print(table(list(read_journal(args.output, Result).values())))


if __name__ == "__main__":
    main()
