"""The lists of two runs, side by side as numbers."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from rankmill.errors import InputError
from rankmill.export.ranked import Ranked
from rankmill.qrels import Ints, ids_of, numbers
from rankmill.rank import places
from rankmill.results import Results

Floats = npt.NDArray[np.float64]

# What a run's rows are read as.
SCHEMA = pa.schema(
    [
        ("query", pa.large_string()),
        ("document", pa.large_string()),
        ("rank", pa.int64()),
        ("score", pa.float64()),
        # Scored by the run's last stage: stages of a cascade share no scale.
        ("last", pa.bool_()),
        # Where the row lies in the run.
        ("part", pa.int32()),
        ("row", pa.int32()),
    ]
)


def needed_columns(ranked: Ranked) -> list[str]:
    """The columns that hold query, document, rank and score, in this order.

    Raises `InputError` when the run lacks one.
    """
    document = ranked.columns.doc_id
    if document is None:
        raise InputError(
            f"{ranked.url} has no document ids (input.columns.doc_id is null).",
            "Rows of two runs are told apart by them: rank again with ids.",
        )
    names = [ranked.query_key, document, f"{ranked.prefix}rank", f"{ranked.prefix}score"]
    ranked.require(names, "comparing")
    return names


def refuse_unlike(one: Ranked, other: Ranked) -> None:
    """Raise `InputError` where one run's queries have ids and the other's only texts."""
    if (one.query_key == one.columns.query) != (other.query_key == other.columns.query):
        raise InputError(
            f"{one.url} tells queries apart by {one.query_key}, {other.url} by {other.query_key}.",
            "Compare runs that both have query ids, or both have none.",
        )


def read_rows(ranked: Ranked, part: int) -> pa.Table:
    """A part's rows, by SCHEMA."""
    stages = Results.of_stored(ranked.record["config"]).stages
    names = [*needed_columns(ranked), *([f"{ranked.prefix}stage"] if stages else [])]
    table, where = ranked.read(part, names), f"run {ranked.url}"
    ids = [ids_of(table, name, where) for name in names[:2]]
    types = (SCHEMA.field("rank").type, SCHEMA.field("score").type)
    others = [table.column(name).cast(wanted) for name, wanted in zip(names[2:4], types)]
    last = pc.equal(table.column(names[4]), stages) if stages else pa.repeat(True, len(table))
    at = [np.full(len(table), part, np.int32), np.arange(len(table), dtype=np.int32)]
    return pa.table([*ids, *others, last, *at], schema=SCHEMA)


@dataclass(frozen=True, eq=False)
class Side:
    """A run's lists after repeated documents were taken out, by query, then rank.

    query: int64 [rows]; document: int64 [rows], -1 without an id; rank: int64 [rows] from
    1, gapless; score: float64 [rows], NaN where there is none; last: bool [rows], scored by the
    run's last stage; part, row: int32 [rows], where they
    lie in the run. duplicates: rows taken out.
    """

    query: Ints
    document: Ints
    rank: Ints
    score: Floats
    last: npt.NDArray[np.bool_]
    part: npt.NDArray[np.int32]
    row: npt.NDArray[np.int32]
    duplicates: int

    def lengths(self, queries: int) -> Ints:
        """int64 [queries]: documents in each list."""
        return np.bincount(self.query, minlength=queries)


def side_by_side(a: pa.Table, b: pa.Table) -> tuple[pa.Array, pa.Array, Side, Side]:
    """Number the queries and documents of two tables (by SCHEMA) alike.

    The ids of queries and of documents, large_string, and both sides.
    """
    queries, documents = (
        pc.unique(
            pa.chunked_array([*a[name].chunks, *b[name].chunks], pa.large_string()).drop_null()
        )
        for name in ("query", "document")
    )
    return queries, documents, _side(a, queries, documents), _side(b, queries, documents)


def _side(table: pa.Table, queries: pa.Array, documents: pa.Array) -> Side:
    query = numbers(table["query"], queries)
    document = numbers(table["document"], documents)
    rank = table["rank"].to_numpy()
    order = np.lexsort((rank, query))
    query, document = query[order], document[order]
    key = query * max(len(documents), 1) + document
    key[document < 0] = -1 - np.flatnonzero(document < 0)  # each is one of its own
    _, first = np.unique(key, return_index=True)
    kept = np.sort(first)
    query = query[kept]
    rest = {name: table[name].to_numpy()[order][kept] for name in ("score", "last", "part", "row")}
    duplicates = len(order) - len(kept)
    return Side(query, document[kept], places(query) + 1, **rest, duplicates=duplicates)
