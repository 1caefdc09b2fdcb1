"""Runs ONNX files in onnxruntime and in QONNX's executor."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor


def run(file: Path, x: Tensor, *, optimized: bool = False) -> Tensor:
    onnxruntime = pytest.importorskip("onnxruntime")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    if not optimized:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(None, {"input": x.numpy()})[0])


def run_qonnx(file: Path, x: Tensor) -> Tensor:
    pytest.importorskip("qonnx")
    from qonnx.core.modelwrapper import ModelWrapper
    from qonnx.core.onnx_exec import execute_onnx
    from qonnx.transformation.infer_shapes import InferShapes

    model = ModelWrapper(str(file))
    model.set_tensor_shape("input", list(x.shape))
    found = execute_onnx(model.transform(InferShapes()), {"input": x.numpy()})
    return torch.from_numpy(found["output"])
