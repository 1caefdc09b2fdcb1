"""Graphs on disk: one small compressed JSON file a network."""

from __future__ import annotations

import gzip
import json
import os
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from ghnq_quant.capture import ArchGraph, Node
from ghnq_quant.errors import DataError
from ghnq_quant.research.networks.architecture import Architecture


class GraphCache:
    """Keeps descriptions and graphs in ``folder``, apart for each schema number.

    A file is written under a temporary name and renamed, so that several processes may share the
    folder; one that is damaged counts as absent (gzip's checksum tells).
    """

    def __init__(self, folder: str | os.PathLike[str], schema: int) -> None:
        self._folder = Path(folder) / f"convnets-250k-{schema}"

    def load(self, split: str, index: int) -> tuple[Architecture, ArchGraph] | None:
        """What was saved, or None where nothing is or it can't be read."""
        try:
            content = json.loads(gzip.decompress(self._path(split, index).read_bytes()))
            if (content["split"], content["index"]) != (split, index):
                return None
            return Architecture.from_json(content["architecture"]), _decode(content["graph"])
        except (OSError, EOFError, zlib.error, ValueError, KeyError, TypeError, DataError):
            return None

    def save(self, split: str, index: int, architecture: Architecture, graph: ArchGraph) -> None:
        """Save an item; files of one item are always alike, so that the last writer may win."""
        content = {
            "split": split,
            "index": index,
            "architecture": architecture.to_json(),
            "graph": _encode(graph),
        }
        path = self._path(split, index)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(f".{os.getpid()}.tmp")
        temporary.write_bytes(gzip.compress(json.dumps(content).encode(), 6, mtime=0))
        temporary.replace(path)

    def _path(self, split: str, index: int) -> Path:
        # folders of a thousand files
        return self._folder / split / f"{index // 1000:03}" / f"{index:06}.json.gz"


def _encode(graph: ArchGraph) -> dict[str, Any]:
    return {
        "nodes": [(n.primitive, n.shape, n.parameters) for n in graph.nodes],
        "edges": graph.edges.tolist(),
        "classifier": (graph.classifier_weight, graph.classifier_bias),
    }


def _decode(content: dict[str, Any]) -> ArchGraph:
    nodes = tuple(
        Node(primitive, None if shape is None else tuple(shape), tuple(parameters))
        for primitive, shape, parameters in content["nodes"]
    )
    edges = np.array(content["edges"], dtype=np.int64).reshape(-1, 2)
    return ArchGraph(nodes, edges, *content["classifier"])
