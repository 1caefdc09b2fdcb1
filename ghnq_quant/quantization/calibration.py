"""Running statistics and ranges from a few batches, without training."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from ghnq_quant.errors import DataError, SchemeError
from ghnq_quant.quantization.batch_norm import FoldsBatchNorm, has_running_statistics
from ghnq_quant.quantization.distinct import warn_of_equal_outputs
from ghnq_quant.quantization.folding import folded_weight
from ghnq_quant.quantization.graph_rewrite import QUANTIZERS
from ghnq_quant.quantization.model import QuantModel
from ghnq_quant.quantization.progress import with_bar
from ghnq_quant.quantization.quantizer import Quantizer, check_one_of
from ghnq_quant.quantization.range_search import Histogram, Range
from ghnq_quant.quantization.ranges import (
    HeldRange,
    LearnedRange,
    RunningRange,
)

Search = Literal["percentile", "mse"]
#: A function of each batch that gives the range of all batches so far.
Measure = Callable[[Tensor], Range]


def calibrate(
    qmodel: QuantModel,
    batches: Iterable[Tensor | tuple[Tensor, ...]],
    *,
    ranges: Search | None = None,
    percentile: float = 99.99,
    batch_norms: bool = True,
) -> QuantModel:
    """Fill a quantized model's running batch-norm statistics and ranges.

    Everything is measured from scratch. Batch norms average all batches with equal weight.
    Activation ranges follow their quantizers' ``range`` (``"ema"``: the moving average of the
    batches' ranges; a learned one begins with that of least squared error). Ranges of weights are
    searched with the new statistics folded in. Learned ranges that training has moved stay, unless
    ``ranges`` is given. What :func:`~ghnq_quant.freeze_batch_norms` and
    :func:`~ghnq_quant.freeze_ranges` have frozen stays too, and so do searched ranges of weights
    while ranges are frozen.
    Other parameters, and the modes of all modules, do not change. A warning says if the calibrated
    model hardly tells the first batch's images apart. On a terminal a progress bar appears after
    two seconds.

    A searched range comes from a histogram of all values so far (64 KiB per quantizer), and each
    batch is quantized with it on its way to the next layer.

    Args:
        qmodel: a model from :func:`ghnq_quant.init_quantized` or :func:`ghnq_quant.quantize`.
        batches: batches of images (N, C, H, W) on the model's device, alone or first in a tuple (labels
            after them are ignored).
        ranges: ``"mse"`` (the shrunk version of the range from minimum to maximum whose quantization
            has the smallest squared error) or ``"percentile"``, for all activations except those of
            range ``"batch"``. In training, a moving average and a learned range continue from there;
            a range of ``"mse"`` or ``"percentile"`` does not change.
        percentile: above 50, up to 100: the range goes from the (100 − percentile)th to this
            percentile of the values.
        batch_norms: False keeps the running statistics, such as those of float training, and
            measures only ranges.

    Returns:
        ``qmodel`` itself.

    Raises:
        DataError: there is no batch, or one is empty or not a tensor; with a search, activations
            that are not finite; a batch norm without running statistics to keep.
        SchemeError: an invalid search or percentile, or ``ranges`` for a model whose ranges are frozen
            or that quantizes over the range of each batch.

    Example:
        >>> import ghnq_quant, torch
        >>> qmodel = ghnq_quant.quantize(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU()), bits=4)
        >>> batches = [torch.randn(16, 3, 8, 8) for _ in range(4)]
        >>> _ = ghnq_quant.calibrate(qmodel, batches, ranges="percentile", percentile=99.9)
    """
    check_one_of(ranges, (None, *get_args(Search)), "ranges")
    if isinstance(percentile, bool) or not 50 < percentile <= 100:
        raise SchemeError(f"percentile={percentile!r}: expected a number above 50, up to 100")
    if ranges is not None and qmodel.ranges_frozen:
        raise SchemeError(
            f"ranges={ranges!r}: the ranges are frozen: call ghnq_quant.unfreeze_ranges(model) first, "
            "or leave ranges= out to keep them"
        )
    found = _running_ranges(qmodel)
    if ranges is not None and not found and len(getattr(qmodel, QUANTIZERS)):
        raise SchemeError(
            f"ranges={ranges!r}: every activation is quantized over the range of each batch, so no "
            f"range is kept: use QuantScheme(act_range={ranges!r})"
        )
    lacking = [n for n, m in qmodel.batch_norms().items() if not has_running_statistics(m)]  # type: ignore[arg-type]
    if lacking and not batch_norms and qmodel.scheme.bn == "running":
        raise DataError(
            f"calibrate(batch_norms=False): {lacking[0]!r} has no running statistics to keep: load "
            "trained ones, or leave batch_norms=False out"
        )
    iterator = image_batches(batches, "calibrate")
    images = next(iterator)
    if ranges is not None:
        for learned in qmodel.learned_ranges().values():
            learned.reset()
    kept = qmodel.ranges_frozen
    norms = batch_norms and not qmodel.batch_norms_frozen
    with statistics_of_batches(qmodel, batch_norms=norms, weight_ranges=not kept), torch.no_grad():
        getattr(qmodel, QUANTIZERS).train(not kept)
        with _ranges_of_batches({} if kept else found, ranges, percentile):
            qmodel(images)
            for batch in iterator:
                qmodel(batch)
    if not kept:
        begin_weight_ranges(qmodel)
    qmodel.refresh()
    warn_of_equal_outputs(qmodel, images)
    return qmodel


def _running_ranges(qmodel: QuantModel) -> dict[str, tuple[nn.Module, RunningRange]]:
    """Each activation quantizer that keeps a range: its module and the range, by name."""
    return {
        name: (quantizer, held)
        for name, quantizer in getattr(qmodel, QUANTIZERS).named_children()
        for held in quantizer.modules()
        if isinstance(held, RunningRange)
    }


@contextmanager
def _ranges_of_batches(
    found: dict[str, tuple[nn.Module, RunningRange]], ranges: Search | None, percentile: float
) -> Iterator[None]:
    """Set each quantizer's range, before it sees a batch, to that of all batches up to this one."""
    hooks, moving = [], []
    for name, (quantizer, held) in found.items():
        search = ranges or held.quantizer.range
        if search == "ema":
            held.reset()
            continue
        if isinstance(held, LearnedRange) and held.is_trained():
            continue
        measure = _measure(search, held.quantizer, percentile)
        hooks.append(quantizer.register_forward_pre_hook(_set_range(name, held, measure)))
        if held.moves:
            moving.append(held)
            held.moves = False
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
        for held in moving:
            held.moves = True


def _set_range(name: str, held: RunningRange, measure: Measure) -> Callable[..., None]:
    """A hook that sets the range of the quantizer ``name`` to that of all its inputs so far."""

    def hook(_: nn.Module, args: tuple[Tensor, ...]) -> None:
        if not args[0].isfinite().all():
            raise DataError(
                f"'{QUANTIZERS}.{name}' got values that are not finite, which have no range: check "
                "the images, and the weights of the layers before it"
            )
        held.set_range(*measure(args[0]))

    return hook


def _measure(search: str | None, quantizer: Quantizer, percentile: float) -> Measure:
    histogram = Histogram()

    def measure(x: Tensor) -> Range:
        histogram.add(x)
        if search == "percentile":
            return histogram.percentile_range(percentile)
        return histogram.least_error_range(quantizer)

    return measure


@torch.no_grad()
def begin_weight_ranges(qmodel: QuantModel) -> None:
    """Set the searched and learned ranges of all weights, except those that training has moved and
    those whose batch norm has no running statistics yet: the first batch sets them."""
    for unit in qmodel.plan.units:
        layer: Any = qmodel.get_submodule(unit.name)
        held = [m for m in layer.modules() if isinstance(m, HeldRange) and not m.is_trained()]
        if not held:
            continue
        weight = layer.weight
        if unit.batch_norm is not None:
            norm: Any = qmodel.get_submodule(unit.batch_norm)
            if not has_running_statistics(norm):
                continue
            if isinstance(layer, FoldsBatchNorm):
                weight = layer.folded_weight()
            else:  # pt2e's, which folds constant channels as torchao does
                weight = folded_weight(weight, norm, norm.running_var)
        for module in held:
            module.begin(weight)


@contextmanager
def statistics_of_batches(
    model: nn.Module, *, batch_norms: bool = True, weight_ranges: bool = True
) -> Iterator[None]:
    """Eval in which ``batch_norms`` normalize by each batch and average all batches' statistics from
    scratch, and ``weight_ranges`` are searched again; on leaving, all modules return to their modes."""
    modes = {m: m.training for m in model.modules()}
    found = (m for m in modes if isinstance(m, nn.modules.batchnorm._BatchNorm))
    norms = list(found) if batch_norms else []
    momenta = [norm.momentum for norm in norms]
    try:
        model.eval()
        for norm in norms:
            norm.train()
            norm.reset_running_stats()
            norm.momentum = None  # a cumulative average
        for module in modes:
            if weight_ranges and isinstance(module, HeldRange) and module.of_weight:
                module.train()
                if not module.is_trained():
                    module.reset()  # the first batch sets it
        yield
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
        for module, training in modes.items():
            module.training = training


def image_batches(
    batches: Iterable[Tensor | tuple[Tensor, ...]], function: str
) -> Iterator[Tensor]:
    """The images of each batch passed to ``function``; at least one.

    Raises:
        DataError: there is no batch, or one is empty or not a tensor.
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
