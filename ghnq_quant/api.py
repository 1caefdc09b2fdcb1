"""The two-line stories: parameters for a float model, a start for its training, and a quantized model."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import replace
from typing import Any, Literal, overload

import torch
from torch import Tensor, nn

from ghnq_quant.capture import Capture, capture
from ghnq_quant.errors import SchemeError
from ghnq_quant.prediction import (
    Hypernetwork,
    load_ghn,
    predict_captured,
    warn_of_kept,
    warn_of_losses,
    warn_of_skipped,
)
from ghnq_quant.quantization import QuantModel, QuantScheme, calibrate, emit, load_backend
from ghnq_quant.quantization.quantizer import FLOAT_BITS, check_bits
from ghnq_quant.quantization.scheme import FLOAT, Bits, as_pair, as_quantizers
from ghnq_quant.sample import CALIBRATION_IMAGES, read_sample
from ghnq_quant.start import Classifier, Start, reset_running_statistics, simulation, with_values


@overload
def predict_parameters(
    model: nn.Module,
    ghn: Hypernetwork | None = None,
    *,
    bits: int | tuple[int, int] = FLOAT_BITS,
    example_input: Tensor | None = None,
) -> dict[str, Tensor]: ...


@overload
def predict_parameters(
    model: list[nn.Module],
    ghn: Hypernetwork | None = None,
    *,
    bits: int | tuple[int, int] = FLOAT_BITS,
    example_input: Tensor | None = None,
) -> list[dict[str, Tensor]]: ...


def predict_parameters(
    model: nn.Module | list[nn.Module],
    ghn: Hypernetwork | None = None,
    *,
    bits: int | tuple[int, int] = FLOAT_BITS,
    example_input: Tensor | None = None,
) -> dict[str, Tensor] | list[dict[str, Tensor]]:
    """Predict all parameters of a convolutional network in one pass of the hypernetwork.

    A GHN-3 predicts vision transformers too, such as torchvision's ``vit_b_16`` and ``swin_t``.

    Args:
        model: the network; it is not changed. A list of networks is predicted as one batch.
        ghn: the hypernetwork, or what :meth:`GHN.from_pretrained` loads: a folder, a name, a file; by
            default the checkpoint ``ghnq-cifar10`` that the package ships.
        bits: precision that the parameters are meant for, as one bit width or as (weight,
            activation); only a hypernetwork with a precision embedding reads it.
        example_input: (N, C, H, W), to check that the network runs on its shape.

    Returns:
        for each parameter of ``model``, in the order of ``named_parameters()``, its name and a
        tensor of its shape, dtype and device. A classification layer of another number of classes
        than the hypernetwork's, and parameters that no node of the graph stands for, keep their
        own values; one warning names them.

    Raises:
        CaptureError: the network cannot be captured.
        CheckpointError: ``ghn`` names no checkpoint, or a damaged one.
        PredictionError: a parameter cannot be predicted, or its prediction is not finite.

    Example:
        >>> import ghnq_quant, torch, torchvision
        >>> model = torchvision.models.resnet18(num_classes=10)
        >>> parameters = ghnq_quant.predict_parameters(model)
        >>> parameters["conv1.weight"].shape
        torch.Size([64, 3, 7, 7])
    """
    models = model if isinstance(model, list) else [model]
    ghn = load_ghn(ghn)
    attention = ghn.graph_rules == "ghn3"
    captures = [capture(m, example_input, attention=attention) for m in models]
    predicted = predict_captured(captures, ghn, as_pair(bits))
    for captured, values in zip(captures, predicted, strict=True):
        warn_of_kept(captured, values)
    results = [
        {
            name: p.detach().clone() if new is None else new
            for (name, p), new in zip(m.named_parameters(), new_values, strict=True)
        }
        for m, new_values in zip(models, predicted, strict=True)
    ]
    return results if isinstance(model, list) else results[0]


def initialize(
    model: nn.Module,
    data: Iterable[Any] | None = None,
    *,
    ghn: Hypernetwork | None = None,
    share: float | None = None,
    classifier: Classifier = "fitted",
    example_input: Tensor | None = None,
    skip: Literal["unsupported"] | None = None,
) -> nn.Module:
    """Give a float network a start that trains faster than PyTorch's.

    The weights of the first convolutions are predicted by GHN-Q; all other layers keep the
    initialization that ``model`` has, except the last, which is fitted to some images of the task.
    That takes as long as seven or eight steps of training with batches of 64.

    Args:
        model: a new network, with its own initialization; it is not changed.
        data: batches (images, labels) of the task in a mixed order, as a training loader gives them:
            floats (N, C, H, W), normalized as for training, and class numbers (N,). The first
            1,000 images are read.
        ghn: the hypernetwork, or what :meth:`GHN.from_pretrained` loads: a folder, a name, a file; by
            default the checkpoint ``ghnq-cifar10`` that the package ships.
        share: how many of the convolutions are predicted, in order of depth from the image, as a
            share of all, rounded up; a quarter by default.
        classifier: of the layer that gives the logits: ``"fitted"`` to ``data`` by multinomial
            logistic regression (without data it stays new); ``"new"`` keeps the model's own;
            ``"predicted"`` means the classes that the hypernetwork was trained on, CIFAR-10's.
        example_input: (N, C, H, W), to check that the network runs on its shape.
        skip: ``"unsupported"`` leaves the modules new that cannot be captured, such as attention.

    Returns:
        a new model of the same class. With ``data``, its batch norms' running statistics are those
        of the images; without, they are as new.

    Raises:
        CaptureError: the network cannot be captured.
        CheckpointError: ``ghn`` names no checkpoint, or a damaged one.
        PredictionError: a share outside of 0 to 1, or a parameter cannot be predicted.
        DataError: ``data`` gives no batch, one of another form, values that are not finite, labels
            without an output, or one class alone.

    Example:
        >>> import ghnq_quant, torch, torchvision
        >>> model = torchvision.models.resnet18(num_classes=3)
        >>> images, labels = torch.randn(64, 3, 32, 32), torch.arange(64) % 3
        >>> model = ghnq_quant.initialize(model, data=[(images, labels)])
        >>> float((model(images).argmax(1) == labels).float().mean()) > 0.9
        True
    """
    start = Start(share, classifier)
    captured = capture(model, example_input, skip=skip)
    sample = None if data is None else read_sample(data, next(model.parameters()))
    values = start.values(captured, ghn, FLOAT)
    warn_of_skipped(captured)
    started = copy.deepcopy(model)
    with torch.no_grad():
        for p, value in zip(started.parameters(), values, strict=True):
            if value is not None:
                p.copy_(value)
    reset_running_statistics(started)
    if sample is not None:
        start.fit(started, captured, sample)
    return started


def init_quantized(
    model: nn.Module,
    bits: Bits | tuple[Bits, Bits] = 4,
    data: Iterable[Any] | None = None,
    *,
    act_bits: int | None = None,
    stem_bits: int | None = None,
    backend: str = "brevitas",
    ghn: Hypernetwork | None = None,
    scheme: QuantScheme | None = None,
    share: float | None = None,
    classifier: Classifier = "fitted",
    example_input: Tensor | None = None,
    skip: Literal["unsupported"] | None = None,
    as_predicted: bool = False,
) -> QuantModel:
    """Turn a float network into one that is ready for quantization-aware training, with the start of
    :func:`initialize`.

    Args:
        model: a new network, with its own initialization; it is not changed.
        bits: bit width of weights and activations, or a (weight, activation) pair: 2 to 8, 32 for
            float; or a :class:`Quantizer` in place of a number.
        data: as for :func:`initialize`: the classifier is fitted, and running statistics and
            activation ranges are calibrated. That takes as long as some ten steps of training.
            Without data the classifier is new and the first batches of the training make the ranges.
        act_bits: bit width of activations where it differs.
        stem_bits: bit width of the weights of the layers that read the image, where it differs: 8 is
            usual, and helps predicted weights most. An override of ``scheme`` takes precedence.
        backend: toolkit of the quantized layers: ``"brevitas"``, ``"torch_ao"``, ``"pt2e"``
            (torchao's export flow), ``"reference"`` (plain PyTorch) or one registered under the
            entry-point group ``ghnq_quant.backends``.
        ghn, share, classifier: as for :func:`initialize`.
        scheme: in place of ``bits`` and ``act_bits``, everything that a :class:`QuantScheme` can
            say.
        example_input: (N, C, H, W), to check that the network runs on its shape; ``"pt2e"`` needs
            it: what its model computes from the images' size is fixed then.
        skip: ``"unsupported"`` leaves modules that cannot be captured, such as attention, in float
            with their own initialization; a warning and the returned model's attribute ``skipped``
            name them.
        as_predicted: all parameters exactly as :func:`predict_parameters` gives them, as in the
            paper's evaluation, with ``share`` at 1; ``data`` is then used to calibrate only.

    Returns:
        a new model. Its modules, parameters and buffers have the names they had; running
        statistics are those of ``data``, or of an untrained network.

    Raises:
        SchemeError: a bit width that does not exist, or an override that matches no layer.
        BackendError: an unknown backend, or one whose toolkit is not installed.
        CaptureError: the network cannot be captured.
        CheckpointError: ``ghn`` names no checkpoint, or a damaged one.
        PredictionError: a share outside of 0 to 1, or a parameter cannot be predicted.
        DataError: as for :func:`initialize`.

    Example:
        >>> import ghnq_quant, torch, torchvision
        >>> model = torchvision.models.mobilenet_v2(num_classes=3)
        >>> images, labels = torch.randn(64, 3, 32, 32), torch.arange(64) % 3
        >>> qat = ghnq_quant.init_quantized(model, bits=4, data=[(images, labels)], stem_bits=8)
        >>> qat(images).shape
        torch.Size([64, 3])
    """
    start = Start(share, classifier, as_predicted)
    scheme = _scheme(bits, act_bits, scheme)
    layers = load_backend(backend)
    captured = capture(model, example_input, skip=skip)
    scheme = with_stem_bits(captured, scheme, stem_bits)
    sample = None if data is None else read_sample(data, next(model.parameters()))
    precision = (scheme.weights.bits, scheme.activations.bits)
    values = start.values(captured, ghn, precision)
    warn_of_skipped(captured)
    if precision != FLOAT:
        warn_of_losses(captured)
    started = with_values(captured, values)
    if sample is not None:
        start.fit(simulation(started, scheme), captured, sample)
    quantized = emit(started, scheme, layers, example_input)
    return quantized if sample is None else calibrate(quantized, sample.batches(CALIBRATION_IMAGES))


def quantize(
    model: nn.Module,
    bits: Bits | tuple[Bits, Bits] = 4,
    *,
    act_bits: int | None = None,
    stem_bits: int | None = None,
    backend: str = "brevitas",
    scheme: QuantScheme | None = None,
    example_input: Tensor | None = None,
    skip: Literal["unsupported"] | None = None,
) -> QuantModel:
    """The same as :func:`init_quantized` with the parameters and running statistics of ``model``
    itself.

    Example:
        >>> import ghnq_quant, torch
        >>> from torch import nn
        >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU())
        >>> ghnq_quant.quantize(model, bits=8)(torch.zeros(2, 3, 8, 8)).shape
        torch.Size([2, 8, 6, 6])
    """
    scheme = _scheme(bits, act_bits, scheme)
    layers = load_backend(backend)
    captured = capture(model, example_input, skip=skip)
    scheme = with_stem_bits(captured, scheme, stem_bits)
    warn_of_skipped(captured)
    if (scheme.weights.bits, scheme.activations.bits) != FLOAT:
        warn_of_losses(captured)
    return emit(captured.copied({}), scheme, layers, example_input)


def with_stem_bits(captured: Capture, scheme: QuantScheme, stem_bits: int | None) -> QuantScheme:
    """``scheme`` with other weight bits for the layers that read the image, unless it overrides
    them itself; None for the same."""
    if stem_bits is None:
        return scheme
    weights = replace(scheme.weights, bits=check_bits(stem_bits, "stem_bits"))
    stem = {name: (weights, scheme.activations) for name in captured.stem}
    return replace(scheme, overrides={**stem, **scheme.overrides})


def _scheme(
    bits: Bits | tuple[Bits, Bits], act_bits: int | None, scheme: QuantScheme | None
) -> QuantScheme:
    if isinstance(scheme, QuantScheme):
        return scheme
    if scheme is not None:
        raise SchemeError(f"scheme={scheme!r}: expected a QuantScheme, such as QuantScheme(4, 8)")
    weights, activations = as_quantizers(bits)
    if act_bits is not None:
        activations = replace(activations, bits=check_bits(act_bits, "act_bits"))
    return QuantScheme(weights, activations)
