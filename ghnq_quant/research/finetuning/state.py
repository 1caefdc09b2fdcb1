"""Where a run starts: a hypernetwork and, if it continues another run, its optimizer and average."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ghnq_quant.errors import CheckpointError
from ghnq_quant.ghn import GHN
from ghnq_quant.ghn.checkpoints import check_shapes

#: New hypernetworks by the name of their start: GHN-2's encoder, and a small GHN-3.
SCRATCH: dict[str, dict[str, Any]] = {
    "scratch": {},
    "scratch-ghn3": {"encoder": "graphormer", "hid": 64, "layers": 3, "heads": 8},
}
#: A run's complete state.
STATE_FILE = "state.safetensors"
#: An older state, written by ``torch.save``: a dict of ``ghn``, ``opt``, ``ema``, ``step``, ``spent``.
_PICKLED_STATE_FILE = "state.pt"


@dataclass
class TrainingState:
    """The state that training continues from.

    Attributes:
        ghn: the hypernetwork, not averaged.
        moments: the optimizer's, by the parameter's position and their names.
        average: averaged parameters by name; empty for a new run.
        step: number of completed steps.
        seconds: time spent on them.
    """

    ghn: GHN
    moments: dict[int, dict[str, Tensor]] = field(default_factory=dict)
    average: dict[str, Tensor] = field(default_factory=dict)
    step: int = 0
    seconds: float = 0.0

    def tensors(self) -> dict[str, Tensor]:
        """All of its tensors, each under its own name."""
        tensors = {f"ghn.{k}": v for k, v in self.ghn.state_dict().items()}
        tensors |= {f"average.{k}": v for k, v in self.average.items()}
        for index, moments in self.moments.items():
            for name, value in moments.items():
                tensors[f"optimizer.{index}.{name}"] = torch.as_tensor(value)
        return {k: v.detach().cpu().contiguous() for k, v in tensors.items()}

    @classmethod
    def of(
        cls, ghn_settings: dict[str, Any], tensors: dict[str, Tensor], step: int, seconds: float
    ) -> TrainingState:
        """The inverse of :meth:`tensors`."""
        parts: dict[str, dict[str, Tensor]] = {"ghn": {}, "average": {}, "optimizer": {}}
        for key, value in tensors.items():
            part, _, name = key.partition(".")
            parts[part][name] = value
        check_shapes(GHN, ghn_settings, {k: v.shape for k, v in parts["ghn"].items()})
        ghn = GHN(**ghn_settings)
        ghn.load_state_dict(parts["ghn"])
        state = cls(ghn, average=parts["average"], step=step, seconds=seconds)
        for key, value in parts["optimizer"].items():
            index, _, name = key.partition(".")
            state.moments.setdefault(int(index), {})[name] = value
        return state


def read_run_state(path: Path) -> tuple[TrainingState, dict[str, str]]:
    """Read a run's state file and its metadata.

    Raises:
        CheckpointError: it is damaged.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata()
            tensors = {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118
        counters = json.loads(metadata["counters"])
        settings = json.loads(metadata["ghn"])
        state = TrainingState.of(settings, tensors, counters["step"], counters["seconds"])
    except (SafetensorError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"{path} is damaged: {error}") from error
    return state, metadata


def starting_point(start: str, num_classes: int, seed: int = 0) -> TrainingState:
    """Load what ``ghnq finetune --from`` names.

    Args:
        start: ``"scratch"``, or ``"scratch-ghn3"`` for a small GHN-3; the folder of a run, which
            continues with its optimizer and average; a checkpoint's folder or name; or a public
            GHN-2 or GHN-3 file (``*.pt``).
        num_classes: for a hypernetwork from scratch.
        seed: for a hypernetwork from scratch.

    Raises:
        CheckpointError: it does not exist or is damaged.

    Example:
        >>> starting_point("scratch", num_classes=10).step
        0
    """
    if start in SCRATCH:
        torch.manual_seed(seed)
        return TrainingState(GHN(num_classes=num_classes, **SCRATCH[start]))
    if start.endswith(".pt"):
        if not Path(start).is_file():
            raise CheckpointError(f"{start}: no such checkpoint file")
        ghn = GHN.from_ghn3(start)
        return TrainingState(ghn.derived(virtual_edges=10) if ghn.encoder == "gated" else ghn)
    if (Path(start) / STATE_FILE).is_file():
        return read_run_state(Path(start) / STATE_FILE)[0]
    if (Path(start) / _PICKLED_STATE_FILE).is_file():
        return _read_pickled_state(Path(start) / _PICKLED_STATE_FILE)
    return TrainingState(GHN.from_pretrained(start))


def _read_pickled_state(path: Path) -> TrainingState:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        ghn = GHN()
        ghn.load_state_dict(content["ghn"])
        names = [name for name, _ in ghn.named_parameters()]
        average = dict(zip(names, content["ema"], strict=True))
        moments = content["opt"]["state"]
        return TrainingState(ghn, moments, average, int(content["step"]), float(content["spent"]))
    except Exception as error:  # what torch.load raises depends on the damage
        raise CheckpointError(f"{path} holds no training state: {error}") from error
