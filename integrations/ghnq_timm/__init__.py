"""timm's models and layer types for ghnq-quant."""

from __future__ import annotations

from ghnq_quant.torchvision_ops import define_missing_operators

define_missing_operators()

import timm  # noqa: E402
import torch.nn.functional as F  # noqa: E402
from timm.layers import (  # noqa: E402
    BatchNormAct2d,
    Conv2dSame,
    DropBlock2d,
    DropPath,
    GroupNormAct,
    Linear,
    pad_same,
)
from timm.layers.pool2d_same import AvgPool2dSame, MaxPool2dSame  # noqa: E402
from timm.models.vgg import ConvMlp  # noqa: E402
from torch import Tensor, fx, nn  # noqa: E402

from ghnq_quant.capture.adapters import (  # noqa: E402
    BatchNormThen,
    GroupNormThen,
    Surrounded,
    recast,
)

__all__ = ["TimmAdapter"]

_KEPT = (DropPath, DropBlock2d, AvgPool2dSame, MaxPool2dSame)


def pad_like_tensorflow(x: Tensor, conv: tuple[tuple[int, ...], ...]) -> Tensor:
    """TensorFlow's padding, which depends on the input's size, for (kernel, stride, dilation)."""
    return pad_same(x, *conv)


def pool_to_at_least(x: Tensor, size: int) -> Tensor:
    """``x`` (N, C, H, W), where H or W are below ``size`` pooled up to it."""
    height, width = (max(size, side) for side in x.shape[-2:])
    return x if x.shape[-2:] == (height, width) else F.adaptive_avg_pool2d(x, (height, width))


# recorded as one operation each: their path depends on the input's size
fx.wrap("pad_like_tensorflow")
fx.wrap("pool_to_at_least")


class _PaddedConv2d(Surrounded, nn.Conv2d):
    """timm's Conv2dSame: padding that depends on the input's size, then a convolution."""

    def before(self, x: Tensor) -> Tensor:
        return pad_like_tensorflow(x, (self.kernel_size, self.stride, self.dilation))


class _ConvMlp(ConvMlp):
    """The head of timm's VGG without a branch on the input's size."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.act1(self.fc1(pool_to_at_least(x, self.input_kernel_size)))
        return self.act2(self.fc2(self.drop(x)))


_REWRITTEN: dict[type[nn.Module], type[nn.Module]] = {
    BatchNormAct2d: BatchNormThen,
    GroupNormAct: GroupNormThen,
    Conv2dSame: _PaddedConv2d,
    Linear: nn.Linear,
    ConvMlp: _ConvMlp,
}


#: timm's modules of convolutional networks.
_CONVOLUTIONAL = (
    *("byobnet", "convmixer", "convnext", "cspnet", "densenet", "dla", "dpn", "efficientnet"),
    *("fasternet", "ghostnet", "hardcorenas", "hgnet", "hrnet", "inception_next"),
    *("inception_resnet_v2", "inception_v3", "inception_v4", "mobilenetv3", "nasnet", "nfnet"),
    *("pnasnet", "rdnet", "regnet", "repghost", "repvit", "res2net", "resnest", "resnet"),
    *("resnetv2", "rexnet", "selecsls", "senet", "sknet", "starnet", "tresnet", "vgg", "vovnet"),
    *("xception", "xception_aligned"),
)


class TimmAdapter:
    """Splits timm's layers that are several operations in one; keeps whole what must not be traced:
    stochastic depth, drop block, pooling with TensorFlow's padding, and norms in other layouts."""

    def is_leaf(self, module: nn.Module) -> bool:
        is_norm = isinstance(module, (nn.LayerNorm, nn.GroupNorm)) and not list(module.children())
        return isinstance(module, _KEPT) or (
            is_norm and type(module).__module__.startswith("timm.")
        )

    def rewrite(self, module: nn.Module) -> nn.Module | None:
        cls = _REWRITTEN.get(type(module))
        return None if cls is None else recast(module, cls)

    def create_model(self, name: str, num_classes: int) -> nn.Module | None:
        if not timm.is_model(name):
            return None
        model: nn.Module = timm.create_model(name, pretrained=False, num_classes=num_classes)
        return model

    def model_names(self) -> list[str]:
        return list(timm.list_models())

    def convolutional_models(self) -> dict[str, list[str]]:
        return {family: list(timm.list_models(module=family)) for family in _CONVOLUTIONAL}
