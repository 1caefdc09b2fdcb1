"""After training: folded models, integer layers, and files for runtimes."""

from ghnq_quant.deployment.convert import convert
from ghnq_quant.deployment.export import export_onnx
from ghnq_quant.deployment.pte import export_pte

__all__ = ["convert", "export_onnx", "export_pte"]
