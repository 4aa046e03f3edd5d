"""Bringing rows of equal keys together on Ray: every item is cut, and the cuts are joined.

Ray holds the cuts, and moves to disk what does not fit its memory; the driver holds references.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import ray

from rankmill.pipeline import map_shared

S = TypeVar("S")
T = TypeVar("T")
P = TypeVar("P")
R = TypeVar("R")


def exchange(
    cut: Callable[[S, T], Sequence[P]],
    join: Callable[[S, Iterator[P]], R],
    shared: S,
    items: Sequence[T],
    partitions: int,
    cpus: float,
) -> Iterator[R]:
    """`join` over what `cut` gave each partition (of at least two), a task each, in their order.

    cut: an item's pieces, one a partition. join: is given those of a partition in the items' order.
    shared: is sent to the cluster once. Raises as `pipeline.map_tasks` does.
    """
    assert partitions > 1, "one partition needs no exchange"
    reference = ray.put(shared)
    task = ray.remote(num_cpus=cpus, num_returns=partitions)(cut)
    pieces = [task.remote(reference, item) for item in items]
    by_partition = [[of_item[number] for of_item in pieces] for number in range(partitions)]

    def joined(shared: S, references: list[ray.ObjectRef]) -> R:
        return join(shared, (ray.get(one) for one in references))

    yield from map_shared(joined, shared, by_partition, cpus)
