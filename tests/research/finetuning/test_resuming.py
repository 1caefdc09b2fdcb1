"""Runs in several processes, and runs that are killed or stopped, then resumed."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from finetuning_setting import SETTINGS
from safetensors.torch import load_file

from ghnq_quant import GHN, CheckpointError
from ghnq_quant.research.data import ImageSet
from ghnq_quant.research.finetuning import TrainingState, finetune, starting_point
from ghnq_quant.research.finetuning.launch import train_from_names
from ghnq_quant.research.finetuning.settings import ALL_ARCHITECTURES


def test_two_processes_get_the_gradient_of_one_with_twice_the_meta_batch(tmp_path: Path) -> None:
    one = replace(
        SETTINGS,
        steps=1,
        bits=((32, 32), (8, 32)),
        bits_per="network",
        precision_embedding=True,
        meta_batch_size=4,
        architectures=ALL_ARCHITECTURES,
        clip=1e9,
        average=0.0,
    )
    two = replace(one, meta_batch_size=2)
    for folder, settings, processes in (("one", one, 1), ("two", two, 2)):
        train_from_names(
            "ghn2-cifar10-bootstrap", "digits", settings, tmp_path / folder, processes=processes
        )
    a, b = (load_file(tmp_path / f / "state.safetensors") for f in ("one", "two"))
    moments = [k for k in a if k.endswith(".exp_avg")]  # a tenth of the gradient after one step
    assert moments
    for key in moments:
        # message passing sums in float32 in training, in another order for other meta-batches, and
        # batch norms over 8 images make more of what is rounded
        assert (a[key] - b[key]).norm() <= 1e-3 * a[key].norm() + 1e-12, key


def test_processes_that_are_asked_to_stop_save_a_state_to_go_on_from(
    digits: ImageSet, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    options = (
        "--data digits --from scratch --processes 2 --minutes 60 --schedule constant --max-macs 2M "
        "--meta-batch-size 1 --image-batch-size 10 --architectures 20 --image-size 32 "
        "--validate-every 1000 --val-networks 1 --val-images 32"
    )
    command = [sys.executable, "-W", "ignore", "-m", "ghnq_quant.cli", "finetune"]
    process = subprocess.Popen(
        [*command, *options.split(), "-o", str(folder)], stdout=subprocess.DEVNULL
    )
    rows_file = folder / "history.csv"
    deadline = time.monotonic() + 120
    while not (rows_file.exists() and len(rows_file.read_text().splitlines()) > 1):
        assert process.poll() is None, "the run ended before it was stopped"
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 0
    state = starting_point(str(folder), 10)
    assert state.step > 0
    assert state.step % 10 == 0
    assert state.step == int(rows_file.read_text().splitlines()[-1].split(",")[0])

    # another run continues from it, with its optimizer and average
    other = tmp_path / "other"
    finetune(state, digits, replace(SETTINGS, steps=3), other, show_progress=False)
    gone_on = starting_point(str(other), 10)
    assert gone_on.step == state.step + 3
    assert gone_on.moments[0]["step"] == state.step + 3
    rows = (other / "history.csv").read_text().splitlines()
    assert rows[1].startswith(f"{state.step},")  # validated before the first step
    (named,) = (p for n, p in gone_on.average.items() if n == "embed.weight")
    moved = (named - state.average["embed.weight"]).norm()
    assert 0 < moved < (gone_on.ghn.embed.weight - state.average["embed.weight"]).norm()


def test_a_state_of_torch_save_is_gone_on_with(tmp_path: Path) -> None:
    torch.manual_seed(0)
    ghn = GHN()
    optimizer = torch.optim.AdamW(ghn.parameters())
    sum(p.sum() for p in ghn.parameters()).backward()
    optimizer.step()
    average = [p.detach() + 1 for p in ghn.parameters()]
    content = {"ghn": ghn.state_dict(), "opt": optimizer.state_dict(), "ema": average}
    torch.save({**content, "step": 7, "spent": 1.5}, tmp_path / "state.pt")
    state = starting_point(str(tmp_path), num_classes=10)
    assert isinstance(state, TrainingState)
    assert (state.step, state.seconds) == (7, 1.5)
    for (name, p), moved in zip(state.ghn.named_parameters(), average, strict=True):
        assert torch.equal(state.average[name], moved)
        assert torch.equal(p + 1, moved)
    assert len(state.moments) == len(average)
    (tmp_path / "state.pt").write_bytes(b"half a file")
    with pytest.raises(CheckpointError, match=r"state\.pt"):
        starting_point(str(tmp_path), num_classes=10)


def test_nothing_to_resume(digits: ImageSet, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no run to resume"):
        finetune(GHN.from_pretrained("ghnq-cifar10-qat"), digits, SETTINGS, tmp_path, resume=True)
    (tmp_path / "state.safetensors").write_bytes(b"half a file")
    with pytest.raises(CheckpointError, match="damaged"):
        finetune(GHN.from_pretrained("ghnq-cifar10-qat"), digits, SETTINGS, tmp_path, resume=True)
