"""The finetuning loop: gradients, order, precision, resuming, and what it does when steps fail."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn
from torch.func import functional_call

from ghnq_quant import GHN, QuantScheme
from ghnq_quant.capture import capture
from ghnq_quant.errors import CheckpointError, DataError, GhnqError, GhnqWarning, SchemeError
from ghnq_quant.quantization import emit, load_backend
from ghnq_quant.research.data import Images, ImageSet, hold_out, load_images
from ghnq_quant.research.data.batches import balanced_batch, training_batch
from ghnq_quant.research.finetuning import finetune
from ghnq_quant.research.finetuning.functional import FunctionalNetwork
from ghnq_quant.research.finetuning.order import TrainingNetworks, network_indices, precision_index
from ghnq_quant.research.finetuning.settings import (
    ALL_ARCHITECTURES,
    FinetuneSettings,
    parse_architectures,
    parse_bits,
    parse_image_sizes,
    parse_macs,
)
from ghnq_quant.research.finetuning.state import TrainingState, read_run_state, starting_point
from ghnq_quant.research.finetuning.step import Network, backward_meta_batch
from ghnq_quant.research.finetuning.validation import validate, validation_networks
from ghnq_quant.research.networks import ConvNets250K, SampledNetwork

SETTINGS = FinetuneSettings(
    steps=6,
    meta_batch_size=2,
    image_batch_size=8,
    architectures=30,
    image_sizes=((32, 1.0),),
    log_every=1,
    checkpoint_every=2,
    validate_every=3,
    val_networks=2,
    val_images=64,
)


@pytest.fixture(scope="module")
def digits() -> ImageSet:
    return load_images("digits")


def simulated(item: SampledNetwork, bits: tuple[int, int]) -> nn.Module:
    """The network as modules, in train mode with the ranges of the batch."""
    network = item.build(initialize=False).train()
    if bits == (32, 32):
        return network
    scheme = QuantScheme(*bits, act_range="batch", bn="batch")
    return emit(capture(network), scheme, load_backend("reference"))


@pytest.mark.parametrize("split", ["train", "mobile", "bn_free"])
@pytest.mark.parametrize("bits", [(32, 32), (4, 4), (2, 8), (8, 32), (32, 8)])
def test_a_functional_network_computes_what_its_modules_do(
    split: str, bits: tuple[int, int]
) -> None:
    ghn = GHN.from_pretrained("ghnq-cifar10-qat")
    x = torch.randn(4, 3, 32, 32)
    for index in range(4):
        item = ConvNets250K(split)[index]
        (predicted,) = ghn([item.graph])
        network = simulated(item, bits)
        if bits == (32, 32):  # small maps are summed in another order: compared in float64
            predicted = {name: p.double() for name, p in predicted.items()}
            network, x = network.double(), x.double()
        parameters = {name: p.detach().requires_grad_() for name, p in predicted.items()}
        logits = FunctionalNetwork(item.program, bits)(parameters, x)
        expected = functional_call(network, parameters, (x,))
        torch.testing.assert_close(logits, expected, rtol=0, atol=1e-11 * (bits == (32, 32)))
        values = list(parameters.values())
        gradients = torch.autograd.grad(logits.square().sum(), values, retain_graph=True)
        expected_gradients = torch.autograd.grad(expected.square().sum(), values)
        for gradient, wanted in zip(gradients, expected_gradients, strict=True):
            torch.testing.assert_close(gradient, wanted, rtol=1e-4, atol=1e-5 * wanted.norm())


def gradients(ghn: GHN) -> dict[str, torch.Tensor]:
    return {n: p.grad.clone() for n, p in ghn.named_parameters() if p.grad is not None}


@pytest.mark.parametrize(
    ("bits", "new_norms"), [((32, 32), False), ((4, 8), False), ((4, 8), True)]
)
def test_two_stage_backward_is_the_gradient_of_the_mean_loss(
    digits: ImageSet, bits: tuple[int, int], new_norms: bool
) -> None:
    train = ConvNets250K("train")
    items = [train[i] for i in (0, 1, 2)]
    x, y = training_batch(digits.train, 0, 8, seed=0)
    ghn = GHN.from_pretrained("ghnq-cifar10-qat").derived(new_batch_norms=new_norms)
    networks = [FunctionalNetwork(item.program, bits) for item in items]
    result = backward_meta_batch(ghn, [i.graph for i in items], networks, bits, [[(x, y)]] * 3)
    two_stage = gradients(ghn)

    ghn.zero_grad()
    losses, clipped = [], []
    for item in items:
        (parameters,) = ghn([item.graph], [bits])
        for p in parameters.values():
            p.requires_grad_()  # a new batch norm's too
        loss = F.cross_entropy(functional_call(simulated(item, bits), parameters, (x,)), y)
        found = torch.autograd.grad(loss, list(parameters.values()), retain_graph=True)
        norm = torch.cat([g.flatten() for g in found]).norm()
        losses.append(loss)
        clipped.append(loss * min(1.0, 10 / norm.item()))
    torch.stack(clipped).mean().backward()

    assert result.losses == pytest.approx([loss.item() for loss in losses], rel=1e-5)
    assert result.failed == 0
    for name, gradient in gradients(ghn).items():
        torch.testing.assert_close(
            two_stage[name], gradient, rtol=1e-3, atol=1e-5 * gradient.norm()
        )


def test_inner_steps_add_the_gradients_along_the_way(digits: ImageSet) -> None:
    item = ConvNets250K("train")[1]
    batches = [training_batch(digits.train, step, 8, seed=0) for step in range(3)]
    ghn = GHN.from_pretrained("ghnq-cifar10")
    network = FunctionalNetwork(item.program)
    inner_lr = 0.05
    backward_meta_batch(ghn, [item.graph], [network], (32, 32), [batches], inner_lr=inner_lr)
    result = gradients(ghn)

    ghn.zero_grad()
    (predicted,) = ghn([item.graph])
    values = {name: p.detach().clone() for name, p in predicted.items()}
    sums = {name: torch.zeros_like(p) for name, p in predicted.items()}
    for x, y in batches:
        leaves = {name: p.requires_grad_() for name, p in values.items()}
        F.cross_entropy(network(leaves, x), y).backward()
        norm = torch.cat([p.grad.flatten() for p in leaves.values()]).norm()
        for name, p in leaves.items():
            sums[name] += p.grad * min(1.0, 10 / norm) / 3
            values[name] = (p - inner_lr * p.grad / max(1.0, norm)).detach()
    torch.autograd.backward(list(predicted.values()), list(sums.values()))
    for name, gradient in gradients(ghn).items():
        torch.testing.assert_close(result[name], gradient, rtol=1e-3, atol=1e-5 * gradient.norm())


def failing(error: Exception) -> Network:
    """A network that fails when it is run."""

    def fail(parameters: dict[str, torch.Tensor], images: torch.Tensor) -> torch.Tensor:
        raise error

    return fail


def test_a_network_that_runs_out_of_memory_costs_its_own_gradient_alone(digits: ImageSet) -> None:
    item = ConvNets250K("train")[1]  # of a gradient that is not clipped
    x, y = training_batch(digits.train, 0, 8, seed=0)
    ghn = GHN.from_pretrained("ghnq-cifar10-qat")
    network = FunctionalNetwork(item.program)
    (parameters, _) = ghn([item.graph] * 2)
    (F.cross_entropy(network(parameters, x), y) / 2).backward()
    alone = gradients(ghn)
    ghn.zero_grad()
    networks: list[Network] = [network, failing(torch.OutOfMemoryError("no memory left"))]
    result = backward_meta_batch(ghn, [item.graph] * 2, networks, (32, 32), [[(x, y)]] * 2)
    assert result.failed == 1
    assert len(result.losses) == 1
    for name, gradient in gradients(ghn).items():
        torch.testing.assert_close(gradient, alone[name], rtol=1e-4, atol=1e-7)


def test_another_error_is_not_swallowed(digits: ImageSet) -> None:
    item = ConvNets250K("train")[0]
    x, y = training_batch(digits.train, 0, 8, seed=0)
    with pytest.raises(RuntimeError, match="a mistake"):
        backward_meta_batch(
            GHN.from_pretrained("ghnq-cifar10-qat"),
            [item.graph],
            [failing(RuntimeError("a mistake"))],
            (32, 32),
            [[(x, y)]],
        )


def test_a_run_whose_steps_all_fail_stops_with_a_message(digits: ImageSet, tmp_path: Path) -> None:
    broken = replace(digits.train, std=torch.zeros(3))  # images of infinities and NaN
    with pytest.raises(GhnqError, match="25 steps in a row"):
        finetune(
            GHN.from_pretrained("ghnq-cifar10-qat"),
            replace(digits, train=broken),
            replace(SETTINGS, steps=100, meta_batch_size=1, image_batch_size=2),
            tmp_path,
            show_progress=False,
        )


def test_every_network_comes_once_an_epoch_in_an_order_of_its_own() -> None:
    epochs = [
        [i for step in range(5) for i in network_indices(20, 5 * epoch + step, 4, seed=1)]
        for epoch in range(2)
    ]
    assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(20))
    assert epochs[0] != epochs[1]


def test_precisions_are_drawn_evenly() -> None:
    drawn = [precision_index(3, step, seed=0) for step in range(3000)]
    assert all(abs(drawn.count(k) - 1000) < 100 for k in range(3))


def test_the_papers_schedule() -> None:
    settings = FinetuneSettings.paper(epochs=100)
    assert settings.total_steps(50_000) == 156_250
    assert [settings.lr_at(0, f) for f in (0, 0.7499, 0.75, 1)] == pytest.approx(
        [1e-3, 1e-3, 1e-4, 1e-4]
    )
    assert (settings.betas, settings.weight_decay, settings.clip) == ((0.9, 0.999), 1e-5, 5)


def test_the_recipes_schedule() -> None:
    settings = FinetuneSettings(steps=10_000)
    assert settings.lr_at(0, 0) == pytest.approx(2e-6)
    assert settings.lr_at(499, 0.05) == pytest.approx(1e-3)
    rates = [settings.lr_at(5000, f) for f in (0.5, 0.8999, 0.95, 1)]
    assert rates == pytest.approx([2e-3, 2e-3, 1e-3, 0])
    assert [settings.image_size_at(f) for f in (0, 0.6999, 0.7, 1)] == [16, 16, 32, 32]
    assert [settings.max_macs_at(f) for f in (0, 0.7, 1)] == [6_000_000, 10_000_000, 10_000_000]
    assert [settings.known_architectures(s) for s in (0, 4, 10**6)] == [1000, 1001, 3000]


def test_a_run_without_an_end_may_be_made_longer() -> None:
    constant = FinetuneSettings(
        minutes=5, schedule="constant", image_sizes=((32, 1.0),), max_macs=((None, 1.0),)
    )
    assert constant.open_ended() == replace(constant, minutes=None, steps=9).open_ended()
    decayed = FinetuneSettings(minutes=5)
    assert decayed.open_ended() != replace(decayed, minutes=6).open_ended()


def test_fixed_architectures_are_dealt_out_small_ones_first() -> None:
    draws = []
    for rank in range(2):
        networks = TrainingNetworks(10, 20, seed=0, rank=rank, processes=2)
        steps = [networks.draw(step, 4, 10, 2_000_000, any_size=True) for step in range(50)]
        draws.append({item.index for items in steps for item in items})
        assert all(item.description.any_size for items in steps for item in items)
    assert not draws[0] & draws[1]
    split = ConvNets250K("train")
    first: list[SampledNetwork] = []
    for item in split:
        if item.description.any_size and item.program.macs <= 2_000_000:
            first.append(item)
        if len(first) == 20:
            break
    smallest = sorted(first, key=lambda item: item.program.macs)[:10]
    assert draws[0] | draws[1] == {item.index for item in smallest}


def test_all_architectures_come_once_an_epoch_unless_they_are_too_large() -> None:
    networks = TrainingNetworks(10, ALL_ARCHITECTURES, seed=0)
    wanted = network_indices(250_000, 2, 4, 0)
    drawn = networks.draw(2, 4, 0, None, any_size=False)
    assert [item.index for item in drawn] == wanted
    small = networks.draw(2, 4, 0, 1_000_000, any_size=False)
    assert all(item.program.macs <= 1_000_000 for item in small)
    kept = [item.index for item in drawn if item.program.macs <= 1_000_000]
    assert [item.index for item in small if item.index in wanted] == kept


def test_a_balanced_batch_is_the_same_for_its_number_and_has_as_many_of_each_class(
    digits: ImageSet,
) -> None:
    images = replace(digits.train)
    x, y = balanced_batch(images, 3, 43, seed=1)
    again, _ = balanced_batch(images, 3, 43, seed=1)
    other, _ = balanced_batch(images, 4, 43, seed=1)
    assert torch.equal(x, again)
    assert not torch.equal(x, other)
    assert sorted(y.bincount().tolist()) == [4] * 7 + [5] * 3
    plain, labels = balanced_batch(images, 3, 43, seed=1, augment=None)
    known = images.normalize(images.images)
    for image, label in zip(plain[:5], labels[:5], strict=True):
        at = (known - image).abs().sum((1, 2, 3)).argmin()
        assert torch.equal(known[at], image)
        assert images.labels[at] == label
    without = images.select((images.labels != 4).nonzero().flatten())
    with pytest.raises(DataError, match="'4'"):
        balanced_batch(without, 0, 20, seed=0)


def test_command_line_forms() -> None:
    assert parse_macs("2.5M@0.25,all") == ((2_500_000, 0.25), (None, 1.0))
    with pytest.raises(GhnqError, match=r"10M"):
        parse_macs("5@0.5")
    assert parse_architectures("all") == ALL_ARCHITECTURES
    for wrong in ("0", "many", "-3"):
        with pytest.raises(GhnqError, match="architectures"):
            parse_architectures(wrong)
    assert parse_bits("8,4,2") == ((8, 8), (4, 4), (2, 2))
    assert parse_bits("float, 4/8") == ((32, 32), (4, 8))
    assert parse_image_sizes("16@0.5,32") == ((16, 0.5), (32, 1.0))
    for wrong in ("4/", "x", "1", "4/8/2"):
        with pytest.raises(SchemeError):
            parse_bits(wrong)
    with pytest.raises(GhnqError):
        parse_image_sizes("small")


@pytest.mark.parametrize(
    "wrong",
    [
        {"steps": None},
        {"epochs": 1},
        {"steps": 0},
        {"checkpoint_every": 15, "log_every": 10},
        {"image_sizes": ((32, 0.5),)},
        {"max_macs": ((None, 0.5),)},
        {"average": 1.0},
    ],
)
def test_settings_that_contradict_themselves(wrong: dict[str, object]) -> None:
    with pytest.raises(GhnqError):
        replace(FinetuneSettings(steps=10), **wrong)


def test_an_added_precision_embedding_changes_nothing_until_it_is_trained() -> None:
    graph = ConvNets250K("train")[0].graph
    ghn = GHN.from_pretrained("ghnq-cifar10")
    with torch.no_grad():
        (plain,) = ghn([graph])
        told = ghn.derived(precision_embedding=True)
        (four,) = told([graph], [(4, 8)])
        assert all(torch.equal(four[n], p) for n, p in plain.items())
        assert told.precision is not None
        told.precision.weight.normal_()
        pairs = [told([graph], [bits])[0] for bits in ((4, 8), (8, 4), (4, 8))]
    assert not torch.equal(pairs[0]["stem.conv.weight"], pairs[1]["stem.conv.weight"])
    assert torch.equal(pairs[0]["stem.conv.weight"], pairs[2]["stem.conv.weight"])


def test_validation_is_the_mean_accuracy_of_networks_in_batches_of_64(digits: ImageSet) -> None:
    items = [ConvNets250K("val")[i] for i in range(2)]
    ghn = GHN.from_pretrained("ghnq-cifar10-qat")
    train, val = hold_out(digits.train)
    assert len(train) + len(val) == len(digits.train)
    assert len(hold_out(digits.train, 7)[1]) == 7
    correct = 0
    for item in items:
        network = item.build(initialize=False).train()
        with torch.no_grad():
            (parameters,) = ghn([item.graph])
            for index in torch.arange(128).split(64):
                logits = functional_call(network, parameters, (val.normalize(val.images[index]),))
                correct += int((logits.argmax(1) == val.labels[index]).sum())
    assert validate(ghn, items, val, [(32, 32)], limit=128) == correct / 256


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
    history = killed / "history.csv"
    deadline = time.monotonic() + 120
    while not (history.exists() and len(history.read_text().splitlines()) > 3):
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
    assert _columns(killed) == _columns(whole)
    for name in ("best", "last"):
        files = [load_file(f / name / "model.safetensors") for f in (killed, whole)]
        assert all(torch.equal(files[0][k], files[1][k]) for k in files[0])
    ghn = GHN.from_pretrained("ghnq-cifar10-qat")
    with pytest.raises(CheckpointError, match=r"lr=0\.002"):
        finetune(ghn, digits, replace(settings, lr=1e-3), killed, resume=True, show_progress=False)
    with pytest.raises(GhnqError, match="already holds a run"):
        finetune(ghn, digits, settings, killed, show_progress=False)


def _columns(folder: Path) -> list[dict[str, str]]:
    with (folder / "history.csv").open(newline="") as file:
        return [{k: v for k, v in row.items() if k != "seconds"} for row in csv.DictReader(file)]


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


def finetune_command(data: Path, folder: Path, *options: str) -> list[str]:
    command = [sys.executable, "-W", "ignore", "-m", "ghnq_quant.cli", "finetune"]
    sizes = ("--meta-batch-size", "1", "--image-batch-size", "10", "--architectures", "20")
    fast = ("--image-size", "32", "--max-macs", "2M", "--val-networks", "1", "--val-images", "32")
    settings = (*sizes, *fast, "--schedule", "constant", "--validate-every", "1000")
    return [*command, "--data", str(data), "-o", str(folder), *settings, *options]


def test_processes_that_are_asked_to_stop_save_a_state_to_go_on_from(
    digits: ImageSet, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    options = ("--from", "scratch", "--processes", "2")
    process = subprocess.Popen(
        finetune_command(Path("digits"), folder, "--minutes", "60", *options),
        stdout=subprocess.DEVNULL,
    )
    history = folder / "history.csv"
    deadline = time.monotonic() + 120
    while not (history.exists() and len(history.read_text().splitlines()) > 2):
        assert process.poll() is None, "the run ended before it was stopped"
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 0
    state, _ = read_run_state(folder / "state.safetensors")
    assert state.step > 0
    assert state.step % 10 == 0
    assert state.step == int(history.read_text().splitlines()[-1].split(",")[0])

    # another run goes on from it, with its optimizer and its average
    other = tmp_path / "other"
    command = finetune_command(Path("digits"), other, "--steps", "3", "--from", str(folder))
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, timeout=120)
    gone_on, _ = read_run_state(other / "state.safetensors")
    assert gone_on.step == state.step + 3
    assert gone_on.moments[0]["step"] == state.step + 3
    rows = (other / "history.csv").read_text().splitlines()
    assert rows[1].startswith(f"{state.step},")  # validated before the first step
    (named,) = (p for n, p in gone_on.average.items() if n == "embed.weight")
    moved = (named - state.average["embed.weight"]).norm()
    assert 0 < moved < (gone_on.ghn.embed.weight - state.average["embed.weight"]).norm()


def test_the_average_of_the_weights_is_what_is_validated_and_saved(
    digits: ImageSet, tmp_path: Path
) -> None:
    settings = replace(SETTINGS, steps=3, average=0.5, warmup=0)
    start = GHN.from_pretrained("ghnq-cifar10")
    finetune(start, digits, settings, tmp_path, show_progress=False)
    last = GHN.from_pretrained(tmp_path / "last")
    state, _ = read_run_state(tmp_path / "state.safetensors")
    for name, p in last.named_parameters():
        assert torch.equal(p, state.average[name])
    items = validation_networks(settings.val_networks, 10)
    _, val = hold_out(digits.train)
    top1 = validate(last, items, val, settings.bits, settings.val_images)
    assert float(_columns(tmp_path)[-1]["val_top1"]) == pytest.approx(top1, rel=1e-5)


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


def train(
    start: GHN, images: ImageSet, folder: Path, *, resume: bool = False, **changes: Any
) -> GHN:
    settings = replace(SETTINGS, steps=1, val_networks=1, val_images=8, **changes)
    return finetune(start, images, settings, folder, resume=resume, show_progress=False)


def test_a_run_goes_on_with_the_same_images_and_start_alone(
    tiny_ghn: GHN, digits: ImageSet, tmp_path: Path
) -> None:
    train(tiny_ghn, digits, tmp_path)
    other = replace(digits.train, images=255 - digits.train.images)
    with pytest.raises(CheckpointError, match=r"identity\.images="):
        train(tiny_ghn, ImageSet(digits.name, other, digits.test), tmp_path, resume=True)
    with pytest.raises(CheckpointError, match=r"identity\.start_ghn="):
        train(tiny_ghn.derived(virtual_edges=2), digits, tmp_path, resume=True)
    file = tmp_path / "state.safetensors"
    with safe_open(file, "pt") as opened:
        metadata = opened.metadata()
    settings = json.loads(metadata["settings"])
    del settings["identity"]  # as earlier versions wrote it
    save_file(load_file(file), file, {**metadata, "settings": json.dumps(settings)})
    with pytest.warns(GhnqWarning, match="of an earlier version"):
        train(tiny_ghn, digits, tmp_path, resume=True)


@pytest.mark.parametrize("moment", ["before the state", "before the validation", "by a version"])
def test_a_run_that_was_killed_at_its_start_begins_anew(
    moment: str,
    tiny_ghn: GHN,
    digits: ImageSet,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    train(tiny_ghn, digits, tmp_path / "whole")
    killed = tmp_path / "killed"

    def kill(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    if moment == "by a version":  # an earlier one, that saved its state only after the validation
        killed.mkdir()
        (killed / "history.csv").write_text("step,seconds\n0,1.5\n")
    else:
        name = "RunFolder.save_state" if moment == "before the state" else "validate"
        with monkeypatch.context() as patch:
            patch.setattr(f"ghnq_quant.research.finetuning.loop.{name}", kill)
            with pytest.raises(KeyboardInterrupt):
                train(tiny_ghn, digits, killed)
    train(tiny_ghn, digits, killed, resume=moment != "by a version")
    assert _columns(killed) == _columns(tmp_path / "whole")
    a, b = (load_file(f / "state.safetensors") for f in (killed, tmp_path / "whole"))
    assert all(torch.equal(a[k], b[k]) for k in a)


def test_images_that_the_networks_are_not_made_for(
    tiny_ghn: GHN, digits: ImageSet, tmp_path: Path
) -> None:
    large = replace(digits.train, images=F.pad(digits.train.images, [8] * 4))
    with pytest.raises(DataError, match=r"48×48 pixels; .* made for 32×32"):
        train(tiny_ghn, ImageSet(digits.name, large, digits.test), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_an_error_of_one_of_several_processes_is_told_as_it_is(tmp_path: Path) -> None:
    command = finetune_command(Path("digits"), tmp_path / "run", "--steps", "1", "--resume")
    run = subprocess.run(
        [*command, "--processes", "2"], capture_output=True, text=True, timeout=240
    )
    assert run.returncode == 1
    assert run.stderr.splitlines()[-1].startswith(f"error: {tmp_path / 'run'} holds no run to")


def test_a_data_set_of_other_classes(digits: ImageSet, tmp_path: Path) -> None:
    ghn = GHN(num_classes=3)
    with pytest.raises(DataError, match="10 classes"):
        finetune(ghn, digits, SETTINGS, tmp_path)


def test_a_run_from_scratch_on_three_classes(digits: ImageSet, tmp_path: Path) -> None:
    def three(images: Images) -> Images:
        few = images.labels < 3
        return replace(
            images, images=images.images[few], labels=images.labels[few], classes=("0", "1", "2")
        )

    torch.manual_seed(0)
    ghn = GHN(max_shape=(16, 16, 7, 7), num_classes=3, hid=8)
    data = ImageSet("three digits", three(digits.train), three(digits.test))
    best = finetune(ghn, data, replace(SETTINGS, steps=3), tmp_path)
    item = ConvNets250K("val", num_classes=3)[0]
    (parameters,) = best([item.graph])
    assert parameters["head.classifier.weight"].shape[0] == 3
    assert parameters["head.classifier.bias"].shape == (3,)


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="PyTorch without oneDNN")
def test_kernels_of_more_shapes_than_onednn_keeps_by_default_are_compiled_once() -> None:
    script = """
import torch
from ghnq_quant.research.finetuning.kernel_cache import keep_many_kernels
keep_many_kernels()
for _ in range(2):
    for c in range(1, 1101):
        torch.conv2d(torch.zeros(4, c, 2, 2), torch.zeros(8, c, 1, 1))
"""
    environment = {**os.environ, "ONEDNN_VERBOSE": "profile_create"}
    for name in ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "OMP_NUM_THREADS"):  # one thread: not oneDNN
        environment.pop(name, None)
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    convolutions = [line for line in done.stdout.splitlines() if ",convolution," in line]
    assert sum("create:cache_miss" in line for line in convolutions) == 1100
    assert sum("create:cache_hit" in line for line in convolutions) == 1100
