"""How well real integers agree with the simulation: the table of docs/how-to/export.md.

python docs/examples/agreement.py --data cifar10.npz --bits 8
"""

from __future__ import annotations

import argparse
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
import torch.nn.functional as F
from qonnx.core.modelwrapper import ModelWrapper
from qonnx.core.onnx_exec import execute_onnx
from qonnx.transformation.infer_shapes import InferShapes
from torch import Tensor, nn

import ghnq_quant
from ghnq_quant.quantization import QuantModel
from ghnq_quant.research.data import Images, load_images, training_batch
from ghnq_quant.research.networks import ConvNets250K
from ghnq_quant.research.starts.small_mobilenet import SmallMobileNet

IMAGES, BATCH = 1000, 100


def vgg_like() -> nn.Module:
    layers: list[nn.Module] = []
    channels = 3
    for width, pool in (
        (32, False),
        (32, True),
        (64, False),
        (64, True),
        (128, False),
        (128, True),
    ):
        layers += [nn.Conv2d(channels, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()]
        layers += [nn.MaxPool2d(2)] if pool else []
        channels = width
    head = [nn.Flatten(), nn.Linear(128 * 16, 128), nn.ReLU(), nn.Linear(128, 10)]
    return nn.Sequential(*layers, *head)


def networks() -> dict[str, nn.Module]:
    from torchvision.models import mobilenet_v2, resnet18

    made = {
        "vgg-like": vgg_like(),
        "small MobileNet": SmallMobileNet(),
        "resnet18": resnet18(num_classes=10),
        "mobilenet_v2": mobilenet_v2(num_classes=10),
    }
    for index in (0, 1, 2, 3):
        made[f"ConvNets-250K test {index}"] = ConvNets250K("test")[index].build()
    return made


def train(model: QuantModel, images: Images, steps: int) -> None:
    """A short quantization-aware training."""
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    model.train()
    for step in range(steps):
        x, labels = training_batch(images, step, 32, seed=0)
        optimizer.zero_grad()
        F.cross_entropy(model(x), labels).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    model.eval()


@torch.no_grad()
def run(model: nn.Module, x: Tensor) -> Tensor:
    return torch.cat([model(batch) for batch in x.split(BATCH)])


def run_onnxruntime(file: Path, x: Tensor, *, optimized: bool) -> Tensor:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    levels = onnxruntime.GraphOptimizationLevel
    options.graph_optimization_level = (
        levels.ORT_ENABLE_ALL if optimized else levels.ORT_DISABLE_ALL
    )
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    outputs = [session.run(None, {"input": batch.numpy()})[0] for batch in x.split(BATCH)]
    return torch.from_numpy(np.concatenate(outputs))


def run_qonnx(file: Path, x: Tensor) -> Tensor:
    model = ModelWrapper(onnx.load(file))
    model.set_tensor_shape("input", [BATCH, *x.shape[1:]])  # the executor wants whole shapes
    model = model.transform(InferShapes())
    batches = [execute_onnx(model, {"input": b.numpy()})["output"] for b in x.split(BATCH)]
    return torch.from_numpy(np.concatenate(batches))


def outputs(model: QuantModel, x: Tensor, folder: Path) -> dict[str, Tensor]:
    qdq = ghnq_quant.export_onnx(model, folder / "qdq.onnx", x[:1])
    qonnx = ghnq_quant.export_onnx(model, folder / "qonnx.onnx", x[:1], format="qonnx")
    return {
        "folded": run(ghnq_quant.convert(model, integer=False), x),
        "integer": run(ghnq_quant.convert(model, integer=True), x),
        "QDQ": run_onnxruntime(qdq, x, optimized=False),
        "QDQ, optimized": run_onnxruntime(qdq, x, optimized=True),
        "QONNX": run_qonnx(qonnx, x),
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", required=True)
    parser.add_argument("--bits", type=int, default=8)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--backend", default="reference")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    torch.manual_seed(0)
    data = load_images(args.data)
    test = data.test.sample(IMAGES)
    x = test.normalize(test.images)
    for name, network in networks().items():
        start = time.perf_counter()
        model = ghnq_quant.init_quantized(network, args.bits, backend=args.backend)
        train(model, data.train, args.steps)
        simulated = run(model, x)
        top1 = simulated.argmax(1)
        accuracy = 100 * (top1 == test.labels).float().mean()
        step = (simulated.max() - simulated.min()) / (2**args.bits - 1)
        row = [f"{name} | {args.bits} | {accuracy:.1f}"]
        with tempfile.TemporaryDirectory() as folder:
            for y in outputs(model, x, Path(folder)).values():
                agreement = 100 * (y.argmax(1) == top1).float().mean()
                worst = (y - simulated).abs().max() / step
                row.append(f"{agreement:.1f} ({worst:.2f})")
        print(
            "|", " | ".join(row), "|", f"<!-- {time.perf_counter() - start:.0f} s -->", flush=True
        )


if __name__ == "__main__":
    main()
