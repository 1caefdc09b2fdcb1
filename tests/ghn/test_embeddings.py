"""The initialization of a new hypernetwork, and the embedding rows that a shape selects."""

from __future__ import annotations

import pytest
import torch
from naive_ghn import channel_row, spatial_row

from ghnq_quant import GHN
from ghnq_quant.capture import Node


def test_a_new_hypernetwork() -> None:
    torch.manual_seed(0)
    ghn = GHN()
    shapes = ghn.shape_enc
    for embedding in (ghn.embed, shapes.embed_spatial, shapes.embed_channel):
        std = embedding.weight.std().item()
        assert std == pytest.approx(32**-0.5, rel=0.15)
    row = dict(zip((*shapes.channels, None), shapes.embed_channel.weight, strict=True))
    for count in (64, 128, 512, 1024, 4096):
        next_count, double = count + 16 * (1 + count // 4096), 2 * count
        near = (row[count] - row[next_count]).norm()
        far = (row[count] - row[double]).norm()
        assert 0 < near < 0.7 * far, count
    assert 0 < (row[1] - row[None]).norm() < 0.6 * 32**-0.5  # row[None]: a node without a shape
    decoder = ghn.decoder
    for layer, fan_in in (
        (decoder.conv[2], 256),
        (decoder.class_layer_predictor[1], 64),
        (ghn.decoder_1d.fc[2], 64),
    ):
        assert not layer.bias.any()
        # PyTorch's is uniform, up to fan_in^-1/2
        assert layer.weight.std().item() == pytest.approx(0.2 * (3 * fan_in) ** -0.5, rel=0.05)
    assert decoder.conv[0].bias.any()


@pytest.mark.parametrize("hid", [4, 6, 12, 20])
def test_new_hypernetworks_of_other_widths(hid: int) -> None:
    weight = GHN(max_shape=(8, 8, 3, 3), hid=hid).shape_enc.embed_channel.weight
    assert weight.shape[1] == hid // 4
    assert weight.isfinite().all()


@pytest.mark.parametrize("num_classes", [10, 1000, 5, 2, 9000])
def test_rows_of_shapes(num_classes: int) -> None:
    encoder = GHN(max_shape=(8, 8, 11, 11), num_classes=num_classes, hid=4).shape_enc
    for count in [*range(1, 200), *range(4000, 4200), 8191, 8192, 8193, 10**6, num_classes]:
        out, into, _, _ = encoder.indices(Node("conv", (count, count)))
        assert out == into == channel_row(count, num_classes), count
    for size in range(1, 20):
        _, _, kh, kw = encoder.indices(Node("conv", (1, 1, size, 1)))
        assert (kh, kw) == (spatial_row(size, 11), 0), size


@pytest.mark.parametrize(
    ("count", "counts_as"),
    [
        (2, 1),
        (4, 8),
        (7, 8),
        (9, 8),
        (11, 10),
        (12, 10),
        (20, 16),
        (60, 56),
        (72, 64),
        (73, 80),
        (4088, 4080),
        (4089, 4096),
        (4112, 4096),
        (8193, 8192),
        (100_000, 8192),
    ],
)
def test_channel_ties_go_to_the_smaller(count: int, counts_as: int) -> None:
    encoder = GHN(max_shape=(8, 8, 11, 11), num_classes=10, hid=4).shape_enc
    assert encoder.indices(Node("bias", (count,))) == encoder.indices(Node("bias", (counts_as,)))
    assert encoder.channels[encoder.indices(Node("bias", (counts_as,)))[0]] == counts_as


@pytest.mark.parametrize(
    ("size", "counts_as"),
    [(2, 3), (4, 3), (6, 5), (12, 11), (13, 14), (15, 14), (17, 16), (40, 16)],
)
def test_spatial_ties_go_to_the_smaller(size: int, counts_as: int) -> None:
    encoder = GHN(max_shape=(8, 8, 11, 11), num_classes=10, hid=4).shape_enc
    row = encoder.indices(Node("conv", (1, 1, size, 1)))[2]
    assert encoder.spatial[row] == counts_as


def test_a_node_without_shape_takes_the_last_rows() -> None:
    encoder = GHN(max_shape=(8, 8, 11, 11), num_classes=10, hid=4).shape_enc
    channel, spatial = encoder.embed_channel, encoder.embed_spatial
    assert encoder.indices(Node("sum")) == (
        *(channel.num_embeddings - 1,) * 2,
        *(spatial.num_embeddings - 1,) * 2,
    )
