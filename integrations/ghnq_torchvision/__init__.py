"""torchvision's models and layer types for ghnq-quant."""

from __future__ import annotations

from ghnq_quant.torchvision_ops import define_missing_operators

define_missing_operators()

import torchvision  # noqa: E402
from torch import nn  # noqa: E402
from torchvision.models.convnext import LayerNorm2d  # noqa: E402
from torchvision.models.swin_transformer import (  # noqa: E402
    ShiftedWindowAttention,
    ShiftedWindowAttentionV2,
)
from torchvision.ops import StochasticDepth  # noqa: E402

from ghnq_quant.capture.attention import SOFTMAX, swin_v2_error  # noqa: E402

__all__ = ["TorchvisionAdapter"]


_TRANSFORMERS = ("vision_transformer", "swin_transformer", "maxvit")


class TorchvisionAdapter:
    """Keeps whole torchvision's stochastic depth, which follows train and eval, and its norm."""

    def is_leaf(self, module: nn.Module) -> bool:
        return isinstance(module, (StochasticDepth, LayerNorm2d))

    def rewrite(self, module: nn.Module) -> nn.Module | None:
        return None

    def attention_parts(self, module: nn.Module) -> tuple[str, ...]:
        """The parts of Swin's attention, which runs its layers as one function."""
        if isinstance(module, ShiftedWindowAttentionV2):
            raise swin_v2_error(module)
        if type(module) is not ShiftedWindowAttention:
            return ()
        return "qkv.weight", "qkv.bias", SOFTMAX, "proj.weight", "proj.bias"

    def create_model(self, name: str, num_classes: int) -> nn.Module | None:
        if name not in self.model_names():
            return None
        model: nn.Module = torchvision.models.get_model(name, weights=None, num_classes=num_classes)
        return model

    def model_names(self) -> list[str]:
        return list(torchvision.models.list_models(module=torchvision.models))

    def convolutional_models(self) -> dict[str, list[str]]:
        families: dict[str, list[str]] = {}
        for name in self.model_names():
            family = torchvision.models.get_model_builder(name).__module__.rpartition(".")[2]
            if family not in _TRANSFORMERS:
                families.setdefault(family, []).append(name)
        return families
