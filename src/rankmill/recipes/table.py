"""Candidate lists, and how they are written: the layout `pairs`, and judgements beside it."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from rankmill.errors import InputError, OutputError

CANDIDATES = "candidates.parquet"
QRELS = "qrels.parquet"
_FIRST_STAGE = pa.schema([("first_stage_score", pa.float32()), ("first_stage_rank", pa.int32())])
_PAIRS = pa.schema([(name, pa.string()) for name in ("query_id", "query", "doc_id")])
_PASSAGE = pa.schema([("title", pa.string()), ("text", pa.string())])
_JUDGEMENTS = pa.schema(
    [("query_id", pa.string()), ("doc_id", pa.string()), ("relevance", pa.int32())]
)
# Rows of a row group: a run reads them one group at a time.
_GROUP = 4_096


class Candidate(NamedTuple):
    """A document of a list. `score` is the first stage's; None where lists come without an order.

    An empty title is None: columns that are joined leave it out, and put no space for it.
    """

    doc_id: str
    title: str | None
    text: str
    score: float | None = None


class CandidateList(NamedTuple):
    """A query, its candidates in the first stage's order, and its judgements by document."""

    query_id: str
    query: str
    candidates: Sequence[Candidate]
    relevance: Mapping[str, int]


@dataclass(frozen=True)
class Prepared:
    """What was written. `relevant_found` of the `relevant` documents are among the candidates.

    Nothing that reorders the candidates finds the others.
    """

    candidates: str
    qrels: str
    queries: int
    pairs: int
    relevant: int
    relevant_found: int


def without_order(query_id: str, candidates: Iterable[Candidate]) -> list[Candidate]:
    """Candidates by a hash of query and document.

    Published lists may put what is relevant first. Equal scores keep the order of the input, so
    that order must not know the answer.
    """

    def key(candidate: Candidate) -> bytes:
        return hashlib.blake2b(f"{query_id}\0{candidate.doc_id}".encode(), digest_size=16).digest()

    return sorted(candidates, key=key)


def schema_of(*, ordered: bool) -> pa.Schema:
    """The columns of the candidates; ordered: the lists have a first stage."""
    return pa.unify_schemas([_PAIRS, *([_FIRST_STAGE] if ordered else []), _PASSAGE])


def write(lists: Iterable[CandidateList], output: Path, *, ordered: bool) -> Prepared:
    """Write lists, one at a time, as OUTPUT/candidates.parquet and OUTPUT/qrels.parquet.

    ordered: the lists have a first stage; its score and rank (from 1) are written beside each
    candidate. Files of these names are replaced when all is read, and left as they are if that
    fails. Raises `InputError` where no query has a candidate, or one has a document twice;
    `OutputError` where the folder cannot be written.
    """
    names = (output / CANDIDATES, output / QRELS)
    unfinished = [path.with_name(f".{path.name}.unfinished") for path in names]
    schema = schema_of(ordered=ordered)
    try:
        output.mkdir(parents=True, exist_ok=True)
        with ExitStack() as stack:
            for path in unfinished:
                stack.callback(path.unlink, missing_ok=True)
            with (
                pq.ParquetWriter(unfinished[0], schema, compression="zstd") as pairs,
                pq.ParquetWriter(unfinished[1], _JUDGEMENTS) as judgements,
            ):
                counts = _write(lists, pairs, judgements)
            for path, name in zip(unfinished, names):
                os.replace(path, name)
    except OSError as error:
        why = error.strerror or type(error).__name__
        raise OutputError(f"{output} cannot be written: {why}.", "Check the folder.") from None
    return Prepared(str(names[0]), str(names[1]), *counts)


def _write(
    lists: Iterable[CandidateList], pairs: pq.ParquetWriter, judgements: pq.ParquetWriter
) -> tuple[int, int, int, int]:
    """Counts: queries, pairs, relevant documents, and those of them among the candidates."""
    queries = written = relevant = found = 0
    rows: list[dict[str, object]] = []
    judged: list[dict[str, object]] = []
    for one in lists:
        ids = {candidate.doc_id for candidate in one.candidates}
        if len(ids) < len(one.candidates):
            raise InputError(f"Query {one.query_id} has a document twice among its candidates.")
        good = {doc_id for doc_id, grade in one.relevance.items() if grade > 0}
        queries, written = queries + 1, written + len(ids)
        relevant, found = relevant + len(good), found + len(good & ids)
        judged += [
            {"query_id": one.query_id, "doc_id": doc_id, "relevance": grade}
            for doc_id, grade in one.relevance.items()
        ]
        rows += _rows(one)
        if len(rows) >= _GROUP:
            pairs.write_table(pa.Table.from_pylist(rows, schema=pairs.schema))
            judgements.write_table(pa.Table.from_pylist(judged, schema=judgements.schema))
            rows, judged = [], []
    if not written:
        raise InputError(f"None of the {queries} queries has a candidate.", "Check the source.")
    pairs.write_table(pa.Table.from_pylist(rows, schema=pairs.schema))
    judgements.write_table(pa.Table.from_pylist(judged, schema=judgements.schema))
    return queries, written, relevant, found


def _rows(one: CandidateList) -> list[dict[str, object]]:
    return [
        {
            "query_id": one.query_id,
            "query": one.query,
            "doc_id": candidate.doc_id,
            "first_stage_score": candidate.score,
            "first_stage_rank": rank,
            "title": candidate.title,
            "text": candidate.text,
        }
        for rank, candidate in enumerate(one.candidates, start=1)
    ]
