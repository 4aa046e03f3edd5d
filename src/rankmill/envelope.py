"""What travels between the stages of a run: one row a shard.

Tables ride inside an envelope as opaque Arrow IPC bytes. So Ray never splits or merges a shard,
never has to know an input type, and the scoring actor passes texts on as the bytes that came.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import pyarrow as pa

from rankmill.errors import RankmillError, kind_and_place
from rankmill.masking import mask

_SCHEMA = pa.schema(
    [
        ("shard", pa.int64()),
        ("error", pa.string()),
        ("rows", pa.large_binary()),
        ("facts", pa.large_binary()),
        ("pairs", pa.large_binary()),
        ("texts", pa.large_binary()),
        ("scores", pa.large_binary()),
        ("earlier", pa.large_binary()),
    ]
)
_TABLES = _SCHEMA.names[2:]


class Scored(NamedTuple):
    """What one model has left: facts of all rows, its distinct pairs, their scores."""

    facts: pa.Table
    pairs: pa.Table
    scores: pa.Table


@dataclass(frozen=True)
class Envelope:
    """A shard on its way.

    rows: pair rows as they came in, with the column `ORIGIN_ROW`. facts: a row a pair row (see
    `stages`). pairs: a row a distinct pair. texts: token ids, until they are scored. scores: one
    float32 a distinct pair. earlier: where several models score, a row for each that is done but
    the last, with these tables of it. error: why the shard failed; then the rest is empty.
    """

    shard: int
    error: str | None = None
    rows: pa.Table | None = None
    facts: pa.Table | None = None
    pairs: pa.Table | None = None
    texts: pa.Table | None = None
    scores: pa.Table | None = None
    earlier: pa.Table | None = None
    # Tables as they were read from a block, and the bytes that they were read from.
    _sealed: Mapping[str, tuple[pa.Table, pa.Array]] = field(
        default_factory=dict, repr=False, compare=False
    )

    def failed(self, error: BaseException | str) -> Envelope:
        """The same shard without its tables, and why.

        Of an error that is not rankmill's own only the kind and the place are kept: its text may
        quote a row.
        """
        if isinstance(error, BaseException) and not isinstance(error, RankmillError):
            return Envelope(self.shard, kind_and_place(error))
        return Envelope(self.shard, mask(str(error)))

    @property
    def scored(self) -> list[Scored]:
        """What every model that is done has left, in their order."""
        found = []
        if self.earlier is not None:
            columns = [self.earlier.column(name) for name in Scored._fields]
            found = [Scored(*map(_from_scalar, one)) for one in zip(*columns)]
        if self.scores is not None:
            found.append(Scored(self.facts, self.pairs, self.scores))
        return found

    def for_next_model(self) -> Envelope:
        """The same shard, ready for a model that scores after those that are done."""
        if self.scores is None:
            return self
        done = {n: _to_array(getattr(self, n)) for n in Scored._fields}
        one = pa.table(done)
        earlier = one if self.earlier is None else pa.concat_tables([self.earlier, one])
        return Envelope(self.shard, rows=self.rows, earlier=earlier, _sealed=self._sealed)

    def to_block(self) -> pa.Table:
        """A block of one row. Tables that were read from one and are the same go as they came."""
        columns = [pa.array([self.shard], pa.int64()), pa.array([self.error], pa.string())]
        for name in _TABLES:
            table = getattr(self, name)
            read, sealed = self._sealed.get(name, (None, None))
            columns.append(sealed if table is not None and table is read else _to_array(table))
        return pa.table(columns, schema=_SCHEMA)

    @classmethod
    def from_block(cls, block: pa.Table) -> list[Envelope]:
        """The envelopes of a block; tables are views into its memory."""
        return [cls._from_row(block, row) for row in range(block.num_rows)]

    @classmethod
    def _from_row(cls, block: pa.Table, row: int) -> Envelope:
        sealed = {}
        for name in _TABLES:
            value = block.column(name).slice(row, 1).chunk(0)
            table = _from_scalar(value[0])
            if table is not None:
                sealed[name] = table, value
        return cls(
            block.column("shard")[row].as_py(),
            block.column("error")[row].as_py(),
            **{name: table for name, (table, _) in sealed.items()},
            _sealed=sealed,
        )


def _to_array(table: pa.Table | None) -> pa.Array:
    """The table as one binary value, without copying the stream into Python bytes."""
    if table is None:
        return pa.nulls(1, pa.large_binary())
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    stream = sink.getvalue()
    offsets = pa.array([0, stream.size], pa.int64()).buffers()[1]
    return pa.Array.from_buffers(pa.large_binary(), 1, [None, offsets, stream])


def _from_scalar(scalar: pa.Scalar) -> pa.Table | None:
    buffer = scalar.as_buffer()
    return None if buffer is None else pa.ipc.open_stream(buffer).read_all()
