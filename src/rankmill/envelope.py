"""What travels between the stages of a run: one row a shard.

Tables ride inside an envelope as opaque Arrow IPC bytes. So Ray never splits or merges a shard,
never has to know an input type, and the scoring actor passes texts on without decoding them.
"""

from __future__ import annotations

import traceback
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from rankmill.errors import RankmillError
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
    ]
)


@dataclass(frozen=True)
class Envelope:
    """A shard on its way.

    rows: pair rows as they came in, with the column `ORIGIN_ROW`. facts: a row a pair row (see
    `stages`). pairs: a row a distinct pair. texts: token ids, until they are scored. scores: one
    float32 a distinct pair. error: why the shard failed; then the rest is empty.
    """

    shard: int
    error: str | None = None
    rows: pa.Table | None = None
    facts: pa.Table | None = None
    pairs: pa.Table | None = None
    texts: pa.Table | None = None
    scores: pa.Table | None = None

    def failed(self, error: Exception | str) -> Envelope:
        """The same shard without its tables, and why.

        Of an error that is not rankmill's own only the kind and the place are kept: its text may
        quote a row.
        """
        if isinstance(error, Exception) and not isinstance(error, RankmillError):
            frames = traceback.extract_tb(error.__traceback__)
            place = f" in {Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else ""
            return Envelope(self.shard, f"{type(error).__name__}{place}")
        return Envelope(self.shard, mask(str(error)))

    def to_block(self) -> pa.Table:
        """A block of one row."""
        columns = [pa.array([self.shard], pa.int64()), pa.array([self.error], pa.string())]
        columns += [_to_array(getattr(self, name)) for name in _SCHEMA.names[2:]]
        return pa.table(columns, schema=_SCHEMA)

    @classmethod
    def from_block(cls, block: pa.Table) -> list[Envelope]:
        """The envelopes of a block; tables are views into its memory."""
        return [
            cls(
                block.column("shard")[row].as_py(),
                block.column("error")[row].as_py(),
                *(_from_scalar(block.column(name)[row]) for name in _SCHEMA.names[2:]),
            )
            for row in range(block.num_rows)
        ]


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
