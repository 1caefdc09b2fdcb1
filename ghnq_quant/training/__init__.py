"""Images, training and what it keeps on disk."""

from ghnq_quant.training.batches import Augmentation, evaluation_batches, training_batch
from ghnq_quant.training.images import Images, ImageSet, load_images

__all__ = [
    "Augmentation",
    "ImageSet",
    "Images",
    "evaluation_batches",
    "load_images",
    "training_batch",
]
