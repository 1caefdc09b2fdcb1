"""What comes after training: folded models, torch's integer kernels, ONNX files."""

from ghnq_quant.deployment.convert import convert

__all__ = ["convert"]
