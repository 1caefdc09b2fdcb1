"""The public entry points: parameters for a float model, a start for its training, a quantized model."""

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
        ghn: the hypernetwork, or anything that :meth:`GHN.from_pretrained` loads (a folder, a name, a
            file); by default the shipped checkpoint ``ghnq-cifar10``.
        bits: precision that the parameters are for, as one bit width or as (weight, activation);
            ignored unless the hypernetwork :attr:`~GHN.reads_precision`.
        example_input: (N, C, H, W); if given, checks that the network runs on this shape.

    Returns:
        the name of each parameter of ``model``, in the order of ``named_parameters()``, and a tensor
        of its shape, dtype and device. A classification layer with another number of classes than
        the hypernetwork's, and parameters that no node of the graph represents, keep their own
        values; a warning names them.

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
    """Initialize a float network so that it trains faster than from PyTorch's initialization.

    GHN-Q predicts the weights of the first convolutions. All other layers keep the initialization
    of ``model``, except the last, which is fitted to some images of the task. This takes as long as
    seven or eight training steps with batches of 64.

    Args:
        model: a new network, with its own initialization; it is not changed.
        data: batches (images, labels) of the task in mixed order, as from a training loader:
            floats (N, C, H, W), normalized as for training, and class numbers (N,). The first
            1,000 images are used.
        ghn: the hypernetwork, or anything that :meth:`GHN.from_pretrained` loads (a folder, a name, a
            file); by default the shipped checkpoint ``ghnq-cifar10``.
        share: share of the convolutions to predict, counted by depth from the image and rounded up;
            a quarter by default.
        classifier: weights of the layer that gives the logits: ``"fitted"`` to ``data`` by
            multinomial logistic regression (without data it stays new), ``"new"`` for the model's
            own, or ``"predicted"`` for the classes the hypernetwork was trained on (CIFAR-10's).
        example_input: (N, C, H, W); if given, checks that the network runs on this shape.
        skip: ``"unsupported"`` leaves modules that cannot be captured, such as attention, new.

    Returns:
        a new model of the same class. With ``data``, its batch norms' running statistics come from
        the images; without, they are reset.

    Raises:
        CaptureError: the network cannot be captured.
        CheckpointError: ``ghn`` names no checkpoint, or a damaged one.
        PredictionError: ``share`` is not between 0 and 1, or a parameter cannot be predicted.
        DataError: ``data`` is empty, a batch is malformed, values are not finite, a label has no
            output, or all images have the same label.

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
    """Make a float network ready for quantization-aware training, with the start of
    :func:`initialize`.

    Args:
        model: a new network, with its own initialization; it is not changed.
        bits: bit width of weights and activations, or a (weight, activation) pair: 2 to 8, or 32 for
            float; a :class:`Quantizer` works too.
        data: as for :func:`initialize`; also calibrates running statistics and activation ranges.
            Takes as long as about ten training steps. Without data the classifier stays new, and
            the first training batches set the ranges.
        act_bits: bit width of activations, if different.
        stem_bits: weight bit width of the layers that read the image, if different: 8 is usual, and
            helps predicted weights most. An override of ``scheme`` takes precedence.
        backend: toolkit of the quantized layers: ``"brevitas"``, ``"torch_ao"``, ``"pt2e"``
            (torchao's export flow), ``"reference"`` (plain PyTorch) or one registered under the
            entry-point group ``ghnq_quant.backends``.
        ghn, share, classifier: as for :func:`initialize`.
        scheme: a complete :class:`QuantScheme`, instead of ``bits`` and ``act_bits``.
        example_input: (N, C, H, W); if given, checks that the network runs on this shape.
            ``"pt2e"`` needs it: whatever its model computes from the image size is then fixed.
        skip: ``"unsupported"`` leaves modules that cannot be captured, such as attention, in float
            with their own initialization; a warning and the returned model's attribute ``skipped``
            name them.
        as_predicted: use all parameters exactly as :func:`predict_parameters` gives them, as in the
            paper's evaluation (``share`` is 1); ``data`` is then used to calibrate only.

    Returns:
        a new model with the same names of modules, parameters and buffers; its running statistics
        come from ``data``, or are reset.

    Raises:
        SchemeError: an invalid bit width, or an override that matches no layer.
        BackendError: an unknown backend, or one whose toolkit is not installed.
        CaptureError: the network cannot be captured.
        CheckpointError: ``ghn`` names no checkpoint, or a damaged one.
        PredictionError: ``share`` is not between 0 and 1, or a parameter cannot be predicted.
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
    """Quantize a network with its own parameters and running statistics, otherwise as
    :func:`init_quantized`.

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
    """Give the layers that read the image other weight bits, unless ``scheme`` overrides them; None
    changes nothing."""
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
    if isinstance(bits, QuantScheme):
        raise SchemeError("bits is a QuantScheme: pass it by name, scheme=…")
    weights, activations = as_quantizers(bits)
    if act_bits is not None:
        activations = replace(activations, bits=check_bits(act_bits, "act_bits"))
    return QuantScheme(weights, activations)
