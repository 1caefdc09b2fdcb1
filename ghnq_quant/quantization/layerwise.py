"""Models made layer by layer: a backend's layers at the places of the plan."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ghnq_quant.capture import Capture, Unit
from ghnq_quant.capture.checks import has_hooks
from ghnq_quant.capture.computed_weight import ComputedWeight, keep_computing
from ghnq_quant.errors import BackendError, CaptureError, SchemeError
from ghnq_quant.quantization.backends import Backend, ModelBackend
from ghnq_quant.quantization.batch_norm import FoldsBatchNorm
from ghnq_quant.quantization.calibration import begin_weight_ranges
from ghnq_quant.quantization.graph_rewrite import (
    QUANTIZERS,
    adopt_hooks,
    rewrite,
    with_quantizers,
)
from ghnq_quant.quantization.integer_bias import RoundsBias, fine_scale
from ghnq_quant.quantization.model import QuantModel
from ghnq_quant.quantization.scheme import QuantScheme


class LayerwiseModel(QuantModel):
    """A quantized model made from a :class:`Backend`'s layers.

    Args:
        captured: holds the layers; its modules are reused.
        quantizers: activation quantizers by key.
        backend: the backend that made them.
    """

    def __init__(
        self,
        captured: Capture,
        scheme: QuantScheme,
        quantizers: dict[str, nn.Module],
        backend: Backend,
    ) -> None:
        modules = with_quantizers(captured.root, quantizers)
        graph = rewrite(captured, modules)
        super().__init__(modules, graph, captured.quant_plan, scheme, captured.skipped)
        self.backend = backend
        self._fold()
        if scheme.biases == "int32":
            self._round_biases(quantizers)
        self.register_load_state_dict_post_hook(_place_quantizers)

    def _follow_modules(self) -> None:
        """Also fold whatever now stands in for the batch norms: ``convert_sync_batchnorm`` of
        ``nn.SyncBatchNorm`` replaces them, and calls nothing afterwards."""
        super()._follow_modules()
        self._fold()

    def _fold(self) -> None:
        for unit in self.plan.units:
            layer = self.get_submodule(unit.name)
            if unit.batch_norm is not None and isinstance(layer, FoldsBatchNorm):
                norm: Any = self.get_submodule(unit.batch_norm)
                layer.fold(norm, unit.batch_norm)

    def _round_biases(self, quantizers: dict[str, nn.Module]) -> None:
        for unit in self.plan.units:
            layer = self.get_submodule(unit.name)
            if not isinstance(layer, RoundsBias):
                raise BackendError(
                    f"the layer {unit.name!r} of {type(self.backend).__name__} cannot round its bias: "
                    "use backend 'reference', 'brevitas' or 'torch_ao', or QuantScheme(biases='float')"
                )
            if unit.input in quantizers:
                layer.bias_steps = _BiasSteps(self.backend, layer, quantizers[unit.input])

    def __reduce__(self) -> tuple[Any, ...]:
        if not getattr(self.backend, "picklable", True):
            raise BackendError(
                f"{type(self.backend).__name__} makes layers that cannot be pickled: save the "
                "model's state_dict, and load it into a new model"
            )
        return super().__reduce__()


class _BiasSteps:
    """Input scale · weight scale of a layer, for its :class:`RoundsBias`."""

    def __init__(self, backend: Backend, layer: nn.Module, quantizer: nn.Module) -> None:
        self.backend, self.layer, self.quantizer = backend, layer, quantizer

    @torch.no_grad()
    def __call__(self, weight: Tensor) -> Tensor | None:
        of_weight = self.backend.weight_qparams(self.layer, weight)
        of_input = self.backend.activation_qparams(self.quantizer)
        if of_weight is None or of_input is None:
            return None
        return fine_scale(of_weight, weight) * of_input.scale


def as_layerwise(model: QuantModel, function: str) -> LayerwiseModel:
    """``model`` itself, for a ``function`` that reads and changes its layers.

    Raises:
        BackendError: it is not a quantized model, or its toolkit made it as a whole.
    """
    if not isinstance(model, QuantModel):
        raise BackendError(
            f"{function} got a {type(model).__name__}: expected a model of ghnq_quant.quantize or "
            "init_quantized"
        )
    if not isinstance(model, LayerwiseModel):
        raise BackendError(
            f"{function} cannot change a {type(model).__name__}, which backend 'pt2e' exports as a "
            "whole: use backend 'reference', 'brevitas' or 'torch_ao'"
        )
    return model


def _place_quantizers(model: nn.Module, *_: object) -> None:
    """Move quantizer state to the device of the parameters: toolkits recreate it when loading."""
    parameter = next(model.parameters())
    getattr(model, QUANTIZERS).to(parameter.device, parameter.dtype)
    model.to(parameter.device)


def emit(
    captured: Capture,
    scheme: QuantScheme,
    backend: Backend | ModelBackend,
    example_input: Tensor | None = None,
) -> QuantModel:
    """Turn a captured network into a quantized model of ``backend``, which reuses its modules.

    Args:
        example_input: (N, C, H, W), for backends that make the whole model.

    Raises:
        SchemeError: an override matches no layer, or the scheme refuses a concatenation.
        CaptureError: a layer is called more than once, or a hook would not run.
        BackendError: the backend cannot make such a model.
    """
    plan = captured.quant_plan
    scheme.check_overrides([*(u.name for u in plan.units), *(p.name for p in plan.points)])
    if scheme.concatenations == "refused":
        _check_concatenations(captured)
    _drop_idle_dilation(captured)
    check_hooks(captured, isinstance(backend, ModelBackend))
    float_parts = captured.float_parts
    if isinstance(backend, ModelBackend):
        if scheme.biases != "float":
            raise BackendError(
                f"biases={scheme.biases!r}: a backend that makes the whole model, as 'pt2e' does, keeps "
                "biases in float; use another backend, or QuantScheme(biases='float')"
            )
        whole = backend.model(captured, scheme, example_input)
        whole.float_parts = float_parts
        begin_weight_ranges(whole)
        return whole
    quantizers = {}
    for point in plan.points:
        quantizer = scheme.activations_of(point)
        if not quantizer.is_float:
            quantizers[point.key] = backend.activation(quantizer)
    for unit in plan.units:
        captured.root.set_submodule(unit.name, _layer(captured, unit, scheme, backend))
    model = LayerwiseModel(captured, scheme, quantizers, backend)
    _place_quantizers(model)
    getattr(model, QUANTIZERS).train(model.training)
    model.float_parts = float_parts
    begin_weight_ranges(model)
    return model


def _check_concatenations(captured: Capture) -> None:
    for point in captured.quant_plan.points:
        if point.concatenation:
            raise SchemeError(
                f"{point.name!r} is a concatenation, which this scheme refuses: FINN and hls4ml were not "
                "verified with any; use a network without them, or a scheme for another target"
            )


def _drop_idle_dilation(captured: Capture) -> None:
    """Reset the dilation of 1×1 convolutions, where it has no effect but crashes oneDNN (torch 2.13,
    on channels-last maps of width 1 with stride, padding and bias)."""
    for unit in captured.quant_plan.units:
        layer = captured.modules[unit.name]
        if isinstance(layer, nn.Conv2d) and layer.kernel_size == (1, 1):
            layer.dilation = (1, 1)


def _layer(captured: Capture, unit: Unit, scheme: QuantScheme, backend: Backend) -> nn.Module:
    module = captured.modules[unit.name]
    quantizer = scheme.weights_of(unit.name)
    if isinstance(module, nn.Linear):
        layer = backend.linear(module, quantizer)
    elif unit.batch_norm is None:
        layer = backend.conv2d(module, quantizer)  # type: ignore[arg-type]
    else:
        norm = captured.modules[unit.batch_norm]
        layer = backend.conv2d_batch_norm(module, norm, quantizer, scheme.bn)  # type: ignore[arg-type]
        layer.limit = scheme.channel_limit  # type: ignore[assignment]
    if isinstance(module, ComputedWeight):
        keep_computing(layer, module)
    if layer._forward_hooks is not module._forward_hooks:
        adopt_hooks(layer, module)
    return layer.train(module.training)


def check_hooks(captured: Capture, whole_model: bool) -> None:
    """Raise CaptureError for hooks that would run elsewhere in the quantized model, or nowhere: those
    of a module that is taken apart, of a folded batch norm and its convolution, and all of them if a
    backend makes the ``whole_model``."""
    units = captured.quant_plan.units
    folded = {n for u in units if u.batch_norm is not None for n in (u.name, u.batch_norm)}
    called = {str(n.target) for n in captured.graph.nodes if n.op == "call_module"}
    kept = {"", *called} - folded
    for name, module in captured.modules.items():
        inside = any(name.startswith(f"{outer}.") for outer in called)
        if has_hooks(module) and (whole_model or not (name in kept or inside)):
            raise CaptureError(
                f"module {name!r} ({type(module).__name__}) has hooks, which would not run at that "
                "place in a quantized model: remove them, and register them on the quantized model"
            )
