"""JaCWIR: Japanese questions about pages of the web, 1 right and 99 wrong ones each.

Layout, of hotchpotch/JaCWIR on the hub (its dataset card; its loader, evaluator/evaluator/
load_data.py of github.com/hotchpotch/JaCWIR): `eval/eval-*.parquet` with `query, positive,
negatives` (ids), and `collection/collection-*.parquet` with `doc_id, title, description` (513,107
pages). A question's id is `q_id##` and its positive's, as in the published judgements. The
evaluator scores `title + " " + description` and reports MAP@10 and hit rate@10.
"""

from __future__ import annotations

from collections.abc import Iterator

from rankmill.errors import InputError
from rankmill.recipes.documents import Document, Documents
from rankmill.recipes.files import find, ids_of, parquet_rows, text_of
from rankmill.recipes.table import Candidate, CandidateList, without_order


def read(source: str) -> Iterator[CandidateList]:
    """The lists, in no order; the collection is streamed.

    source: the folder that holds `eval` and `collection`. Raises `InputError`.
    """
    questions = find(source, "eval/eval-*.parquet", "eval-*.parquet")
    pages = find(source, "collection/collection-*.parquet", "collection-*.parquet")
    wanted = {doc_id for _, _, ids in _questions(questions) for doc_id in ids}
    with Documents(_pages(pages), wanted) as documents:
        for query_id, query, ids in _questions(questions):
            found = [Candidate(*document) for document in documents.take(ids)]
            yield CandidateList(
                query_id,
                query,
                without_order(query_id, found),
                {doc_id: int(doc_id == ids[0]) for doc_id in ids},
            )


def _questions(files: list[str]) -> Iterator[tuple[str, str, list[str]]]:
    """Id, text, and documents: the positive first."""
    seen: set[str] = set()
    for table, where in parquet_rows(files, ["query", "positive", "negatives"]):
        for row in table.to_pylist():
            ids = [text_of(row, "positive", where), *ids_of(row, "negatives", where)]
            if ids[0] in seen:
                raise InputError(f"{ids[0]} is the positive of two questions in {where}.")
            seen.add(ids[0])
            yield f"q_id##{ids[0]}", text_of(row, "query", where), ids


def _pages(files: list[str]) -> Iterator[Document]:
    for table, where in parquet_rows(files, ["doc_id", "title", "description"]):
        for row in table.to_pylist():
            # Of some pages there is no description: they are their title.
            yield Document(
                text_of(row, "doc_id", where), row["title"] or None, row["description"] or ""
            )
