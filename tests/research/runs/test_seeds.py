"""Random streams never change, so old results and interrupted runs stay reproducible."""

from __future__ import annotations

import numpy as np

from ghnq_quant.research.runs.seeds import Stream, generator


def test_streams_keep_their_numbers() -> None:
    assert {stream.name: int(stream) for stream in Stream} == {
        "IMAGE_ORDER": 0, "AUGMENTATION": 1, "NETWORKS": 3, "PRECISION": 4,
        "REPLACEMENT_NETWORKS": 5, "BALANCED_BATCH": 6,
    }  # fmt: skip
    for stream in Stream:
        expected = np.random.default_rng((7, int(stream), 2, 9)).integers(2**62)
        assert generator(7, stream, 2, 9).integers(2**62) == expected
