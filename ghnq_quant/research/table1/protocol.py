"""The paper's protocol (section 3) for one network: all precisions in one pass over the images."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from ghnq_quant.capture import capture
from ghnq_quant.ghn import GHN
from ghnq_quant.quantization import fake_quantize
from ghnq_quant.quantization.scheme import FLOAT, FLOAT_BITS, Precision, precision_name
from ghnq_quant.research.data import Images, evaluation_batches
from ghnq_quant.research.table1.layers import layer_results
from ghnq_quant.research.table1.quantization_error import QuantizationError
from ghnq_quant.research.table1.results import NetworkResult, PrecisionResult
from ghnq_quant.research.table1.settings import BATCH_SIZE
from ghnq_quant.research.table1.variants import Variants, predicted_variants


def num_evaluated(available: int, wanted: int | None) -> int:
    """How many images are used: the wanted ones, less one that would be a batch of its own.

    The last batch may be smaller than the others, but a single image has no batch statistics.

    Example:
        >>> num_evaluated(10000, 1000), num_evaluated(10000, 129), num_evaluated(100, None)
        (1000, 128, 100)
    """
    count = available if wanted is None else min(wanted, available)
    return count - 1 if count % BATCH_SIZE == 1 else count


def measure_network(
    model: nn.Module,
    ghn: GHN,
    images: Images,
    precisions: Sequence[Precision],
    *,
    group: str,
    index: int,
    num_images: int | None = None,
    trained: Mapping[str, Tensor] | None = None,
    on_batch: Callable[[], None] = lambda: None,
) -> NetworkResult:
    """Evaluate one network with parameters that ``ghn`` predicts.

    Batches of 64 images in their fixed mixed order, batch norm with the statistics of the batch and
    folded anew for each, activations quantized over the range of the tensor at hand. Every batch is
    fed to the network at every precision. A hypernetwork with a precision embedding predicts
    parameters for each precision; their float network is then run as well, for the error to be
    measured against.

    Args:
        model: the network; it is not changed. Its parameters may be uninitialized.
        ghn: the hypernetwork, on the device that the network runs on.
        images: test images on that device.
        precisions: (weight, activation) bits, float among them.
        group: that the network is of, for the result.
        index: its number in the group.
        num_images: the first so many; None for all.
        trained: a ``state_dict`` whose distributions are described beside the predicted ones.
        on_batch: called after each batch.
    """
    start = time.perf_counter()
    captured = capture(model.to(images.labels.device))
    variants = predicted_variants(captured, ghn, precisions)
    count = num_evaluated(len(images), num_images)
    first, _ = next(evaluation_batches(images, BATCH_SIZE, limit=count))
    folded = {p: v.folded_weights(first) for p, v in variants.items()}
    tallies = {p: _Tally(p) for p in precisions}
    for group_precisions, weights in folded.items():
        for precision in group_precisions:
            tallies[precision].add_weights(weights)
    for x, y in evaluation_batches(images, BATCH_SIZE, limit=count):
        _run_batch(variants, tallies, x, y)
        on_batch()
    by_float = next(p for p in variants if FLOAT in p)
    return NetworkResult(
        group=group,
        index=index,
        parameters=sum(p.numel() for p in captured.root.parameters()),
        images=count,
        seconds=time.perf_counter() - start,
        precisions={precision_name(p): tallies[p].result(count) for p in precisions},
        layers=layer_results(captured, variants[by_float], folded[by_float], first, index, trained),
    )


def _run_batch(
    variants: Mapping[tuple[Precision, ...], Variants],
    tallies: Mapping[Precision, _Tally],
    x: Tensor,
    y: Tensor,
) -> None:
    with torch.inference_mode():
        for precisions, variant in variants.items():
            reference = variant.float_logits(x)
            for precision in precisions:
                if precision == FLOAT:
                    tallies[precision].add_logits(reference, y)
                else:
                    tallies[precision].add_logits(variant.quantized[precision](x), y, reference)


class _Tally:
    """Adds up what is measured at one precision."""

    def __init__(self, precision: Precision) -> None:
        self.weight_bits = precision[0]
        self.top1 = self.top5 = self.nonfinite = 0
        self.weights, self.outputs = QuantizationError(), QuantizationError()

    def add_weights(self, folded: Mapping[str, Tensor]) -> None:
        if self.weight_bits != FLOAT_BITS:
            for weight in folded.values():
                self.weights.add(weight, fake_quantize(weight, self.weight_bits))

    def add_logits(self, logits: Tensor, labels: Tensor, reference: Tensor | None = None) -> None:
        finite = logits.isfinite().all(1)
        best = logits.topk(min(5, logits.shape[1]), dim=1).indices
        self.top1 += int(((logits.argmax(1) == labels) & finite).sum())
        self.top5 += int(((best == labels[:, None]).any(1) & finite).sum())
        self.nonfinite += int((~finite).sum())
        if reference is not None:
            self.outputs.add(reference, logits)

    def result(self, images: int) -> PrecisionResult:
        return PrecisionResult(
            top1=100 * self.top1 / images,
            top5=100 * self.top5 / images,
            nonfinite_images=self.nonfinite,
            weight_mse=self.weights.mse,
            weight_snr_db=self.weights.snr_db,
            output_mse=self.outputs.mse,
            output_snr_db=self.outputs.snr_db,
        )
