"""What two sessions of a run must share to be one run, as hashes of what determines its result."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ghnq_quant.capture import capture
from ghnq_quant.errors import GhnqError, warn
from ghnq_quant.ghn import GHN
from ghnq_quant.research.data.images import Images

#: The part of a run's facts that holds hashes.
IDENTITY = "identity"
_DIGITS = 16


def digest_of_images(images: Images) -> str:
    """Hash of pixels, labels, the classes' names and the normalization.

    Example:
        >>> from ghnq_quant.research.data import load_images
        >>> digits = load_images("digits")
        >>> digest_of_images(digits.train) == digest_of_images(digits.test)
        False
    """
    tensors = {"x": images.images, "y": images.labels, "mean": images.mean, "std": images.std}
    return digest_of_tensors(tensors, images.classes)


def digest_of_hypernetwork(ghn: GHN) -> str:
    """Hash of its parameters and of the settings that affect its predictions.

    Example:
        >>> ghn = GHN(hid=8)
        >>> digest_of_hypernetwork(ghn) == digest_of_hypernetwork(ghn.derived(virtual_edges=3))
        False
    """
    settings = {k: v for k, v in ghn.settings.items() if k != "provenance"}
    return digest_of_tensors(ghn.state_dict(), settings)


def digest_of_model(create: Callable[[], nn.Module]) -> str:
    """Hash of the code that makes a model: its modules, its traced graph and its first values.

    A changed comment does not change it.

    Args:
        create: makes the model; its random values follow from torch's seed.

    Raises:
        CaptureError: the model cannot be captured.

    Example:
        >>> thin = digest_of_model(lambda: nn.Sequential(nn.Conv2d(3, 4, 1)))
        >>> thin == digest_of_model(lambda: nn.Sequential(nn.Conv2d(3, 8, 1)))
        False
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = create()
    graph = [node.format_node() for node in capture(model).graph.nodes]
    # the printed address of an object differs between processes
    text = re.sub(r" at 0x[0-9a-f]+", "", "\n".join([repr(model), *map(str, graph)]))
    return digest_of_tensors(model.state_dict(), text)


def digest_of_tensors(tensors: Mapping[str, Tensor], plain: object = None) -> str:
    """Hash of names, shapes, types and values, and of ``plain``, anything that JSON can hold."""
    digest = hashlib.sha256(json.dumps(plain, sort_keys=True).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        flat = tensor.detach().cpu().contiguous().flatten()
        digest.update(flat.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:_DIGITS]


def check_same_run(
    found: Mapping[str, Any],
    now: Mapping[str, Any],
    where: Path,
    error: type[GhnqError] = GhnqError,
) -> None:
    """Raise if a run with the facts ``found`` is not the one that continues with the facts ``now``.

    Files of earlier versions have no :data:`IDENTITY`; a warning then says what cannot be compared.

    Args:
        found: facts as written.
        now: facts of this session.
        where: where ``found`` was written.
        error: raised if they differ.
    """
    found, now = dict(found), dict(now)
    if IDENTITY in now and IDENTITY not in found:
        parts = ", ".join(now.pop(IDENTITY))
        warn(
            f"{where} is of an earlier version, which did not note everything that decides the "
            f"result: whether this is the same is not known ({parts})"
        )
    before, after = dict(_flat(found)), dict(_flat(now))
    different = [k for k in {**after, **before} if before.get(k) != after.get(k)]
    if different:
        raise error(
            f"{where} is of a run with other settings: "
            + ", ".join(f"{k}={before.get(k)!r} (now {after.get(k)!r})" for k in different)
            + ". Give the same to go on with it, or another folder for a new one"
        )


def _flat(content: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Nested facts, with dotted names."""
    for key, value in content.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value
