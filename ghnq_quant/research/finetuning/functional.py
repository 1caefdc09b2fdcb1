"""A network of the design space as a function of its parameters.

A finetuning step meets networks that it never sees again, so it runs them without creating modules
with parameters. It computes what ``SampledNetwork.build`` and the reference simulation compute in
train mode.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ghnq_quant.capture import Kind
from ghnq_quant.capture.operations import WEIGHTED
from ghnq_quant.capture.quant_plan import find_places
from ghnq_quant.quantization import fake_quantize
from ghnq_quant.quantization.batch_norm import conv_batch_statistics_norm
from ghnq_quant.quantization.convolution import Geometry
from ghnq_quant.quantization.folding import Folding
from ghnq_quant.quantization.memory_layout import fast_layout
from ghnq_quant.quantization.quantizer import FLOAT_BITS
from ghnq_quant.quantization.range_gradient import fake_quantize_with_range_gradient
from ghnq_quant.quantization.scheme import FLOAT
from ghnq_quant.research.finetuning.small_maps import convolve
from ghnq_quant.research.networks.network import join, make_layer
from ghnq_quant.research.networks.program import Instruction, Program

Parameters = Mapping[str, Tensor]

_WITH_PARAMETERS = (*WEIGHTED, Kind.BATCH_NORM)
#: Default ε of ``nn.BatchNorm2d``.
_EPS = 1e-5


class FunctionalNetwork:
    """A network of ConvNets-250K in training, with the statistics and ranges of the batch.

    Args:
        program: its instructions.
        bits: (weight, activation) precision; unless it is float, the network is the reference
            simulation, with batch norm folded on every batch.
        channel_limit: see :class:`ghnq_quant.QuantScheme`.
        range_gradient: pass the gradient of each range on to the elements that set it, see
            :mod:`ghnq_quant.quantization.range_gradient`.

    Example:
        >>> from ghnq_quant import GHN
        >>> from ghnq_quant.research.networks import ConvNets250K
        >>> item = ConvNets250K("train")[0]
        >>> (parameters,) = GHN.from_pretrained()([item.graph])
        >>> FunctionalNetwork(item.program, (4, 4))(parameters, torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2, 10])
    """

    def __init__(
        self,
        program: Program,
        bits: tuple[int, int] = FLOAT,
        channel_limit: float | None = None,
        range_gradient: bool = False,
    ) -> None:
        self._instructions = program.instructions
        self._last_reads = program.last_reads()
        self._weight_bits, self._act_bits = bits
        self._folding = Folding(limit=channel_limit)
        self._range_gradient = range_gradient
        self._quantize: Callable[[Tensor, int], Tensor] = (
            fake_quantize_with_range_gradient if range_gradient else fake_quantize
        )
        #: layers without parameters, by position
        self._layers = {
            position: _layer(
                instruction.kind, instruction.kernel, instruction.stride, instruction.function
            )
            for position, instruction in enumerate(program.instructions)
            if instruction.name and instruction.kind not in _WITH_PARAMETERS
        }
        #: the batch norm that each convolution folds, by position
        self._folded: dict[int, int] = {}
        self._quantized: set[int] = set()
        if bits != FLOAT:
            self._plan(program)

    def _plan(self, program: Program) -> None:
        kinds = program.kinds
        can_fold = [kind is Kind.BATCH_NORM for kind in kinds]
        places = find_places(kinds, program.inputs, can_fold)
        self._folded = {layer: norm for layer, norm, _ in places.units if norm is not None}
        if self._act_bits != FLOAT_BITS:
            self._quantized = set(places.quantized)

    def __call__(self, parameters: Parameters, images: Tensor) -> Tensor:
        """Logits (N, classes) of images (N, 3, H, W).

        Args:
            parameters: by the names used in ``SampledNetwork.build()``.
        """
        values: list[Tensor | None] = []
        norms = set(self._folded.values())
        x = images
        for position, instruction in enumerate(self._instructions):
            terms: list[Tensor] = [values[i] for i in instruction.inputs]  # type: ignore[misc]
            if position in norms:
                (x,) = terms  # already folded into the convolution
            elif instruction.kind is not Kind.INPUT:
                x = self._run(position, instruction, terms, parameters)
            if position in self._quantized:
                x = self._quantize(x, self._act_bits)
            values.append(x)
            for i in self._last_reads[position]:
                values[i] = None
        return x

    def _run(
        self, position: int, instruction: Instruction, terms: list[Tensor], parameters: Parameters
    ) -> Tensor:
        kind, name, x = instruction.kind, instruction.name, terms[0]
        if kind is Kind.CONV:
            return self._convolution(position, instruction, x, parameters)
        if kind is Kind.BATCH_NORM:
            gamma, beta = parameters[f"{name}.weight"], parameters[f"{name}.bias"]
            return torch.batch_norm(x, gamma, beta, None, None, True, 0.0, _EPS, True)
        if kind is Kind.LINEAR:
            weight = self._quantize(parameters[f"{name}.weight"], self._weight_bits)
            return F.linear(x, weight, parameters[f"{name}.bias"])
        if position in self._layers:
            result: Tensor = self._layers[position](x)
            return result
        return join(kind, terms)

    def _convolution(
        self, position: int, conv: Instruction, x: Tensor, parameters: Parameters
    ) -> Tensor:
        weight, bias = parameters[f"{conv.name}.weight"], parameters.get(f"{conv.name}.bias")
        stride, padding, dilation = (conv.stride,) * 2, (conv.padding,) * 2, (conv.dilation,) * 2
        geometry = Geometry(stride, padding, dilation, conv.groups)
        if position not in self._folded:
            if self._weight_bits == self._act_bits == FLOAT_BITS:
                return convolve(x, weight, bias, geometry)
            return F.conv2d(x, self._quantize(weight, self._weight_bits), bias, *geometry)
        norm = self._instructions[self._folded[position]].name
        y, _, _ = conv_batch_statistics_norm(
            fast_layout(x, weight),
            weight,
            bias,
            parameters[f"{norm}.weight"],
            parameters[f"{norm}.bias"],
            _EPS,
            geometry,
            lambda folded: self._quantize(folded, self._weight_bits),
            straight_through=not self._range_gradient,
            folding=self._folding,
        )
        return y


@cache
def _layer(kind: Kind, kernel: int, stride: int, function: str) -> nn.Module:
    """A layer without parameters, shared by all networks."""
    instruction = Instruction(kind, (), 0, 0, 0, "", kernel, stride, function=function)
    return make_layer(instruction)
