"""Checkpoints of the hypernetwork: both formats, round trips, damaged and unsafe files."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from ghn2_vectors import VECTORS
from safetensors.torch import load_file, save_file
from torch import nn

import ghnq_quant
from ghnq_quant import GHN, CheckpointError
from ghnq_quant.capture import capture

SIZES: dict[str, Any] = {"max_shape": [8, 6, 3, 3], "num_classes": 7, "hid": 8}
CONFIG = {
    "hypernet": "gatedgnn",
    "decoder": "conv",
    "weight_norm": True,
    "ve": True,
    "layernorm": True,
}


@pytest.fixture
def ghn() -> GHN:
    torch.manual_seed(0)
    return GHN(**SIZES, virtual_edges=5, provenance={"name": "of a test"}).eval()


def public(path: Path, ghn: GHN, **changes: Any) -> Path:
    """A checkpoint in the public format; a change of None leaves the setting out."""
    config = {k: v for k, v in {**SIZES, **CONFIG, **changes}.items() if v is not None}
    torch.save({"config": config, "state_dict": ghn.state_dict(), "epoch": 3}, path)
    return path


def equal(a: GHN, b: GHN) -> bool:
    x, y = a.state_dict(), b.state_dict()
    return x.keys() == y.keys() and all(torch.equal(x[k], y[k]) for k in x)


def test_public_format(ghn: GHN, tmp_path: Path) -> None:
    path = public(tmp_path / "ghn2.pt", ghn)
    loaded = GHN.from_ppuda(path, virtual_edges=11)
    assert equal(loaded, ghn)
    assert loaded.max_shape == (8, 6, 3, 3)
    assert (loaded.num_classes, loaded.virtual_edges, loaded.training) == (7, 11, False)
    assert GHN.from_ppuda(str(path)).virtual_edges == 50


def test_public_format_names_and_shapes(formula_checkpoint: Path) -> None:
    loaded = GHN.from_ppuda(formula_checkpoint)
    shapes = {k: list(p.shape) for k, p in loaded.state_dict().items()}
    assert shapes == VECTORS["state_keys"]


def test_public_format_without_hid_has_32(tmp_path: Path) -> None:
    ghn = GHN(max_shape=(8, 8, 3, 3), num_classes=7)
    path = public(tmp_path / "ghn2.pt", ghn, max_shape=(8, 8, 3, 3), hid=None)
    assert equal(GHN.from_ppuda(path), ghn)


def test_bootstrap_checkpoint_is_what_was_trained_in_half_precision() -> None:
    state = GHN.from_pretrained("ghn2-cifar10-bootstrap").state_dict()
    halves = [state[name].half() for name in sorted(state)]
    assert all(torch.equal(h.float(), state[n]) for h, n in zip(halves, sorted(state), strict=True))
    digest = hashlib.sha256(b"".join(h.numpy().tobytes() for h in halves)).hexdigest()
    assert digest == "7a4e6f5ec17d421ab9c0fe17cc0ef31f7ab9aa71e5822f3184a0e3edfce90a5e"


@pytest.mark.parametrize("name", ["ghnq-cifar10", "ghnq-cifar10-qat"])
def test_shipped_checkpoint_says_how_it_was_made(name: str) -> None:
    ghn = GHN.from_pretrained(name)
    assert (ghn.num_classes, ghn.max_shape, ghn.virtual_edges) == (10, (64, 64, 11, 11), 10)
    assert not ghn.training
    assert {p.dtype for p in ghn.parameters()} == {torch.float32}
    assert ghn.provenance is not None
    assert ghn.provenance["name"] == name
    assert {"dataset", "settings", "training", "parent"} <= ghn.provenance.keys()
    assert (ghn.precision_decoder is not None) == (name == "ghnq-cifar10-qat")
    card = Path(ghnq_quant.__file__).parent / "checkpoints" / name / "README.md"
    assert ghn.provenance["training"] in card.read_text("utf-8")


def test_folder_round_trip(ghn: GHN, tmp_path: Path) -> None:
    ghn.save_pretrained(tmp_path / "saved")
    assert {p.name for p in (tmp_path / "saved").iterdir()} >= {"config.json", "model.safetensors"}
    config = json.loads((tmp_path / "saved" / "config.json").read_text())
    assert config == {
        **SIZES,
        "virtual_edges": 5,
        "precision_embedding": False,
        "new_batch_norms": False,
        "kernel_cut": "centre",
        "provenance": {"name": "of a test"},
    }
    for name in (tmp_path / "saved", str(tmp_path / "saved")):
        loaded = GHN.from_pretrained(name)
        assert equal(loaded, ghn)
        assert loaded.virtual_edges == 5
        assert loaded.provenance == {"name": "of a test"}
        assert not loaded.training


def test_from_the_public_format_to_a_folder_and_back(ghn: GHN, tmp_path: Path) -> None:
    converted = GHN.from_ppuda(public(tmp_path / "ghn2.pt", ghn), virtual_edges=13)
    converted.save_pretrained(tmp_path / "folder")
    loaded = GHN.from_pretrained(tmp_path / "folder")
    assert equal(loaded, ghn)
    assert loaded.virtual_edges == 13
    graph = capture(nn.Sequential(nn.Conv2d(3, 9, 3), nn.BatchNorm2d(9))).arch_graph
    with torch.no_grad():
        (a,), (b,) = converted([graph]), loaded([graph])
    assert all(torch.equal(a[k], b[k]) for k in a)


def test_precision_and_new_batch_norms_round_trip(tmp_path: Path) -> None:
    ghn = GHN(**SIZES, precision_embedding=True, precision_decoder=True, new_batch_norms=True)
    assert ghn.precision is not None
    assert ghn.precision_decoder is not None
    nn.init.normal_(ghn.precision.weight)
    nn.init.normal_(ghn.precision_decoder.weight)
    ghn.save_pretrained(tmp_path)
    loaded = GHN.from_pretrained(tmp_path)
    assert equal(loaded, ghn)
    assert loaded.new_batch_norms


def test_how_kernels_are_cut(ghn: GHN, tmp_path: Path) -> None:
    """As in GHN-2 if the checkpoint comes from one, or is older than the setting."""
    assert GHN.from_ppuda(public(tmp_path / "ghn2.pt", ghn)).decoder.kernel_cut == "corner"
    assert GHN.from_pretrained("ghn2-cifar10-bootstrap").decoder.kernel_cut == "corner"
    for name in ("ghnq-cifar10", "ghnq-cifar10-qat"):
        assert GHN.from_pretrained(name).decoder.kernel_cut == "centre"
    for cut in ("centre", "corner"):
        ghn.derived(kernel_cut=cut).save_pretrained(tmp_path / cut)
        assert GHN.from_pretrained(tmp_path / cut).decoder.kernel_cut == cut
    settings = json.loads((tmp_path / "centre" / "config.json").read_text())
    del settings["kernel_cut"]
    (tmp_path / "centre" / "config.json").write_text(json.dumps(settings))
    assert GHN.from_pretrained(tmp_path / "centre").decoder.kernel_cut == "corner"


def test_half_precision_on_disk_is_float32_in_memory(ghn: GHN, tmp_path: Path) -> None:
    expected = ghn.state_dict()["embed.weight"].half().float()
    ghn.half().save_pretrained(tmp_path)
    assert load_file(tmp_path / "model.safetensors")["embed.weight"].dtype == torch.float16
    assert torch.equal(GHN.from_pretrained(tmp_path).state_dict()["embed.weight"], expected)


def test_loading_says_nothing(ghn: GHN, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ghn.save_pretrained(tmp_path)
    GHN.from_pretrained(tmp_path)
    GHN.from_ppuda(public(tmp_path / "ghn2.pt", ghn))
    assert capsys.readouterr() == ("", "")


# --- damaged, unsafe and foreign files -----------------------------------------------------------


class RunsCode:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def halved(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def with_payload(path: Path, ghn: GHN) -> None:
    content = {"config": RunsCode(path.parent / "ran"), "state_dict": ghn.state_dict()}
    torch.save(content, path)


def plain_pickle(path: Path, _: GHN) -> None:
    path.write_bytes(pickle.dumps(RunsCode(path.parent / "ran")))


def state_of(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path, GHN], None]:
    def damage(path: Path, ghn: GHN) -> None:
        content = {"config": {**SIZES, **CONFIG}, "state_dict": dict(ghn.state_dict())}
        change(content)
        torch.save(content, path)

    return damage


def reshaped(content: dict[str, Any]) -> None:
    content["state_dict"]["embed.weight"] = torch.zeros(15, 9)


PUBLIC_DAMAGE: dict[str, tuple[Callable[[Path, GHN], Any], str]] = {
    "truncated": (lambda p, _: halved(p), "damaged or not a PyTorch checkpoint"),
    "empty": (lambda p, _: p.write_bytes(b""), "damaged or not a PyTorch checkpoint"),
    "text": (lambda p, _: p.write_text("not a checkpoint"), "or is not a checkpoint at all"),
    "missing": (lambda p, _: p.unlink(), "no such checkpoint file"),
    "folder": (lambda p, _: (p.unlink(), p.mkdir()), "no such checkpoint file"),
    "payload in the config": (with_payload, "could run code"),
    "payload as a pickle": (plain_pickle, "could run code"),
    "a bare state dict": (lambda p, g: torch.save(g.state_dict(), p), "no `config`"),
    "a tensor": (lambda p, _: torch.save(torch.zeros(3), p), "no `config`"),
    "without virtual edges": (lambda p, g: public(p, g, ve=False), "ve=False, expected True"),
    "another decoder": (lambda p, g: public(p, g, decoder="mlp"), "decoder='mlp'"),
    "a setting left out": (lambda p, g: public(p, g, layernorm=None), "layernorm=None"),
    "no sizes": (lambda p, g: public(p, g, max_shape=None), "max_shape"),
    "sizes of words": (lambda p, g: public(p, g, num_classes="ten"), "num_classes"),
    "three sizes": (lambda p, g: public(p, g, max_shape=(8, 6, 3)), "max_shape"),
    "config of another type": (state_of(lambda c: c.update(config=[1])), "config"),
    "state of another type": (state_of(lambda c: c.update(state_dict=[1])), "state_dict"),
    "a key missing": (state_of(lambda c: c["state_dict"].pop("ln.bias")), "ln.bias"),
    "a key too many": (
        state_of(lambda c: c["state_dict"].update(z=torch.ones(1))),
        "Unexpected key",
    ),
    "a wrong shape": (state_of(reshaped), "size mismatch for embed.weight"),
    "beyond any memory": (lambda p, g: public(p, g, hid=10**7), "size mismatch"),
}


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("name", PUBLIC_DAMAGE)
def test_bad_public_checkpoints(name: str, ghn: GHN, tmp_path: Path) -> None:
    damage, message = PUBLIC_DAMAGE[name]
    path = public(tmp_path / "ghn2.pt", ghn)
    damage(path, ghn)
    with pytest.raises(CheckpointError, match=message) as caught:
        GHN.from_ppuda(path)
    assert str(path) in str(caught.value)
    assert not (tmp_path / "ran").exists()


def pickled_instead(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    torch.save({"a": RunsCode(folder / "ran")}, folder / "pytorch_model.bin")


def tensors(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    state = load_file(folder / "model.safetensors")
    change(state)
    save_file(state, folder / "model.safetensors")


def config(folder: Path, **changes: Any) -> None:
    content = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**content, **changes}))


FOLDER_DAMAGE: dict[str, tuple[Callable[[Path], Any], str]] = {
    "missing folder": (shutil.rmtree, "no such folder"),
    "empty folder": (lambda f: (shutil.rmtree(f), f.mkdir()), "has no config.json"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "has no model.safetensors"),
    "a pickle instead": (pickled_instead, "has no model.safetensors"),
    "truncated weights": (lambda f: halved(f / "model.safetensors"), "SafetensorError"),
    "empty weights": (lambda f: (f / "model.safetensors").write_bytes(b""), "SafetensorError"),
    "truncated config": (lambda f: halved(f / "config.json"), "JSONDecodeError"),
    "no config": (lambda f: (f / "config.json").unlink(), "has no config.json"),
    "a tensor missing": (lambda f: tensors(f, lambda s: s.pop("ln.weight")), "ln.weight"),
    "a tensor too many": (
        lambda f: tensors(f, lambda s: s.update(z=torch.ones(1))),
        r"Unexpected key.*\"z\"",
    ),
    "a wrong shape": (
        lambda f: tensors(f, lambda s: s.update({"ln.weight": torch.ones(3)})),
        "size mismatch for ln.weight",
    ),
    **{
        f"{setting}={value}": (partial(config, **{setting: value}), message)
        for setting, value, message in (
            ("hid", 16, "size mismatch"),
            ("hid", "many", "hid takes whole numbers from 1, not 'many'"),
            ("hid", 10**7, "size mismatch for ln.weight"),  # no memory would be large enough
            ("kernel_cut", "edge", "ValueError: kernel_cut is"),
            ("new_batch_norms", "no", "new_batch_norms is true or false, not 'no'"),
            ("precision_embedding", 1, "precision_embedding is true or false, not 1"),
            ("precision_decoder", 1, "precision_decoder is true or false, not 1"),
            ("virtual_edges", -5, "virtual_edges takes whole numbers from 1, not -5"),
            ("virtual_edges", 0, "not 0"),
            ("virtual_edges", 1.5, "not 1.5"),
            ("num_classes", True, "num_classes takes whole numbers"),
            ("max_shape", [64, 64, 11], "max_shape is four whole numbers"),
        )
    },
}


@pytest.mark.parametrize("name", FOLDER_DAMAGE)
def test_bad_folders(name: str, ghn: GHN, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    damage, message = FOLDER_DAMAGE[name]
    folder = tmp_path / "saved"
    ghn.save_pretrained(folder)
    damage(folder)
    with pytest.raises(CheckpointError, match=message) as caught:
        GHN.from_pretrained(folder)
    assert str(folder) in str(caught.value)
    assert not (folder / "ran").exists()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("runs/best", "no such folder"),
        (Path("owner/name"), "no such folder"),
        ("ghnq-nowhere", "cannot load the checkpoint 'ghnq-nowhere'"),
        ("somebody/ghnq-nowhere", "cannot load the checkpoint 'somebody/ghnq-nowhere'"),
        ("../checkpoints/ghnq-cifar10", "no such folder"),
        ("a/b/c", "no such folder"),
        ("", "has no config.json"),
    ],
)
def test_names_of_no_checkpoint(
    name: str | Path, message: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    with pytest.raises(CheckpointError, match=message):
        GHN.from_pretrained(name)
