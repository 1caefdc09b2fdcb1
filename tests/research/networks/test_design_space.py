"""ConvNets-250K: its networks, that they never change, and that graph and module agree."""

import copy
import hashlib
import os
import pickle
import random
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from ghnq_quant import DataError
from ghnq_quant.capture import ArchGraph, Node, capture
from ghnq_quant.research.networks import (
    SPLITS,
    Architecture,
    ConvNets250K,
    canonical_hash,
    space_statistics,
    statistics_table,
)

_ALLOWED = {
    "input", "conv", "sep_conv", "dil_conv", "bias", "bn", "max_pool", "avg_pool", "glob_avg",
    "sum", "concat",
}  # fmt: skip
#: hashes of the first three networks' descriptions and graphs; a change needs a new SCHEMA
_PINNED = {
    "train": "fb1c8581f50460c2",
    "val": "f4d63e96bfa406d4",
    "test": "1d3ab70af28afb7f",
    "wide": "e9e21d01607faa01",
    "deep": "70b4aa18135b6087",
    "bn_free": "f858090cdf1295fb",
    "mobile": "cc63c3e35d22d7ca",
}

_places = st.sampled_from(sorted(SPLITS)).flatmap(
    lambda split: st.tuples(st.just(split), st.integers(0, SPLITS[split].size - 1))
)


def _edges(graph):
    return sorted(map(tuple, graph.edges.tolist()))


def test_splits_have_the_sizes_of_the_design():
    sizes = {split: len(ConvNets250K(split)) for split in SPLITS}
    assert sizes == {
        "train": 250_000, "val": 500, "test": 500,
        "wide": 100, "deep": 100, "bn_free": 100, "mobile": 100,
    }  # fmt: skip


def test_unknown_split_is_an_error_that_lists_the_splits():
    with pytest.raises(DataError, match=r"'dense'.*train, val, test, wide, deep, bn_free, mobile"):
        ConvNets250K("dense")


@pytest.mark.parametrize("index", [-1, 100, 10**9])
def test_index_out_of_range(index):
    with pytest.raises(IndexError, match="0 to 99"):
        ConvNets250K("wide")[index]


@pytest.mark.parametrize("split", SPLITS)
def test_networks_never_change(split):
    digest = hashlib.sha256()
    for index in (0, 1, 2):
        item = ConvNets250K(split)[index]
        digest.update(item.description.to_json().encode())
        digest.update(canonical_hash(item.graph).encode())
        digest.update(repr(item.graph.parameters).encode())
    assert digest.hexdigest()[:16] == _PINNED[split]


def test_an_item_is_the_same_in_another_process_and_order():
    code = (
        "from ghnq_quant.research.networks import ConvNets250K\n"
        "networks = ConvNets250K('val')\n"
        "print(*[networks[i].description.to_json() for i in (9, 3)], sep='\\n')"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "123"}
    result = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    networks = pickle.loads(pickle.dumps(ConvNets250K("val")))
    expected = [networks[np.int64(i)].description.to_json() for i in (3, 9)]
    assert result.stdout.split() == expected[::-1]


@settings(max_examples=60)
@given(_places)
def test_every_network_keeps_the_limits(place):
    split, index = place
    item = ConvNets250K(split)[index]
    rules, counts = SPLITS[split], item.graph.counts()
    assert item.program.num_parameters <= 10_000_000
    assert item.program.macs <= rules.max_macs
    assert set(counts) <= _ALLOWED
    assert ("bn" in counts) == rules.norm
    if split == "mobile":
        assert item.description.family == "mobile"
    else:
        assert rules.cells[0] <= item.description.num_cells <= rules.cells[1]
    assert Architecture.from_json(item.description.to_json()) == item.description
    assert item.graph.nodes[item.graph.classifier_weight].shape[0] == 10
    assert item.graph.nodes[item.graph.classifier_bias].shape == (10,)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"family":"cells"}', '{"family":"dense"}'])
def test_what_is_not_a_description_is_an_error(text):
    with pytest.raises(DataError, match="not the JSON of an architecture"):
        Architecture.from_json(text)


def test_a_description_with_a_wrong_field_is_an_error():
    text = ConvNets250K("mobile")[0].description.to_json()
    with pytest.raises(DataError, match="Stem does not match"):
        Architecture.from_json(text.replace('"pool":false', '"pol":false', 1))
    with pytest.raises(DataError, match="expected int"):
        Architecture.from_json(text.replace('"grid":1', '"grid":"1"'))


@pytest.mark.parametrize("split", SPLITS)
def test_graph_is_the_captured_one(split):
    networks = ConvNets250K(split)
    for index in range(10, 18):
        graph, captured = networks[index].graph, capture(networks[index].build(False)).arch_graph
        assert graph.nodes == captured.nodes
        assert _edges(graph) == _edges(captured)
        assert graph.classifier_weight == captured.classifier_weight
        assert graph.classifier_bias == captured.classifier_bias


def test_every_node_leads_to_the_classifier():
    for item in (ConvNets250K("train")[i] for i in range(60)):
        assert set(range(len(item.graph) - 1)) == set(item.graph.edges[:, 0].tolist())


@pytest.mark.parametrize("split", SPLITS)
def test_networks_run_on_images(split):
    for item in map(ConvNets250K(split).__getitem__, range(20, 23)):
        model = item.build().eval()
        with torch.no_grad():
            for size in (16, 33, 64) if item.description.any_size else ():
                assert model(torch.zeros(1, 3, size, size)).shape == (1, 10)
            assert model(torch.randn(2, 3, 32, 32)).isfinite().all()


def test_a_flattened_head_takes_32x32_alone():
    networks = map(ConvNets250K("train").__getitem__, range(100))
    item = next(item for item in networks if not item.description.any_size)
    model = item.build().eval()
    assert model(torch.zeros(1, 3, 32, 32)).shape == (1, 10)
    with pytest.raises(RuntimeError):
        model(torch.zeros(1, 3, 64, 64))


def test_the_module_has_the_counted_parameters_and_macs():
    item = ConvNets250K("test")[5]
    model, macs = item.build().eval(), []

    def count(layer, _, output):
        positions = output[0].numel() if isinstance(layer, nn.Conv2d) else layer.out_features
        macs.append(positions * layer.weight[0].numel())

    for layer in model.modules():
        if isinstance(layer, (nn.Conv2d, nn.Linear)):
            layer.register_forward_hook(count)
    model(torch.zeros(1, 3, 32, 32))
    assert item.program.macs == sum(macs)
    assert item.program.num_parameters == sum(p.numel() for p in model.parameters())
    assert sorted(item.graph.parameters) == sorted(dict(model.named_parameters()))


def test_another_number_of_classes_changes_the_last_layer_alone():
    other, network = ConvNets250K("test", num_classes=7)[17], ConvNets250K("test")[17]
    assert other.description == network.description
    model = other.build()
    assert model(torch.zeros(2, 3, 32, 32)).shape == (2, 7)
    shapes = {n: p.shape for n, p in model.named_parameters()}
    for name, parameter in network.build().named_parameters():
        of_last = name.startswith("head.classifier.")
        expected = (7, *parameter.shape[1:]) if of_last else parameter.shape
        assert shapes.pop(name) == expected
    assert not shapes
    graph = capture(model).arch_graph
    assert [n.shape for n in other.graph.nodes] == [n.shape for n in graph.nodes]
    assert _edges(other.graph) == _edges(graph)


def test_modules_copy_and_pickle():
    model = ConvNets250K("test")[7].build().eval()
    image = torch.randn(1, 3, 32, 32)
    expected = model(image)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        torch.testing.assert_close(twin(image), expected, rtol=0, atol=0)


def test_initialization_is_pytorchs_and_can_be_left_out():
    item = ConvNets250K("test")[17]
    torch.manual_seed(3)
    model = item.build()
    torch.manual_seed(3)
    torch.testing.assert_close(item.build().state_dict(), model.state_dict(), rtol=0, atol=0)
    torch.manual_seed(3)
    expected = nn.Conv2d(3, 24, 3).weight
    torch.testing.assert_close(model.stem.conv.weight, expected, rtol=0, atol=0)
    state = torch.get_rng_state()
    blank = item.build(initialize=False)
    assert torch.equal(torch.get_rng_state(), state)
    assert [type(m) for m in blank.modules()] == [type(m) for m in model.modules()]
    buffers = dict(blank.named_buffers())
    torch.testing.assert_close(buffers, dict(model.named_buffers()), rtol=0, atol=0)
    blank.load_state_dict(model.state_dict())
    image = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(blank(image), model(image), rtol=0, atol=0)


def test_no_evaluation_architecture_is_in_train():
    train = {canonical_hash(ConvNets250K("train")[i].graph) for i in range(150)}
    val = {canonical_hash(ConvNets250K("val")[i].graph) for i in range(60)}
    rest = [
        canonical_hash(ConvNets250K(split)[i].graph)
        for split in SPLITS
        for i in range(20)
        if split not in ("train", "val")
    ]
    assert len(val) == 60
    assert len(set(rest)) == len(rest)
    assert train.isdisjoint(val)
    assert train.isdisjoint(rest)
    assert val.isdisjoint(rest)
    # by construction, not by luck: the hash itself tells the side
    assert {int(h, 16) % 8 for h in train} == {2, 3, 4, 5, 6, 7}
    assert {int(h, 16) % 8 for h in val} == {0}
    assert {int(h, 16) % 8 for h in rest} == {1}


@settings(max_examples=30)
@given(st.integers(0, 249_999), st.randoms(use_true_random=False))
def test_canonical_hash_ignores_order_and_names(index, rng):
    graph = ConvNets250K("train")[index].graph
    order = _shuffled_topological_order(graph, rng)
    position = {node: k for k, node in enumerate(order)}
    shuffled = ArchGraph(
        tuple(Node(graph.nodes[i].primitive, graph.nodes[i].shape) for i in order),
        np.array([(position[a], position[b]) for a, b in graph.edges.tolist()]),
    )
    assert canonical_hash(shuffled) == canonical_hash(graph)


def test_canonical_hash_tells_shapes_and_edges_apart():
    nodes = (Node("input"), Node("conv", (8, 3, 3, 3)), Node("bn", (8,)), Node("sum"))
    chain = np.array([[0, 1], [1, 2], [2, 3]])
    skip = np.array([[0, 1], [1, 2], [2, 3], [1, 3]])
    wider = (nodes[0], Node("conv", (16, 3, 3, 3)), *nodes[2:])
    graphs = [ArchGraph(nodes, chain), ArchGraph(nodes, skip), ArchGraph(wider, chain)]
    assert len({canonical_hash(graph) for graph in graphs}) == 3


def test_wide_networks_have_four_times_the_channels():
    channels = [
        node.shape[0]
        for i in range(20)
        for node in ConvNets250K("wide")[i].graph.nodes
        if node.primitive in ("conv", "sep_conv", "dil_conv") and len(node.shape) == 4
    ]
    assert all(c % 16 == 0 for c in channels)
    assert min(channels) >= 32


def test_train_items_are_fast():
    networks = ConvNets250K("train")
    networks[0].graph.shortest_paths(10)
    start = time.process_time()
    for index in range(100):
        networks[index].graph.shortest_paths(10)
    assert time.process_time() - start < 1.0


def test_statistics_table():
    statistics = [s for split in ("test", "bn_free") for s in space_statistics(split, 6)]
    first, item = statistics[0], ConvNets250K("test")[0]
    assert (first.macs, first.nodes) == (item.program.macs, len(item.graph))
    assert sum(first.primitives.values()) == first.nodes
    assert statistics_table(statistics).row_count == 2


def _shuffled_topological_order(graph: ArchGraph, rng: random.Random) -> list[int]:
    waiting = np.bincount(graph.edges[:, 1], minlength=len(graph)).tolist()
    ready = [node for node, count in enumerate(waiting) if count == 0]
    order = []
    while ready:
        node = ready.pop(rng.randrange(len(ready)))
        order.append(node)
        for target in graph.edges[graph.edges[:, 0] == node, 1].tolist():
            waiting[target] -= 1
            if waiting[target] == 0:
                ready.append(target)
    return order
