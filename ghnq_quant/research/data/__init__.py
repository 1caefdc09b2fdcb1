"""Labeled images, and the batches that trainings and evaluations take from them."""

from ghnq_quant.research.data.batches import (
    Augmentation,
    balanced_batch,
    evaluation_batches,
    first_epoch,
    training_batch,
    usual_augmentation,
)
from ghnq_quant.research.data.images import Images, ImageSet, hold_out, load_images

__all__ = [
    "Augmentation",
    "ImageSet",
    "Images",
    "balanced_batch",
    "evaluation_batches",
    "first_epoch",
    "hold_out",
    "load_images",
    "training_batch",
    "usual_augmentation",
]
