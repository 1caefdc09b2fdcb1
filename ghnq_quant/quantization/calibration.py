"""Running statistics and activation ranges from a few batches, without training."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from ghnq_quant.errors import DataError
from ghnq_quant.quantization.distinct import warn_of_equal_outputs
from ghnq_quant.quantization.graph_rewrite import QUANTIZERS
from ghnq_quant.quantization.model import QuantModel
from ghnq_quant.quantization.progress import with_bar
from ghnq_quant.quantization.ranges import RunningRange


def calibrate(qmodel: QuantModel, batches: Iterable[Tensor | tuple[Tensor, ...]]) -> QuantModel:
    """Fill a quantized model's running batch-norm statistics and activation ranges.

    Both start anew: batch norms average all batches with equal weight, activation ranges are the
    moving average of the batches'. One warning says so where the calibrated model hardly tells the
    first batch's images apart. Parameters, and the modes of all modules, stay as they are. On a
    terminal a bar shows how far it is, once it takes more than two seconds.

    Args:
        qmodel: of :func:`ghnq_quant.init_quantized`.
        batches: of images (N, C, H, W) on the model's device, alone or first in a tuple (labels
            behind them are not used).

    Returns:
        ``qmodel`` itself.

    Raises:
        DataError: there is no batch, or one that is empty or no tensor.
    """
    iterator = image_batches(batches, "calibrate")
    images = next(iterator)
    with statistics_of_batches(qmodel), torch.no_grad():
        quantizers = getattr(qmodel, QUANTIZERS).train()
        for module in quantizers.modules():
            if isinstance(module, RunningRange):
                module.reset()
        qmodel(images)
        for batch in iterator:
            qmodel(batch)
    qmodel.refresh()
    with torch.no_grad():
        warn_of_equal_outputs(qmodel, images, stacklevel=2)
    return qmodel


@contextmanager
def statistics_of_batches(model: nn.Module) -> Iterator[None]:
    """Eval, in which batch norms normalize by each batch and average all batches' statistics anew;
    on leaving, the modes of all modules are as they were."""
    modes = {m: m.training for m in model.modules()}
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    try:
        model.eval()
        for norm in norms:
            norm.train()
            norm.reset_running_stats()
            norm.momentum = None  # a cumulative average
        yield
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
        for module, training in modes.items():
            module.training = training


def image_batches(
    batches: Iterable[Tensor | tuple[Tensor, ...]], function: str
) -> Iterator[Tensor]:
    """The images of each batch that ``function`` got; at least one.

    Raises:
        DataError: there is no batch, or one that is empty or no tensor.
    """
    if isinstance(batches, Tensor):
        raise DataError(
            f"{function} got one tensor of shape {tuple(batches.shape)}: give batches of images, such "
            "as a list that holds it"
        )
    empty = True
    for batch in with_bar(batches, function):
        empty = False
        images = batch if isinstance(batch, Tensor) else next(iter(batch), None)
        if not isinstance(images, Tensor) or images.numel() == 0:
            what = f"of shape {tuple(images.shape)}" if isinstance(images, Tensor) else repr(images)
            raise DataError(f"{function} got a batch without images, {what}: give (N, C, H, W)")
        yield images
    if empty:
        raise DataError(f"{function} got no batch: give at least one of images (N, C, H, W)")
