"""The training loop: from scratch, from a checkpoint, or from GHN-2 to GHN-Q (paper, section 2)."""

from __future__ import annotations

import copy
import math
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ghnq_quant.errors import DataError, GhnqError
from ghnq_quant.ghn import GHN
from ghnq_quant.research.data.batches import Augmentation, balanced_batch, shrink, training_batch
from ghnq_quant.research.data.images import Images, ImageSet, hold_out
from ghnq_quant.research.finetuning.kernel_cache import keep_many_kernels
from ghnq_quant.research.finetuning.order import TrainingNetworks, precision_index
from ghnq_quant.research.finetuning.processes import (
    Group,
    StopRequest,
    average_gradients,
    joined_group,
)
from ghnq_quant.research.finetuning.progress import TrainingProgress
from ghnq_quant.research.finetuning.run_folder import Counters, RunFolder
from ghnq_quant.research.finetuning.settings import FinetuneSettings
from ghnq_quant.research.finetuning.state import TrainingState
from ghnq_quant.research.finetuning.step import StepResult, backward_meta_batch, summary
from ghnq_quant.research.finetuning.validation import validate, validation_networks
from ghnq_quant.research.networks import SCHEMA, SIDE, SampledNetwork
from ghnq_quant.research.runs.history import append_history
from ghnq_quant.research.runs.identity import (
    IDENTITY,
    digest_of_hypernetwork,
    digest_of_images,
    digest_of_tensors,
)
from ghnq_quant.research.runs.lock import locked

#: A run stops with an error after this many steps in a row without a usable gradient.
MAX_SKIPPED_IN_A_ROW = 25


def finetune(
    start: GHN | TrainingState,
    data: ImageSet,
    settings: FinetuneSettings,
    output: str | Path,
    *,
    resume: bool = False,
    bf16: bool = False,
    show_progress: bool = True,
) -> GHN:
    """Train a hypernetwork on ConvNets-250K.

    Several processes or machines (``torchrun`` or ``accelerate launch``) each take
    ``meta_batch_size`` networks per step and average their gradients. A process that is asked to
    stop (SIGTERM, Ctrl-C) writes its line of the history, saves the state and returns.

    The hypernetwork stays on the host, where its many small operations are fastest; the networks run
    on a GPU if there is one.

    Args:
        start: where the run starts, a hypernetwork or another run's state; it is not changed.
        data: images with as many classes as the hypernetwork has.
        settings: everything that determines the result.
        output: folder of the run: ``state.safetensors`` to resume from, ``history.csv``, TensorBoard's
            events, and the checkpoints ``best`` (by validation) and ``last``.
        resume: continue from the folder's state. A run that is killed and resumed gives the same
            result as an uninterrupted one.
        bf16: run the networks under autocast in bfloat16; the hypernetwork stays in float32.
        show_progress: a live progress bar on the terminal.

    Returns:
        the best checkpoint by validation accuracy.

    Raises:
        DataError: the data set has another number of classes than the hypernetwork.
        CheckpointError: nothing to resume, a damaged state, or settings that differ from the run's.
        GhnqError: the folder already holds a run, or too many steps in a row gave no usable gradient.

    Example:
        >>> from ghnq_quant.research.data import load_images
        >>> from ghnq_quant.research.finetuning import FinetuneSettings, finetune
        >>> settings = FinetuneSettings(steps=1000, bits=((4, 4),))
        >>> finetune(GHN.from_pretrained(), load_images("cifar10"), settings, "run")  # doctest: +SKIP
    """
    state = TrainingState(start) if isinstance(start, GHN) else start
    if len(data.train.classes) != state.ghn.num_classes:
        raise DataError(
            f"{data.name} has {len(data.train.classes)} classes, the hypernetwork "
            f"{state.ghn.num_classes}: finetune it on a data set with as many, or start from scratch"
        )
    _check_images(data.train)
    keep_many_kernels()
    folder = RunFolder(output)
    with joined_group() as group:
        goes_on = folder.begin(resume)
        group.wait()
        with locked(output) if group.is_main else nullcontext():
            training = _Training(state, data, settings, folder, group, goes_on, bf16)
            return training.run(show_progress)


def _check_images(images: Images) -> None:
    height, width = images.images.shape[2:]
    if (height, width) != (SIDE, SIDE):
        raise DataError(
            f"the images have {height}×{width} pixels; the networks of ConvNets-250K are made for "
            f"{SIDE}×{SIDE}: bring them to that size"
        )


class _Training:
    def __init__(
        self,
        start: TrainingState,
        data: ImageSet,
        settings: FinetuneSettings,
        folder: RunFolder,
        group: Group,
        resume: bool,
        bf16: bool,
    ) -> None:
        self.settings, self.folder, self.group, self.bf16 = settings, folder, group, bf16
        self.data_name, self.parent = data.name, start.ghn.provenance
        train, val = hold_out(data.train)
        self.total_steps = settings.total_steps(len(train))
        self.train, self.val = train.to(group.device), val.to(group.device)
        #: what a resumed run must share with the run it continues
        self.identity: dict[str, Any] = {
            **settings.open_ended(),
            "data": data.name,
            "processes": group.size,
            "bf16": bf16,
            IDENTITY: {
                "images": digest_of_images(data.train),
                "start": digest_of_tensors(start.tensors()),
                "start_ghn": digest_of_hypernetwork(start.ghn),
                "design_space_schema": SCHEMA,
            },
        }
        self.counters = Counters(start.step, start.seconds, start.step, start.seconds)
        if resume:
            start, self.counters = folder.load_state(self.identity)
        self.ghn, self.averaged = _hypernetworks(start, settings)
        self.optimizer = _optimizer(self.ghn, settings, start)
        classes = self.ghn.num_classes
        self.networks = TrainingNetworks(
            classes,
            settings.architectures,
            settings.seed,
            settings.channel_limit,
            settings.range_gradient,
            group.rank,
            group.size,
        )
        self.val_items: list[SampledNetwork] = []  # only in the process that validates
        if group.is_main:
            self.val_items = validation_networks(settings.val_networks, classes)
        self.stops = False  # the same in all processes
        self.grad_norm: float | None = None  # of the last step
        self.since: list[StepResult] = []  # since the last line of the history

    def run(self, show_progress: bool) -> GHN:
        settings, counters, main = self.settings, self.counters, self.group.is_main
        started = time.monotonic() - counters.seconds
        with (
            TrainingProgress(
                counters,
                self.total_steps,
                settings.minutes,
                shown=show_progress and main,
                events=self.folder.path / "tensorboard" if main else None,
            ) as progress,
            StopRequest() as stop,
        ):
            if not counters.has_begun:
                self._save()  # so that it can be resumed from the very start
                self._log(0.0, progress, validates=True)
            fraction = self._fraction()
            while fraction < 1.0 and not (self.stops and counters.step % settings.log_every == 0):
                self._step(fraction, time.monotonic() - started, stop)
                now, fraction = fraction, self._fraction()
                progress.update(counters, self.since)
                is_last = fraction >= 1.0
                if is_last or counters.step % settings.log_every == 0:
                    validates = is_last or counters.step % settings.validate_every == 0
                    self._log(now, progress, validates)
                    self.since.clear()
        return self._finish()

    def _fraction(self) -> float:
        """The fraction of the run that is done."""
        counters = self.counters
        if self.total_steps is not None:
            return (counters.step - counters.first_step) / self.total_steps
        assert self.settings.minutes is not None
        return (counters.seconds - counters.first_second) / (60 * self.settings.minutes)

    def _step(self, fraction: float, seconds: float, stop: StopRequest) -> None:
        settings, step, device = self.settings, self.counters.step, self.group.device
        size = settings.image_size_at(fraction)
        items = self._items(step, settings.max_macs_at(fraction), size)
        for parameters in self.optimizer.param_groups:
            parameters["lr"] = settings.lr_at(step, fraction)
        bits = [self._bits(step, place) for place in range(len(items))]
        self.optimizer.zero_grad(set_to_none=False)
        with torch.autocast(device.type, torch.bfloat16, enabled=self.bf16):
            result = backward_meta_batch(
                self.ghn,
                [item.graph for item in items],
                [self.networks.runner(*drawn) for drawn in zip(items, bits, strict=True)],
                bits,
                [self._batches(item, place, step, size) for place, item in enumerate(items)],
                network_clip=settings.network_clip,
                inner_lr=settings.inner_lr if settings.inner_steps else 0.0,
            )
        told = torch.tensor([seconds, float(stop.asked)])
        self.counters.seconds, stops = average_gradients(self.ghn, told, self.group)
        self.stops = self.stops or stops > 0
        self.grad_norm = float(nn.utils.clip_grad_norm_(self.ghn.parameters(), settings.clip))
        self._update(self.grad_norm)
        self.counters.step += 1
        self.counters.failed_networks += result.failed
        self.since.append(result)

    def _items(self, step: int, max_macs: int | None, size: int) -> list[SampledNetwork]:
        return self.networks.draw(
            step,
            self.settings.meta_batch_size,
            self.settings.known_architectures(step),
            max_macs,
            any_size=size < min(self.train.images.shape[2:]),
        )

    def _number(self, step: int, place: int) -> int:
        """How many networks all processes have drawn before the one at a place of a step."""
        return (step * self.group.size + self.group.rank) * self.settings.meta_batch_size + place

    def _bits(self, step: int, place: int) -> tuple[int, int]:
        settings = self.settings
        drawn = step if settings.bits_per == "meta-batch" else self._number(step, place)
        return settings.bits[precision_index(len(settings.bits), drawn, settings.seed)]

    def _batches(
        self, item: SampledNetwork, place: int, step: int, size: int
    ) -> list[tuple[Tensor, Tensor]]:
        """A network's own images of the meta-batch: one batch, and one more per inner step."""
        settings, network = self.settings, self._number(step, place)
        draw = balanced_batch if settings.balanced else training_batch
        augment = Augmentation(settings.crop)
        batches = []
        for number in range(1 + settings.inner_steps):
            images, labels = draw(
                self.train,
                network * (1 + settings.inner_steps) + number,
                settings.image_batch_size,
                settings.seed,
                augment=augment,
            )
            if item.description.any_size:  # a flattened head takes only images of one size
                images = shrink(images, size)
            # convolutions are faster in this layout
            batches.append((images.contiguous(memory_format=torch.channels_last), labels))
        return batches

    def _update(self, grad_norm: float) -> None:
        """Step, unless the gradient is not finite (in all processes alike) or zero everywhere."""
        usable = math.isfinite(grad_norm) and grad_norm > 0
        counters = self.counters
        if usable:
            self.optimizer.step()
            decay = min(self.settings.average, (counters.step + 1) / (counters.step + 10))
            averages, values = (
                [p.detach() for p in ghn.parameters()] for ghn in (self.averaged, self.ghn)
            )
            torch._foreach_lerp_(averages, values, 1 - decay)
        counters.skipped_steps += not usable
        counters.skipped_in_a_row = 0 if usable else counters.skipped_in_a_row + 1
        if counters.skipped_in_a_row >= MAX_SKIPPED_IN_A_ROW:
            raise GhnqError(
                f"step {counters.step}: {counters.skipped_in_a_row} steps in a row gave no usable "
                "gradient (loss not finite, or not enough memory). The last whole state is in "
                f"{self.folder.state_file}; lower the learning rate or the batch sizes"
            )

    def _log(self, fraction: float, progress: TrainingProgress, validates: bool) -> None:
        counters, settings = self.counters, self.settings
        val_top1 = None
        if validates:
            before = counters.best_top1
            val_top1 = self._validate()
            if val_top1 > before:
                counters.best_top1, counters.best_step = val_top1, counters.step
        loss, top1 = summary(self.since) or (None, None)
        row: dict[str, float | int | None] = {
            "step": counters.step,
            "seconds": counters.seconds,
            "loss": loss,
            "top1": top1,
            "lr": settings.lr_at(counters.step, fraction),
            "grad_norm": self.grad_norm,
            "failed": sum(result.failed for result in self.since),
            "val_top1": val_top1,
        }
        if self.group.is_main:
            append_history(self.folder.history_file, row)
            progress.log(row)
        if validates or counters.step % settings.checkpoint_every == 0:
            self._save()

    def _validate(self) -> float:
        """Validate in the main process and keep the checkpoint if it is the best so far."""
        top1 = 0.0
        if self.group.is_main:
            settings = self.settings
            top1 = validate(
                self.averaged,
                self.val_items,
                self.val,
                settings.bits,
                settings.val_images,
                settings.channel_limit,
            )
            if top1 > self.counters.best_top1:
                self.folder.save_checkpoint(self._described(top1), "best")
        return float(self.group.average(torch.tensor(top1)) * self.group.size)

    def _described(self, val_top1: float | None = None) -> GHN:
        """The averaged hypernetwork, with a description of how it was made."""
        provenance: dict[str, Any] = {
            "parent": self.parent,
            "dataset": self.data_name,
            "steps": self.counters.step,
            "processes": self.group.size,
            "settings": self.settings.to_json(),
        }
        if val_top1 is not None:
            provenance["validation"] = (
                f"top-1 {val_top1:.4f}, mean over {self.settings.val_networks} networks of the split "
                f"val, {self.settings.val_images} held-out training images and the run's precisions"
            )
        return self.averaged.derived(provenance=provenance)

    def _save(self) -> None:
        counters = self.counters
        if self.group.is_main:
            moments = self.optimizer.state_dict()["state"]
            average = {name: p.detach() for name, p in self.averaged.named_parameters()}
            state = TrainingState(self.ghn, moments, average, counters.step, counters.seconds)
            self.folder.save_state(state, counters, self.identity)
        self.group.wait()

    def _finish(self) -> GHN:
        self._save()
        if self.group.is_main:
            self.folder.save_checkpoint(self._described(), "last")
        self.group.wait()
        return GHN.from_pretrained(self.folder.path / "best")


def _hypernetworks(start: TrainingState, settings: FinetuneSettings) -> tuple[GHN, GHN]:
    """The trained hypernetwork and its average, with the parts that the settings ask for."""
    ghn = start.ghn.derived(
        precision_embedding=settings.precision_embedding or start.ghn.precision is not None,
        precision_decoder=settings.precision_decoder or start.ghn.precision_decoder is not None,
        new_batch_norms=settings.new_batch_norms or start.ghn.new_batch_norms,
    )
    averaged = copy.deepcopy(ghn).requires_grad_(False)
    averaged.load_state_dict(start.average, strict=False)  # a new part has no average yet
    return ghn.train(), averaged.eval()


def _optimizer(ghn: GHN, settings: FinetuneSettings, start: TrainingState) -> torch.optim.Optimizer:
    kind = torch.optim.AdamW if settings.optimizer == "adamw" else torch.optim.Adam
    optimizer = kind(
        ghn.parameters(),
        lr=settings.lr,
        betas=settings.betas,
        weight_decay=settings.weight_decay,
        fused=True,  # one kernel instead of several small ones per parameter
    )
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": start.moments, "param_groups": groups})
    return optimizer
