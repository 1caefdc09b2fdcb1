"""The paper's protocol (section 3) for one network: all precisions in one pass over the images."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from ghnq_quant.capture import Capture, capture
from ghnq_quant.ghn import GHN
from ghnq_quant.quantization.scheme import FLOAT, Precision, precision_name
from ghnq_quant.research.data import Images, evaluation_batches
from ghnq_quant.research.runs.seeds import EVALUATION_SEED
from ghnq_quant.research.table1.distributions import describe_layers
from ghnq_quant.research.table1.results import LayerResult, NetworkResult
from ghnq_quant.research.table1.settings import BATCH_SIZE
from ghnq_quant.research.table1.tally import Tally
from ghnq_quant.research.table1.variants import (
    Variants,
    channels_last,
    initial_variants,
    predicted_variants,
    trained_variants,
)


def num_evaluated(available: int, wanted: int | None) -> int:
    """The number of images to use: those wanted, minus one that would be alone in a batch.

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
    channel_limit: float | None = None,
    trained: Mapping[str, Tensor] | None = None,
    on_batch: Callable[[], None] = lambda: None,
) -> NetworkResult:
    """Evaluate one network with parameters that ``ghn`` predicts.

    Batches of 64 images in a fixed mixed order; batch norm uses the statistics of the batch and is
    folded for each batch; activations are quantized over the range of each tensor. Every batch runs
    at every precision. A hypernetwork that is told the precision predicts parameters for
    each; the float network with these parameters then runs too, as the reference for the error.

    Args:
        model: the network; it is not changed. Its parameters may be uninitialized.
        ghn: the hypernetwork, on the device that the network runs on.
        images: test images on that device.
        precisions: (weight, activation) bits, float among them.
        group: the network's group, for the result.
        index: its number in the group; also the seed of the initialization that predicted parameters
            are compared with.
        num_images: number of images, from the first; None for all.
        channel_limit: of the quantized networks, see :class:`ghnq_quant.QuantScheme`.
        trained: a ``state_dict`` whose distributions are described beside the predicted ones.
        on_batch: called after each batch.

    Raises:
        GhnqError: the network cannot be captured or predicted, or ``trained`` belongs to another.
    """
    start = time.perf_counter()
    captured = capture(model.to(images.labels.device))
    count = num_evaluated(len(images), num_images)
    first, _ = next(evaluation_batches(images, BATCH_SIZE, limit=count))
    predicted = predicted_variants(captured, ghn, precisions, first, channel_limit)
    layers = _describe_layers(captured, predicted, trained, index, first)
    tallies = {p: Tally(p, v.folded_weights) for v in predicted for p in v.precisions}
    for x, y in evaluation_batches(images, BATCH_SIZE, limit=count):
        _run_batch(predicted, tallies, x, y)
        on_batch()
    return NetworkResult(
        group=group,
        index=index,
        parameters=sum(p.numel() for p in captured.root.parameters()),
        images=count,
        seconds=time.perf_counter() - start,
        precisions={precision_name(p): tally.result(count) for p, tally in tallies.items()},
        layers=layers,
    )


def _describe_layers(
    captured: Capture,
    predicted: Sequence[Variants],
    trained: Mapping[str, Tensor] | None,
    index: int,
    batch: Tensor,
) -> tuple[LayerResult, ...]:
    sources = {
        "predicted": next(v for v in predicted if FLOAT in v.precisions),
        "initial": initial_variants(captured, EVALUATION_SEED + index, batch),
    }
    if trained is not None:
        sources["trained"] = trained_variants(captured, trained, batch)
    return describe_layers(captured, sources)


def _run_batch(
    predicted: Sequence[Variants], tallies: Mapping[Precision, Tally], x: Tensor, y: Tensor
) -> None:
    with torch.inference_mode():
        for variants in predicted:
            reference = variants.float_model(channels_last(x))
            for precision in variants.precisions:
                if precision == FLOAT:
                    tallies[precision].add_logits(reference, y)
                else:
                    tallies[precision].add_logits(variants.quantized[precision](x), y, reference)
