"""Candidate lists whose rows lie apart: their order, their shards, and the two passes of a sort.

What the sorted rows will look like is known from one column of the input: so the plan is made,
shown and compared before anything is written. Lists come in the order of their first rows, the
rows of a list in input order. Then one pass over the input hands every row to the file that it
belongs to, and another puts each file in order: a file is a few shards, a row group each.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from rankmill import exchange, plan
from rankmill.listing import RowGroup
from rankmill.load import Load
from rankmill.plan import Plan, QueryRuns, Weights, Work
from rankmill.schema import ORIGIN_ROW
from rankmill.source import Origin, Source
from rankmill.storage import StoredFile
from rankmill.store import Store

# A file of sorted rows, in bytes as the footers have them: what one task holds.
FILE_BYTES = 128 << 20
# On the way, a column of each row's list: its place in the order of first rows; int64.
_LIST = "__rankmill_list"
_MERGED_AT_LEAST = 1 << 20


@dataclass(frozen=True)
class Lists:
    """What is known of each candidate list, by its key.

    key: uint64 [lists], ascending; first: int64 [lists], its first row of the whole input.
    weights: of its rows.
    """

    key: npt.NDArray[np.uint64]
    first: npt.NDArray[np.int64]
    weights: Weights


@dataclass(frozen=True)
class Arrangement:
    """Where each row goes.

    key: uint64 [lists], ascending; place: int64 [lists], the list's place by first row.
    file: int32 [lists], by place, the sorted file that holds the list, -1 beyond a limit.
    ends: int64 [shards], the place after a shard's last list. shard_file: int32 [shards].
    """

    key: npt.NDArray[np.uint64]
    place: npt.NDArray[np.int64]
    file: npt.NDArray[np.int32]
    ends: npt.NDArray[np.int64]
    shard_file: npt.NDArray[np.int32]

    @property
    def files(self) -> int:
        """How many sorted files there are."""
        return int(self.shard_file[-1]) + 1

    def places(self, runs: QueryRuns, rows: int) -> npt.NDArray[np.int64]:
        """int64 [rows]: the list of each row of a row group, by its place.

        As in a plan, rows without a key go with the list before them, or else the next.
        """
        if not len(runs.key):
            return np.zeros(rows, np.int64)
        place = self.place[np.searchsorted(self.key, runs.key)]
        return np.repeat(place, _lengths(runs, rows))


def _lengths(runs: QueryRuns, rows: int) -> npt.NDArray[np.int64]:
    return np.diff(np.concatenate([[0], runs.start[1:], [rows]]))


def find_lists(groups: Sequence[RowGroup], runs: Iterable[QueryRuns]) -> Lists:
    """Add up the runs of all row groups, list by list; holds bytes a list, not a row.

    runs: one item a row group, in order. Rows of a group without any key count to the first list.
    """
    parts: list[Lists] = []
    offset = unmerged = merged = 0
    keyless = _weights(np.zeros(1, np.int64), 0, 0, 0)
    for group, run in zip(groups, runs, strict=True):
        measures = (group.pairs, group.text_bytes + run.repeated_bytes, group.total_bytes)
        each = [measure / max(group.rows, 1) for measure in measures]
        if len(run.key):
            weights = _weights(_lengths(run, group.rows), *each)
            parts.append(_merged([Lists(run.key, offset + run.start, weights)]))
            unmerged += len(parts[-1].key)
        else:
            keyless = _summed([keyless, _weights(np.array([group.rows]), *each)], [0])
        offset += group.rows
        if unmerged > max(merged, _MERGED_AT_LEAST):
            parts = [_merged(parts)]
            unmerged, merged = 0, len(parts[0].key)
    found = _merged(parts)
    first = [int(np.argmin(found.first))]
    return _merged([found, Lists(found.key[first], found.first[first], keyless)])


def _weights(rows: npt.NDArray[np.int64], pairs: float, text: float, total: float) -> Weights:
    """Of stretches with so many rows, when each row weighs so much."""
    each = rows.astype(np.float64)
    return Weights(rows, each * pairs, each * text, each * total)


def _summed(
    parts: Sequence[Weights], starts: Sequence[int], order: npt.NDArray[np.int64] | None = None
) -> Weights:
    def measured(name: str) -> npt.NDArray[Any]:
        values = np.concatenate([getattr(part, name) for part in parts])
        return np.add.reduceat(values if order is None else values[order], starts)

    return Weights(*(measured(field.name) for field in fields(Weights)))


def _merged(parts: list[Lists]) -> Lists:
    key = np.concatenate([part.key for part in parts])
    order = np.argsort(key, kind="stable")
    starts = np.flatnonzero(np.concatenate([[True], np.diff(key[order]) != 0])).tolist()
    first = np.concatenate([part.first for part in parts])[order]
    return Lists(
        key[order][starts],
        np.minimum.reduceat(first, starts),
        _summed([part.weights for part in parts], starts, order),
    )


def arrange(
    lists: Lists,
    loads: Sequence[Load],
    limit: int | None = None,
    times: float = 1.0,
) -> tuple[Plan, Arrangement]:
    """The plan of the rows as they will be sorted, and where each goes.

    The settings are those of `plan.make_plan`; a limit takes all rows of its lists, wherever they
    lie.
    """
    order = np.argsort(lists.first, kind="stable")
    place = np.empty(len(order), np.int64)
    place[order] = np.arange(len(order))
    order = order[:limit]
    every = lists.weights
    weights = Weights(
        every.rows[order], every.pairs[order], every.text_bytes[order], every.total_bytes[order]
    )
    work = Work(weights, loads, len(order), times)
    borders = np.concatenate([[0], np.cumsum(weights.rows)])
    bounds, queries = work.cut(borders)
    ends = np.cumsum(queries)
    groups = _row_groups(weights, ends)
    shard_file = np.array([group.file for group in groups], np.int32)
    file = np.full(len(lists.key), -1, np.int32)
    file[: len(order)] = np.repeat(shard_file, queries)
    made = Plan(groups, bounds, queries, *work.size(bounds), work.tokens_a_pair)
    return made, Arrangement(lists.key, place, file, ends, shard_file)


def _row_groups(weights: Weights, ends: npt.NDArray[np.int64]) -> tuple[RowGroup, ...]:
    """A row group a shard; files take as many as fit, and at least one."""
    starts = np.concatenate([[0], ends[:-1]])
    rows = np.add.reduceat(weights.rows, starts).tolist()
    measures = (weights.pairs, weights.text_bytes, weights.total_bytes)
    sums = [np.add.reduceat(measure, starts).round().astype(int).tolist() for measure in measures]
    groups: list[RowGroup] = []
    file = index = first = held = 0
    for count, pairs, text, total in zip(rows, *sums):
        if index and held + total > FILE_BYTES:
            file, index, first, held = file + 1, 0, 0, 0
        groups.append(RowGroup(file, index, count, pairs, text, total, first, ()))
        index, first, held = index + 1, first + count, held + total
    return tuple(groups)


# The two passes


@dataclass(frozen=True)
class Sorting:
    """What every task of the sort needs.

    store: the staging folder; handed: what the first pass has written to it, in input order.
    """

    source: Source
    arrangement: Arrangement
    store: Store
    handed: tuple[str, ...] = ()


def hand_out(sorting: Sorting, prefix: str, groups: Sequence[int]) -> list[str]:
    """Write the rows of some row groups to the sections of the files that they belong to."""
    placed = _placed(sorting, groups)
    return exchange.split(sorting.store, prefix, placed, sorting.arrangement.files)


def _placed(
    sorting: Sorting, groups: Sequence[int]
) -> Iterator[tuple[pa.Table, npt.NDArray[np.int64]]]:
    source, arrangement = sorting.source, sorting.arrangement
    starts = np.cumsum([0, *(group.rows for group in source.row_groups)])
    for number in groups:
        group = source.row_groups[number]
        place = arrangement.places(plan.find_runs(source, group), group.rows)
        row = 0
        for table in source.batches(group):
            here = place[row : row + table.num_rows]
            numbers = starts[number] + row + np.arange(table.num_rows)
            row += table.num_rows
            table = table.append_column(ORIGIN_ROW, pa.array(numbers, pa.int64()))
            table = table.append_column(_LIST, pa.array(here))
            yield table, arrangement.file[here].astype(np.int64)
    for file in dict.fromkeys(source.row_groups[number].file for number in groups):
        source.refuse_changed(file)


def put_in_order(sorting: Sorting, name: str, file: int) -> None:
    """Write a sorted file from its sections in the files that were handed out."""
    arrangement = sorting.arrangement
    table = pa.concat_tables(exchange.read_sections(sorting.store, sorting.handed, file))
    place = table.column(_LIST).to_numpy()
    order = np.argsort(place, kind="stable")
    table = table.drop_columns([_LIST]).take(pa.array(order))
    ends = arrangement.ends[arrangement.shard_file == file]
    stops = np.searchsorted(place[order], ends)
    sink = pa.BufferOutputStream()
    with pq.ParquetWriter(sink, table.schema, compression="zstd") as writer:
        for first, stop in zip([0, *stops[:-1].tolist()], stops.tolist(), strict=True):
            writer.write_table(table.slice(first, stop - first), row_group_size=stop - first)
    sorting.store.write(name, sink.getvalue().to_pybytes())


def sorted_source(source: Source, whole: Plan, files: Sequence[StoredFile]) -> Source:
    """The sorted files as an input; its rows say which of the first input's they are."""
    rows = np.zeros(len(source.files), np.int64)
    for group in source.row_groups:
        rows[group.file] += group.rows
    starts = tuple(np.concatenate([[0], np.cumsum(rows)]).tolist())
    return replace(
        source,
        files=tuple(files),
        partitions=((),) * len(files),
        row_groups=whole.groups,
        table_schema=source.table_schema.append(pa.field(ORIGIN_ROW, pa.int64())),
        origin=Origin(tuple(file.url for file in source.files), starts),
    )
