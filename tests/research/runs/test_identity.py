"""When two sessions belong to the same run, and how runs are kept apart."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ghnq_quant.errors import GhnqError, GhnqWarning
from ghnq_quant.research.runs.identity import digest_of_model
from ghnq_quant.research.runs.journal import Journal, read_journal
from ghnq_quant.research.runs.lock import locked


@dataclass(frozen=True)
class Line:
    key: str
    value: float

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, content: Any) -> Line:
        return cls(**content)


class Net(nn.Module):
    def __init__(self, width: int = 4, slope: float = 0.0, scale: float = 1.0) -> None:
        super().__init__()
        self.conv, self.slope = nn.Conv2d(3, width, 3), slope
        self.conv.weight.data.mul_(scale)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.leaky_relu(self.conv(x), self.slope).mean((2, 3))


def test_the_digest_of_a_model_is_of_its_layers_its_forward_and_its_first_values() -> None:
    digests = {
        digest_of_model(create)
        for create in (
            Net,
            lambda: Net(width=5),
            lambda: Net(slope=0.1),
            lambda: Net(scale=2.0),
        )
    }
    assert len(digests) == 4
    torch.manual_seed(7)
    state = torch.get_rng_state()
    assert digest_of_model(Net) in digests
    assert torch.equal(torch.get_rng_state(), state)
    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from test_identity import Net, digest_of_model; print(digest_of_model(Net))"
    )
    command = [sys.executable, "-W", "ignore", "-c", code, str(Path(__file__).parent)]
    other = subprocess.run(command, capture_output=True, text=True, check=True)
    assert other.stdout.strip() == digest_of_model(Net)


def test_a_journal_goes_on_with_the_same_facts_alone(tmp_path: Path) -> None:
    path = tmp_path / "run" / "lines.jsonl"
    facts = {"steps": 3, "identity": {"images": "abc", "models": {"net": "def"}}}
    journal = Journal(path, facts, Line)
    assert journal.resume() == {}
    journal.append(Line("a", 1.0))
    with path.open("ab") as file:
        file.write(b'{"key": "b", "val')  # killed in the middle of a line
    assert Journal(path, facts, Line).resume() == {"a": Line("a", 1.0)}
    assert path.read_bytes().endswith(b'{"key": "a", "value": 1.0}\n')
    other = {"steps": 3, "identity": {"images": "abc", "models": {"net": "xyz"}}}
    with pytest.raises(GhnqError, match=r"identity\.models\.net='def' \(now 'xyz'\)"):
        Journal(path, other, Line).resume()
    assert read_journal(path, Line) == {"a": Line("a", 1.0)}


@pytest.mark.parametrize("header", [None, {"steps": 3}])
def test_what_an_earlier_version_did_not_note_is_told(
    tmp_path: Path, header: dict[str, int] | None
) -> None:
    path, line = tmp_path / "lines.jsonl", Line("a", 1.0)
    content = [*([header] if header else []), line.to_json()]
    path.write_text("".join(json.dumps(part) + "\n" for part in content))
    before = path.read_bytes()
    facts: dict[str, Any] = {**(header or {}), "identity": {"images": "abc"}}
    with pytest.warns(GhnqWarning, match=r"of an earlier version.*\(images\)") as warned:
        assert Journal(path, facts, Line).resume() == {"a": line}
    assert warned[0].filename == __file__
    assert path.read_bytes() == before
    assert read_journal(path, Line) == {"a": line}
    if header:
        with pytest.raises(GhnqError, match=r"steps=3 \(now 4\)"), pytest.warns(GhnqWarning):
            Journal(path, {**facts, "steps": 4}, Line).resume()


def test_one_run_at_a_time_and_what_killed_ones_left_is_removed(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    (folder / "best").mkdir(parents=True)
    (folder / "best" / ".tmp-1").mkdir()
    (folder / "best" / ".tmp-1" / "config.json").write_text("half")
    (folder / ".tmp-1-state.safetensors").write_text("half")
    (folder / ".notes").write_text("mine")
    with locked(folder):
        names = {str(path.relative_to(folder)) for path in folder.rglob("*")}
        assert names == {"best", ".notes", ".lock"}
        with pytest.raises(GhnqError, match=f"another run is writing to {folder}"), locked(folder):
            pass
    assert not (folder / ".lock").exists()
    code = "from ghnq_quant.research.runs.lock import locked\n" + (
        f"with locked({str(folder)!r}):\n    print('in', flush=True)\n    input()"
    )
    holds = subprocess.Popen([sys.executable, "-c", code], stdin=-1, stdout=-1)
    assert holds.stdout is not None
    assert holds.stdout.readline() == b"in\n"
    with pytest.raises(GhnqError, match="another run"), locked(folder):
        pass
    holds.kill()
    holds.wait()
    assert (folder / ".lock").exists()
    with pytest.raises(ZeroDivisionError), locked(folder):
        _ = 1 / 0
    assert (folder / ".lock").exists()
    with locked(folder):
        pass
    assert not (folder / ".lock").exists()


def test_no_two_runs_are_in_a_folder_while_its_lock_file_comes_and_goes(tmp_path: Path) -> None:
    inside, overlaps = threading.Lock(), [0]

    def enter() -> None:
        entered = 0
        while entered < 100:
            with suppress(GhnqError), locked(tmp_path):
                overlaps[0] += not inside.acquire(blocking=False)
                entered += 1
                time.sleep(0)
                inside.release()

    threads = [threading.Thread(target=enter) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert overlaps == [0]
    assert not list(tmp_path.iterdir())
