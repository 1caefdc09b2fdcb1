"""Training of a small GHN-3 on networks of ConvNets-250K."""

from __future__ import annotations

from pathlib import Path

import joblib
import pytest
import torch

from ghnq_quant import GHN
from ghnq_quant.research.data import load_images
from ghnq_quant.research.finetuning import FinetuneSettings, finetune
from ghnq_quant.research.finetuning.state import STATE_FILE, read_run_state, starting_point

SETTINGS = FinetuneSettings(
    steps=4,
    meta_batch_size=2,
    image_batch_size=8,
    architectures=8,
    bits=((32, 32), (4, 4)),
    precision_embedding=True,
    image_sizes=((32, 1.0),),
    max_macs=((6_000_000, 1.0),),
    log_every=1,
    checkpoint_every=2,
    validate_every=2,
    val_networks=2,
    val_images=64,
)


def test_from_scratch() -> None:
    ghn = starting_point("scratch-ghn3", num_classes=7, seed=3).ghn
    assert (ghn.encoder, ghn.num_classes) == ("graphormer", 7)
    assert (ghn.settings["hid"], ghn.heads, ghn.layers, ghn.virtual_edges) == (64, 8, 3, 50)
    for name in ("scratch", "scratch-ghn3"):
        first, again = (starting_point(name, num_classes=7, seed=3).ghn for _ in range(2))
        assert all(map(torch.equal, first.parameters(), again.parameters()))


@pytest.mark.parametrize(("encoder", "virtual_edges"), [("graphormer", 50), ("gated", 10)])
def test_from_a_public_file(encoder: str, virtual_edges: int, tmp_path: Path) -> None:
    ghn = GHN((4, 4, 16, 16), hid=8, encoder=encoder, kernel_cut="corner")
    joblib.dump(ghn.state_dict(), tmp_path / "public.pt")
    started = starting_point(str(tmp_path / "public.pt"), num_classes=10).ghn
    assert (started.encoder, started.virtual_edges) == (encoder, virtual_edges)
    assert torch.equal(started.embed.weight, ghn.embed.weight)


def test_a_run(tmp_path: Path) -> None:
    digits = load_images("digits")
    torch.manual_seed(0)
    ghn = GHN((16, 16, 11, 11), hid=16, encoder="graphormer", heads=4, layers=2)
    before = {name: p.detach().clone() for name, p in ghn.named_parameters()}
    best = finetune(ghn, digits, SETTINGS, tmp_path)
    moved = {name for name, p in before.items() if not torch.equal(best.get_parameter(name), p)}
    assert {"gnn.1.attn.to_qkv.weight", "gnn.0.attn.proj_e.0.weight", "gnn.1.ln2.bias"} <= moved
    assert best.precision is not None
    assert best.precision.weight.count_nonzero() > 0
    state, _ = read_run_state(tmp_path / STATE_FILE)
    assert state.step == 4
    assert (state.ghn.encoder, state.ghn.heads, state.ghn.layers) == ("graphormer", 4, 2)
    resumed = finetune(ghn, digits, SETTINGS, tmp_path, resume=True)
    loaded = GHN.from_pretrained(tmp_path / "best")
    for name, p in best.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], p), name
        assert torch.equal(loaded.state_dict()[name], p), name
