"""GHN-Q: the hypernetwork as a whole."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple, get_args

import torch
from huggingface_hub import PyTorchModelHubMixin, hf_hub_download
from torch import Tensor, nn

from ghnq_quant.capture import PRIMITIVES, ArchGraph
from ghnq_quant.errors import CheckpointError, PredictionError
from ghnq_quant.ghn import tiling
from ghnq_quant.ghn.checkpoints import (
    DEFAULT_CHECKPOINT,
    WEIGHTS_FILE,
    PpudaCheckpoint,
    bundled_checkpoint,
    check_counts,
    check_flags,
    check_folder,
    check_shapes,
    may_be_repository,
    read_ppuda,
    shapes_in,
)
from ghnq_quant.ghn.decoders import ConvDecoder, decoding_order
from ghnq_quant.ghn.features import ShapeEncoder
from ghnq_quant.ghn.grid import KernelCut, Shape4d
from ghnq_quant.ghn.initialization import (
    initialize_channels,
    initialize_embedding,
    initialize_last_layers,
)
from ghnq_quant.ghn.layers import MLP
from ghnq_quant.ghn.message_passing import GatedGNN
from ghnq_quant.ghn.per_graph import once_per_graph
from ghnq_quant.ghn.to_decode import ToDecode, nodes_to_decode

_PRIMITIVE_ROW = {name: row for row, name in enumerate(PRIMITIVES)}
#: Bit widths that the precision embedding has a row for; 32 is float.
_PRECISIONS = (2, 3, 4, 5, 6, 7, 8, 32)


class GHN(
    nn.Module,
    PyTorchModelHubMixin,
    library_name="ghnq-quant",
    tags=["graph-hypernetwork", "quantization"],
    license="mit",
):
    """A graph hypernetwork that predicts all parameters of a convolutional network in one pass.

    The architecture, and the names of its parameters, are those of GHN-2 (Knyazev et al.,
    «Parameter Prediction for Unseen Deep Architectures», 2021); finetuned on quantized networks it
    is GHN-Q.

    Args:
        max_shape: largest weight (c_out, c_in, kh, kw) that is decoded; larger ones are tiled.
        num_classes: of the data set it was trained on.
        hid: size C of the node features.
        virtual_edges: longest shortest path along which messages pass (s(max)).
        precision_embedding: whether bit widths are part of the node features.
        new_batch_norms: give batch norms weights of one and biases of zero in place of predicted
            ones, so that a hypernetwork can be trained for what :func:`ghnq_quant.init_quantized`
            makes of its parameters.
        kernel_cut: how kernels smaller than ``max_shape`` are cut from the decoder's grid: from its
            ``"centre"``, so that a 1×1 kernel shares its rows with the middle of a 3×3 one, or
            from its ``"corner"`` as in GHN-2.
        provenance: how the parameters were made; kept in the checkpoint's ``config.json``.

    Example:
        >>> from ghnq_quant.capture import capture
        >>> ghn = GHN(virtual_edges=10)
        >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(8, 10))
        >>> (parameters,) = ghn([capture(model).arch_graph])
        >>> parameters["0.weight"].shape
        torch.Size([8, 3, 3, 3])
    """

    def __init__(
        self,
        max_shape: Sequence[int] = (64, 64, 11, 11),
        num_classes: int = 10,
        hid: int = 32,
        virtual_edges: int = 10,
        precision_embedding: bool = False,
        new_batch_norms: bool = False,
        kernel_cut: KernelCut = "centre",
        provenance: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        if kernel_cut not in get_args(KernelCut):
            raise ValueError(f"kernel_cut is 'centre' or 'corner', not {kernel_cut!r}")
        check_counts(
            max_shape=max_shape, num_classes=num_classes, hid=hid, virtual_edges=virtual_edges
        )
        check_flags(precision_embedding=precision_embedding, new_batch_norms=new_batch_norms)
        self.max_shape: Shape4d = (max_shape[0], max_shape[1], max_shape[2], max_shape[3])
        self.num_classes = num_classes
        self.virtual_edges = virtual_edges
        self.new_batch_norms = new_batch_norms
        self.provenance = provenance
        self.ln = nn.LayerNorm(hid)
        self.embed = nn.Embedding(len(PRIMITIVES), hid)
        self.shape_enc = ShapeEncoder(hid, num_classes, self.max_shape[2])
        self.gnn = GatedGNN(hid)
        self.decoder = ConvDecoder(hid, self.max_shape, num_classes, kernel_cut)
        width = max(self.max_shape[:2])
        self.decoder_1d = MLP((hid, 2 * hid, 2 * width), last_relu=False)
        self.bias_class = nn.Sequential(nn.ReLU(), nn.Linear(width, num_classes))
        self.precision: nn.Embedding | None = None
        if precision_embedding:
            # rows of weight bits, then of activation bits; zero changes nothing until trained
            self.precision = nn.Embedding(2 * len(_PRECISIONS), hid)
            nn.init.zeros_(self.precision.weight)
        self._initialize()

    def _initialize(self) -> None:
        hid, shapes = self.embed.embedding_dim, self.shape_enc
        initialize_embedding(self.embed, hid)
        initialize_embedding(shapes.embed_spatial, hid)
        initialize_channels(shapes.embed_channel, shapes.channels, hid)
        decoder = self.decoder
        last = decoder.conv[2], decoder.class_layer_predictor[1], self.decoder_1d.fc[2]
        initialize_last_layers(last)

    def forward(
        self, graphs: Sequence[ArchGraph], bits: Sequence[tuple[int, int]] | None = None
    ) -> list[dict[str, Tensor]]:
        """Predict the parameters of a batch of networks.

        Args:
            graphs: one graph a network.
            bits: (weight, activation) bit widths of each network, 32 for float; read by a
                hypernetwork with a precision embedding, which takes float where they are not given.

        Returns:
            a dict for each graph: parameters by name, of the shapes that the graph's nodes tell. A
            classification layer of another number of classes than ``num_classes`` is left out.
            Tensors may be views of one another's storage.

        Raises:
            PredictionError: a kernel larger than ``max_shape`` or a prediction that is not finite.
        """
        graphs = list(graphs)
        if not graphs:
            return []
        # small and sensitive: it stays in its own precision under autocast
        with torch.autocast(self.embed.weight.device.type, enabled=False):
            x = self._encode(graphs, bits)
            return _Decoding(self, graphs, x).parameters

    def _encode(self, graphs: list[ArchGraph], bits: Sequence[tuple[int, int]] | None) -> Tensor:
        device = self.embed.weight.device
        rows = torch.cat([self.shape_enc.rows(graph) for graph in graphs]).to(device)
        primitives = torch.cat([_primitive_rows(graph) for graph in graphs]).to(device)
        x = self.embed(primitives) + self.shape_enc(rows)
        if self.precision is not None:
            x = x + self._embed_precision(graphs, bits or [(32, 32)] * len(graphs))
        return self.ln(self.gnn(x, graphs, self.virtual_edges))

    def _embed_precision(self, graphs: list[ArchGraph], bits: Sequence[tuple[int, int]]) -> Tensor:
        assert self.precision is not None
        rows = [
            (_PRECISIONS.index(weight), len(_PRECISIONS) + _PRECISIONS.index(activation))
            for weight, activation in bits
        ]
        device = self.precision.weight.device
        sizes = torch.tensor([len(graph) for graph in graphs], device=device)
        embedded = self.precision(torch.tensor(rows, device=device)).sum(dim=1)
        return embedded.repeat_interleave(sizes, dim=0)

    @property
    def settings(self) -> dict[str, Any]:
        """The constructor's arguments, as plain lists, numbers and texts.

        Example:
            >>> GHN(hid=16).settings["hid"]
            16
        """
        return {
            "max_shape": list(self.max_shape),
            "num_classes": self.num_classes,
            "hid": self.embed.embedding_dim,
            "virtual_edges": self.virtual_edges,
            "precision_embedding": self.precision is not None,
            "new_batch_norms": self.new_batch_norms,
            "kernel_cut": self.decoder.kernel_cut,
            "provenance": self.provenance,
        }

    def derived(self, **changes: Any) -> GHN:
        """A hypernetwork with the same parameters and other settings.

        Args:
            changes: arguments of the constructor that differ. A precision embedding that is added
                starts at zero, so nothing that is predicted changes.

        Example:
            >>> GHN().derived(virtual_edges=50).virtual_edges
            50
        """
        ghn = GHN(**{**self.settings, **changes})
        state = self.state_dict()
        if ghn.precision is not None and self.precision is None:
            state["precision.weight"] = ghn.precision.weight.detach()
        ghn.load_state_dict(state)
        return ghn.to(self.embed.weight.device).train(self.training)

    @classmethod
    def from_ppuda(cls, path: str | Path, virtual_edges: int = 50) -> GHN:
        """Read a GHN-2 checkpoint in the public format (facebookresearch/ppuda).

        Args:
            path: of the ``.pt`` file; it is read without running any code that it may hold.
            virtual_edges: s(max) of message passing; GHN-2 was trained with 50.

        Raises:
            CheckpointError: the file is missing, damaged, holds code, or is not a GHN-2.

        Example:
            >>> ghn = GHN.from_ppuda("ghn2_cifar10.pt")  # doctest: +SKIP
        """
        checkpoint: PpudaCheckpoint = read_ppuda(path)
        settings = {**checkpoint.sizes, "virtual_edges": virtual_edges, "kernel_cut": "corner"}
        try:
            check_shapes(cls, settings, {k: v.shape for k, v in checkpoint.state_dict.items()})
            ghn = cls(**settings)
            ghn.load_state_dict(checkpoint.state_dict)
        except RuntimeError as error:
            raise CheckpointError(f"{path}: not the parameters of a GHN-2: {error}") from error
        return ghn.eval()

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls, name_or_path: str | Path = DEFAULT_CHECKPOINT, **kwargs: Any
    ) -> GHN:
        """Load a checkpoint of :meth:`save_pretrained`.

        Args:
            name_or_path: a folder, the name of a checkpoint that the package ships
                (``ghnq-cifar10``), or a repository of the Hugging Face Hub.
            kwargs: as of huggingface_hub's ``PyTorchModelHubMixin.from_pretrained``.

        Raises:
            CheckpointError: there is no such checkpoint, or it is damaged.

        Example:
            >>> ghn = GHN.from_pretrained("ghnq-cifar10")
        """
        source = bundled_checkpoint(str(name_or_path)) or name_or_path
        try:
            if Path(source).is_dir():
                check_folder(Path(source))
            elif not may_be_repository(name_or_path):
                raise FileNotFoundError("no such folder")
            ghn: GHN = super().from_pretrained(str(source), **kwargs)
        except CheckpointError:
            raise
        except Exception as error:
            raise CheckpointError(
                f"cannot load the checkpoint {str(name_or_path)!r}: {type(error).__name__}: "
                f"{error}. Give a folder with config.json and model.safetensors, a checkpoint that "
                "the package ships, or a repository of the Hugging Face Hub, OWNER/NAME"
            ) from error
        return ghn.eval()

    @classmethod
    def _from_pretrained(
        cls, *, model_id: str, map_location: str = "cpu", strict: bool = True, **kwargs: Any
    ) -> GHN:
        """In place of the mixin's own: always strict, and silent where it loads a folder.

        ``kwargs`` holds the checkpoint's settings, and where on the Hub to look.
        """
        kwargs.setdefault("kernel_cut", "corner")  # releases before the setting knew no other way
        settings = {k: v for k, v in kwargs.items() if k in inspect.signature(cls).parameters}
        file = Path(model_id) / WEIGHTS_FILE
        if not Path(model_id).is_dir():
            where = {k: v for k, v in kwargs.items() if k not in settings}
            file = Path(hf_hub_download(model_id, WEIGHTS_FILE, **where))
        check_shapes(cls, settings, shapes_in(file))
        return cls._load_as_safetensor(cls(**settings), str(file), map_location, True)


@once_per_graph
def _primitive_rows(graph: ArchGraph) -> Tensor:
    return torch.tensor([_PRIMITIVE_ROW[node.primitive] for node in graph.nodes])


class _Entry(NamedTuple):
    """A node to decode, among those of a batch."""

    graph: int
    row: int
    of: ToDecode

    @property
    def parameters(self) -> tuple[str, ...]:
        return self.of.node.parameters


class _Decoding:
    """Decodes the parameters of all nodes of a batch, those of one shape in one go."""

    def __init__(self, ghn: GHN, graphs: list[ArchGraph], x: Tensor) -> None:
        self.ghn = ghn
        self.x = x
        self.parameters: list[dict[str, Tensor]] = [{} for _ in graphs]
        entries = list(self._entries(graphs))
        if ghn.new_batch_norms:
            self._set_new([entry for entry in entries if entry.of.node.primitive == "bn"])
            entries = [entry for entry in entries if entry.of.node.primitive != "bn"]
        weights = [entry for entry in entries if len(entry.of.shape) > 1]
        vectors = [entry for entry in entries if len(entry.of.shape) == 1]
        self._decode_weights(sorted(weights, key=lambda e: decoding_order(e.of.decoded)))
        self._decode_vectors(sorted(vectors, key=lambda e: (e.of.classifies, e.of.shape)))

    def _entries(self, graphs: list[ArchGraph]) -> Iterator[_Entry]:
        start = 0
        for g, graph in enumerate(graphs):
            for node in nodes_to_decode(graph, self.ghn.max_shape, self.ghn.num_classes):
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
        groups = self.ghn.decoder(self._rows(entries), [e.of.decoded for e in entries], scale)
        decoded = [w for group in groups for w in group.unbind(0)]
        classifiers = [i for i, entry in enumerate(entries) if entry.of.classifies]
        for i in classifiers:
            decoded[i] = self.ghn.decoder.classifier(decoded[i]) * entries[i].of.scale
        of_classifiers = [decoded[i][None] for i in classifiers]
        _check_finite((*groups, *of_classifiers), [*entries, *(entries[i] for i in classifiers)])
        for entry, w in zip(entries, decoded, strict=True):
            shape = entry.of.shape
            if w.dim() > len(shape):
                w = w.flatten(len(shape) - 1)
            self.parameters[entry.graph][entry.parameters[0]] = tiling.tile(w, shape)

    def _decode_vectors(self, entries: list[_Entry]) -> None:
        if not entries:
            return
        p = self.ghn.decoder_1d(self._rows(entries)).view(len(entries), 2, -1)
        count = sum(not entry.of.classifies for entry in entries)
        # rows of a norm layer's weight and of a bias
        values = torch.stack((tiling.norm_weight(p[:count, 0]), tiling.bias(p[:count, 1])), 1)
        class_bias = tiling.bias(self.ghn.bias_class(p[count:, 1]))
        _check_finite((values, class_bias), entries)
        start = 0
        for (size,), group in groupby(entries[:count], lambda e: e.of.shape):
            same = list(group)
            pairs = tiling.tile_vectors(values[start : start + len(same)], size)
            self._set_vectors(same, pairs.flatten(0, 1).unbind(0))
            start += len(same)
        for entry, b in zip(entries[count:], class_bias.unbind(0), strict=True):
            self.parameters[entry.graph][entry.parameters[0]] = b

    def _set_vectors(self, entries: list[_Entry], rows: tuple[Tensor, ...]) -> None:
        for i, entry in enumerate(entries):
            first = 1 if entry.of.node.primitive == "bias" else 0
            named = zip(entry.parameters, rows[2 * i + first :], strict=False)
            self.parameters[entry.graph].update(named)


def _check_finite(groups: Sequence[Tensor], entries: list[_Entry]) -> None:
    """Raises for a value that is not finite among ``groups``, which hold one item an entry."""
    with torch.no_grad():
        if torch.stack([group.sum() for group in groups]).isfinite().all():
            return  # one pass over each group, in place of several
        finite = torch.cat([group.isfinite().flatten(1).all(dim=1) for group in groups])
    if finite.all():  # they are large enough for their sum to overflow
        return
    damaged = [entries[i] for i in (~finite).nonzero().flatten().tolist()]
    name = min(damaged, key=lambda entry: entry.row).parameters[0]
    raise PredictionError(
        f"the hypernetwork predicts values that are not finite for {name!r}: its checkpoint is "
        "damaged or its training diverged; load another one"
    )
