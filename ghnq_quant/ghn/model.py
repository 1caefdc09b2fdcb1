"""GHN-Q: the complete hypernetwork."""

from __future__ import annotations

import inspect
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import torch
from huggingface_hub import PyTorchModelHubMixin, hf_hub_download
from torch import Tensor, nn

from ghnq_quant.capture import PRIMITIVES, ArchGraph, GraphRules
from ghnq_quant.errors import CheckpointError
from ghnq_quant.ghn.checkpoints import (
    DEFAULT_CHECKPOINT,
    WEIGHTS_FILE,
    PpudaCheckpoint,
    as_shaped,
    bundled_checkpoint,
    check_counts,
    check_flags,
    check_folder,
    check_shapes,
    may_be_repository,
    on_meta_device,
    read_ppuda,
    shapes_in,
)
from ghnq_quant.ghn.decoders import ConvDecoder
from ghnq_quant.ghn.decoding import Decoders
from ghnq_quant.ghn.encoders import CONVENTIONS, Encoder, make_encoder
from ghnq_quant.ghn.features import ShapeEncoder
from ghnq_quant.ghn.ghn3_checkpoints import download_public_file, find_public_file, read_public
from ghnq_quant.ghn.graphormer import check_graphormer
from ghnq_quant.ghn.grid import KernelCut, Shape4d
from ghnq_quant.ghn.initialization import (
    initialize_channels,
    initialize_embedding,
    initialize_last_layers,
)
from ghnq_quant.ghn.layers import MLP
from ghnq_quant.ghn.per_graph import once_per_graph
from ghnq_quant.ghn.precision import FLOAT, PrecisionTable, add_maps, add_offsets

_PRIMITIVE_ROW = {name: row for row, name in enumerate(PRIMITIVES)}


class GHN(
    nn.Module,
    PyTorchModelHubMixin,
    library_name="ghnq-quant",
    tags=["graph-hypernetwork", "quantization"],
    license="mit",
):
    """A graph hypernetwork that predicts all parameters of a convolutional network in one pass.

    The architecture and its parameter names are those of GHN-2 (Knyazev et al., "Parameter
    Prediction for Unseen Deep Architectures", 2021) or, with the encoder ``"graphormer"``, of GHN-3
    (Knyazev et al., "Can We Scale Transformers to Predict Parameters of Diverse ImageNet Models?",
    2023). Finetuned on quantized networks it is GHN-Q.

    Args:
        max_shape: largest weight (c_out, c_in, kh, kw) that is decoded; larger ones are tiled.
        num_classes: classes of the data set it was trained on.
        hid: size C of the node features.
        virtual_edges: longest shortest path between nodes that see each other (s(max)); by
            default 10, and 50 for ``"graphormer"``.
        precision_embedding: whether bit widths are part of the node features.
        precision_decoder: whether each precision has an affine map of its own that changes the
            features before parameters are decoded from them.
        new_batch_norms: give batch norms weights of one and biases of zero instead of predicted
            ones, so that a hypernetwork can be trained for the way
            :func:`ghnq_quant.init_quantized` uses its parameters.
        kernel_cut: how kernels smaller than ``max_shape`` are cut from the decoder's grid: from its
            ``"centre"``, so that a 1×1 kernel shares its rows with the middle of a 3×3 one, or
            from its ``"corner"`` as in GHN-2.
        provenance: how the parameters were made; kept in the checkpoint's ``config.json``.
        encoder: ``"gated"``, message passing along the graph as in GHN-2, or ``"graphormer"``, the
            transformer of GHN-3. The latter brings GHN-3's rules for graphs, enlarged kernels
            above ``max_shape``, and classification layers of any number of classes.
        heads, layers: numbers of attention heads and layers of the transformer.

    Raises:
        ValueError: an invalid setting, or sizes that do not fit each other.

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
        virtual_edges: int | None = None,
        precision_embedding: bool = False,
        new_batch_norms: bool = False,
        kernel_cut: KernelCut = "centre",
        provenance: dict[str, Any] | None = None,
        encoder: Encoder = "gated",
        heads: int = 8,
        layers: int = 3,
        precision_decoder: bool = False,
    ) -> None:
        super().__init__()
        if kernel_cut not in get_args(KernelCut):
            raise ValueError(f"kernel_cut is 'centre' or 'corner', not {kernel_cut!r}")
        if encoder not in get_args(Encoder):
            raise ValueError(f"encoder is 'gated' or 'graphormer', not {encoder!r}")
        conventions = CONVENTIONS[encoder]
        if virtual_edges is None:
            virtual_edges = conventions.virtual_edges
        check_counts(
            max_shape=max_shape, num_classes=num_classes, hid=hid, virtual_edges=virtual_edges
        )
        check_flags(
            precision_embedding=precision_embedding,
            precision_decoder=precision_decoder,
            new_batch_norms=new_batch_norms,
        )
        if encoder == "graphormer":
            check_graphormer(hid, heads, layers, virtual_edges)
        self.encoder: Encoder = encoder
        self.heads, self.layers = heads, layers
        self.max_shape: Shape4d = (max_shape[0], max_shape[1], max_shape[2], max_shape[3])
        self.num_classes = num_classes
        self.virtual_edges = virtual_edges
        self.new_batch_norms = new_batch_norms
        self.provenance = provenance
        self.ln = nn.LayerNorm(hid)
        self.embed = nn.Embedding(len(PRIMITIVES), hid)
        self.shape_enc = ShapeEncoder(hid, num_classes, self.max_shape[2])
        self.gnn = make_encoder(encoder, hid, heads, layers)
        self.decoder = ConvDecoder(
            hid, self.max_shape, num_classes, kernel_cut, conventions.linear_decoder
        )
        width = max(self.max_shape[:2])
        self.decoder_1d = MLP((hid, 2 * hid, 2 * width), last_relu=False)
        self.bias_class = nn.Sequential(nn.ReLU(), nn.Linear(width, num_classes))
        self.precision = PrecisionTable(hid) if precision_embedding else None
        self.precision_decoder = PrecisionTable(hid + hid**2) if precision_decoder else None
        if not self.embed.weight.is_meta:
            self._initialize()

    def _initialize(self) -> None:
        hid, shapes = self.embed.embedding_dim, self.shape_enc
        initialize_embedding(self.embed, hid)
        initialize_embedding(shapes.embed_spatial, hid)
        initialize_channels(shapes.embed_channel, shapes.channels, hid)
        for module in self.gnn.modules():
            if isinstance(module, nn.Embedding):
                initialize_embedding(module, hid)
        decoder = self.decoder
        last = decoder.conv[2], decoder.class_layer_predictor[1], self.decoder_1d.fc[2]
        initialize_last_layers(last)

    def forward(
        self, graphs: Sequence[ArchGraph], bits: Sequence[tuple[int, int]] | None = None
    ) -> list[dict[str, Tensor]]:
        """Predict the parameters of a batch of networks.

        Args:
            graphs: one graph per network, by the rules that :attr:`graph_rules` names.
            bits: (weight, activation) bit widths of each network, 32 for float; used only by a
                hypernetwork that :attr:`reads_precision`. Float by default.

        Returns:
            for each graph a dict of parameters by name, with the shapes that the graph's nodes give.
            With the gated encoder, a classification layer with another number of classes than
            ``num_classes`` is left out; with the other one it gets the first classes, or repeats
            them. Position embeddings of S·S patches are (1, C, S, S). Tensors may be views of
            shared storage.

        Raises:
            PredictionError: a prediction that is not finite or, with the gated encoder, a kernel
                larger than ``max_shape``.
        """
        graphs = list(graphs)
        if not graphs:
            return []
        # small and sensitive: it keeps its own precision under autocast
        with torch.autocast(self.embed.weight.device.type, enabled=False):
            x = self._encode(graphs, bits)
            return self._decoders().decode(graphs, x)

    def _encode(self, graphs: list[ArchGraph], bits: Sequence[tuple[int, int]] | None) -> Tensor:
        device = self.embed.weight.device
        bits, sizes = bits or [FLOAT] * len(graphs), [len(graph) for graph in graphs]
        rows = torch.cat([self.shape_enc.rows(graph) for graph in graphs]).to(device)
        primitives = torch.cat([_primitive_rows(graph) for graph in graphs]).to(device)
        x = self.embed(primitives) + self.shape_enc(rows)
        if self.precision is not None:
            x = add_offsets(x, self.precision.of(bits), sizes)
        x = self.ln(self.gnn(x, graphs, self.virtual_edges))
        if self.precision_decoder is not None:
            x = add_maps(x, self.precision_decoder.of(bits), sizes)
        return x

    def _decoders(self) -> Decoders:
        return Decoders(
            self.decoder,
            self.decoder_1d,
            self.bias_class,
            self.num_classes,
            self.new_batch_norms,
            CONVENTIONS[self.encoder].predicts_any_size,
        )

    @property
    def reads_precision(self) -> bool:
        """Whether it predicts other parameters for each precision."""
        return self.precision is not None or self.precision_decoder is not None

    @property
    def graph_rules(self) -> GraphRules:
        """How networks become the graphs that this hypernetwork reads.

        Example:
            >>> GHN(encoder="graphormer").graph_rules
            'ghn3'
        """
        return CONVENTIONS[self.encoder].graph_rules

    @property
    def settings(self) -> dict[str, Any]:
        """The constructor's arguments as plain lists, numbers and strings.

        Without those that older releases lack, where they have no effect, so that these can load it.

        Example:
            >>> GHN(hid=16).settings["hid"]
            16
        """
        transformer = {"encoder": self.encoder, "heads": self.heads, "layers": self.layers}
        return {
            "max_shape": list(self.max_shape),
            "num_classes": self.num_classes,
            "hid": self.embed.embedding_dim,
            "virtual_edges": self.virtual_edges,
            "precision_embedding": self.precision is not None,
            "new_batch_norms": self.new_batch_norms,
            "kernel_cut": self.decoder.kernel_cut,
            "provenance": self.provenance,
            **(transformer if self.encoder == "graphormer" else {}),
            **({"precision_decoder": True} if self.precision_decoder is not None else {}),
        }

    def derived(self, **changes: Any) -> GHN:
        """A hypernetwork with the same parameters and other settings.

        Args:
            changes: arguments of the constructor that differ. A part that is added for the
                precision starts at zero, so predictions do not change.

        Example:
            >>> GHN().derived(virtual_edges=50).virtual_edges
            50
        """
        ghn = GHN(**{**self.settings, **changes})
        added = {k: v for k, v in ghn.state_dict().items() if k.startswith("precision")}
        ghn.load_state_dict({**added, **self.state_dict()})
        return ghn.to(self.embed.weight.device).train(self.training)

    @classmethod
    def from_ppuda(cls, path: str | Path, virtual_edges: int = 50) -> GHN:
        """Read a GHN-2 checkpoint in the public format (facebookresearch/ppuda).

        Args:
            path: the ``.pt`` file; it is read without running any code that it may hold.
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
    def from_ghn3(cls, path_or_name: str | Path) -> GHN:
        """Read a file by the authors of GHN-3 (SamsungSAILMontreal/ghn3): a GHN-3 or a GHN-2.

        All sizes are inferred from the parameters. Save it with :meth:`save_pretrained` for a file
        that loads faster and is not a pickle.

        Args:
            path_or_name: path of a file, read without running any code that it may hold; or the
                name of a published one, such as ``ghn3xlm16.pt``, downloaded once from the Hugging
                Face Hub. Files of ppuda are read too.

        Raises:
            CheckpointError: the file is missing, damaged, holds code, or is not a GHN-3 or GHN-2.

        Example:
            >>> ghn = GHN.from_ghn3("ghn3xlm16.pt")  # doctest: +SKIP
        """
        path = find_public_file(path_or_name)
        checkpoint = read_public(path)
        try:
            with on_meta_device():  # do not initialize what is replaced
                ghn = cls(**checkpoint.settings)
            ghn.load_state_dict(as_shaped(checkpoint.state_dict, ghn.state_dict()), assign=True)
        except (RuntimeError, TypeError, ValueError) as error:
            raise CheckpointError(
                f"{path}: not the parameters of a GHN-3 or GHN-2: {error}"
            ) from error
        return ghn.eval()

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls,
        name_or_path: str | Path = DEFAULT_CHECKPOINT,
        *,
        filename: str | None = None,
        **kwargs: Any,
    ) -> GHN:
        """Load a checkpoint saved by :meth:`save_pretrained`, or a public file.

        Args:
            name_or_path: a folder, the name of a shipped checkpoint (``ghnq-cifar10``), a Hugging
                Face Hub repository, or a file as for :meth:`from_ghn3`.
            filename: name of such a file in the repository.
            kwargs: passed to huggingface_hub's ``PyTorchModelHubMixin.from_pretrained`` or, with
                ``filename``, to its ``hf_hub_download``.

        Raises:
            CheckpointError: there is no such checkpoint, or it is damaged.

        Example:
            >>> ghn = GHN.from_pretrained("ghnq-cifar10")
            >>> ghn = GHN.from_pretrained(
            ...     "SamsungSAILMontreal/ghn3", filename="ghn3tm8.pt"
            ... )  # doctest: +SKIP
        """
        if filename is not None:
            return cls.from_ghn3(download_public_file(str(name_or_path), filename, **kwargs))
        if Path(name_or_path).is_file() or str(name_or_path).endswith(".pt"):
            return cls.from_ghn3(name_or_path)
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
                f"{error}. Give a folder with config.json and model.safetensors, the name of a "
                "shipped checkpoint, or a Hugging Face Hub repository OWNER/NAME"
            ) from error
        return ghn.eval()

    def _save_pretrained(self, save_directory: Path) -> None:
        super()._save_pretrained(save_directory)
        config = json.dumps(self.settings, sort_keys=True, indent=2)
        (save_directory / "config.json").write_text(config)

    @classmethod
    def _from_pretrained(
        cls, *, model_id: str, map_location: str = "cpu", strict: bool = True, **kwargs: Any
    ) -> GHN:
        """Replace the mixin's own: always strict, and silent when it loads a folder.

        ``kwargs`` holds the checkpoint's settings and the Hub's arguments.
        """
        kwargs.setdefault("kernel_cut", "corner")  # older releases had no other way
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
