"""Training kernels: convolutions of small maps equal PyTorch's, and what oneDNN compiles."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from ghnq_quant.quantization.convolution import Geometry
from ghnq_quant.research.finetuning.small_maps import convolve


@given(
    kernel=st.sampled_from((1, 3, 5, 7)),
    dilation=st.sampled_from((1, 2)),
    stride=st.sampled_from((1, 2)),
    height=st.integers(1, 9),
    width=st.integers(1, 9),
    groups=st.sampled_from((1, 2, 8)),
    has_bias=st.booleans(),
    seed=st.integers(0, 10**6),
)
def test_value_and_gradients_are_those_of_conv2d(
    kernel: int,
    dilation: int,
    stride: int,
    height: int,
    width: int,
    groups: int,
    has_bias: bool,
    seed: int,
) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(2, 8, height, width, generator=generator, dtype=torch.float64)
    weight = torch.randn(8, 8 // groups, kernel, kernel, generator=generator, dtype=torch.float64)
    bias = torch.randn(8, generator=generator, dtype=torch.float64) if has_bias else None
    geometry = Geometry((stride,) * 2, (dilation * (kernel // 2),) * 2, (dilation,) * 2, groups)
    inputs = [x.requires_grad_(), weight.requires_grad_()]
    y, expected = convolve(x, weight, bias, geometry), F.conv2d(x, weight, bias, *geometry)
    torch.testing.assert_close(y, expected)
    gradients = torch.autograd.grad(y.square().sum(), inputs)
    wanted = torch.autograd.grad(expected.square().sum(), inputs)
    for gradient, other in zip(gradients, wanted, strict=True):
        torch.testing.assert_close(gradient, other)


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="PyTorch without oneDNN")
def test_kernels_of_more_shapes_than_onednn_keeps_by_default_are_compiled_once() -> None:
    script = """
import torch
from ghnq_quant.research.finetuning.kernel_cache import keep_many_kernels
keep_many_kernels()
for _ in range(2):
    for c in range(1, 1101):
        torch.conv2d(torch.zeros(4, c, 2, 2), torch.zeros(8, c, 1, 1))
"""
    # on a busy machine, threads that spin while they wait make so many small kernels take minutes
    waiting = {"OMP_WAIT_POLICY": "passive"}
    environment = {**os.environ, **waiting, "ONEDNN_VERBOSE": "profile_create"}
    for name in ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "OMP_NUM_THREADS"):  # one thread: not oneDNN
        environment.pop(name, None)
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    convolutions = [line for line in done.stdout.splitlines() if ",convolution," in line]
    assert sum("create:cache_miss" in line for line in convolutions) == 1100
    assert sum("create:cache_hit" in line for line in convolutions) == 1100
