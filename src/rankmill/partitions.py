"""Texts that are too many for one node's memory: brought to every shard by a hash join on disk.

A table is cut by a hash of its ids into partitions, and so are the ids that each shard asks for.
Then each partition is held once, and for every shard the texts that it asks for are written down;
a shard reads its own from all partitions. So memory is bounded by a partition, and disk by the
table and by the distinct texts of all shards.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from rankmill import exchange, lookup, rows
from rankmill.lookup import TextIndex
from rankmill.plan import Plan
from rankmill.source import Source, TextTable
from rankmill.store import Store

# Up to so many bytes a table is held in memory by every node; a partition, and a file of texts
# that shards ask for, are about so large.
BROADCAST_BYTES = 256 << 20
PARTITION_BYTES = 128 << 20
# An id and its place, beside the texts.
_BYTES_A_ROW = 32
_SHARDS_A_FILE = 1024


@dataclass(frozen=True)
class Strategy:
    """How a table's texts come to the shards.

    partitions: 0 where every node holds the whole table. shards_a_file: whose texts of a partition
    lie in one file.
    """

    table: str
    rows: int
    bytes: int
    partitions: int
    shards_a_file: int

    @property
    def name(self) -> str:
        """As plan and manifest show it."""
        return f"hash join in {self.partitions} partition(s)" if self.partitions else "broadcast"


def choose(texts: TextTable, whole: Plan) -> Strategy:
    """The strategy for a table: a pure function of the input's footers and the plan."""
    size = int(texts.rows * (texts.mean_bytes + _BYTES_A_ROW))
    if size <= BROADCAST_BYTES:
        return Strategy(texts.name, texts.rows, size, 0, 0)
    partitions = -(-size // PARTITION_BYTES)
    asked = whole.pairs * (texts.mean_bytes + _BYTES_A_ROW) / len(whole) / partitions
    most = int(PARTITION_BYTES / max(asked, 1))
    return Strategy(
        texts.name, texts.rows, size, partitions, max(1, min(most, len(whole), _SHARDS_A_FILE))
    )


@dataclass(frozen=True)
class Joining:
    """What every task of a join needs.

    source: sorted, if need be; bounds: the plan's. store: the staging folder; handed, asked: what
    `hand_out` and `ask` have written to it.
    """

    source: Source
    texts: TextTable
    bounds: npt.NDArray[np.int64]
    strategy: Strategy
    store: Store
    handed: tuple[str, ...] = ()
    asked: tuple[str, ...] = ()


def ask(joining: Joining, prefix: str, groups: Sequence[int]) -> list[str]:
    """Hand out what the candidates in some row groups ask for: shard and digest of each id."""
    asked = _asked(joining, groups)
    return exchange.split(joining.store, prefix, asked, joining.strategy.partitions)


def _asked(
    joining: Joining, groups: Sequence[int]
) -> Iterator[tuple[pa.Table, npt.NDArray[np.int64]]]:
    source, key = joining.source, joining.texts.key
    starts = np.cumsum([0, *(group.rows for group in source.row_groups)])
    for number in groups:
        row = int(starts[number])
        for table in source.batches(source.row_groups[number], [key], rows=1 << 16):
            shard = np.searchsorted(joining.bounds[1:], row + np.arange(table.num_rows), "right")
            row += table.num_rows
            digest = lookup.id_digests(rows.plain(table.column(key)))
            both = np.unique(np.stack([shard.astype(np.uint64), digest]), axis=1)
            shard, digest = both[0].astype(np.int64), both[1]
            inside = shard < len(joining.bounds) - 1  # a limit may leave rows out
            place = np.where(inside, _partition(joining, digest), -1)
            yield pa.table({"shard": shard, "digest": digest}), place
    for file in dict.fromkeys(source.row_groups[number].file for number in groups):
        source.refuse_changed(file)


def hand_out(joining: Joining, prefix: str, groups: Sequence[int]) -> list[str]:
    """Hand out some row groups of the table to its partitions."""
    placed = (
        (table, _partition(joining, lookup.id_digests(rows.plain(table.column(0)))))
        for table in lookup.read_texts(joining.texts, groups)
    )
    return exchange.split(joining.store, prefix, placed, joining.strategy.partitions)


def _partition(joining: Joining, digest: npt.NDArray[np.uint64]) -> npt.NDArray[np.int64]:
    return (digest % np.uint64(joining.strategy.partitions)).astype(np.int64)


def put_down(joining: Joining, done: str, partition: int) -> None:
    """Write down, for every shard, the texts of a partition that it asks for, then `done`.

    Raises `InputError` when an id stands in more than one row.
    """
    held = exchange.read_sections(joining.store, joining.handed, partition)
    found = lookup.index(joining.texts, held)
    wanted = exchange.read_sections(joining.store, joining.asked, partition)
    pairs = np.zeros((2, 0), np.uint64)
    if wanted:
        table = pa.concat_tables(wanted)
        columns = [table.column(name).to_numpy() for name in ("shard", "digest")]
        # A shard that lies in several row groups may have asked twice.
        pairs = np.unique(np.stack([column.astype(np.uint64) for column in columns]), axis=1)
    shard, first, last = (
        pairs[0].astype(np.int64),
        np.searchsorted(found.digest, pairs[1]),
        np.searchsorted(found.digest, pairs[1], side="right"),
    )
    count = last - first
    shard = np.repeat(shard, count)
    # Places first, first + 1, … of each digest; nearly always one.
    within = np.arange(len(shard)) - np.repeat(np.cumsum(count) - count, count)
    row = found.row[np.repeat(first, count) + within]
    a_file = joining.strategy.shards_a_file
    for number, start in enumerate(range(0, len(joining.bounds) - 1, a_file)):
        cut = np.searchsorted(shard, np.arange(start, start + a_file + 1))
        chosen = found.table.take(pa.array(row[cut[0] : cut[-1]]))
        sections = {
            n: chosen.slice(int(cut[n] - cut[0]), int(cut[n + 1] - cut[n]))
            for n in np.flatnonzero(np.diff(cut)).tolist()
        }
        name = _file_name(joining.texts, partition, number)
        exchange.write_sections(joining.store, name, sections, a_file)
    joining.store.write(done, b"")


def _file_name(texts: TextTable, partition: int, number: int) -> str:
    return f"{texts.name}/{partition:05d}-{number:05d}"


@dataclass(frozen=True)
class ShardTexts:
    """The texts that shards have asked for, in a staging folder."""

    store: Store
    texts: TextTable
    strategy: Strategy

    def of_shard(self, shard: int) -> TextIndex:
        """All that one shard asks for and the table has."""
        number, section = divmod(shard, self.strategy.shards_a_file)
        partitions = range(self.strategy.partitions)
        names = [_file_name(self.texts, partition, number) for partition in partitions]
        return lookup.index(self.texts, exchange.read_sections(self.store, names, section))
