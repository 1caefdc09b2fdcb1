"""What comes after training: folded models, torch's integer kernels, ONNX files."""

from ghnq_quant.deployment.convert import convert
from ghnq_quant.deployment.export import export_onnx

__all__ = ["convert", "export_onnx"]
