"""Quantization-aware training from different starts, compared at equal numbers of steps."""

from ghnq_quant.research.starts.results import Comparison
from ghnq_quant.research.starts.run import compare_init
from ghnq_quant.research.starts.settings import CompareSettings, Trial
from ghnq_quant.research.starts.starts import STARTS

__all__ = ["STARTS", "CompareSettings", "Comparison", "Trial", "compare_init"]
