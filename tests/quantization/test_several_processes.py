"""Training in two processes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from backends import backends, is_quantizer_state
from small_networks import images, small_network
from torch import Tensor, nn
from two_processes import quantized, train

import ghnq_quant
from ghnq_quant import BackendError

State = dict[str, Tensor]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, State]]:
    """The final states of the two processes."""
    folder, script = (
        tmp_path_factory.mktemp("processes"),
        Path(__file__).parent / "two_processes.py",
    )
    paths = [str(Path(__file__).parents[1]), *sys.path]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    command = [sys.executable, str(script)]
    processes = [
        subprocess.Popen([*command, str(rank), str(folder)], env=environment) for rank in (0, 1)
    ]
    assert [process.wait(300) for process in processes] == [0, 0]
    return [torch.load(folder / f"{rank}.pt") for rank in (0, 1)]


def parts(state: State) -> dict[str, State]:
    """Batch-norm statistics, quantizers, and parameters along with everything else."""
    found: dict[str, Any] = {"statistics": {}, "quantizers": {}, "parameters": {}}
    for key, value in state.items():
        norm = "running_mean" in key or "running_var" in key
        kind = "quantizers" if is_quantizer_state(key) else "statistics" if norm else "parameters"
        found[kind][key] = value
    return found


@pytest.mark.parametrize("backend", ["reference", "torch_ao"])
def test_processes_agree(backend: str, trained: list[dict[str, State]]) -> None:
    """On activation ranges always, on batch-norm statistics only if they are shared."""
    for synced in (False, True):
        first, second = (parts(states[f"{backend}, {synced}"]) for states in trained)
        ranges = [key for key in first["quantizers"] if key.startswith("activation_quantizers.")]
        assert ranges
        for key in ranges:
            assert torch.equal(first["quantizers"][key], second["quantizers"][key]), key
        for key, value in first["parameters"].items():
            assert torch.equal(value, second["parameters"][key]), key
        same = [torch.equal(v, second["statistics"][k]) for k, v in first["statistics"].items()]
        assert all(same) == synced


@pytest.mark.parametrize("backend", ["reference", "torch_ao"])
def test_shared_statistics_equal_one_process(backend: str, trained: list[dict[str, State]]) -> None:
    """One process that gets the whole batch."""
    alone = quantized(backend).train()
    train(alone, slice(None))
    for states in trained:
        for key, value in states[f"{backend}, True"].items():
            torch.testing.assert_close(value, alone.state_dict()[key], rtol=1e-3, atol=1e-4)


def test_data_parallel_is_refused() -> None:
    qmodel = ghnq_quant.quantize(small_network(), 4, backend="reference")
    with pytest.raises(BackendError, match="DistributedDataParallel"):
        qmodel._replicate_for_data_parallel()


def test_an_exported_graph_shares_no_statistics() -> None:
    pytest.importorskip("torchao")
    qmodel = ghnq_quant.quantize(small_network(), 4, backend="pt2e", example_input=images())
    qmodel = nn.SyncBatchNorm.convert_sync_batchnorm(qmodel)
    with pytest.raises(BackendError, match="SyncBatchNorm"):
        qmodel(images())


@backends
def test_batch_norms_replaced_in_a_model_in_training(backend: str) -> None:
    """They are folded from the next batch on, without a call of ``train()``."""
    pytest.importorskip("brevitas" if backend == "brevitas" else "torch")
    qmodel = ghnq_quant.quantize(small_network(), 4, backend=backend).train()
    nn.SyncBatchNorm.convert_sync_batchnorm(qmodel)
    qmodel(images())
    norms = qmodel.batch_norms().values()
    assert all(isinstance(norm, nn.SyncBatchNorm) for norm in norms)
    assert [int(norm.num_batches_tracked) for norm in norms] == [1] * len(norms)
