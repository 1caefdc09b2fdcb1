"""Keep ``import torchvision`` working where its compiled operators do not load.

torchvision's wheels on PyPI are built for CUDA. Beside a CPU build of torch their operators cannot be
loaded, and ``import torchvision`` (so ``import timm`` too) stops with "operator torchvision::nms does
not exist". Models, transforms and datasets need only the operators' schemas, which this registers.
"""

from __future__ import annotations

import importlib.util
import sys
from importlib.abc import MetaPathFinder
from pathlib import Path

_SCHEMAS = {
    "nms": "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms": "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
}


def _is_defined(name: str) -> bool:
    import torch

    return bool(torch._C._dispatch_has_kernel(f"torchvision::{name}")) or hasattr(
        torch.ops.torchvision, name
    )


def _compiled_operators_load() -> bool:
    spec = importlib.util.find_spec("torchvision")
    if spec is None or spec.origin is None:
        return True  # no torchvision, nothing to repair
    import torch

    for library in Path(spec.origin).parent.glob("_C*"):
        if library.suffix in {".so", ".pyd", ".dylib"}:
            try:
                torch.ops.load_library(str(library))
                return True
            except OSError:
                pass
    return False


def define_missing_operators() -> None:
    """Register the schemas of torchvision's operators if, and only if, the compiled ones do not load.

    Must run before the first ``import torchvision`` of a process.

    Example:
        >>> define_missing_operators()
        >>> import torchvision
    """
    if "torchvision" in sys.modules or _compiled_operators_load():
        return
    import torch

    for name, schema in _SCHEMAS.items():
        if not _is_defined(name):
            torch.library.define(f"torchvision::{name}", schema)


def define_missing_operators_in_time() -> None:
    """Run :func:`define_missing_operators` when torchvision is first imported, perhaps by the
    user's next line, and not before: it needs torch."""
    if not any(isinstance(finder, _BeforeTorchvision) for finder in sys.meta_path):
        sys.meta_path.insert(0, _BeforeTorchvision())


class _BeforeTorchvision(MetaPathFinder):
    """Finds nothing; its search for torchvision triggers the definitions."""

    def find_spec(self, fullname: str, path: object, target: object = None) -> None:
        if fullname == "torchvision" and self in sys.meta_path:
            sys.meta_path.remove(self)
            define_missing_operators()
