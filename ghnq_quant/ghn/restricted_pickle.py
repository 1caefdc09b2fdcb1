"""Read pickled state dicts without running anything that the file names.

``joblib.dump`` of a state dict writes one pickle, in which each tensor is a call that rebuilds it
from the bytes of an embedded file (``torch.save`` in the format before zip files). A pickle can name
any function to call; here three names are known, none of which is looked up, and others are refused.
"""

from __future__ import annotations

import io
import pickle
import warnings
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor


def load_pickled_state(path: Path) -> Any:
    """Read what ``joblib.dump`` wrote for a state dict: tensors, plain values, and containers of them.

    Raises:
        pickle.UnpicklingError: the file names another function or class, or is damaged.
        Exception: it is damaged in another way; which one depends on the damage.
    """
    with path.open("rb") as file:
        return _Unpickler(file).load()


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Callable[..., Any]:
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        # new functions for each load, because a pickle may set attributes on what it gets
        if (module, name) == ("torch.storage", "_load_from_bytes"):
            return lambda content: _values(content)
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return lambda *arguments: _tensor(*arguments)
        raise pickle.UnpicklingError(f"it names {module}.{name}")


def _values(content: bytes) -> Tensor:
    """All values of a storage, as one vector."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the format is deprecated
        storage = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
        if not isinstance(storage, torch.TypedStorage):
            raise pickle.UnpicklingError(f"a {type(storage).__name__} instead of a storage")
        return torch.empty(0, dtype=storage.dtype).set_(storage.untyped())


def _tensor(
    values: Tensor, offset: int, shape: tuple[int, ...], stride: tuple[int, ...], *_: Any
) -> Tensor:
    last = offset + sum((n - 1) * step for n, step in zip(shape, stride, strict=True))
    inside = 0 in shape or last < len(values)
    if not inside or min(offset, *shape, *stride, 0) < 0:
        raise pickle.UnpicklingError(f"a tensor of shape {shape} exceeds its storage")
    return values.as_strided(shape, stride, offset)
