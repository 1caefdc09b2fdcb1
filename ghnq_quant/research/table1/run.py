"""``evaluate``: the paper's protocol over the networks of splits, or over named models."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ghnq_quant.errors import DataError, GhnqError
from ghnq_quant.files import read_state
from ghnq_quant.ghn import GHN
from ghnq_quant.ghn.checkpoints import DEFAULT_CHECKPOINT
from ghnq_quant.research.data import Images, ImageSet, load_images
from ghnq_quant.research.networks import SCHEMA, SIDE
from ghnq_quant.research.runs.identity import (
    IDENTITY,
    digest_of_hypernetwork,
    digest_of_images,
    digest_of_model,
    digest_of_tensors,
)
from ghnq_quant.research.runs.journal import Journal
from ghnq_quant.research.runs.lock import locked
from ghnq_quant.research.runs.processes import in_processes, one_thread
from ghnq_quant.research.runs.progress import Progress
from ghnq_quant.research.runs.provenance import checksum, versions
from ghnq_quant.research.runs.tables import show_result
from ghnq_quant.research.table1.evaluation import NETWORKS_FILE, Evaluation
from ghnq_quant.research.table1.measurement import num_evaluated
from ghnq_quant.research.table1.networks import Evaluator, Place, network_places
from ghnq_quant.research.table1.results import NetworkResult
from ghnq_quant.research.table1.settings import (
    BATCH_SIZE,
    PAPER_PRECISIONS,
    TABLE_SPLITS,
    EvaluationSettings,
    parse_precisions,
)
from ghnq_quant.research.table1.tables import caption, terminal_tables, write_tables

if TYPE_CHECKING:
    from rich.console import Console

#: Number of classes of ConvNets-250K's networks.
_CLASSES = 10


def evaluate(
    data: str | Path,
    output: str | Path,
    *,
    ghn: GHN | str | Path = DEFAULT_CHECKPOINT,
    split: Sequence[str] | None = None,
    model: str | Sequence[str] | None = None,
    adapt_stem: bool = False,
    trained: str | Path | None = None,
    precision: Sequence[str] = PAPER_PRECISIONS,
    channel_limit: float | None = None,
    num_nets: int | None = None,
    num_images: int | None = None,
    data_name: str | None = None,
    download: bool = False,
    workers: int = 1,
    device: str = "cpu",
    console: Console | None = None,
) -> Evaluation:
    """Make the paper's Table 1: accuracy of predicted parameters at several precisions.

    Each network gets the parameters that the hypernetwork predicts for it and runs at all
    precisions on the same batches of 64 test images, with the statistics and ranges of the batch.
    Every process uses one thread, so the numbers do not depend on how many there are. If stopped and
    called again with the same arguments, it continues with the networks that are missing.

    Args:
        data: see :func:`ghnq_quant.research.data.load_images`; its test part is used.
        output: folder for ``results.json``, ``table.md``, ``table.csv``, ``networks.csv`` and
            ``networks.jsonl``.
        ghn: a hypernetwork, or the folder or name of its checkpoint.
        split: splits of ConvNets-250K, by default those of Table 1 and ``mobile``.
        model: instead of splits, one or several names of torchvision and timm models, prefixed with
            the zoo if both have it (``timm:resnet18``).
        adapt_stem: whether to adapt these to the images' size with :func:`ghnq_quant.adapt_stem`.
        trained: a trained ``state_dict`` of ``model``, whose weights' distributions are put beside
            the predicted ones.
        precision: for example ``W4/A8``; float is always measured.
        channel_limit: of quantized networks, see :class:`ghnq_quant.QuantScheme`.
        num_nets: number of networks per split, from the first; None for all.
        num_images: number of test images, from the first in their fixed mixed order; None for all.
        data_name: the data set's name in the results, if it has a better one than its file's.
        download: fetch CIFAR-10 if ``data`` is ``cifar10`` and it is not there yet.
        workers: processes that share the networks; with more than one, a script must guard its
            entry with ``if __name__ == "__main__":``.
        device: device for the networks.
        console: rich console for live progress and the tables; None for no output.

    Raises:
        GhnqError: settings contradict each other, the data has another number of classes than the
            hypernetwork, or the folder has an evaluation with other settings.

    Example:
        >>> import tempfile
        >>> result = evaluate(
        ...     "digits", tempfile.mkdtemp(), split=["mobile"], precision=["W8/A8"],
        ...     num_nets=1, num_images=64,
        ... )  # doctest: +SKIP
        >>> result.summaries()["mobile"]["W8/A8"]["top1"].mean  # doctest: +SKIP
    """
    settings = EvaluationSettings(
        data=str(data),
        data_name=data_name,
        ghn=_checkpoint_name(ghn),
        splits=() if model is not None and split is None else tuple(split or TABLE_SPLITS),
        models=(model,) if isinstance(model, str) else tuple(model or ()),
        adapt_stem=adapt_stem,
        trained=None if trained is None else str(trained),
        precisions=parse_precisions(precision),
        channel_limit=channel_limit,
        num_nets=num_nets,
        num_images=num_images,
    )
    if workers < 1:
        raise GhnqError(f"--workers {workers}: at least one process is needed")
    _check_device(device)
    places = network_places(settings)
    hypernetwork = ghn if isinstance(ghn, GHN) else GHN.from_pretrained(ghn)
    state = None if trained is None else read_state(trained)[0]
    image_set = load_images(data, name=data_name, download=download)
    _check_images(image_set.test, hypernetwork, settings)
    evaluator = Evaluator(settings, hypernetwork, image_set.test, state, device)
    facts = _facts(evaluator, image_set)
    journal = Journal(Path(output) / NETWORKS_FILE, facts, NetworkResult)
    with locked(output):
        finished = _measure_missing(evaluator, places, journal, workers, console)
        record = {
            "command": settings.command(),
            **facts,
            "device": device,
            "seconds": round(sum(network.seconds for network in finished), 1),
            "versions": versions(),
        }
        evaluation = Evaluation(record, finished)
        evaluation.save(output)
        write_tables(evaluation, output)
    if console is not None:
        show_result(console, terminal_tables(evaluation), caption(evaluation), output)
    return evaluation


def _measure_missing(
    evaluator: Evaluator,
    places: Sequence[Place],
    journal: Journal[NetworkResult],
    workers: int,
    console: Console | None,
) -> tuple[NetworkResult, ...]:
    """The journal's results for ``places``, after measuring and adding what it lacks."""
    finished = journal.resume()
    missing = [place for place in places if place not in finished]
    with Progress(
        len(places), console, unit="network", done=len(places) - len(missing)
    ) as progress:
        for result in _measured(evaluator, missing, workers, progress.advance):
            journal.append(result)
            finished[result.key] = result
    return tuple(finished[place] for place in places)


def _measured(
    evaluator: Evaluator, places: Sequence[Place], workers: int, advance: Callable[[float], None]
) -> Iterator[NetworkResult]:
    """Results as they are finished; ``advance`` is told the progress since, in networks."""
    if min(workers, len(places)) > 1:
        for result in in_processes(evaluator.results, places, workers):
            advance(1)
            yield result
        return
    count = num_evaluated(len(evaluator.images), evaluator.settings.num_images)
    share = 1 / math.ceil(count / BATCH_SIZE)
    with one_thread():
        for place in places:
            yield evaluator.measure(place, lambda: advance(share))


def _checkpoint_name(ghn: GHN | str | Path) -> str:
    if isinstance(ghn, GHN):
        return str((ghn.provenance or {}).get("name", "a hypernetwork in memory"))
    return str(ghn)


def _check_images(images: Images, ghn: GHN, settings: EvaluationSettings) -> None:
    classes = len(images.classes)
    if classes != ghn.num_classes:
        raise DataError(
            f"{settings.data} has {classes} classes; {settings.ghn} predicts classification layers "
            f"of {ghn.num_classes}: evaluate it on images of its own classes"
        )
    if len(images) < BATCH_SIZE:
        raise DataError(
            f"{settings.data} has {len(images)} test images; a batch takes {BATCH_SIZE}"
        )
    height, width = images.images.shape[2:]
    if settings.splits and (classes, height, width) != (_CLASSES, SIDE, SIDE):
        raise DataError(
            f"{settings.data} has {classes} classes and images of {height}×{width} pixels; the "
            f"networks of ConvNets-250K are made for {_CLASSES} classes and {SIDE}×{SIDE} pixels"
        )


def _check_device(device: str) -> None:
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # a build without such devices
        raise GhnqError(f"--device {device}: torch has none of that name here: {error}") from error


def _facts(evaluator: Evaluator, image_set: ImageSet) -> dict[str, Any]:
    """What two runs must share for their numbers to be equal."""
    settings, ghn, test = evaluator.settings, evaluator.ghn, image_set.test
    return {
        "settings": settings.to_json(),
        "data": {
            "name": image_set.name,
            "images_used": num_evaluated(len(test), settings.num_images),
            "test_images": len(test),
            "classes": list(test.classes),
            "sha256": checksum((test.images, test.labels, test.mean, test.std)),
        },
        "ghn": {
            "name": settings.ghn,
            "sha256": checksum(tensor for _, tensor in sorted(ghn.state_dict().items())),
            "precision_embedding": ghn.reads_precision,
            "provenance": ghn.provenance,
        },
        "design_space_schema": SCHEMA,
        IDENTITY: {
            "test": digest_of_images(test),
            "ghn": digest_of_hypernetwork(ghn),
            "models": {
                name: digest_of_model(partial(evaluator.network, (name, 0)))
                for name in settings.models
            },
            "trained": None if evaluator.trained is None else digest_of_tensors(evaluator.trained),
            "device": torch.device(evaluator.device).type,
        },
    }
