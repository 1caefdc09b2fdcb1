"""From predicted parameters to a start that trains: how much is predicted, and at which size."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass, replace
from typing import Literal, get_args

import torch
from torch import Tensor, fx, nn

from ghnq_quant.capture import Capture, Kind
from ghnq_quant.capture.computed_weight import ComputedWeight
from ghnq_quant.classifier import fit_classifier, take_statistics
from ghnq_quant.errors import GhnqWarning, PredictionError
from ghnq_quant.ghn import GHN
from ghnq_quant.prediction import NewValues, predict_captured, warn_of_kept
from ghnq_quant.quantization import QuantModel, QuantScheme, emit, load_backend
from ghnq_quant.sample import Sample

Classifier = Literal["fitted", "new", "predicted"]

#: Share of the convolutions that are predicted where the user gives none.
DEFAULT_SHARE = 0.25
#: Size of predicted filters before a batch norm, in that of a new layer's.
_SIZE = 8.0


@dataclass(frozen=True)
class Start:
    """How a training begins.

    Attributes:
        share: of the convolutions that are predicted; None for a quarter, or all where
            ``as_predicted``.
        classifier: where the weights of the layer that gives the logits come from.
        as_predicted: all parameters exactly as the hypernetwork predicts them.

    Raises:
        PredictionError: one of them is nothing of the kind, or they contradict each other.
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
                f"share={share!r}: the share of the convolutions that are predicted is a number "
                "from 0 to 1"
            )
        if self.as_predicted and share not in (None, 1):
            raise PredictionError(
                f"share={share} with as_predicted=True, which predicts everything: leave one out"
            )

    def values(self, captured: Capture, ghn: GHN | str | None, bits: tuple[int, int]) -> NewValues:
        """Of each parameter what the training starts from; None where it keeps the network's own."""
        (predicted,) = predict_captured([captured], ghn, bits)
        if self.as_predicted:
            warn_of_kept(captured, predicted, stacklevel=3)
            return predicted
        share = DEFAULT_SHARE if self.share is None else self.share
        values = first_convolutions(captured, predicted, share)
        if self.classifier == "predicted":
            _add_classifier(captured, predicted, values)
        return values

    def fit(self, model: nn.Module, captured: Capture, sample: Sample) -> None:
        """Running statistics and, where it is so wanted, the classifier of a network with these values.

        Args:
            model: the network or its simulation; its classifier and statistics are changed.
            captured: the network.
            sample: of the task.
        """
        if self.as_predicted or self.classifier != "fitted":
            take_statistics(model, sample)
            return
        name = fittable_classifier(captured)
        if name is not None and isinstance(model.get_submodule(name), (nn.Linear, nn.Conv2d)):
            fit_classifier(model, name, sample)
            return
        take_statistics(model, sample)
        warnings.warn(
            f"the classifier stays new: {type(captured.root).__name__} does not end in one linear "
            "or 1×1 convolution layer whose output is its own",
            GhnqWarning,
            stacklevel=3,
        )


def predicted_beginning(captured: Capture, share: float) -> list[str]:
    """Names of the convolutions that are predicted: the first ``share`` of all, rounded up.

    Their order is that of depth: how many convolutions the longest way from the image to each
    passes through. Those of equal depth, such as the branches of a block, go together. The
    classification layer is not counted.

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
    """The predicted weights of the first ``share`` of the convolutions, made to be trained.

    A convolution that a batch norm follows gets eight times the size (root mean square) of a new
    layer's, 1 / √(3 · fan-in). The norm divides it out again, but a filter n times as large turns n²
    times slower under SGD, n times under Adam: a good beginning stays put while what is behind it
    learns. At the size of a new layer it is lost sooner; at the predicted one, up to 70 times that,
    it hardly moves at all, whatever the task needs. Any other convolution gets the size that it had.

    A filter that repeats another of its layer is new: a hypernetwork repeats its filters where a
    layer has more than it decodes, and equal ones would stay equal.

    Args:
        captured: the network with its own initialization.
        predicted: of each of its parameters; its tensors may be changed.
        share: see :func:`predicted_beginning`.

    Returns:
        of each parameter the new value; None where it keeps the network's own.
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
                f"shape {tuple(p.shape)}; fit it to images of yours (data=) or leave it new"
            )
        values[i] = predicted[i]


def _make_trainable(filters: Tensor, own: Tensor, size: Tensor) -> None:
    """Of (c_out, fan-in), in place."""
    repeated = _repeats(filters)
    filters.mul_(size / root_mean_square(filters).clamp_min(torch.finfo(filters.dtype).tiny))
    filters[repeated] = own[repeated]


def root_mean_square(x: Tensor) -> Tensor:
    """A scalar."""
    return x.square().mean().sqrt()


def _repeats(filters: Tensor) -> Tensor:
    """(c_out,): whether a filter equals one before it, by its first values, which are telling enough."""
    groups, index = torch.unique(filters[:, :64], dim=0, return_inverse=True)
    place = torch.arange(len(filters), device=filters.device)
    first = place.new_full((len(groups),), len(filters)).scatter_reduce(0, index, place, "amin")
    return first[index] < place


def fittable_classifier(captured: Capture) -> str | None:
    """Name of the one linear or 1×1 convolution layer that gives the logits, None if there is none.

    Between it and the output only reshaping and averaging over places may lie.
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
    """The same capture of a copy of the network with new values for its parameters; batch norms'
    running statistics, those of other parameters, are as new."""
    replaced = {
        id(p): nn.Parameter(new, requires_grad=p.requires_grad)
        for p, new in zip(captured.root.parameters(), values, strict=True)
        if new is not None
    }
    copied = captured.copied(replaced)
    reset_running_statistics(copied.root)
    return copied


def reset_running_statistics(model: nn.Module) -> None:
    """Make those of all batch norms as new."""
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.reset_running_stats()


def simulation(captured: Capture, scheme: QuantScheme) -> QuantModel:
    """A quantized model of the reference backend with the very parameters of a captured network, in
    which activations are quantized with each batch's range."""
    shared = {id(p): p for p in captured.root.parameters()}
    scheme = replace(scheme, act_range="batch")
    return emit(captured.copied(shared), scheme, load_backend("reference"))
