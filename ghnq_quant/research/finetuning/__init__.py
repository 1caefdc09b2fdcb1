"""Training the hypernetwork, and the files of a run."""

from ghnq_quant.research.finetuning.loop import finetune
from ghnq_quant.research.finetuning.settings import FinetuneSettings
from ghnq_quant.research.finetuning.state import TrainingState, starting_point

__all__ = ["FinetuneSettings", "TrainingState", "finetune", "starting_point"]
