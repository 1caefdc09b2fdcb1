"""Checks for modules that a capture refuses, with the error messages."""

from __future__ import annotations

from torch import nn
from torch.nn.parameter import UninitializedParameter

from ghnq_quant.capture.computed_weight import ComputedWeight
from ghnq_quant.capture.operations import Kind, module_kind
from ghnq_quant.errors import CaptureError

_UNSUPPORTED = (
    nn.Conv1d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
)
#: Layers that a quantization backend replaces, so what they compute must be known.
REPLACED = (nn.Conv2d, nn.Linear, nn.BatchNorm2d)
NORMS = (nn.LayerNorm, nn.GroupNorm)


#: Attributes of modules that hold call hooks.
HOOKS = (
    *("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks"),
    *("_forward_pre_hooks_with_kwargs", "_forward_hooks_with_kwargs"),
    "_forward_hooks_always_called",
)


def check_layers(model: nn.Module, skip: bool) -> None:
    has_conv = False
    for name, module in model.named_modules():
        if isinstance(module, _UNSUPPORTED) and not skip:
            raise CaptureError(
                f"module {name!r} is a {type(module).__name__}: only Conv2d convolutions are "
                "supported; replace it, or quantize the part of the model that has none"
            )
        if any(isinstance(p, UninitializedParameter) for p in module._parameters.values()):
            raise CaptureError(
                f"module {name!r} ({type(module).__name__}) has no shapes yet: run the model once "
                "on one of your inputs, so that it creates its parameters"
            )
        has_conv = has_conv or isinstance(module, nn.Conv2d)
    if not has_conv:
        raise CaptureError(
            f"{type(model).__name__} has no nn.Conv2d: ghnq-quant predicts parameters of "
            "convolutional networks"
        )


def check_is_known(module: nn.Module, name: str) -> None:
    if module_kind(module) is Kind.OTHER and any(p.dim() > 1 for p in module.parameters()):
        raise CaptureError(
            f"module {name!r} is a {type(module).__name__}, whose parameters are neither of a "
            "conv, linear nor norm layer; replace it, or leave it float with "
            'skip="unsupported"'
        )


def check_is_standard(module: nn.Module, name: str) -> None:
    base = next(t for t in (*REPLACED, *NORMS) if isinstance(module, t))
    if any(
        getattr(type(module), method, None) is not getattr(base, method, None)
        for method in ("forward", "_conv_forward")
    ):
        raise CaptureError(
            f"module {name!r} ({type(module).__name__}) replaces {base.__name__}.forward, so what "
            "it computes is unknown; register an adapter for it (entry-point group "
            "ghnq_quant.adapters)"
        )


def check_weight(module: nn.Module, name: str) -> None:
    """Check that a layer's weight and bias are its own parameters."""
    computed = isinstance(module, ComputedWeight)
    if not computed and not {"weight", "bias"} <= module._parameters.keys():
        raise CaptureError(
            f"module {name!r} ({type(module).__name__}) has a weight or bias that is computed by a "
            "parametrization or a hook, such as weight_norm, spectral_norm or pruning, which its "
            "quantized layer would not do: make it permanent first, by "
            "torch.nn.utils.parametrize.remove_parametrizations or the method's own remove"
        )


def has_hooks(module: nn.Module) -> bool:
    """Whether something runs before, after or in the backward of ``module``'s forward."""
    return any(getattr(module, hooks) for hooks in HOOKS)
