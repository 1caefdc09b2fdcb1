"""One network as float and at every precision, as the paper's protocol runs it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn

from ghnq_quant.capture import Capture
from ghnq_quant.ghn import GHN
from ghnq_quant.prediction import predict_captured, warn_of_kept
from ghnq_quant.quantization import QuantScheme, emit, load_backend
from ghnq_quant.quantization.batch_norm import folded_weight
from ghnq_quant.quantization.scheme import FLOAT, Precision


@dataclass(frozen=True, eq=False)
class Variants:
    """A network with one set of parameters.

    Attributes:
        captured: the float network, whose parameters the others share.
        float_model: it, run with the statistics of the batch at hand.
        quantized: its reference simulations by precision, with batch statistics and batch ranges.
    """

    captured: Capture
    float_model: nn.Module
    quantized: dict[Precision, nn.Module]

    @property
    def weights(self) -> dict[str, Tensor]:
        """Each conv and linear layer's weight, by the layer's name, in the order of execution."""
        modules = self.captured.modules
        return {
            u.name: modules[u.name].get_parameter("weight") for u in self.captured.quant_plan.units
        }

    def float_logits(self, batch: Tensor) -> Tensor:
        """(N, C, H, W) to (N, classes) by the float network."""
        # in this layout, CPUs take half of the time for convolutions and batch norms
        logits: Tensor = self.float_model(batch.contiguous(memory_format=torch.channels_last))
        return logits

    def folded_weights(self, batch: Tensor) -> dict[str, Tensor]:
        """What is quantized: the weights, folded with the float network's statistics of a batch.

        Args:
            batch: (N, C, H, W)

        Returns:
            by the layer's name; the weight itself where no batch norm follows.
        """
        plan, modules = self.captured.quant_plan, self.captured.modules
        variances: dict[str, Tensor] = {}
        hooks = [
            modules[unit.batch_norm].register_forward_pre_hook(
                _keep_variance(variances, unit.batch_norm)
            )
            for unit in plan.units
            if unit.batch_norm is not None
        ]
        try:
            with torch.inference_mode():
                self.float_logits(batch)
        finally:
            for hook in hooks:
                hook.remove()
        result = self.weights
        for unit in plan.units:
            if unit.batch_norm is not None:
                norm = modules[unit.batch_norm]
                assert isinstance(norm, nn.BatchNorm2d)
                variance = variances[unit.batch_norm]
                result[unit.name] = folded_weight(result[unit.name], norm, variance)
        return result


def _keep_variance(
    variances: dict[str, Tensor], name: str
) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
    def hook(_: nn.Module, args: tuple[Tensor, ...]) -> None:
        # in two passes, which on CPU take a tenth of the time of torch.var over these dimensions
        centred = args[0] - args[0].mean((0, 2, 3), keepdim=True)
        variances[name] = centred.square_().mean((0, 2, 3))

    return hook


def predicted_variants(
    captured: Capture, ghn: GHN, precisions: Sequence[Precision]
) -> dict[tuple[Precision, ...], Variants]:
    """The network at every precision with parameters that ``ghn`` predicts.

    Args:
        captured: the network; it is not changed.
        ghn: one with a precision embedding predicts other parameters for every precision.
        precisions: (weight, activation) bits.

    Returns:
        by the precisions that share their parameters: all of them, or each one for itself.
    """
    groups = [tuple(precisions)] if ghn.precision is None else [(p,) for p in precisions]
    result = {}
    for group in groups:
        (values,) = predict_captured([captured], ghn, group[0])
        warn_of_kept(captured, values, stacklevel=2)
        old = captured.root.parameters()
        replaced = {id(p): v for p, v in zip(old, values, strict=True) if v is not None}
        result[group] = make_variants(captured, replaced, group)
    return result


def make_variants(
    captured: Capture, replaced: dict[int, Tensor], precisions: Sequence[Precision] = ()
) -> Variants:
    """A copy of the network with other values of some parameters, by id, and its simulations."""
    memo = {id(p): nn.Parameter(p.detach(), False) for p in captured.root.parameters()}
    memo.update({key: nn.Parameter(v, requires_grad=False) for key, v in replaced.items()})
    copied = captured.copied(memo)
    _use_batch_statistics(copied.root)
    shared = {id(p): p for p in memo.values()}
    backend = load_backend("reference")
    quantized: dict[Precision, nn.Module] = {
        precision: emit(
            copied.copied(shared), QuantScheme(*precision, act_range="batch", bn="batch"), backend
        )
        for precision in precisions
        if precision != FLOAT
    }
    return Variants(copied, fx.GraphModule(copied.root, copied.graph), quantized)


def _use_batch_statistics(root: nn.Module) -> None:
    """Eval mode, in which batch norms know no statistics but those of the batch at hand."""
    root.eval()
    for module in root.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.track_running_stats = False
            module.running_mean = module.running_var = module.num_batches_tracked = None
