"""Train small float networks on CIFAR-10: what docs/examples/from_float.py quantizes.

python docs/examples/float_networks.py resnet8 mobilenet_v2_small --data cifar10.npz -o runs/float

Stopped and called again with the same arguments, it goes on after the last whole epoch.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from ghnq_quant.files import read_json, replacing, save_json, save_state
from ghnq_quant.research.data import ImageSet, evaluation_batches, load_images, training_batch
from ghnq_quant.research.starts.cifar_networks import CIFAR_NETWORKS
from ghnq_quant.research.starts.training import warmup_cosine

BATCH_SIZE = 128
LEARNING_RATE = 0.1
SEED = 0


@torch.no_grad()
def accuracy(model: nn.Module, data: ImageSet) -> float:
    """Top-1 on all test images, %."""
    model.eval()
    right = sum(int((model(x).argmax(1) == y).sum()) for x, y in evaluation_batches(data.test))
    return 100 * right / len(data.test)


def train(name: str, data: ImageSet, epochs: int, folder: Path) -> None:
    """SGD with momentum and weight decay; the rate rises for a tenth of the steps, then falls."""
    result, unfinished = folder / f"{name}.json", folder / f"{name}.pt"
    if result.exists():
        return
    torch.manual_seed(SEED)
    model = CIFAR_NETWORKS[name](len(data.train.classes)).to(memory_format=torch.channels_last)
    steps = len(data.train) // BATCH_SIZE
    optimizer = torch.optim.SGD(model.parameters(), LEARNING_RATE, 0.9, weight_decay=5e-4)
    parts = {"model": model, "optimizer": optimizer}
    begun, seconds = 0, 0.0
    if unfinished.exists():
        state = torch.load(unfinished)
        begun, seconds = state["epoch"], state["seconds"]
        for key, part in parts.items():
            part.load_state_dict(state[key])
    for epoch in range(begun, epochs):
        start = time.perf_counter()
        model.train()
        for step in range(epoch * steps, (epoch + 1) * steps):
            rate = LEARNING_RATE * warmup_cosine(step / (epochs * steps))
            optimizer.param_groups[0]["lr"] = rate
            x, y = training_batch(data.train, step, BATCH_SIZE, SEED)
            loss = F.cross_entropy(model(x.contiguous(memory_format=torch.channels_last)), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        seconds += time.perf_counter() - start
        with replacing(unfinished) as path:
            state = {key: part.state_dict() for key, part in parts.items()}
            torch.save({**state, "epoch": epoch + 1, "seconds": seconds}, path)
        print(f"{name}, epoch {epoch + 1}: loss {loss:.3f}, {seconds:.0f} s", flush=True)
    top1 = accuracy(model, data)
    save_state(model, folder / f"{name}.safetensors")
    save_json({"top1": top1, "epochs": epochs, "seconds": round(seconds)}, result)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("networks", nargs="+", choices=CIFAR_NETWORKS)
    parser.add_argument("--data", required=True)
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("-o", "--output", type=Path, required=True)
    args = parser.parse_args()
    torch.set_num_threads(1)
    args.output.mkdir(parents=True, exist_ok=True)
    data = load_images(args.data)
    for name in args.networks:
        train(name, data, args.epochs, args.output)
        print(name, read_json(args.output / f"{name}.json"), flush=True)


if __name__ == "__main__":
    main()
