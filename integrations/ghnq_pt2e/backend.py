"""Export, annotate and prepare: torchao's flow for quantization-aware training."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, fx, nn
from torchao.quantization.pt2e.quantize_pt2e import prepare_qat_pt2e

from ghnq_pt2e.model import DROPOUTS, Pt2eModel
from ghnq_pt2e.quantizer import OUTPUT, WEIGHT, Marker, PlanQuantizer, owner
from ghnq_quant.capture import Capture
from ghnq_quant.errors import BackendError, CaptureError, warn
from ghnq_quant.quantization.batch_norm import has_running_statistics
from ghnq_quant.quantization.graph_rewrite import (
    QUANTIZERS,
    TrainingMode,
    rewrite,
    with_quantizers,
)
from ghnq_quant.quantization.model import QuantModel
from ghnq_quant.quantization.scheme import QuantScheme


class Pt2eBackend:
    """A model prepared with ``torchao.quantization.pt2e``."""

    def model(
        self, captured: Capture, scheme: QuantScheme, example_input: Tensor | None
    ) -> QuantModel:
        if example_input is None:
            raise BackendError(
                "backend 'pt2e' exports the model at the images' size: give example_input=, a tensor "
                "(N, C, H, W) of that size (--image-size of ghnq init)"
            )
        if scheme.channel_limit is not None:
            raise BackendError(
                "backend 'pt2e' has torchao fold batch norms, which knows no channel_limit: use another "
                "backend, or a scheme without it"
            )
        plan = captured.quant_plan
        _check_learned(captured, scheme)
        markers: dict[str, nn.Module] = {
            point.key: Marker()
            for point in plan.points
            if not scheme.activations_of(point).is_float
        }
        modules = with_quantizers(captured.root, markers)
        traced = fx.GraphModule(modules, rewrite(captured, modules, fold=False))
        _check_modes(captured, modules)
        with _as_in_training(modules):
            exported = _export(traced, example_input)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            prepared = prepare_qat_pt2e(exported, PlanQuantizer(plan, scheme))
        _check(prepared, modules)
        _name_quantizers(prepared, modules)
        model = Pt2eModel(modules, prepared.graph, plan, scheme, captured.skipped)
        model.meta.update(prepared.meta)  # convert_pt2e reads it
        return model


def _check_learned(captured: Capture, scheme: QuantScheme) -> None:
    """Raise BackendError for a learned scale of a folded weight whose size is not known yet: torchao
    folds the running statistics in training too."""
    for unit in captured.quant_plan.units:
        if unit.batch_norm is None or not scheme.weights_of(unit.name).learned:
            continue
        if not has_running_statistics(captured.modules[unit.batch_norm]):  # type: ignore[arg-type]
            raise BackendError(
                f"the weight of {unit.name!r} has a learned range, which backend 'pt2e' initializes with "
                f"the running statistics of {unit.batch_norm!r} folded in, and there are none: "
                "quantize a trained network, or use another backend or range for weights"
            )


def _check_modes(captured: Capture, modules: nn.Module) -> None:
    """Raise BackendError for differences between the modes, which an exported graph cannot follow."""
    functions = any(isinstance(m, TrainingMode) for m in modules.modules())
    if functions or captured.kept_whole:
        name = repr(captured.kept_whole[0]) if captured.kept_whole else "a function that it calls"
        raise BackendError(
            f"{name} behaves differently in training than in eval, or has its own gradient, which an "
            "exported model cannot keep: use another backend, or a model without it"
        )


@contextmanager
def _as_in_training(modules: nn.Module) -> Iterator[None]:
    """All modules in train, and no batch norm with a momentum that depends on a count."""
    training = {m: m.training for m in modules.modules()}
    momenta = {m: m.momentum for m in training if isinstance(m, nn.BatchNorm2d)}
    try:
        modules.train()
        for norm in momenta:
            norm.momentum = 0.1
        yield
    finally:
        for norm, momentum in momenta.items():
            norm.momentum = momentum
        for module, mode in training.items():
            module.training = mode


def _export(traced: fx.GraphModule, example_input: Tensor) -> fx.GraphModule:
    """The graph of a training step, for any number of images; what the model computes from their size
    is that of the example's."""
    parameter = next(traced.parameters())
    shape = (2, *example_input.shape[1:])  # a batch of one would become a constant
    x = torch.zeros(shape, dtype=parameter.dtype, device=parameter.device)
    try:
        batch = {0: torch.export.Dim.DYNAMIC}
        program = torch.export.export(traced, (x,), dynamic_shapes=(batch,))
    except Exception as error:
        raise CaptureError(f"torch.export cannot export the model: {error}") from error
    exported = program.module(check_guards=False)
    assert isinstance(exported, fx.GraphModule)
    return exported


def _check(prepared: fx.GraphModule, modules: nn.Module) -> None:
    """Check that the training graph can be turned into that of eval and of a converted model.

    Raises:
        BackendError: a module other than dropout draws random numbers.
    """
    for node in prepared.graph.nodes:
        tags = getattr(node.target, "tags", ())
        if torch.Tag.nondeterministic_seeded in tags and node.target not in DROPOUTS:
            raise BackendError(
                f"module {owner(node)!r} draws random numbers in training, which an exported model "
                "cannot stop doing in eval: build the model without it (a drop rate of 0)"
            )
    norms = {n: m for n, m in modules.named_modules() if isinstance(m, nn.BatchNorm2d)}
    other = [name for name, norm in norms.items() if norm.eps != 1e-5]
    if other:
        warn(
            f"{len(other)} batch norms ({other[0]!r} with eps={norms[other[0]].eps}) have another "
            "eps than 1e-5: training and eval use it, but torchao's convert_pt2e folds with 1e-5"
        )


def _name_quantizers(prepared: fx.GraphModule, modules: nn.Module) -> None:
    """Rename torchao's numbered fake quantizers after what they quantize."""
    container = nn.ModuleDict()
    parameter = next(modules.parameters())
    for node in prepared.graph.nodes:
        if node.op != "call_module":
            continue
        (source,), (user, *_) = node.args, node.users
        quantizer = prepared.get_submodule(node.target).to(parameter.device, parameter.dtype)
        if OUTPUT in source.meta:
            node.target = source.meta[OUTPUT]
            container[node.target.rpartition(".")[2]] = quantizer
        else:
            node.target = user.meta[WEIGHT]
            modules.get_submodule(node.target.rpartition(".")[0]).add_module(
                "weight_fake_quant", quantizer
            )
    setattr(modules, QUANTIZERS, container.train(modules.training))
