"""Backends: the toolkits whose layers a quantized model can be made of."""

from __future__ import annotations

from importlib.metadata import entry_points
from typing import Protocol, runtime_checkable

from torch import Tensor, nn

from ghnq_quant.capture import Capture
from ghnq_quant.errors import BackendError
from ghnq_quant.extras import how_to_install
from ghnq_quant.quantization.affine import QuantParams
from ghnq_quant.quantization.model import QuantModel
from ghnq_quant.quantization.quantizer import Quantizer
from ghnq_quant.quantization.scheme import BatchNormMode, QuantScheme


class Backend(Protocol):
    """Makes a toolkit's layers; the plan, not the backend, decides where they go.

    Registered under the entry-point group ``ghnq_quant.backends`` by the class that makes it. A
    layer shares the parameters of the layer it replaces, under the same names, and is called with
    the input alone. A backend raises ``BackendError`` for quantizers it does not have.
    """

    def conv2d(self, conv: nn.Conv2d, quantizer: Quantizer) -> nn.Module:
        """A convolution with a quantized weight."""

    def conv2d_batch_norm(
        self, conv: nn.Conv2d, bn: nn.BatchNorm2d, quantizer: Quantizer, mode: BatchNormMode
    ) -> nn.Module:
        """A convolution that folds ``bn``, which keeps its place in the model: a
        :class:`~ghnq_quant.quantization.batch_norm.FoldsBatchNorm`."""

    def linear(self, linear: nn.Linear, quantizer: Quantizer) -> nn.Module:
        """A linear layer with a quantized weight."""

    def activation(self, quantizer: Quantizer) -> nn.Module:
        """A quantizer of an activation tensor."""

    def weight_qparams(self, layer: nn.Module, weight: Tensor) -> QuantParams | None:
        """Parameters with which a layer of this backend quantizes ``weight``, its own with the batch
        norm folded in; None if it leaves weights in float."""

    def activation_qparams(self, quantizer: nn.Module) -> QuantParams | None:
        """Parameters that a quantizer of :meth:`activation` uses in eval; None if it has no fixed
        range (yet)."""


@runtime_checkable
class ModelBackend(Protocol):
    """Makes a whole quantized model, for toolkits whose layers cannot replace others.

    Registered like a :class:`Backend`; a backend with this method is asked for no layers.
    """

    def model(
        self, captured: Capture, scheme: QuantScheme, example_input: Tensor | None
    ) -> QuantModel:
        """The quantized model of a captured network, whose modules are reused."""


def load_backend(name: str) -> Backend | ModelBackend:
    """The backend of this name.

    Raises:
        BackendError: there is none, or its toolkit is not installed.
    """
    entries = {entry.name: entry for entry in entry_points(group="ghnq_quant.backends")}
    if name not in entries:
        raise BackendError(f"unknown backend {name!r}; known are: {', '.join(sorted(entries))}")
    try:
        backend: Backend | ModelBackend = entries[name].load()()
    except ImportError as error:
        missing = error.name or name
        raise BackendError(
            f"backend {name!r} needs the package {missing!r}, which is not installed: "
            f"{how_to_install(missing)}"
        ) from error
    return backend
