"""Column names and Arrow schemas: what comes in, what goes out, what lies beside it.

Types are compared by family: text is any of string, large_string, string_view and dictionaries
of them; ids are text or integers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pyarrow as pa
import pyarrow.types as pat

from rankmill.errors import ConfigError, InputError

PART_DIGITS = 5
RESULT_COLUMNS = {
    "score": pa.float32(),
    "sigmoid": pa.float32(),
    "rank": pa.int32(),
    "tokens_dropped": pa.int32(),
}

# While a run goes on, a column beside the input's: the table row of each pair row, counted from
# the shard's first; int64.
ORIGIN_ROW = "__rankmill_row"
# Likewise, where texts were joined by id: why a row has none of its own; string, null if it has.
MISSING = "__rankmill_missing"
# No input may have a column that begins so.
_OWN = "__rankmill_"

# Scored pairs, for reuse by later runs. The digest covers both texts (see `tokens.pair_digests`).
SCORES = pa.schema(
    [("pair", pa.binary(16)), ("score", pa.float32()), ("stage", pa.int8())],
)


def value_type(data_type: pa.DataType) -> pa.DataType:
    """The type of a column's values, looking through dictionaries."""
    return data_type.value_type if pat.is_dictionary(data_type) else data_type


def is_text(data_type: pa.DataType) -> bool:
    """Whether a column holds text (string, large_string, string_view, dictionaries of them)."""
    inner = value_type(data_type)
    return pat.is_string(inner) or pat.is_large_string(inner) or pat.is_string_view(inner)


def is_id(data_type: pa.DataType) -> bool:
    """Whether a column can hold ids: text or integers."""
    return is_text(data_type) or pat.is_integer(value_type(data_type))


def is_list(data_type: pa.DataType) -> bool:
    """Whether a column holds lists of any width."""
    return (
        pat.is_list(data_type) or pat.is_large_list(data_type) or pat.is_fixed_size_list(data_type)
    )


def unify(schemas: Sequence[tuple[str, pa.Schema]]) -> pa.Schema:
    """One schema for several files: the first file's columns, then what later files add.

    A column that some files lack becomes nullable; integers are promoted to the wider type; text
    types that differ become large_string, and so do views, for which Arrow 26 has no `take`;
    metadata is dropped (pandas' describes another table).

    Raises `InputError` naming the file, the column and both types when they cannot be unified.
    """
    merged: dict[str, tuple[str, pa.DataType]] = {}
    for file, schema in schemas:
        if len(set(schema.names)) != len(schema.names):
            twice = sorted({name for name in schema.names if schema.names.count(name) > 1})
            raise InputError(
                f"{file} has the column {', '.join(twice)} more than once.", "Rename one of them."
            )
        for field in schema:
            found = _without_views(field.type)
            first_file, known = merged.setdefault(field.name, (file, found))
            wider = _wider(known, found)
            if wider is None:
                raise InputError(
                    f"The column {field.name} is {known} in {first_file} but {found} in {file}.",
                    "Write all files with one type, or give them to separate runs.",
                )
            merged[field.name] = (first_file, wider)
    return pa.schema([pa.field(name, data_type) for name, (_, data_type) in merged.items()])


def _without_views(data_type: pa.DataType) -> pa.DataType:
    if pat.is_string_view(data_type):
        return pa.large_string()
    if pat.is_binary_view(data_type):
        return pa.large_binary()
    if pat.is_struct(data_type):
        return pa.struct([_field_without_views(field) for field in data_type])
    if pat.is_map(data_type):
        key, item = (_field_without_views(f) for f in (data_type.key_field, data_type.item_field))
        return pa.map_(key, item, data_type.keys_sorted)
    if not is_list(data_type):
        return data_type
    value = _field_without_views(data_type.value_field)
    if pat.is_fixed_size_list(data_type):
        return pa.list_(value, data_type.list_size)
    return pa.large_list(value) if pat.is_large_list(data_type) else pa.list_(value)


def _field_without_views(field: pa.Field) -> pa.Field:
    return field.with_type(_without_views(field.type))


def _wider(one: pa.DataType, other: pa.DataType) -> pa.DataType | None:
    if one == other or pat.is_null(other):
        return one
    if pat.is_null(one):
        return other
    if is_text(one) and is_text(other):
        return pa.large_string()
    if pat.is_integer(one) and pat.is_integer(other):
        signed = pat.is_signed_integer(one) or pat.is_signed_integer(other)
        wide = max(one.bit_width, other.bit_width)
        if signed and (one == pa.uint64() or other == pa.uint64()):
            return None
        if pat.is_signed_integer(one) != pat.is_signed_integer(other):
            wide = 64
        return {(True, w): t for w, t in _SIGNED}.get((signed, wide), _UNSIGNED.get(wide))
    return None


_SIGNED = ((8, pa.int8()), (16, pa.int16()), (32, pa.int32()), (64, pa.int64()))
_UNSIGNED = {8: pa.uint8(), 16: pa.uint16(), 32: pa.uint32(), 64: pa.uint64()}


def output_schema(
    pairs: pa.Schema,
    columns: Sequence[str] | None,
    prefix: str,
    results: Mapping[str, pa.DataType] = RESULT_COLUMNS,
) -> pa.Schema:
    """The schema of a part file: the wanted input columns, then the `rerank_*` columns.

    `pairs` is the input's schema with a row a pair; `columns` None means all of them. results: the
    columns that the run adds, without their prefix.

    Raises `InputError` when the input already has such a column, `ConfigError` when a wanted
    column does not exist.
    """
    added = [prefix + name for name in results]
    clash = [name for name in added if name in pairs.names]
    if clash:
        raise InputError(
            f"The input already has the column {', '.join(clash)}.",
            "Set output.column_prefix to write under other names, or drop the column.",
        )
    own = [name for name in pairs.names if name.startswith(_OWN)]
    if own:
        raise InputError(
            f"The input has the column {own[0]}, a name which rankmill needs for itself.",
            "Rename it.",
        )
    wanted = list(pairs.names) if columns is None else list(columns)
    twice = sorted({name for name in wanted if wanted.count(name) > 1})
    if twice:
        raise ConfigError(
            f"output.columns names {', '.join(twice)} more than once.", "Name each column once."
        )
    unknown = [name for name in wanted if name not in pairs.names]
    if unknown:
        raise ConfigError(
            f"output.columns names {', '.join(unknown)}, which the input does not have.",
            f"Its columns are {', '.join(pairs.names)}.",
        )
    fields = [pairs.field(name) for name in wanted]
    fields += [pa.field(prefix + name, data_type) for name, data_type in results.items()]
    return pa.schema(fields)


def part_name(shard: int, shards: int) -> str:
    """`part-00000.parquet`; more digits when the plan has more shards than five can name."""
    return f"part-{shard:0{max(PART_DIGITS, len(str(shards - 1)))}d}.parquet"
