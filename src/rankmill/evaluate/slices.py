"""Slices of the judged queries: which of them are alike in a column."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rankmill import schema
from rankmill.errors import InputError
from rankmill.evaluate.judged import distinct, one_a_query
from rankmill.evaluate.measures import Floats
from rankmill.qrels import Ints, TableSource, column_names, ids_of, numbers, read_columns

# Numbers of more distinct values than this are cut at their quartiles.
_DISTINCT = 10
_QUARTILES = (0.25, 0.5, 0.75)
NO_VALUE = "(no value)"


@dataclass(frozen=True, eq=False)
class Slices:
    """A column's slices. labels: their names, in order; code: int64 [judged queries], into them."""

    by: str
    labels: tuple[str, ...]
    code: Ints


def read_values(
    source: TableSource, judged: pa.Array, query_id: str, by: list[str]
) -> dict[str, pa.Table]:
    """Columns of a table with a row a query: those of `by` that it has, as `JudgedRun.values`.

    Raises `InputError` when a query has several values, or none of the judged ones is there.
    """
    where = "table of queries"
    names = column_names(source)
    there = [name for name in by if name in names]
    table = read_columns(source, [query_id, *there], names, where)
    query = numbers(ids_of(table, query_id, where), judged)
    rows = np.flatnonzero(query >= 0)
    if not len(rows):
        raise InputError(
            f"None of the {len(table)} queries of the table of queries is judged.",
            "Check that both are of one collection and name its queries alike.",
        )
    return {
        name: one_a_query(
            [distinct(query[rows], table.column(name).take(pa.array(rows)), name)], name
        )
        for name in there
    }


def slice_queries(by: str, values: pa.Table, queries: int) -> Slices:
    """Cut the judged queries by a column's values.

    Text, dates, booleans, and numbers of at most ten distinct values make a slice a value, in
    ascending order; other numbers four, cut at the quartiles over queries and named by the lowest
    and the highest value in each. Equal values are never parted. Queries without a value are a
    slice of their own, the last.
    """
    column = values.column("value").combine_chunks()
    query = np.asarray(values.column("query"), np.int64)
    is_number = pa.types.is_integer(column.type) or pa.types.is_floating(column.type)
    if is_number and len(pc.unique(column.drop_null())) > _DISTINCT:
        labels, found = _quartiles(column.cast(pa.float64(), safe=False))
    else:
        labels, found = _each_value(column, by)
    code = np.full(queries, len(labels), np.int64)
    code[query] = found
    missing = (NO_VALUE,) if (code == len(labels)).any() else ()
    return Slices(by, (*labels, *missing), code)


def _each_value(column: pa.Array, by: str) -> tuple[tuple[str, ...], Ints]:
    is_date = pa.types.is_temporal(column.type)
    is_plain = pa.types.is_primitive(column.type) or pa.types.is_null(column.type)
    if not (is_plain or is_date or schema.is_text(column.type)):
        raise InputError(
            f"The column {by} is {column.type}; slices are by text, numbers, booleans or dates."
        )
    if pa.types.is_floating(column.type):
        column = pc.if_else(pc.is_nan(column), None, column)
    known = pc.unique(column.drop_null())
    known = known.take(pc.sort_indices(known))
    found = np.asarray(pc.fill_null(pc.index_in(column, known), len(known)), np.int64)
    return tuple(f"{v:g}" if isinstance(v, float) else str(v) for v in known.to_pylist()), found


def _quartiles(column: pa.Array) -> tuple[tuple[str, ...], Ints]:
    value: Floats = np.asarray(column.to_numpy(zero_copy_only=False), np.float64)
    there = ~np.isnan(value)
    cuts = np.unique(np.quantile(value[there], _QUARTILES, method="inverted_cdf"))
    bins = np.searchsorted(cuts, value[there], side="left")
    kept, bins = np.unique(bins, return_inverse=True)
    labels = []
    for number in range(len(kept)):
        inside = value[there][bins == number]
        low, high = f"{inside.min():g}", f"{inside.max():g}"
        labels.append(low if low == high else f"{low} to {high}")
    code = np.full(len(value), len(labels), np.int64)
    code[there] = bins
    return tuple(labels), code
