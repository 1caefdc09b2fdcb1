"""From predicted parameters to a start that trains: how much is predicted, and at what size."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, fx, nn

from ghnq_quant.capture import Capture, Kind
from ghnq_quant.capture.computed_weight import ComputedWeight
from ghnq_quant.classifier import fit_classifier, take_statistics
from ghnq_quant.errors import PredictionError, warn
from ghnq_quant.families import warn_of_losing_family
from ghnq_quant.prediction import (
    Hypernetwork,
    NewValues,
    load_ghn,
    predict_captured,
    warn_of_kept,
)
from ghnq_quant.quantization import QuantModel, QuantScheme, emit, load_backend
from ghnq_quant.sample import Sample

Classifier = Literal["fitted", "new", "predicted"]

#: Share of the convolutions to predict if the user gives none.
DEFAULT_SHARE = 0.25
#: Size of predicted filters before a batch norm, relative to a new layer's.
_SIZE = 8.0


@dataclass(frozen=True)
class Start:
    """How training starts.

    Attributes:
        share: share of the convolutions to predict; None for a quarter, or for all with
            ``as_predicted``.
        classifier: where the weights of the layer that gives the logits come from.
        as_predicted: all parameters exactly as the hypernetwork predicts them.

    Raises:
        PredictionError: a value is invalid, or two contradict each other.
    """

    share: float | None = None
    classifier: Classifier = "fitted"
    as_predicted: bool = False

    def __post_init__(self) -> None:
        if self.classifier not in get_args(Classifier):
            raise PredictionError(
                f"classifier={self.classifier!r}: expected one of {', '.join(get_args(Classifier))}"
            )
        share = self.share
        number = isinstance(share, (int, float)) and not isinstance(share, bool)
        if share is not None and not (number and 0 <= share <= 1):
            raise PredictionError(
                f"share={share!r}: give the share of the convolutions to predict, a number from 0 "
                "to 1"
            )
        if self.as_predicted and share not in (None, 1):
            raise PredictionError(
                f"share={share} with as_predicted=True, which predicts everything: leave one out"
            )

    def values(
        self, captured: Capture, ghn: Hypernetwork | None, bits: tuple[int, int]
    ) -> NewValues:
        """The starting value of each parameter; None where it keeps the network's own."""
        ghn = load_ghn(ghn)
        if ghn.encoder == "graphormer" and self.share != 0:
            warn_of_losing_family(captured)
        (predicted,) = predict_captured([captured], ghn, bits)
        if self.as_predicted:
            warn_of_kept(captured, predicted)
            return predicted
        share = DEFAULT_SHARE if self.share is None else self.share
        values = first_convolutions(captured, predicted, share)
        if self.classifier == "predicted":
            _add_classifier(captured, predicted, values)
        return values

    def fit(self, model: nn.Module, captured: Capture, sample: Sample) -> None:
        """Fit running statistics and, if wanted, the classifier of a network with these values.

        Args:
            model: the network or its simulation; its classifier and statistics are changed.
            captured: the network.
            sample: sample of the task.
        """
        if self.as_predicted or self.classifier != "fitted":
            take_statistics(model, sample)
            return
        name = fittable_classifier(captured)
        if name is not None and isinstance(model.get_submodule(name), (nn.Linear, nn.Conv2d)):
            fit_classifier(model, name, sample)
            return
        take_statistics(model, sample)
        warn(
            f"the classifier stays new: {type(captured.root).__name__} does not end in one "
            "linear or 1×1 convolution layer that gives the logits"
        )


def predicted_beginning(captured: Capture, share: float) -> list[str]:
    """Names of the convolutions to predict: the first ``share`` of all, rounded up.

    They are ordered by depth, the number of convolutions on the longest path from the image. Those
    of equal depth, such as the branches of a block, go together. The classification layer is not
    counted.

    Example:
        >>> from ghnq_quant.capture import capture
        >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU())
        >>> predicted_beginning(capture(model), 0.25)
        ['0']
    """
    depths: dict[fx.Node, int] = {}
    for node, kind in captured.kinds.items():
        before = max((depths[n] for n in node.all_input_nodes), default=0)
        depths[node] = before + (kind is Kind.CONV)
    convolutions = [
        node
        for node, kind in captured.kinds.items()
        if kind is Kind.CONV and str(node.target) not in captured.classifier
    ]
    convolutions.sort(key=depths.__getitem__)
    count = math.ceil(share * len(convolutions) - 1e-9)
    deepest = depths[convolutions[count - 1]] if count else 0
    return list(dict.fromkeys(str(n.target) for n in convolutions if depths[n] <= deepest))


def first_convolutions(captured: Capture, predicted: NewValues, share: float) -> NewValues:
    """The predicted weights of the first ``share`` of the convolutions, rescaled to train well.

    A convolution followed by a batch norm gets eight times the size (root mean square) of a new
    layer's weight, 1 / √(3 · fan-in). The norm divides the size out again, but a filter n times as
    large turns n² times more slowly under SGD and n times under Adam: a good beginning stays put
    while the layers behind it learn. At the size of a new layer it is lost sooner; at the predicted
    size, up to 70 times that, it hardly moves at all, whatever the task needs. Any other
    convolution gets the size of its initial weight.

    A filter that repeats another one of its layer stays new: a hypernetwork repeats filters where a
    layer has more than it decodes, and equal filters would stay equal.

    Args:
        captured: the network with its own initialization.
        predicted: value of each of its parameters; the tensors may be changed.
        share: see :func:`predicted_beginning`.

    Returns:
        the new value of each parameter; None where it keeps the network's own.
    """
    normed = {unit.name for unit in captured.quant_plan.units if unit.batch_norm is not None}
    place = {id(p): i for i, p in enumerate(captured.root.parameters())}
    values: NewValues = [None] * len(place)
    for name in predicted_beginning(captured, share):
        own = captured.modules[name]._parameters.get("weight")
        if own is None or (value := predicted[place[id(own)]]) is None:  # a computed weight
            continue
        if not value.is_meta:  # a meta one has no values
            filters, old = value.flatten(1), own.detach().flatten(1)
            new = filters.new_tensor(1 / math.sqrt(3 * filters.shape[1]))
            _make_trainable(filters, old, _SIZE * new if name in normed else root_mean_square(old))
        values[place[id(own)]] = value
    return values


def _add_classifier(captured: Capture, predicted: NewValues, values: NewValues) -> None:
    for i, (name, p) in enumerate(captured.root.named_parameters()):
        if name.rpartition(".")[0] not in captured.classifier:
            continue
        if predicted[i] is None:
            raise PredictionError(
                f'classifier="predicted": the hypernetwork has no prediction for {name!r} of '
                f"shape {tuple(p.shape)}; fit it to your images (data=) or leave it new"
            )
        values[i] = predicted[i]


def _make_trainable(filters: Tensor, own: Tensor, size: Tensor) -> None:
    """Rescale filters (c_out, fan-in) and replace repeated ones by ``own``, in place."""
    repeated = _repeats(filters)
    filters.mul_(size / root_mean_square(filters).clamp_min(torch.finfo(filters.dtype).tiny))
    filters[repeated] = own[repeated]


def root_mean_square(x: Tensor) -> Tensor:
    """The root mean square of all elements, a scalar."""
    return x.square().mean().sqrt()


def _repeats(filters: Tensor) -> Tensor:
    """(c_out,): whether a filter equals one before it."""
    seen: set[bytes] = set()
    repeated = []
    for row in filters.detach().contiguous().cpu().view(torch.uint8).numpy():
        content = row.tobytes()
        repeated.append(content in seen)
        seen.add(content)
    return torch.tensor(repeated, device=filters.device)


def fittable_classifier(captured: Capture) -> str | None:
    """Name of the one linear or 1×1 convolution layer that gives the logits, None if there is none.

    Only reshaping and averaging over positions may lie between it and the output.
    """
    if len(captured.classifier) != 1:
        return None
    (name,) = captured.classifier
    layer = captured.modules[name]
    if isinstance(layer, ComputedWeight) or "weight" not in layer._parameters:
        return None
    if isinstance(layer, nn.Conv2d) and (layer.kernel_size != (1, 1) or layer.groups > 1):
        return None
    return name if _is_plain_output(captured, name) else None


def _is_plain_output(captured: Capture, name: str) -> bool:
    allowed = (Kind.RESHAPE, Kind.GLOBAL_AVG_POOL, Kind.SPATIAL_MEAN, Kind.OUTPUT)
    node = next(n for n in captured.kinds if n.op == "call_module" and n.target == name)
    while captured.kinds[node] is not Kind.OUTPUT:
        users = [n for n in node.users if captured.kinds[n] is not Kind.NOT_A_TENSOR]
        if len(users) != 1 or captured.kinds[users[0]] not in allowed:
            return False
        node = users[0]
    return True


def with_values(captured: Capture, values: NewValues) -> Capture:
    """The same capture of a copy of the network with new parameter values; running statistics of
    batch norms, which belong to the old parameters, are reset."""
    replaced = {
        id(p): nn.Parameter(new, requires_grad=p.requires_grad)
        for p, new in zip(captured.root.parameters(), values, strict=True)
        if new is not None
    }
    copied = captured.copied(replaced)
    reset_running_statistics(copied.root)
    return copied


def reset_running_statistics(model: nn.Module) -> None:
    """Reset those of all batch norms."""
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.reset_running_stats()


def simulation(captured: Capture, scheme: QuantScheme) -> QuantModel:
    """A quantized model of the reference backend that shares the parameters of a captured network
    and quantizes activations with each batch's range."""
    shared = {id(p): p for p in captured.root.parameters()}
    return emit(captured.copied(shared), scheme.over_each_batch(), load_backend("reference"))
