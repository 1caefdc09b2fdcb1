"""Runs of ``evaluate``: files, resuming after a kill, processes, and refused input."""

from __future__ import annotations

import csv
import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
import torch
from rich.console import Console
from table1_setting import Net

from ghnq_quant import GHN, DataError, GhnqError
from ghnq_quant.files import save_state
from ghnq_quant.research.runs.journal import Journal
from ghnq_quant.research.table1 import Evaluation, NetworkResult, evaluate, networks
from ghnq_quant.research.table1.tables import mismatch_lines


def save_noise(path: Path, side: int) -> Path:
    """64 training and 150 test images of ten classes."""
    rng = np.random.default_rng(0)
    parts = {}
    for part, count in (("train", 64), ("test", 150)):
        parts[f"x_{part}"] = rng.integers(0, 256, (count, side, side, 3), dtype=np.uint8)
        parts[f"y_{part}"] = rng.permutation(count) % 10
    np.savez(path, **parts)
    return path


@pytest.fixture
def setting(monkeypatch, tmp_path, tiny_ghn):
    """Replace the networks of ConvNets-250K and the zoos by small ones."""

    def open_small(settings, place, images):
        torch.manual_seed(7)
        return Net(width=4 + 4 * place[1])

    monkeypatch.setattr(networks, "open_network", open_small)
    return {"data": save_noise(tmp_path / "noise.npz", 32), "ghn": tiny_ghn,
            "split": ["test", "bn_free"], "num_nets": 2, "precision": ["W8/A8", "W4/A4"],
            "num_images": 128}  # fmt: skip


def without_times(folder: Path) -> dict:
    content = json.loads((folder / "results.json").read_text())
    del content["seconds"]
    for network in content["networks"]:
        del network["seconds"]
    return content


def test_the_files_of_a_run_agree(setting, tmp_path):
    evaluation = evaluate(output=tmp_path, **setting)
    content = json.loads((tmp_path / "results.json").read_text())
    assert content["data"]["name"] == "noise"
    assert content["data"]["images_used"] == 128
    assert content["settings"]["precisions"] == ["float", "W8/A8", "W4/A4"]
    assert content["command"].startswith("ghnq evaluate --data ")
    assert {"python", "torch", "ghnq-quant"} <= set(content["versions"])
    assert [(n["group"], n["index"]) for n in content["networks"]] == [
        ("test", 0), ("test", 1), ("bn_free", 0), ("bn_free", 1)
    ]  # fmt: skip
    lines = list(csv.DictReader(io.StringIO((tmp_path / "table.csv").read_text())))
    page = (tmp_path / "table.md").read_text()
    for precision in ("float", "W8/A8", "W4/A4"):
        values = [
            n["precisions"][precision]["top1"] for n in content["networks"] if n["group"] == "test"
        ]
        (line,) = (
            x
            for x in lines
            if (x["split"], x["precision"], x["metric"]) == ("test", precision, "top1")
        )
        summary = content["summary"]["test"][precision]["top1"]
        assert float(line["mean"]) == summary["mean"] == pytest.approx(np.mean(values))
        error = scipy.stats.sem(values)
        assert float(line["standard_error"]) == pytest.approx(error)
        assert float(line["max"]) == summary["maximum"] == max(values)
        cell = f"{np.mean(values):.1f}±{error:.1f}; {max(values):.1f}"
        title = "Float32" if precision == "float" else precision
        row = next(r for r in page.splitlines() if r.startswith(f"| {title} |"))
        assert row.split("|")[2].strip() == cell
    assert Evaluation.load(tmp_path).networks == evaluation.networks
    rows = list(csv.DictReader(io.StringIO((tmp_path / "networks.csv").read_text())))
    assert [(r["split"], r["index"], r["precision"]) for r in rows] == [
        (n["group"], str(n["index"]), p) for n in content["networks"] for p in n["precisions"]
    ]
    for row, result in zip(
        rows, (r for n in content["networks"] for r in n["precisions"].values()), strict=True
    ):
        for name, value in result.items():
            assert (
                row[name] == "" if value is None else float(row[name]) == pytest.approx(value, 1e-4)
            )


def test_a_killed_run_goes_on_to_the_same_results(setting, tmp_path, monkeypatch):
    evaluate(output=tmp_path / "whole", **setting)
    journal = (tmp_path / "whole" / "networks.jsonl").read_bytes()
    # what a kill leaves: three finished networks, and half the line of the fourth
    (tmp_path / "killed").mkdir()
    half = journal[: -len(journal.splitlines()[-1]) // 2]
    (tmp_path / "killed" / "networks.jsonl").write_bytes(half)
    opened = []
    original = networks.open_network
    monkeypatch.setattr(networks, "open_network", lambda *a: (opened.append(a[1]), original(*a))[1])
    evaluate(output=tmp_path / "killed", **setting)
    assert opened == [("bn_free", 1)]
    assert without_times(tmp_path / "killed") == without_times(tmp_path / "whole")
    evaluate(output=tmp_path / "killed", **setting)
    assert opened == [("bn_free", 1)]


def test_a_run_that_fails_keeps_what_was_finished(setting, tmp_path, monkeypatch):
    original = networks.open_network

    def failing(settings, place, images):
        if place[0] == "bn_free":
            raise KeyboardInterrupt
        return original(settings, place, images)

    monkeypatch.setattr(networks, "open_network", failing)
    with pytest.raises(KeyboardInterrupt):
        evaluate(output=tmp_path, **setting)
    assert len((tmp_path / "networks.jsonl").read_bytes().splitlines()) == 1 + 2
    with pytest.raises(GhnqError, match=r"no finished evaluation .* goes on where it stopped"):
        Evaluation.load(tmp_path)


def test_other_settings_in_the_same_folder_are_refused(setting, tmp_path, embedded_ghn):
    small = {**setting, "num_nets": 1, "split": ["test"], "num_images": 64}
    evaluate(output=tmp_path, **small)
    for other, message in (
        ({"num_images": 65}, r"settings.num_images=64 \(now 65\)"),
        ({"precision": ["W8/A8"]}, "settings.precisions="),
        ({"ghn": embedded_ghn}, "ghn.sha256="),
    ):
        with pytest.raises(GhnqError, match=message):
            evaluate(output=tmp_path, **{**small, **other})
    with pytest.raises(GhnqError, match="is of a run with other settings"):
        Journal(tmp_path / "networks.jsonl", {}, NetworkResult).resume()
    Journal(tmp_path / "empty.jsonl", {"a": 1}, NetworkResult).resume()
    assert Journal(tmp_path / "empty.jsonl", {"a": 2}, NetworkResult).resume() == {}
    (tmp_path / "networks.jsonl").write_text("{}\nnot json\n")
    with pytest.raises(GhnqError, match="is damaged"):
        evaluate(output=tmp_path, **small)


def test_what_the_settings_do_not_name_counts_too(setting, tmp_path, monkeypatch):
    save_state(Net(width=4), tmp_path / "trained.pt")
    small = {**setting, "num_nets": None, "split": None, "model": "net", "num_images": 64,
             "trained": tmp_path / "trained.pt"}  # fmt: skip
    evaluate(output=tmp_path, **small)
    ghn = setting["ghn"]
    for changed in ({"virtual_edges": 5}, {"new_batch_norms": True}):
        with pytest.raises(GhnqError, match=r"identity\.ghn="):
            evaluate(output=tmp_path, **{**small, "ghn": ghn.derived(**changed)})
    save_state(Net(width=4), tmp_path / "trained.pt")  # with other values
    with pytest.raises(GhnqError, match=r"identity\.trained="):
        evaluate(output=tmp_path, **small)
    monkeypatch.setattr(networks, "open_network", lambda *_: Net(width=6))
    with pytest.raises(GhnqError, match=r"identity\.models\.net="):
        evaluate(output=tmp_path, **small)


def test_two_processes_give_the_numbers_of_one(tmp_path):
    settings = {"data": "digits", "split": ["test"], "precision": ["W4/A4"], "num_nets": 2,
                "num_images": 64}  # fmt: skip
    torch.set_num_threads(1)
    for name, count in (("one", 1), ("two", 2)):
        evaluate(output=tmp_path / name, workers=count, **settings)
    assert without_times(tmp_path / "one") == without_times(tmp_path / "two")


def test_a_named_model_with_a_trained_state(setting, tmp_path, monkeypatch):
    save_state(Net(width=4), tmp_path / "trained.safetensors")
    settings = {**setting, "split": None, "num_nets": None, "model": "net"}
    evaluation = evaluate(
        output=tmp_path / "run", trained=tmp_path / "trained.safetensors", **settings
    )
    assert [(n.group, n.index) for n in evaluation.networks] == [("net", 0)]
    assert "trained" in evaluation.networks[0].layers[0].sources
    assert "| Float32 | " in (tmp_path / "run" / "table.md").read_text()


def test_named_models_are_rows_with_the_mismatch_of_their_depthwise_layers(setting, tmp_path):
    models = {"split": None, "num_nets": None, "model": ["one", "two"]}
    evaluation = evaluate(output=tmp_path, **{**setting, **models})
    assert evaluation.groups == ("one", "two")
    page = (tmp_path / "table.md").read_text()
    top1 = evaluation.networks[1].precisions["float"].top1
    assert f"| two | {top1:.1f} | " in page
    assert "One network a row" in page
    layers = evaluation.networks[0].layers
    depthwise = [x.sources["predicted"]["mismatch"] for x in layers if x.depthwise]
    lines = mismatch_lines(evaluation)
    row = dict(zip(*lines[:2], strict=True))
    assert row["depthwise layers"] == f"{len(depthwise)} of {len(layers)}"
    assert row["depthwise, predicted"] == f"{np.median(depthwise):.2f}"


def test_live_progress_and_tables_on_a_terminal(setting, tmp_path):
    console = Console(file=io.StringIO(), width=120, force_terminal=True)
    evaluate(output=tmp_path, console=console, **setting)
    text = console.file.getvalue()
    assert re.search(r"\d networks/s|\d s a network", text)
    for part in ("4/4", "networks", "Top-1 accuracy", "BN-Free", "128 test images"):
        assert part in text


def test_images_that_the_hypernetwork_does_not_fit(setting, tmp_path):
    small = save_noise(tmp_path / "small.npz", 8)
    with pytest.raises(DataError, match="8×8 pixels; the networks of ConvNets-250K are made for"):
        evaluate(output=tmp_path, **{**setting, "data": small})
    other = GHN(max_shape=(16, 16, 7, 7), num_classes=7, hid=8)
    with pytest.raises(DataError, match=r"noise\.npz has 10 classes"):
        evaluate(output=tmp_path, **{**setting, "ghn": other})
    assert not (tmp_path / "networks.jsonl").exists()
