"""The paper's protocol against a naive loop, its formulas, its files, and resuming a killed run."""

from __future__ import annotations

import copy
import csv
import io
import json
import math
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
import torch
from torch import nn

from ghnq_quant import GHN, QuantScheme, predict_parameters, quantize
from ghnq_quant.capture import capture
from ghnq_quant.errors import CheckpointError, DataError, GhnqError, SchemeError
from ghnq_quant.files import read_state, save_state
from ghnq_quant.quantization.scheme import FLOAT
from ghnq_quant.research.data import Images, ImageSet, evaluation_batches
from ghnq_quant.research.runs.journal import Journal
from ghnq_quant.research.table1 import (
    Evaluation,
    NetworkResult,
    distribution,
    evaluate,
    measure_network,
    parameter_distributions,
    run,
    summarize,
    workers,
)
from ghnq_quant.research.table1.mismatch import mismatch_lines
from ghnq_quant.research.table1.networks import network_places, open_network
from ghnq_quant.research.table1.protocol import num_evaluated
from ghnq_quant.research.table1.quantization_error import QuantizationError
from ghnq_quant.research.table1.settings import EvaluationSettings, parse_precisions
from ghnq_quant.research.table1.variants import make_variants

PRECISIONS = parse_precisions(["float", "W8/A8", "W4/A8", "W2/A2"])


class Net(nn.Module):
    """Folded batch norms, one that no convolution folds, a depthwise layer, and a sum."""

    def __init__(self, width: int = 8, num_classes: int = 10) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        self.norm = nn.BatchNorm2d(width)
        self.depthwise = nn.Conv2d(width, width, 3, padding=1, groups=width, bias=False)
        self.norm2 = nn.BatchNorm2d(width)
        self.before = nn.BatchNorm2d(width)
        self.conv = nn.Conv2d(width, width, 1)
        self.head = nn.Linear(width, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.norm(self.stem(x)))
        x = torch.max_pool2d(x + self.norm2(self.depthwise(x)), 2)
        x = self.conv(torch.relu(self.before(x)))
        return self.head(x.mean((2, 3)))


def random_images(count: int, seed: int, side: int = 8) -> Images:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randint(0, 256, (count, 3, side, side), generator=generator, dtype=torch.uint8)
    y = torch.randint(0, 10, (count,), generator=generator)
    classes = tuple(f"class {i}" for i in range(10))
    return Images(x, y, classes, torch.full((3,), 0.5), torch.full((3,), 0.25))


@pytest.fixture(scope="module")
def images() -> Images:
    return random_images(300, seed=0)


@pytest.fixture(scope="module")
def embedded_ghn() -> GHN:
    """Predicts other parameters for every precision."""
    torch.manual_seed(1)
    ghn = GHN(max_shape=(16, 16, 7, 7), num_classes=10, hid=8, precision_embedding=True).eval()
    nn.init.normal_(ghn.precision.weight)
    return ghn


def naive(ghn: GHN, precision: tuple[int, int], images: Images, count: int) -> torch.Tensor:
    """Logits at one precision: a model made anew, one pass of its own, nothing shared."""
    model = Net()
    model.load_state_dict(predict_parameters(model, ghn, bits=precision), strict=False)
    if precision != FLOAT:
        scheme = QuantScheme(*precision, act_range="batch", bn="batch")
        model = quantize(model, scheme=scheme, backend="reference")
    model.train()  # every batch norm, folded or not, with the statistics of the batch
    with torch.no_grad():
        return torch.cat([model(x) for x, _ in evaluation_batches(images, 64, limit=count)])


@pytest.mark.parametrize("ghn_name", ["tiny_ghn", "embedded_ghn"])
def test_all_precisions_in_one_pass_equal_naive_passes(ghn_name, images, request):
    ghn, count = request.getfixturevalue(ghn_name), 200
    labels = torch.cat([y for _, y in evaluation_batches(images, 64, limit=count)])
    result = measure_network(Net(), ghn, images, PRECISIONS, group="net", index=0, num_images=count)
    reference = {p: naive(ghn, p, images, count) for p in PRECISIONS}
    for precision, name in zip(PRECISIONS, result.precisions, strict=True):
        measured, logits = result.precisions[name], reference[precision]
        top1 = (logits.argmax(1) == labels).double().mean().item() * 100
        ranks = (logits > logits.gather(1, labels[:, None])).sum(1)
        assert measured.top1 == pytest.approx(top1, abs=1e-9)
        assert measured.top5 == pytest.approx((ranks < 5).double().mean().item() * 100, abs=1e-9)
        assert measured.nonfinite_images == 0
    assert result.images == count
    assert result.parameters == sum(p.numel() for p in Net().parameters())


@pytest.mark.parametrize("ghn_name", ["tiny_ghn", "embedded_ghn"])
def test_logits_error_is_against_the_float_network_with_the_same_parameters(
    ghn_name, images, request
):
    ghn = request.getfixturevalue(ghn_name)
    result = measure_network(Net(), ghn, images, PRECISIONS, group="", index=0, num_images=64)
    float_net = Net().train()
    bits = (4, 8)
    float_net.load_state_dict(predict_parameters(float_net, ghn, bits=bits), strict=False)
    ((x, _),) = evaluation_batches(images, 64, limit=64)
    r = float_net(x).detach().double()
    q = naive(ghn, bits, images, 64).double()
    measured = result.precisions["W4/A8"]
    assert measured.output_mse == pytest.approx(((r - q) ** 2).mean().item(), rel=1e-3)
    expected = 10 * math.log10((r**2).sum() / ((r - q) ** 2).sum())
    assert measured.output_snr_db == pytest.approx(expected, abs=0.01)
    assert result.precisions["float"].output_snr_db is None


def test_weight_error_is_of_the_folded_weights(tiny_ghn, images):
    result = measure_network(Net(), tiny_ghn, images, PRECISIONS, group="", index=0, num_images=64)
    net = Net()
    net.load_state_dict(predict_parameters(net, tiny_ghn), strict=False)
    ((x, _),) = evaluation_batches(images, 64, limit=64)
    z = net.stem(x)
    h = torch.relu(net.norm(z))
    folded = [
        w * (n.weight / (z.var((0, 2, 3), correction=0) + n.eps).sqrt()).view(-1, 1, 1, 1)
        for w, n, z in (
            (net.stem.weight, net.norm, z),
            (net.depthwise.weight, net.norm2, net.depthwise(h)),
        )
    ]
    signal = noise = 0.0
    for w in (*folded, net.conv.weight, net.head.weight):
        w = w.detach()
        low, high = min(w.min().item(), 0), max(w.max().item(), 0)
        scale = (high - low) / 15
        q = torch.fake_quantize_per_tensor_affine(w, scale, round(-low / scale), 0, 15)
        signal += w.double().square().sum().item()
        noise += (w - q).double().square().sum().item()
    snr = 10 * math.log10(signal / noise)
    assert result.precisions["W4/A8"].weight_snr_db == pytest.approx(snr, abs=0.02)
    assert result.precisions["float"].weight_snr_db is None


def test_the_network_given_is_not_changed_and_the_result_is_deterministic(tiny_ghn, images):
    net = Net()
    before = copy.deepcopy(net.state_dict())
    torch.manual_seed(5)
    state = torch.get_rng_state()
    results = [
        measure_network(net, tiny_ghn, images, PRECISIONS, group="", index=3, num_images=64)
        for _ in range(2)
    ]
    assert torch.equal(torch.get_rng_state(), state)
    assert net.training
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    first, second = ({**r.to_json(), "seconds": 0} for r in results)
    assert first == second


def test_images_with_logits_that_are_not_finite_count_as_wrong(tiny_ghn, images):
    class Overflowing(Net):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x) * 1e38 * 1e38

    result = measure_network(
        Overflowing(), tiny_ghn, images, PRECISIONS, group="", index=0, num_images=64
    )
    for measured in result.precisions.values():
        assert measured.nonfinite_images > 0
        assert measured.top1 <= 100 * (64 - measured.nonfinite_images) / 64
        assert measured.output_snr_db is None
    json.dumps(result.to_json(), allow_nan=False)


def test_the_last_batch_is_kept_unless_it_is_a_single_image(tiny_ghn, images):
    assert [num_evaluated(300, n) for n in (64, 65, 66, 1000, None)] == [64, 64, 66, 300, 300]
    assert num_evaluated(129, None) == 128
    seen = []
    result = measure_network(
        Net(), tiny_ghn, images, (FLOAT,), group="", index=0, num_images=129,
        on_batch=lambda: seen.append(1),
    )  # fmt: skip
    assert (result.images, len(seen)) == (128, 2)


# Formulas


def test_mean_standard_error_and_maximum():
    values = [71.5, 10.0, 64.25, 80.0]
    summary = summarize([*values, None])
    assert summary.count == 4
    assert summary.mean == pytest.approx(np.mean(values))
    assert summary.standard_error == pytest.approx(scipy.stats.sem(values))
    assert summary.maximum == 80.0
    alone = summarize([3.0])
    assert (alone.mean, alone.standard_error, alone.maximum) == (3.0, None, 3.0)
    assert summarize([]).mean is None


def test_quantization_error_adds_up_over_tensors():
    rng = np.random.default_rng(0)
    pairs = [(rng.normal(size=s), rng.normal(size=s)) for s in ((3, 4), (5,))]
    error = QuantizationError()
    for r, q in pairs:
        error.add(torch.from_numpy(r), torch.from_numpy(q))
    r, q = (np.concatenate([p[i].ravel() for p in pairs]) for i in (0, 1))
    assert error.mse == pytest.approx(np.mean((r - q) ** 2))
    assert error.snr_db == pytest.approx(10 * np.log10(np.sum(r**2) / np.sum((r - q) ** 2)))
    exact, broken = QuantizationError(), QuantizationError()
    exact.add(torch.ones(2), torch.ones(2))
    broken.add(torch.ones(2), torch.tensor([1.0, math.nan]))
    assert (exact.mse, exact.snr_db) == (0.0, None)
    assert (broken.mse, broken.snr_db) == (None, None)
    assert QuantizationError().mse is None


@pytest.mark.parametrize("shape", [(5, 3, 3, 3), (6, 7)])
def test_distribution_against_scipy(shape):
    w = torch.randn(shape, generator=torch.Generator().manual_seed(0)) + 0.4
    w[0] = w[0].abs()  # a channel of one sign: zero belongs to its range
    d, array = distribution(w), w.double().numpy()
    assert (d.low, d.high) == (array.min(), array.max())
    assert d.std == pytest.approx(array.std())
    assert d.kurtosis == pytest.approx(scipy.stats.kurtosis(array.ravel(), fisher=False))
    rows = array.reshape(shape[0], -1)
    ranges = np.maximum(rows.max(1), 0) - np.minimum(rows.min(1), 0)
    whole = max(array.max(), 0) - min(array.min(), 0)
    assert d.mismatch == pytest.approx(whole / np.median(ranges))


def test_distribution_of_constant_and_of_zero_weights():
    constant, zero = distribution(torch.full((2, 3), 0.5)), distribution(torch.zeros(2, 3))
    assert (constant.low, constant.high, constant.kurtosis) == (0.0, 0.5, None)
    assert constant.mismatch == 1.0
    assert (zero.std, zero.kurtosis, zero.mismatch) == (0.0, None, None)


def test_parameter_distributions_takes_models_and_states():
    net = Net()
    by_layer = parameter_distributions(net)
    assert list(by_layer) == ["stem", "depthwise", "conv", "head"]
    assert parameter_distributions(net.state_dict()) == by_layer
    assert by_layer["conv"] == distribution(net.conv.weight)


def test_layers_are_described_as_predicted_initial_and_trained(tiny_ghn, images):
    trained = Net()
    result = measure_network(
        Net(), tiny_ghn, images, (FLOAT,), group="", index=0, num_images=64,
        trained=trained.state_dict(),
    )  # fmt: skip
    assert [(x.name, x.depthwise) for x in result.layers] == [
        ("stem", False), ("depthwise", True), ("conv", False), ("head", False)
    ]  # fmt: skip
    predicted = predict_parameters(trained, tiny_ghn)
    for layer in result.layers:
        assert list(layer.sources) == ["predicted", "initial", "trained"]
        for source, state in (("predicted", predicted), ("trained", trained.state_dict())):
            expected = distribution(state[f"{layer.name}.weight"])
            assert layer.sources[source]["kurtosis"] == pytest.approx(expected.kurtosis, rel=1e-4)
            assert layer.sources[source]["mismatch"] == pytest.approx(expected.mismatch, rel=1e-4)
        # PyTorch's initialization is uniform
        assert layer.sources["initial"]["kurtosis"] == pytest.approx(1.8, abs=0.5)
    unfolded = [x for x in result.layers if x.name in ("conv", "head")]
    assert all(s["mismatch"] == s["folded_mismatch"] for x in unfolded for s in x.sources.values())
    with pytest.raises(GhnqError, match=r"stem.weight has shape \(8, 3, 3, 3\)"):
        measure_network(
            Net(), tiny_ghn, images, (FLOAT,), group="", index=0, num_images=64,
            trained=Net(width=4).state_dict(),
        )  # fmt: skip


def test_float_model_equals_the_reference_simulation_without_quantizers(images):
    net = Net()
    ((x, _),) = evaluation_batches(images, 64, limit=64)
    variants = make_variants(capture(net), {}, [FLOAT, (32, 8)])
    simulated = quantize(
        net, scheme=QuantScheme(32, 32, act_range="batch", bn="batch"), backend="reference"
    ).train()
    with torch.no_grad():
        torch.testing.assert_close(variants.float_model(x), simulated(x), rtol=1e-4, atol=1e-5)
    assert list(variants.quantized) == [(32, 8)]


# Runs


@pytest.fixture
def setting(monkeypatch, tiny_ghn):
    """Small networks and images of 8×8 pixels in place of ConvNets-250K and a data set."""
    image_set = ImageSet("noise", random_images(64, 1), random_images(150, 2))
    monkeypatch.setattr(run, "load_images", lambda data, **_: image_set)
    monkeypatch.setattr(run, "_SIDE", 8)

    def open_small(settings, group, index, classes):
        torch.manual_seed(7)
        return Net(width=4 + 4 * index)

    monkeypatch.setattr(workers, "open_network", open_small)
    return {"data": "noise.npz", "ghn": tiny_ghn, "split": ["test", "bn_free"], "num_nets": 2,
            "precision": ["W8/A8", "W4/A4"], "num_images": 128}  # fmt: skip


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
    assert content["command"].startswith("ghnq evaluate --ghn ")
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


def test_a_killed_run_goes_on_to_the_same_results(setting, tmp_path, monkeypatch):
    evaluate(output=tmp_path / "whole", **setting)
    journal = (tmp_path / "whole" / "networks.jsonl").read_bytes()
    # what a kill leaves: three finished networks, and the line of the fourth in half
    (tmp_path / "killed").mkdir()
    half = journal[: -len(journal.splitlines()[-1]) // 2]
    (tmp_path / "killed" / "networks.jsonl").write_bytes(half)
    measured = []
    original = workers.measure_network
    monkeypatch.setattr(
        workers, "measure_network",
        lambda *a, **k: (measured.append((k["group"], k["index"])), original(*a, **k))[1],
    )  # fmt: skip
    evaluate(output=tmp_path / "killed", **setting)
    assert measured == [("bn_free", 1)]
    assert without_times(tmp_path / "killed") == without_times(tmp_path / "whole")
    evaluate(output=tmp_path / "killed", **setting)
    assert measured == [("bn_free", 1)]


def test_a_run_that_fails_keeps_what_was_finished(setting, tmp_path, monkeypatch):
    original = workers.measure_network

    def failing(*arguments, **keywords):
        if keywords["group"] == "bn_free":
            raise KeyboardInterrupt
        return original(*arguments, **keywords)

    monkeypatch.setattr(workers, "measure_network", failing)
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
    from rich.console import Console

    console = Console(file=io.StringIO(), width=120, force_terminal=True)
    evaluate(output=tmp_path, console=console, **setting)
    text = console.file.getvalue()
    for part in ("4/4", "networks", "s a network", "Top-1 accuracy", "BN-Free", "128 test images"):
        assert part in text


# What is refused


def test_images_that_the_hypernetwork_does_not_fit(setting, tmp_path, monkeypatch):
    monkeypatch.setattr(run, "_SIDE", 32)
    with pytest.raises(DataError, match="8×8 pixels; the networks of ConvNets-250K are made for"):
        evaluate(output=tmp_path, **setting)
    other = GHN(max_shape=(16, 16, 7, 7), num_classes=7, hid=8)
    with pytest.raises(DataError, match=r"noise\.npz has 10 classes"):
        evaluate(output=tmp_path, **{**setting, "ghn": other})
    assert not (tmp_path / "networks.jsonl").exists()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_images": 63}, "--num-images 63"),
        ({"num_nets": 0}, "--num-nets 0"),
        ({"splits": ("test", "test")}, "named twice"),
        ({"splits": ()}, "either splits"),
        ({"models": ("resnet18",)}, "either splits"),
        ({"trained": "a.pt"}, "name it with --model"),
        ({"splits": (), "models": ("a", "b"), "trained": "a.pt"}, "of one model"),
        ({"splits": (), "models": ("a", "a")}, "named twice"),
        ({"adapt_stem": True}, "for models of --model"),
        ({"splits": (), "models": ("resnet18",), "num_nets": 2}, "a named model is one"),
        ({"precisions": ((8, 8),)}, "must be float"),
    ],
)
def test_settings_that_contradict_each_other(settings, message):
    with pytest.raises(GhnqError, match=message):
        EvaluationSettings(**{"data": "digits", **settings})


def test_precisions_by_name():
    assert parse_precisions(["W4/A4", "float", "W4/A4"]) == (FLOAT, (4, 4))
    with pytest.raises(SchemeError, match="precision 'floats'"):
        parse_precisions(["floats"])


def test_places_models_and_states(tmp_path):
    settings = EvaluationSettings("digits", splits=("test", "mobile"), num_nets=2)
    places = network_places(settings)
    assert places == [("test", 0), ("test", 1), ("mobile", 0), ("mobile", 1)]
    with pytest.raises(GhnqError, match="split mobile has 100 networks, not 101"):
        network_places(EvaluationSettings("digits", splits=("mobile",), num_nets=101))
    ten = random_images(64, seed=0, side=32)
    named = EvaluationSettings("digits", splits=(), models=("mobilenet_v2",))
    model = open_network(named, *network_places(named)[0], images=ten)
    assert model.classifier[1].out_features == 10
    assert model.features[0][0].stride == (2, 2)
    adapted = EvaluationSettings(
        "digits", splits=(), models=("timm:mobilenetv2_050", "mobilenet_v2"), adapt_stem=True
    )
    assert adapted.command().endswith("--adapt-stem")
    places = network_places(adapted)
    assert places == [("timm:mobilenetv2_050", 0), ("mobilenet_v2", 0)]
    assert open_network(adapted, *places[0], images=ten).conv_stem.stride == (1, 1)
    wrong = EvaluationSettings("digits", splits=(), models=("mobilnet_v2",))
    with pytest.raises(GhnqError, match="did you mean mobilenet_v2"):
        open_network(wrong, "mobilnet_v2", 0, images=ten)
    torch.save({"a": torch.ones(2)}, tmp_path / "a.pt")
    assert torch.equal(read_state(tmp_path / "a.pt")[0]["a"], torch.ones(2))
    torch.save({"a": 1}, tmp_path / "b.pt")
    (tmp_path / "c.safetensors").write_bytes(b"nothing")
    for name in ("b.pt", "c.safetensors", "d.pt"):
        with pytest.raises(CheckpointError, match=name):
            read_state(tmp_path / name)
