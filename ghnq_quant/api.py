"""The two-line stories: parameters for a float model, and a quantized model with them."""

from __future__ import annotations

import warnings
from dataclasses import replace
from functools import cache
from typing import Literal, overload

import torch
from torch import Tensor, nn

from ghnq_quant.capture import Capture, capture
from ghnq_quant.errors import GhnqWarning, PredictionError
from ghnq_quant.ghn import GHN
from ghnq_quant.quantization import (
    Backend,
    ModelBackend,
    QuantModel,
    QuantScheme,
    emit,
    load_backend,
)
from ghnq_quant.quantization.scheme import FLOAT_BITS, as_pair, check_bits
from ghnq_quant.trainability import ready_for_training


@cache
def _default_ghn() -> GHN:
    return GHN.from_pretrained()


@overload
def predict_parameters(
    model: nn.Module,
    ghn: GHN | None = None,
    *,
    bits: int | tuple[int, int] = FLOAT_BITS,
    example_input: Tensor | None = None,
) -> dict[str, Tensor]: ...


@overload
def predict_parameters(
    model: list[nn.Module],
    ghn: GHN | None = None,
    *,
    bits: int | tuple[int, int] = FLOAT_BITS,
    example_input: Tensor | None = None,
) -> list[dict[str, Tensor]]: ...


def predict_parameters(
    model: nn.Module | list[nn.Module],
    ghn: GHN | None = None,
    *,
    bits: int | tuple[int, int] = FLOAT_BITS,
    example_input: Tensor | None = None,
) -> dict[str, Tensor] | list[dict[str, Tensor]]:
    """Predict all parameters of a convolutional network in one pass of the hypernetwork.

    Args:
        model: the network; it is not changed. A list of networks is predicted as one batch.
        ghn: the hypernetwork, by default the checkpoint ``ghnq-cifar10-qat`` that the package ships,
            whose batch norms are ones and zeros; ``ghnq-cifar10`` predicts them too.
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
        PredictionError: a parameter cannot be predicted, or its prediction is not finite.

    Example:
        >>> import ghnq_quant, torch, torchvision
        >>> model = torchvision.models.resnet18(num_classes=10)
        >>> parameters = ghnq_quant.predict_parameters(model)
        >>> parameters["conv1.weight"].shape
        torch.Size([64, 3, 7, 7])
    """
    models = model if isinstance(model, list) else [model]
    captures = [capture(m, example_input) for m in models]
    predicted = predict_captured(captures, ghn, as_pair(bits))
    results = [
        {
            name: p.detach().clone() if new is None else new
            for (name, p), new in zip(m.named_parameters(), new_values, strict=True)
        }
        for m, new_values in zip(models, predicted, strict=True)
    ]
    return results if isinstance(model, list) else results[0]


def predict_captured(
    captures: list[Capture], ghn: GHN | None, bits: tuple[int, int]
) -> list[list[Tensor | None]]:
    """For each network the new value of each of its parameters, None where it keeps its own."""
    ghn = ghn if ghn is not None else _default_ghn()
    with torch.no_grad():
        by_name = ghn([c.arch_graph for c in captures], [bits] * len(captures))
    results = []
    for captured, new in zip(captures, by_name, strict=True):  # no frame between warning and caller
        results.append(_by_parameter(captured, new, ghn))
    return results


def _by_parameter(captured: Capture, predicted: dict[str, Tensor], ghn: GHN) -> list[Tensor | None]:
    root, skipped = captured.root, captured.skipped
    by_id: dict[int, Tensor] = {}
    for name, p in root.named_parameters(remove_duplicate=False):
        if name in predicted and id(p) not in by_id:  # a tied parameter: its first use counts
            by_id[id(p)] = _own_memory(predicted.pop(name), p, name)
    named = list(root.named_parameters())
    kept = [name for name, p in named if id(p) not in by_id]
    if skipped:
        kept = [n for n in kept if not n.startswith(tuple(f"{s}." for s in skipped))]
        warnings.warn(
            f"{len(skipped)} modules stay float with their own initialization, as they are not "
            f"made of supported layers: {', '.join(skipped)}"
            + (f"; so do the parameters {', '.join(kept)}" if kept else ""),
            GhnqWarning,
            stacklevel=4,
        )
    elif kept:
        warnings.warn(
            f"{len(kept)} parameters keep their own initialization: {', '.join(kept[:8])}"
            f"{', …' if len(kept) > 8 else ''}. The hypernetwork predicts classification layers of "
            f"{ghn.num_classes} classes and the weights and biases of Conv2d, Linear and norm "
            "layers that the network runs in eval mode",
            GhnqWarning,
            stacklevel=4,
        )
    return [by_id.get(id(p)) for _, p in named]


def _own_memory(value: Tensor, parameter: nn.Parameter, name: str) -> Tensor:
    if value.numel() == parameter.numel():
        value = value.reshape(parameter.shape)  # of a conv1d, which is captured as a 1×k conv2d
    if value.shape != parameter.shape:
        raise PredictionError(
            f"{name!r} has shape {tuple(parameter.shape)}, predicted was {tuple(value.shape)}"
        )
    value = value.to(device=parameter.device, dtype=parameter.dtype)
    if value.dtype != torch.float32 and not value.isfinite().all():
        raise PredictionError(f"{name!r}: a predicted value is too large for {value.dtype}")
    whole = value.is_contiguous() and value.untyped_storage().nbytes() == value.nbytes
    return value if whole else value.clone(memory_format=torch.contiguous_format)


def init_quantized(
    model: nn.Module,
    bits: int | tuple[int, int] = 4,
    *,
    act_bits: int | None = None,
    stem_bits: int | None = None,
    backend: str = "brevitas",
    ghn: GHN | None = None,
    scheme: QuantScheme | None = None,
    example_input: Tensor | None = None,
    skip: Literal["unsupported"] | None = None,
    as_predicted: bool = False,
) -> QuantModel:
    """Turn a float network into one that is ready for quantization-aware training, with parameters
    predicted by GHN-Q.

    Batch norms that are folded are as new, at 2 and 3 bits the weights of filters before them are
    spread as evenly as a new layer's, and filters that repeat another are half random (see
    :func:`ghnq_quant.trainability.ready_for_training`, which tells why).

    Args:
        model: the network; it is not changed.
        bits: bit width of weights and activations, or a (weight, activation) pair: 2 to 8, 32 for
            float.
        act_bits: bit width of activations where it differs.
        stem_bits: bit width of the weights of the layers that read the image, where it differs: 8 is
            usual, and what predicted weights gain most by. An override of ``scheme`` goes before it.
        backend: toolkit of the quantized layers: ``"brevitas"``, ``"torch_ao"``, ``"pt2e"``
            (torchao's export flow), ``"reference"`` (plain PyTorch) or one registered under the
            entry-point group ``ghnq_quant.backends``.
        ghn: the hypernetwork, by default the checkpoint ``ghnq-cifar10-qat`` that the package ships.
        scheme: in place of ``bits`` and ``act_bits``, everything that a :class:`QuantScheme` can
            say.
        example_input: (N, C, H, W), to check that the network runs on its shape; ``"pt2e"`` needs
            it, and its model takes images of that size alone.
        skip: ``"unsupported"`` leaves the modules float that cannot be captured, such as attention,
            with their own initialization; one warning names them, and so does the returned
            model's attribute ``skipped``.
        as_predicted: keep all parameters exactly as :func:`predict_parameters` gives them, as in the
            paper's evaluation.

    Returns:
        a new model. Its modules, parameters and buffers have the names they had; running
        statistics are those of an untrained network.

    Raises:
        SchemeError: a bit width that does not exist, or an override that matches no layer.
        BackendError: an unknown backend, or one whose toolkit is not installed.
        CaptureError: the network cannot be captured.
        PredictionError: a parameter cannot be predicted.

    Example:
        >>> import ghnq_quant, torch, torchvision
        >>> model = torchvision.models.mobilenet_v2(num_classes=10)
        >>> qat = ghnq_quant.init_quantized(model, bits=4, stem_bits=8)
        >>> qat(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2, 10])
    """
    scheme = _scheme(bits, act_bits, scheme)
    layers = load_backend(backend)
    captured = capture(model, example_input, skip=skip)
    scheme = with_stem_bits(captured, scheme, stem_bits)
    precision = (scheme.weight_bits, scheme.act_bits)
    (new_values,) = predict_captured([captured], ghn, precision)
    if not as_predicted:
        ready_for_training(captured, new_values, scheme)
    return emit_predicted(captured, new_values, scheme, layers, example_input)


def emit_predicted(
    captured: Capture,
    new_values: list[Tensor | None],
    scheme: QuantScheme,
    backend: Backend | ModelBackend,
    example_input: Tensor | None = None,
) -> QuantModel:
    """A quantized copy of a captured network with new values for its parameters, in their order;
    None keeps the parameter's own."""
    replaced = {
        id(p): nn.Parameter(new, requires_grad=p.requires_grad)
        for p, new in zip(captured.root.parameters(), new_values, strict=True)
        if new is not None
    }
    copied = captured.copied(replaced)
    for module in copied.root.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.reset_running_stats()  # those of other parameters
    return emit(copied, scheme, backend, example_input)


def quantize(
    model: nn.Module,
    bits: int | tuple[int, int] = 4,
    *,
    act_bits: int | None = None,
    stem_bits: int | None = None,
    backend: str = "brevitas",
    scheme: QuantScheme | None = None,
    example_input: Tensor | None = None,
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
    captured = capture(model, example_input)
    scheme = with_stem_bits(captured, scheme, stem_bits)
    return emit(captured.copied({}), scheme, layers, example_input)


def with_stem_bits(captured: Capture, scheme: QuantScheme, stem_bits: int | None) -> QuantScheme:
    """``scheme`` with other weight bits for the layers that read the image, unless it overrides
    them itself; None for the same."""
    if stem_bits is None:
        return scheme
    bits = (check_bits(stem_bits, "stem_bits"), scheme.act_bits)
    stem = {name: bits for name in captured.stem}
    return replace(scheme, overrides={**stem, **scheme.overrides})


def _scheme(
    bits: int | tuple[int, int], act_bits: int | None, scheme: QuantScheme | None
) -> QuantScheme:
    if scheme is not None:
        return scheme
    weight_bits, both = as_pair(bits)
    return QuantScheme(weight_bits, both if act_bits is None else check_bits(act_bits, "act_bits"))
