"""GHN-3 and timm: graphs equal torchvision's, and the page's model for timm's train.py."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest
import timm
import torch
import torchvision
from doc_pages import blocks

from ghnq_quant import GHN
from ghnq_quant.capture import ArchGraph, capture


def shapes_of(graph: ArchGraph) -> list[tuple[int, ...]]:
    """Shapes of all nodes; some linear layers are 1×1 convolutions in the other zoo."""
    return sorted((*node.shape, 1, 1, 1)[:4] for node in graph.nodes if node.shape)


@pytest.mark.parametrize(
    ("torchvision_name", "timm_name"),
    [
        ("resnet50", "resnet50"),
        ("mobilenet_v2", "mobilenetv2_100"),
        ("efficientnet_b0", "efficientnet_b0"),
        ("mobilenet_v3_small", "mobilenetv3_small_100"),
        ("convnext_tiny", "convnext_tiny"),
        ("densenet121", "densenet121"),
        ("swin_t", "swin_tiny_patch4_window7_224"),
    ],
)
def test_graphs_are_those_of_torchvision(torchvision_name: str, timm_name: str) -> None:
    with torch.device("meta"):
        models = torchvision.models.get_model(torchvision_name), timm.create_model(timm_name)
    expected, graph = (capture(m, attention=True).arch_graph_by("ghn3") for m in models)
    assert graph.counts() == expected.counts()
    paths, wanted = graph.shortest_paths(50), expected.shortest_paths(50)
    assert (len(paths.length), paths.length.sum()) == (len(wanted.length), wanted.length.sum())
    assert shapes_of(graph) == shapes_of(expected)
    assert graph.classifier_weight is not None


def test_the_model_that_the_page_registers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = next(b.code for b in blocks("docs/how-to/imagenet.md") if "register_model" in b.code)
    (tmp_path / "quantized_resnet.py").write_text(code)
    sizes = {"heads": 2, "layers": 1}
    GHN((8, 8, 16, 16), 1000, 8, encoder="graphormer", **sizes).save_pretrained(
        tmp_path / "ghn3-xl"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    importlib.import_module("quantized_resnet")
    model = timm.create_model("resnet50_w4a4", num_classes=1000)
    assert sum(p.numel() for p in model.parameters()) == 25_557_032
    assert not hasattr(model, "pretrained_cfg")
