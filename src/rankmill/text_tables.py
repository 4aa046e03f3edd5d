"""The `ids` layout: candidates without texts, and the tables that hold the texts by id.

Only footers and a few sampled rows are read here. What a pair weighs is the mean of both tables,
so that shards are a pure function of the input however the texts are brought to them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as pat

from rankmill import rows, schema
from rankmill.config import InputConfig
from rankmill.errors import InputError
from rankmill.listing import Listing, RowGroup, list_tables
from rankmill.source import Role, Source, Table, TextTable, open_source, refuse_unfit, table_of
from rankmill.storage_settings import ENVIRONMENT, StorageConfig

# Columns of repeating texts are measured on the first rows of some row groups.
_SAMPLED_GROUPS = 8
_SAMPLED_ROWS = 1024


def open_input(config: InputConfig, access: StorageConfig = ENVIRONMENT) -> Source:
    """Open an input of any layout. Raises `InputError` for what cannot be used."""
    return open_ids(config, access) if config.layout == "ids" else open_source(config, access)


def open_ids(config: InputConfig, access: StorageConfig = ENVIRONMENT) -> Source:
    """Open candidates, queries and documents.

    Raises `InputError` naming file and column as `open_source` does, and for ids of unequal types
    or a text column that stands in several tables.
    """
    columns = config.columns
    assert columns.query_id is not None, "the configuration wants it for this layout"
    assert columns.doc_id is not None, "the configuration wants it for this layout"
    candidates = list_tables(config.paths, access)
    wanted = [_id("query_id", columns.query_id), _id("doc_id", columns.doc_id)]
    if columns.instruction is not None:
        wanted.append(_text("instruction", columns.instruction))
    refuse_unfit(wanted, candidates.table_schema, candidates.where)
    candidates.refuse_lacking_files([name for _, name, *_ in wanted])

    paths = config.all_paths
    texts = [_text("query", columns.query)]
    queries = _open("queries", paths, wanted[0], texts, candidates, access)
    texts = [_text("document", name) for name in columns.document_parts]
    documents = _open("documents", paths, wanted[1], texts, candidates, access)

    fields = list(candidates.table_schema)
    for table in (queries, documents):
        for name in table.texts:
            if name in [field.name for field in fields]:
                raise InputError(
                    f"The column {name} of input.{table.name} stands in the candidates or in the "
                    "queries, too.",
                    "Rename or drop one of them; with layout ids each text has one home.",
                )
            stored = table.table_schema.field(name).type
            fields.append(pa.field(name, schema.value_type(stored)))
    bytes_a_pair = queries.mean_bytes + documents.mean_bytes
    return Source(
        **table_of(candidates, _weighed(candidates, bytes_a_pair), access),
        pair_schema=pa.schema(fields),
        layout="ids",
        columns=columns,
        has_query_id=True,
        texts=(queries, documents),
    )


def _id(role: str, name: str) -> Role:
    return role, name, schema.is_id, "text or integers"


def _text(role: str, name: str) -> Role:
    return role, name, schema.is_text, "text"


def _weighed(candidates: Listing, bytes_a_pair: float) -> tuple[RowGroup, ...]:
    groups = candidates.row_groups(frozenset())
    texts = [int(group.pairs * bytes_a_pair) for group in groups]
    return tuple(
        replace(group, text_bytes=text, total_bytes=group.total_bytes + text)
        for group, text in zip(groups, texts)
    )


def _open(
    name: str,
    paths: dict[str, list[str]],
    key: Role,
    texts: list[Role],
    candidates: Listing,
    access: StorageConfig,
) -> TextTable:
    listing = list_tables(paths[name], access)
    refuse_unfit([key, *texts], listing.table_schema, listing.where)
    id_column, text_columns = key[1], [name for _, name, *_ in texts]
    listing.refuse_lacking_files([id_column, *text_columns])
    types = [one.table_schema.field(id_column).type for one in (candidates, listing)]
    if schema.is_text(types[0]) != schema.is_text(types[1]) and not any(map(pat.is_null, types)):
        raise InputError(
            f"The column {id_column} is {types[0]} in {candidates.where} but {types[1]} in "
            f"{listing.where}.",
            "Ids are joined as they are: write both tables with text, or both with integers.",
        )
    row_groups = listing.row_groups(frozenset(text_columns))
    table = Table(**table_of(listing, row_groups, access))
    return TextTable(
        **vars(table),
        name=name,
        key=id_column,
        texts=tuple(text_columns),
        mean_bytes=_mean_bytes(table, text_columns),
    )


def _mean_bytes(table: Table, texts: Sequence[str]) -> float:
    """Bytes of UTF-8 that a row's texts have, by the footers; repeating ones are sampled."""
    rows_in_all = sum(group.rows for group in table.row_groups)
    if not rows_in_all:
        return 0.0
    known = sum(group.text_bytes for group in table.row_groups)
    repeated = 0.0
    for name in texts:
        groups = [group for group in table.row_groups if name in group.repeating]
        if groups:
            sampled = groups[:: -(-len(groups) // _SAMPLED_GROUPS)]
            means = [_sampled_mean(table, group, name) for group in sampled]
            repeated += sum(means) / len(means) * sum(group.rows for group in groups)
    return (known + repeated) / rows_in_all


def _sampled_mean(table: Table, group: RowGroup, name: str) -> float:
    for first in table.batches(group, [name], rows=_SAMPLED_ROWS):
        lengths = pc.sum(pc.binary_length(rows.plain(first.column(name)))).as_py()
        return float(lengths or 0) / max(first.num_rows, 1)
    return 0.0
