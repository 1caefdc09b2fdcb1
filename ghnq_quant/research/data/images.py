"""Image sets, held entirely in memory as uint8: read, checked and normalized."""

from __future__ import annotations

import os
import zipfile
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ghnq_quant.errors import DataError
from ghnq_quant.research.data.decoding import decode_folder
from ghnq_quant.research.runs.seeds import HELD_OUT_SEED

_NPZ_KEYS = ("x_train", "y_train", "x_test", "y_test")
_CIFAR10_FOLDER = "cifar-10-batches-py"


@dataclass(frozen=True)
class Images:
    """One part, training or test, of an image set.

    Attributes:
        images: uint8, N × 3 × H × W.
        labels: int64, N, each from 0 to ``len(classes) - 1``.
        classes: the classes' names, in the order of their labels.
        mean: float32, 3: the training part's mean of each channel, with values from 0 to 1.
        std: float32, 3: its standard deviation, in the same unit.
    """

    images: Tensor
    labels: Tensor
    classes: tuple[str, ...]
    mean: Tensor
    std: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    @cached_property
    def members(self) -> tuple[np.ndarray, ...]:
        """Positions of each class's images, in ascending order.

        Raises:
            DataError: a class has none.
        """
        labels = self.labels.cpu().numpy()
        members = tuple(np.flatnonzero(labels == label) for label in range(len(self.classes)))
        for name, positions in zip(self.classes, members, strict=True):
            if not len(positions):
                raise DataError(f"there is no image of class {name!r}")
        return members

    def normalize(self, images: Tensor) -> Tensor:
        """Turn uint8 images, B × 3 × H × W, into float32: the training part gets mean 0, std 1."""
        mean, std = (255 * v.view(1, 3, 1, 1) for v in (self.mean, self.std))
        return (images.float() - mean) / std

    def sample(self, count: int, seed: int = 0) -> Images:
        """``count`` images drawn without replacement; all of them if there are no more."""
        if count < 1:
            raise DataError(f"cannot take {count} images: ask for at least 1")
        return self.select(self._mixed(seed)[:count])

    def sample_each_class(self, count: int, seed: int = 0) -> Images:
        """``count`` images of each class drawn without replacement; all of a class that has fewer.

        Example:
            >>> few = load_images("digits").train.sample_each_class(3)
            >>> few.labels.bincount().tolist()
            [3, 3, 3, 3, 3, 3, 3, 3, 3, 3]
        """
        if count < 1:
            raise DataError(f"cannot take {count} images of each class: ask for at least 1")
        order = self._mixed(seed)
        labels = self.labels.cpu()[order]
        chosen = [(labels == label).nonzero()[:count, 0] for label in range(len(self.classes))]
        return self.select(order[torch.cat(chosen).sort().values])

    def _mixed(self, seed: int) -> Tensor:
        return torch.from_numpy(np.random.default_rng(seed).permutation(len(self)))

    def select(self, index: Tensor) -> Images:
        """The images at ``index``, a vector of integers, in its order."""
        index = index.to(self.labels.device)
        return replace(self, images=self.images[index], labels=self.labels[index])

    def to(self, device: torch.device | str) -> Images:
        """The same images on another device, where batches will be, too."""
        images, labels, mean, std = (
            t.to(device) for t in (self.images, self.labels, self.mean, self.std)
        )
        return Images(images, labels, self.classes, mean, std)


@dataclass(frozen=True)
class ImageSet:
    """A training and a test part with the same classes and image size, and the set's actual name."""

    name: str
    train: Images
    test: Images


def load_images(data: str | Path, *, name: str | None = None, download: bool = False) -> ImageSet:
    """Load a complete image set into memory.

    Args:
        data: one of

            - ``"digits"``: the 1,797 digit images that scikit-learn ships, enlarged to 3 × 32 × 32,
              - ``"digits"``: the 1,797 digit images that scikit-learn ships, enlarged to 3 × 32 × 32,
                80 % of each class for training and 20 % for the test;
            - a folder with torchvision's CIFAR-10 (``cifar-10-batches-py``);
            - a folder with ``train/CLASS/*.png`` and ``test/CLASS/*.png`` (or ``val/``; any image
              format): labels follow the alphabetical order of the classes;
            - an ``.npz`` file with ``x_train``, ``x_test`` (uint8, N × H × W × 3; grey images
              N × H × W are repeated over the channels) and ``y_train``, ``y_test`` (integers).
        name: the set's name in reports; by default the file's or folder's own.
        download: fetch CIFAR-10 into the cache folder if it is not there yet.

    Raises:
        DataError: the set is missing, empty, damaged or mismatched; the message says where and what
            to do.

    Example:
        >>> from ghnq_quant.research.data import load_images
        >>> digits = load_images("digits")
        >>> digits.train.images.shape, len(digits.test)
        (torch.Size([1437, 3, 32, 32]), 360)
    """
    if data == "digits":
        return _load_digits(name or "scikit-learn digits")
    if data == "cifar10":
        return _load_cifar10(_cache_folder(), name or "CIFAR-10", download)
    path = Path(data)
    if path.is_file():
        return _load_npz(path, name or path.stem)
    if not path.is_dir():
        raise DataError(
            f"no image set at {path}: give 'digits', 'cifar10', an .npz file or an image folder"
        )
    if path.name == _CIFAR10_FOLDER:
        return _load_cifar10(path.parent, name or "CIFAR-10", download=False)
    if (path / _CIFAR10_FOLDER).is_dir():
        return _load_cifar10(path, name or "CIFAR-10", download=False)
    return _load_folder(path, name or path.resolve().name)


def hold_out(images: Images, count: int = 1024) -> tuple[Images, Images]:
    """Split training images into a part to train on and ``count`` (at most a tenth) to validate on.

    The validation images are the same in all runs, in random order.

    Example:
        >>> from ghnq_quant.research.data import load_images
        >>> train, val = hold_out(load_images("digits").train)
        >>> len(train), len(val)
        (1294, 143)
    """
    generator = torch.Generator().manual_seed(HELD_OUT_SEED)
    order = torch.randperm(len(images), generator=generator)
    count = max(1, min(count, len(images) // 10))
    return images.select(order[count:]), images.select(order[:count])


# The kinds of image sets


def _load_digits(name: str) -> ImageSet:
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    grey = torch.from_numpy(digits.images * (255 / 16)).float().unsqueeze(1)
    large = F.interpolate(grey, size=(32, 32), mode="bilinear", align_corners=False)
    x = large.round().to(torch.uint8).expand(-1, 3, -1, -1).numpy()
    train, test = train_test_split(
        np.arange(len(x)), test_size=0.2, random_state=0, stratify=digits.target
    )
    classes = tuple(str(c) for c in digits.target_names)
    y = digits.target
    return _image_set(name, classes, (x[train], y[train]), (x[test], y[test]))


def _load_cifar10(root: Path, name: str, download: bool) -> ImageSet:
    from torchvision.datasets import CIFAR10

    try:
        # torchvision compares each file's checksum before it unpickles it.
        train, test = (CIFAR10(str(root), train=t, download=download) for t in (True, False))
    except (RuntimeError, OSError) as error:
        if download:
            raise DataError(f"cannot download CIFAR-10 into {root}: {error}") from error
        raise DataError(
            f"no complete CIFAR-10 in {root / _CIFAR10_FOLDER}, or a file there is damaged: "
            "unpack cifar-10-python.tar.gz there again, or let load_images('cifar10', "
            "download=True) fetch it"
        ) from error
    (x_train, y_train), (x_test, y_test) = (
        (part.data.transpose(0, 3, 1, 2), np.asarray(part.targets)) for part in (train, test)
    )
    return _image_set(name, tuple(train.classes), (x_train, y_train), (x_test, y_test))


def _load_npz(path: Path, name: str) -> ImageSet:
    arrays = _read_npz(path)
    for split in ("train", "test"):
        arrays[f"x_{split}"] = _channels_first(arrays[f"x_{split}"], f"{path}: x_{split}")
        arrays[f"y_{split}"] = _label_vector(arrays[f"y_{split}"], f"{path}: y_{split}")
    present = np.unique(arrays["y_train"])
    if not np.array_equal(present, np.arange(len(present))):
        raise DataError(
            f"{path}: y_train holds the labels {_shortened(present)}; labels must run from 0 "
            "without a gap: renumber them"
        )
    strange = np.setdiff1d(arrays["y_test"], present)
    if len(strange):
        raise DataError(
            f"{path}: y_test holds the labels {_shortened(strange)}, which y_train, from 0 to "
            f"{len(present) - 1}, does not: both parts need the same classes"
        )
    x_train, y_train, x_test, y_test = (arrays[key] for key in _NPZ_KEYS)
    classes = tuple(str(label) for label in present)
    return _image_set(name, classes, (x_train, y_train), (x_test, y_test), str(path))


def _load_folder(path: Path, name: str) -> ImageSet:
    train_folder = path / "train"
    test_folder = path / "test" if (path / "test").is_dir() else path / "val"
    for folder in (train_folder, test_folder):
        if not folder.is_dir():
            raise DataError(
                f"{path} is no image folder: it needs train/CLASS/ and test/CLASS/ (or val/CLASS/) "
                f"with images, or {_CIFAR10_FOLDER}/"
            )
    classes, test_classes = _class_names(train_folder), _class_names(test_folder)
    if classes != test_classes:
        different = sorted(set(classes) ^ set(test_classes))
        raise DataError(
            f"{train_folder} and {test_folder} hold different classes: {_shortened(different)} "
            "only in one of them"
        )
    train = decode_folder(train_folder, classes)
    return _image_set(name, classes, train, decode_folder(test_folder, classes), str(path))


# Reading and checking


def _read_npz(path: Path) -> dict[str, np.ndarray]:
    if not zipfile.is_zipfile(path):
        raise DataError(f"{path} is no .npz file, or only the first part of one")
    try:
        with np.load(path, allow_pickle=False) as archive:
            missing = [key for key in _NPZ_KEYS if key not in archive.files]
            if missing:
                raise DataError(
                    f"{path} lacks {', '.join(missing)}; it holds {_shortened(archive.files)}"
                )
            return {key: np.asarray(archive[key]) for key in _NPZ_KEYS}
    except DataError:
        raise
    except Exception as error:  # what is raised depends on the damage; MemoryError too
        raise DataError(
            f"{path} cannot be read as an .npz of plain arrays ({type(error).__name__}: {error}): "
            "save it again with numpy.savez, without Python objects or a password"
        ) from error


def _channels_first(x: np.ndarray, where: str) -> np.ndarray:
    if x.dtype != np.uint8:
        raise DataError(f"{where} is {x.dtype}; images must be uint8 from 0 to 255")
    if x.ndim == 3:
        x = x[..., None]
    if x.ndim != 4 or x.shape[3] not in (1, 3):
        raise DataError(f"{where} has the shape {x.shape}; images must be N × H × W × 3")
    return np.broadcast_to(x, (*x.shape[:3], 3)).transpose(0, 3, 1, 2)


def _label_vector(y: np.ndarray, where: str) -> np.ndarray:
    if y.ndim == 2 and y.shape[1] == 1:
        y = y[:, 0]
    if y.ndim != 1 or y.dtype.kind not in "iu":
        raise DataError(f"{where} is {y.dtype} of shape {y.shape}; labels must be N integers")
    return y


def _class_names(folder: Path) -> tuple[str, ...]:
    names = tuple(sorted(f.name for f in folder.iterdir() if f.is_dir() and f.name[0] != "."))
    if not names:
        raise DataError(f"{folder} is empty: it needs one folder of images for each class")
    return names


def _image_set(
    name: str,
    classes: tuple[str, ...],
    train: tuple[np.ndarray, np.ndarray],
    test: tuple[np.ndarray, np.ndarray],
    where: str = "",
) -> ImageSet:
    """Build both parts from N × 3 × H × W images and N labels, checked against each other."""
    for part, (x, y) in (("training", train), ("test", test)):
        if not len(x) or not x.shape[2] or not x.shape[3]:
            raise DataError(f"{where}: the {part} part is empty")
        if len(x) != len(y):
            raise DataError(f"{where}: {len(x)} {part} images but {len(y)} labels")
    if train[0].shape[2:] != test[0].shape[2:]:
        raise DataError(
            f"{where}: training images have {train[0].shape[2]}×{train[0].shape[3]} pixels, "
            f"test images {test[0].shape[2]}×{test[0].shape[3]}"
        )
    x_train, x_test = (torch.from_numpy(np.ascontiguousarray(x)) for x, _ in (train, test))
    y_train, y_test = (torch.from_numpy(y.astype(np.int64)) for _, y in (train, test))
    mean, std = channel_moments(x_train)
    return ImageSet(
        name,
        Images(x_train, y_train, classes, mean, std),
        Images(x_test, y_test, classes, mean, std),
    )


def channel_moments(images: Tensor) -> tuple[Tensor, Tensor]:
    """Exact mean and standard deviation of each channel, from histograms of the 256 values."""
    counts = torch.stack([torch.bincount(c.flatten(), minlength=256) for c in images.unbind(1)])
    share = counts.double() / counts[0].sum()
    value = torch.arange(256).double() / 255
    mean = share @ value
    variance = (share * (value - mean[:, None]) ** 2).sum(1)
    # A channel that never varies is only centered.
    std = torch.where(variance > 0, variance.sqrt(), 1.0)
    return mean.float(), std.float()


def _shortened(items: object, most: int = 8) -> str:
    names = [str(item) for item in items]  # type: ignore[attr-defined]
    return ", ".join(names[:most]) + (", …" if len(names) > most else "")


def _cache_folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ghnq-quant"
