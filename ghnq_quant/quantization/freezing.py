"""Batch norms and activation ranges that stay fixed while the rest is trained."""

from __future__ import annotations

from torch import nn

from ghnq_quant.errors import DataError, SchemeError
from ghnq_quant.quantization.batch_norm import has_running_statistics
from ghnq_quant.quantization.graph_rewrite import QUANTIZERS
from ghnq_quant.quantization.model import QuantModel
from ghnq_quant.quantization.ranges import RunningRange


def freeze_batch_norms(qmodel: QuantModel) -> QuantModel:
    """Fold the running statistics in training too, and stop updating them.

    Training then computes what eval does, with one convolution instead of two. Scale and shift of
    the batch norms (γ, β) still learn. This is usual near the end of a training (Krishnamoorthi
    2018, section 3.2.2; ``freeze_bn_stats`` of torch.ao).

    ``train()``, ``eval()``, copies and pickles keep batch norms frozen; a ``state_dict`` does not,
    so freeze again after loading one into a new model.

    Args:
        qmodel: a model from :func:`ghnq_quant.init_quantized` or :func:`ghnq_quant.quantize`.

    Returns:
        ``qmodel`` itself.

    Raises:
        DataError: a batch norm without running statistics.
        SchemeError: a model whose scheme has ``bn="batch"``.

    Example:
        >>> import ghnq_quant, torch
        >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU())
        >>> qmodel = ghnq_quant.quantize(model, 4, backend="reference")
        >>> qmodel = ghnq_quant.calibrate(qmodel, [torch.randn(4, 3, 8, 8)])
        >>> freeze_batch_norms(qmodel).train().get_submodule("1").training
        False
    """
    if qmodel.scheme.bn == "batch":
        raise SchemeError(
            "freeze_batch_norms: this model's scheme has bn='batch', which uses the batch's "
            "statistics in eval: create it with bn='running'"
        )
    _check({n: has_running_statistics(m) for n, m in qmodel.batch_norms().items()})  # type: ignore[arg-type]
    qmodel.batch_norms_frozen = True
    qmodel.refresh()
    return qmodel


def unfreeze_batch_norms(qmodel: QuantModel) -> QuantModel:
    """Undo :func:`freeze_batch_norms`: batch norms follow the mode of ``qmodel`` again."""
    qmodel.batch_norms_frozen = False
    return _in_its_mode(qmodel, qmodel.batch_norms())


def freeze_ranges(qmodel: QuantModel) -> QuantModel:
    """Stop updating activation ranges, and learned ranges of weights, in training too.

    Moving averages keep their values; scales and offsets of learned ranges get
    ``requires_grad=False``. Other weights still follow their own range, since they change with
    every step. Modes, copies and states: as for :func:`freeze_batch_norms`.

    Args:
        qmodel: a model from :func:`ghnq_quant.init_quantized` or :func:`ghnq_quant.quantize`.

    Returns:
        ``qmodel`` itself.

    Raises:
        DataError: a range that has seen no batch yet.
        SchemeError: no range of this model is moving or learned: they are the batch's, or calibrated.
    """
    moving, learned = qmodel.moving_ranges(), qmodel.learned_ranges()
    if not moving and not learned and any(True for _ in getattr(qmodel, QUANTIZERS).children()):
        raise SchemeError(
            f"freeze_ranges: no range of this model is moving or learned (act_range="
            f"{qmodel.scheme.act_range!r}), so there is none to freeze"
        )
    ranges = moving | learned
    _check({n: m.has_statistics() for n, m in ranges.items() if isinstance(m, RunningRange)})
    qmodel.ranges_frozen = True
    _learn(qmodel, False)
    qmodel.refresh()
    return qmodel


def unfreeze_ranges(qmodel: QuantModel) -> QuantModel:
    """Undo :func:`freeze_ranges`: ranges follow the mode of ``qmodel`` again, and learned ones learn
    again."""
    qmodel.ranges_frozen = False
    _learn(qmodel, True)
    return _in_its_mode(qmodel, qmodel.moving_ranges())


def _learn(qmodel: QuantModel, learned: bool) -> None:
    for parameter in qmodel.range_parameters():
        parameter.requires_grad_(learned)


def _check(has_statistics: dict[str, bool]) -> None:
    missing = [name for name, there in has_statistics.items() if not there]
    if missing:
        raise DataError(
            f"{missing[0]!r} and {len(missing) - 1} more have no running statistics to freeze: train "
            "first, or call ghnq_quant.calibrate(model, batches)"
        )


def _in_its_mode(qmodel: QuantModel, modules: dict[str, nn.Module]) -> QuantModel:
    for module in modules.values():
        module.training = qmodel.training
    qmodel.refresh()
    return qmodel
