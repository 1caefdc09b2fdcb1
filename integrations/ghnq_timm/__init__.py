"""timm's models and layer types for ghnq-quant."""

from __future__ import annotations

from ghnq_quant.torchvision_ops import define_missing_operators

define_missing_operators()

import timm  # noqa: E402
from timm.layers import DropBlock2d, DropPath, evo_norm, filter_response_norm, norm  # noqa: E402
from timm.layers.pool2d_same import AvgPool2dSame, MaxPool2dSame  # noqa: E402
from timm.models import swin_transformer, swin_transformer_v2  # noqa: E402
from timm.models.vgg import ConvMlp  # noqa: E402
from torch import nn  # noqa: E402

from ghnq_quant.capture.attention import SOFTMAX, swin_v2_error  # noqa: E402
from ghnq_quant.stem.heads import enlarged_input_folded  # noqa: E402
from ghnq_timm.layers import KEPT_THEN, rewrite  # noqa: E402

__all__ = ["TimmAdapter"]

_KEPT = (DropPath, DropBlock2d, AvgPool2dSame, MaxPool2dSame, *KEPT_THEN)
#: timm's modules that contain only norm layers.
_NORM_MODULES = (norm.__name__, evo_norm.__name__, filter_response_norm.__name__)
#: timm's modules that contain convolutional networks.
_CONVOLUTIONAL = (
    *("byobnet", "convmixer", "convnext", "cspnet", "densenet", "dla", "dpn", "efficientnet"),
    *("fasternet", "ghostnet", "hardcorenas", "hgnet", "hrnet", "inception_next"),
    *("inception_resnet_v2", "inception_v3", "inception_v4", "mobilenetv3", "nasnet", "nfnet"),
    *("pnasnet", "rdnet", "regnet", "repghost", "repvit", "res2net", "resnest", "resnet"),
    *("resnetv2", "rexnet", "selecsls", "senet", "sknet", "starnet", "tresnet", "vgg", "vovnet"),
    *("xception", "xception_aligned"),
)


class TimmAdapter:
    """Splits timm's layers that combine several operations, and keeps whole what must not be traced:
    stochastic depth, drop block, pooling with TensorFlow's padding, and timm's own norms."""

    def is_leaf(self, module: nn.Module) -> bool:
        if isinstance(module, _KEPT) or type(module).__module__ in _NORM_MODULES:
            return True
        is_norm = isinstance(module, (nn.LayerNorm, nn.GroupNorm)) and not list(module.children())
        return is_norm and type(module).__module__.startswith("timm.")

    def rewrite(self, module: nn.Module) -> nn.Module | None:
        return rewrite(module)

    def attention_parts(self, module: nn.Module) -> tuple[str, ...]:
        """The parts of Swin's attention."""
        if isinstance(module, swin_transformer_v2.WindowAttention):
            raise swin_v2_error(module)
        if type(module) is not swin_transformer.WindowAttention:
            return ()
        return "qkv.weight", "qkv.bias", SOFTMAX, "proj.weight", "proj.bias"

    def fit_head(self, module: nn.Module, side: int) -> None:
        """Adapt the head of timm's VGG, which enlarges feature maps to 7×7."""
        if isinstance(module, ConvMlp) and side < module.input_kernel_size:
            conv = module.fc1
            folded = enlarged_input_folded(conv.weight.detach(), side)
            conv.weight = nn.Parameter(folded, conv.weight.requires_grad)
            conv.kernel_size = (side, side)
            module.input_kernel_size = side

    def create_model(self, name: str, num_classes: int) -> nn.Module | None:
        if not timm.is_model(name):
            return None
        model: nn.Module = timm.create_model(name, pretrained=False, num_classes=num_classes)
        return model

    def model_names(self) -> list[str]:
        return list(timm.list_models())

    def convolutional_models(self) -> dict[str, list[str]]:
        return {family: list(timm.list_models(module=family)) for family in _CONVOLUTIONAL}
