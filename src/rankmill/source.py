"""The input as a run reads it: one layout, the columns that are scored, all row groups.

Nothing here knows shards or Ray. A `Source` is small (a few numbers a row group), pickles, and
reads any of its row groups as a table of the unified schema.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Literal, Self

import pyarrow as pa
import pyarrow.parquet as pq
import pyarrow.types as pat

from rankmill import schema, storage
from rankmill.config import ColumnNames, InputConfig
from rankmill.errors import InputError
from rankmill.listing import Listing, RowGroup, list_tables, read_footer
from rankmill.storage import StoredFile
from rankmill.storage_settings import ENVIRONMENT, StorageConfig

Layout = Literal["pairs", "nested", "ids"]
# A column's role, its name, what its type must satisfy, and how that is said.
Role = tuple[str, str, Callable[[pa.DataType], bool], str]
_READ_ROWS = 4096
_READ_BYTES = 1 << 20


@dataclass(frozen=True)
class Table:
    """Listed files of one schema, any row group of which can be read."""

    files: tuple[StoredFile, ...]
    partitions: tuple[tuple[tuple[str, Any], ...], ...]
    row_groups: tuple[RowGroup, ...]
    table_schema: pa.Schema
    access: StorageConfig

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
        footer = _kept_footer(file, self.access)
        try:
            with storage.open_input(file.url, self.access, file.size) as handle:
                parquet = pq.ParquetFile(
                    handle,
                    metadata=footer,
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

    def part(self, groups: Sequence[int]) -> Self:
        """Only these row groups, by their numbers, and their files: what a task need be sent."""
        chosen = [self.row_groups[number] for number in groups]
        places = {file: place for place, file in enumerate(dict.fromkeys(g.file for g in chosen))}
        return replace(
            self,
            files=tuple(self.files[file] for file in places),
            partitions=tuple(self.partitions[file] for file in places),
            row_groups=tuple(replace(group, file=places[group.file]) for group in chosen),
        )

    def refuse_changed(self, number: int) -> None:
        """Raise `InputError` when a file is not the one that was listed any more."""
        file = self.files[number]
        now = storage.current_version(file, self.access)
        if now != file.version:
            raise InputError(
                f"{file.url} has changed since the run was planned: version {file.version}, now "
                f"{now}.",
                "Put the old file back, or start again with --overwrite.",
            )


@dataclass(frozen=True)
class TextTable(Table):
    """The queries or the documents of the `ids` layout: texts by id.

    name: `queries` or `documents`; key: the id's column; texts: the columns that are joined to the
    candidates. mean_bytes: of a row's texts in UTF-8, from the footers.
    """

    name: str
    key: str
    texts: tuple[str, ...]
    mean_bytes: float

    @property
    def rows(self) -> int:
        """How many rows it has."""
        return sum(group.rows for group in self.row_groups)


@dataclass(frozen=True)
class Origin:
    """Where sorted rows come from.

    urls: the input's files; starts: the first row of each, and the end, when the rows of all
    files are counted together.
    """

    urls: tuple[str, ...]
    starts: tuple[int, ...]


@dataclass(frozen=True)
class Source(Table):
    """The listed input. `table_schema` has a row as stored, `pair_schema` a row a pair.

    texts: in the `ids` layout, the queries and the documents. origin: of rows that were sorted
    into a staging folder, each of which has its number in the column `ORIGIN_ROW`.
    """

    pair_schema: pa.Schema
    layout: Layout
    columns: ColumnNames
    has_query_id: bool
    texts: tuple[TextTable, ...] = ()
    origin: Origin | None = None

    @property
    def joined(self) -> tuple[str, ...]:
        """The columns that are not the input's own, but come from `texts`."""
        return tuple(name for table in self.texts for name in table.texts)

    @property
    def query_key(self) -> str:
        """The column whose equal consecutive values make one candidate list."""
        if self.has_query_id and self.columns.query_id is not None:
            return self.columns.query_id
        return self.columns.query


def open_source(config: InputConfig, access: StorageConfig = ENVIRONMENT) -> Source:
    """List the input, read every footer, unify the schemas and find the layout.

    For the layouts `pairs` and `nested`; `text_tables.open_ids` opens the third.

    Raises `InputError` naming the file and column for a file that is not Parquet, schemas that
    do not unify, a missing column, or a column of the wrong type.
    """
    if config.layout == "ids":
        raise InputError(
            "This input has no texts: with layout ids they lie in other tables.",
            "Give a table of pairs; layout ids is for rerank and plan.",
        )
    listing = list_tables(config.paths, access)
    layout = _layout(config, listing.table_schema)
    pair_schema = _pair_schema(layout, config.columns, listing.table_schema)
    has_query_id = _check_columns(config.columns, pair_schema, listing.where)
    needed = _needed_columns(config.columns, layout, has_query_id)
    told = config.columns.instruction
    if told is not None and told in listing.table_schema.names:  # else inside the candidates
        needed.append(told)
    listing.refuse_lacking_files(needed)
    leaves = frozenset([config.columns.query, *config.columns.document_parts])
    return Source(
        **table_of(listing, listing.row_groups(leaves, layout == "nested"), access),
        pair_schema=pair_schema,
        layout=layout,
        columns=config.columns,
        has_query_id=has_query_id,
    )


def table_of(
    listing: Listing, row_groups: tuple[RowGroup, ...], access: StorageConfig
) -> dict[str, Any]:
    """What a `Table` of listed files has, by name."""
    return {
        "files": listing.files,
        "partitions": listing.partitions,
        "row_groups": row_groups,
        "table_schema": listing.table_schema,
        "access": access,
    }


@lru_cache(maxsize=4)
def _kept_footer(file: StoredFile, access: StorageConfig) -> pq.FileMetaData:
    """The footers read last: that of thousands of row groups takes longer than one of them."""
    return read_footer(file, access)


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
    wanted: list[Role] = [("query", columns.query, schema.is_text, "text")]
    wanted += [("document", name, schema.is_text, "text") for name in columns.document_parts]
    if columns.doc_id is not None:
        wanted.append(("doc_id", columns.doc_id, schema.is_id, "text or integers"))
    if columns.instruction is not None:
        wanted.append(("instruction", columns.instruction, schema.is_text, "text"))
    if columns.query_id is not None and (has_query_id or asked):
        wanted.append(("query_id", columns.query_id, schema.is_id, "text or integers"))
    refuse_unfit(wanted, pairs, where, may_lack=("query_id", "doc_id"))
    return has_query_id


def _needed_columns(columns: ColumnNames, layout: Layout, has_query_id: bool) -> list[str]:
    """The table's columns that a run cannot do without."""
    wanted = [columns.query_id, columns.query] if has_query_id else [columns.query]
    if layout == "nested":
        wanted.append(columns.candidates)
    else:
        wanted += [columns.doc_id, *columns.document_parts]
    return [name for name in wanted if name is not None]


def refuse_unfit(
    wanted: Sequence[Role], found: pa.Schema, where: str, may_lack: Collection[str] = ()
) -> None:
    """Raise `InputError` for a column that is missing or of the wrong type.

    may_lack: roles that an input can do without, where their setting is null.
    """
    for role, name, fits, expected in wanted:
        if name not in found.names:
            raise InputError(
                f"The column {name} ({role}) is missing in {where}.",
                f"The input has {', '.join(found.names) or 'no columns'}; "
                f"name the right one with input.columns.{role}"
                + (
                    f", or set input.columns.{role}=null to do without."
                    if role in may_lack
                    else "."
                ),
            )
        data_type = found.field(name).type
        if not fits(data_type) and not pat.is_null(data_type):
            raise InputError(
                f"The column {name} ({role}) must hold {expected}, found {data_type} in {where}."
            )
