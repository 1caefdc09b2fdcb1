"""timm's models and layer types for ghnq-quant."""

from __future__ import annotations

from ghnq_quant.torchvision_ops import define_missing_operators

define_missing_operators()

import timm  # noqa: E402
from timm.layers import BatchNormAct2d, DropPath  # noqa: E402
from torch import nn  # noqa: E402

from ghnq_quant.capture.adapters import BatchNormThen  # noqa: E402

__all__ = ["TimmAdapter"]


class TimmAdapter:
    """Splits timm's batch norm + activation layers; keeps stochastic depth whole."""

    def is_leaf(self, module: nn.Module) -> bool:
        return isinstance(module, DropPath)

    def rewrite(self, module: nn.Module) -> nn.Module | None:
        if type(module) is not BatchNormAct2d:
            return None
        norm = BatchNormThen.__new__(BatchNormThen)
        norm.__dict__.update(module.__dict__)  # the same tensors, children and settings
        return norm

    def create_model(self, name: str, num_classes: int) -> nn.Module | None:
        if not timm.is_model(name):
            return None
        model: nn.Module = timm.create_model(name, pretrained=False, num_classes=num_classes)
        return model

    def model_names(self) -> list[str]:
        return list(timm.list_models())
