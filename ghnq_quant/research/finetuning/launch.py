"""Start a training run from names, as on the command line, in one or several processes."""

from __future__ import annotations

import os
from pathlib import Path

from ghnq_quant.research.data.images import load_images
from ghnq_quant.research.finetuning.loop import finetune
from ghnq_quant.research.finetuning.processes import start_group
from ghnq_quant.research.finetuning.settings import FinetuneSettings
from ghnq_quant.research.finetuning.state import starting_point


def train_from_names(
    start: str,
    data: str,
    settings: FinetuneSettings,
    output: Path,
    *,
    data_name: str | None = None,
    download: bool = False,
    resume: bool = False,
    bf16: bool = False,
    processes: int = 1,
) -> None:
    """Load what the names refer to, and train.

    Args:
        start: see :func:`ghnq_quant.research.finetuning.state.starting_point`.
        data, data_name, download: see :func:`ghnq_quant.research.data.load_images`.
        settings, output, resume, bf16: see :func:`ghnq_quant.research.finetuning.finetune`.
        processes: number of processes to start, with one thread each; 1 for this process only, or
            for those that torchrun or accelerate started.
    """
    if download:  # once, before several processes read it
        load_images(data, name=data_name, download=True)
    arguments = (start, data, data_name, settings, output, resume, bf16)
    if processes == 1:
        _train(*arguments)
    else:
        os.environ["OMP_NUM_THREADS"] = "1"  # each process reads it at startup
        start_group(processes, _train, *arguments)


def _train(
    start: str,
    data: str,
    data_name: str | None,
    settings: FinetuneSettings,
    output: Path,
    resume: bool,
    bf16: bool,
) -> None:
    images = load_images(data, name=data_name)
    state = starting_point(start, len(images.train.classes), settings.seed)
    finetune(state, images, settings, output, resume=resume, bf16=bf16)
