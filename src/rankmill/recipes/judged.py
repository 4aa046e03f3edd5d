"""Judgements as a benchmark publishes them, query by query."""

from __future__ import annotations

from rankmill.qrels import read_judgements


def judgements_of(path: str) -> dict[str, dict[str, int]]:
    """Relevance by query and document, in the file's order.

    path: what `rankmill evaluate` takes as qrels. Raises `InputError` as `read_judgements` does.
    """
    found = read_judgements(path)
    queries = found.queries.to_pylist()
    judged: dict[str, dict[str, int]] = {query_id: {} for query_id in queries}
    for query, doc_id, grade in zip(
        found.query.tolist(), found.document.to_pylist(), found.grade.tolist()
    ):
        judged[queries[query]][doc_id] = grade
    return judged
