"""Results that are computed once per graph, however often training sees it."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from functools import wraps
from typing import TypeVar
from weakref import WeakKeyDictionary

from ghnq_quant.capture import ArchGraph
from ghnq_quant.ghn.layers import not_compiled

T = TypeVar("T")


def once_per_graph(make: Callable[..., T]) -> Callable[..., T]:
    """Cache what ``make(graph, *settings)`` returns, for as long as the graph lives."""
    made: WeakKeyDictionary[ArchGraph, dict[tuple[Hashable, ...], T]] = WeakKeyDictionary()

    @not_compiled
    @wraps(make)
    def remembered(graph: ArchGraph, *settings: Hashable) -> T:
        of_graph = made.setdefault(graph, {})
        if settings not in of_graph:
            of_graph[settings] = make(graph, *settings)
        return of_graph[settings]

    return remembered
