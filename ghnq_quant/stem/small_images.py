"""Networks made for images of 224×224 pixels, adapted to images of CIFAR's size."""

from __future__ import annotations

import copy

from torch import fx, nn

from ghnq_quant.capture import Capture, Kind, capture
from ghnq_quant.capture.operations import WINDOWED_POOLS
from ghnq_quant.errors import CaptureError, GhnqError
from ghnq_quant.stem.heads import fit_heads
from ghnq_quant.stem.resolution import (
    PROBE_SIDE,
    Downsampling,
    Resolution,
    find_resolution,
    image_shape,
)

#: Kernel size of a stem whose stride was lowered; smaller ones stay.
_STEM_KERNEL = 3


def adapt_stem(model: nn.Module, image_size: int = 32, *, min_size: int = 4) -> nn.Module:
    """Copy a network and make its feature maps large enough for small images.

    The network's downsampling steps (strided convolutions and poolings, in a residual network both
    branches of a step) are undone, starting at the image, until its last convolution gives feature
    maps of at least ``min_size`` by ``min_size``; for 32×32 images these are the first two of the
    usual five. A strided layer that is undone gets stride 1, and a pooling is removed. A kernel of
    the stem larger than 3×3 shrinks to 3×3, and one that cuts its input into patches to 1×1. A head
    that enlarges small feature maps to a fixed size (VGG's 7×7) reads them directly.

    Args:
        model: the network; it is not changed. It must run on a 224×224 image.
        image_size: side of the images.
        min_size: side of the last convolution's feature maps.

    Returns:
        a model of the same class, with the same names of modules and parameters. All parameters
        keep their values, except that a shrunk kernel keeps only its center, and a head's weight is
        summed so that the head computes the same as before.

    Raises:
        CaptureError: the network cannot be captured, a step to undo is not made by a module of its
            own, or the network does not run on such images even then.
        GhnqError: a size below 1, or images smaller than ``min_size``.

    Example:
        >>> import ghnq_quant, torchvision
        >>> model = ghnq_quant.adapt_stem(torchvision.models.resnet18(num_classes=10))
        >>> model.conv1.stride, model.conv1.weight.shape[2:], model.maxpool
        ((1, 1), torch.Size([3, 3]), Identity())
    """
    if not 1 <= min_size <= image_size:
        raise GhnqError(
            f"image_size={image_size}, min_size={min_size}: feature maps have a side of at least 1 "
            "and at most the images'"
        )
    captured = capture(model)
    resolution = _resolution(captured)
    adapted = copy.deepcopy(model)
    steps = _Steps(adapted, captured, resolution, image_size)
    for step in resolution.steps:
        for stride in _smaller_strides(step.stride[0]):
            if steps.last_side() >= min_size:
                break
            steps.lower(step, stride)
    steps.check(min_size)
    fit_heads(adapted, image_size)
    return adapted


def _resolution(captured: Capture) -> Resolution:
    shapes = captured.shapes(image_shape(captured, PROBE_SIDE))
    return find_resolution(captured.graph, captured.kinds, captured.modules, shapes)


def _smaller_strides(stride: int) -> list[int]:
    return [s for s in range(stride - 1, 0, -1) if stride % s == 0]


class _Steps:
    """Undoes downsampling in ``adapted``, a copy of the captured network."""

    def __init__(
        self, adapted: nn.Module, captured: Capture, resolution: Resolution, image_size: int
    ) -> None:
        self.adapted = adapted
        self.captured = captured
        self.resolution = resolution
        self.image_size = image_size
        self.stem = captured.stem
        self.failure: CaptureError | None = None
        self.calls: dict[object, int] = {}
        for node in captured.graph.nodes:
            self.calls[node.target] = self.calls.get(node.target, 0) + 1

    def last_side(self) -> int:
        """Side of the last convolution's feature maps; 0 if the network does not run."""
        try:
            captured = capture(self.adapted)
            shapes = captured.shapes(image_shape(captured, self.image_size))
        except CaptureError as error:
            self.failure = error
            return 0
        self.failure = None
        name = self.resolution.last.target
        return next(shapes[n.name][2] for n in captured.graph.nodes if n.target == name)

    def check(self, min_size: int) -> None:
        side = self.last_side()
        if self.failure is not None:
            raise self.failure
        if side < min_size:
            raise CaptureError(
                f"without any stride, the last convolution, {self.resolution.last.target!r}, gives "
                f"feature maps of {side}×{side} for images of {self.image_size}×{self.image_size}, "
                f"not {min_size}×{min_size}: give larger images or a smaller min_size"
            )

    def lower(self, step: Downsampling, stride: int) -> None:
        if len(set(step.stride)) > 1:
            places = ", ".join(_place(node) for node in step.nodes)
            raise CaptureError(
                f"branches that lower the resolution by different strides ({places}): such a "
                "network's strides cannot be undone one after another"
            )
        for node in step.nodes:
            self._lower_one(node, stride)

    def _lower_one(self, node: fx.Node, stride: int) -> None:
        kind = self.captured.kinds[node]
        name = str(node.target)
        pool = kind in WINDOWED_POOLS
        if node.op != "call_module" or not (pool or kind is Kind.CONV):
            raise CaptureError(
                f"{_place(node)} lowers the resolution, but is not a convolution or pooling "
                "module whose stride could be changed: make it one"
            )
        if self.calls[node.target] > 1:
            raise CaptureError(
                f"module {name!r} lowers the resolution and is called {self.calls[node.target]} "
                "times, so its stride belongs to several steps: give each call a module of its own"
            )
        module = self.adapted.get_submodule(name)
        if pool and stride == 1:
            self.adapted.set_submodule(name, nn.Identity())
        elif isinstance(module, nn.Conv2d):
            _shrink_kernel(module, stride, name in self.stem)
            module.stride = (stride, stride)
        else:
            module.stride = stride  # type: ignore[assignment]


def _place(node: fx.Node) -> str:
    if node.op == "call_module":
        return f"module {str(node.target)!r}"
    scope = next(reversed(node.meta.get("nn_module_stack", {})), "")
    what = getattr(node.target, "__name__", node.target)
    return f"{what} in the forward of {f'module {scope!r}' if scope else 'the model'}"


def _shrink_kernel(conv: nn.Conv2d, stride: int, stem: bool) -> None:
    """Make the kernel fit a smaller stride."""
    old, padding = conv.kernel_size, conv.padding
    if old == conv.stride and padding in ((0, 0), "valid"):
        new = (stride, stride)  # patches
    elif stem:
        new = (min(old[0], _STEM_KERNEL), min(old[1], _STEM_KERNEL))
    else:
        return
    top, left = (old[0] - new[0]) // 2, (old[1] - new[1]) // 2
    kernel = conv.weight.detach()[..., top : top + new[0], left : left + new[1]].clone()
    conv.weight = nn.Parameter(kernel, conv.weight.requires_grad)
    conv.kernel_size = new
    if not isinstance(padding, str) and any(padding):
        height, width = ((side - 1) // 2 * d for side, d in zip(new, conv.dilation, strict=True))
        conv.padding = (height, width)
        conv._reversed_padding_repeated_twice = [width, width, height, height]
