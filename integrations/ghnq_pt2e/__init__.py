"""torchao's export flow for quantization-aware training (PT2E) as a backend of ghnq-quant."""

from ghnq_pt2e.backend import Pt2eBackend
from ghnq_pt2e.model import Pt2eModel
from ghnq_pt2e.quantizer import PlanQuantizer

__all__ = ["PlanQuantizer", "Pt2eBackend", "Pt2eModel"]
