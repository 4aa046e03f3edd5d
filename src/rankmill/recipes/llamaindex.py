"""LlamaIndex's retrieval evaluation: questions written from chunks of a document; hit rate, MRR.

Layout: the JSON that `EmbeddingQAFinetuneDataset.save_json` writes (llama_index/core/finetuning or
llama_index/finetuning/embeddings/common.py of github.com/run-llama/llama_index): `queries` (id to
text), `corpus` (id to text), `relevant_docs` (query id to ids). In the evaluation that published
figures follow (blog of LlamaIndex, "Boosting RAG: Picking the Best Embedding & Reranker models")
an embedding model finds the chunks and a reranker keeps 5. That first stage comes as a run; without
one BM25 stands in, and figures compare with each other only.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from rankmill.errors import InputError
from rankmill.recipes.files import find_one, ids_of, read_json, text_of
from rankmill.recipes.first_stage import rank
from rankmill.recipes.table import Candidate, CandidateList


def read(source: str, depth: int, run: str | None) -> Iterator[CandidateList]:
    """Lists of at most `depth` chunks in the first stage's order. The data set is in memory.

    source: the JSON file, or a folder with one. Raises `InputError`, `ConfigError` without bm25s.
    """
    path = find_one(source, "*.json")
    dataset = read_json(path)
    queries, corpus = _object(dataset, "queries", path), _object(dataset, "corpus", path)
    relevant = _object(dataset, "relevant_docs", path)
    texts = {doc_id: text_of(corpus, doc_id, f"corpus of {path}") for doc_id in corpus}
    asked = {query_id: text_of(queries, query_id, f"queries of {path}") for query_id in relevant}
    rankings = rank(asked, texts.items(), depth, run)
    for query_id in relevant:
        ranking = rankings.get(query_id, [])
        lost = [doc_id for doc_id, _ in ranking if doc_id not in texts]
        if lost:
            raise InputError(f"The corpus of {path} lacks {lost[0]}, which the run has.")
        yield CandidateList(
            query_id,
            asked[query_id],
            [Candidate(doc_id, None, texts[doc_id], score) for doc_id, score in ranking],
            dict.fromkeys(ids_of(relevant, query_id, f"relevant_docs of {path}"), 1),
        )


def _object(dataset: Mapping[str, object], name: str, path: str) -> dict[str, object]:
    found = dataset.get(name)
    if not isinstance(found, dict):
        raise InputError(
            f"{path} has no object {name}.",
            "Give the JSON that EmbeddingQAFinetuneDataset.save_json writes.",
        )
    return found
