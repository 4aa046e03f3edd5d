"""The demo's reranking problem: its questions, their labelled answers, BM25's candidates."""

from __future__ import annotations

import csv
import re
from functools import cache
from importlib import resources

import bm25s
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rankmill.demo.collection import build_collection

DEPTH = 50  # candidates a question

_CAMEL = re.compile(r"(?<=[a-z])(?=[A-Z])")
_ENDINGS = ("ations", "ation", "ings", "ing", "ies", "ied", "ers", "es", "ed", "er", "s", "e", "y")

CANDIDATES_SCHEMA = pa.schema(
    [
        ("query_id", pa.string()),
        ("query", pa.string()),
        ("doc_id", pa.string()),
        ("title", pa.string()),
        ("text", pa.string()),
        ("bm25_score", pa.float32()),
        ("bm25_rank", pa.int32()),
    ]
)
QRELS_SCHEMA = pa.schema(
    [("query_id", pa.string()), ("doc_id", pa.string()), ("relevance", pa.int32())]
)


def read_questions() -> tuple[pa.Table, pa.Table]:
    """Read the demo's questions and their labels.

    Returns `queries` (`query_id`, `query`: strings) and `qrels` with `QRELS_SCHEMA`: a row an
    answer, relevance 2 for a direct answer and 1 for one that helps. Raises ValueError naming the
    line where a label is not `doc_id=1` or `doc_id=2`.
    """
    queries: list[dict[str, str]] = []
    qrels: list[dict[str, str | int]] = []
    source = resources.files("rankmill.demo").joinpath("questions.tsv")
    with source.open("r", encoding="utf-8") as lines:
        rows = csv.DictReader(lines, delimiter="\t", quoting=csv.QUOTE_NONE)
        for number, row in enumerate(rows, start=2):
            queries.append({"query_id": row["query_id"], "query": row["query"]})
            for label in row["relevant"].split():
                doc_id, _, grade = label.partition("=")
                if not doc_id or grade not in {"1", "2"}:
                    raise ValueError(
                        f"questions.tsv line {number}: expected labels like str.join=2 with grade"
                        f" 1 or 2, found {label!r}"
                    )
                qrels.append(
                    {"query_id": row["query_id"], "doc_id": doc_id, "relevance": int(grade)}
                )
    schema = pa.schema([("query_id", pa.string()), ("query", pa.string())])
    return (
        pa.Table.from_pylist(queries, schema=schema),
        pa.Table.from_pylist(qrels, schema=QRELS_SCHEMA),
    )


def build_demo(depth: int = DEPTH, questions: int | None = None) -> tuple[pa.Table, pa.Table]:
    """Build the demo's candidate table and its labels from this interpreter's standard library.

    `questions` takes so many of them, spread evenly over the file; None takes all.

    Returns `candidates` with `CANDIDATES_SCHEMA` (the pairs layout: at most `depth` rows a
    question, in BM25's order, `bm25_rank` from 1; documents that share no word with the question
    are left out) and `qrels` with `QRELS_SCHEMA`. Deterministic for one interpreter.

    Raises RuntimeError where docstrings are stripped (see `build_collection`).
    """
    documents = build_collection()
    queries, qrels = read_questions()
    if questions is not None and questions < queries.num_rows:
        chosen = np.arange(questions) * queries.num_rows // questions
        queries = queries.take(pa.array(chosen))
        qrels = qrels.filter(pc.is_in(qrels["query_id"], value_set=queries["query_id"]))
    return retrieve(documents, queries, depth), qrels


def retrieve(documents: pa.Table, queries: pa.Table, depth: int) -> pa.Table:
    """The `depth` best documents of each query by BM25 (Lucene's variant, k1 1.5, b 0.75).

    `documents` has `doc_id`, `title`, `text`; `queries` has `query_id`, `query`. Returns a table
    with `CANDIDATES_SCHEMA`, queries in input order, ties in document order.
    """
    titles, texts = documents["title"].to_pylist(), documents["text"].to_pylist()
    corpus = [f"{title} {text}" for title, text in zip(titles, texts, strict=True)]
    index = bm25s.BM25(method="lucene", k1=1.5, b=0.75)
    index.index(_tokenize(corpus), show_progress=False)

    tables: list[pa.Table] = []
    for query_id, query in zip(
        queries["query_id"].to_pylist(), queries["query"].to_pylist(), strict=True
    ):
        scores = np.asarray(index.get_scores(_tokenize([query])[0]), dtype=np.float32)
        best = np.argsort(-scores, kind="stable")[:depth]
        best = best[scores[best] > 0]
        rows = documents.take(pa.array(best))
        columns = {
            "query_id": pa.array([query_id] * len(best), pa.string()),
            "query": pa.array([query] * len(best), pa.string()),
            "doc_id": rows["doc_id"],
            "title": rows["title"],
            "text": rows["text"],
            "bm25_score": pa.array(scores[best]),
            "bm25_rank": pa.array(np.arange(1, len(best) + 1, dtype=np.int32)),
        }
        tables.append(pa.table(columns, schema=CANDIDATES_SCHEMA))
    return pa.concat_tables(tables, promote_options="none").combine_chunks()


def _tokenize(texts: list[str]) -> list[list[str]]:
    """Stemmed lower-cased words without English stop words.

    Identifiers are parted into their words first: "read text" finds both `read_text` and
    `ReadText`.
    """
    spaced = [_CAMEL.sub(" ", text.replace("_", " ")) for text in texts]
    tokens = bm25s.tokenize(spaced, stopwords="en", return_ids=False, show_progress=False)
    return [[_stem(word) for word in words] for words in tokens]


@cache
def _stem(word: str) -> str:
    """Cut a common English ending, as far as at least three letters stay.

    Enough for plurals and verb forms ("copies", "copied", "copying" meet as "cop"), and free of a
    dependency for a demo.
    """
    for ending in _ENDINGS:
        if word.endswith(ending) and len(word) - len(ending) >= 3:
            return word[: -len(ending)]
    return word
