"""``compare_init``: quantization-aware training from several starts, with equal steps and tuning."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ghnq_quant.errors import DataError
from ghnq_quant.files import replacing, save_json
from ghnq_quant.ghn import GHN
from ghnq_quant.quantization import load_backend
from ghnq_quant.quantization.scheme import Precision, precision_name
from ghnq_quant.research.data import Images, ImageSet, hold_out, load_images
from ghnq_quant.research.data.foreign import foreign
from ghnq_quant.research.runs.identity import (
    IDENTITY,
    digest_of_hypernetwork,
    digest_of_images,
    digest_of_model,
)
from ghnq_quant.research.runs.journal import Journal
from ghnq_quant.research.runs.lock import locked
from ghnq_quant.research.runs.progress import Progress
from ghnq_quant.research.runs.provenance import checksum, versions
from ghnq_quant.research.runs.seeds import CHOICE_SEED
from ghnq_quant.research.runs.tables import show_result
from ghnq_quant.research.starts.plotting import plot_curves
from ghnq_quant.research.starts.results import Comparison, TrialResult, best_lr
from ghnq_quant.research.starts.settings import CompareSettings, Trial
from ghnq_quant.research.starts.starts import STARTS
from ghnq_quant.research.starts.tables import accuracy_caption, markdown_page, terminal_tables
from ghnq_quant.research.starts.trials import Bench, create_network, run_trials

if TYPE_CHECKING:
    from rich.console import Console

TRIALS_FILE = "trials.jsonl"


def compare_init(
    settings: CompareSettings,
    output: str | Path,
    *,
    ghn: GHN | None = None,
    known: Mapping[Trial, TrialResult] = {},
    download: bool = False,
    workers: int = 1,
    console: Console | None = None,
) -> Comparison:
    """Train each network from each start for each number of steps.

    Each training has its own schedule, so each accuracy is what a user gets for that many steps. For
    each network, precision and start the learning rate is chosen first, by one training with each of
    ``settings.lrs``, measured on a tenth of the training images that is left out. The reported
    trainings use all training images, or the same few if ``settings.images_per_class`` is given, and
    are measured on the test images. If stopped and called again with the same arguments, it continues
    with the trainings that are missing.

    Args:
        settings: networks, precisions, starts, steps and data.
        output: folder for ``trials.jsonl``, ``results.json``, ``table.md`` and ``curves.png``.
        ghn: a hypernetwork, instead of ``settings.ghn``.
        known: trainings under the same conditions that chose learning rates for another comparison;
            they are not repeated.
        download: fetch CIFAR-10 if ``settings.data`` is ``cifar10`` and it is not there yet.
        workers: processes that share the trainings; with more than one, a script must guard its
            entry with ``if __name__ == "__main__":``.
        console: rich console for live progress and the table; None for no output.

    Raises:
        GhnqError: a network, backend or checkpoint does not exist, or the folder has a comparison
            with other settings.
        DataError: the data has another number of classes than the hypernetwork.

    Example:
        >>> settings = CompareSettings(("resnet8",), data="digits", steps=(40, 80), seeds=1)
        >>> compare_init(settings, "runs/compare").ratios("resnet8", (4, 4), "ghnq")  # doctest: +SKIP
    """
    hypernetwork = ghn if ghn is not None else GHN.from_pretrained(settings.ghn)
    load_backend(settings.backend)
    images = load_images(settings.data, name=settings.data_name, download=download)
    if settings.foreign:
        images = foreign(images)
    _check_classes(settings, images, hypernetwork)
    fitted, held_out = hold_out(images.train)
    if settings.images_per_class is not None:
        fitted = fitted.sample_each_class(settings.images_per_class)
        images = ImageSet(images.name, fitted, images.test)
    choice = Bench(settings, hypernetwork, fitted, held_out)
    measured = Bench(settings, hypernetwork, images.train, images.test)
    facts = _facts(settings, images, held_out, hypernetwork)
    journal = Journal(Path(output) / TRIALS_FILE, facts, TrialResult)
    with locked(output):
        finished = {**known, **{r.trial: r for r in journal.resume().values()}}
        _run_missing(choice, measured, journal, finished, workers, console)
        comparison = Comparison(settings, {**facts, "versions": versions()}, finished)
        _save(comparison, Path(output))
    if console is not None:
        show_result(console, terminal_tables(comparison), accuracy_caption(comparison), output)
    return comparison


def _run_missing(
    choice: Bench,
    measured: Bench,
    journal: Journal[TrialResult],
    finished: dict[Trial, TrialResult],
    workers: int,
    console: Console | None,
) -> None:
    """Add what is missing to ``finished``: first trainings that choose the rates, then the reported."""
    settings = measured.settings
    done = sum(trial.steps for trial in finished)
    with Progress(_total_steps(settings), console, unit="step", done=done) as progress:

        def run(bench: Bench, trials: Sequence[Trial]) -> None:
            missing = [trial for trial in trials if trial not in finished]
            for result in run_trials(bench, missing, workers):
                journal.append(result)
                finished[result.trial] = result
                progress.advance(result.trial.steps, _told(result))

        run(choice, choice_trials(settings))
        run(measured, measured_trials(settings, finished))


def _save(comparison: Comparison, folder: Path) -> None:
    save_json(comparison.to_json(), folder / "results.json")
    with replacing(folder / "table.md") as temporary:
        temporary.write_text(markdown_page(comparison), "utf-8")
    with replacing(folder / "curves.png") as temporary:
        plot_curves(comparison, temporary)


def _told(result: TrialResult) -> str:
    trial = result.trial
    return f"{trial.arch} {precision_name(trial.bits)} {trial.start}: {result.accuracy:.1f} %"


def _check_classes(settings: CompareSettings, images: ImageSet, ghn: GHN) -> None:
    classes = len(images.train.classes)
    as_predicted = [s for s in settings.starts if (STARTS[s].options or {}).get("as_predicted")]
    if as_predicted and classes != ghn.num_classes:
        raise DataError(
            f"{images.name} has {classes} classes; the hypernetwork predicts classification layers "
            f"of {ghn.num_classes}: leave out the start {as_predicted[0]!r}"
        )


def _facts(
    settings: CompareSettings, images: ImageSet, held_out: Images, ghn: GHN
) -> dict[str, Any]:
    """How the numbers are obtained, which must be the same for a run to continue.

    Raises:
        GhnqError: a network does not exist; raised before any training.
    """
    train, classes = images.train, len(images.train.classes)
    return {
        "command": settings.command(),
        "settings": asdict(settings),
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
        IDENTITY: {
            "train": digest_of_images(train),
            "held_out": digest_of_images(held_out),
            "test": digest_of_images(images.test),
            "ghn": digest_of_hypernetwork(ghn),
            "networks": {
                arch: digest_of_model(partial(create_network, arch, classes))
                for arch in settings.archs
            },
        },
    }


def choice_trials(settings: CompareSettings) -> list[Trial]:
    """The trainings that choose the learning rates; none if there is no choice."""
    lrs = settings.lrs if len(settings.lrs) > 1 else ()
    return [
        Trial(*case, settings.lr_steps, lr, CHOICE_SEED) for case in _cases(settings) for lr in lrs
    ]


def measured_trials(
    settings: CompareSettings, finished: Mapping[Trial, TrialResult]
) -> list[Trial]:
    """The trainings that are reported, each with the learning rate of its start."""
    lrs = settings.lrs
    trials = []
    for case in _cases(settings):
        lr = lrs[0]
        if len(lrs) > 1:
            choices = [Trial(*case, settings.lr_steps, lr, CHOICE_SEED) for lr in lrs]
            lr = best_lr([finished[choice] for choice in choices])
        trials += [
            Trial(*case, steps, lr, seed)
            for steps, seed in product(settings.steps, range(settings.seeds))
        ]
    return trials


def _cases(settings: CompareSettings) -> Iterator[tuple[str, Precision, str]]:
    return product(settings.archs, settings.bits, settings.starts)


def _total_steps(settings: CompareSettings) -> int:
    cases = len(settings.archs) * len(settings.bits) * len(settings.starts)
    choices = len(settings.lrs) if len(settings.lrs) > 1 else 0
    return cases * (choices * settings.lr_steps + settings.seeds * sum(settings.steps))
