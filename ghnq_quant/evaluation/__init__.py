"""The paper's Table 1, the robustness of single networks, and reports of both."""

from ghnq_quant.evaluation.distributions import (
    Distribution,
    distribution,
    parameter_distributions,
)
from ghnq_quant.evaluation.precision import PAPER_PRECISIONS, precision_name
from ghnq_quant.evaluation.protocol import measure_network
from ghnq_quant.evaluation.record import Evaluation
from ghnq_quant.evaluation.report import write_report
from ghnq_quant.evaluation.results import LayerResult, NetworkResult, PrecisionResult
from ghnq_quant.evaluation.run import evaluate
from ghnq_quant.evaluation.summary import Summary, summarize

__all__ = [
    "PAPER_PRECISIONS",
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
    "precision_name",
    "summarize",
    "write_report",
]
