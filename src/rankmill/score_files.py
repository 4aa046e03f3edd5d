"""Score files: every scored pair of a shard, so that later runs need not score it again.

A file is an Arrow table (`schema.SCORES`), and in its footer stand the keys of the queries whose
pairs it holds. Candidate lists mostly stay together from one run to the next, so that a few keys a
file, and not a digest a pair, are enough to find what was scored.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import IO

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from rankmill import schema, storage
from rankmill.storage_settings import StorageConfig

Keys = npt.NDArray[np.uint64]

_QUERIES = b"queries"
# How an Arrow file ends: the length of its footer, and "ARROW1".
_TAIL = 10


@dataclass(frozen=True)
class ScoredPairsOfShard:
    """Pairs that have a score, distinct but for what several models scored; arrays of one length.

    digest: binary(16), see `tokens.pair_digests`. query_key: see `tokens.query_keys`. stage: the
    number of the model among the run's, from 1. tokens: of both texts, before anything was cut;
    dropped: those that the model did not see.
    """

    digest: pa.Array
    query_key: Keys
    score: npt.NDArray[np.float32]
    stage: npt.NDArray[np.int8]
    tokens: npt.NDArray[np.int32]
    dropped: npt.NDArray[np.int32]


def to_bytes(pairs: ScoredPairsOfShard) -> bytes:
    """A score file. Equal pairs give equal bytes."""
    columns = [pairs.digest, pairs.score, pairs.stage, pairs.tokens, pairs.dropped]
    table = pa.table(columns, schema=schema.SCORES)
    keys = np.unique(pairs.query_key).astype("<u8").tobytes()
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, table.schema, metadata={_QUERIES: keys}) as writer:
        writer.write_table(table)
    return sink.getvalue().to_pybytes()


def read_scores(content: bytes, stages: Sequence[int]) -> pa.Table | None:
    """The pairs of some stages, as `schema.SCORES`; None for what is no score file."""
    try:
        table = pa.ipc.open_file(content).read_all()
    except (pa.ArrowException, OSError, ValueError):  # by what of it is damaged
        return None
    if table.schema != schema.SCORES:
        return None
    score, stage = (table.column(name).to_numpy() for name in ("score", "stage"))
    return table.filter(pa.array(np.isin(stage, stages) & np.isfinite(score)))


def read_query_keys(url: str, access: StorageConfig) -> Keys | None:
    """The keys in a score file's footer, ascending; None for a file that has none or is damaged.

    Raises `OSError` or `InputError` when the file cannot be reached.
    """
    with storage.open_input(url, access) as file:
        footer_bytes = _footer(file)
    try:
        footer = pa.ipc.open_file(footer_bytes).metadata or {}
    except (pa.ArrowException, OSError, ValueError):  # by what of it is damaged
        return None
    keys = footer.get(_QUERIES)
    return None if keys is None or len(keys) % 8 else np.frombuffer(keys, "<u8").astype(np.uint64)


def _footer(file: IO[bytes]) -> bytes:
    """What of an Arrow file Arrow needs for its footer: zeros in place of its start, and its end.

    So whatever the store answers is told apart from what Arrow makes of damaged bytes. The end
    holds the footer's length (int32) and the magic bytes
    (https://arrow.apache.org/docs/format/Columnar.html#ipc-file-format).
    """
    size = file.seek(0, os.SEEK_END)
    file.seek(max(size - _TAIL, 0))
    tail = file.read(_TAIL)
    length = int.from_bytes(tail[:4], "little", signed=True)
    if not 0 < length < size - _TAIL:
        return b""
    file.seek(size - _TAIL - length)
    return bytes(2 * _TAIL) + file.read(length + _TAIL)
