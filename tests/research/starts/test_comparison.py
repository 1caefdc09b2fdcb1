"""Comparing starts: the formulas, fair trainings, and resuming a killed run."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from digits_file import save_digits
from small_networks import tiny_network
from torch import nn

from ghnq_quant import (
    GHN,
    DataError,
    GhnqError,
    GhnqWarning,
    QuantScheme,
    calibrate,
    init_quantized,
    quantize,
)
from ghnq_quant.research.data import Images, ImageSet, evaluation_batches, load_images
from ghnq_quant.research.data.foreign import foreign
from ghnq_quant.research.starts import (
    STARTS,
    CompareSettings,
    Comparison,
    Trial,
    compare_init,
    ladder,
)
from ghnq_quant.research.starts.cifar_networks import CIFAR_NETWORKS
from ghnq_quant.research.starts.results import Curve, TrialResult, best_lr
from ghnq_quant.research.starts.run import choice_trials, measured_trials
from ghnq_quant.research.starts.tables import accuracy_caption, ratio_rows
from ghnq_quant.research.starts.trials import Bench
from ghnq_quant.research.table1 import summarize

BITS = (4, 4)
SETTINGS = CompareSettings(
    ("tiny",),
    backend="reference",
    steps=(1, 2, 4, 8),
    seeds=2,
    starts=("pytorch", "ghnq", "float-first"),
    lrs=(0.1, 0.3),
    lr_steps=4,
    data="digits",
    images_per_class=8,
    test_images=64,
    ghn="ghnq-cifar10",
)


@pytest.fixture(autouse=True)
def _tiny_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(CIFAR_NETWORKS, "tiny", tiny_network)


def result(start: str, steps: int, accuracy: float, seed: int = 0, lr: float = 0.1) -> TrialResult:
    return TrialResult(Trial("a", BITS, start, steps, lr, seed), 10.0, accuracy, 1.0, 1.0)


def comparison(results: list[TrialResult]) -> Comparison:
    starts = tuple(dict.fromkeys(r.trial.start for r in results))
    settings = replace(SETTINGS, archs=("a",), steps=(10, 20, 40, 80), seeds=2, starts=starts)
    return Comparison(settings, {}, {r.trial: r for r in results})


def test_steps_to_an_accuracy_lie_between_trainings() -> None:
    accuracy = tuple(summarize([v]) for v in (20, 30, 34))
    curve = Curve(0.1, summarize([12.0]), 5, (10, 20, 40), accuracy)
    assert curve.steps_to(30) == pytest.approx(20)
    assert curve.steps_to(25) == pytest.approx(10 * 2**0.5)  # halfway in log2 of the steps
    assert curve.steps_to(32) == pytest.approx(20 * 2**0.5)
    assert curve.steps_to(15) == 10  # the shortest training that was measured
    assert curve.steps_to(34.1) is None
    assert curve.steps_to(12) == 5  # before the first quantized step


def test_ratios_are_of_the_steps_to_what_pytorchs_start_has_after_each_training() -> None:
    means = {"pytorch": (10, 20, 30, 40), "ghnq": (20, 36, 38, 39)}
    results = [
        replace(result(start, steps, accuracy + seed, seed), first=15.0)
        for start, values in means.items()
        for steps, accuracy in zip((10, 20, 40, 80), values, strict=True)
        for seed in (0, 1)
    ]
    found = comparison(results)
    assert found.ratios("a", BITS, "ghnq") == {
        10: 0.0,  # 15 % before the first step are more than 10.5
        20: 0.5,
        40: pytest.approx(10 * 2 ** (10 / 16) / 40),
        80: None,
    }
    assert found.ratios("a", BITS, "pytorch") == {10: 0.0, 20: 1.0, 40: 1.0, 80: 1.0}
    assert [s.mean for s in found.curves("a", BITS)["ghnq"].accuracy] == [20.5, 36.5, 38.5, 39.5]
    titles, rows = ratio_rows(found)
    assert titles[3:] == ["10 steps", "20 steps", "40 steps", "80 steps"]
    assert rows == [["a", "W4/A4", "GHN-Q", "0.00", "≤ 0.50", "0.39", "> 1"]]


def test_learning_rate_is_the_most_accurate_and_of_equal_ones_that_of_the_lowest_loss() -> None:
    losses = {0.03: 0.4, 0.1: None, 0.3: 0.2, 1: 0.1}
    results = [
        replace(result("ghnq", 8, 9 if lr == 1 else 50, lr=lr), loss=loss)
        for lr, loss in losses.items()
    ]
    assert best_lr(results) == 0.3


def test_all_starts_get_the_same_trainings() -> None:
    choices = choice_trials(SETTINGS)
    assert {t.seed for t in choices} == {1_000_000}  # as in the journals of old runs
    assert {(t.steps, t.lr) for t in choices} == {(4, 0.1), (4, 0.3)}
    finished = {t: TrialResult(t, 10, 50 + t.lr * (t.start == "ghnq"), 1, 1) for t in choices}
    trials = measured_trials(SETTINGS, finished)
    by_start = {
        s: [replace(t, start="", lr=0) for t in trials if t.start == s] for s in SETTINGS.starts
    }
    assert len({tuple(of) for of in by_start.values()}) == 1
    assert {(t.steps, t.seed) for t in trials} == {(s, k) for s in (1, 2, 4, 8) for k in (0, 1)}
    assert {(t.start, t.lr) for t in trials} == {
        ("pytorch", 0.1), ("ghnq", 0.3), ("float-first", 0.1),
    }  # fmt: skip


def test_starts() -> None:
    ghn, data = GHN.from_pretrained("ghnq-cifar10"), load_images("digits").train
    common: dict[str, Any] = {"backend": "reference", "stem_bits": 8}
    example = torch.zeros(1, 3, 32, 32)
    batches = list(itertools.islice(evaluation_batches(data), 2))
    torch.manual_seed(0)
    model = CIFAR_NETWORKS["resnet8"](10)
    own = quantize(model, BITS, **common)
    wanted = {
        "pytorch": own,
        "float-first": own,
        "pytorch-fitted": init_quantized(model, BITS, batches, share=0.0, ghn=ghn, **common),
        "ghnq": init_quantized(model, BITS, batches, ghn=ghn, **common),
        "ghnq-as-predicted": init_quantized(model, BITS, ghn=ghn, as_predicted=True, **common),
    }
    assert wanted.keys() == STARTS.keys()
    for name, start in STARTS.items():
        found = start.quantized(
            model, BITS, batches, ghn=ghn, example_input=example, **common
        ).named_parameters()
        assert all(torch.equal(wanted[name].get_parameter(n), p) for n, p in found), name


def test_stem_bits_are_of_the_first_layers_weight_alone() -> None:
    digits = load_images("digits")
    images = replace(digits, test=digits.test.sample(64))
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = CIFAR_NETWORKS["resnet8"](10)
    scheme = QuantScheme(3, 8, overrides={"body.0.0": (8, 8)})
    wanted = quantize(
        model, scheme=scheme, backend="reference", example_input=images.test.images[:1]
    )
    calibrate(wanted, itertools.islice(evaluation_batches(images.train), 8))
    right = sum((wanted.eval()(x).argmax(1) == y).sum() for x, y in evaluation_batches(images.test))
    trial, ghn = Trial("resnet8", (3, 8), "pytorch", 1, 0.1, 3), GHN.from_pretrained("ghnq-cifar10")
    of_eight, of_three = (
        next(Bench(settings, ghn, images.train, images.test).results(trial)).first
        for settings in (replace(SETTINGS, stem_bits=bits) for bits in (8, None))
    )
    assert of_eight == pytest.approx(100 * float(right) / len(images.test))
    assert of_three != of_eight


def test_a_killed_comparison_goes_on_with_what_is_missing(tmp_path: Path) -> None:
    settings = replace(SETTINGS, steps=(1, 2), seeds=1)
    whole = compare_init(settings, tmp_path / "whole")
    lines = (tmp_path / "whole" / "trials.jsonl").read_bytes().splitlines(keepends=True)
    assert len(lines) == 1 + 3 * (2 + 2)
    (tmp_path / "killed").mkdir()
    (tmp_path / "killed" / "trials.jsonl").write_bytes(b"".join(lines[:5]) + lines[5][:20])
    resumed = compare_init(settings, tmp_path / "killed")
    assert {t: r.accuracy for t, r in resumed.results.items()} == {
        t: r.accuracy for t, r in whole.results.items()
    }
    content = json.loads((tmp_path / "killed" / "results.json").read_text())
    assert [case["arch"] for case in content["cases"]] == ["tiny"]
    assert "| tiny | W4/A4 | GHN-Q |" in (tmp_path / "killed" / "table.md").read_text()
    with pytest.raises(GhnqError, match=r"settings\.lr_steps=4 \(now 8\)"):
        compare_init(replace(settings, lr_steps=8), tmp_path / "killed")


def test_a_comparison_goes_on_with_the_same_images_and_networks_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arrays = save_digits(tmp_path / "images.npz")
    data = str(tmp_path / "images.npz")
    settings = replace(SETTINGS, data=data, starts=("pytorch",), seeds=1, steps=(1,), lrs=(0.1,))
    whole = compare_init(settings, tmp_path / "run")
    file = tmp_path / "run" / "trials.jsonl"
    first, line = file.read_text().splitlines()

    arrays["x_test"] = 255 - arrays["x_test"]
    np.savez(tmp_path / "images.npz", **arrays)
    with pytest.raises(GhnqError, match=r"identity\.test='\w{16}' \(now '\w{16}'\)"):
        compare_init(settings, tmp_path / "run")
    arrays["x_test"] = 255 - arrays["x_test"]
    np.savez(tmp_path / "images.npz", **arrays)
    monkeypatch.setitem(
        CIFAR_NETWORKS, "tiny", lambda n: nn.Sequential(*tiny_network(n), nn.ReLU())
    )
    with pytest.raises(GhnqError, match=r"identity\.networks\.tiny="):
        compare_init(settings, tmp_path / "run")
    monkeypatch.setitem(CIFAR_NETWORKS, "tiny", tiny_network)

    header = json.loads(first)
    del header["identity"]  # as earlier versions wrote it
    file.write_text(f"{json.dumps(header)}\n{line}\n")
    with pytest.warns(GhnqWarning, match=r"of an earlier version.*\(train, held_out, test,"):
        assert compare_init(settings, tmp_path / "run").results == whole.results


def test_caption_counts_the_test_images_that_there_are(tmp_path: Path) -> None:
    settings = replace(SETTINGS, starts=("pytorch",), seeds=1, lrs=(0.1,), test_images=2000)
    caption = accuracy_caption(compare_init(settings, tmp_path))
    assert caption.startswith("scikit-learn digits, 80 training and 360 test images;")


def test_strange_images_are_grey_inverted_blurred_and_of_half_as_many_classes() -> None:
    content = torch.zeros(3, 3, 4, 4, dtype=torch.uint8)
    content[0, 0] = 200  # red: 0.299 · 200 = 60
    content[1, :, 1, 1] = 255
    mean = std = torch.ones(3)
    images = Images(content, torch.tensor([0, 3, 4]), tuple("abcde"), mean, std)
    found = foreign(ImageSet("letters", images, images)).train
    assert found.classes == ("a or b", "c or d", "e")
    assert found.labels.tolist() == [0, 1, 2]
    assert (found.images[0] == 195).all()
    spot = (
        255 - 255 * torch.tensor([[1, 2, 1, 0], [2, 4, 2, 0], [1, 2, 1, 0], [0] * 4]) / 16
    ).round()
    assert torch.equal(found.images[1], spot.to(torch.uint8).expand(3, 4, 4))
    assert (found.images[2] == 255).all()
    normalized = found.normalize(found.images)
    torch.testing.assert_close(normalized.mean(), torch.tensor(0.0), rtol=0, atol=1e-5)


def test_the_hypernetwork_needs_the_same_classes_only_as_predicted(tmp_path: Path) -> None:
    settings = replace(SETTINGS, foreign=True, starts=("ghnq",), steps=(1,), lrs=(0.1,))
    assert (
        compare_init(settings, tmp_path / "5 classes").facts["data"]["name"].endswith("5 classes")
    )
    with pytest.raises(DataError, match=r"has 5 classes.*leave out the start 'ghnq-as-predicted'"):
        compare_init(replace(settings, starts=("ghnq-as-predicted",)), tmp_path / "predicted")


def test_the_ladder_takes_chosen_rates_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def two_rungs(data: str, **_: Any) -> dict[str, CompareSettings]:
        short, long = (replace(SETTINGS, steps=(n,), seeds=1, data=data) for n in (1, 2))
        return {"short": short, "long": long}

    monkeypatch.setattr(ladder, "rungs", two_rungs)
    made = ladder.run_ladder("digits", tmp_path)
    lines = (tmp_path / "long" / "trials.jsonl").read_text().splitlines()
    assert len(lines) == 1 + 3  # none that chooses
    for start in SETTINGS.starts:
        rates = {c.curves("tiny", BITS)[start].lr for c in made.values()}
        assert len(rates) == 1
    assert list(ladder.run_ladder("digits", tmp_path, only=("short",))) == ["short"]
    with pytest.raises(GhnqError, match="unknown comparison 'tall'; known are short, long"):
        ladder.run_ladder("digits", tmp_path, only=("tall",))


@pytest.mark.parametrize(
    ("arch", "predicted"),
    [
        ("shufflenet_small", 7),  # of 28
        ("repvgg_small", 4),  # of 12: the branches of two blocks
    ],
)
def test_networks_of_no_known_kind_get_a_start(arch: str, predicted: int) -> None:
    images = load_images("digits").train
    data = list(itertools.islice(evaluation_batches(images), 2))
    model = CIFAR_NETWORKS[arch](10)
    start = init_quantized(model, 4, data, backend="reference")
    weights = [n for n, p in start.named_parameters() if not torch.equal(p, model.get_parameter(n))]
    assert len(weights) == predicted + 2
    assert start(data[0][0]).isfinite().all()


def test_what_does_not_exist_is_named_before_any_training(tmp_path: Path) -> None:
    with pytest.raises(GhnqError, match="nothing"):
        replace(SETTINGS, starts=("nothing",))
    with pytest.raises(GhnqError, match="resnet_of_nobody"):
        compare_init(replace(SETTINGS, archs=("resnet_of_nobody",)), tmp_path)
    assert list(tmp_path.iterdir()) == []
