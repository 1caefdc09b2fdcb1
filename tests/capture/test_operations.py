"""The table of operations."""

from collections import Counter

from ghnq_quant.capture import PRIMITIVES, Kind
from ghnq_quant.capture.operations import OPERATIONS


def test_each_call_is_of_one_operation() -> None:
    for calls in ("modules", "functions", "methods"):
        counts = Counter(call for op in OPERATIONS.values() for call in set(getattr(op, calls)))
        assert set(counts.values()) == {1}


def test_a_layer_comes_before_the_one_that_it_is_a_subclass_of() -> None:
    modules = [module for op in OPERATIONS.values() for module in op.modules]
    for i, module in enumerate(modules):
        assert not any(issubclass(later, module) for later in modules[i + 1 :])


def test_primitives_are_of_the_hypernetworks_vocabulary() -> None:
    assert {kind.primitive for kind in Kind} <= {None, *PRIMITIVES}
