"""From the node features of a batch to the parameters of its networks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ghnq_quant.capture import ArchGraph
from ghnq_quant.errors import PredictionError
from ghnq_quant.ghn import tiling
from ghnq_quant.ghn.decoders import ConvDecoder, decoding_order
from ghnq_quant.ghn.to_decode import ToDecode, nodes_to_decode


@dataclass(frozen=True)
class Decoders:
    """The decoders of a hypernetwork and how to use them.

    Attributes:
        weights: decodes all parameters of two or more dimensions.
        vectors: (n, C) features to (n, 2 · max channels): a norm layer's weight, then a bias.
        class_bias: (n, max channels) such biases to those of classification layers.
        num_classes: outputs of the classification layers that are decoded as such.
        new_batch_norms, predicts_any_size: see :class:`ghnq_quant.GHN` and
            :class:`ghnq_quant.ghn.encoders.Conventions`.
    """

    weights: ConvDecoder
    vectors: nn.Module
    class_bias: nn.Module
    num_classes: int
    new_batch_norms: bool
    predicts_any_size: bool

    def decode(self, graphs: Sequence[ArchGraph], x: Tensor) -> list[dict[str, Tensor]]:
        """Decode the parameters of some graphs, by name, from the (N, C) features of all their nodes.

        Raises:
            PredictionError: see :meth:`ghnq_quant.GHN.forward`.
        """
        return _Decoding(self, graphs, x).parameters


class _Entry(NamedTuple):
    """A node to decode, within a batch."""

    graph: int
    row: int
    of: ToDecode

    @property
    def parameters(self) -> tuple[str, ...]:
        return self.of.node.parameters


class _Decoding:
    """Decodes the parameters of all nodes of a batch, grouped by shape."""

    def __init__(self, decoders: Decoders, graphs: Sequence[ArchGraph], x: Tensor) -> None:
        self.decoders = decoders
        self.x = x
        self.parameters: list[dict[str, Tensor]] = [{} for _ in graphs]
        entries = list(self._entries(graphs))
        if decoders.new_batch_norms:
            self._set_new([entry for entry in entries if entry.of.node.primitive == "bn"])
            entries = [entry for entry in entries if entry.of.node.primitive != "bn"]
        weights = [entry for entry in entries if len(entry.of.shape) > 1]
        vectors = [entry for entry in entries if len(entry.of.shape) == 1]
        self._decode_weights(sorted(weights, key=lambda e: decoding_order(e.of.decoded)))
        self._decode_vectors(sorted(vectors, key=lambda e: (e.of.classifies, e.of.shape)))

    def _entries(self, graphs: Sequence[ArchGraph]) -> Iterator[_Entry]:
        start = 0
        decoders = self.decoders
        settings = (
            decoders.weights.grid.max_shape,
            decoders.num_classes,
            decoders.predicts_any_size,
        )
        for g, graph in enumerate(graphs):
            for node in nodes_to_decode(graph, *settings):
                yield _Entry(g, start + node.position, node)
            start += len(graph)

    def _set_new(self, batch_norms: list[_Entry]) -> None:
        for entry in batch_norms:
            values = self.x.new_ones(entry.of.shape), self.x.new_zeros(entry.of.shape)
            self.parameters[entry.graph].update(zip(entry.parameters, values, strict=False))

    def _rows(self, entries: list[_Entry]) -> Tensor:
        return self.x[torch.tensor([entry.row for entry in entries], device=self.x.device)]

    def _decode_weights(self, entries: list[_Entry]) -> None:
        if not entries:
            return
        scale = self.x.new_tensor([1.0 if e.of.classifies else e.of.scale for e in entries])
        decoder = self.decoders.weights
        groups = decoder(self._rows(entries), [e.of.decoded for e in entries], scale)
        decoded = [w for group in groups for w in group.unbind(0)]
        classifiers = [i for i, entry in enumerate(entries) if entry.of.classifies]
        for i in classifiers:
            decoded[i] = decoder.classifier(decoded[i]) * entries[i].of.scale
        of_classifiers = [decoded[i][None] for i in classifiers]
        _check_finite((*groups, *of_classifiers), [*entries, *(entries[i] for i in classifiers)])
        del groups, of_classifiers
        for entry in entries:  # tiling allocates new memory, and frees its source
            w = _fitted(decoded.pop(0), entry.of.shape)
            self.parameters[entry.graph][entry.parameters[0]] = w

    def _decode_vectors(self, entries: list[_Entry]) -> None:
        if not entries:
            return
        p = self.decoders.vectors(self._rows(entries)).view(len(entries), 2, -1)
        count = sum(not entry.of.classifies for entry in entries)
        # rows of a norm layer's weight and of a bias
        values = torch.stack((tiling.norm_weight(p[:count, 0]), tiling.bias(p[:count, 1])), 1)
        class_bias = tiling.bias(self.decoders.class_bias(p[count:, 1]))
        _check_finite((values, class_bias), entries)
        start = 0
        for (size,), group in groupby(entries[:count], lambda e: e.of.shape):
            same = list(group)
            pairs = tiling.tile_vectors(values[start : start + len(same)], size)
            self._set_vectors(same, pairs.flatten(0, 1).unbind(0))
            start += len(same)
        for entry, b in zip(entries[count:], class_bias.unbind(0), strict=True):
            self.parameters[entry.graph][entry.parameters[0]] = tiling.tile(b, entry.of.shape)

    def _set_vectors(self, entries: list[_Entry], rows: tuple[Tensor, ...]) -> None:
        for i, entry in enumerate(entries):
            first = 1 if entry.of.node.primitive == "bias" else 0
            named = zip(entry.parameters, rows[2 * i + first :], strict=False)
            self.parameters[entry.graph].update(named)


def _fitted(w: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Fit a decoded weight, (c_out, c_in, kh, kw) or a classifier's (num_classes, c_in), to ``shape``."""
    if w.dim() > len(shape):
        w = w.flatten(len(shape) - 1)
    w = w.view(*w.shape, *(1,) * (len(shape) - w.dim()))
    if any(have < want for have, want in zip(w.shape[2:], shape[2:], strict=True)):
        w = F.interpolate(w, shape[2:], mode="bilinear", align_corners=False)
    return tiling.tile(w, shape)


def _check_finite(groups: Sequence[Tensor], entries: list[_Entry]) -> None:
    """Raise for a value that is not finite in ``groups``, which hold one item per entry."""
    with torch.no_grad():
        if torch.stack([group.sum() for group in groups]).isfinite().all():
            return  # one pass over each group instead of several
        finite = torch.cat([group.isfinite().flatten(1).all(dim=1) for group in groups])
    if finite.all():  # values so large that their sum overflowed
        return
    damaged = [entries[i] for i in (~finite).nonzero().flatten().tolist()]
    name = min(damaged, key=lambda entry: entry.row).parameters[0]
    raise PredictionError(
        f"the hypernetwork predicts values that are not finite for {name!r}: its checkpoint is "
        "damaged or its training diverged; load another one"
    )
