"""What a finetuning run keeps on disk: its whole state, its history and its best checkpoint.

The state is one safetensors file, replaced as a whole, so a killed run leaves the last one or the one
before; everything random in a run is a function of its seed and step, so the state holds no generator.
"""

from __future__ import annotations

import csv
import json
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ghnq_quant.errors import CheckpointError
from ghnq_quant.files import replacing
from ghnq_quant.ghn import GHN

HISTORY_COLUMNS = ("step", "seconds", "loss", "top1", "lr", "grad_norm", "failed", "val_top1")


@dataclass
class Counters:
    """Where a run is.

    Attributes:
        step: steps done.
        seconds: time spent, over all sessions.
        failed_networks, skipped_steps: what was left out for want of memory or for values not finite.
        skipped_in_a_row: of the steps just before.
        best_top1, best_step: of the best validation so far.
    """

    step: int = 0
    seconds: float = 0.0
    failed_networks: int = 0
    skipped_steps: int = 0
    skipped_in_a_row: int = 0
    best_top1: float = -1.0
    best_step: int = -1


class RunFolder:
    """The files of one run: ``state.safetensors``, ``history.csv``, ``best/`` and ``last/``."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    @property
    def state_file(self) -> Path:
        return self.path / "state.safetensors"

    @property
    def history_file(self) -> Path:
        return self.path / "history.csv"

    def save_state(
        self,
        ghn: GHN,
        optimizer: torch.optim.Optimizer,
        counters: Counters,
        settings: dict[str, Any],
    ) -> None:
        """Replace the state file."""
        tensors = {f"ghn.{k}": v.detach().cpu().contiguous() for k, v in ghn.state_dict().items()}
        for index, moments in optimizer.state_dict()["state"].items():
            for name, value in moments.items():
                tensors[f"optimizer.{index}.{name}"] = torch.as_tensor(value).cpu().contiguous()
        metadata = {"counters": json.dumps(asdict(counters)), "settings": json.dumps(settings)}
        with replacing(self.state_file) as temporary:
            save_file(tensors, temporary, metadata)

    def load_state(
        self, ghn: GHN, optimizer: torch.optim.Optimizer, settings: dict[str, Any]
    ) -> Counters:
        """Put the saved state into ``ghn`` and ``optimizer``.

        Raises:
            CheckpointError: there is none, it is damaged, or it is of a run with other settings.
        """
        tensors, metadata = self._read_state()
        saved = json.loads(metadata["settings"])
        different = [k for k in settings if saved.get(k) != settings[k]]
        if different:
            raise CheckpointError(
                f"{self.state_file} is of a run with other settings: "
                + ", ".join(f"{k}={saved.get(k)!r} (now {settings[k]!r})" for k in different)
                + ". Resume it with the same, or start a new run in another folder"
            )
        ghn.load_state_dict({k[4:]: v for k, v in tensors.items() if k.startswith("ghn.")})
        state: dict[int, dict[str, Tensor]] = {}
        for key, value in tensors.items():
            kind, _, rest = key.partition(".")
            if kind == "optimizer":
                index, _, name = rest.partition(".")
                state.setdefault(int(index), {})[name] = value
        groups = optimizer.state_dict()["param_groups"]
        optimizer.load_state_dict({"state": state, "param_groups": groups})
        counters = Counters(**json.loads(metadata["counters"]))
        self._truncate_history(counters.step)
        return counters

    def _read_state(self) -> tuple[dict[str, Tensor], dict[str, str]]:
        if not self.state_file.is_file():
            raise CheckpointError(f"{self.path} holds no run to resume: no {self.state_file.name}")
        try:
            with safe_open(self.state_file, framework="pt") as file:
                return {k: file.get_tensor(k) for k in file.keys()}, file.metadata()  # noqa: SIM118
        except SafetensorError as error:
            raise CheckpointError(f"{self.state_file} is damaged: {error}") from error

    def append_history(self, row: dict[str, float | int | None]) -> None:
        """Add one line to ``history.csv``."""
        self.path.mkdir(parents=True, exist_ok=True)
        is_new = not self.history_file.exists()
        with self.history_file.open("a", newline="") as file:
            writer = csv.DictWriter(file, HISTORY_COLUMNS)
            if is_new:
                writer.writeheader()
            writer.writerow({k: _rounded(v) for k, v in row.items()})

    def read_history(self) -> list[dict[str, str]]:
        """The lines of ``history.csv``, as texts."""
        if not self.history_file.exists():
            return []
        with self.history_file.open(newline="") as file:
            return list(csv.DictReader(file))

    def _truncate_history(self, step: int) -> None:
        """Drop what a killed run wrote after its last saved state."""
        rows = [r for r in self.read_history() if r["step"].isdigit() and int(r["step"]) <= step]
        with replacing(self.history_file) as temporary, temporary.open("w", newline="") as file:
            writer = csv.DictWriter(file, HISTORY_COLUMNS, extrasaction="ignore")
            writer.writeheader()
            writer.writerows(rows)

    def save_checkpoint(self, ghn: GHN, name: str) -> Path:
        """Save ``ghn`` as a checkpoint folder of that name, each file replaced as a whole."""
        target = self.path / name
        target.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=self.path) as temporary:
            ghn.save_pretrained(temporary)
            for file in Path(temporary).iterdir():
                file.chmod(0o644)
                file.replace(target / file.name)
        return target


def _rounded(value: float | int | None) -> float | int | None:
    return float(f"{value:.6g}") if isinstance(value, float) else value
