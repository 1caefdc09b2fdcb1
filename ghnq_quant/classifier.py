"""A classification layer fitted to some images: multinomial logistic regression on its input."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ghnq_quant.errors import DataError, warn
from ghnq_quant.quantization.calibration import statistics_of_batches
from ghnq_quant.sample import Sample

#: Strength of the L2 term per feature, relative to the sum of the images' losses.
_L2 = 2.0
#: Smallest standard deviation to divide a feature by, relative to the root mean square of all: a
#: feature that hardly varies would get huge weights.
_LEAST_DEVIATION = 0.1
_MOST_ITERATIONS = 100


def fit_classifier(model: nn.Module, name: str, sample: Sample) -> None:
    """Fit the classification layer ``name`` of ``model`` to a sample.

    The layer's input is computed with batch statistics in the batch norms, which become their
    running statistics, and standardized. L-BFGS then fits a multinomial logistic regression with an
    L2 penalty on the weights: scikit-learn's with C = 1 / (2 · number of features), so strong that
    an image shifts its own logits by at most a half. With a weaker penalty the weights overfit the
    sample, suffer more from quantization, and make gradients so large that the first steps jump,
    which ruins training at a high learning rate. If the layer runs at several positions of the
    image, its mean input counts. Classes without an image get zero weights and the smallest bias.

    Args:
        model: returns the logits of this layer; its other parameters, and the modes of all modules,
            do not change.
        name: name of an ``nn.Linear`` or a 1×1 ``nn.Conv2d``.
        sample: sample of the task.

    Raises:
        DataError: a label without an output, or all labels are the same.
    """
    layer = model.get_submodule(name)
    assert isinstance(layer, (nn.Linear, nn.Conv2d))
    weight, bias = layer.weight, layer.bias
    present = _present_classes(sample.labels, len(weight), name)
    features = _features(model, layer, sample).double()
    index = torch.searchsorted(present, sample.labels)
    new_weight, new_bias = _logistic_regression(features, index, intercept=bias is not None)
    with torch.no_grad():
        weight.zero_()
        weight[present] = new_weight.view(len(present), *weight.shape[1:]).to(weight)
        if bias is not None:
            bias.fill_(new_bias.min())
            bias[present] = new_bias.to(bias)


def _present_classes(labels: Tensor, outputs: int, name: str) -> Tensor:
    """The classes that have an image, in ascending order."""
    present = labels.unique()
    least, most = int(present[0]), int(present[-1])
    if least < 0 or most >= outputs:
        raise DataError(
            f"data has labels from {least} to {most}, but {name!r} has outputs 0 to {outputs - 1}: "
            "create the model with one output per class"
        )
    if len(present) == 1:
        raise DataError(
            f"the first {len(labels)} images of data all have the label {least}: give them in "
            "mixed order, as a loader with shuffle=True does"
        )
    if len(present) < outputs:
        there = set(present.tolist())
        missing = [str(c) for c in range(outputs) if c not in there]
        warn(
            f"{len(missing)} of {outputs} classes have no image among the first {len(labels)} of "
            f"data: {', '.join(missing[:8])}{', …' if len(missing) > 8 else ''}. Their weights in "
            f"{name!r} start at zero"
        )
    return present


@torch.no_grad()
def take_statistics(model: nn.Module, sample: Sample) -> None:
    """Set the batch norms' running statistics to those of a sample."""
    with statistics_of_batches(model):
        for x in sample.batches():
            model(x)


def _features(model: nn.Module, layer: nn.Module, sample: Sample) -> Tensor:
    """(N, C): the layer's input, averaged over the positions of a feature map."""
    found: list[Tensor] = []

    def keep(_: nn.Module, args: tuple[Tensor, ...]) -> None:
        x = args[0].detach()
        found.append(x.mean((2, 3)) if x.ndim == 4 else x)

    hook = layer.register_forward_pre_hook(keep)
    try:
        take_statistics(model, sample)
    finally:
        hook.remove()
    return torch.cat(found)


def _logistic_regression(
    features: Tensor, labels: Tensor, *, intercept: bool
) -> tuple[Tensor, Tensor]:
    """Weight (classes, C) and bias (classes,) for unscaled features (N, C); without ``intercept``
    the bias is zero."""
    centre = features.mean(0) if intercept else torch.zeros_like(features[0])
    deviation = features.std(0, correction=0)
    least = _LEAST_DEVIATION * deviation.square().mean().sqrt()
    scale = deviation.clamp_min(least.clamp_min(torch.finfo(features.dtype).tiny))
    x = (features - centre) / scale
    l2 = _L2 * x.shape[1] / len(x)
    classes = int(labels.max()) + 1
    weight = x.new_zeros(classes, x.shape[1], requires_grad=True)
    bias = x.new_zeros(classes, requires_grad=intercept)
    optimizer = torch.optim.LBFGS(
        [weight, bias] if intercept else [weight],
        max_iter=_MOST_ITERATIONS,
        line_search_fn="strong_wolfe",
    )

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = F.cross_entropy(F.linear(x, weight, bias), labels)
        value = value + 0.5 * l2 * weight.square().sum()
        value.backward()
        return value

    with torch.enable_grad():
        optimizer.step(loss)
    unscaled = weight.detach() / scale
    return unscaled, bias.detach() - unscaled @ centre
