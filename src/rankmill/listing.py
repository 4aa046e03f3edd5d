"""Tables as they lie in storage: files, footers, row groups, one schema.

Nothing here knows what the columns are for.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.parquet as pq

from rankmill import schema, storage
from rankmill.errors import InputError
from rankmill.storage import StoredFile
from rankmill.storage_settings import ENVIRONMENT, StorageConfig

# Footers are read by threads: on an object store each is one or two round trips.
_FOOTER_THREADS = 16
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
class Listing:
    """Listed files and what their footers say.

    schemas: each file's URL and schema. partitions: values of Hive partition columns, a mapping a
    file. table_schema: of all files together.
    """

    files: tuple[StoredFile, ...]
    footers: tuple[pq.FileMetaData, ...]
    schemas: tuple[tuple[str, pa.Schema], ...]
    partitions: tuple[tuple[tuple[str, Any], ...], ...]
    table_schema: pa.Schema

    @property
    def where(self) -> str:
        """The files, for a message."""
        more = len(self.files) - 1
        return f"{self.files[0].url} and {more} more" if more else self.files[0].url

    def row_groups(self, leaves: frozenset[str], nested: bool = False) -> tuple[RowGroup, ...]:
        """All row groups in order.

        leaves: names that a Parquet leaf path may start or end with when it holds text to be
        scored. nested: such a leaf inside a list has a value a candidate.
        """
        return tuple(
            group
            for index, footer in enumerate(self.footers)
            for group in _row_groups(index, footer, nested, leaves)
        )

    def refuse_lacking_files(self, wanted: Sequence[str]) -> None:
        """Raise `InputError` for a file without a column that a run cannot do without.

        Columns that pass through may be missing from some files; those that are scored may not.
        """
        for (file, found), fixed in zip(self.schemas, self.partitions):
            missing = [n for n in wanted if n not in found.names and n not in dict(fixed)]
            if missing:
                raise InputError(
                    f"The column {', '.join(missing)} is missing in {file}, other files have it.",
                    "Write all files with these columns, or leave that file out.",
                )


def list_tables(paths: Sequence[str], access: StorageConfig = ENVIRONMENT) -> Listing:
    """List files, read every footer and unify the schemas.

    Raises `InputError` naming the file and column for a file that is not Parquet, and for schemas
    that do not unify.
    """
    files = storage.list_files(paths, access)
    with ThreadPoolExecutor(_FOOTER_THREADS) as pool:
        footers = list(pool.map(lambda file: read_footer(file, access), files))
    partition_schema, partitions = _partitions([file.folders for file in files])
    schemas = [(f.url, footer.schema.to_arrow_schema()) for f, footer in zip(files, footers)]
    table_schema = schema.unify(schemas)
    for field in partition_schema:
        if field.name in table_schema.names:
            partitions = [{k: v for k, v in p.items() if k != field.name} for p in partitions]
        else:
            table_schema = table_schema.append(field)
    return Listing(
        files=tuple(files),
        footers=tuple(footers),
        schemas=tuple(schemas),
        partitions=tuple(tuple(p.items()) for p in partitions),
        table_schema=table_schema,
    )


def read_footer(file: StoredFile, access: StorageConfig) -> pq.FileMetaData:
    """What a Parquet file says of itself.

    Raises `InputError` naming the file when it is not Parquet, encrypted, or cannot be read.
    """
    try:
        with storage.open_input(file.url, access, file.size) as handle:
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


def _row_groups(
    file: int, footer: pq.FileMetaData, nested: bool, leaves: frozenset[str]
) -> Iterator[RowGroup]:
    first_row = 0
    for index in range(footer.num_row_groups):
        group = _row_group(file, index, footer.row_group(index), nested, leaves, first_row)
        first_row += group.rows
        yield group


def _row_group(
    file: int,
    index: int,
    group: pq.RowGroupMetaData,
    nested: bool,
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
            if nested and path[-1] in leaves and len(path) > 1:
                # A leaf of a list counts one value a candidate (and one for an empty list).
                pairs = max(pairs, column.num_values)
    total = group.total_byte_size
    return RowGroup(
        file, index, group.num_rows, pairs, text_bytes, total, first_row, tuple(repeating)
    )
