"""One network with predicted, initial or trained parameters: its models and its layers' weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn

from ghnq_quant.capture import Capture
from ghnq_quant.errors import GhnqError
from ghnq_quant.ghn import GHN
from ghnq_quant.prediction import predict_captured, warn_of_kept
from ghnq_quant.quantization import QuantScheme, emit, load_backend
from ghnq_quant.quantization.folding import folded_weight
from ghnq_quant.quantization.scheme import FLOAT, Precision


@dataclass(frozen=True, eq=False)
class Variants:
    """A network with one set of parameters, in float and at some precisions.

    Attributes:
        precisions: those that it is measured at with these parameters.
        float_model: the float network, with the statistics of each batch.
        quantized: its reference simulations by precision, with batch statistics and batch ranges;
            none for float.
        weights: each conv and linear layer's weight, by layer name, in order of execution.
        folded_weights: the quantized ones: the same weights with batch norm folded in, by the float
            network's statistics of one batch; the weight itself if no batch norm follows.
    """

    precisions: tuple[Precision, ...]
    float_model: nn.Module
    quantized: dict[Precision, nn.Module]
    weights: dict[str, Tensor]
    folded_weights: dict[str, Tensor]


def predicted_variants(
    captured: Capture,
    ghn: GHN,
    precisions: Sequence[Precision],
    batch: Tensor,
    channel_limit: float | None = None,
) -> list[Variants]:
    """The network with the parameters that ``ghn`` predicts.

    Args:
        captured: the network; it is not changed.
        ghn: it may predict other parameters for each precision.
        precisions: (weight, activation) bits.
        batch: (N, C, H, W), whose statistics are folded into the weights.
        channel_limit: of the quantized networks.

    Returns:
        one for all precisions, or one for each if the parameters differ.
    """
    groups = [(p,) for p in precisions] if ghn.reads_precision else [tuple(precisions)]
    result = []
    for group in groups:
        (values,) = predict_captured([captured], ghn, group[0])
        warn_of_kept(captured, values)
        old = captured.root.parameters()
        replaced = {id(p): v for p, v in zip(old, values, strict=True) if v is not None}
        copied = _with_parameters(captured, replaced)
        result.append(_variants(copied, batch, group, channel_limit))
    return result


def initial_variants(captured: Capture, seed: int, batch: Tensor) -> Variants:
    """The network with PyTorch's own initialization of each layer, in float."""
    old = list(captured.root.parameters())
    copied = _with_parameters(captured, {id(p): torch.empty_like(p) for p in old})
    root = copied.root.cpu()  # where random numbers are the same on every machine
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        for module in root.modules():
            reset = getattr(module, "reset_parameters", None)
            if callable(reset):
                reset()
    root.to(old[0].device)
    return _variants(copied, batch)


def trained_variants(captured: Capture, state: Mapping[str, Tensor], batch: Tensor) -> Variants:
    """The network with the parameters of a ``state_dict``, in float; other entries are ignored.

    Raises:
        GhnqError: ``state`` belongs to another network.
    """
    replaced = {}
    for name, p in captured.root.named_parameters():
        value = state.get(name)
        if value is None or value.shape != p.shape:
            raise GhnqError(
                f"the trained state_dict is not of this model: {name} has shape {tuple(p.shape)}, "
                + ("it lacks that" if value is None else f"there it has {tuple(value.shape)}")
            )
        replaced[id(p)] = value.to(p)
    return _variants(_with_parameters(captured, replaced), batch)


def _with_parameters(captured: Capture, replaced: Mapping[int, Tensor]) -> Capture:
    """A copy with other values of some parameters, by id; it shares the others."""
    memo = {id(p): nn.Parameter(p.detach(), False) for p in captured.root.parameters()}
    memo.update({key: nn.Parameter(v, requires_grad=False) for key, v in replaced.items()})
    copied = captured.copied(memo)
    copied.root.eval()
    for module in copied.root.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            # no running statistics, so it uses those of each batch
            module.track_running_stats = False
            module.running_mean = module.running_var = module.num_batches_tracked = None
    return copied


def _variants(
    captured: Capture,
    batch: Tensor,
    precisions: Sequence[Precision] = (),
    channel_limit: float | None = None,
) -> Variants:
    shared = {id(p): p for p in captured.root.parameters()}
    backend = load_backend("reference")
    quantized: dict[Precision, nn.Module] = {
        precision: emit(
            captured.copied(shared),
            QuantScheme(*precision, act_range="batch", bn="batch", channel_limit=channel_limit),
            backend,
        )
        for precision in precisions
        if precision != FLOAT
    }
    modules = captured.modules
    units = captured.quant_plan.units
    weights: dict[str, Tensor] = {u.name: modules[u.name].get_parameter("weight") for u in units}
    float_model = fx.GraphModule(captured.root, captured.graph)
    folded = _folded_weights(captured, float_model, weights, batch, channel_limit)
    return Variants(tuple(precisions), float_model, quantized, weights, folded)


def _folded_weights(
    captured: Capture,
    float_model: nn.Module,
    weights: Mapping[str, Tensor],
    batch: Tensor,
    channel_limit: float | None,
) -> dict[str, Tensor]:
    norms = {
        unit.name: captured.modules[unit.batch_norm]
        for unit in captured.quant_plan.units
        if unit.batch_norm is not None
    }
    variances: dict[str, Tensor] = {}
    hooks = [
        norm.register_forward_pre_hook(_keep_variance(variances, name))
        for name, norm in norms.items()
    ]
    try:
        with torch.inference_mode():
            float_model(channels_last(batch))
    finally:
        for hook in hooks:
            hook.remove()
    folded = dict(weights)
    for name, norm in norms.items():
        assert isinstance(norm, nn.BatchNorm2d)
        folded[name] = folded_weight(weights[name], norm, variances[name], channel_limit)
    return folded


def _keep_variance(
    variances: dict[str, Tensor], name: str
) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
    def hook(_: nn.Module, args: tuple[Tensor, ...]) -> None:
        # in two passes, which on CPU take a tenth of the time of torch.var over these dimensions
        centred = args[0] - args[0].mean((0, 2, 3), keepdim=True)
        variances[name] = centred.square_().mean((0, 2, 3))

    return hook


def channels_last(batch: Tensor) -> Tensor:
    """(N, C, H, W) in the layout in which CPUs run a float network in half the time."""
    return batch.contiguous(memory_format=torch.channels_last)
