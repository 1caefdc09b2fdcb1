"""timm's layers that combine several operations, as standard layers with operations around them."""

from __future__ import annotations

import torch.nn.functional as F
from timm.layers import (
    BatchNormAct2d,
    Conv2dSame,
    GroupNorm1Act,
    GroupNormAct,
    LayerNorm,
    LayerNorm2d,
    LayerNormAct,
    LayerNormAct2d,
    Linear,
    RmsNorm2d,
    RmsNormAct2d,
    ScaledStdConv2d,
    ScaledStdConv2dSame,
    StdConv2d,
    pad_same,
)
from timm.layers.eca import EcaModule
from timm.layers.std_conv import StdConv2dSame
from timm.models.vgg import ConvMlp
from torch import Tensor, fx, nn

from ghnq_quant.capture.adapters import (
    BatchNormThen,
    GroupNormThen,
    NormThen,
    Surrounded,
    conv1d_as_2d,
    recast,
)
from ghnq_quant.capture.computed_weight import ComputedWeight


def pad_like_tensorflow(x: Tensor, conv: tuple[tuple[int, ...], ...]) -> Tensor:
    """TensorFlow's padding, which depends on the input size, for (kernel, stride, dilation)."""
    return pad_same(x, *conv)


def pool_to_at_least(x: Tensor, size: int) -> Tensor:
    """``x`` (N, C, H, W), pooled up to ``size`` if H or W is smaller."""
    height, width = (max(size, side) for side in x.shape[-2:])
    return x if x.shape[-2:] == (height, width) else F.adaptive_avg_pool2d(x, (height, width))


# recorded as one operation each, because their path depends on the input size
fx.wrap("pad_like_tensorflow")
fx.wrap("pool_to_at_least")


class _SamePadded(Surrounded):
    """Padding that depends on the input size, before a convolution."""

    same_pad = True  # an attribute of timm's weight-standardized convolutions
    kernel_size: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]

    def before(self, x: Tensor) -> Tensor:
        if not self.same_pad:
            return x
        return pad_like_tensorflow(x, (self.kernel_size, self.stride, self.dilation))


class _Standardized(ComputedWeight):
    """Weight standardization: mean 0 and variance 1 for the weight of each output channel; the scaled
    kind also multiplies by a gain and a constant."""

    eps: float
    scale: float

    def compute_weight(self, parameter: Tensor) -> Tensor:
        gain = self._parameters.get("gain")
        return F.batch_norm(
            parameter.reshape(1, len(parameter), -1),
            None,
            None,
            weight=None if gain is None else (gain * self.scale).view(-1),
            training=True,
            momentum=0.0,
            eps=self.eps,
        ).reshape_as(parameter)


class _Conv2dSame(_SamePadded, nn.Conv2d):
    pass


class _StdConv2d(_Standardized, nn.Conv2d):
    pass


class _StdConv2dSame(_Standardized, _SamePadded, nn.Conv2d):
    pass


class _LayerNormThen(NormThen, LayerNorm):
    """A layer norm, then its child modules."""


class _LayerNorm2dThen(NormThen, LayerNorm2d):
    """A layer norm of channels, then its child modules."""


class _RmsNorm2dThen(NormThen, RmsNorm2d):
    """An RMS norm of channels, then its child modules."""


class _ConvMlp(ConvMlp):
    """The head of timm's VGG without the branch on the input size."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.act1(self.fc1(pool_to_at_least(x, self.input_kernel_size)))
        return self.act2(self.fc2(self.drop(x)))


#: Norms that run unchanged, followed by their child modules.
KEPT_THEN = (_LayerNormThen, _LayerNorm2dThen, _RmsNorm2dThen)

_RECAST: dict[type[nn.Module], type[nn.Module]] = {
    BatchNormAct2d: BatchNormThen,
    GroupNormAct: GroupNormThen,
    GroupNorm1Act: GroupNormThen,
    LayerNormAct: _LayerNormThen,
    LayerNormAct2d: _LayerNorm2dThen,
    RmsNormAct2d: _RmsNorm2dThen,
    Conv2dSame: _Conv2dSame,
    StdConv2d: _StdConv2d,
    StdConv2dSame: _StdConv2dSame,
    ScaledStdConv2d: _StdConv2d,
    ScaledStdConv2dSame: _StdConv2dSame,
    Linear: nn.Linear,
    ConvMlp: _ConvMlp,
}


def rewrite(module: nn.Module) -> nn.Module | None:
    """An equal module of standard layers; None if timm's own is kept or traced into."""
    if type(module) is EcaModule:
        children = {
            name: conv1d_as_2d(child) if isinstance(child, nn.Conv1d) else child
            for name, child in module._modules.items()
        }
        return recast(module, EcaModule, _modules=children)
    cls = _RECAST.get(type(module))
    return None if cls is None else recast(module, cls)
