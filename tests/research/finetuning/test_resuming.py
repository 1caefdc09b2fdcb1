"""Runs of several processes, and runs that are killed, stopped and gone on with."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from finetuning_setting import SETTINGS, finetune_command, history
from safetensors.torch import load_file

from ghnq_quant import GHN, CheckpointError, GhnqError
from ghnq_quant.research.data import ImageSet, load_images
from ghnq_quant.research.finetuning import (
    FinetuneSettings,
    TrainingState,
    finetune,
    starting_point,
)
from ghnq_quant.research.finetuning.settings import ALL_ARCHITECTURES


def run_script(folder: Path, settings: FinetuneSettings, resume: bool = False) -> str:
    return (
        "import sys, torch; torch.set_num_threads(1)\n"
        "from ghnq_quant import GHN\n"
        "from ghnq_quant.research.data import load_images\n"
        "from ghnq_quant.research.finetuning import finetune\n"
        "from ghnq_quant.research.finetuning.settings import FinetuneSettings\n"
        f"settings = {settings!r}\n"
        "ghn = GHN.from_pretrained('ghnq-cifar10-qat')\n"
        f"finetune(ghn, load_images('digits'), settings, {str(folder)!r}, resume={resume},"
        " show_progress=False)\n"
    )


def test_a_killed_run_that_is_resumed_gives_what_an_uninterrupted_one_gives(
    digits: ImageSet, tmp_path: Path
) -> None:
    settings = replace(
        SETTINGS, bits=((32, 32), (4, 4)), precision_embedding=True, new_batch_norms=True, steps=7
    )
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    process = subprocess.Popen([sys.executable, "-W", "ignore", "-c", run_script(killed, settings)])
    rows_file = killed / "history.csv"
    deadline = time.monotonic() + 120
    while not (rows_file.exists() and len(rows_file.read_text().splitlines()) > 3):
        assert process.poll() is None, "the run ended before it was killed"
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()

    # processes of their own: kernels may be chosen by what ran in a process before
    for script in (run_script(killed, settings, resume=True), run_script(whole, settings)):
        subprocess.run([sys.executable, "-W", "ignore", "-c", script], check=True, timeout=240)

    a, b = (load_file(f / "state.safetensors") for f in (killed, whole))
    assert a.keys() == b.keys()
    assert any(k.startswith("average.") for k in a)
    assert all(torch.equal(a[k], b[k]) for k in a)
    assert history(killed) == history(whole)
    for name in ("best", "last"):
        files = [load_file(f / name / "model.safetensors") for f in (killed, whole)]
        assert all(torch.equal(files[0][k], files[1][k]) for k in files[0])
    ghn = GHN.from_pretrained("ghnq-cifar10-qat")
    with pytest.raises(CheckpointError, match=r"lr=0\.002"):
        finetune(ghn, digits, replace(settings, lr=1e-3), killed, resume=True, show_progress=False)
    with pytest.raises(GhnqError, match="already holds a run"):
        finetune(ghn, digits, settings, killed, show_progress=False)


def test_two_processes_get_the_gradient_of_one_with_twice_the_meta_batch(tmp_path: Path) -> None:
    one = replace(
        SETTINGS, steps=1, meta_batch_size=4, architectures=ALL_ARCHITECTURES, clip=1e9, average=0.0
    )
    two = replace(one, meta_batch_size=2)
    script = tmp_path / "run.py"
    script.write_text(run_script(tmp_path / "two", two))
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    subprocess.run([*launcher, str(script)], check=True, capture_output=True, timeout=240)
    finetune(
        GHN.from_pretrained("ghnq-cifar10-qat"),
        load_images("digits"),
        one,
        tmp_path / "one",
        show_progress=False,
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
    options = ("--from", "scratch", "--processes", "2")
    process = subprocess.Popen(
        finetune_command(Path("digits"), folder, "--minutes", "60", *options),
        stdout=subprocess.DEVNULL,
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

    # another run goes on from it, with its optimizer and its average
    other = tmp_path / "other"
    command = finetune_command(Path("digits"), other, "--steps", "3", "--from", str(folder))
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, timeout=120)
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
