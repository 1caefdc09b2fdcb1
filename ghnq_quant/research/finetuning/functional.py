"""A network of the design space as a function of its parameters.

A step of finetuning meets networks that it never sees again, so it runs them without making their
modules. What is computed is what ``SampledNetwork.build`` and the reference simulation compute in
train mode.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from ghnq_quant.capture import Kind
from ghnq_quant.capture.quant_plan import find_places
from ghnq_quant.quantization import fake_quantize
from ghnq_quant.quantization.batch_norm import conv_batch_statistics_norm, fast_layout
from ghnq_quant.quantization.convolution import Geometry
from ghnq_quant.quantization.scheme import FLOAT, FLOAT_BITS
from ghnq_quant.research.finetuning.small_maps import convolve
from ghnq_quant.research.networks.program import Operation, Program

Parameters = Mapping[str, Tensor]

_KINDS = {
    "input": Kind.INPUT,
    "conv": Kind.CONV,
    "linear": Kind.LINEAR,
    "batch_norm": Kind.BATCH_NORM,
    "relu": Kind.ACTIVATION,
    "relu6": Kind.ACTIVATION,
    "leaky_relu": Kind.ACTIVATION,
    "max_pool": Kind.MAX_POOL,
    "avg_pool": Kind.AVG_POOL,
    "adaptive_avg_pool": Kind.GLOBAL_AVG_POOL,
    "flatten": Kind.RESHAPE,
    "add": Kind.ADD,
    "concat": Kind.CONCAT,
}
_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "relu6": F.relu6,
    "leaky_relu": F.leaky_relu,
}
#: ε of ``nn.BatchNorm2d``.
_EPS = 1e-5


class FunctionalNetwork:
    """A network of ConvNets-250K as it trains, with the statistics and ranges of the batch.

    Args:
        program: its operations.
        bits: (weight, activation) precision; at other ones than float it is the reference
            simulation, with batch norm folded on every batch.

    Example:
        >>> from ghnq_quant import GHN
        >>> from ghnq_quant.research.networks import ConvNets250K
        >>> item = ConvNets250K("train")[0]
        >>> (parameters,) = GHN.from_pretrained()([item.graph])
        >>> FunctionalNetwork(item.program, (4, 4))(parameters, torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2, 10])
    """

    def __init__(self, program: Program, bits: tuple[int, int] = FLOAT) -> None:
        self._operations = program.operations
        self._last_reads = program.last_reads()
        self._weight_bits, self._act_bits = bits
        #: the batch norm that each convolution folds, by position
        self._folded: dict[int, int] = {}
        self._quantized: set[int] = set()
        if bits != FLOAT:
            self._plan(program)

    def _plan(self, program: Program) -> None:
        operations = program.operations
        kinds = [*(_KINDS[op.kind] for op in operations), Kind.OUTPUT]
        inputs = [*(op.inputs for op in operations), (len(operations) - 1,)]
        places = find_places(kinds, inputs, [kind is Kind.BATCH_NORM for kind in kinds])
        self._folded = {layer: norm for layer, norm, _ in places.units if norm is not None}
        if self._act_bits != FLOAT_BITS:
            self._quantized = set(places.quantized)

    def __call__(self, parameters: Parameters, images: Tensor) -> Tensor:
        """Logits (N, classes) of images (N, 3, H, W).

        Args:
            parameters: by the names they have in ``SampledNetwork.build()``.
        """
        values: list[Tensor | None] = []
        norms = set(self._folded.values())
        x = images
        for position, op in enumerate(self._operations):
            if op.kind != "input" and position not in norms:  # a folded one has the conv's value
                terms = [values[i] for i in op.inputs]
                x = self._run(position, op, terms, parameters)  # type: ignore[arg-type]
            elif position in norms:
                (source,) = op.inputs
                x = values[source]  # type: ignore[assignment]
            if position in self._quantized:
                x = fake_quantize(x, self._act_bits)
            values.append(x)
            for i in self._last_reads[position]:
                values[i] = None
        return x

    def _run(
        self, position: int, op: Operation, terms: list[Tensor], parameters: Parameters
    ) -> Tensor:
        x = terms[0]
        if op.kind == "conv":
            return self._convolution(position, op, x, parameters)
        if op.kind == "batch_norm":
            gamma, beta = parameters[f"{op.name}.weight"], parameters[f"{op.name}.bias"]
            return torch.batch_norm(x, gamma, beta, None, None, True, 0.0, _EPS, True)
        if op.kind == "linear":
            weight = fake_quantize(parameters[f"{op.name}.weight"], self._weight_bits)
            return F.linear(x, weight, parameters[f"{op.name}.bias"])
        if op.kind == "add":
            return terms[0] + terms[1]
        if op.kind == "concat":
            return torch.cat(terms, dim=1)
        if op.kind == "max_pool":
            even = op.kernel % 2 == 0
            return F.max_pool2d(x, op.kernel, op.stride, op.padding, ceil_mode=even)
        if op.kind == "avg_pool":
            return F.avg_pool2d(x, op.kernel, op.stride, op.padding)
        if op.kind == "adaptive_avg_pool":
            return F.adaptive_avg_pool2d(x, op.kernel)
        if op.kind == "flatten":
            return x.flatten(1)
        return _ACTIVATIONS[op.kind](x)

    def _convolution(
        self, position: int, op: Operation, x: Tensor, parameters: Parameters
    ) -> Tensor:
        weight, bias = parameters[f"{op.name}.weight"], parameters.get(f"{op.name}.bias")
        geometry = Geometry((op.stride,) * 2, (op.padding,) * 2, (op.dilation,) * 2, op.groups)
        if position not in self._folded:
            if self._weight_bits == self._act_bits == FLOAT_BITS:
                return convolve(x, weight, bias, geometry)
            return F.conv2d(x, fake_quantize(weight, self._weight_bits), bias, *geometry)
        norm = self._operations[self._folded[position]].name
        y, _, _ = conv_batch_statistics_norm(
            fast_layout(x, weight),
            weight,
            bias,
            parameters[f"{norm}.weight"],
            parameters[f"{norm}.bias"],
            _EPS,
            geometry,
            lambda folded: fake_quantize(folded, self._weight_bits),
        )
        return y
