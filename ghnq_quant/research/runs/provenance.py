"""Where a result comes from: versions and checksums."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Iterable
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version

from torch import Tensor

_PACKAGES = ("ghnq-quant", "torch", "torchvision", "timm", "brevitas", "numpy", "scikit-learn")


def versions() -> dict[str, str]:
    """Versions of Python and of the installed packages that a result may depend on."""
    return {"python": platform.python_version(), **package_versions(_PACKAGES)}


def package_versions(packages: Iterable[str]) -> dict[str, str]:
    """The versions of those packages that are installed."""
    found = {}
    for package in dict.fromkeys(packages):
        with suppress(PackageNotFoundError):
            found[package] = version(package)
    return found


def checksum(tensors: Iterable[Tensor]) -> str:
    """SHA-256 of the tensors' bytes, in order.

    Example:
        >>> import torch
        >>> checksum([torch.zeros(1)])[:8]
        'df3f6198'
    """
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
