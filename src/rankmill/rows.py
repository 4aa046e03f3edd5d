"""Rows of a shard: nested lists made flat, texts checked, candidate lists found.

Pure functions over Arrow tables. No row is ever dropped here: a row that cannot be scored keeps
its place and gets a reason.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as pat

from rankmill.config import ColumnNames
from rankmill.schema import MISSING, is_text

# Why a row cannot be scored, in the order in which they are looked for.
NO_QUERY_ID = "query_id is null"
BAD_QUERY_ID = "query_id is not valid UTF-8"
NO_DOC_ID = "doc_id is null"
NOT_IN_QUERIES = "query_id is not in the queries"
NOT_IN_DOCUMENTS = "doc_id is not in the documents"
NO_QUERY = "query is null or empty"
NO_DOCUMENT = "document is null or empty"
BAD_QUERY = "query is not valid UTF-8"
BAD_DOCUMENT = "document is not valid UTF-8"
BAD_DOC_ID = "doc_id is not valid UTF-8"
BAD_INSTRUCTION = "instruction is not valid UTF-8"
LONG_INSTRUCTION = "instruction leaves no room in model.max_length"
LONG_QUERY = "query is longer than input.max_text_bytes"
LONG_DOCUMENT = "document is longer than input.max_text_bytes"
BAD_SCORE = "the model's score is not finite"


@dataclass(frozen=True)
class CheckedRows:
    """What later steps need of `n` pair rows.

    query: int32 [n], the candidate list of each row, numbered in input order (-1: none).
    position: int32 [n], the row's place in its candidate list, from 0.
    reason: string [n], null where the row can be scored.
    query_text, document_text: large_string [n], null where the row has a reason.
    instruction_text: large_string [n], null where the row has none; None without such a column.
    several_texts: lists whose rows hold more than one query text.
    """

    query: npt.NDArray[np.int32]
    position: npt.NDArray[np.int32]
    reason: pa.Array
    query_text: pa.Array
    document_text: pa.Array
    instruction_text: pa.Array | None
    several_texts: int


def flatten(table: pa.Table, column: str) -> tuple[pa.Table, npt.NDArray[np.int64]]:
    """A table with a row a query made one with a row a candidate, and each pair's row in it.

    The candidates' fields follow the other columns, which are repeated. Rows whose list is null
    or empty give no pairs.
    """
    lists = table.column(column).combine_chunks()
    if isinstance(lists, pa.ChunkedArray):
        lists = lists.chunk(0) if lists.num_chunks else pa.array([], lists.type)
    structs = pc.list_flatten(lists)
    # Not `list_parent_indices`: it counts what lies under null lists, which are left out above.
    sizes = pc.fill_null(pc.list_value_length(lists), 0).to_numpy(zero_copy_only=False)
    parents = np.repeat(np.arange(len(lists), dtype=np.int64), sizes)
    outer = table.drop_columns([column]).take(pa.array(parents))
    fields = list(structs.type)
    # `struct_field` honours the struct's own nulls; `.field` would not.
    inner = [pc.struct_field(structs, index) for index in range(len(fields))]
    flat = pa.table([*outer.columns, *inner], schema=pa.schema([*outer.schema, *fields]))
    return flat, parents


def check(
    table: pa.Table, columns: ColumnNames, has_query_id: bool, max_text_bytes: int
) -> CheckedRows:
    """Find each row's candidate list and say which rows cannot be scored, and why."""
    rows = table.num_rows
    query, bad_query = _valid_text(table.column(columns.query))
    parts = [_valid_text(table.column(name)) for name in columns.document_parts]
    bad_document = np.logical_or.reduce([bad for _, bad in parts])
    no_document = np.logical_and.reduce([_empty(text) for text, _ in parts])
    document = joined([text for text, _ in parts])

    instruction, bad_instruction = None, np.zeros(rows, bool)
    if columns.instruction is not None:
        instruction, bad_instruction = _valid_text(table.column(columns.instruction))

    key = candidate_key(table, columns, has_query_id)
    no_id = bad_id = np.zeros(rows, bool)
    if has_query_id and columns.query_id is not None:
        no_id = _mask(pc.is_null(table.column(columns.query_id)))
        bad_id = _mask(pc.is_null(key)) & ~no_id

    bad_doc_id = np.zeros(rows, bool)
    if columns.doc_id in table.column_names and is_text(table.column(columns.doc_id).type):
        bad_doc_id = _valid_text(table.column(columns.doc_id))[1]

    reason = np.full(rows, None, dtype=object)
    for mask, why in (
        (_longer(document, max_text_bytes), LONG_DOCUMENT),
        (_longer(query, max_text_bytes), LONG_QUERY),
        (no_document, NO_DOCUMENT),
        (_empty(query), NO_QUERY),
        (bad_instruction, BAD_INSTRUCTION),
        (bad_document, BAD_DOCUMENT),
        (bad_query, BAD_QUERY),
        (bad_doc_id, BAD_DOC_ID),
        (bad_id, BAD_QUERY_ID),
        (no_id, NO_QUERY_ID),
    ):
        reason[mask] = why
    reasons = pa.array(reason, pa.string())
    if MISSING in table.column_names:
        known = pa.array(bad_doc_id | bad_id | no_id)
        reasons = pc.if_else(known, reasons, pc.coalesce(plain(table.column(MISSING)), reasons))
    good = pc.is_null(reasons)
    nothing = pa.scalar(None, pa.large_string())

    number = pc.dictionary_encode(key).indices
    lists = pc.fill_null(number, -1).to_numpy(zero_copy_only=False).astype(np.int32)
    good_query = pc.if_else(good, query, nothing)
    return CheckedRows(
        query=lists,
        position=_positions(lists),
        reason=reasons,
        query_text=good_query,
        document_text=pc.if_else(good, document, nothing),
        instruction_text=instruction,
        several_texts=_several_texts(lists, good_query),
    )


def candidate_key(table: pa.Table, columns: ColumnNames, has_query_id: bool) -> pa.Array:
    """What makes rows one candidate list: the query id, or the query text where there is none.

    Null where a row belongs to no list; such a row does not interrupt the list around it.
    """
    if has_query_id and columns.query_id is not None:
        column = table.column(columns.query_id)
        return _valid_text(column)[0] if is_text(column.type) else plain(column)
    text, _ = _valid_text(table.column(columns.query))
    return pc.if_else(pc.equal(text, ""), pa.scalar(None, text.type), text)


def plain(column: pa.ChunkedArray | pa.Array) -> pa.Array:
    """One contiguous array without dictionary or view encoding."""
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    if isinstance(array, pa.ChunkedArray):
        array = array.chunk(0) if array.num_chunks else pa.array([], array.type)
    if pat.is_dictionary(array.type):
        array = array.dictionary_decode()
    if pat.is_string_view(array.type):
        array = array.cast(pa.string())  # few kernels know views
    return array


def _valid_text(column: pa.ChunkedArray) -> tuple[pa.Array, npt.NDArray[np.bool_]]:
    """Text as large_string, with invalid UTF-8 made null, and where it was invalid."""
    array = plain(column)
    if pat.is_null(array.type):
        return array.cast(pa.large_string()), np.zeros(len(array), bool)
    raw = array.cast(pa.large_binary())
    try:
        return raw.cast(pa.large_string()), np.zeros(len(array), bool)
    except pa.ArrowInvalid:
        invalid = np.array([not _decodes(value) for value in raw.to_pylist()], bool)
        kept = pc.if_else(pa.array(invalid), pa.scalar(None, pa.large_binary()), raw)
        return kept.cast(pa.large_string()), invalid


def _decodes(value: bytes | None) -> bool:
    try:
        (value or b"").decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def joined(parts: Sequence[pa.Array]) -> pa.Array:
    """large_string: the parts of each row with a space between; null parts are left out.

    parts: large_string, of one length.
    """
    if len(parts) == 1:
        return parts[0]
    space = pa.scalar(" ", pa.large_string())
    # Arrow 26 leaves out the row where every part is null.
    nothing = pa.array(np.logical_and.reduce([_mask(pc.is_null(part)) for part in parts]))
    first = pc.if_else(nothing, pa.scalar("", pa.large_string()), parts[0])
    return pc.binary_join_element_wise(first, *parts[1:], space, null_handling="skip")


def _mask(array: pa.Array) -> npt.NDArray[np.bool_]:
    mask: npt.NDArray[np.bool_] = array.to_numpy(zero_copy_only=False).astype(bool)
    return mask


def _empty(text: pa.Array) -> npt.NDArray[np.bool_]:
    # White space alone is a text: the model's tokenizer decides what it makes of it.
    return _mask(pc.fill_null(pc.equal(text, ""), True))


def _longer(text: pa.Array, limit: int) -> npt.NDArray[np.bool_]:
    return _mask(pc.fill_null(pc.greater(pc.binary_length(text), limit), False))


def _positions(lists: npt.NDArray[np.int32]) -> npt.NDArray[np.int32]:
    """Each row's place among the rows of its list."""
    order = np.argsort(lists, kind="stable")
    ordered = lists[order]
    first = np.searchsorted(ordered, ordered, side="left")
    places = np.empty(len(lists), np.int32)
    places[order] = np.arange(len(lists)) - first
    return places


def _several_texts(lists: npt.NDArray[np.int32], query: pa.Array) -> int:
    texts = pc.fill_null(pc.dictionary_encode(query).indices, -1).to_numpy(zero_copy_only=False)
    seen = (lists >= 0) & (texts >= 0)
    combined = np.unique(np.stack([lists[seen], texts[seen]]), axis=1)
    return int(np.sum(np.bincount(combined[0]) > 1)) if combined.size else 0
