"""Peak memory of ``init_quantized``, in a process of its own.

pytest tests/benchmarks/test_memory.py -s
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SCRIPT = """
import os, resource, sys
import ghnq_quant, torch, torchvision
torch.set_num_threads(1)

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

backend, classes = sys.argv[1], int(sys.argv[2])
small = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.Flatten(), torch.nn.Linear(8, 10))
ghnq_quant.init_quantized(small, backend=backend)  # imports and the hypernetwork
model = torchvision.models.vgg16_bn(num_classes=classes)
size = sum(p.nbytes for p in model.parameters())
before = resident()
quantized = ghnq_quant.init_quantized(model, 4, backend=backend)
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
print((peak - before) / size, (resident() - before) / size)
"""


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads Linux's /proc")
@pytest.mark.parametrize("classes", [10, 1000])
@pytest.mark.parametrize("backend", ["reference", "brevitas"])
def test_peak_memory(backend: str, classes: int, benchmark: Any) -> None:
    """On top of the model and all before it, in multiples of the model's parameters."""
    command = [sys.executable, "-W", "ignore", "-c", SCRIPT, backend, str(classes)]
    output = benchmark.pedantic(subprocess.check_output, (command,), {"text": True}, rounds=1)
    peak, kept = map(float, output.split())
    benchmark.extra_info.update(peak=round(peak, 2), kept=round(kept, 2))
    print(f"\n{backend}, {classes} classes: peak {peak:.2f}, kept {kept:.2f} of the model's size")
    assert 1 <= peak <= 2.5
