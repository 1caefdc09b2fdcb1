"""Compare a checkpoint of GHN-3's authors with the norms they published for its predictions."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

import ghnq_quant.ghn
from ghnq_quant.capture import capture
from ghnq_quant.errors import CheckpointError, GhnqError, PredictionError
from ghnq_quant.ghn import GHN
from ghnq_quant.prediction import predict_captured
from ghnq_quant.quantization.scheme import FLOAT
from ghnq_quant.zoos import create_model

#: Largest difference between norms that count as equal, as in the authors' own test.
TOLERANCE = 1e-2
_NORMS = Path(ghnq_quant.ghn.__file__).with_name("published_norms.json")
#: (encoder, max_shape, layers) of the checkpoints with published norms.
_CHECKPOINTS = {
    ("gated", (64, 64, 16, 16), 0): "ghn2.pt",
    ("graphormer", (64, 64, 16, 16), 3): "ghn3tm8.pt",
    ("graphormer", (384, 384, 16, 16), 24): "ghn3xlm16.pt",
}


@dataclass(frozen=True)
class Verified:
    """The result for one model.

    Attributes:
        model: torchvision's name.
        published: the 2-norm of the vector of 2-norms of all its parameters.
        found: the same for what the checkpoint predicts here; None if it predicts nothing.
        reason: why it predicts nothing.
    """

    model: str
    published: float
    found: float | None
    reason: str = ""

    @property
    def agrees(self) -> bool:
        return self.found is not None and abs(self.found - self.published) <= TOLERANCE


def published_norms(ghn: GHN) -> dict[str, float]:
    """The published norms of 74 torchvision models, by name, for the checkpoint that ``ghn`` is.

    Raises:
        CheckpointError: the authors published no norms for a hypernetwork of these sizes.

    Example:
        >>> with torch.device("meta"):
        ...     ghn = GHN((64, 64, 16, 16), 1000, 64, encoder="graphormer")
        >>> published_norms(ghn)["resnet18"]
        54.9382
    """
    layers = ghn.layers if ghn.encoder == "graphormer" else 0
    checkpoint = _CHECKPOINTS.get((ghn.encoder, ghn.max_shape, layers))
    if checkpoint is None or ghn.num_classes != 1000:
        raise CheckpointError(
            f"norms are published for {', '.join(_CHECKPOINTS.values())}; this hypernetwork has "
            f"other sizes: encoder {ghn.encoder}, max_shape {ghn.max_shape}, {layers} layers, "
            f"{ghn.num_classes} classes"
        )
    content = json.loads(_NORMS.read_text("utf-8"))
    column = content["checkpoints"].index(checkpoint)
    return {model: norms[column] for model, norms in content["norms"].items()}


def verify_checkpoint(ghn: GHN, models: Iterable[str] | None = None) -> Iterator[Verified]:
    """Compare predicted norms with the published ones, model by model.

    Args:
        models: torchvision names; by default all with published norms.

    Raises:
        CheckpointError: this checkpoint has no published norms.
        GhnqError: one of ``models`` has none.
    """
    norms = published_norms(ghn)
    for model in norms if models is None else models:
        if model not in norms:
            raise GhnqError(f"{model}: its norm is not published; known are {', '.join(norms)}")
        try:
            yield Verified(model, norms[model], predicted_norm(model, ghn))
        except GhnqError as error:
            yield Verified(model, norms[model], None, str(error))


def predicted_norm(model: str, ghn: GHN) -> float:
    """The 2-norm of the vector of 2-norms of all parameters of a torchvision model.

    Raises:
        GhnqError: it cannot be captured, one of its weights is not predicted, or its graph may differ
            from the one that the norm was published for.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torchvision warns about how it initializes
        network = create_model(f"torchvision:{model}", ghn.num_classes)
    captured = capture(network, attention=ghn.graph_rules == "ghn3")
    if any(isinstance(module, nn.MultiheadAttention) for module in network.modules()):
        raise PredictionError(
            "its norm was published for PyTorch 2.0, which may have run the softmax of "
            "MultiheadAttention as a separate operation, so for another graph"
        )
    (values,) = predict_captured([captured], ghn, FLOAT)
    norms = []
    for (name, own), new in zip(network.named_parameters(), values, strict=True):
        if new is None and own.dim() in (2, 4) and name.endswith("weight"):
            raise PredictionError(f"{name!r}, of shape {tuple(own.shape)}, is not predicted")
        p = own.detach() if new is None else new
        norms.append(torch.linalg.vector_norm(p, dtype=torch.float64))
    return torch.stack(norms).norm().item()
