"""How far one model of a zoo gets: from its creation to the gradients of its quantized form."""

from __future__ import annotations

import gc
import time
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from ghnq_quant.capture import Capture, Kind, capture
from ghnq_quant.capture.adapters import load_adapters
from ghnq_quant.capture.twin import twin
from ghnq_quant.errors import CaptureError, GhnqError, GhnqWarning
from ghnq_quant.prediction import predict_captured
from ghnq_quant.quantization import QuantModel, QuantScheme, emit, load_backend
from ghnq_quant.research.coverage.zoo import Model
from ghnq_quant.start import first_convolutions, with_values

#: In order: create the model; trace it, and compare the traced graph with it on one batch; predict
#: its parameters; emit the quantized model; run it in training mode; compute its gradients.
STAGES = ("create", "capture", "predict", "emit", "forward", "backward")
#: Stages that a model without memory for its values cannot go through.
_NEED_VALUES = ("forward", "backward")
#: Sides of the image; a model gets the first one that it runs on.
SIDES = (64, 96, 160, 224)
NUM_CLASSES = 10
#: Minimum number of copies of the parameters for training a quantized model: its own, the float
#: model's, their gradients, and for each weight the folded and quantized one and their difference.
_COPIES = 6


@dataclass
class ModelCoverage:
    """The results of one model.

    Attributes:
        library: name of the adapter that made it.
        family: family of models, as the adapter groups them.
        model: its name there.
        parameters: number of elements in its parameters.
        nodes: number of nodes of its graph as the hypernetwork reads it.
        seconds: time by stage, for the stages that it passed.
        side: side of the image.
        meta: whether it is too large for the memory and was created without any: then predicting and
            emitting are the last stages.
        kept: number of parameters that keep their own initialization, by "Type.parameter".
        finite: whether its logits and all gradients are finite, in the stages that it passed.
        failed: the stage that it failed in, None if it passed all.
        reason: why it failed.
    """

    library: str
    family: str
    model: str
    parameters: int = 0
    nodes: int = 0
    seconds: dict[str, float] = field(default_factory=dict)
    side: int = 0
    meta: bool = False
    kept: dict[str, int] = field(default_factory=dict)
    finite: bool = True
    failed: str | None = None
    reason: str = ""

    @property
    def key(self) -> Model:
        """Identifies the model."""
        return Model(self.library, self.family, self.model)

    def to_json(self) -> dict[str, Any]:
        """As plain lists, numbers and strings."""
        return asdict(self)

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> ModelCoverage:
        """The inverse of :meth:`to_json`."""
        return cls(**content)


@dataclass(frozen=True)
class Measurement:
    """How a model is measured.

    Attributes:
        bits: bits of weights and activations.
        backend: backend of the quantized model.
        memory: bytes that a model may use.
    """

    bits: tuple[int, int] = (4, 4)
    backend: str = "brevitas"
    memory: int = 8 * 2**30

    def results(self, model: Model) -> Iterator[ModelCoverage]:
        """Take a model through all stages.

        Yields:
            before each stage what is known so far, so that ``failed`` names the stage if the process
            dies; finally the result.
        """
        found = ModelCoverage(*model)
        runner = _StageRunner(self, found)
        for stage in STAGES:
            if found.meta and stage in _NEED_VALUES:
                continue
            found.failed = stage
            yield found
            start = time.perf_counter()
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore", GhnqWarning)
                    getattr(runner, stage)()
            except Exception as error:
                found.reason = _one_line(error)
                break
            found.seconds[stage] = round(time.perf_counter() - start, 3)
        else:
            found.failed = None
        yield found


class _StageRunner:
    """The stages of one model; each leaves what the next one needs."""

    def __init__(self, measurement: Measurement, found: ModelCoverage) -> None:
        self.settings = measurement
        self.found = found

    def create(self) -> None:
        adapter = load_adapters()[self.found.library]
        create = lambda: adapter.create_model(self.found.model, NUM_CLASSES)  # noqa: E731
        try:
            with torch.device("meta"):
                model = create()
        except Exception:  # an initialization that needs values
            model = create()
        if model is None:
            raise GhnqError(f"{self.found.library} has no model {self.found.model}")
        self.found.parameters = sum(p.numel() for p in model.parameters())
        needed = 4 * _COPIES * self.found.parameters + 2**30
        self.found.meta = needed > self.settings.memory
        if not self.found.meta and any(p.is_meta for p in model.parameters()):
            model = create()
        assert model is not None
        self.model: nn.Module = model

    def capture(self) -> None:
        self.captured: Capture = capture(self.model)
        self.found.nodes = len(self.captured.arch_graph)
        self.found.side = _smallest_side(self.captured)
        if not self.found.meta:
            self._compare()

    def _compare(self) -> None:
        model, root, x = twin(self.model), twin(self.captured.root), self._images()
        with torch.no_grad():
            expected = model.eval()(x)
            actual = fx.Interpreter(root.eval(), graph=self.captured.graph).run(x)
        if not torch.allclose(actual, expected, rtol=1e-4, atol=1e-5, equal_nan=True):
            raise CaptureError("the captured graph does not compute what the model computes")

    def predict(self) -> None:
        (self.new_values,) = predict_captured([self.captured], None, self.settings.bits)
        named = list(self.captured.root.named_parameters())
        predicted = {
            id(p): new
            for (_, p), new in zip(named, self.new_values, strict=True)
            if new is not None
        }
        for (name, p), new in zip(named, self.new_values, strict=True):
            if new is not None and (new.shape != p.shape or not (new.is_meta or _finite(new))):
                raise GhnqError(f"{name!r}: predicted with a wrong shape or values not finite")
        self._check_all_predicted(predicted)
        kept = {id(p) for _, p in named if id(p) not in predicted}
        self.found.kept = dict(
            Counter(
                f"{type(module).__name__.lstrip('_')}.{name}"
                for module in self.model.modules()
                for name, p in module.named_parameters(recurse=False)
                if id(p) in kept
            )
        )

    def _check_all_predicted(self, predicted: dict[int, Tensor]) -> None:
        layers = (Kind.CONV, Kind.LINEAR, Kind.BATCH_NORM, Kind.OTHER_NORM)
        for node, kind in self.captured.kinds.items():
            if kind not in layers or node.op != "call_module":
                continue
            parameters = self.captured.modules[str(node.target)]._parameters
            for name in ("weight", "bias"):
                p = parameters.get(name)
                if p is not None and id(p) not in predicted:
                    raise GhnqError(f"{node.target}.{name} of a {kind.value} is not predicted")

    def emit(self) -> None:
        scheme = QuantScheme(*self.settings.bits)
        backend = load_backend(self.settings.backend)
        values = first_convolutions(self.captured, self.new_values, share=1.0)
        images = self._images().to("meta" if self.found.meta else "cpu")
        started = with_values(self.captured, values)
        self.quantized: QuantModel = emit(started, scheme, backend, images)
        del self.model, self.captured, self.new_values
        gc.collect()

    def forward(self) -> None:
        self.logits: Tensor = self.quantized.train()(self._images())
        if self.logits.shape != (2, NUM_CLASSES):
            raise GhnqError(f"the output has shape {tuple(self.logits.shape)}")
        self.found.finite = _finite(self.logits)

    def backward(self) -> None:
        F.cross_entropy(self.logits, torch.arange(2)).backward()
        gradients = [p.grad for p in self.quantized.parameters() if p.grad is not None]
        if not gradients:
            raise GhnqError("no parameter has a gradient")
        self.found.finite = self.found.finite and all(map(_finite, gradients))

    def _images(self) -> Tensor:
        generator = torch.Generator().manual_seed(0)
        side = self.found.side
        return torch.randn(2, 3, side, side, generator=generator)


def _smallest_side(captured: Capture) -> int:
    *small, largest = SIDES
    for side in small:
        with suppress(CaptureError):
            captured.shapes((2, 3, side, side))
            return side
    captured.shapes((2, 3, largest, largest))
    return largest


def _finite(x: Tensor) -> bool:
    return bool(x.isfinite().all())


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text if isinstance(error, GhnqError) else f"{type(error).__name__}: {text}"
