"""Images, training and what it keeps on disk."""

from ghnq_quant.training.batches import (
    Augmentation,
    balanced_batch,
    evaluation_batches,
    first_epoch,
    training_batch,
    usual_augmentation,
)
from ghnq_quant.training.images import Images, ImageSet, load_images
from ghnq_quant.training.loop import finetune
from ghnq_quant.training.settings import FinetuneSettings
from ghnq_quant.training.state import TrainingState, starting_point

__all__ = [
    "Augmentation",
    "FinetuneSettings",
    "ImageSet",
    "Images",
    "TrainingState",
    "balanced_batch",
    "evaluation_batches",
    "finetune",
    "first_epoch",
    "load_images",
    "starting_point",
    "training_batch",
    "usual_augmentation",
]
