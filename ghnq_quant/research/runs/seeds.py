"""Random generators of a run: a separate stream of numbers for each thing that is drawn.

Everything random in a run depends only on the run's seed, on what is drawn and on where in the run it
is drawn, so a resumed run draws the same as an uninterrupted one. The numbers below are part of this:
if one changes, old results cannot be repeated.
"""

from __future__ import annotations

from enum import IntEnum

import numpy as np

#: Seed of the split into training and validation images, the same in all runs, so that a run that
#: continues another one is never trained on its validation images.
HELD_OUT_SEED = 1
#: Seed of the trainings that choose a learning rate: above any that is reported, so that they share
#: no images or random parameters with those.
CHOICE_SEED = 1_000_000
#: Seed of an evaluation: for the order of images, and the initializations that predicted parameters
#: are compared with.
EVALUATION_SEED = 0


class Stream(IntEnum):
    """What a generator draws."""

    IMAGE_ORDER = 0
    AUGMENTATION = 1
    NETWORKS = 3
    PRECISION = 4
    REPLACEMENT_NETWORKS = 5
    BALANCED_BATCH = 6


def generator(seed: int, stream: Stream, *place: int) -> np.random.Generator:
    """The generator of one stream at one place of a run.

    Args:
        seed: the run's seed, from 0.
        stream: what is drawn.
        place: for example a step or an epoch, from 0.

    Example:
        >>> first, again = (generator(0, Stream.PRECISION, 7) for _ in range(2))
        >>> int(first.integers(1000) - again.integers(1000))
        0
    """
    return np.random.default_rng((seed, int(stream), *place))
