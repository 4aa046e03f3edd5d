"""The documents that gained and lost most, with their texts: read only if they are asked for."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from rankmill import storage
from rankmill.config import ColumnNames
from rankmill.errors import InputError
from rankmill.markers import Marker
from rankmill.settings import read_section
from rankmill.store import Store
from rankmill.summary import Move

# Characters of a text that the page holds.
_LONGEST = 2_000


@dataclass(frozen=True)
class Mover:
    """A document that moved, and the query in whose list. Texts and ids are None where the part
    files do not hold them (`output.columns`)."""

    before: int
    after: int
    score: float
    query_id: str | None
    query: str | None
    doc_id: str | None
    document: str | None


def read_movers(
    store: Store, run: Mapping[str, Any], done: Mapping[int, Marker], moves: Iterable[Move]
) -> list[Mover]:
    """Read the rows that moved, a part at a time.

    Raises `InputError` naming a part that cannot be read.
    """
    columns = read_section(ColumnNames, run["config"]["input"]["columns"])
    prefix = str(run["config"]["output"]["column_prefix"])
    return [_read_one(store, done[move.shard], move, columns, prefix) for move in moves]


def _read_one(store: Store, marker: Marker, move: Move, columns: ColumnNames, prefix: str) -> Mover:
    url = storage.join(store.url, marker.part.name)
    parts = columns.document_parts
    wanted = [columns.query_id, columns.query, columns.doc_id, *parts, f"{prefix}score"]
    try:
        with storage.open_input(url, store.access) as file:
            there = pq.ParquetFile(file)
            names = [n for n in dict.fromkeys(wanted) if n in there.schema_arrow.names]
            row = there.read(columns=names).slice(move.row, 1).to_pylist()[0]
    except (pa.ArrowException, OSError, IndexError) as error:
        raise InputError(
            f"{url} cannot be read: {type(error).__name__}.",
            "Check it with rankmill status --verify.",
        ) from None
    document = [row[name] for name in parts if row.get(name) is not None]
    return Mover(
        before=move.before,
        after=move.after,
        score=float(row[f"{prefix}score"]),
        query_id=_text(row.get(columns.query_id)),
        query=_text(row.get(columns.query)),
        doc_id=_text(row.get(columns.doc_id)),
        document=_text(" ".join(map(str, document))) if document else None,
    )


def _text(value: object) -> str | None:
    if value is None:
        return None
    text = str(value)
    return text if len(text) <= _LONGEST else text[:_LONGEST] + " …"
