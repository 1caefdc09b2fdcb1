"""The files of a training run: its complete state, its history and its best checkpoint.

The state is one safetensors file, replaced as a whole, so a killed run leaves either the last one or
the one before. Everything random in a run depends on its seed and step, so no generator is saved.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from ghnq_quant.errors import CheckpointError, GhnqError
from ghnq_quant.files import replacing, replacing_files
from ghnq_quant.ghn import GHN
from ghnq_quant.research.finetuning.settings import ADDED_SETTINGS
from ghnq_quant.research.finetuning.state import STATE_FILE, TrainingState, read_run_state
from ghnq_quant.research.runs.history import HISTORY_FILE, truncate_history
from ghnq_quant.research.runs.identity import check_same_run
from ghnq_quant.research.runs.lock import LOCK_FILE


@dataclass
class Counters:
    """The position of a run.

    Attributes:
        step: number of completed steps.
        seconds: time spent, over all sessions.
        first_step, first_second: where the run started, if it continues another one.
        failed_networks, skipped_steps: what was left out for lack of memory or values not finite.
        skipped_in_a_row: how many of the last steps were skipped.
        best_top1, best_step: accuracy and step of the best validation so far.
    """

    step: int = 0
    seconds: float = 0.0
    first_step: int = 0
    first_second: float = 0.0
    failed_networks: int = 0
    skipped_steps: int = 0
    skipped_in_a_row: int = 0
    best_top1: float = -1.0
    best_step: int = -1

    @property
    def has_begun(self) -> bool:
        """Whether the hypernetwork was validated as it was at the start."""
        return self.best_step >= 0


class RunFolder:
    """The files of one run: ``state.safetensors``, ``history.csv``, ``best/`` and ``last/``."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    @property
    def state_file(self) -> Path:
        return self.path / STATE_FILE

    @property
    def history_file(self) -> Path:
        return self.path / HISTORY_FILE

    def save_state(
        self, state: TrainingState, counters: Counters, settings: dict[str, Any]
    ) -> None:
        """Replace the state file."""
        metadata = {
            "counters": json.dumps(asdict(counters)),
            "settings": json.dumps(settings),
            "ghn": json.dumps(state.ghn.settings),
        }
        with replacing(self.state_file) as temporary:
            save_file(state.tensors(), temporary, metadata)

    def load_state(self, settings: dict[str, Any]) -> tuple[TrainingState, Counters]:
        """Load the saved state, and cut the history back to it.

        Raises:
            CheckpointError: it is damaged, or belongs to a run with other settings.
        """
        state, metadata = read_run_state(self.state_file)
        saved = {**ADDED_SETTINGS, **json.loads(metadata["settings"])}
        # settings that no longer exist or no longer matter are left out
        saved = {k: v for k, v in saved.items() if k in settings}
        check_same_run(saved, settings, self.state_file, CheckpointError)
        counters = Counters(**json.loads(metadata["counters"]))
        # before its first validation a run starts over, with the line of its first step
        truncate_history(self.history_file, counters.step - (not counters.has_begun))
        return state, counters

    def begin(self, resume: bool) -> bool:
        """Whether there is a state to continue from; without one, an old history is removed.

        A run that was killed before it saved any state starts over.

        Args:
            resume: whether to resume.

        Raises:
            CheckpointError: there is nothing to resume.
            GhnqError: there is a run, but ``resume`` is not set.
        """
        exists = self.state_file.exists()
        if exists and not resume:
            raise GhnqError(f"{self.path} already holds a run: resume it, or choose another folder")
        traces = self.history_file, self.path / LOCK_FILE
        if resume and not exists and not any(file.exists() for file in traces):
            raise CheckpointError(f"{self.path} holds no run to resume: no {self.state_file.name}")
        if not exists:
            self.history_file.unlink(missing_ok=True)
        return exists

    def save_checkpoint(self, ghn: GHN, name: str) -> Path:
        """Save ``ghn`` as a checkpoint folder of this name, each file replaced as a whole."""
        target = self.path / name
        with replacing_files(target) as temporary:
            ghn.save_pretrained(temporary)
            for file in temporary.iterdir():
                file.chmod(0o644)  # safetensors makes it readable only for the owner
        return target
