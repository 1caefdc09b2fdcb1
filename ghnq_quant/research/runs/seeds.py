"""Random generators of a run: one stream of numbers for each thing that is drawn.

Everything random in a run is a function of the run's seed, of what is drawn and of where in the run it
is drawn, so a resumed run draws what an uninterrupted one does. The numbers below are part of that
function: change one and old results can no longer be repeated.
"""

from __future__ import annotations

from enum import IntEnum

import numpy as np

#: Seed of the split into images to train on and images to validate on, the same in all runs, so that
#: one that goes on from another is never trained on what it is validated on.
HELD_OUT_SEED = 1
#: Seed of the trainings that choose a learning rate: larger than that of any that is reported, so
#: that none shares their images or random parameters.
CHOICE_SEED = 1_000_000
#: Seed of what an evaluation draws: the order of the images, and the initializations that predicted
#: parameters are compared with.
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
        seed: of the run, from 0.
        stream: what is drawn.
        place: such as a step or an epoch, from 0.

    Example:
        >>> first, again = (generator(0, Stream.PRECISION, 7) for _ in range(2))
        >>> int(first.integers(1000) - again.integers(1000))
        0
    """
    return np.random.default_rng((seed, int(stream), *place))
