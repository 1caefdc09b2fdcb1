"""Bad calls of ``ghnq`` give one line and an exit code, no traceback, and leave nothing half-made."""

from __future__ import annotations

import os
import sys
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest
from small_networks import tiny_network

import ghnq_quant
from ghnq_quant import cli, zoos
from ghnq_quant.capture import adapters
from ghnq_quant.errors import GhnqError
from ghnq_quant.files import save_state
from ghnq_quant.zoos import create_model

Run = Any


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("a file, no folder")
    (tmp_path / "folder").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(zoos, "create_model", lambda _, num_classes: tiny_network(num_classes))


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


FINETUNE = ("finetune", "--data", "digits", "-o", "run", "--steps", "1")
COMPARE = ("compare-init", "resnet8", "--data", "digits", "-o", "out")
EVALUATE = ("evaluate", "--data", "digits", "-o", "out", "--split", "test", "--num-nets", "1")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        # outputs that cannot be written, found before any work
        (("init", "net", "-o", "file/model.pt"), "Not a directory: 'file'"),
        (("init", "net", "-o", "folder"), "must end in .safetensors or .pt"),
        (("export", "net", "--weights", "none.pt", "-o", "model.onxx"), "must end in .onnx"),
        (("export", "net", "--weights", "none.pt", "-o", "file/a.onnx"), "Not a directory"),
        (("report", "folder", "-o", "file/report.html"), "Not a directory: 'file'"),
        (("space", "show", "test", "0", "-o", "x.xyz"), "x.xyz must end in .png"),
        (("space", "show", "test", "0", "-o", "folder"), "folder must end in .png"),
        (("space", "stats", "--num", "1", "-o", "file"), "Not a directory: 'file'"),
        (("quickstart", "-o", "file"), "file"),
        ((*FINETUNE[:-4], "-o", "file", "--steps", "1"), "file"),
        ((*COMPARE[:-1], "file"), "file"),
        ((*EVALUATE, "-o", "file", "--num-images", "64"), "file"),
        (("coverage", "resnet18", "-o", "file"), "file"),
        # invalid words and numbers, and things that do not exist
        (("init", "net", "-o", "a.pt", "--bits", "four"), "precision 'four': write it as float, 4"),
        (("init", "net", "-o", "a.pt", "--bits", "1"), "1"),
        (("init", "net", "-o", "a.pt", "--bits", "9/4"), "9"),
        (("init", "net", "-o", "a.pt", "--ghn", "."), "config.json"),
        (("init", "net", "-o", "a.pt", "--backend", "brevity"), "brevity"),
        (
            ("quickstart", "--data", "nowhere", "-o", "out"),
            "no image set at nowhere: give 'digits'",
        ),
        ((*FINETUNE, "--epochs", "1"), "exactly one of steps, epochs and minutes"),
        ((*FINETUNE, "--bits", "five"), "precision 'five'"),
        ((*FINETUNE, "--from", "missing.pt"), "missing.pt: no such checkpoint file"),
        ((*FINETUNE, "--resume"), "holds no run to resume"),
        ((*FINETUNE[:-2], "--minutes", "nan"), "minutes=nan: give numbers that are finite"),
        ((*FINETUNE, "--lr", "inf"), "lr=inf: give numbers that are finite"),
        ((*FINETUNE, "--max-macs", "0M@0.5,10M"), "hardly any networks below 1M"),
        ((*FINETUNE, "--image-size", "0"), "give sizes from 1 pixel"),
        ((*COMPARE, "--lr", "nan"), "give finite numbers above 0"),
        ((*EVALUATE, "--device", "junk"), "--device junk: torch has none of that name"),
        ((*EVALUATE, "--device", "cuda:99"), "--device cuda:99: torch has none of that name"),
        ((*EVALUATE, "--precision", "W9/A9"), "9"),
        (("coverage", "resnet18", "--backend", "junk", "-o", "out"), "unknown backend 'junk'"),
        (("coverage", "resnet18", "--memory", "nan", "-o", "out"), "greater than or equal to 1"),
        (("coverage", "resnet18", "--memory", "inf", "-o", "out"), "infinity"),
    ],
)
def test_one_line_and_nothing_half_made(
    ghnq: Run, tmp_path: Path, arguments: tuple[str, ...], message: str
) -> None:
    before = files(tmp_path)
    code, _, err = ghnq(*arguments)
    assert code in (1, 2)
    assert message in " ".join(err.split())
    assert "Traceback" not in err
    assert files(tmp_path) == before


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no full disk to write to")
def test_a_full_disk_leaves_the_old_file(ghnq: Run, tmp_path: Path) -> None:
    """Every write beyond the first bytes fails because no space is left."""
    (tmp_path / "model.safetensors").write_text("old")
    before = files(tmp_path)

    def full(path: Path, *_: object) -> None:
        with open("/dev/full", "w") as device:
            device.write("x" * 2**20)

    patch = pytest.MonkeyPatch()
    patch.setattr("ghnq_quant.files.save_file", lambda _, path, *__: full(path))
    with patch.context():
        code, _, err = ghnq("init", "net", "-o", "model.safetensors", "--backend", "reference")
    patch.undo()
    assert (code, err) == (2, "error: [Errno 28] No space left on device\n")
    assert (tmp_path / "model.safetensors").read_text() == "old"
    assert files(tmp_path) == before


def test_the_traceback_is_there_for_who_asks(ghnq: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    class Flags:
        dev_mode = True

    monkeypatch.setattr(cli.sys, "flags", Flags)
    with pytest.raises(NotADirectoryError):
        ghnq("init", "net", "-o", "file/model.pt")


def test_too_small_images_are_one_line(ghnq: Run, tmp_path: Path) -> None:
    code, _, err = ghnq("init", "net", "--image-size", "2", "-o", "model.pt")
    assert code in (1, 2)
    assert "kernel size" in err.lower()
    assert "Traceback" not in err
    assert not (tmp_path / "model.pt").exists()


def test_a_data_set_may_have_any_name(ghnq: Run, tmp_path: Path) -> None:
    short = ("--epochs", "1", "--seeds", "1", "--max-train", "64")
    code, _, err = ghnq("quickstart", *short, "--data-name", "[/x]", "-o", "out")
    assert (code, err) == (0, "")
    assert (tmp_path / "out" / "results.json").is_file()


def test_an_exported_state_says_its_precision_or_is_told(ghnq: Run, tmp_path: Path) -> None:
    save_state(ghnq_quant.quantize(tiny_network(), 8), "plain.pt")
    code, _, err = ghnq("export", "net", "--weights", "plain.pt", "-o", "model.onnx")
    assert code == 1
    assert "plain.pt does not say its precision" in err
    assert "--bits" in err
    assert not (tmp_path / "model.onnx").exists()


def test_pt2e_has_an_example_of_the_size(ghnq: Run, tmp_path: Path) -> None:
    pytest.importorskip("torchao")
    options = ("--backend", "pt2e", "--image-size", "16")
    assert ghnq("init", "net", *options, "-o", "model.safetensors")[0] == 0
    code, _, err = ghnq("init", "net", "--backend", "pt2e", "-o", "other.safetensors")
    assert (code, "image_size" in err or "--image-size" in err) == (1, True)
    where = ("--weights", "model.safetensors", "-o", "model.onnx")
    code, _, err = ghnq("export", "net", "--image-size", "16", *where)
    assert (code, "toolkit's own conversion" in err) == (1, True)


def test_a_zoo_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    entries = (EntryPoint("torchvision", "torchvision:Adapter", "ghnq_quant.adapters"),)
    monkeypatch.setattr(adapters, "_entries", lambda: entries)
    monkeypatch.setitem(sys.modules, "torchvision", None)
    for name in ("resnet18", "torchvision:resnet18"):
        with pytest.raises(GhnqError, match=r"pip install 'ghnq-quant\[torchvision\]'"):
            create_model(name, 4)
