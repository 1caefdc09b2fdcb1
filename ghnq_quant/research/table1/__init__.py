"""The paper's Table 1, and the robustness of single networks."""

from ghnq_quant.research.table1.distributions import (
    Distribution,
    distribution,
    parameter_distributions,
)
from ghnq_quant.research.table1.evaluation import Evaluation
from ghnq_quant.research.table1.measurement import measure_network
from ghnq_quant.research.table1.results import LayerResult, NetworkResult, PrecisionResult
from ghnq_quant.research.table1.run import evaluate
from ghnq_quant.research.table1.summary import Summary, summarize

__all__ = [
    "Distribution",
    "Evaluation",
    "LayerResult",
    "NetworkResult",
    "PrecisionResult",
    "Summary",
    "distribution",
    "evaluate",
    "measure_network",
    "parameter_distributions",
    "summarize",
]
