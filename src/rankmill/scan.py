"""Looking through an input for its candidate lists: here, or on Ray where it is large."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

from rankmill import cluster, pipeline, plan
from rankmill.config import ComputeConfig
from rankmill.listing import RowGroup
from rankmill.plan import QueryRuns
from rankmill.source import Source

# The input is scanned on the driver up to so many rows, and by Ray tasks above.
ON_DRIVER_ROWS = 2_000_000
_THREADS = 4
# What such a task scans, at least, so that neither its start nor its share of the list counts.
_ROWS_A_TASK, _GROUPS_A_TASK = 1_000_000, 64


def scan(source: Source, config: ComputeConfig) -> Iterator[QueryRuns]:
    """Find the runs of every row group, on the driver for small inputs, else by Ray tasks.

    Lazy: a few row groups ahead of what is taken. A cluster that is started for it stays up for
    the run that follows in this process.
    """
    if sum(group.rows for group in source.row_groups) <= ON_DRIVER_ROWS:
        yield from _scan_here(source)
        return
    cluster.connect(config)
    bare = replace(source, texts=(), origin=None)
    parts = [bare.part(run) for run in _stretches(source.row_groups)]
    for found in pipeline.map_tasks(lambda part: list(_scan_here(part)), parts):
        yield from found


def _scan_here(source: Source) -> Iterator[QueryRuns]:
    groups = list(source.row_groups)
    with ThreadPoolExecutor(_THREADS) as pool:
        for start in range(0, len(groups), _THREADS):
            ahead = groups[start : start + _THREADS]
            yield from pool.map(lambda group: plan.find_runs(source, group), ahead)


def _stretches(groups: Sequence[RowGroup]) -> list[range]:
    """The row groups, by number, that a task scans: enough of them to be worth its start."""
    ends, rows = [0], 0
    for number, group in enumerate(groups, 1):
        rows += group.rows
        if rows >= _ROWS_A_TASK or number - ends[-1] == _GROUPS_A_TASK:
            ends.append(number)
            rows = 0
    ends.append(len(groups))
    return [range(first, stop) for first, stop in itertools.pairwise(ends) if first < stop]
