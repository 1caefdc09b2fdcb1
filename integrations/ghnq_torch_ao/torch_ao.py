"""The only file that imports ``torch.ao``, which PyTorch is moving into torchao."""

from __future__ import annotations

from ghnq_quant.errors import BackendError

try:
    from torch.ao.nn import qat
    from torch.ao.nn.intrinsic import qat as intrinsic_qat
    from torch.ao.quantization import (
        FakeQuantize,
        MinMaxObserver,
        MovingAverageMinMaxObserver,
        PerChannelMinMaxObserver,
        QConfig,
    )
except ImportError as error:
    raise BackendError(
        f"this version of PyTorch has no torch.ao.quantization any more ({error}): use "
        "backend='pt2e' with torchao (pip install 'ghnq-quant[torchao]'), or an older PyTorch"
    ) from error

__all__ = [
    "FakeQuantize",
    "MinMaxObserver",
    "MovingAverageMinMaxObserver",
    "PerChannelMinMaxObserver",
    "QConfig",
    "intrinsic_qat",
    "qat",
]
