"""Fixtures for the tests of finetuning."""

from __future__ import annotations

import pytest

from ghnq_quant.research.data import ImageSet, load_images


@pytest.fixture(scope="session")
def digits() -> ImageSet:
    return load_images("digits")
