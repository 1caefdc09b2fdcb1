"""Packages that only parts of ghnq-quant need, and how to install them."""

from __future__ import annotations

#: The extra that brings a package, by import name.
EXTRA_OF = {
    "executorch": "executorch",
    "jinja2": "research",
    "matplotlib": "research",
    "onnx": "onnx",
    "onnxoptimizer": "onnx",
    "onnxruntime": "onnx",
    "onnxscript": "onnx",
    "openvino": "deploy",
    "qonnx": "onnx",
    "sklearn": "research",
    "tensorboard": "research",
    "timm": "timm",
    "torchao": "torchao",
    "torchvision": "torchvision",
}


def how_to_install(package: str) -> str:
    """The command that installs the package behind ``import package``.

    Example:
        >>> how_to_install("torchao.quantization"), how_to_install("brevitas.nn")
        ("pip install 'ghnq-quant[torchao]'", 'pip install brevitas')
    """
    root = package.partition(".")[0]
    return (
        f"pip install 'ghnq-quant[{EXTRA_OF[root]}]'" if root in EXTRA_OF else f"pip install {root}"
    )
