"""Read folders of image files into arrays with 8 bits per channel."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ghnq_quant.errors import DataError

if TYPE_CHECKING:
    from PIL import Image

_IMAGE_SUFFIXES = frozenset(
    {".bmp", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}
)


def decode_folder(folder: Path, classes: tuple[str, ...]) -> tuple[np.ndarray, np.ndarray]:
    """All images, N × 3 × H × W, and labels from ``folder/CLASS/*``."""
    files: list[Path] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        found = sorted(f for f in (folder / name).iterdir() if f.suffix.lower() in _IMAGE_SUFFIXES)
        if not found:
            raise DataError(f"{folder / name} holds no image: add some or remove the folder")
        files += found
        labels += [label] * len(found)
    first = _decode(files[0])
    images = np.empty((len(files), *first.shape), np.uint8)

    def decode_into_place(index: int) -> None:
        image = _decode(files[index])
        if image.shape != first.shape:
            raise DataError(
                f"{files[index]} has {image.shape[1]}×{image.shape[0]} pixels, {files[0]} has "
                f"{first.shape[1]}×{first.shape[0]}: resize all images to one size"
            )
        images[index] = image

    # Pillow decodes without holding Python's global lock, so threads use all cores.
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for _ in pool.map(decode_into_place, range(len(files)), chunksize=64):
            pass
    return images.transpose(0, 3, 1, 2), np.asarray(labels)


def _decode(file: Path) -> np.ndarray:
    """H × W × 3, uint8."""
    from PIL import Image

    try:
        with Image.open(file) as image:
            mode, pixels, alpha = image.mode, _eight_bit(image), None
            if image.has_transparency_data:
                alpha = np.asarray(image.convert("RGBA"))[..., 3]
    except Exception as error:  # which one depends on the damage and the format
        raise DataError(f"{file} cannot be read as an image: {error}") from error
    if pixels is None:
        raise DataError(
            f"{file} has pixels of the kind {mode!r}, whose black and white are not known: save it "
            "with 8 bits per channel"
        )
    if alpha is not None and alpha.min() < 255:
        raise DataError(
            f"{file} has transparent pixels, which have no color of their own: put it on a "
            "background, and save it without transparency"
        )
    return pixels


def _eight_bit(image: Image.Image) -> np.ndarray | None:
    """The image in red, green and blue; None if its numbers are not shades."""
    if image.mode.startswith("I;16"):  # 16 bits, where Pillow would clip everything above 255
        grey = (np.asarray(image) >> 8).astype(np.uint8)
        return np.repeat(grey[..., None], 3, axis=2)
    if image.mode in {"I", "F"}:
        return None
    return np.asarray(image.convert("RGB"))
