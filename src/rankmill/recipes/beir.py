"""Any set of BEIR: queries over a collection, candidates by BM25 or from a run.

Layout (beir/datasets/data_loader.py of github.com/beir-cellar/beir): `corpus.jsonl` with `_id,
title, text`, `queries.jsonl` with `_id, text`, `qrels/{test,dev,train}.tsv` with `query-id,
corpus-id, score`. Only queries of the split's judgements count. As in its evaluation
(beir/retrieval/evaluation.py) a document with the query's own id is no candidate. nDCG@10.

BM25 takes some 40 bytes of memory a token; for the large sets (MS MARCO, HotpotQA) give a run.
"""

from __future__ import annotations

from collections.abc import Iterator

from rankmill.errors import InputError
from rankmill.recipes.documents import Document, Documents
from rankmill.recipes.files import find, json_lines, text_of
from rankmill.recipes.first_stage import rank
from rankmill.recipes.judged import judgements_of
from rankmill.recipes.table import Candidate, CandidateList


def read(source: str, split: str, depth: int, run: str | None) -> Iterator[CandidateList]:
    """Lists of at most `depth` documents in the first stage's order; the corpus is streamed.

    source: the set's folder; files may be gzipped. run: a TREC run; without it BM25 searches the
    collection by words. Raises `InputError`, `ConfigError` without bm25s.
    """
    corpus = find(source, "corpus.jsonl", "corpus.jsonl.gz")
    judged = judgements_of(find(source, f"qrels/{split}.tsv")[0])
    texts = {
        query_id: text_of(row, "text", where)
        for row, where in json_lines(find(source, "queries.jsonl", "queries.jsonl.gz"))
        if (query_id := text_of(row, "_id", where)) in judged
    }
    missing = [query_id for query_id in judged if query_id not in texts]
    if missing:
        raise InputError(
            f"The queries of {source} lack {len(missing)} judged ones, {missing[0]} the first."
        )
    queries = {query_id: texts[query_id] for query_id in judged}
    passages = ((each.doc_id, each.passage) for each in _corpus(corpus))
    # One more, for the query's own document that is taken out.
    rankings = rank(queries, passages, depth + 1, run)
    for query_id, ranking in rankings.items():
        rankings[query_id] = [row for row in ranking if row[0] != query_id][:depth]
    wanted = {doc_id for ranking in rankings.values() for doc_id, _ in ranking}
    with Documents(_corpus(corpus), wanted) as documents:
        for query_id, grades in judged.items():
            ranking = rankings.get(query_id, [])
            found = documents.take([doc_id for doc_id, _ in ranking])
            yield CandidateList(
                query_id,
                queries[query_id],
                [Candidate(*document, score) for document, (_, score) in zip(found, ranking)],
                grades,
            )


def _corpus(files: list[str]) -> Iterator[Document]:
    for row, where in json_lines(files):
        title = text_of(row, "title", where) if row.get("title") else None
        yield Document(text_of(row, "_id", where), title, text_of(row, "text", where))
