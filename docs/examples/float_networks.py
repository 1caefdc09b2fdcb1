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

from ghnq_quant.errors import GhnqError
from ghnq_quant.files import read_json, read_state, replacing, save_json, save_state
from ghnq_quant.research.data import (
    Images,
    ImageSet,
    evaluation_batches,
    load_images,
    training_batch,
)
from ghnq_quant.research.starts.cifar_networks import CIFAR_NETWORKS
from ghnq_quant.research.starts.training import warmup_cosine

BATCH_SIZE = 128
LEARNING_RATE = 0.1
SEED = 0
#: The others take two thirds of the time in mixed precision, on CPUs that have bfloat16; these twice.
DEPTHWISE = ("mobilenet_v2_small", "shufflenet_small")


def float_network(folder: Path, name: str) -> nn.Module:
    """One that was trained into ``folder``."""
    model = CIFAR_NETWORKS[name](10)
    model.load_state_dict(read_state(folder / f"{name}.safetensors")[0])
    return model


def accuracy(model: nn.Module, images: Images) -> float:
    """Top-1, %, in eval."""
    return accuracy_as_it_is(model.eval(), images)


@torch.no_grad()
def accuracy_as_it_is(model: nn.Module, images: Images) -> float:
    """Top-1, %, in the mode of ``model``."""
    right = sum(int((model(x).argmax(1) == y).sum()) for x, y in evaluation_batches(images))
    return 100 * right / len(images)


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
        if state.get("epochs", epochs) != epochs:
            raise GhnqError(f"{unfinished} is of a training with --epochs {state['epochs']}")
        begun, seconds = state["epoch"], state["seconds"]
        for key, part in parts.items():
            part.load_state_dict(state[key])
    for epoch in range(begun, epochs):
        start = time.perf_counter()
        model.train()
        total = 0.0
        for step in range(epoch * steps, (epoch + 1) * steps):
            rate = LEARNING_RATE * warmup_cosine(step / (epochs * steps))
            optimizer.param_groups[0]["lr"] = rate
            x, y = training_batch(data.train, step, BATCH_SIZE, SEED)
            with torch.autocast("cpu", torch.bfloat16, enabled=name not in DEPTHWISE):
                logits = model(x.contiguous(memory_format=torch.channels_last))
            loss = F.cross_entropy(logits.float(), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += float(loss.detach())
        seconds += time.perf_counter() - start
        with replacing(unfinished) as path:
            state = {key: part.state_dict() for key, part in parts.items()}
            torch.save({**state, "epoch": epoch + 1, "epochs": epochs, "seconds": seconds}, path)
        print(f"{name}, epoch {epoch + 1}: loss {total / steps:.3f}, {seconds:.0f} s", flush=True)
    top1 = accuracy(model, data.test)
    save_state(model, folder / f"{name}.safetensors")
    save_json({"top1": top1, "epochs": epochs, "seconds": round(seconds)}, result)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("networks", nargs="+", choices=CIFAR_NETWORKS)
    parser.add_argument("--data", required=True)
    parser.add_argument("--epochs", type=int, default=100)
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
