"""Judgements: which documents answer which query, as Parquet, TREC or BEIR files have them."""

from __future__ import annotations

import contextlib
import gzip
import re
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from rankmill import schema, storage
from rankmill.errors import InputError
from rankmill.storage_settings import ENVIRONMENT, StorageConfig

Ints = npt.NDArray[np.int64]
TableSource: TypeAlias = pd.DataFrame | pa.Table | str | Path | Sequence[str | Path]

# trec_eval fills an array as long as the highest relevance: 10^8 took 1.3 s, 2^31 45 s.
_HIGHEST_RELEVANCE = 1_000_000
_COLUMNS = ["query_id", "doc_id", "relevance"]
# BEIR's own, also where its judgements were converted to Parquet.
_BEIR_COLUMNS = ["query-id", "corpus-id", "score"]
_GZIP = b"\x1f\x8b"
# Of an id, an error shows so many characters.
_SHOWN = 4


class Judgements(NamedTuple):
    """One judgement a (query, document); all but `queries` parallel."""

    queries: pa.Array  # unique ids
    query: Ints  # numbers into `queries`
    document: pa.Array  # ids
    grade: Ints  # from 0


def read_judgements(source: TableSource, access: StorageConfig = ENVIRONMENT) -> Judgements:
    """The judgements of all queries that have any, also if it is only of relevance 0.

    source: a frame, a table or Parquet with `query_id, doc_id, relevance` (or BEIR's `query-id,
    corpus-id, score`), TREC qrels or BEIR TSV, also compressed by gzip.

    Raises `InputError` for what cannot be read, is empty, names no relevant document at all, or
    judges a pair twice differently.
    """
    table = read_qrels(source, access)
    query_ids, doc_ids = (ids_of(table, name, "table of qrels") for name in ("query_id", "doc_id"))
    if query_ids.null_count or doc_ids.null_count:
        raise InputError("The qrels hold a null query_id or doc_id.", "Drop such rows.")
    grade = _relevance(table.column("relevance"))
    if not (grade > 0).any():
        raise InputError(f"None of the {len(table)} qrels has a relevance above 0.")
    queries = pc.unique(query_ids)
    query, (document, _) = numbers(query_ids, queries), number_documents(doc_ids, doc_ids)
    frame = pd.DataFrame({"query": query, "document": document, "grade": grade})
    frame = frame.drop_duplicates()
    rows, twice = frame.index.to_numpy(), frame.index[frame.duplicated(["query", "document"])]
    if len(twice):
        one, of = doc_ids[twice[0]], query_ids[twice[0]]
        raise InputError(f"The qrels judge document {one} of query {of} twice and differently.")
    return Judgements(queries, query[rows], doc_ids.take(pa.array(rows)), grade[rows])


def read_qrels(source: TableSource, access: StorageConfig = ENVIRONMENT) -> pa.Table:
    """Judgements as query_id, doc_id, relevance, whatever they come as, as `read_judgements`."""
    if not isinstance(source, pd.DataFrame | pa.Table):
        urls = [file.url for file in storage.list_files(_paths(source), access)]
        with storage.reaching(urls[0]), storage.open_input(urls[0], access) as file:
            is_parquet = file.read(4) == b"PAR1"
        if not is_parquet:
            found = [judgement for url in urls for judgement in _text_judgements(url, access)]
            return pa.table([[row[at] for row in found] for at in range(3)], names=_COLUMNS)
    names = column_names(source, access)
    if set(_BEIR_COLUMNS) <= set(names) and not set(_COLUMNS) <= set(names):
        beir = read_columns(source, _BEIR_COLUMNS, names, "table of qrels", access)
        return beir.rename_columns(_COLUMNS)
    return read_columns(source, _COLUMNS, names, "table of qrels", access)


def _text_judgements(url: str, access: StorageConfig) -> Iterator[tuple[str, str, int]]:
    """The judgements of a TREC or BEIR file, told apart by the first line."""
    with storage.reaching(url), storage.open_input(url, access) as file:
        content = file.read()
    if content.startswith(_GZIP):
        try:
            content = gzip.decompress(content)
        except (EOFError, OSError, zlib.error) as error:
            raise InputError(
                f"The qrels {url} are damaged: {str(error).rstrip('.')}.", "Fetch the file again."
            ) from None
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise InputError(f"The qrels {url} are neither Parquet nor UTF-8 text.") from None
    lines = [(n, line) for n, line in enumerate(text.split("\n"), 1) if line.strip()]
    # BEIR ids may contain spaces, so that format is split at tabs alone.
    tabbed = bool(lines) and lines[0][1].count("\t") == 2
    ids = r"([^\t]+)\t([^\t]+)\t" if tabbed else r"(\S+)\s+\S+\s+(\S+)\s+"
    for number, line in lines:
        match = re.fullmatch(ids + r"(-?\d{1,18})", line.strip(), re.ASCII)
        if match is not None:
            yield match[1], match[2], int(match[3])
        elif not (tabbed and number == lines[0][0]):  # BEIR's header
            raise InputError(
                f"Line {number} of the qrels {url} is not a judgement.",
                "Write: query, iteration, document, integer relevance; or, between tabs under a "
                "header, query, document, integer relevance.",
            )


def _relevance(column: pa.ChunkedArray) -> Ints:
    try:
        grade = pc.cast(column, pa.int64())
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        grade = pa.nulls(len(column), pa.int64())
    if grade.null_count or (pc.max(grade).as_py() or 0) > _HIGHEST_RELEVANCE:
        raise InputError(
            f"relevance ({column.type}) of the qrels must be integers up to {_HIGHEST_RELEVANCE}."
        )
    # Some collections mark spam with -2; to every measure here that is not relevant.
    return np.maximum(np.asarray(grade.to_numpy(), np.int64), 0)


def ids_of(table: pa.Table, column: str, where: str) -> pa.Array:
    """A column of ids as large_string."""
    ids = table.column(column)
    # pandas turns a column of integers into floats as soon as one is missing.
    with contextlib.suppress(pa.ArrowInvalid):
        ids = pc.cast(ids, pa.int64()) if pa.types.is_floating(ids.type) else ids
    if not (schema.is_id(ids.type) or pa.types.is_null(ids.type)):
        raise InputError(f"{column} of the {where} is {ids.type}; ids are text or integers.")
    ids = pc.cast(pc.cast(ids, schema.value_type(ids.type)), pa.large_string())
    return pa.concat_arrays(ids.chunks) if ids.num_chunks else pa.array([], pa.large_string())


def numbers(ids: pa.Array, known: pa.Array) -> Ints:
    """The position of each id among the known ones, -1 for the others and null."""
    return np.asarray(pc.fill_null(pc.index_in(ids, known), -1), np.int64)


def number_documents(ranked: pa.Array, judged: pa.Array) -> tuple[Ints, Ints]:
    """Numbers for document ids, the same in both; each null gets a number of its own."""
    known = pc.unique(pa.concat_arrays([ranked, judged]).drop_null())
    found = numbers(ranked, known)
    found[found < 0] = len(known) + np.arange((found < 0).sum())
    return found, numbers(judged, known)


def match_pairs(wanted: tuple[pa.Array, pa.Array], known: tuple[pa.Array, pa.Array]) -> Ints:
    """The position of each wanted (query, document) among the known ones, -1 where it is not.

    Of a known pair that is repeated, the first counts. All four are ids as `ids_of` gives them,
    the two of a side parallel; a null matches nothing.
    """
    queries, documents = (pc.unique(ids.drop_null()) for ids in known)

    def key(pairs: tuple[pa.Array, pa.Array]) -> Ints:
        query, document = numbers(pairs[0], queries), numbers(pairs[1], documents)
        return np.where((query < 0) | (document < 0), -1, query * len(documents) + document)

    sought = key(wanted)
    return np.where(sought < 0, -1, numbers(pa.array(sought), pa.array(key(known))))


def hash_ids(ids: pa.Array) -> npt.NDArray[np.uint64]:
    """uint64 [ids], equal for equal ids in every process; a null's is that of no text.

    ids: as `ids_of` gives them.
    """
    encoded = ids.dictionary_encode()
    texts = encoded.dictionary.to_numpy(zero_copy_only=False).astype(object)
    found = np.append(pd.util.hash_array(texts, categorize=False), np.uint64(0))
    return found[np.asarray(pc.fill_null(encoded.indices, -1), np.int64)]


def masked(ids: pa.Array) -> str:
    """What the first of some ids look like, without showing a whole text where that is the id."""
    if not len(ids):
        return "nothing"
    first = str(ids[0].as_py())
    if len(first) <= _SHOWN:
        return repr(first)
    return f"{first[:_SHOWN] + '…'!r} ({len(first)} characters)"


def column_names(source: TableSource, access: StorageConfig = ENVIRONMENT) -> list[str]:
    """The columns of a frame, a table, or the first of some Parquet files."""
    if isinstance(source, pd.DataFrame):
        return [str(name) for name in source.columns]
    if isinstance(source, pa.Table):
        return list(source.column_names)
    first = storage.list_files(_paths(source), access)[0].url
    with storage.reaching(first), storage.open_input(first, access) as file:
        try:
            return list(pq.read_schema(file).names)
        except pa.ArrowInvalid:
            raise InputError(f"{first} is not a Parquet file.") from None


def read_columns(
    source: TableSource,
    columns: list[str],
    names: list[str],
    where: str,
    access: StorageConfig = ENVIRONMENT,
) -> pa.Table:
    """Some columns as a table. Raises `InputError` naming `where` and a column that is missing."""
    columns = list(dict.fromkeys(columns))
    missing = [column for column in columns if column not in names]
    if missing:
        raise InputError(
            f"The {where} has no column {', '.join(missing)}.",
            f"Its columns are {', '.join(names)}.",
        )
    if isinstance(source, pd.DataFrame):
        return pa.table({column: _from_pandas(source[column]) for column in columns})
    if isinstance(source, pa.Table):
        return source.select(columns)
    return storage.read_table(_paths(source), columns, access)


def stream_columns(
    source: TableSource,
    columns: list[str],
    names: list[str],
    where: str,
    access: StorageConfig = ENVIRONMENT,
) -> Iterator[pa.Table]:
    """The rows of `read_columns`, in its order, of files some at a time."""
    columns = list(dict.fromkeys(columns))
    if isinstance(source, pd.DataFrame | pa.Table) or not set(columns) <= set(names):
        yield read_columns(source, columns, names, where, access)
        return
    for batch in storage.read_batches(_paths(source), columns, access):
        yield pa.Table.from_batches([batch])


def _from_pandas(series: pd.Series) -> pa.Array:
    try:
        return pa.array(series, from_pandas=True)
    except (pa.ArrowInvalid, pa.ArrowTypeError):
        # An object column of both 1 and "1", which pandas allows and Arrow does not.
        return pa.array(series.map(str, na_action="ignore"), from_pandas=True)


def _paths(source: str | Path | Sequence[str | Path]) -> list[str]:
    return [str(source)] if isinstance(source, str | Path) else [str(path) for path in source]
