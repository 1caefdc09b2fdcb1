"""A model prepared by torchao that behaves like a module: train, eval, copies, state."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx, nn, ops

from ghnq_pt2e.quantizer import owner
from ghnq_quant.errors import BackendError, warn
from ghnq_quant.quantization.batch_norm import has_running_statistics
from ghnq_quant.quantization.model import QuantModel

_BATCH_NORM = ops.aten.batch_norm.default
#: Nodes whose third argument is the mode of the dropout module they come from.
DROPOUTS = (ops.aten.dropout.default, ops.aten.dropout_.default)
_COUNT = ops.aten.add_.Tensor
_ADD = ops.aten.add.Tensor
_ZERO_BIAS = ops.aten.zeros_like.default  # torchao's, in float32 for any model dtype
#: Which argument of each is a running statistic, if it belongs to a batch norm.
_READS = ((_BATCH_NORM, 3), (_COUNT, 0), (_ADD, 0))


class Pt2eModel(QuantModel):
    """An ``fx.GraphModule`` made by ``prepare_qat_pt2e``, over the float network's own modules.

    An exported graph holds the modes of batch norms and dropouts as constants. Here they follow the
    modules, whose modes, momenta and statistics are read before each forward, so ``train()`` and
    ``eval()`` of the model and of its batch norms work as usual. ``convert_pt2e`` accepts the model
    as it is, and changes it.
    """

    _warned_of_compiler = False

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        compiling = torch.compiler.is_compiling() and not torch.compiler.is_exporting()
        trains = self.training and not self.batch_norms_frozen and torch.is_grad_enabled()
        if compiling and trains:
            return self._train_uncompiled(*args, **kwargs)
        return super().__call__(*args, **kwargs)

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def _train_uncompiled(self, *args: Any, **kwargs: Any) -> Any:
        # AOTAutograd recomputes the folded weight in the backward pass, from the running variance
        # that the forward pass has already changed (torch 2.13): off by a tenth at momentum 0.1.
        if not self._warned_of_compiler:
            self._warned_of_compiler = True
            warn(
                "a model of backend 'pt2e' trains uncompiled, because torch.compile would compute "
                "wrong gradients: compile it in eval or after ghnq_quant.freeze_batch_norms, or use "
                "another backend"
            )
        return super().__call__(*args, **kwargs)

    def __reduce__(self) -> tuple[Any, ...]:
        raise BackendError(
            "a model of backend 'pt2e' cannot be pickled: save its state_dict, and load it into a "
            "new model"
        )

    def _follow_modules(self) -> None:
        if any(isinstance(m, nn.SyncBatchNorm) for m in self.modules()):
            raise BackendError(
                "the exported graph of backend 'pt2e' cannot share batch statistics between "
                "processes: leave nn.SyncBatchNorm out, or use another backend"
            )
        changed = False
        dtype = next(self.parameters()).dtype
        for node in self.graph.nodes:
            if node.target is _ZERO_BIAS and node.kwargs.get("dtype", dtype) != dtype:
                node.kwargs, changed = {**node.kwargs, "dtype": dtype}, True
            args = self._arguments(node)
            if args != node.args:
                node.args, changed = args, True
        if changed:
            self.recompile()

    def _arguments(self, node: fx.Node) -> tuple[Any, ...]:
        """The arguments that a node should have, given the mode of the module it comes from."""
        if node.target in DROPOUTS:
            module = self.get_submodule(owner(node))
            if isinstance(module, nn.modules.dropout._DropoutNd):  # else a constant of the model
                return (*node.args[:2], module.training)
            return node.args
        norm = self._norm(node)
        if norm is None:
            return node.args
        if node.target is _COUNT:
            return (node.args[0], int(norm.training))
        if node.target is _ADD:  # torchao folds with the default ε, whatever the model's
            return (node.args[0], norm.eps)
        of_batch = norm.training or self.scheme.bn == "batch" or not has_running_statistics(norm)
        momentum = _momentum(norm) if norm.training else 0.0  # in eval, statistics do not change
        return (*node.args[:5], of_batch, momentum, norm.eps, *node.args[8:])

    def _norm(self, node: fx.Node) -> nn.BatchNorm2d | None:
        """The batch norm that a node applies, counts batches for, or adds an ε to."""
        reads = [arg for op, arg in _READS if op is node.target]
        source = node.args[reads[0]] if reads else None
        if not isinstance(source, fx.Node) or source.op != "get_attr":
            return None
        name, _, buffer = str(source.target).rpartition(".")
        norm = self.get_submodule(name)
        known = buffer in ("running_mean", "running_var", "num_batches_tracked")
        return norm if known and isinstance(norm, nn.BatchNorm2d) else None


def _momentum(norm: nn.BatchNorm2d) -> float:
    """Momentum for the next batch; without one, a batch norm averages all batches."""
    if norm.momentum is not None:
        return norm.momentum
    return 1.0 / (1 + int(norm.num_batches_tracked or 0))
