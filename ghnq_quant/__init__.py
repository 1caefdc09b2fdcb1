"""Parameters for quantized CNNs, predicted by a graph hypernetwork (GHN-Q).

>>> import ghnq_quant, torch, torchvision
>>> loader = [(torch.randn(64, 3, 32, 32), torch.arange(64) % 10)]  # your training's DataLoader
>>> model = torchvision.models.mobilenet_v2(num_classes=10)
>>> qat = ghnq_quant.init_quantized(model, bits=4, data=loader)
"""

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from ghnq_quant.torchvision_ops import define_missing_operators_in_time

if TYPE_CHECKING:
    from ghnq_quant.public import *  # noqa: F403

define_missing_operators_in_time()

__version__ = version("ghnq-quant")


def __getattr__(name: str) -> Any:
    """Import all public names when one is first used: importing torch takes a second, which
    ``ghnq --help`` must not wait for."""
    if name.startswith("__") and name != "__all__":
        raise AttributeError(name)
    public = import_module("ghnq_quant.public")
    globals().update({key: getattr(public, key) for key in ("__all__", *public.__all__)})
    if name not in globals():
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return globals()[name]


def __dir__() -> list[str]:
    return sorted({*globals(), *__getattr__("__all__")})
