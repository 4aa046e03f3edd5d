"""Texts found by id: an index over a table of texts, and the join of a shard's rows with it.

Pure functions over Arrow tables. An id is found by a hash of its bytes and then compared itself.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from rankmill import rows, schema
from rankmill.errors import DoubledIds
from rankmill.schema import MISSING, is_text
from rankmill.source import Source, TextTable

Digests = npt.NDArray[np.uint64]
_SHOWN = 3
# Why a row has no text of a table: it has no id, or the table has no such id.
_REASONS = {
    "queries": (rows.NO_QUERY_ID, rows.NOT_IN_QUERIES),
    "documents": (rows.NO_DOC_ID, rows.NOT_IN_DOCUMENTS),
}


@dataclass(frozen=True)
class TextIndex:
    """Texts by id. Large arrays only, so that processes of a node share one copy.

    digest: uint64 [rows], ascending; row: int64 [rows], the row of `table` that each is of.
    table: the id and the texts, one chunk a column.
    """

    digest: Digests
    row: npt.NDArray[np.int64]
    table: pa.Table

    def find(self, ids: pa.Array) -> npt.NDArray[np.int64]:
        """int64 [ids]: the row of the table with each id, -1 where there is none."""
        wanted = id_digests(ids)
        found = np.full(len(ids), -1, np.int64)
        place = np.searchsorted(self.digest, wanted)
        # More than one turn only for ids of one digest.
        left = np.flatnonzero(_valid(ids))
        while len(left):
            left = left[place[left] < len(self.digest)]
            left = left[self.digest[place[left]] == wanted[left]]
            row = self.row[place[left]]
            same = _equal(self.table.column(0).take(pa.array(row)), ids.take(pa.array(left)))
            found[left[same]] = row[same]
            left = left[~same]
            place[left] += 1
        return found


def index(texts: TextTable, tables: Iterable[pa.Table]) -> TextIndex:
    """Index rows of a table of texts; those without an id cannot be asked for.

    Raises `DoubledIds` naming some ids that stand in more than one row.
    """
    table = pa.concat_tables([texts_schema(texts).empty_table(), *tables])
    table = table.filter(pc.is_valid(table.column(0))).combine_chunks()
    ids = rows.plain(table.column(0))
    digest = id_digests(ids)
    order = np.argsort(digest, kind="stable").astype(np.int64)
    found = TextIndex(digest[order], order, table)
    _refuse_doubled(found, ids, texts.name)
    return found


def read_texts(texts: TextTable, groups: Sequence[int]) -> Iterator[pa.Table]:
    """The id and the texts of some row groups, in tables of some rows, text as large_string.

    Raises `InputError` when a file cannot be decoded or is not the one that was listed.
    """
    wanted = texts_schema(texts)
    for number in groups:
        for table in texts.batches(texts.row_groups[number], wanted.names, rows=1 << 14):
            yield table.cast(wanted)
    for file in dict.fromkeys(texts.row_groups[number].file for number in groups):
        texts.refuse_changed(file)


def index_all(texts: TextTable) -> TextIndex:
    """Index a whole table. Raises `InputError` as `read_texts` and `index` do."""
    return index(texts, read_texts(texts, range(len(texts.row_groups))))


def texts_schema(texts: TextTable) -> pa.Schema:
    """The schema of `read_texts`: without dictionaries, and with offsets that never overflow."""
    fields = []
    for name in (texts.key, *texts.texts):
        stored = texts.table_schema.field(name).type
        fields.append(pa.field(name, _wide(stored)))
    return pa.schema(fields)


def join(table: pa.Table, source: Source, indices: Sequence[TextIndex]) -> pa.Table:
    """Add the texts of both tables to candidate rows, and `MISSING`.

    indices: of `source.texts`, in their order. No row is dropped; one whose texts are not there
    has nulls and says which in `MISSING`.
    """
    missing = pa.nulls(table.num_rows, pa.string())
    for texts, found in zip(source.texts, indices, strict=True):
        encoded = pc.dictionary_encode(rows.plain(table.column(texts.key)))
        places = np.append(found.find(encoded.dictionary), -1)
        number = pc.fill_null(encoded.indices, len(encoded.dictionary))
        place = places[number.to_numpy(zero_copy_only=False)]
        chosen = pa.array(place, mask=place < 0)
        no_id, no_texts = _REASONS[texts.name]
        reason = pc.if_else(pc.is_null(chosen), no_texts, pa.scalar(None, pa.string()))
        missing = pc.coalesce(missing, pc.if_else(pc.is_null(encoded.indices), no_id, reason))
        for name in texts.texts:
            field = source.pair_schema.field(name)
            column = found.table.column(name).take(chosen).cast(field.type)
            table = table.append_column(field, column)
    return table.append_column(MISSING, missing)


def id_digests(ids: pa.Array) -> Digests:
    """uint64 [ids]: a hash of each id's bytes, equal for integers of any width; 0 for null."""
    if is_text(ids.type):
        values = ids.cast(pa.large_binary()).to_pylist()
    else:
        values = [None if value is None else b"%d" % value for value in ids.to_pylist()]
    nothing = bytes(8)
    digests = (
        nothing if value is None else hashlib.blake2b(value, digest_size=8).digest()
        for value in values
    )
    return np.frombuffer(b"".join(digests), np.uint64)


def _wide(data_type: pa.DataType) -> pa.DataType:
    return pa.large_string() if is_text(data_type) else schema.value_type(data_type)


def _valid(ids: pa.Array) -> npt.NDArray[np.bool_]:
    valid: npt.NDArray[np.bool_] = pc.is_valid(ids).to_numpy(zero_copy_only=False)
    return valid


def _equal(one: pa.Array, other: pa.Array) -> npt.NDArray[np.bool_]:
    """Whether ids are equal, pair by pair; text byte by byte, integers whatever their width."""
    one, other = rows.plain(one), rows.plain(other)
    if is_text(one.type):
        one, other = one.cast(pa.large_binary()), other.cast(pa.large_binary())
    elif one.type != other.type:  # no integer is wide enough for uint64 and int64
        one, other = one.cast(pa.string()), other.cast(pa.string())
    equal: npt.NDArray[np.bool_] = pc.equal(one, other).to_numpy(zero_copy_only=False)
    return equal


def _refuse_doubled(found: TextIndex, ids: pa.Array, name: str) -> None:
    again = np.flatnonzero(found.digest[1:] == found.digest[:-1])
    before, after = (ids.take(pa.array(found.row[again + step])) for step in (0, 1))
    doubled = pc.unique(before.filter(pa.array(_equal(before, after))))
    if len(doubled):
        shown = ", ".join(map(_shown, doubled.slice(0, _SHOWN)))
        more = f" and {len(doubled) - _SHOWN} more" if len(doubled) > _SHOWN else ""
        raise DoubledIds(
            f"input.{name} holds {found.table.schema.names[0]} {shown}{more} in more than one "
            "row, so that it is not clear which text is meant.",
            "Keep one row for each id.",
        )


def _shown(value: pa.Scalar) -> str:
    buffer = value.as_buffer() if is_text(value.type) else None
    return (
        str(value.as_py()) if buffer is None else repr(buffer.to_pybytes().decode(errors="replace"))
    )
