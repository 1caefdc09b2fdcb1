"""The quickstart: a tiny run from end to end, and how its numbers are combined and shown."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

from ghnq_quant import DataError, GhnqError
from ghnq_quant.research.data import evaluation_batches, load_images
from ghnq_quant.research.starts.quickstart import load_quickstart_model, run_quickstart
from ghnq_quant.research.starts.quickstart_results import QuickstartResult, QuickstartSettings
from ghnq_quant.research.starts.small_mobilenet import SmallMobileNet


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> QuickstartSettings:
    """Ten classes of 16 × 16 pixels, which differ in where they are bright."""
    rng = np.random.default_rng(0)
    content = {}
    for part, count in (("train", 90), ("test", 30)):
        label = np.arange(count) % 10
        image = rng.integers(0, 128, (count, 16, 16, 3))
        image[np.arange(count), label] += 127
        content |= {f"x_{part}": image.astype(np.uint8), f"y_{part}": label}
    path = tmp_path_factory.mktemp("data") / "tiny.npz"
    np.savez(path, **content)
    return QuickstartSettings(str(path), bits=(4, 8), epochs=1, seeds=2, max_train=70)


@pytest.fixture(scope="module")
def run(
    tiny: QuickstartSettings, tmp_path_factory: pytest.TempPathFactory
) -> tuple[QuickstartResult, Path]:
    folder = tmp_path_factory.mktemp("quickstart")
    return run_quickstart(tiny, folder), folder


def result(runs: dict[str, list[list[float]]]) -> QuickstartResult:
    settings = QuickstartSettings(seeds=len(runs["GHN-Q"]))
    return QuickstartResult(settings, "the set", 1437, 360, runs, 61.4)


def test_model_is_an_ordinary_small_cnn():
    model = SmallMobileNet(num_classes=7)
    assert model(torch.zeros(2, 3, 32, 32)).shape == (2, 7)
    assert sum(p.numel() for p in SmallMobileNet().parameters()) == 48_266


def test_run_measures_every_seed_before_training_and_after_each_epoch(run):
    measured, _ = run
    assert measured.data == "tiny"
    assert (measured.train_images, measured.test_images) == (70, 30)
    assert {name: np.shape(runs) for name, runs in measured.accuracy.items()} == {
        "GHN-Q": (2, 2),
        "PyTorch": (2, 2),
    }
    counts = np.array(list(measured.accuracy.values())) * 30 / 100
    np.testing.assert_allclose(counts, counts.round())


def test_run_is_repeatable(run, tiny, tmp_path):
    first_seed = {name: runs[:1] for name, runs in run[0].accuracy.items()}
    torch.manual_seed(5)
    settings = QuickstartSettings(tiny.data, bits=(4, 8), epochs=1, seeds=1, max_train=70)
    assert run_quickstart(settings, tmp_path).accuracy == first_seed


def test_saved_files_hold_what_was_measured(run):
    measured, folder = run
    assert sorted(path.name for path in folder.iterdir()) == [
        "curves.png",
        "model.json",
        "model.safetensors",
        "results.json",
    ]
    saved = json.loads((folder / "results.json").read_text())
    assert saved == measured.to_json()
    assert saved["precision"] == "W4/A8"
    assert saved["command"].endswith(
        "--bits 4/8 --stem-bits 8 --backend brevitas --epochs 1 --seeds 2 --max-train 70"
    )
    with Image.open(folder / "curves.png") as image:
        assert image.size == (1050, 660)
        assert image.convert("L").getextrema() == (0, 255)


def test_saved_model_is_the_one_that_was_measured(run, tiny):
    measured, folder = run
    model = load_quickstart_model(folder)
    test = load_images(tiny.data).test
    right = sum(int((model(x).argmax(1) == y).sum()) for x, y in evaluation_batches(test))
    assert 100 * right / 30 == measured.accuracy["GHN-Q"][0][-1]
    recipe = json.loads((folder / "model.json").read_text())
    assert recipe["test_accuracy"] == 100 * right / 30


def test_damaged_model_folder_is_refused(run, tmp_path):
    with pytest.raises(GhnqError, match=r"model\.json"):
        load_quickstart_model(tmp_path)
    for name in ("model.json", "model.safetensors"):
        (tmp_path / name).write_bytes((run[1] / name).read_bytes()[:-100])
        with pytest.raises(GhnqError, match=str(tmp_path)):
            load_quickstart_model(tmp_path)
        (tmp_path / name).write_bytes((run[1] / name).read_bytes())
    assert not load_quickstart_model(tmp_path).training


def test_bad_images_stop_the_run_before_anything_is_written(tmp_path):
    (tmp_path / "data").mkdir()
    with pytest.raises(DataError, match="is no image folder"):
        run_quickstart(QuickstartSettings(str(tmp_path / "data")), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_table_has_one_line_an_epoch():
    measured = result({"GHN-Q": [[10, 90], [20, 91]], "PyTorch": [[11, 88], [11, 89]]})
    console = Console(width=100)
    with console.capture() as shown:
        console.print(measured.table())
    text = shown.get()
    lines = [line.strip("│ ").split("│") for line in text.splitlines() if line.startswith("│")]
    assert [[cell.strip() for cell in line] for line in lines] == [
        ["0", "15.0 ± 5.0", "11.0 ± 0.0"],
        ["1", "90.5 ± 0.5", "88.5 ± 0.5"],
    ]
    assert "the set: top-1 test accuracy in %, W4/A4 (brevitas)" in text
    assert "first layer's weight at 8 bits" in text
    assert "mean ± standard error, n = 2; 61 s" in text
    assert "1,437 training and 360 test images" in text
