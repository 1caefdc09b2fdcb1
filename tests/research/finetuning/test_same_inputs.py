"""A resumed run uses the inputs that it began with, whenever it was killed."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from finetuning_setting import SETTINGS, history
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from ghnq_quant import GHN, CheckpointError, DataError, GhnqError, GhnqWarning
from ghnq_quant.research.data import ImageSet
from ghnq_quant.research.finetuning import finetune
from ghnq_quant.research.finetuning.processes import start_group
from ghnq_quant.research.networks.splits import find_split


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
    with pytest.raises(CheckpointError, match=r"lr=0\.002 \(now 0\.001\)"):
        train(tiny_ghn, digits, tmp_path, resume=True, lr=1e-3)
    with pytest.raises(GhnqError, match="already holds a run"):
        train(tiny_ghn, digits, tmp_path)
    file = tmp_path / "state.safetensors"
    with safe_open(file, "pt") as opened:
        metadata = opened.metadata()
    settings = json.loads(metadata["settings"])
    added = "identity", "bits_per", "precision_decoder", "range_gradient"
    for key in added:  # as earlier versions wrote it
        del settings[key]
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
    assert history(killed) == history(tmp_path / "whole")
    a, b = (load_file(f / "state.safetensors") for f in (killed, tmp_path / "whole"))
    assert all(torch.equal(a[k], b[k]) for k in a)


def test_images_that_the_networks_are_not_made_for(
    tiny_ghn: GHN, digits: ImageSet, tmp_path: Path
) -> None:
    large = replace(digits.train, images=F.pad(digits.train.images, [8] * 4))
    with pytest.raises(DataError, match=r"48×48 pixels; .* made for 32×32"):
        train(tiny_ghn, ImageSet(digits.name, large, digits.test), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_an_error_of_one_of_several_processes_is_told_as_it_is() -> None:
    with pytest.raises(GhnqError, match=r"^no split 'none' of ConvNets-250K"):
        start_group(2, find_split, "none")
