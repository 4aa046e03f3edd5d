"""Reading on Ray: a Datasource that yields one envelope a pending shard.

A read task streams a run of row groups once and yields every shard that lies in it, so that a
large row group is decoded once, not once a shard.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import ray
from ray.data import DataContext
from ray.data.block import Block, BlockMetadata
from ray.data.datasource import Datasource, ReadTask

from rankmill import lookup, rows
from rankmill.attempts import Attempts
from rankmill.envelope import Envelope
from rankmill.errors import InputError
from rankmill.lookup import TextIndex
from rankmill.partitions import ShardTexts
from rankmill.plan import Piece, Plan, Shard
from rankmill.schema import ORIGIN_ROW
from rankmill.source import Origin, Source
from rankmill.store import Store

# Where a shard's texts come from: an index in the object store, or files in a staging folder.
Lookup: TypeAlias = "ray.ObjectRef[TextIndex] | ShardTexts"
# The indices over a source's texts for a shard, by its number.
Indices = Callable[[int], Sequence[TextIndex]]


@dataclass(frozen=True)
class ShardPieces:
    """A shard and the row-group runs that hold it."""

    shard: Shard
    pieces: tuple[Piece, ...]


class ShardSource(Datasource):
    """The pending shards of a plan, one envelope each.

    lookups: one for each table of `source.texts`. store: where attempts are noted.
    """

    def __init__(
        self,
        source: Source,
        plan: Plan,
        pending: list[int],
        store: Store,
        lookups: Sequence[Lookup] = (),
    ) -> None:
        super().__init__()
        self._lookups, self._attempts = tuple(lookups), Attempts(store, "reading")
        shards = (plan.shard(index) for index in pending)
        self._runs = group_runs([ShardPieces(shard, tuple(plan.pieces(shard))) for shard in shards])
        self._shared = ray.put(source)  # once, not with every task

    @property
    def tasks(self) -> int:
        """How many read tasks there are."""
        return len(self._runs)

    def estimate_inmemory_data_size(self) -> int | None:
        """Unknown; Ray need not split anything here."""
        return None

    def get_read_tasks(
        self,
        parallelism: int,
        per_task_row_limit: int | None = None,
        data_context: DataContext | None = None,
    ) -> list[ReadTask]:
        """One task a run of shards that share row groups, whatever parallelism Ray wishes."""
        nothing_known = BlockMetadata(
            num_rows=None, size_bytes=None, input_files=None, exec_stats=None
        )
        readers = (_reader(self._shared, self._lookups, run, self._attempts) for run in self._runs)
        return [ReadTask(reader, nothing_known) for reader in readers]


def group_runs(shards: list[ShardPieces]) -> list[list[ShardPieces]]:
    """Put shards that share a row group into one run, in order."""
    runs: list[list[ShardPieces]] = []
    for shard in shards:
        last = runs[-1][-1].pieces if runs else ()
        # A shard that crosses a border ends its run, or all shards would hang together in one.
        if last and shard.pieces and last[0].group == last[-1].group == shard.pieces[0].group:
            runs[-1].append(shard)
        else:
            runs.append([shard])
    return runs


def _reader(
    shared: ray.ObjectRef[Source],
    lookups: tuple[Lookup, ...],
    run: list[ShardPieces],
    attempts: Attempts,
) -> Callable[[], Iterator[Block]]:
    def indices(shard: int) -> list[TextIndex]:
        return [
            one.of_shard(shard) if isinstance(one, ShardTexts) else ray.get(one) for one in lookups
        ]

    def read() -> Iterator[Block]:
        for envelope in read_shards(ray.get(shared), run, attempts, indices):
            yield envelope.to_block()

    return read


def read_shards(
    source: Source, run: list[ShardPieces], attempts: Attempts, indices: Indices = lambda _: ()
) -> Iterator[Envelope]:
    """Read shards in order. One that cannot be read yields an envelope that says why.

    So does one over which several processes died: Ray itself would try again without end.
    """
    cursor = _Cursor(source)
    for shard in run:
        try:
            with attempts.attempt(shard.shard.index):
                table = _read_one(source, cursor, shard, indices)
            envelope = Envelope(shard.shard.index, rows=table)
        except Exception as error:  # noqa: BLE001 - one shard's failure must not end the run
            envelope = Envelope(shard.shard.index).failed(_changed(source, shard) or error)
        yield envelope


def _changed(source: Source, wanted: ShardPieces) -> InputError | None:
    """What is wrong with a shard's files when they are not those that were planned."""
    try:
        for number in dict.fromkeys(source.row_groups[p.group].file for p in wanted.pieces):
            source.refuse_changed(number)
    except InputError as error:
        return error
    return None


def _read_one(source: Source, cursor: _Cursor, wanted: ShardPieces, indices: Indices) -> pa.Table:
    started = time.perf_counter()
    tables = [cursor.take(piece) for piece in wanted.pieces]
    groups = [source.row_groups[piece.group] for piece in wanted.pieces]
    for number in dict.fromkeys(group.file for group in groups):
        source.refuse_changed(number)
    table = pa.concat_tables(tables) if tables else source.table_schema.empty_table()
    if source.origin is None:
        places = [
            (source.files[group.file].url, group.first_row + piece.first, piece.stop - piece.first)
            for group, piece in zip(groups, wanted.pieces)
        ]
        stored = np.arange(table.num_rows)
    else:
        places, stored = _places(source.origin, table.column(ORIGIN_ROW).to_numpy())
        table = table.drop_columns([ORIGIN_ROW])
    if source.layout == "nested":
        table, parents = rows.flatten(table, source.columns.candidates)
        stored = stored[parents]
    if source.texts:
        table = lookup.join(table, source, indices(wanted.shard.index))
    table = table.append_column(ORIGIN_ROW, pa.array(stored, pa.int64()))
    return table.replace_schema_metadata(
        {
            "places": json.dumps(places),
            "rows": str(wanted.shard.stop - wanted.shard.start),
            "seconds": str(time.perf_counter() - started),
        }
    )


def _places(
    origin: Origin, rows: npt.NDArray[np.int64]
) -> tuple[list[tuple[str, int, int]], npt.NDArray[np.int64]]:
    """Whole files as the places of a shard, and the number of each row within those files."""
    starts = np.array(origin.starts)
    file = np.searchsorted(starts, rows, side="right") - 1
    used, place = np.unique(file, return_inverse=True)
    sizes = np.diff(starts)[used]
    before = np.cumsum(sizes) - sizes
    places = [(origin.urls[one], 0, int(size)) for one, size in zip(used.tolist(), sizes)]
    return places, before[place] + rows - starts[file]


class _Cursor:
    """Goes forward through row groups, decoding each once."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._group = -1
        self._stream: Iterator[pa.Table] = iter(())
        self._held: pa.Table | None = None
        self._position = 0  # row of the group at which the held table starts
        self._broken: InputError | None = None

    def take(self, piece: Piece) -> pa.Table:
        """The rows of a piece. Raises `InputError` when the group cannot be decoded."""
        if piece.group != self._group:
            self._group, self._position = piece.group, 0
            self._held = self._broken = None
            self._stream = self._source.batches(self._source.row_groups[piece.group])
        if self._broken is not None:
            raise self._broken
        taken: list[pa.Table] = []
        try:
            while self._position < piece.stop:
                held = self._held if self._held is not None else next(self._stream)
                first = max(piece.first - self._position, 0)
                stop = min(piece.stop - self._position, held.num_rows)
                if stop > first:
                    taken.append(held.slice(first, stop - first))
                self._held = held.slice(stop) if stop < held.num_rows else None
                self._position += stop
        except InputError as error:
            self._broken = error
            raise
        except StopIteration:
            raise InputError(
                f"{self._source.files[self._source.row_groups[piece.group].file].url} holds "
                "fewer rows than its footer says.",
                "Write the file again.",
            ) from None
        return pa.concat_tables(taken)
