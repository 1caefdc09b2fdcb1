"""GHN-3 equals numbers of the public implementation with closed-form parameters."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from gradient_check import check_gradients
from torch import Tensor, nn

from ghnq_quant import GHN
from ghnq_quant.capture import ArchGraph, capture
from ghnq_quant.ghn import cpu_decoder
from ghnq_quant.ghn.graphormer import find_places
from ghnq_quant.research.networks import ConvNets250K

DATA = Path(__file__).parents[1] / "data" / "ghn3"
TINY: dict[str, Any] = json.loads((DATA / "tiny.json").read_text())
TORCHVISION: dict[str, Any] = json.loads((DATA / "torchvision.json").read_text())


class Tiny(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, 2, 1, bias=False)
        self.bn1, self.bn2 = nn.BatchNorm2d(16), nn.BatchNorm2d(16)
        self.dw = nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.pw, self.asym = nn.Conv2d(16, 48, 1), nn.Conv2d(48, 48, (1, 7), padding=(0, 3))
        self.pool, self.fc = nn.MaxPool2d(2), nn.Linear(48, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.bn1(self.stem(x)))
        x = x + torch.relu(self.bn2(self.dw(x)))
        return self.fc(self.pool(torch.relu(self.asym(self.pw(x)))).mean((2, 3)))


def closed_form(ghn: GHN) -> GHN:
    """The same hypernetwork with the parameters behind the numbers."""
    state = ghn.state_dict()
    for rank, name in enumerate(sorted(state)):
        w = state[name]
        s = np.sin(0.7 * np.arange(w.numel()) + 1.3 * rank)
        if name.endswith(("ln.weight", "ln1.weight", "ln2.weight")):
            values = 1 + 0.1 * s
        elif w.dim() == 2 and "embed" not in name:
            values = 1.5 * s / math.sqrt(w.shape[1])
        else:
            values = 0.3 * s
        state[name] = torch.from_numpy(values).to(w.dtype).view(w.shape)
    ghn.load_state_dict(state)
    return ghn.eval()


@pytest.fixture(scope="module")
def ghn() -> GHN:
    return closed_form(
        GHN(
            encoder="graphormer",
            hid=32,
            heads=8,
            layers=3,
            max_shape=(32, 32, 16, 16),
            num_classes=10,
        )
    )


@pytest.fixture(scope="module")
def tiny() -> ArchGraph:
    return capture(Tiny()).arch_graph_by("ghn3")


def close(actual: Tensor, expected: Any, bound: float = 2e-6) -> None:
    torch.testing.assert_close(actual, torch.tensor(expected), rtol=bound, atol=bound)


def test_parameters(ghn: GHN) -> None:
    assert (ghn.virtual_edges, ghn.decoder.kernel_cut) == (50, "centre")
    assert sum(p.numel() for p in ghn.parameters()) == 1_475_124
    names = sorted(ghn.state_dict())
    assert (len(names), names[0]) == (60, "bias_class.1.bias")
    assert names[-1] == "shape_enc.embed_spatial.weight"


@pytest.mark.parametrize(
    ("hid", "layers", "heads", "count"),
    [
        (64, 3, 8, 6_906_632),
        (128, 5, 16, 35_810_368),
        (256, 12, 16, 214_668_960),
        (384, 24, 16, 654_365_184),
    ],
)
def test_published_sizes(hid: int, layers: int, heads: int, count: int) -> None:
    with torch.device("meta"):
        ghn = GHN((hid, hid, 16, 16), 1000, hid, encoder="graphormer", heads=heads, layers=layers)
    assert sum(p.numel() for p in ghn.parameters()) == count


def test_graph_of_tiny(ghn: GHN, tiny: ArchGraph) -> None:
    nodes = [[node.primitive, next(iter(node.parameters), None)] for node in tiny.nodes]
    assert nodes == TINY["nodes"]
    assert sorted(tiny.edges.tolist()) == TINY["edges"]
    paths = tiny.shortest_paths(50)
    assert (paths.length.sum(), len(paths.length)) == (479, 105)
    rows = ghn.shape_enc.rows(tiny).tolist()
    assert [rows[i] for i in (0, 1, 3, 9, 11, 14)] == [
        *([391, 391, 10, 10], [4, 1, 1, 1], [4, 0, 1, 1]),
        *([8, 8, 0, 3], [0, 0, 1, 1], [3, 0, 0, 0]),
    ]
    places = find_places(tiny, 50)
    assert places.in_degree.tolist() == [0, 1, 1, 1, 1, 1, 2, 1, 1, 1, 1, 1, 1, 1, 1]
    assert places.out_degree.tolist() == [1, 1, 2, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 0]
    assert places.distance.tolist() == [0, 1, 2, 3, 4, 5, 3, 4, 5, 6, 7, 8, 9, 10, 11]


@torch.no_grad()
def test_encoder_layer_by_layer(ghn: GHN, tiny: ArchGraph) -> None:
    seen: dict[str, Tensor] = {}
    hooks = [
        ghn.gnn.register_forward_pre_hook(lambda _, args: seen.update({"section 4": args[0]})),
        ghn.gnn[0].register_forward_pre_hook(lambda _, args: seen.update({"step 2": args[0]})),
        ghn.ln.register_forward_hook(lambda _, args, out: seen.update({"ln": out})),
    ]
    for i, layer in enumerate(ghn.gnn):
        hooks.append(
            layer.register_forward_hook(lambda _, args, x, i=i: seen.update({f"layer {i}": x}))
        )
    ghn([tiny])
    for hook in hooks:
        hook.remove()
    for stage, rows in TINY["features"].items():
        for row, values in rows.items():
            close(seen[stage][int(row), :4], values)
    close(seen["ln"].norm(), TINY["embedding_norm"])
    bias = ghn.gnn[0].attn.path_bias(50)[find_places(tiny, 50).pairs.long()]
    for pair, values in TINY["edge_bias"].items():
        i, j = map(int, pair.split(","))
        close(bias[i, j, :4], values)
    norm, first = TINY["decoded_stem"]
    (stem,) = ghn.decoder(seen["ln"][1:2], [(16, 3, 3, 3)], torch.ones(1))
    close(stem.norm(), norm)
    close(stem.flatten()[:4], first)
    close(ghn.decoder_1d(seen["ln"][2]).view(2, -1)[:, :4], TINY["decoded_bn1"])


@pytest.mark.parametrize("form", ["fast", "by places of the kernel", "plain"])
def test_parameters_of_tiny(
    form: str, ghn: GHN, tiny: ArchGraph, monkeypatch: pytest.MonkeyPatch
) -> None:
    if form == "plain":
        monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    if form == "by places of the kernel":
        monkeypatch.setattr(cpu_decoder, "LARGE", 0)
    with torch.no_grad():
        (predicted,) = ghn([tiny])
    assert predicted.keys() == TINY["parameters"].keys()
    for name, (norm, total, first) in TINY["parameters"].items():
        close(predicted[name].norm(), norm)
        close(predicted[name].sum(), total)
        close(predicted[name].flatten()[:4], first)


def norm_of(*parameters: Tensor) -> float:
    return math.sqrt(sum(p.double().square().sum().item() for p in parameters))


def graph_of(name: str, num_classes: int = 10) -> ArchGraph:
    create = torchvision.models.get_model_builder(name)
    settings = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    with torch.device("cpu" if name.startswith("regnet") else "meta"):
        model = create(num_classes=num_classes, **settings)
    return capture(model, attention=True).arch_graph_by("ghn3")


@pytest.mark.parametrize("name", [n for n, e in TORCHVISION.items() if "counts" in e])
def test_graphs_of_torchvision(name: str) -> None:
    expected = TORCHVISION[name]
    graph = graph_of(name)
    paths = graph.shortest_paths(50)
    counts = graph.counts()
    assert (len(graph), len(graph.edges)) == (expected["nodes"], expected["edges"])
    assert (len(paths.length), paths.length.sum()) == (expected["pairs"], expected["distances"])
    assert {kind: counts[kind] for kind in expected["counts"]} == expected["counts"]


@pytest.mark.parametrize("name", [n for n, e in TORCHVISION.items() if e["norm"] is not None])
def test_parameters_of_torchvision(name: str, ghn: GHN) -> None:
    expected = TORCHVISION[name]
    graph = graph_of(name)
    assert len(graph) == expected["nodes"]
    with torch.no_grad():
        (predicted,) = ghn([graph])
    assert norm_of(*predicted.values()) == pytest.approx(expected["norm"], abs=1e-4)
    for parameter, norm in expected.get("parameters", {}).items():
        assert norm_of(predicted[parameter]) == pytest.approx(norm, abs=1e-4)


def test_another_number_of_classes_gets_the_first_rows(ghn: GHN) -> None:
    with torch.no_grad():
        seven, more = ghn([graph_of("resnet18", n) for n in (7, 23)])
    assert seven["fc.weight"].norm().item() == pytest.approx(1.581276, abs=1e-5)
    assert seven["fc.bias"].norm().item() == pytest.approx(0.600512, abs=1e-5)
    assert norm_of(*seven.values()) == pytest.approx(146.692964, abs=1e-4)
    for name in ("fc.weight", "fc.bias"):
        repeated = torch.cat([more[name][:10]] * 3)[:23]
        torch.testing.assert_close(more[name], repeated, rtol=0, atol=0)


def test_networks_of_a_batch_do_not_disturb_each_other(ghn: GHN, tiny: ArchGraph) -> None:
    graphs = [graph_of("resnet18"), tiny, graph_of("squeezenet1_1"), tiny]
    with torch.no_grad():
        together = ghn(graphs)
        alone = [ghn([graph])[0] for graph in graphs]
    for a, b in zip(together, alone, strict=True):
        assert a.keys() == b.keys()
        for name in a:
            torch.testing.assert_close(a[name], b[name], rtol=1e-5, atol=1e-6)


def test_no_prediction_keeps_the_memory_of_another(ghn: GHN) -> None:
    with torch.no_grad():
        (predicted,) = ghn([graph_of("resnet18")])
    weights = [w for w in predicted.values() if w.dim() > 1]
    assert len(weights) == 21
    assert all(w.untyped_storage().nbytes() == w.nbytes for w in weights)


class Patches(nn.Module):
    """A kernel larger than the decoder's grid, and gates that are not squeeze-and-excitation."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 8, 32, stride=32)
        self.head = nn.Linear(8, 10, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).mean((2, 3))
        return self.head(x * torch.sigmoid(x))


def test_kernels_above_the_grid_are_enlarged(ghn: GHN) -> None:
    graph = capture(Patches()).arch_graph_by("ghn3")
    assert [n.primitive for n in graph.nodes] == ["input", "conv", "bias", "glob_avg", "conv"]
    assert (graph.classifier_weight, graph.classifier_bias) == (None, None)
    with torch.no_grad():
        (predicted,) = ghn([graph])
        x = ghn._encode([graph], None)[1:2]
        grid = ghn.decoder.decode(x, (8, 3, 16, 16))[0]
    expected = nn.functional.interpolate(grid, (32, 32), mode="bilinear", align_corners=False)
    expected *= math.sqrt(2 / (3 * 32 * 32))
    torch.testing.assert_close(predicted["patches.weight"], expected, rtol=1e-5, atol=1e-6)


def test_networks_of_the_design_space_have_one_graph_by_both_rules() -> None:
    for split in ("train", "mobile", "bn_free"):
        for network in (ConvNets250K(split)[i] for i in range(8)):
            captured = capture(network.build())
            two, three = captured.arch_graph, captured.arch_graph_by("ghn3")
            assert two.nodes == three.nodes
            assert np.array_equal(two.edges, three.edges)
            assert two.classifier_weight == three.classifier_weight
            assert two.classifier_bias == three.classifier_bias


def test_gradients_by_finite_differences() -> None:
    torch.manual_seed(0)
    ghn = GHN((3, 3, 3, 3), 4, 4, 3, encoder="graphormer", heads=2, layers=2).double()
    graph = capture(
        nn.Sequential(nn.Conv2d(3, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(2, 4))
    ).arch_graph_by("ghn3")
    check_gradients(ghn, graph)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"encoder": "transformer"}, "encoder is 'gated' or 'graphormer'"),
        ({"encoder": "graphormer", "heads": 5}, "heads=5: hid=32 is not divisible"),
        ({"encoder": "graphormer", "layers": 0}, "layers=0"),
        ({"encoder": "graphormer", "virtual_edges": 255}, "from 1 to 254"),
    ],
)
def test_settings_that_do_not_exist(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GHN(**settings)


def test_settings_round_trip(tmp_path: Path) -> None:
    ghn = GHN(
        (8, 8, 5, 5), hid=16, encoder="graphormer", heads=4, layers=2, precision_embedding=True
    )
    ghn.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert (config["encoder"], config["heads"], config["layers"]) == ("graphormer", 4, 2)
    assert config["virtual_edges"] == 50
    loaded = GHN.from_pretrained(tmp_path)
    assert loaded.settings == ghn.settings
    other = loaded.derived(virtual_edges=9)
    assert all(torch.equal(p, q) for p, q in zip(ghn.parameters(), other.parameters(), strict=True))
