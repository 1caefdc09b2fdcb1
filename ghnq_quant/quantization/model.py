"""The quantized model: a network's own module tree, run by a graph that contains quantizers."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from keyword import iskeyword
from typing import Any, NoReturn, TypeVar

import torch
from torch import fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ghnq_quant.capture import QuantPlan
from ghnq_quant.errors import BackendError, CaptureError, DataError, warn
from ghnq_quant.quantization.batch_norm import has_running_statistics
from ghnq_quant.quantization.graph_rewrite import adopt
from ghnq_quant.quantization.graph_state import graph_from_state, graph_state
from ghnq_quant.quantization.ranges import LearnedRange, RunningRange
from ghnq_quant.quantization.scheme import QuantScheme
from ghnq_quant.quantization.tracing import note_statistics

_Model = TypeVar("_Model", bound="QuantModel")

#: What a GraphModule has besides a module's attributes: its graph, and everything made from it.
_OF_GRAPH = vars(fx.GraphModule({}, fx.Graph())).keys() - vars(nn.Module()).keys()


class QuantModel(fx.GraphModule):
    """A network with quantized layers in place of its own, under the same names.

    It has the module tree, parameters and buffers of the network it was made from, in the same
    order, followed by ``activation_quantizers``. Folded batch norms keep their place: they hold the
    parameters and running statistics that the preceding convolution folds in.

    Attributes:
        float_parts: names of the modules and parameters that are not quantized: skipped ones, norms
            that are not folded into a convolution, parameters used outside of layers.
        batch_norms_frozen, ranges_frozen: whether they stay in eval when the model is put into
            train.

    It can be copied and pickled, with its graph as data: no code is saved, and no text from a file is
    executed. ``torch.load`` with ``weights_only=True`` always refuses it; save the ``state_dict`` for
    readers who do not trust the writer.

    Args:
        modules: holds what the graph calls and reads, and everything else in the network; its
            children, parameters and buffers are reused.
        graph: the graph of ``forward``.
        plan: the units and quantized activations.
        scheme: the quantizers of weights and activations.
        skipped: names of modules that stay float because they are not supported.

    Raises:
        CaptureError: the network has a child, parameter or buffer with a name that
            ``torch.fx.GraphModule`` needs itself.
    """

    scheme: QuantScheme
    plan: QuantPlan
    skipped: tuple[str, ...]
    float_parts: tuple[str, ...]
    batch_norms_frozen: bool = False
    ranges_frozen: bool = False
    _warned: bool
    _calibrated = False

    def __init__(
        self,
        modules: nn.Module,
        graph: fx.Graph,
        plan: QuantPlan,
        scheme: QuantScheme,
        skipped: tuple[str, ...],
    ) -> None:
        self._begin()
        self.plan = plan
        self.scheme = scheme
        self.skipped = skipped
        self.float_parts = skipped
        self._warned = False
        for name in (*modules._modules, *modules._parameters, *modules._buffers):
            if hasattr(self, name) or name == "backend":  # an attribute of subclasses
                raise CaptureError(
                    f"{name!r} of the network has the name of an attribute of quantized models: "
                    "give it another"
                )
        _check_names(graph)
        adopt(self, modules)
        self.graph = graph
        self.register_load_state_dict_post_hook(_refresh)

    def _begin(self) -> None:
        """Start as an empty module: GraphModule's own way copies only what its graph names."""
        fx.GraphModule.__init__(self, nn.Module(), fx.Graph(), _class(self).__name__)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if not torch.compiler.is_compiling():
            self._check_calibration()
            self._warn_of_missing_statistics()
            self._follow_modules()  # not a hook, which would run after ``forward`` is looked up
        return super().__call__(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError as error:
            raise AttributeError(
                f"{error}: a quantized model has the modules, parameters and buffers of the network "
                "it was made from, but none of its other attributes and methods"
            ) from None

    def train(self: _Model, mode: bool = True) -> _Model:
        """Also :meth:`refresh`."""
        super().train(mode)
        self.refresh()
        return self

    def refresh(self) -> None:
        """Update what was changed in the modules but is not checked in ``forward``, because
        ``torch.compile`` and ``torch.export.export`` treat it, like the modes, as constant."""
        frozen = self.batch_norms() if self.batch_norms_frozen else {}
        frozen |= self.moving_ranges() if self.ranges_frozen else {}
        for module in frozen.values():
            module.training = False
        self._follow_modules()
        note_statistics(self._keepers(), self.missing_statistics())

    def range_parameters(self) -> Iterator[nn.Parameter]:
        """The scales and offsets of quantizers with a learned range, which are also in
        ``parameters()``: for their own optimizer group, without weight decay.

        Example:
            >>> import ghnq_quant, torch
            >>> conv = nn.Sequential(nn.Conv2d(3, 8, 3))
            >>> qmodel = ghnq_quant.quantize(conv, ghnq_quant.Quantizer(4, range="learned"))
            >>> ranges = list(qmodel.range_parameters())
            >>> ids = {id(p) for p in ranges}
            >>> others = [p for p in qmodel.parameters() if id(p) not in ids]
            >>> groups = [{"params": others}, {"params": ranges, "lr": 1e-3, "weight_decay": 0}]
            >>> len(ranges), torch.optim.SGD(groups, lr=0.01, weight_decay=1e-4).param_groups[1]["lr"]
            (4, 0.001)
        """
        for module in self.learned_ranges().values():
            yield from module.parameters()

    def _check_calibration(self) -> None:
        """Runs before each forward, until it finds nothing.

        Raises:
            DataError: a range that only calibration sets has not been calibrated.
        """
        if self._calibrated:
            return
        for name, module in self.named_modules():
            if (
                isinstance(module, RunningRange)
                and module.quantizer.calibrated
                and module.training == self.training  # only calibration runs them in train
                and not module.has_statistics()
            ):
                raise DataError(
                    f"{name!r} has range {module.quantizer.range!r}, which needs data and has seen "
                    "none: call ghnq_quant.calibrate(model, batches), or load a calibrated state"
                )
        self._calibrated = True

    def batch_norms(self) -> dict[str, nn.Module]:
        """All batch norms, by name."""
        return {n: m for n, m in self.named_modules() if isinstance(m, _BatchNorm)}

    def running_ranges(self) -> dict[str, nn.Module]:
        """All ranges that are kept for eval, by name."""
        return {n: m for n, m in self.named_modules() if isinstance(m, RunningRange)}  # type: ignore[misc]

    def moving_ranges(self) -> dict[str, nn.Module]:
        """Those of :meth:`running_ranges` that batches move in training."""
        return {n: m for n, m in self.running_ranges().items() if getattr(m, "moves", True)}

    def learned_ranges(self) -> dict[str, LearnedRange]:
        """The ranges that are parameters, also of weights."""
        return {n: m for n, m in self.named_modules() if isinstance(m, LearnedRange)}

    def _follow_modules(self) -> None:
        """Bring the graph in line with the modules' modes, if it holds them as constants."""

    def _keepers(self) -> dict[str, nn.Module]:
        """The modules whose running statistics eval uses."""
        names = [u.batch_norm for u in self.plan.units if u.batch_norm is not None]
        norms = {n: self.get_submodule(n) for n in names} if self.scheme.bn == "running" else {}
        return norms | self.running_ranges()

    def missing_statistics(self) -> list[str]:
        """Names of the folded batch norms and activation quantizers that are in eval without running
        statistics, so that they use the batch's own."""
        has = {
            n: m.has_statistics() if isinstance(m, RunningRange) else has_running_statistics(m)
            for n, m in self._keepers().items()
            if not m.training and isinstance(m, (_BatchNorm, RunningRange))
        }
        return [name for name, there in has.items() if not there]

    def _warn_of_missing_statistics(self) -> None:
        """Runs before each forward in eval; warns once."""
        if self.training or self._warned:
            return
        missing = self.missing_statistics()
        if missing:
            self._warned = True
            warn(
                f"eval mode without running statistics ({missing[0]!r} and {len(missing) - 1} "
                "more): the batch's own are used until some exist; train, or call "
                "ghnq_quant.calibrate"
            )

    def _attributes(self) -> dict[str, Any]:
        return {k: v for k, v in super().__getstate__().items() if k not in _OF_GRAPH}

    def __copy__(self: _Model) -> _Model:
        attributes = {k: copy.copy(v) for k, v in self._attributes().items()}
        return _assembled(_new(_class(self)), attributes, copy.deepcopy(self.graph), self.meta)

    def __deepcopy__(self: _Model, memo: dict[int, Any]) -> _Model:
        twin = memo[id(self)] = _new(_class(self))
        attributes = copy.deepcopy(self._attributes(), memo)
        return _assembled(twin, attributes, copy.deepcopy(self.graph), self.meta)

    def __reduce__(self) -> tuple[Any, ...]:
        return _new, (_class(self),), (self._attributes(), graph_state(self.graph))

    def __setstate__(self, state: Any) -> None:
        attributes, graph = state
        _assembled(self, attributes, graph_from_state(graph), {})

    def _replicate_for_data_parallel(self) -> NoReturn:
        raise BackendError(
            "nn.DataParallel cannot copy a quantized model to other devices, because its layers hold "
            "the batch norms that they fold: use nn.parallel.DistributedDataParallel"
        )

    def __str__(self) -> str:
        return repr(self)

    def extra_repr(self) -> str:
        s = self.scheme
        others = {pattern: f"W{w}/A{a}" for pattern, (w, a) in s.overrides.items()}
        overrides = f", overrides={others}" if others else ""
        more = "".join(
            f", {name}={getattr(s, name)}"
            for name in ("biases", "concatenations", "channel_limit")
            if getattr(s, name) not in ("float", None)
        )
        return f"{s}, act_range={s.act_range}, bn={s.bn}{more}{overrides}"


def _refresh(model: QuantModel, *_: object) -> None:
    model.refresh()


def _class(model: _Model) -> type[_Model]:
    """The model's class without the one that a GraphModule makes for each instance."""
    return type(model).__bases__[0]


def _check_names(graph: fx.Graph) -> None:
    """Raise CaptureError for a name that cannot appear in the source that torch.fx generates."""
    for node in graph.nodes:
        parts = str(node.target).split(".") if node.op in ("call_module", "get_attr") else []
        if any(iskeyword(part) or not part.isprintable() or {*part} & {*'"\\'} for part in parts):
            raise CaptureError(
                f"module {node.target!r}: torch.fx cannot call a module of this name; give it one "
                "that is not a Python keyword and has no quotes or backslashes"
            )


def _new(cls: type[_Model]) -> _Model:
    return cls.__new__(cls)


def _assembled(
    model: _Model, attributes: dict[str, Any], graph: fx.Graph, meta: dict[str, Any]
) -> _Model:
    model._begin()
    nn.Module.__setstate__(model, attributes)
    model.meta = dict(meta)
    model.graph = graph
    return model
