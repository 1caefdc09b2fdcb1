"""The public formats of GHN-3 (SamsungSAILMontreal/ghn3), which hold GHN-2 too.

Files on the Hub are a bare state dict of a GHN-3 or a GHN-2, so all sizes have to be inferred from
it. Files from the authors' own training code also have a ``config``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import hf_hub_download
from torch import Tensor

from ghnq_quant.errors import CheckpointError
from ghnq_quant.ghn.restricted_pickle import load_pickled_state

#: Where the authors publish their files, such as ``ghn3xlm16.pt``.
HUB_REPOSITORY = "SamsungSAILMontreal/ghn3"
#: First bytes of a ``torch.save`` file: a zip file or, in older files, PyTorch's own magic number.
_TORCH_MAGIC = (b"PK\x03\x04", b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.")
#: Tables that published files have at the top level, and later files in the first layer.
_OF_FIRST_LAYER = ("centrality_embed_in.", "centrality_embed_out.", "input_dist_embed.")
#: Side of the decoder's grid, by the number of rows of the spatial table.
_SIDES = {9: 11, 11: 16}
#: s(max) of both GHN-2 and GHN-3.
_VIRTUAL_EDGES = 50


@dataclass(frozen=True)
class PublicCheckpoint:
    """Arguments of :class:`ghnq_quant.GHN` and its parameters, under the names it uses."""

    settings: dict[str, Any]
    state_dict: dict[str, Tensor]


def find_public_file(path_or_name: str | Path) -> Path:
    """The file at a path, else the file that the authors publish under this name, downloaded once.

    Raises:
        CheckpointError: there is no such file, or it cannot be downloaded.
    """
    path = Path(path_or_name)
    if path.is_file():
        return path
    if len(path.parts) != 1 or path.suffix != ".pt":
        raise CheckpointError(f"{path_or_name}: no such checkpoint file")
    return download_public_file(HUB_REPOSITORY, str(path_or_name))


def download_public_file(repository: str, filename: str, **settings: Any) -> Path:
    """A file of a Hugging Face Hub repository, from the local cache if it is there.

    Args:
        settings: arguments of ``huggingface_hub.hf_hub_download``, such as ``revision``.

    Raises:
        CheckpointError: there is no such file, or the Hub cannot be reached.
    """
    try:
        return Path(hf_hub_download(repository, filename, **settings))
    except Exception as error:  # from the network, the repository or the cache
        raise CheckpointError(
            f"{filename}: no such file here, and it cannot be downloaded from {repository} on the "
            f"Hugging Face Hub ({type(error).__name__}: {error}). Get it elsewhere and give its path"
        ) from error


def read_public(path: Path) -> PublicCheckpoint:
    """Read a public GHN-3 or GHN-2 file without running code that it may hold.

    Raises:
        CheckpointError: see :meth:`ghnq_quant.GHN.from_ghn3`.
    """
    content = _load(path)
    config: dict[str, Any] = {}
    if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        config, content = content.get("config") or {}, content["state_dict"]
    is_state = isinstance(content, dict) and content and isinstance(config, dict)
    if not is_state or not all(isinstance(w, Tensor) for w in content.values()):
        raise CheckpointError(f"{path}: holds no state dict of a hypernetwork")
    state = {_own_name(str(name)): w.float() for name, w in content.items()}
    try:
        settings = _infer_settings(state, config)
    except (LookupError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{path}: not the parameters of a GHN-3 or GHN-2 ({type(error).__name__}: {error})"
        ) from error
    return PublicCheckpoint(settings, state)


def _load(path: Path) -> Any:
    try:
        with path.open("rb") as file:
            is_torch = file.read(16).startswith(_TORCH_MAGIC)
        if is_torch:
            return torch.load(path, map_location="cpu", weights_only=True)
        return load_pickled_state(path)
    except Exception as error:  # which one depends on the damage
        raise CheckpointError(
            f"{path}: damaged, compressed, or holding more than the tensors of a state dict, which "
            f"could run code; it is not loaded ({type(error).__name__}: {error}). Download it again "
            "from its authors"
        ) from error


def _own_name(name: str) -> str:
    return f"gnn.0.{name}" if name.startswith(_OF_FIRST_LAYER) else name


def _infer_settings(state: dict[str, Tensor], config: dict[str, Any]) -> dict[str, Any]:
    """Infer them from the parameters' shapes, which show all but decoders of unequal widths."""
    hid = _first(state, lambda name: name.endswith("embed.weight")).shape[-1]
    num_classes = len(_first(state, lambda name: "class_layer_predictor" in name))
    width = math.isqrt(len(state["decoder.conv.2.weight"]))
    side = _SIDES[len(state["shape_enc.embed_spatial.weight"])]
    settings: dict[str, Any] = {
        "max_shape": [int(n) for n in config.get("max_shape", (width, width, side, side))],
        "num_classes": num_classes,
        "hid": hid,
        "virtual_edges": _VIRTUAL_EDGES,
    }
    if any("gnn.gru." in name for name in state):
        return {**settings, "encoder": "gated", "kernel_cut": "corner"}
    layers = sum("gnn." in name and name.endswith("ln1.weight") for name in state)
    if not layers:
        raise LookupError("it has neither a gated GNN nor a transformer")
    heads = len(state["gnn.0.attn.proj_e.2.weight"])
    return {**settings, "encoder": "graphormer", "heads": heads, "layers": layers}


def _first(state: dict[str, Tensor], wanted: Callable[[str], bool]) -> Tensor:
    found = next((w for name, w in state.items() if wanted(name)), None)
    if found is None:
        raise LookupError("a parameter that shows its sizes is missing")
    return found
