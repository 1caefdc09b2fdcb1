"""Reports of evaluations as one page."""

from ghnq_quant.research.report.page import write_report

__all__ = ["write_report"]
