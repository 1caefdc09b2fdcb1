"""Write a trained quantized model as an ONNX file."""

from __future__ import annotations

from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from torch import Tensor, fx

from ghnq_quant.deployment.fold import fold
from ghnq_quant.errors import ConversionError
from ghnq_quant.extras import how_to_install
from ghnq_quant.files import replacing
from ghnq_quant.quantization.model import QuantModel
from ghnq_quant.quantization.targets import Target, find_target

if TYPE_CHECKING:
    import onnx


class Exporter(Protocol):
    """Writes a folded model in one format; registered under ``ghnq_quant.exporters``."""

    def __call__(
        self, folded: fx.GraphModule, example_input: Tensor, **target: Target
    ) -> onnx.ModelProto:
        """The ONNX model. ``folded`` is on CPU, and the exporter may change it. ``target`` is passed
        if the user names one, which then has this format."""


def export_onnx(
    model: QuantModel,
    path: str | Path,
    example_input: Tensor,
    *,
    format: str | None = None,
    target: str | None = None,
) -> Path:
    """Write a trained quantized model as an ONNX file.

    Args:
        model: a trained or calibrated model of any backend; it is not changed.
        path: the file to write.
        example_input: (N, C, H, W), float32. The file's input has this shape, with any N.
        format: ``"qdq"``, standard operators with 8-bit and 4-bit integers; ``"qonnx"``, QONNX's
            ``Quant`` operator with the true bit widths, written by Brevitas; or one registered
            under the entry-point group ``ghnq_quant.exporters``. By default the target's, or qdq.
        target: the runtime that the model's scheme is for, as in
            :meth:`QuantScheme.for_target`; the file contains only what it supports.

    Returns:
        ``path``.

    Raises:
        ConversionError: the format is unknown, a package is not installed, there are no running
            statistics or fixed ranges yet, torch.onnx cannot export the model, or the target does
            not support a node.
        SchemeError: an unknown target.

    Example:
        >>> import ghnq_quant, tempfile, torch
        >>> from torch import nn
        >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 1))
        >>> qat = ghnq_quant.quantize(model, bits=4)
        >>> images = torch.rand(16, 3, 8, 8)
        >>> _ = qat(images)  # your training
        >>> file = ghnq_quant.export_onnx(qat, tempfile.mkdtemp() + "/model.onnx", images[:1])
        >>> file.name
        'model.onnx'
    """
    rules = None if target is None else find_target(target)
    exporter = _load(_format(format, rules))
    settings = {} if rules is None else {"target": rules}
    proto = exporter(fold(model).cpu(), example_input, **settings)
    with replacing(path) as temporary:
        temporary.write_bytes(proto.SerializeToString())
    return Path(path)


def _format(format: str | None, target: Target | None) -> str:
    if target is None:
        return format or "qdq"
    if target.format == "pt2e":
        raise ConversionError(f"{target.name} does not read ONNX files: use ghnq_quant.export_pte")
    if format not in (None, target.format):
        raise ConversionError(f"{target.name} reads format {target.format!r}, not {format!r}")
    return target.format


def _load(format: str) -> Exporter:
    entries = {entry.name: entry for entry in entry_points(group="ghnq_quant.exporters")}
    if format not in entries:
        raise ConversionError(f"unknown format {format!r}; known are: {', '.join(sorted(entries))}")
    try:
        import onnxscript  # noqa: F401  # torch.onnx notices late that it is missing

        exporter: Exporter = entries[format].load()
    except ImportError as error:
        missing = error.name or format
        raise ConversionError(
            f"format {format!r} needs the package {missing!r}, which is not installed: "
            f"{how_to_install(missing)}"
        ) from error
    return exporter
