"""What is made of a graph once, however often a training meets it."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from functools import wraps
from typing import TypeVar
from weakref import WeakKeyDictionary

from ghnq_quant.capture import ArchGraph
from ghnq_quant.ghn.layers import not_compiled

T = TypeVar("T")


def once_per_graph(make: Callable[..., T]) -> Callable[..., T]:
    """Remembers what ``make(graph, *settings)`` returned, for as long as the graph lives."""
    made: WeakKeyDictionary[ArchGraph, dict[tuple[Hashable, ...], T]] = WeakKeyDictionary()

    @not_compiled
    @wraps(make)
    def remembered(graph: ArchGraph, *settings: Hashable) -> T:
        of_graph = made.setdefault(graph, {})
        if settings not in of_graph:
            of_graph[settings] = make(graph, *settings)
        return of_graph[settings]

    return remembered
