"""Fixtures for the tests of the evaluation."""

from __future__ import annotations

import pytest
import torch
from table1_setting import random_images
from torch import nn

from ghnq_quant import GHN
from ghnq_quant.research.data import Images


@pytest.fixture(scope="module")
def images() -> Images:
    return random_images(300, seed=0)


@pytest.fixture(scope="module")
def embedded_ghn() -> GHN:
    """A hypernetwork whose prediction depends on the precision."""
    torch.manual_seed(1)
    ghn = GHN(max_shape=(16, 16, 7, 7), num_classes=10, hid=8, precision_embedding=True).eval()
    nn.init.normal_(ghn.precision.weight)
    return ghn
