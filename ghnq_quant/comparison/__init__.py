"""Quantization-aware training from different starts, compared at equal numbers of steps."""

from ghnq_quant.comparison.record import Comparison
from ghnq_quant.comparison.run import compare_init
from ghnq_quant.comparison.settings import CompareSettings, Trial
from ghnq_quant.comparison.starts import STARTS

__all__ = ["STARTS", "CompareSettings", "Comparison", "Trial", "compare_init"]
