"""QONNX files, written by Brevitas: one ``Quant`` operator per quantizer, with its true bit width."""

from __future__ import annotations

import brevitas.nn as qnn
import onnx
import onnxoptimizer  # noqa: F401  # Brevitas asks for it late
import torch
from brevitas.export import export_qonnx as brevitas_export
from torch import Tensor, fx, nn

from ghnq_brevitas.backend import conv_settings, with_parameters
from ghnq_brevitas.quantizers import activation_class, levels_of, weight_class
from ghnq_quant.deployment.check import check_graph
from ghnq_quant.deployment.layers import FixedQuantizer, FoldedConv2d, FoldedLayer, FoldedLinear
from ghnq_quant.deployment.moves import match_signs, quantize_behind_relu, unclamp_covered
from ghnq_quant.deployment.torch_onnx import exporting, name_global_pooling
from ghnq_quant.quantization.affine import QuantParams, along_channels, quantize_dequantize
from ghnq_quant.quantization.targets import Target


class FixedTensorQuant(nn.Module):
    """A Brevitas ``tensor_quant`` with a fixed range."""

    scale: Tensor
    zero_point: Tensor
    bit_width: Tensor

    def __init__(self, int_quant: nn.Module, qparams: QuantParams) -> None:
        super().__init__()
        self.int_quant = int_quant  # Brevitas's export looks for it
        self.quantizer = qparams.quantizer
        self.register_buffer("scale", qparams.scale)
        self.register_buffer("zero_point", qparams.zero_point)
        self.register_buffer("bit_width", torch.tensor(float(self.quantizer.bits)))

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        y = quantize_dequantize(x, self.scale, self.zero_point, self.quantizer)
        parameters = along_channels(self.scale, x), along_channels(self.zero_point, x)
        return y, *parameters, self.bit_width


def export_qonnx(
    folded: fx.GraphModule, example_input: Tensor, target: Target | None = None
) -> onnx.ModelProto:
    """Export the folded model as ONNX with ``Quant`` operators of the domain ``qonnx.custom_op.general``.

    Args:
        folded: on CPU; its layers are replaced.
        example_input: (N, C, H, W); N is dynamic in the exported model.
        target: if given, quantizers come after the ReLU that follows an addition, and are unsigned
            after a ReLU alone.
    """
    if target is not None:
        quantize_behind_relu(folded)
        unclamp_covered(folded)
        match_signs(folded)
    for name, module in list(folded.named_modules()):
        if isinstance(module, FixedQuantizer):
            quantizer = _fixed(activation_class(module.quantizer), module.qparams)
            folded.set_submodule(name, qnn.QuantIdentity(act_quant=quantizer).eval())
        elif isinstance(module, (FoldedConv2d, FoldedLinear)) and module.weight_quant is not None:
            folded.set_submodule(name, _layer(module, module.weight_quant.qparams).eval())
    model: onnx.ModelProto = exporting(brevitas_export, folded, example_input)
    name_global_pooling(model.graph)
    if target is not None:
        check_graph(model.graph, target)
    return model


def _layer(layer: FoldedLayer, qparams: QuantParams) -> nn.Module:
    quantizer = _fixed(weight_class(qparams.quantizer), qparams)
    if isinstance(layer, FoldedConv2d):
        settings = {**conv_settings(layer), "weight_quant": quantizer}
        return with_parameters(qnn.QuantConv2d(**settings), layer)
    linear = qnn.QuantLinear(
        layer.in_features,
        layer.out_features,
        bias=layer.bias is not None,
        weight_quant=quantizer,
        device="meta",
    )
    return with_parameters(linear, layer)


def _fixed(base: type, qparams: QuantParams) -> type:
    attributes = {"qparams": qparams, "tensor_quant": FixedTensorQuant}
    attributes |= levels_of(qparams.quantizer)
    return type(f"Fixed{base.__name__}", (base,), attributes)
