"""What was measured of one network, and where a run keeps it as it goes."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ghnq_quant.errors import GhnqError
from ghnq_quant.files import replacing


@dataclass(frozen=True)
class PrecisionResult:
    """One network at one precision.

    Attributes:
        top1, top5: accuracy in %.
        nonfinite_images: images with a logit that is not finite; they count as wrong.
        weight_mse, weight_snr_db: error of all quantized weights against the float ones, both
            folded with the float network's statistics of the first batch; None for float.
        output_mse, output_snr_db: error of the logits of all images against the float network with
            the same parameters; None for float, or where a logit is not finite.
    """

    top1: float
    top5: float
    nonfinite_images: int
    weight_mse: float | None = None
    weight_snr_db: float | None = None
    output_mse: float | None = None
    output_snr_db: float | None = None


@dataclass(frozen=True)
class LayerResult:
    """The weight of one conv or linear layer from several sources.

    Attributes:
        name: the layer's name in the network.
        shape: of the weight.
        depthwise: whether each output channel sees one input channel alone.
        sources: by ``predicted``, ``initial`` (PyTorch's own initialization) and, where given,
            ``trained``: the fields of :class:`~ghnq_quant.evaluation.distributions.Distribution`
            and ``folded_mismatch``, the mismatch after batch norm was folded into the weight.
    """

    name: str
    shape: tuple[int, ...]
    depthwise: bool
    sources: dict[str, dict[str, float | None]]


@dataclass(frozen=True)
class NetworkResult:
    """One network.

    Attributes:
        group: its split, or the model's name.
        index: its number in the split.
        parameters: how many values are in its parameters.
        images: how many images it was measured on.
        seconds: how long that took.
        precisions: by name.
        layers: in the order of execution.
    """

    group: str
    index: int
    parameters: int
    images: int
    seconds: float
    precisions: dict[str, PrecisionResult]
    layers: tuple[LayerResult, ...]

    def change(self, precision: str) -> float:
        """Top-1 accuracy at a precision minus that of float, in percentage points."""
        return self.precisions[precision].top1 - self.precisions["float"].top1

    def to_json(self) -> dict[str, Any]:
        """As plain lists, numbers and texts."""
        return asdict(self)

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> NetworkResult:
        """The inverse of :meth:`to_json`."""
        precisions = {k: PrecisionResult(**v) for k, v in content["precisions"].items()}
        layers = tuple(
            LayerResult(**{**layer, "shape": tuple(layer["shape"])}) for layer in content["layers"]
        )
        return cls(**{**content, "precisions": precisions, "layers": layers})


class Journal:
    """``networks.jsonl``: the run's settings, then a line for each network as it is finished.

    Every line is on the disk before the next network begins, so a killed run loses none; half a
    line at the end is dropped when the run goes on.

    Args:
        path: of the file.
        header: what must be the same for the run to go on.
    """

    def __init__(self, path: str | Path, header: Mapping[str, Any]) -> None:
        self.path = Path(path)
        self.header: dict[str, Any] = json.loads(json.dumps(header))

    def resume(self) -> dict[tuple[str, int], NetworkResult]:
        """Begin the file or go on with it; what is finished, by group and index.

        Raises:
            GhnqError: the file is of a run with another header, or no such file.
        """
        lines = _whole_lines(self.path)
        if len(lines) < 2:  # without any network, there is nothing that other settings would spoil
            with replacing(self.path) as temporary:
                temporary.write_bytes(_line(self.header))
            return {}
        header, finished = _parse(lines, self.path)
        self._check(header)
        with self.path.open("r+b") as file:
            file.truncate(sum(map(len, lines)))
        return finished

    def _check(self, header: Mapping[str, Any]) -> None:
        found, now = _flat(header), _flat(self.header)
        keys = [k for k in {**now, **found} if found.get(k) != now.get(k)]
        if keys:
            raise GhnqError(
                f"{self.path} is of an evaluation with other settings: "
                + ", ".join(f"{k}={found.get(k)!r} (now {now.get(k)!r})" for k in keys)
                + ". Give the same to go on with it, or another folder for a new one"
            )

    def append(self, result: NetworkResult) -> None:
        """Add one network, after :meth:`resume`."""
        with self.path.open("ab") as file:
            file.write(_line(result.to_json()))
            file.flush()
            os.fsync(file.fileno())


def read_networks(path: str | Path) -> dict[tuple[str, int], NetworkResult]:
    """What a :class:`Journal` holds, by group and index; nothing where there is no such file.

    Raises:
        GhnqError: the file is damaged.
    """
    lines = _whole_lines(Path(path))
    return _parse(lines, Path(path))[1] if lines else {}


def _whole_lines(path: Path) -> list[bytes]:
    if not path.is_file():
        return []
    return [line for line in path.read_bytes().splitlines(keepends=True) if line.endswith(b"\n")]


def _parse(
    lines: list[bytes], path: Path
) -> tuple[dict[str, Any], dict[tuple[str, int], NetworkResult]]:
    try:
        header, *others = [json.loads(line) for line in lines]
        results = [NetworkResult.from_json(line) for line in others]
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise GhnqError(
            f"{path} is damaged ({type(error).__name__}: {error}): delete it to start anew"
        ) from error
    return header, {(r.group, r.index): r for r in results}


def _flat(content: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings under dotted names."""
    result: dict[str, Any] = {}
    for key, value in content.items():
        if isinstance(value, Mapping):
            result.update(_flat(value, f"{prefix}{key}."))
        else:
            result[prefix + key] = value
    return result


def _line(content: object) -> bytes:
    # ASCII with a single newline at its end: a line is whole if and only if it has that
    return json.dumps(content, allow_nan=False).encode("ascii") + b"\n"
