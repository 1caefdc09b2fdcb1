"""The plan as torchao annotations on an exported graph."""

from __future__ import annotations

from typing import Any

from torch import Tensor, fx, nn, ops
from torchao.quantization.pt2e.quantizer import QuantizationAnnotation, Quantizer

from ghnq_pt2e.fake_quantize import quantization_spec
from ghnq_quant.capture import QuantPlan
from ghnq_quant.quantization.graph_rewrite import QUANTIZERS
from ghnq_quant.quantization.scheme import QuantScheme

#: Key in a node's ``meta``: the name that the quantizer of its value will have.
OUTPUT = "ghnq_output_quantizer"
#: Key in a layer's ``meta``: the name that the quantizer of its weight will have.
WEIGHT = "ghnq_weight_quantizer"
#: What torchao reads annotations from.
_ANNOTATION = "quantization_annotation"
_LAYERS = (ops.aten.conv2d.default, ops.aten.conv2d.padding, ops.aten.linear.default)


class Marker(nn.Module):
    """Leaves a node in an exported graph where an activation will be quantized."""

    def forward(self, x: Tensor) -> Tensor:
        marked: Tensor = ops.aten.alias.default(x)
        return marked


class PlanQuantizer(Quantizer):
    """Annotates an exported model with a plan: the weights of its units, and its points.

    Args:
        plan: the model's plan before it was exported with a :class:`Marker` at each point.
        scheme: the quantizers.
    """

    def __init__(self, plan: QuantPlan, scheme: QuantScheme) -> None:
        self._plan = plan
        self._scheme = scheme

    def transform_for_annotation(self, model: fx.GraphModule) -> fx.GraphModule:
        """Remove the markers; the nodes before them keep their names."""
        for node in list(model.graph.nodes):
            name = owner(node) if node.target is ops.aten.alias.default else ""
            if name.startswith(f"{QUANTIZERS}."):
                (marked,) = node.all_input_nodes
                marked.meta[OUTPUT] = name
                node.replace_all_uses_with(marked)
                model.graph.erase_node(node)
        model.recompile()
        return model

    def annotate(self, model: fx.GraphModule) -> fx.GraphModule:
        outputs = {f"{QUANTIZERS}.{p.key}": p for p in self._plan.points}
        weights = {f"{unit.name}.weight": unit.name for unit in self._plan.units}
        for node in model.graph.nodes:
            inputs: dict[fx.Node, Any] = {}
            output = None
            if OUTPUT in node.meta:
                quantizer = self._scheme.activations_of(outputs[node.meta[OUTPUT]])
                output = quantization_spec(quantizer)
            if node.target in _LAYERS:
                unit = weights[str(node.args[1].target)]
                quantizer = self._scheme.weights_of(unit)
                if not quantizer.is_float:
                    node.meta[WEIGHT] = f"{unit}.weight_fake_quant"
                    inputs[node.args[0]] = None  # torchao expects this order: input, then weight
                    channels = len(node.args[1].meta["val"])
                    inputs[node.args[1]] = quantization_spec(quantizer, channels)
            if inputs or output is not None:
                node.meta[_ANNOTATION] = QuantizationAnnotation(
                    input_qspec_map=inputs, output_qspec=output, _annotated=True
                )
        return model

    def validate(self, model: fx.GraphModule) -> None:
        """Nothing to check: the plan was made for this model."""


def owner(node: fx.Node) -> str:
    """Name of the module whose ``forward`` made a node of an exported graph."""
    stack = node.meta.get("nn_module_stack") or {"": ("", None)}
    return str(next(reversed(stack.values()))[0])
