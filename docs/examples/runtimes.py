"""How files for a target load, agree and run in onnxruntime, OpenVINO and ExecuTorch: a table of
docs/how-to/export.md.

python docs/examples/runtimes.py --data cifar10.npz --steps 30
python docs/examples/runtimes.py --data cifar10.npz --steps 30 --targets xnnpack
python docs/examples/runtimes.py --data cifar10.npz --steps 30 --asymmetric --targets plain onnxruntime
"""

from __future__ import annotations

import argparse
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import openvino
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import ghnq_quant
from ghnq_quant import QuantScheme
from ghnq_quant.quantization import QuantModel
from ghnq_quant.quantization.targets import find_target
from ghnq_quant.research.data import Images, load_images, training_batch
from ghnq_quant.research.starts.cifar_networks import resnet8

IMAGES, BATCH = 1000, 50
Session = Callable[[np.ndarray], np.ndarray]


def networks() -> dict[str, tuple[Callable[..., nn.Module], int]]:
    """How each is made, and the side of its images."""
    from torchvision.models import mobilenet_v2, resnet18

    return {
        "resnet8": (resnet8, 32),
        "mobilenet_v2": (mobilenet_v2, 64),
        "resnet18": (resnet18, 64),
    }


def resized(x: Tensor, side: int) -> Tensor:
    return x if x.shape[-1] == side else F.interpolate(x, size=side, mode="bilinear")


def train(model: QuantModel, images: Images, steps: int, side: int) -> None:
    """A short quantization-aware training."""
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    model.train()
    for step in range(steps):
        x, labels = training_batch(images, step, 32, seed=0)
        optimizer.zero_grad()
        F.cross_entropy(model(resized(x, side)), labels).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    model.eval()


def in_onnxruntime(file: Path) -> tuple[Session, str]:
    """The file, and how many of its convolutions the optimized graph has on integers."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    options.optimized_model_filepath = str(file.with_suffix(".optimized.onnx"))
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    kinds = [n.op_type for n in onnx.load(options.optimized_model_filepath).graph.node]
    integers = kinds.count("QLinearConv")
    total = integers + sum(kind in ("Conv", "FusedConv") for kind in kinds)
    return lambda x: session.run(None, {"input": x})[0], f"{integers} of {total}"


def in_openvino(file: Path) -> tuple[Session, str]:
    """The file, and how many of its convolutions the compiled model has on integers."""
    settings = {"INFERENCE_NUM_THREADS": 1, "NUM_STREAMS": 1, "INFERENCE_PRECISION_HINT": "f32"}
    compiled = openvino.Core().compile_model(str(file), "CPU", settings)
    nodes = [node.get_rt_info() for node in compiled.get_runtime_model().get_ops()]
    types = [n["runtimePrecision"].astype(str) for n in nodes if _is_convolution(n)]
    integers = sum(kind in ("u8", "i8") for kind in types)
    return lambda x: compiled(x)[0].copy(), f"{integers} of {len(types)}"


def in_executorch(file: Path) -> tuple[Session, str]:
    """The program of the batch at hand, and what of it XNNPACK does."""
    from executorch.exir._serialize._program import deserialize_pte_binary
    from executorch.extension.pybindings.portable_lib import _unsafe_reset_threadpool
    from executorch.runtime import Runtime

    _unsafe_reset_threadpool(1)
    plan = deserialize_pte_binary(file.read_bytes()).program.execution_plan[0]
    programs = {n: Runtime.get().load_program(file.with_stem(str(n))) for n in (1, BATCH, 64)}
    methods = {n: program.load_method("forward") for n, program in programs.items()}
    parts = f"{len(plan.delegates)} delegate, {len(plan.operators)} other operators"
    return lambda x: methods[len(x)].execute([torch.from_numpy(x)])[0].numpy(), parts


def written(
    model: QuantModel, folder: Path, target: str | None, x: Tensor, open_in: Callable
) -> Path:
    """The model's file for a target; a program of ExecuTorch has one batch size."""
    folder.mkdir()
    if open_in is not in_executorch:
        return ghnq_quant.export_onnx(model, folder / "model.onnx", x[:1], target=target)
    files = [ghnq_quant.export_pte(model, folder / f"{n}.pte", x[:n]) for n in (1, BATCH, 64)]
    return files[0]


#: How the file of each target, or of none, is opened.
RUNTIMES = {
    "plain": in_onnxruntime,
    "onnxruntime": in_onnxruntime,
    "openvino": in_openvino,
    "xnnpack": in_executorch,
}


def _is_convolution(info: openvino.RTMap) -> bool:
    return "layerType" in info and info["layerType"].astype(str) == "Convolution"


def cpu_ms(quantized: Session, full: Session, x: np.ndarray, rounds: int) -> tuple[float, float]:
    """The least CPU time of each, in ms, called in turn: other work on the machine counts little."""
    least = [np.inf, np.inf]
    for _ in range(rounds):
        for i, session in enumerate((quantized, full)):
            start = time.process_time()
            session(x)
            least[i] = min(least[i], 1e3 * (time.process_time() - start))
    return least[0], least[1]


def row(name: str, quantized: Path, full: Path, open_in: Callable, x: Tensor, y: Tensor) -> str:
    session, integers = open_in(quantized)
    float_session, _ = open_in(full)
    found = np.concatenate([session(batch.numpy()) for batch in x.split(BATCH)])
    same = 100 * (found.argmax(1) == y.argmax(1).numpy()).mean()
    worst = np.abs(found - y.numpy()).max() / (y.max() - y.min()).item()
    size = quantized.stat().st_size / full.stat().st_size
    cells = [name, integers, f"{same:.1f} ({100 * worst:.1f})", f"{size:.2f}"]
    for batch, rounds in ((1, 300), (64, 5)):
        own, others = cpu_ms(session, float_session, x[:batch].numpy(), rounds)
        cells.append(f"{own:.2f} : {others:.2f} = {own / others:.2f}")
    return f"| {' | '.join(cells)} |"


@torch.no_grad()
def logits(model: QuantModel, x: Tensor) -> Tensor:
    return torch.cat([model(batch) for batch in x.split(BATCH)])


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", required=True)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--networks", nargs="+", default=list(networks()))
    parser.add_argument("--bits", nargs="+", default=["8/8", "4/8"])
    parser.add_argument("--asymmetric", action="store_true", help="Models made without a target.")
    parser.add_argument(
        "--targets", nargs="+", default=["onnxruntime", "openvino"], choices=RUNTIMES
    )
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    warnings.simplefilter("error", ghnq_quant.GhnqWarning)  # a layer in float
    torch.set_num_threads(1)
    data = load_images(args.data)
    test = data.test.sample(IMAGES)
    for bits in args.bits:
        for name in args.networks:
            make, side = networks()[name]
            torch.manual_seed(0)
            weights, activations = map(int, bits.split("/"))
            # the other targets' too
            scheme = QuantScheme.for_target("onnxruntime", (weights, activations))
            if args.asymmetric:
                scheme = QuantScheme(weights, activations)
            network = make(num_classes=10)
            model = ghnq_quant.init_quantized(network, scheme=scheme, backend="reference")
            train(model, data.train, args.steps, side)
            x = resized(test.normalize(test.images), side)
            y = logits(model, x)
            plain = ghnq_quant.quantize(network, 32, backend="reference")
            ghnq_quant.calibrate(plain, [x[:BATCH]])
            plain.eval()
            with tempfile.TemporaryDirectory() as folder:
                for target in args.targets:
                    rules = None if target == "plain" else target
                    if rules and activations not in find_target(rules).activation_bits:
                        continue
                    open_in = RUNTIMES[target]
                    file = written(model, Path(folder) / target, rules, x, open_in)
                    full = written(plain, Path(folder) / f"{target}-float", None, x, open_in)
                    label = f"{name} {bits} | {target}"
                    print(row(label, file, full, open_in, x, y), flush=True)


if __name__ == "__main__":
    main()
