"""Exceptions and warnings of ghnq-quant; every message names the module, file or value at fault."""

from __future__ import annotations

import sys
import warnings
from types import FrameType


class GhnqError(Exception):
    """Base class of everything that ghnq-quant raises on purpose."""


class CaptureError(GhnqError):
    """A model's graph cannot be captured, or the hypernetwork cannot read it."""


class PredictionError(GhnqError):
    """The hypernetwork cannot predict usable parameters for a model."""


class SchemeError(GhnqError, ValueError):
    """An invalid bit width, range or batch-norm setting."""


class BackendError(GhnqError):
    """An unknown quantization backend, or one whose toolkit is not installed."""


class ConversionError(GhnqError):
    """A quantized model that cannot be folded, run on integers, or exported."""


class CheckpointError(GhnqError):
    """A checkpoint that is missing, damaged, unsafe to load, or of another kind."""


class DataError(GhnqError):
    """A data set that is missing, empty, damaged or mismatched."""


class GhnqWarning(UserWarning):
    """Something the user should know that does not stop the work."""


def warn(message: str) -> None:
    """Issue a :class:`GhnqWarning` that points to the user's line, however deep in the package.

    That is the innermost frame outside the packages ``ghnq_*``, torch (whose modules call them) and
    the standard library's ``contextlib``.
    """
    level = 1
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and _is_ours(frame.f_globals.get("__name__", "")):
        frame, level = frame.f_back, level + 1
    warnings.warn(message, GhnqWarning, stacklevel=level + (frame is not None))


def _is_ours(module: str) -> bool:
    package = module.partition(".")[0]
    return package.startswith("ghnq_") or package in {"torch", "contextlib"}
