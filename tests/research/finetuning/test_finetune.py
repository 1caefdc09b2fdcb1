"""The finetuning loop: validation, averages, classes, and steps that fail."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from finetuning_setting import SETTINGS, history
from torch.func import functional_call

from ghnq_quant import GHN, DataError, GhnqError
from ghnq_quant.research.data import Images, ImageSet, hold_out
from ghnq_quant.research.finetuning import finetune, starting_point
from ghnq_quant.research.finetuning.validation import validate, validation_networks
from ghnq_quant.research.networks import ConvNets250K


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


def test_a_run_trains_what_tells_the_precision(digits: ImageSet, tmp_path: Path) -> None:
    settings = replace(SETTINGS, steps=2, warmup=0, bits=((32, 32), (4, 4)), bits_per="network")
    start = GHN.from_pretrained("ghnq-cifar10")
    finetune(start, digits, replace(settings, precision_decoder=True), tmp_path / "first")
    state = starting_point(str(tmp_path / "first"), 10)
    assert state.ghn.precision_decoder is not None
    assert state.ghn.precision_decoder.weight.count_nonzero() > 0
    # a run that continues it keeps the part, and its optimizer's moments
    finetune(state, digits, settings, tmp_path / "second")
    ended = starting_point(str(tmp_path / "second"), 10)
    assert ended.ghn.precision_decoder is not None
    assert ended.moments.keys() == state.moments.keys()


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


def test_the_average_of_the_weights_is_what_is_validated_and_saved(
    digits: ImageSet, tmp_path: Path
) -> None:
    settings = replace(SETTINGS, steps=3, average=0.5, warmup=0)
    start = GHN.from_pretrained("ghnq-cifar10")
    finetune(start, digits, settings, tmp_path, show_progress=False)
    last = GHN.from_pretrained(tmp_path / "last")
    state = starting_point(str(tmp_path), 10)
    for name, p in last.named_parameters():
        assert torch.equal(p, state.average[name])
    items = validation_networks(settings.val_networks, 10)
    _, val = hold_out(digits.train)
    top1 = validate(last, items, val, settings.bits, settings.val_images)
    assert float(history(tmp_path)[-1]["val_top1"]) == pytest.approx(top1, rel=1e-5)


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
