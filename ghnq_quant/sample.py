"""A sample of the user's task, read from anything that yields batches."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ghnq_quant.errors import DataError

#: Images to read; reading stops after the batch that reaches this number.
SAMPLE_IMAGES = 1000
#: How many of them set the running statistics and activation ranges of a quantized model.
CALIBRATION_IMAGES = 256
#: Approximate batch size of the sample; batch norms use the statistics of each batch.
_BATCH_SIZE = 64


@dataclass(frozen=True, eq=False)
class Sample:
    """Images and labels of the user's task.

    Attributes:
        images: (N, C, H, W).
        labels: int64, (N,).
    """

    images: Tensor
    labels: Tensor

    def batches(self, limit: int | None = None) -> list[Tensor]:
        """The images, or the first ``limit``, in batches whose sizes differ by at most one."""
        images = self.images[:limit]
        return list(images.tensor_split(-(-len(images) // _BATCH_SIZE)))


def read_sample(data: Iterable[Any], like: Tensor) -> Sample:
    """Read batches of ``data`` until there are :data:`SAMPLE_IMAGES` images.

    Args:
        data: batches (images, labels); images float (N, C, H, W), labels integers (N,).
        like: a tensor of the device and dtype that the images get.

    Raises:
        DataError: no batch, or one that is malformed or has values that are not finite.
    """
    images: list[Tensor] = []
    labels: list[Tensor] = []
    for number, batch in enumerate(data):
        x, y = _checked(batch, number)
        if images and x.shape[1:] != images[0].shape[1:]:
            raise DataError(
                f"data: batch {number} has images of {tuple(x.shape[1:])}, batch 0 of "
                f"{tuple(images[0].shape[1:])}: resize all to one size"
            )
        images.append(x.detach().to(like))
        labels.append(y.detach().to(like.device, torch.int64))
        if sum(map(len, labels)) >= SAMPLE_IMAGES:
            break
    if not images:
        raise DataError("data has no batches: give batches (images, labels), as a loader does")
    return Sample(torch.cat(images), torch.cat(labels))


def _checked(batch: Any, number: int) -> tuple[Tensor, Tensor]:
    if not isinstance(batch, (tuple, list)) or len(batch) < 2:
        raise DataError(f"data: batch {number} is not a pair (images, labels)")
    x, y = batch[:2]
    if not isinstance(x, Tensor) or x.ndim != 4 or not x.is_floating_point() or not len(x):
        raise DataError(
            f"data: the images of batch {number} are {_form(x)}; give a tensor of floats "
            "(N, C, H, W), normalized as for training"
        )
    if not isinstance(y, Tensor) or y.shape != (len(x),) or y.is_floating_point() or y.is_complex():
        raise DataError(
            f"data: the labels of batch {number} are {_form(y)}; give a tensor of {len(x)} "
            "integers, the number of each image's class"
        )
    if not x.isfinite().all():
        raise DataError(
            f"data: the images of batch {number} hold NaN or infinite values: check how they are "
            "read and normalized"
        )
    return x, y


def _form(value: Any) -> str:
    if not isinstance(value, Tensor):
        return f"a {type(value).__name__}"
    return f"{str(value.dtype).removeprefix('torch.')} of shape {tuple(value.shape)}"
