"""Files made in the formats of GHN-3's authors: their content, and that they run no code."""

from __future__ import annotations

import os
import pickle
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import joblib
import pytest
import torch
from torch import Tensor

from ghnq_quant import GHN, CheckpointError
from ghnq_quant.ghn import ghn3_checkpoints

SETTINGS: dict[str, Any] = {
    "max_shape": (8, 8, 16, 16),
    "num_classes": 7,
    "hid": 8,
    "encoder": "graphormer",
    "heads": 8,
    "layers": 2,
}


@pytest.fixture
def ghn() -> GHN:
    torch.manual_seed(0)
    return GHN(**SETTINGS).eval()


def published(ghn: GHN) -> OrderedDict[str, Tensor]:
    """The state dict with the names in the Hub's files."""
    tables = ("centrality_embed_in", "centrality_embed_out", "input_dist_embed")
    return OrderedDict(
        (name.removeprefix("gnn.0.") if any(t in name for t in tables) else name, w)
        for name, w in ghn.state_dict().items()
    )


def saved(path: Path, ghn: GHN) -> Path:
    joblib.dump(published(ghn), path)
    return path


def equal(a: GHN, b: GHN) -> bool:
    x, y = a.state_dict(), b.state_dict()
    return x.keys() == y.keys() and all(torch.equal(x[k], y[k]) for k in x)


def test_a_file_of_the_hub(ghn: GHN, tmp_path: Path) -> None:
    path = saved(tmp_path / "ghn3.pt", ghn)
    state = torch.get_rng_state()
    loaded = GHN.from_ghn3(path)
    assert torch.equal(torch.get_rng_state(), state)
    assert equal(loaded, ghn)
    assert loaded.settings == {**ghn.settings, "max_shape": [8, 8, 16, 16]}
    assert not loaded.training
    assert all(p.requires_grad and p.dtype == torch.float32 for p in loaded.parameters())
    assert equal(GHN.from_pretrained(path), ghn)


def test_present_names_and_half_precision(ghn: GHN, tmp_path: Path) -> None:
    ghn.half()
    joblib.dump(ghn.state_dict(), tmp_path / "ghn3.pt")
    loaded = GHN.from_ghn3(str(tmp_path / "ghn3.pt"))
    assert equal(loaded, ghn.float())


def test_a_file_of_their_training(tmp_path: Path) -> None:
    """It has a config, which describes a decoder of unequal widths."""
    ghn = GHN(**{**SETTINGS, "max_shape": (12, 6, 16, 16)})
    config = {"max_shape": (12, 6, 16, 16), "hid": 8, "heads": 8, "layers": 2, "is_ghn2": False}
    content = {"state_dict": ghn.state_dict(), "optimizer": {}, "epoch": 3, "config": config}
    torch.save(content, tmp_path / "checkpoint.pt")
    loaded = GHN.from_ghn3(tmp_path / "checkpoint.pt")
    assert equal(loaded, ghn)
    assert loaded.max_shape == (12, 6, 16, 16)


@pytest.mark.parametrize("linear", [True, False])
@pytest.mark.parametrize("side", [11, 16])
def test_a_ghn2(linear: bool, side: int, tmp_path: Path) -> None:
    ghn = GHN((6, 6, side, side), 7, 8, virtual_edges=50, kernel_cut="corner")
    state = ghn.state_dict()
    if linear:
        state = {k: w.flatten(1) if w.dim() == 4 else w for k, w in state.items()}
    joblib.dump(OrderedDict(state), tmp_path / "ghn2.pt")
    loaded = GHN.from_ghn3(tmp_path / "ghn2.pt")
    assert equal(loaded, ghn)
    assert loaded.settings == {**ghn.settings, "max_shape": [6, 6, side, side]}


def test_a_file_of_ppuda(formula_checkpoint: Path) -> None:
    loaded = GHN.from_ghn3(formula_checkpoint)
    expected = GHN.from_ppuda(formula_checkpoint)
    assert equal(loaded, expected)
    assert loaded.settings == expected.settings


@pytest.mark.parametrize(("hid", "heads"), [(64, 8), (80, 16), (8, 2)])
def test_any_number_of_heads(hid: int, heads: int, tmp_path: Path) -> None:
    ghn = GHN((2, 2, 16, 16), 7, hid, encoder="graphormer", heads=heads, layers=1)
    assert GHN.from_ghn3(saved(tmp_path / "ghn3.pt", ghn)).heads == heads


def test_to_a_folder_and_back(ghn: GHN, tmp_path: Path) -> None:
    GHN.from_ghn3(saved(tmp_path / "ghn3.pt", ghn)).save_pretrained(tmp_path / "folder")
    assert equal(GHN.from_pretrained(tmp_path / "folder"), ghn)


def test_from_the_hub(ghn: GHN, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = saved(tmp_path / "cached", ghn)
    asked = []

    def download(repository: str, filename: str, **settings: Any) -> str:
        asked.append((repository, filename, settings))
        return str(path)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(ghn3_checkpoints, "hf_hub_download", download)
    assert equal(GHN.from_ghn3("ghn3tm8.pt"), ghn)
    assert equal(GHN.from_pretrained("somebody/ghn", filename="x.pt", revision="main"), ghn)
    assert asked == [
        ("SamsungSAILMontreal/ghn3", "ghn3tm8.pt", {}),
        ("somebody/ghn", "x.pt", {"revision": "main"}),
    ]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("ghn3tm8.pt", "cannot be downloaded from SamsungSAILMontreal/ghn3"),
        ("folder/ghn3tm8.pt", "no such checkpoint file"),
        ("ghn3tm8", "no such checkpoint file"),
    ],
)
def test_files_that_are_not_there(
    name: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError, match=message):
        GHN.from_ghn3(name)


# --- damaged, unsafe and foreign files -----------------------------------------------------------


class Calls:
    """Pickles as a call."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple[Any, ...]:
        return self.call


class Updates:
    """Pickles as an OrderedDict with the attributes of ``self``."""

    def __init__(self, state: Any) -> None:
        self.state = state

    def __reduce__(self) -> tuple[Any, ...]:
        return OrderedDict, (), self.state


def payloads(folder: Path) -> dict[str, Any]:
    """Objects that run code when ``pickle.load`` unpickles them: they make a folder ``ran``."""
    makes = Calls(os.mkdir, str(folder / "ran"))
    code = f"import os; os.mkdir({str(folder / 'ran')!r})"
    nested = pickle.dumps(makes)
    return {
        "a call": makes,
        "eval": Calls(eval, f"__import__('os').mkdir({str(folder / 'ran')!r})"),
        "exec": Calls(exec, code),
        "getattr": Calls(getattr, Calls(__import__, "os"), "mkdir"),
        "in place of a tensor": OrderedDict(weight=makes),
        "in an attribute": Updates({"_metadata": makes}),
        "in a nested file": OrderedDict(weight=Calls(torch.storage._load_from_bytes, nested)),
        "in the arguments of a tensor": OrderedDict(
            weight=Calls(torch._utils._rebuild_tensor_v2, makes, 0, (2,), (1,), False, {})
        ),
    }


@pytest.mark.parametrize("name", payloads(Path()))
def test_payloads_do_not_run(name: str, tmp_path: Path) -> None:
    for protocol in (2, pickle.HIGHEST_PROTOCOL):
        path = tmp_path / "ghn3.pt"
        path.write_bytes(pickle.dumps(payloads(tmp_path)[name], protocol))
        with pytest.raises(CheckpointError, match="not loaded") as caught:
            GHN.from_ghn3(path)
        assert str(path) in str(caught.value)
        assert not (tmp_path / "ran").exists()
    torch.save({"state_dict": payloads(tmp_path)[name], "config": {}}, path)
    with pytest.raises(CheckpointError):
        GHN.from_ghn3(path)
    assert not (tmp_path / "ran").exists()


def outside(offset: int, shape: tuple[int, ...], stride: tuple[int, ...]) -> Any:
    """A tensor that reads values before or after its storage."""
    content = torch.ones(4).storage().__reduce__()[1][0]
    values = Calls(torch.storage._load_from_bytes, content)
    return Calls(torch._utils._rebuild_tensor_v2, values, offset, shape, stride, False, {})


@pytest.mark.filterwarnings("ignore:TypedStorage is deprecated")
@pytest.mark.parametrize(
    "place",
    [(0, (5,), (1,)), (4, (1,), (1,)), (-1, (2,), (1,)), (0, (2, 2), (3, 1)), (3, (2,), (-1,))],
)
def test_tensors_outside_of_their_values(place: Any, tmp_path: Path) -> None:
    path = tmp_path / "ghn3.pt"
    path.write_bytes(pickle.dumps(OrderedDict(weight=outside(*place))))
    with pytest.raises(CheckpointError, match="not loaded"):
        GHN.from_ghn3(path)


def change(path: Path, ghn: GHN, **changes: Any) -> None:
    """Save with changed tensors; None leaves one out."""
    state = {**published(ghn), **{k.replace("__", "."): w for k, w in changes.items()}}
    joblib.dump(OrderedDict((k, w) for k, w in state.items() if w is not None), path)


DAMAGE: dict[str, tuple[Callable[[Path, GHN], Any], str]] = {
    "truncated": (lambda p, _: p.write_bytes(p.read_bytes()[:20_000]), "not loaded"),
    "empty": (lambda p, _: p.write_bytes(b""), "not loaded"),
    "text": (lambda p, _: p.write_text("not a checkpoint"), "not loaded"),
    "compressed": (lambda p, g: joblib.dump(published(g), p, compress=3), "compressed"),
    "a list": (lambda p, _: joblib.dump([1, 2], p), "no state dict"),
    "nothing in it": (lambda p, _: joblib.dump({}, p), "no state dict"),
    "numbers": (lambda p, _: joblib.dump({"a": 1}, p), "no state dict"),
    "of something else": (lambda p, _: joblib.dump({"a": torch.ones(1)}, p), "LookupError"),
    "no layers": (
        lambda p, g: joblib.dump(
            {k: w for k, w in published(g).items() if not k.startswith("gnn")}, p
        ),
        "neither a gated GNN nor a transformer",
    ),
    "a tensor missing": (lambda p, g: change(p, g, ln__bias=None), "ln.bias"),
    "a tensor too many": (lambda p, g: change(p, g, z=torch.ones(1)), "Unexpected key"),
    "a wrong shape": (lambda p, g: change(p, g, ln__bias=torch.ones(3)), "size mismatch"),
    "a folder": (lambda p, _: (p.unlink(), p.mkdir()), "no such file"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_bad_files(name: str, ghn: GHN, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)
    damage, message = DAMAGE[name]
    path = saved(Path("ghn3.pt"), ghn)
    damage(path, ghn)
    with pytest.raises(CheckpointError, match=message) as caught:
        GHN.from_ghn3(path)
    assert "ghn3.pt" in str(caught.value)
