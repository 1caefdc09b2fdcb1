"""The finetuning loop: GHN-2 to GHN-Q, in float or on quantized networks (paper, section 2)."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ghnq_quant.design_space import ConvNets250K, SampledNetwork
from ghnq_quant.errors import DataError, GhnqError
from ghnq_quant.ghn import GHN
from ghnq_quant.training.batches import shrink, training_batch
from ghnq_quant.training.functional import FunctionalNetwork
from ghnq_quant.training.images import ImageSet
from ghnq_quant.training.kernel_cache import keep_many_kernels
from ghnq_quant.training.order import network_indices, other_networks, precision_index
from ghnq_quant.training.progress import Progress
from ghnq_quant.training.run_folder import Counters, RunFolder
from ghnq_quant.training.settings import FinetuneSettings
from ghnq_quant.training.step import StepResult, backward_meta_batch
from ghnq_quant.training.validation import hold_out, validate

if TYPE_CHECKING:
    from accelerate import Accelerator

#: A run ends with a message when as many steps in a row gave no usable gradient.
MAX_SKIPPED_IN_A_ROW = 25


def finetune(
    ghn: GHN,
    data: ImageSet,
    settings: FinetuneSettings,
    output: str | Path,
    *,
    resume: bool = False,
    mixed_precision: str = "no",
    show_progress: bool = True,
) -> GHN:
    """Train a hypernetwork on ConvNets-250K.

    Several processes or machines (``accelerate launch`` or ``torchrun``) each take ``meta_batch_size``
    networks a step and average their gradients.

    Args:
        ghn: where it starts; it is not changed.
        data: images of as many classes as ``ghn`` has.
        settings: everything that decides the result.
        output: folder of the run: ``state.safetensors`` to resume from, ``history.csv``, TensorBoard's
            events, and the checkpoints ``best`` (by validation) and ``last``.
        resume: go on from the folder's state. A run that is killed and resumed gives what an
            uninterrupted one gives.
        mixed_precision: ``"no"``, ``"bf16"`` or ``"fp16"`` for the networks; the hypernetwork itself
            stays in float32.
        show_progress: a live progress bar on the terminal.

    Returns:
        the best checkpoint by validation accuracy.

    Raises:
        DataError: the data set's classes are not those of ``ghn``.
        CheckpointError: nothing to resume, a damaged state, or other settings than the run's.
        GhnqError: the folder already holds a run, or too many steps in a row gave no usable gradient.

    Example:
        >>> from ghnq_quant.training import FinetuneSettings, finetune, load_images
        >>> settings = FinetuneSettings(steps=1000, bits=((4, 4),))
        >>> finetune(GHN.from_pretrained(), load_images("cifar10"), settings, "run")  # doctest: +SKIP
    """
    if len(data.train.classes) != ghn.num_classes:
        raise DataError(
            f"{data.name} has {len(data.train.classes)} classes, the hypernetwork {ghn.num_classes}: "
            "finetune it on a data set with as many, or start from scratch"
        )
    keep_many_kernels()
    folder = RunFolder(output)
    if not resume and folder.state_file.exists():
        raise GhnqError(f"{output} already holds a run: resume it, or choose another folder")
    run = _Run(ghn, data, settings, folder, mixed_precision, show_progress)
    if resume:
        run.counters = folder.load_state(run.ghn, run.optimizer, run.identity)
    return run.run()


@dataclass
class _Window:
    """Sums since the last line of the history."""

    losses: list[float] = field(default_factory=list)
    top1: list[float] = field(default_factory=list)
    failed: int = 0
    grad_norm: float = math.nan

    def add(self, result: StepResult, grad_norm: float) -> None:
        self.losses.extend(result.losses)
        self.top1.extend(result.top1)
        self.failed += result.failed
        self.grad_norm = grad_norm


class _Run:
    def __init__(
        self,
        ghn: GHN,
        data: ImageSet,
        settings: FinetuneSettings,
        folder: RunFolder,
        mixed_precision: str,
        show_progress: bool,
    ) -> None:
        self.settings, self.folder, self.show_progress = settings, folder, show_progress
        self.accelerator = _make_accelerator(mixed_precision)
        device = self.accelerator.device
        self.data_name = data.name
        train, val = hold_out(data.train, seed=settings.seed)
        self.train, self.val = train.to(device), val.to(device)
        self.total_steps = settings.total_steps(len(self.train))
        embedding = settings.precision_embedding or ghn.precision is not None
        self.parent = ghn.provenance
        new_norms = settings.new_batch_norms or ghn.new_batch_norms
        derived = ghn.derived(precision_embedding=embedding, new_batch_norms=new_norms)
        self.ghn = derived.to(device).train()
        self.optimizer = torch.optim.Adam(
            self.ghn.parameters(),
            lr=settings.lr,
            betas=settings.betas,
            weight_decay=settings.weight_decay,
            fused=True,  # one kernel in place of several small ones a parameter
        )
        self.predict, self.stepper = self.accelerator.prepare(self.ghn, self.optimizer)
        self.networks = ConvNets250K("train", num_classes=ghn.num_classes)
        self.counters = Counters()
        #: what a resumed run must share with the one it goes on with
        self.identity: dict[str, Any] = {
            **settings.to_json(),
            "data": data.name,
            "processes": self.accelerator.num_processes,
            "mixed_precision": mixed_precision,
        }

    def run(self) -> GHN:
        settings, counters = self.settings, self.counters
        window = _Window()
        started = time.monotonic() - counters.seconds
        main = self.accelerator.is_main_process
        with Progress(
            self.total_steps,
            settings.minutes,
            shown=self.show_progress and main,
            events=self.folder.path / "tensorboard" if main else None,
        ) as progress:
            progress.start(counters)
            fraction = self._fraction()
            while fraction < 1.0:
                window.add(*self._step(fraction))
                counters.seconds = time.monotonic() - started
                now, fraction = fraction, self._fraction()
                progress.update(counters, window.losses, window.top1)
                is_last = fraction >= 1.0
                if is_last or counters.step % settings.log_every == 0:
                    validates = is_last or counters.step % settings.validate_every == 0
                    self._log(window, now, progress, validates)
                    window = _Window()
        return self._finish()

    def _fraction(self) -> float:
        """How much of the run is done; the same in all processes."""
        if self.total_steps is not None:
            return self.counters.step / self.total_steps
        assert self.settings.minutes is not None
        seconds = torch.tensor(self.counters.seconds, device=self.accelerator.device)
        return float(self.accelerator.reduce(seconds, "mean")) / (60 * self.settings.minutes)

    def _step(self, fraction: float) -> tuple[StepResult, float]:
        settings, step = self.settings, self.counters.step
        items = self._items(step, settings.max_macs_at(fraction))
        size = settings.image_size_at(fraction)
        for group in self.optimizer.param_groups:
            group["lr"] = settings.lr_at(fraction)
        self.optimizer.zero_grad()
        scaler = self.accelerator.scaler
        bits = settings.bits[precision_index(len(settings.bits), step, settings.seed)]
        with self.accelerator.autocast():
            result = backward_meta_batch(
                self.predict,
                [item.graph for item in items],
                [FunctionalNetwork(item.program, bits) for item in items],
                bits,
                [self._batches(item, place, step, size) for place, item in enumerate(items)],
                inner_lr=settings.inner_lr,
                loss_scale=1.0 if scaler is None else scaler.get_scale(),
            )
        norm = self.accelerator.clip_grad_norm_(self.ghn.parameters(), settings.clip)
        grad_norm = float(norm)
        self._update(grad_norm)
        self.counters.step += 1
        self.counters.failed_networks += result.failed
        return result, grad_norm

    def _items(self, step: int, max_macs: int | None) -> list[SampledNetwork]:
        """This process's networks; one that is too large is replaced by another at random."""
        world, rank = self.accelerator.num_processes, self.accelerator.process_index
        size, count, seed = self.settings.meta_batch_size, len(self.networks), self.settings.seed
        indices = network_indices(count, step, size * world, seed)
        items = []
        for index in indices[rank * size : (rank + 1) * size]:
            others = other_networks(count, index, seed)
            item = self.networks[index]
            while max_macs is not None and item.program.macs > max_macs:
                item = self.networks[next(others)]
            items.append(item)
        return items

    def _batches(
        self, item: SampledNetwork, place: int, step: int, size: int
    ) -> list[tuple[Tensor, Tensor]]:
        """The images of a network, its own of the meta-batch: one batch, and one an inner step."""
        settings, accelerator = self.settings, self.accelerator
        network = accelerator.process_index * settings.meta_batch_size + place
        networks = accelerator.num_processes * settings.meta_batch_size
        count = 1 + settings.inner_steps
        first = (step * networks + network) * count
        batches = []
        for number in range(first, first + count):
            images, labels = training_batch(
                self.train, number, settings.image_batch_size, settings.seed
            )
            if item.description.any_size:  # a flattened head takes images of one size only
                images = shrink(images, size)
            # convolutions are faster so
            batches.append((images.contiguous(memory_format=torch.channels_last), labels))
        return batches

    def _update(self, grad_norm: float) -> None:
        """Step, unless the gradient is not finite (it is the same in all processes) or zero throughout."""
        usable = math.isfinite(grad_norm) and grad_norm > 0
        if (
            usable or self.accelerator.scaler is not None
        ):  # which adapts its scale and skips by itself
            self.stepper.step()
        counters = self.counters
        counters.skipped_steps += not usable
        counters.skipped_in_a_row = 0 if usable else counters.skipped_in_a_row + 1
        if counters.skipped_in_a_row >= MAX_SKIPPED_IN_A_ROW:
            raise GhnqError(
                f"step {counters.step}: {counters.skipped_in_a_row} steps in a row gave no usable "
                "gradient (loss not finite, or not enough memory). The last whole state is in "
                f"{self.folder.state_file}; lower the learning rate or the batch sizes"
            )

    def _log(self, window: _Window, fraction: float, progress: Progress, validates: bool) -> None:
        counters, settings = self.counters, self.settings
        val_top1 = None
        if validates:
            before = counters.best_top1
            val_top1 = self._validate()
            if val_top1 > before:
                counters.best_top1, counters.best_step = val_top1, counters.step
        row: dict[str, float | int | None] = {
            "step": counters.step,
            "seconds": counters.seconds,
            "loss": _mean(window.losses),
            "top1": _mean(window.top1),
            "lr": settings.lr_at(fraction),
            "grad_norm": window.grad_norm,
            "failed": window.failed,
            "val_top1": val_top1,
        }
        if self.accelerator.is_main_process:
            self.folder.append_history(row)
            progress.log(row)
        if validates or counters.step % settings.checkpoint_every == 0:
            self._save()

    def _validate(self) -> float:
        """Validate in the main process and, where it is the best so far, keep the checkpoint."""
        top1 = 0.0
        if self.accelerator.is_main_process:
            split = ConvNets250K("val", num_classes=self.ghn.num_classes)
            items = [split[i] for i in range(min(self.settings.val_networks, len(split)))]
            top1 = validate(self.ghn, items, self.val, self.settings.bits, self.settings.val_images)
            if top1 > self.counters.best_top1:
                self.folder.save_checkpoint(self._described(top1), "best")
        value = torch.tensor(top1, device=self.accelerator.device)
        return float(self.accelerator.reduce(value, "sum"))

    def _described(self, val_top1: float | None = None) -> GHN:
        """The hypernetwork with how it was made."""
        provenance: dict[str, Any] = {
            "parent": self.parent,
            "dataset": self.data_name,
            "steps": self.counters.step,
            "settings": self.settings.to_json(),
        }
        if val_top1 is not None:
            provenance["validation"] = (
                f"top-1 {val_top1:.4f}, mean over {self.settings.val_networks} networks of the split "
                f"val, {self.settings.val_images} held-out training images and the run's precisions"
            )
        return self.ghn.derived(provenance=provenance).cpu()

    def _save(self) -> None:
        if self.accelerator.is_main_process:
            self.folder.save_state(self.ghn, self.optimizer, self.counters, self.identity)
        self.accelerator.wait_for_everyone()

    def _finish(self) -> GHN:
        if self.accelerator.is_main_process:
            self.folder.save_checkpoint(self._described(), "last")
        self.accelerator.wait_for_everyone()
        return GHN.from_pretrained(self.folder.path / "best")


def _make_accelerator(mixed_precision: str) -> Accelerator:
    try:
        from accelerate import Accelerator
        from accelerate.utils import DistributedDataParallelKwargs
    except ImportError as error:
        raise GhnqError(
            "finetuning needs accelerate and tensorboard: pip install 'ghnq-quant[train]'"
        ) from error
    return Accelerator(
        cpu=not torch.accelerator.is_available(),  # several processes on CPU need it said
        mixed_precision=mixed_precision,
        # a meta-batch need not reach every parameter, as one without biases does not
        kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)],
    )


def _mean(values: list[float]) -> float | None:
    return sum(values) / len(values) if values else None
