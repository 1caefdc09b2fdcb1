"""``ghnq`` from the user's side: what it prints, what it writes, and how it fails."""

from __future__ import annotations

import math
import shlex
import sys
from collections.abc import Callable
from dataclasses import fields
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import nn

import ghnq_quant
from ghnq_quant import GhnqError, GhnqWarning, zoos
from ghnq_quant.quantization.layer_report import layer_report, signal_to_noise_db
from ghnq_quant.research.data import first_epoch, load_images
from ghnq_quant.research.starts import CompareSettings
from ghnq_quant.research.starts.quickstart_results import QuickstartSettings
from ghnq_quant.research.table1.settings import EvaluationSettings

TINY = """
from torch import nn

def cnn(num_classes=3):
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Conv2d(8, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(8, num_classes),
    )

def ten():
    return cnn(10)

number = 3
def not_a_model():
    return 3
"""


@pytest.fixture(autouse=True)
def folder_with_a_model(tmp_path, monkeypatch):
    """Run in an empty folder, with a wide terminal and without imports from earlier folders."""
    (tmp_path / "tinynets.py").write_text(TINY)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.delitem(sys.modules, "tinynets", raising=False)
    monkeypatch.setenv("COLUMNS", "150")


class Zoo:
    """An adapter with two models."""

    def create_model(self, name: str, num_classes: int) -> nn.Module | None:
        return nn.Linear(2, num_classes) if name in self.model_names() else None

    def model_names(self) -> list[str]:
        return ["mobilenet_a", "mobilenet_b"]


# init


def test_init_saves_the_quantized_model_and_prints_a_line_for_each_layer(ghnq, tmp_path):
    code, out, _ = ghnq("init", "tinynets:ten", "--bits", "4/8", "-o", "tiny.safetensors")
    assert code == 0
    import tinynets

    torch.manual_seed(0)
    expected = ghnq_quant.init_quantized(tinynets.ten(), (4, 8)).state_dict()
    with safe_open(tmp_path / "tiny.safetensors", "pt") as file:
        assert set(file.keys()) == set(expected)
        for name in file.keys():  # noqa: SIM118 (no mapping)
            assert torch.equal(file.get_tensor(name), expected[name]), name
        metadata = file.metadata()
    assert metadata["arch"] == "tinynets:ten"
    assert metadata["bits"] == "4/8"
    assert "stem_bits" not in metadata
    rows = [[c.strip() for c in line.split("│")[1:-1]] for line in out.splitlines() if "│" in line]
    assert [row[:3] for row in rows] == [
        ["0", "8×3×3×3", "216"],
        ["3", "8×8×3×3", "0"],
        ["7", "10×8", "0"],
    ]
    for row, key in zip(rows, ("0.weight", "3.weight", "7.weight"), strict=True):
        assert row[3:] == [f"{signal_to_noise_db(expected[key], bits):.1f}" for bits in (8, 4, 2)]
    assert "216 of 906 parameters predicted or fitted" in out


def test_init_notes_other_bits_of_the_first_layer(ghnq, tmp_path):
    arguments = ("tinynets:ten", "--bits", "3", "--stem-bits", "8", "-o", "tiny.safetensors")
    assert ghnq("init", *arguments)[0] == 0
    with safe_open(tmp_path / "tiny.safetensors", "pt") as file:
        assert file.metadata()["stem_bits"] == "8"


def test_init_takes_quantizers_as_words_and_notes_them(ghnq, tmp_path):
    words = ("--weights", "4-symmetric-channel", "--activations", "8-symmetric")
    assert ghnq("init", "tinynets:ten", *words, "-o", "tiny.safetensors")[0] == 0
    import tinynets

    torch.manual_seed(0)
    weights = ghnq_quant.Quantizer(4, symmetric=True, granularity="channel")
    activations = ghnq_quant.Quantizer(8, symmetric=True)
    expected = ghnq_quant.init_quantized(tinynets.ten(), (weights, activations)).state_dict()
    with safe_open(tmp_path / "tiny.safetensors", "pt") as file:
        assert set(file.keys()) == set(expected)
        assert file.metadata()["bits"] == "4-symmetric-channel/8-symmetric"
    code, _, error = ghnq("init", "tinynets:ten", "--activations", "8-channel", "-o", "b.pt")
    assert code == 1
    assert "activations=8-channel: activations are quantized per tensor" in " ".join(error.split())


def test_init_fits_the_classifier_to_images(ghnq, tmp_path):
    arguments = ("tinynets:cnn", "--data", "digits", "--seed", "3", "-o", "tiny.safetensors")
    assert ghnq("init", *arguments)[0] == 0
    import tinynets

    digits = load_images("digits").train
    torch.manual_seed(3)
    model = tinynets.cnn(10)
    expected = ghnq_quant.init_quantized(model, 4, first_epoch(digits, "digits", 3)).state_dict()
    with safe_open(tmp_path / "tiny.safetensors", "pt") as file:
        for name in file.keys():  # noqa: SIM118 (no mapping)
            assert torch.equal(file.get_tensor(name), expected[name]), name
        assert file.metadata()["num_classes"] == "10"


def test_init_writes_what_torch_load_reads_safely(ghnq, tmp_path):
    code, _, _ = ghnq("init", "tinynets:ten", "-o", "tiny.pt", "--backend", "reference")
    assert code == 0
    state = torch.load(tmp_path / "tiny.pt", weights_only=True)
    assert state["0.weight"].shape == (8, 3, 3, 3)


def test_create_model_asks_the_adapters_and_suggests_close_names(monkeypatch):
    monkeypatch.setattr(zoos, "load_adapters", lambda: {"zoo": Zoo()})
    assert zoos.create_model("mobilenet_b", 4).out_features == 4
    assert zoos.create_model("zoo:mobilenet_b", 4).out_features == 4
    with pytest.raises(GhnqError, match="no model named resnet18 in zoo"):
        zoos.create_model("zoo:resnet18", 4)
    with pytest.raises(GhnqError, match="no adapter named other, only zoo"):
        zoos.create_zoo_model("other:mobilenet_b", 4)
    with pytest.raises(GhnqError, match="mobilnet_b in zoo: did you mean mobilenet_b, mobilenet_a"):
        zoos.create_model("mobilnet_b", 4)
    with pytest.raises(GhnqError, match="give your own as module:callable"):
        zoos.create_model("xyz", 4)


def test_create_model_gives_the_number_of_classes_to_a_callable_that_takes_it():
    assert zoos.create_model("tinynets:cnn", 7)[-1].out_features == 7
    assert zoos.create_model("tinynets:ten", 7)[-1].out_features == 10


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("tinynets:eleven", "tinynets has no callable eleven"),
        ("tinynets:number", "tinynets has no callable number"),
        ("tinynets:not_a_model", "returned int, not a torch.nn.Module"),
        ("othernets:ten", "No module named 'othernets'"),
    ],
)
def test_a_callable_that_makes_no_model(name, message):
    with pytest.raises(GhnqError, match=message):
        zoos.create_model(name, 3)


# quickstart and the rest


def received(
    ghnq: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, settings: Any
) -> QuickstartSettings | CompareSettings | EvaluationSettings:
    """The settings of a run started with the command line for ``settings``."""
    run = {
        QuickstartSettings: "starts.quickstart.run_quickstart",
        CompareSettings: "starts.compare_init",
        EvaluationSettings: "table1.run.network_places",
    }[type(settings)]
    calls = []

    def stop(given: object, *_: object, **__: object) -> None:
        calls.append(given)
        raise GhnqError("that is enough")

    monkeypatch.setattr(f"ghnq_quant.research.{run}", stop)
    assert ghnq(*shlex.split(settings.command())[1:], "-o", "out")[2] == "error: that is enough\n"
    return calls[0]


@pytest.mark.parametrize(
    "written",
    [
        [
            QuickstartSettings(),
            QuickstartSettings("a folder", "true name", (4, 8), 6, "reference", 4, 1, 100),
        ],
        [
            CompareSettings(("resnet8",)),
            CompareSettings(
                ("resnet8", "vgg7"), ((4, 8), (32, 32)), 8, "reference", (10, 20), 2,
                ("ghnq", "pytorch"), (0.1, 1e-05), 30, "a folder", True, "true name", 5, 128, "mine",
            ),
        ],
        [
            EvaluationSettings("digits"),
            EvaluationSettings("a folder", "true name", "ghnq-cifar10-qat", ("test", "mobile"),
                               precisions=((32, 32), (4, 8)), channel_limit=2.0, num_nets=3,
                               num_images=64),
            EvaluationSettings("digits", splits=(), models=("resnet18",), adapt_stem=True,
                               trained="state.pt"),
        ],
    ],
)  # fmt: skip
def test_a_written_command_gives_the_settings_it_was_written_of(ghnq, monkeypatch, written):
    for settings in written:
        assert received(ghnq, monkeypatch, settings) == settings
    for field in fields(written[0]):
        values = {getattr(settings, field.name) for settings in written}
        assert len(values) > 1, field.name  # no field is left out


def test_the_commands_defaults_are_those_of_the_settings(ghnq, monkeypatch):
    calls = []
    for run in ("starts.quickstart.run_quickstart", "starts.compare_init"):
        monkeypatch.setattr(f"ghnq_quant.research.{run}", lambda s, *_, **__: calls.append(s))
    assert ghnq("quickstart")[0] == 0
    assert ghnq("compare-init", "resnet8", "-o", "out")[0] == 0
    assert calls == [QuickstartSettings(), CompareSettings(("resnet8",))]


def test_a_missing_package_names_the_extra_that_brings_it(ghnq, monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    code, out, err = ghnq("quickstart", "--epochs", "1")
    assert (code, out) == (1, "")
    command = "pip install 'ghnq-quant[research]'"
    assert err == f"error: this needs sklearn, which is not installed: {command}\n"


def test_warnings_of_the_package_are_one_line(ghnq, monkeypatch):
    import warnings

    from ghnq_quant.research.starts import quickstart

    def warn(*_: object, **__: object) -> None:
        warnings.warn("[classifier] keeps its own initialization", GhnqWarning, stacklevel=1)

    monkeypatch.setattr(quickstart, "run_quickstart", warn)
    shown_by = warnings.showwarning
    with warnings.catch_warnings():
        warnings.simplefilter("always", GhnqWarning)
        code, _, err = ghnq("quickstart")
    assert code == 0
    assert err == "warning: [classifier] keeps its own initialization\n"
    assert warnings.showwarning is shown_by


def test_version_and_help(ghnq):
    code, out, _ = ghnq("--version")
    assert (code, out.split()) == (0, ["ghnq-quant", ghnq_quant.__version__])
    code, out, _ = ghnq("--help")
    assert code == 0
    assert "quickstart" in out
    assert "Initialize a model and save it quantized" in out


# finetune, evaluate, report and space


def test_a_hypernetwork_is_finetuned_evaluated_and_reported(ghnq, tmp_path):
    run = ["finetune", "--data", "digits", "--bits", "float,4/8", "--steps", "2", "-o", "run"]
    small = ["--meta-batch-size", "1", "--image-batch-size", "8", "--image-size", "16@0.5,32",
             "--architectures", "20"]  # fmt: skip
    validation = ["--val-networks", "1", "--val-images", "64"]
    code, out, err = ghnq(*run, *small, *validation)
    assert (code, err) == (0, "")
    assert "Best checkpoint: run/best" in out
    assert ghnq(*run, *small, *validation)[2].startswith("error: run already holds a run")

    images = ["--data", "digits", "--num-images", "64"]
    networks = ["--split", "mobile", "--num-nets", "1", "--precision", "W4/A8"]
    code, out, _ = ghnq("evaluate", "--ghn", "run/best", *images, *networks, "-o", "table")
    assert code == 0
    assert "W4/A8" in out
    assert (tmp_path / "table" / "results.json").exists()
    assert ghnq("report", "run", "table", "-o", "report.html")[0] == 0
    assert "W4/A8" in (tmp_path / "report.html").read_text()


def test_space(ghnq, tmp_path):
    code, out, _ = ghnq("space", "show", "test", "17", "-o", "pictures/17.png")
    assert code == 0
    assert '"family": "residual"' in out
    assert (tmp_path / "pictures" / "17.png").stat().st_size > 10_000
    code, out, _ = ghnq("space", "stats", "--num", "2", "-o", "statistics")
    assert code == 0
    assert "bn_free" in out
    for picture in ("pictures/17.png", "statistics/statistics.png"):
        assert (tmp_path / picture).read_bytes().startswith(b"\x89PNG")
    assert "networks 0 to 499, not 500" in ghnq("space", "show", "test", "500")[2]


# The layer report


def test_signal_to_noise_against_a_formula_of_its_own():
    weight = torch.randn(16, 8, 3, 3, generator=torch.Generator().manual_seed(0))
    for bits in (8, 4, 2):
        low, high, levels = min(weight.min().item(), 0), max(weight.max().item(), 0), 2**bits - 1
        scale = (high - low) / levels
        zero = round(-low / scale)
        q = ((weight.double() / scale).round() + zero).clamp(0, levels).sub(zero) * scale
        ratio = weight.double().pow(2).sum() / (weight - q).pow(2).sum()
        expected = 10 * math.log10(ratio)
        assert signal_to_noise_db(weight, bits) == pytest.approx(expected, abs=0.02)


def test_signal_to_noise_of_exact_and_of_zero_weights():
    assert signal_to_noise_db(torch.tensor([0.0, 1.0, 2.0, 3.0]), 2) == math.inf
    assert math.isnan(signal_to_noise_db(torch.zeros(3, 3), 4))


def test_layer_report_counts_only_what_changed():
    before = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Linear(4, 2))
    after = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Linear(4, 2))
    after[2].load_state_dict(before[2].state_dict())
    first, last = layer_report(before, after)
    assert (first.name, first.shape, first.given) == ("0", (4, 3, 3, 3), 112)
    assert (last.name, last.shape, last.given) == ("2", (2, 4), 0)
    assert set(first.snr_db) == {8, 4, 2}
