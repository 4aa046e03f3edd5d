"""The input as it lies in storage: files, row groups, one schema, one layout.

Nothing here knows shards or Ray. A `Source` is small (a few numbers a row group), pickles, and
reads any of its row groups as a table of the unified schema.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.parquet as pq
import pyarrow.types as pat

from rankmill import schema, storage
from rankmill.config import ColumnNames, InputConfig
from rankmill.errors import InputError
from rankmill.storage import StoredFile

Layout = Literal["pairs", "nested"]
# Footers are read by threads: on an object store each is one or two round trips.
_FOOTER_THREADS = 16
_READ_ROWS = 4096
_READ_BYTES = 1 << 20
# Below so many bytes a value, a column with a dictionary may hold far more text than it weighs.
_DICTIONARY_BYTES = 64
_HIVE_NULL = "__HIVE_DEFAULT_PARTITION__"


@dataclass(frozen=True)
class RowGroup:
    """`rows` table rows holding `pairs` pairs (equal unless nested), from `first_row` of its file.

    text_bytes: of the columns that are scored; total_bytes: of all columns; both uncompressed, as
    the footer has them. Columns of repeating texts are stored as a dictionary, far smaller than
    the texts: they are named in `repeating` and left out of text_bytes.
    """

    file: int
    index: int
    rows: int
    pairs: int
    text_bytes: int
    total_bytes: int
    first_row: int
    repeating: tuple[str, ...]


@dataclass(frozen=True)
class Source:
    """The listed input. `table_schema` has a row as stored, `pair_schema` a row a pair."""

    files: tuple[StoredFile, ...]
    partitions: tuple[tuple[tuple[str, Any], ...], ...]
    row_groups: tuple[RowGroup, ...]
    table_schema: pa.Schema
    pair_schema: pa.Schema
    layout: Layout
    columns: ColumnNames
    has_query_id: bool
    profile: str | None

    @property
    def query_key(self) -> str:
        """The column whose equal consecutive values make one candidate list."""
        if self.has_query_id and self.columns.query_id is not None:
            return self.columns.query_id
        return self.columns.query

    def batches(
        self, group: RowGroup, columns: Sequence[str] | None = None, rows: int = _READ_ROWS
    ) -> Iterator[pa.Table]:
        """Stream a row group as tables of at most `rows` rows, in the unified schema.

        Raises `InputError` naming file and row group when the data cannot be decoded.
        """
        file = self.files[group.file]
        names = list(self.table_schema.names if columns is None else columns)
        fixed = dict(self.partitions[group.file])
        remote = storage.is_remote(file.url)
        try:
            with storage.open_input(file.url, self.profile) as handle:
                parquet = pq.ParquetFile(
                    handle,
                    # Far away, few large requests; here, never a whole column chunk in memory.
                    pre_buffer=remote,
                    buffer_size=0 if remote else _READ_BYTES,
                    page_checksum_verification=True,
                )
                stored = [n for n in names if n in parquet.schema_arrow.names and n not in fixed]
                try:
                    for batch in parquet.iter_batches(rows, [group.index], columns=stored):
                        yield self._unified(pa.table(batch), names, fixed)
                except (pa.ArrowException, OSError) as error:
                    # A store that fails would fail for every column, after its time-outs.
                    broken = [] if remote else _broken_columns(parquet, group.index, stored)
                    where = f"column {', '.join(broken)}: " if broken else ""
                    raise OSError(f"{where}{error}") from error
        except (pa.ArrowException, OSError) as error:
            raise InputError(
                f"{file.url}, row group {group.index}, cannot be decoded: {error}.",
                "Write the file again, or leave it out.",
            ) from error

    def _unified(self, table: pa.Table, names: list[str], fixed: dict[str, Any]) -> pa.Table:
        columns = []
        for name in names:
            wanted = self.table_schema.field(name).type
            if name in fixed:
                column = pa.repeat(pa.scalar(fixed[name], wanted), table.num_rows)
            elif name in table.column_names:
                column = table.column(name)
                column = column if column.type == wanted else column.cast(wanted)
            else:
                column = pa.nulls(table.num_rows, wanted)
            columns.append(column)
        return pa.table(columns, schema=pa.schema([self.table_schema.field(n) for n in names]))


def open_source(config: InputConfig, profile: str | None = None) -> Source:
    """List the input, read every footer, unify the schemas and find the layout.

    Raises `InputError` naming the file and column for a file that is not Parquet, schemas that
    do not unify, a missing column, or a column of the wrong type.
    """
    files = storage.list_files(config.paths, profile)
    with ThreadPoolExecutor(_FOOTER_THREADS) as pool:
        footers = list(pool.map(lambda file: _footer(file, profile), files))
    partition_schema, partitions = _partitions([file.folders for file in files])
    schemas = [(f.url, footer.schema.to_arrow_schema()) for f, footer in zip(files, footers)]
    table_schema = schema.unify(schemas)
    for field in partition_schema:
        if field.name in table_schema.names:
            partitions = [{k: v for k, v in p.items() if k != field.name} for p in partitions]
        else:
            table_schema = table_schema.append(field)

    layout = _layout(config, table_schema)
    pair_schema = _pair_schema(layout, config.columns, table_schema)
    where = files[0].url if len(files) == 1 else f"{files[0].url} and {len(files) - 1} more"
    has_query_id = _check_columns(config.columns, pair_schema, where)
    needed = _needed_columns(config.columns, layout, has_query_id)
    told = config.columns.instruction
    if told is not None and told in table_schema.names:  # else it lies inside the candidates
        needed.append(told)
    _refuse_lacking_files(needed, schemas, partitions)
    # Names that a Parquet leaf path may start or end with when it holds text to be scored.
    leaves = frozenset([config.columns.query, *config.columns.document_parts])
    return Source(
        files=tuple(files),
        partitions=tuple(tuple(p.items()) for p in partitions),
        row_groups=tuple(
            group
            for index, footer in enumerate(footers)
            for group in _row_groups(index, footer, layout, leaves)
        ),
        table_schema=table_schema,
        pair_schema=pair_schema,
        layout=layout,
        columns=config.columns,
        has_query_id=has_query_id,
        profile=profile,
    )


def _broken_columns(parquet: pq.ParquetFile, group: int, names: Sequence[str]) -> list[str]:
    """Which columns of a row group cannot be decoded."""
    broken = []
    for name in names:
        try:
            for _ in parquet.iter_batches(_READ_ROWS, [group], columns=[name]):
                pass
        except (pa.ArrowException, OSError):
            broken.append(name)
    return broken


def _footer(file: StoredFile, profile: str | None) -> pq.FileMetaData:
    try:
        with storage.open_input(file.url, profile) as handle:
            return pq.read_metadata(handle)
    except (pa.ArrowException, OSError) as error:
        if "encrypted" in str(error):
            raise InputError(f"{file.url} is encrypted.", "Write it without encryption.") from None
        raise InputError(
            f"{file.url} is not a readable Parquet file ({file.size} bytes): {error}.",
            "Remove it from the input, or give a glob that leaves it out.",
        ) from None


def _partitions(folders: list[tuple[str, ...]]) -> tuple[pa.Schema, list[dict[str, Any]]]:
    """Hive partition columns (`…/day=2026-11-21/…`): int64 where every value is one, else text.

    folders: those of each file below the path that was given.
    """
    raw = [dict(name.split("=", 1) for name in names if "=" in name) for names in folders]
    names = list(dict.fromkeys(name for values in raw for name in values))
    fields = []
    for name in names:
        values = [v[name] for v in raw if v.get(name, _HIVE_NULL) != _HIVE_NULL]
        whole = bool(values) and all(_is_int64(value) for value in values)
        fields.append(pa.field(name, pa.int64() if whole else pa.string()))
    partitions = [
        {
            field.name: (int(v) if field.type == pa.int64() else unquote(v))
            if (v := values.get(field.name, _HIVE_NULL)) != _HIVE_NULL
            else None
            for field in fields
        }
        for values in raw
    ]
    return pa.schema(fields), partitions


def _is_int64(text: str) -> bool:
    return text.removeprefix("-").isdecimal() and -(2**63) <= int(text) < 2**63


def _layout(config: InputConfig, table: pa.Schema) -> Layout:
    if config.layout != "auto":
        return config.layout
    name = config.columns.candidates
    return "nested" if name in table.names and is_candidates(table.field(name).type) else "pairs"


def is_candidates(data_type: pa.DataType) -> bool:
    """Whether a column is a list of structs, as the nested layout wants it."""
    return schema.is_list(data_type) and pat.is_struct(data_type.value_type)


def _pair_schema(layout: Layout, columns: ColumnNames, table: pa.Schema) -> pa.Schema:
    if layout == "pairs":
        return table
    if columns.candidates not in table.names:
        raise InputError(
            f"The nested layout needs the column {columns.candidates}.",
            f"The input has {', '.join(table.names)}; map it with input.columns.candidates.",
        )
    nested = table.field(columns.candidates).type
    if not is_candidates(nested):
        raise InputError(
            f"The column {columns.candidates} must be a list of structs, found {nested}.",
            "Use input.layout: pairs for a table with a row a pair.",
        )
    outer = [field for field in table if field.name != columns.candidates]
    inner = list(nested.value_type)
    clash = {field.name for field in outer} & {field.name for field in inner}
    if clash:
        raise InputError(
            f"{', '.join(sorted(clash))} stands both beside and inside {columns.candidates}.",
            "Rename one of them.",
        )
    return pa.schema(outer + inner)


def _check_columns(columns: ColumnNames, pairs: pa.Schema, where: str) -> bool:
    """Check names and types; whether there is a query id."""
    has_query_id = columns.query_id is not None and columns.query_id in pairs.names
    asked = "query_id" in columns.model_fields_set and columns.query_id is not None
    wanted = [("query", columns.query, schema.is_text, "text")]
    wanted += [("document", name, schema.is_text, "text") for name in columns.document_parts]
    if columns.doc_id is not None:
        wanted.append(("doc_id", columns.doc_id, schema.is_id, "text or integers"))
    if columns.instruction is not None:
        wanted.append(("instruction", columns.instruction, schema.is_text, "text"))
    if columns.query_id is not None and (has_query_id or asked):
        wanted.append(("query_id", columns.query_id, schema.is_id, "text or integers"))
    for role, name, fits, expected in wanted:
        if name not in pairs.names:
            raise InputError(
                f"The column {name} ({role}) is missing in {where}.",
                f"The input has {', '.join(pairs.names) or 'no columns'}; "
                f"name the right one with input.columns.{role}.",
            )
        found = pairs.field(name).type
        if not fits(found) and not pat.is_null(found):
            raise InputError(
                f"The column {name} ({role}) must hold {expected}, found {found} in {where}."
            )
    return has_query_id


def _needed_columns(columns: ColumnNames, layout: Layout, has_query_id: bool) -> list[str]:
    """The table's columns that a run cannot do without."""
    wanted = [columns.query_id, columns.query] if has_query_id else [columns.query]
    if layout == "nested":
        wanted.append(columns.candidates)
    else:
        wanted += [columns.doc_id, *columns.document_parts]
    return [name for name in wanted if name is not None]


def _refuse_lacking_files(
    wanted: list[str],
    schemas: list[tuple[str, pa.Schema]],
    partitions: list[dict[str, Any]],
) -> None:
    """Columns that pass through may be missing from some files; those that are scored may not."""
    for (file, found), fixed in zip(schemas, partitions):
        missing = [name for name in wanted if name not in found.names and name not in fixed]
        if missing:
            raise InputError(
                f"The column {', '.join(missing)} is missing in {file}, other files have it.",
                "Write all files with these columns, or leave that file out.",
            )


def _row_groups(
    file: int, footer: pq.FileMetaData, layout: Layout, leaves: frozenset[str]
) -> Iterator[RowGroup]:
    first_row = 0
    for index in range(footer.num_row_groups):
        group = _row_group(file, index, footer.row_group(index), layout, leaves, first_row)
        first_row += group.rows
        yield group


def _row_group(
    file: int,
    index: int,
    group: pq.RowGroupMetaData,
    layout: Layout,
    leaves: frozenset[str],
    first_row: int,
) -> RowGroup:
    text_bytes, pairs = 0, group.num_rows
    repeating: dict[str, None] = {}
    for number in range(group.num_columns):
        column = group.column(number)
        path = column.path_in_schema.split(".")
        if path[0] in leaves or path[-1] in leaves:
            small = column.total_uncompressed_size < _DICTIONARY_BYTES * column.num_values
            if column.has_dictionary_page and small:
                repeating[path[0] if path[0] in leaves else path[-1]] = None
            else:
                text_bytes += column.total_uncompressed_size
            if layout == "nested" and path[-1] in leaves and len(path) > 1:
                # A leaf of a list counts one value a candidate (and one for an empty list).
                pairs = max(pairs, column.num_values)
    total = group.total_byte_size
    return RowGroup(
        file, index, group.num_rows, pairs, text_bytes, total, first_row, tuple(repeating)
    )
