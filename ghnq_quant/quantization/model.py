"""The quantized model: a network's own module tree, run along its traced graph."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, fx, nn
from torch.fx.graph_module import _format_import_block
from torch.package.importer import sys_importer

from ghnq_quant.capture import Capture, QuantPlan, Unit
from ghnq_quant.capture.computed_weight import ComputedWeight, keep_computing
from ghnq_quant.errors import warn
from ghnq_quant.quantization.backends import Backend, ModelBackend
from ghnq_quant.quantization.batch_norm import has_running_statistics
from ghnq_quant.quantization.graph_rewrite import QUANTIZERS, quantizer_key, rewrite
from ghnq_quant.quantization.ranges import RunningRange
from ghnq_quant.quantization.scheme import FLOAT_BITS, QuantScheme


class QuantModel(nn.Module):
    """A network with quantized layers in place of its own, under the same names.

    It has the module tree, parameters and buffers of the network it was made from, in the same
    order, and behind them ``activation_quantizers``. Folded batch norms keep their place: they
    hold the parameters and running statistics that the convolution before them folds in.

    Attributes:
        scheme: what is quantized to how many bits.
        plan: the units and quantized activations.
        skipped: names of the modules that stayed float because they are not supported.
        code: Python source of the traced ``forward`` with quantizers in it.
    """

    scheme: QuantScheme
    plan: QuantPlan
    code: str
    _warned: bool

    def _warn_of_missing_statistics(self) -> None:
        """Before each forward in eval; warns once."""
        if self.training or self._warned:
            return
        names = [u.batch_norm for u in self.plan.units if u.batch_norm is not None]
        norms = {n: self.get_submodule(n) for n in names} if self.scheme.bn == "running" else {}
        missing = [
            n
            for n, m in norms.items()
            if isinstance(m, nn.BatchNorm2d) and not m.training and not has_running_statistics(m)
        ]
        missing += [
            n
            for n, m in self.named_modules()
            if isinstance(m, RunningRange) and not m.training and not m.has_statistics()
        ]
        if missing:
            self._warned = True
            warn(
                f"eval mode without running statistics ({missing[0]!r} and {len(missing) - 1} "
                "more): the batch's own are used until some exist; train, or call "
                "ghnq_quant.calibrate"
            )

    def extra_repr(self) -> str:
        s = self.scheme
        overrides = f", overrides={dict(s.overrides)}" if s.overrides else ""
        return f"{s}, tensorwise asymmetric, act_range={s.act_range}, bn={s.bn}{overrides}"


class LayerwiseModel(QuantModel):
    """What is made of a :class:`Backend`'s layers: it runs along the network's traced graph.

    Args:
        captured: holds the layers, whose modules are taken over.
        quantizers: of activations, by key.
        backend: that made them; None where the layers are still the float network's.
        fold: whether layers are called with the batch norm that they fold.
    """

    def __init__(
        self,
        captured: Capture,
        scheme: QuantScheme,
        quantizers: dict[str, nn.Module],
        *,
        backend: Backend | None = None,
        fold: bool = True,
    ) -> None:
        super().__init__()
        root = captured.root
        self._modules.update(root._modules)
        self._parameters.update(root._parameters)
        self._buffers.update(root._buffers)
        self._non_persistent_buffers_set |= root._non_persistent_buffers_set
        self.add_module(QUANTIZERS, nn.ModuleDict(quantizers))
        self.training = root.training
        self.scheme = scheme
        self.plan: QuantPlan = captured.quant_plan
        self.skipped = captured.skipped
        self.backend = backend
        self.code = _source(rewrite(captured, self, fold=fold))
        self._run = _compile(self.code)
        self._warned = False
        self.register_load_state_dict_post_hook(_place_quantizers)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        self._warn_of_missing_statistics()
        return self._run(self, *args, **kwargs)

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in super().__getstate__().items() if k != "_run"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._run = _compile(self.code)


def _place_quantizers(model: nn.Module, *_: object) -> None:
    """Bring quantizer state to where the parameters are: toolkits make it anew while loading."""
    parameter = next(model.parameters())
    getattr(model, QUANTIZERS).to(parameter.device, parameter.dtype)
    model.to(parameter.device)


def _source(graph: fx.Graph) -> str:
    """The graph as Python with the imports it needs: can be pickled, as ``F.max_pool2d`` cannot."""
    code = graph.python_code("self")
    return _format_import_block(code.globals, sys_importer) + "\n" + code.src


def _compile(source: str) -> Callable[..., Any]:
    """The function ``forward`` that the source defines; its first argument is the module."""
    namespace: dict[str, Any] = {}
    exec(compile(source, "<quantized forward>", "exec", dont_inherit=True), namespace)
    function: Callable[..., Any] = namespace["forward"]
    return function


def emit(
    captured: Capture,
    scheme: QuantScheme,
    backend: Backend | ModelBackend,
    example_input: Tensor | None = None,
) -> QuantModel:
    """Turn a captured network, whose modules are taken over, into a quantized model of ``backend``.

    Args:
        example_input: (N, C, H, W), for backends that make the whole model.

    Raises:
        SchemeError: an override that matches no layer.
        CaptureError: a layer that is called more than once.
        BackendError: the backend cannot make such a model.
    """
    plan = captured.quant_plan
    scheme.check_overrides([*(u.name for u in plan.units), *(p.name for p in plan.points)])
    if isinstance(backend, ModelBackend):
        return backend.model(captured, scheme, example_input)
    quantizers = {}
    for point in plan.points:
        bits = scheme.bits_of(point.name)[1]
        if bits != FLOAT_BITS:
            quantizers[quantizer_key(point.name)] = backend.activation(bits, scheme.act_range)
    for unit in plan.units:
        layer = _layer(captured.modules[unit.name], unit, scheme, backend)
        captured.root.set_submodule(unit.name, layer)
    model = LayerwiseModel(captured, scheme, quantizers, backend=backend)
    _place_quantizers(model)
    getattr(model, QUANTIZERS).train(model.training)
    return model


def _layer(module: nn.Module, unit: Unit, scheme: QuantScheme, backend: Backend) -> nn.Module:
    bits = scheme.bits_of(unit.name)[0]
    if isinstance(module, nn.Linear):
        layer = backend.linear(module, bits)
    elif unit.batch_norm is None:
        layer = backend.conv2d(module, bits)  # type: ignore[arg-type]
    else:
        layer = backend.conv2d_batch_norm(module, bits, scheme.bn)  # type: ignore[arg-type]
    if isinstance(module, ComputedWeight):
        keep_computing(layer, module)
    return layer.train(module.training)
