"""The candidate lists of a part, as the arrays that mining and examples work on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rankmill import rows
from rankmill.errors import ConfigError, InputError
from rankmill.export.agreement import OtherRun, scores_of
from rankmill.export.mining import Floats, RankedRows
from rankmill.export.ranked import Ranked
from rankmill.export.recipe import ExportConfig
from rankmill.qrels import Ints, Judgements, ids_of, match_pairs, number_documents, numbers
from rankmill.rank import Float32, sigmoid


@dataclass(frozen=True, eq=False)
class Lists:
    """Whole candidate lists with their texts; all parallel, [rows].

    query, document: large_string. score: float32, the raw logits of the chosen model and stage,
    NaN where there is none. positives_missing: relevant by judgement, but not in their list.
    """

    rows: RankedRows
    query: pa.Array
    document: pa.Array
    score: Float32
    positives_missing: int


def score_columns(ranked: Ranked, config: ExportConfig) -> list[str]:
    """The columns of scores: of the model whose scores count, then of those that must agree."""
    chosen = "score" if config.model is None else f"score_{config.model}"
    agreeing = [f"score_{name}" for name in config.agree_models]
    return [ranked.prefix + name for name in (chosen, *agreeing)]


def needed_columns(ranked: Ranked, config: ExportConfig, by_id: bool) -> list[str]:
    """The columns of a part that an export reads. by_id: rows are looked up by document id.

    Raises `InputError` naming a column that the run lacks, `ConfigError` when it has scores of
    several stages and none was chosen.
    """
    names = [ranked.query_key, f"{ranked.prefix}rank", *score_columns(ranked, config)]
    ranked.require(names, "an export")
    stage = f"{ranked.prefix}stage"
    if config.stage is not None:
        ranked.require([stage], "stage")
        names.append(stage)
    elif stage in ranked.schema.names and config.format != "trec":
        raise ConfigError(
            f"{ranked.url} holds scores of several stages, which do not compare.",
            "Choose one with stage, for example 1.",
        )
    if config.format != "trec":
        texts = [ranked.columns.query, *ranked.columns.document_parts]
        ranked.require(texts, f"the format {config.format}")
        names += texts
    if by_id or config.format == "trec":
        names.append(doc_id_column(ranked))
    elif (doc_id := ranked.columns.doc_id) is not None and doc_id in ranked.schema.names:
        names.append(doc_id)
    return list(dict.fromkeys(names))


def doc_id_column(ranked: Ranked) -> str:
    """The column of document ids. Raises `InputError` when the run has none."""
    if ranked.columns.doc_id is None:
        raise InputError(
            f"{ranked.url} has no document ids (input.columns.doc_id is null).",
            "Judgements, other runs and TREC files need them: rank again with ids.",
        )
    ranked.require([ranked.columns.doc_id], "finding rows by id")
    return ranked.columns.doc_id


def refuse_unlike(ranked: Ranked, other: Ranked) -> None:
    """Raise `InputError` when another run's rows cannot be found by query and document."""
    other.require([doc_id_column(other), f"{other.prefix}score"], "agree_runs")
    if f"{other.prefix}stage" in other.schema.names:
        raise InputError(
            f"{other.url} holds scores of several stages, which do not compare.",
            "Agree with a run of one model.",
        )
    by_text = [run.query_key == run.columns.query for run in (ranked, other)]
    if by_text[0] != by_text[1]:
        raise InputError(
            f"{ranked.url} tells queries apart by {ranked.query_key}, {other.url} by "
            f"{other.query_key}.",
            "Compare runs that both have query ids, or both have none.",
        )


def list_numbers(table: pa.Table, ranked: Ranked) -> Ints:
    """int64 [rows]: the number of each row's list, from 0. A list begins where the rank is 1."""
    begins = table.column(f"{ranked.prefix}rank").to_numpy() == 1
    if len(begins) and not begins[0]:
        raise InputError(f"A part of {ranked.url} does not begin with rank 1.", "Rank again.")
    return np.cumsum(begins) - 1


def read_lists(
    table: pa.Table,
    ranked: Ranked,
    config: ExportConfig,
    judged: Judgements | None,
    others: Sequence[OtherRun],
) -> Lists:
    """Make arrays of a part, with what judgements and other runs say about its rows."""
    numbers_of_lists = list_numbers(table, ranked)
    query_id = ids_of(table, ranked.query_key, f"run {ranked.url}")
    named = ranked.columns.doc_id
    if named is not None and named in table.column_names:
        doc_id = ids_of(table, named, f"run {ranked.url}")
    else:
        doc_id = pa.nulls(len(query_id), pa.large_string())
    raw = [raw_scores(table, name) for name in score_columns(ranked, config)]
    if config.stage is not None:
        stage = table.column(f"{ranked.prefix}stage").to_numpy()
        raw[0] = np.where(stage == config.stage, raw[0], np.float32(np.nan))
    raw += [scores_of(other, query_id, doc_id) for other in others]
    query = _text(table, ranked.columns.query)
    document = rows.joined([_text(table, name) for name in ranked.columns.document_parts])
    grade, missing = None, 0
    if judged is not None:
        grade, missing = _judge(query_id, doc_id, judged)
    begins = np.flatnonzero(np.diff(numbers_of_lists, prepend=-1))
    return Lists(
        rows=RankedRows(
            lists=numbers_of_lists,
            keys=query_id.take(pa.array(begins)).to_pylist(),
            rank=table.column(f"{ranked.prefix}rank").to_numpy().astype(np.int64),
            scores=tuple(_on_scale(score, config) for score in raw),
            query_text=_codes(query),
            text=_codes(document),
            document=number_documents(doc_id, doc_id)[0],
            grade=grade,
        ),
        query=query,
        document=document,
        score=raw[0],
        positives_missing=missing,
    )


def raw_scores(table: pa.Table, name: str) -> Float32:
    """float32 [rows]: a column of scores, NaN where it is null."""
    column = table.column(name).cast(pa.float32())
    return np.asarray(column.to_numpy(zero_copy_only=False), np.float32)


def _on_scale(raw: Float32, config: ExportConfig) -> Floats:
    return (sigmoid(raw) if config.bounds_on == "sigmoid" else raw).astype(np.float64)


def _text(table: pa.Table, name: str) -> pa.Array:
    return rows.plain(table.column(name)).cast(pa.large_string())


def _codes(texts: pa.Array) -> Ints:
    return pc.dictionary_encode(texts).indices.to_numpy(zero_copy_only=False).astype(np.int64)


def _judge(query_id: pa.Array, doc_id: pa.Array, judged: Judgements) -> tuple[Ints, int]:
    """int64 [rows], each row's grade; and how many relevant documents of these queries are not
    among the rows."""
    here = numbers(judged.queries, pc.unique(query_id)) >= 0
    of_these = np.flatnonzero(here[judged.query])
    known = (
        judged.queries.take(pa.array(judged.query[of_these])),
        judged.document.take(pa.array(of_these)),
    )
    grades = judged.grade[of_these]
    place = match_pairs((query_id, doc_id), known)
    # Place -1, "not judged", is the 0 at the end.
    grade = np.append(grades, 0)[place]
    missing = (grades > 0) & (match_pairs(known, (query_id, doc_id)) < 0)
    return grade, int(missing.sum())
