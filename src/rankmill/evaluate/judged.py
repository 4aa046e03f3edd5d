"""A ranked table beside judgements: its rows of judged queries, as numbers.

The table is streamed; what stays is some forty bytes a row of a judged query, and eight bytes a
query without judgements.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from rankmill.errors import InputError
from rankmill.evaluate.measures import Floats, Lists
from rankmill.qrels import (
    Ints,
    Judgements,
    TableSource,
    column_names,
    hash_ids,
    ids_of,
    masked,
    numbers,
    stream_columns,
)
from rankmill.storage_settings import ENVIRONMENT, StorageConfig


@dataclass(frozen=True, eq=False)
class JudgedRun:
    """Rows of judged queries, and the distinct (query, document) pairs among them.

    query: int64 [pairs], numbers of judged queries; document: uint64 [pairs], hashes of ids;
    judgement: int64 [pairs], the number of the pair's judgement, -1 where there is none. pair:
    int64 [rows]; keys: a column's name to its float64 [rows], ascending, NaN where the row was not
    ranked. own: the column that ranks. values: a column of the query's to its distinct (query,
    value). queries_unjudged: of the table, without judgements.
    """

    query: Ints
    document: npt.NDArray[np.uint64]
    judgement: Ints
    pair: Ints
    keys: dict[str, Floats]
    own: str
    values: dict[str, pa.Table]
    queries_unjudged: int

    def order(self, column: str) -> Ints:
        """The pairs by query, then best first; a repeated one stands where it is best.

        Equal values of the run's own column keep the order of the rows. Those of another column
        are ordered by a hash of the document: the rows lie in the run's order, which must not
        leak into it.
        """
        key = self.keys[column]
        ranked = np.flatnonzero(~np.isnan(key))
        pair = self.pair[ranked]
        ties = ranked if column == self.own else self.document[pair]
        order = pair[np.lexsort((ties, key[ranked], self.query[pair]))]
        _, first = np.unique(order, return_index=True)
        return order[np.sort(first)]

    def lists(self, order: Ints) -> Lists:
        """The lists that an order of pairs makes."""
        return Lists(self.query[order], self.judgement[order])


def read_judged(
    source: TableSource,
    judged: Judgements,
    *,
    prefix: str,
    ids: tuple[str, str],
    orders: Sequence[str] = (),
    by: Sequence[str] = (),
    where: str = "ranked table",
    access: StorageConfig = ENVIRONMENT,
) -> JudgedRun:
    """Read what measuring needs of a ranked table.

    orders: other columns that order its rows. by: columns that are the query's, for slices. where:
    what errors call the table.

    Raises `InputError` for missing or mistyped columns, and when no query or no document of the
    table is judged.
    """
    names = column_names(source, access)
    rank, score = f"{prefix}rank", f"{prefix}score"
    own = next((name for name in (rank, score) if name in names), f"{rank} or {score}")
    orders = list(dict.fromkeys([own, *orders]))
    wanted = [*ids, *orders, *by]
    _refuse_unscored([name for name in orders if name not in names], prefix, names, where)
    reader = _Reader(judged, ids, orders, by, where)
    for table in stream_columns(source, wanted, names, where, access):
        reader.take(table)
    return reader.finish(own)


def _refuse_unscored(missing: list[str], prefix: str, names: list[str], where: str) -> None:
    """Raise `InputError` for a lack of columns that a run would have added."""
    results = [name for name in missing if prefix and name.startswith(prefix)]
    if results:
        raise InputError(
            f"The {where} has no column {', '.join(results)}.",
            f"Its columns are {', '.join(names)}. If those of its run start with something else "
            "(output.column_prefix), give that with --prefix.",
        )


class _Reader:
    """Takes a table batch by batch."""

    def __init__(
        self,
        judged: Judgements,
        ids: tuple[str, str],
        orders: list[str],
        by: Sequence[str],
        where: str,
    ) -> None:
        self._where = where
        self._judged, self._ids, self._orders, self._by = judged, ids, orders, by
        self._documents = pc.unique(judged.document)
        places = judged.query * len(self._documents) + numbers(judged.document, self._documents)
        self._judgement = np.argsort(places)
        self._places = places[self._judgement]
        self._seen = 0
        self._unjudged: list[npt.NDArray[np.uint64]] = []
        self._query_like, self._document_like = pa.nulls(0), pa.nulls(0)
        self._rows: list[tuple[Ints, npt.NDArray[np.uint64], Ints, list[Floats]]] = []
        self._values: dict[str, list[pa.Table]] = {name: [] for name in by}

    def take(self, table: pa.Table) -> None:
        queries = ids_of(table, self._ids[0], self._where)
        documents = ids_of(table, self._ids[1], self._where)
        keys = [_order_key(table, column) for column in self._orders]
        query = numbers(queries, self._judged.queries)
        others = pc.unique(queries.filter(pa.array(query < 0)).drop_null())
        self._unjudged.append(np.unique(hash_ids(others)))
        rows = np.flatnonzero(query >= 0)
        query, documents = query[rows], documents.take(pa.array(rows))
        self._query_like = self._query_like if len(self._query_like) else queries[:1]
        self._document_like = self._document_like if len(self._document_like) else documents[:1]
        hashed = hash_ids(documents)
        # A row without an id is a document of its own.
        missing = np.asarray(documents.is_null(), bool)
        counted = self._seen + rows.astype(np.uint64)
        hashed[missing] = pd.util.hash_array(counted[missing])
        self._seen += len(table)
        found = numbers(documents, self._documents)
        sought = query * len(self._documents) + found
        at = np.minimum(np.searchsorted(self._places, sought), len(self._places) - 1)
        hit = (found >= 0) & (self._places[at] == sought)
        judgement = np.where(hit, self._judgement[at], -1)
        self._rows.append((query, hashed, judgement, [key[rows] for key in keys]))
        for name in self._by:
            found_values = table.column(name).take(pa.array(rows))
            self._values[name].append(distinct(query, found_values, name))

    def finish(self, own: str) -> JudgedRun:
        unjudged = np.unique(np.concatenate([np.empty(0, np.uint64), *self._unjudged]))
        query, document, judgement = (
            np.concatenate([np.empty(0, kind), *(row[at] for row in self._rows)])
            for at, kind in enumerate((np.int64, np.uint64, np.int64))
        )
        self._refuse_strangers(len(unjudged), query, judgement)
        order = np.lexsort((document, query))
        fresh = np.ones(len(order), bool)
        fresh[1:] = (np.diff(query[order]) != 0) | (np.diff(document[order]) != 0)
        pair = np.empty(len(order), np.int64)
        pair[order] = np.cumsum(fresh) - 1
        first = order[fresh]
        keys = {
            name: np.concatenate([row[3][at] for row in self._rows])
            for at, name in enumerate(self._orders)
        }
        values = {name: one_a_query(found, name) for name, found in self._values.items()}
        return JudgedRun(
            *(query[first], document[first], judgement[first], pair),
            *(keys, own, values, len(unjudged)),
        )

    def _refuse_strangers(self, unjudged: int, query: Ints, judgement: Ints) -> None:
        """Raise `InputError` when the table and the judgements have no id in common."""
        if not len(query):
            raise InputError(
                f"None of the {unjudged} ranked queries is among the {len(self._judged.queries)} "
                f"judged ones: their ids are like {masked(self._query_like)} and like "
                f"{masked(self._judged.queries)}.",
                "Check that both are of one collection and name its queries alike.",
            )
        if (judgement < 0).all():
            raise InputError(
                f"None of the {len(query)} ranked documents of {len(np.unique(query))} judged "
                f"queries is among the {len(self._judged.document)} judged ones: their ids are "
                f"like {masked(self._document_like)} and like {masked(self._judged.document)}.",
                "Check that both are of one collection and name its documents alike; if they do, "
                "nothing that is judged was retrieved, and every measure would be 0.",
            )


def _order_key(table: pa.Table, column: str) -> Floats:
    """Ascending sort key, best first; NaN where the row was not ranked."""
    order = table.column(column)
    kinds = (pa.types.is_integer, pa.types.is_floating, pa.types.is_null)
    if not any(fits(order.type) for fits in kinds):
        raise InputError(f"The order column {column} is {order.type}; it must hold numbers.")
    key = np.asarray(pc.cast(order, pa.float64(), safe=False).to_numpy(), np.float64)
    return key if column.endswith("rank") else -key


def one_a_query(found: list[pa.Table], name: str) -> pa.Table:
    """The value of each query, of what `distinct` found in batches.

    Raises `InputError` where a query has several.
    """
    table = _group(pa.concat_tables(found, promote_options="permissive"), name)
    _, values = np.unique(table.column("query"), return_counts=True)
    several = int((values > 1).sum())
    if several:
        raise InputError(
            f"The column {name} is not one to slice by: {several:,} queries have more than one "
            "value in it.",
            "Slices are of queries; choose a column that is the same in all rows of a query.",
        )
    return table


def distinct(query: Ints, values: pa.ChunkedArray, name: str) -> pa.Table:
    """The distinct rows of `query, value`. Raises `InputError` for what cannot be compared."""
    if pa.types.is_dictionary(values.type):
        values = values.cast(values.type.value_type)
    return _group(pa.table({"query": query, "value": values}), name)


def _group(table: pa.Table, name: str) -> pa.Table:
    try:
        return table.group_by(["query", "value"], use_threads=False).aggregate([])
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        raise InputError(
            f"The column {name} is {table.column('value').type}; slices are by text, numbers, "
            "booleans or dates."
        ) from None
