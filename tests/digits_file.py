"""The digits as a file, to read without scikit-learn."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ghnq_quant.research.data import load_images


def save_digits(path: Path) -> dict[str, np.ndarray]:
    """Write the digits as an .npz; returns its content."""
    digits = load_images("digits")
    arrays = {}
    for part, images in (("train", digits.train), ("test", digits.test)):
        arrays[f"x_{part}"] = images.images.permute(0, 2, 3, 1).numpy()
        arrays[f"y_{part}"] = images.labels.numpy()
    np.savez(path, **arrays)
    return arrays
