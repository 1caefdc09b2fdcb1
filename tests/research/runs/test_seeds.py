"""Streams of random numbers: what old results and interrupted runs were drawn with stays."""

from __future__ import annotations

import numpy as np
import pytest

from ghnq_quant.research.runs.seeds import Stream, generator


@pytest.mark.parametrize(
    ("stream", "number"),
    [
        (Stream.IMAGE_ORDER, 0),
        (Stream.AUGMENTATION, 1),
        (Stream.NETWORKS, 3),
        (Stream.PRECISION, 4),
        (Stream.REPLACEMENT_NETWORKS, 5),
        (Stream.BALANCED_BATCH, 6),
    ],
)
def test_streams_keep_their_numbers(stream: Stream, number: int) -> None:
    expected = np.random.default_rng((7, number, 2, 9)).integers(2**62)
    assert generator(7, stream, 2, 9).integers(2**62) == expected
