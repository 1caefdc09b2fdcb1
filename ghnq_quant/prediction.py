"""From captured networks to predicted parameters."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import torch
from torch import Tensor, nn

from ghnq_quant.capture import ArchGraph, Capture
from ghnq_quant.errors import PredictionError, warn
from ghnq_quant.ghn import GHN

#: A hypernetwork, or anything that :meth:`ghnq_quant.GHN.from_pretrained` loads.
Hypernetwork = GHN | str | Path
#: New values of a network's parameters, in their order; None where a parameter keeps its own.
NewValues = list[Tensor | None]


@cache
def default_ghn() -> GHN:
    """The checkpoint that the package ships, loaded once."""
    return GHN.from_pretrained()


def load_ghn(ghn: Hypernetwork | None) -> GHN:
    """The hypernetwork that is given or named; the shipped one for None.

    Raises:
        CheckpointError: there is no checkpoint of this name, or it is damaged.
    """
    if ghn is None:
        return default_ghn()
    return ghn if isinstance(ghn, GHN) else GHN.from_pretrained(ghn)


def predict_captured(
    captures: list[Capture], ghn: Hypernetwork | None, bits: tuple[int, int]
) -> list[NewValues]:
    """New values of each network's parameters; None where nothing is predicted.

    Raises:
        PredictionError: a parameter cannot be predicted, or its prediction is not finite.
        CheckpointError: as for :func:`load_ghn`.
    """
    ghn = load_ghn(ghn)
    graphs = [captured.arch_graph_by(ghn.graph_rules) for captured in captures]
    with torch.no_grad():
        by_name = ghn(graphs, [bits] * len(captures))
    for graph, new in zip(graphs, by_name, strict=True):
        _keep_classifier_of_other_classes(graph, new, ghn.num_classes)
    for captured, graph, new in zip(captures, graphs, by_name, strict=True):
        _keep_row_of_class_token(captured.root, graph, new)
    return [_by_parameter(c.root, new) for c, new in zip(captures, by_name, strict=True)]


def _keep_classifier_of_other_classes(
    graph: ArchGraph, new: dict[str, Tensor], num_classes: int
) -> None:
    """A classifier for another task's classes, as some hypernetworks predict, would only mislead."""
    for position in (graph.classifier_weight, graph.classifier_bias):
        if position is None:
            continue
        node = graph.nodes[position]
        if node.shape is not None and node.shape[0] != num_classes:
            new.pop(node.parameters[0], None)


def _keep_row_of_class_token(root: nn.Module, graph: ArchGraph, new: dict[str, Tensor]) -> None:
    """Turn position embeddings (1, C, S, S) into tokens. GHN-3 was trained on networks without a
    class token; its authors draw that row from the distribution that torchvision's models use."""
    for node in graph.nodes:
        if node.primitive == "pos_enc":
            (name,) = node.parameters
            tokens = new[name].flatten(2).transpose(1, 2)
            embedding = root.get_parameter(name).detach().to(tokens.device, copy=True)
            embedding[:, -tokens.shape[1] :] = tokens
            new[name] = embedding


def _by_parameter(root: nn.Module, predicted: dict[str, Tensor]) -> NewValues:
    by_id: dict[int, Tensor | None] = {}
    for name, p in root.named_parameters(remove_duplicate=False):
        if by_id.get(id(p)) is None:  # a tied parameter: its first use counts
            new = predicted.pop(name, None)
            by_id[id(p)] = None if new is None else _own_memory(new, p, name)
    return list(by_id.values())


def _own_memory(value: Tensor, parameter: nn.Parameter, name: str) -> Tensor:
    if value.shape != parameter.shape:
        if value.numel() != parameter.numel():
            raise PredictionError(
                f"{name!r} has shape {tuple(parameter.shape)}, its prediction {tuple(value.shape)}"
            )
        value = value.reshape(parameter.shape)  # a conv1d is captured as a 1×k conv2d
    value = value.to(device=parameter.device, dtype=parameter.dtype)
    if value.dtype != torch.float32 and not value.isfinite().all():
        raise PredictionError(f"{name!r}: a predicted value is too large for {value.dtype}")
    whole = value.is_contiguous() and value.untyped_storage().nbytes() == value.nbytes
    return value if whole else value.clone(memory_format=torch.contiguous_format)


def warn_of_kept(captured: Capture, values: NewValues) -> None:
    """Warn about parameters for which nothing was predicted."""
    named = zip(captured.root.named_parameters(), values, strict=True)
    kept = [name for (name, _), value in named if value is None]
    if kept:
        warn(
            f"{len(kept)} parameters keep their own initialization: {', '.join(kept[:8])}"
            f"{', …' if len(kept) > 8 else ''}. The hypernetwork predicts classification layers with "
            "its own number of classes, and the weights and biases of Conv2d, Linear and norm "
            "layers that the network runs in eval mode"
        )


def warn_of_losses(captured: Capture) -> None:
    """Warn about what a network's quantized copy keeps float or leaves out, except skipped modules."""
    parts = [name for name in captured.float_parts if name not in captured.skipped]
    if parts:
        warn(
            f"{len(parts)} parts stay float, so layers after them read values that are not quantized: "
            f"{', '.join(parts[:8])}{', …' if len(parts) > 8 else ''} (norms not folded into a "
            "convolution, parameters used outside of layers); the model's float_parts names them all"
        )
    if captured.more_outputs:
        warn(
            f"{type(captured.root).__name__} returns more values in training, such as those of "
            "auxiliary classifiers: its quantized copy always returns what it returns in eval"
        )


def warn_of_skipped(captured: Capture) -> None:
    """Warn about modules that were skipped."""
    if captured.skipped:
        warn(
            f"{len(captured.skipped)} modules stay float with their own initialization, because they "
            f"are not made of supported layers: {', '.join(captured.skipped)}"
        )
