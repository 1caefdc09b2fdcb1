"""``compare_init``: quantization-aware training from several starts, with the same budget and tuning."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ghnq_quant.comparison.progress import Progress
from ghnq_quant.comparison.record import TRIALS_FILE, Comparison
from ghnq_quant.comparison.results import TrialResult, best_lr
from ghnq_quant.comparison.settings import CHOICE_SEED, Bits, CompareSettings, Trial
from ghnq_quant.comparison.tables import accuracy_caption, terminal_tables
from ghnq_quant.comparison.training import create_network
from ghnq_quant.comparison.workers import Bench, run_trials
from ghnq_quant.errors import DataError
from ghnq_quant.evaluation.journal import Journal
from ghnq_quant.ghn import GHN
from ghnq_quant.provenance import checksum, versions
from ghnq_quant.quantization import load_backend
from ghnq_quant.training import ImageSet, load_images
from ghnq_quant.training.validation import hold_out

if TYPE_CHECKING:
    from rich.console import Console


def compare_init(
    settings: CompareSettings,
    output: str | Path,
    *,
    ghn: GHN | None = None,
    download: bool = False,
    workers: int = 1,
    console: Console | None = None,
) -> Comparison:
    """Train each network from each start with an eighth, a quarter, half and the whole of the budget.

    Each training has a schedule of its own, so each budget's accuracy is what a user gets who pays
    that many steps. For each of them, and each network, precision and start, the learning rate is
    chosen first, by a training with each of ``settings.lrs`` that is measured on a tenth of the
    training images, which it leaves out; the others train on all of them, or on the same few where
    ``settings.images_per_class`` is given, and are measured on the test images. Stopped at any
    moment and called again with the same arguments, it goes on with the trainings that are missing.

    Args:
        settings: networks, precisions, starts, budgets and data.
        output: folder for ``trials.jsonl``, ``results.json``, ``table.md`` and ``curves.png``.
        ghn: in place of ``settings.ghn``, a hypernetwork.
        download: fetch CIFAR-10 where ``settings.data`` is ``cifar10`` and it is not there yet.
        workers: processes that share the trainings; with more than one, a script must guard its
            entry with ``if __name__ == "__main__":``.
        console: of rich, for live progress and the table; None for silence.

    Raises:
        GhnqError: a network, backend or checkpoint that does not exist, or a folder with a
            comparison of other settings.
        DataError: data of another number of classes than the hypernetwork's.

    Example:
        >>> settings = CompareSettings(("resnet8",), data="digits", budget=80, seeds=1)
        >>> compare_init(settings, "runs/compare").ratios("resnet8", (4, 4), "ghnq")  # doctest: +SKIP
    """
    hypernetwork = ghn if ghn is not None else GHN.from_pretrained(settings.ghn)
    load_backend(settings.backend)
    images = load_images(settings.data, name=settings.data_name, download=download)
    _check(settings, images, hypernetwork)
    fitted, held_out = hold_out(images.train)
    if settings.images_per_class is not None:
        fitted = fitted.sample_each_class(settings.images_per_class)
        images = ImageSet(images.name, fitted, images.test)
    facts = _facts(settings, images, hypernetwork)
    journal = Journal(Path(output) / TRIALS_FILE, facts, TrialResult)
    finished: dict[Trial, TrialResult] = {r.trial: r for r in journal.resume().values()}
    with Progress(_total_steps(settings), console) as progress:
        progress.add(finished.values())

        def run(bench: Bench, trials: Sequence[Trial]) -> None:
            missing = [trial for trial in trials if trial not in finished]
            for result in run_trials(bench, missing, workers):
                journal.append(result)
                finished[result.trial] = result
                progress.add([result])

        run(Bench(settings, hypernetwork, fitted, held_out), choice_trials(settings))
        run(
            Bench(settings, hypernetwork, images.train, images.test),
            measured_trials(settings, finished),
        )
    comparison = Comparison(settings, {**facts, "versions": versions()}, finished)
    comparison.save(output)
    if console is not None:
        for table in terminal_tables(comparison):
            console.print(table)
        console.print(accuracy_caption(comparison), markup=False, highlight=False)
        console.print(f"Saved to {output}", markup=False, highlight=False, soft_wrap=True)
    return comparison


def _check(settings: CompareSettings, images: ImageSet, ghn: GHN) -> None:
    """Raise for what should not wait until a training meets it."""
    classes = len(images.train.classes)
    if classes != ghn.num_classes:
        raise DataError(
            f"{images.name} has {classes} classes; the hypernetwork predicts classification layers "
            f"of {ghn.num_classes}: finetune it on this data set first"
        )
    for arch in settings.archs:
        create_network(arch, classes)


def _facts(settings: CompareSettings, images: ImageSet, ghn: GHN) -> dict[str, Any]:
    """How the numbers come about; what must be the same for a run to go on."""
    train = images.train
    return {
        "command": settings.command(),
        "settings": settings.to_json(),
        "data": {
            "name": images.name,
            "train_images": len(train),
            "test_images": min(settings.test_images, len(images.test)),
            "sha256": checksum((train.images, train.labels, train.mean, train.std)),
        },
        "ghn": {
            "sha256": checksum(t for _, t in sorted(ghn.state_dict().items())),
            "provenance": ghn.provenance,
        },
    }


def choice_trials(settings: CompareSettings) -> list[Trial]:
    """The trainings that choose the learning rates; none where there is no choice."""
    lrs = settings.lrs if len(settings.lrs) > 1 else ()
    return [Trial(*case, lr, CHOICE_SEED) for case in _cases(settings) for lr in lrs]


def measured_trials(settings: CompareSettings, finished: dict[Trial, TrialResult]) -> list[Trial]:
    """The trainings that are reported, each with the learning rate of its start and budget."""
    lrs = settings.lrs
    trials = []
    for case in _cases(settings):
        lr = lrs[0]
        if len(lrs) > 1:
            lr = best_lr([finished[Trial(*case, choice, CHOICE_SEED)] for choice in lrs], lrs)
        trials += [Trial(*case, lr, seed) for seed in range(settings.seeds)]
    return trials


def _cases(settings: CompareSettings) -> Iterator[tuple[str, Bits, str, int]]:
    return product(settings.archs, settings.bits, settings.starts, settings.budgets)


def _total_steps(settings: CompareSettings) -> int:
    cases = len(settings.archs) * len(settings.bits) * len(settings.starts)
    tuned = len(settings.lrs) if len(settings.lrs) > 1 else 0
    return cases * (tuned + settings.seeds) * sum(settings.budgets)
