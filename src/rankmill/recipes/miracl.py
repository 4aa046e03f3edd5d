"""MIRACL's Japanese part: questions over passages of Wikipedia, judged by people.

Layout (miracl/miracl and miracl/miracl-corpus on the hub, their loading scripts):
`miracl-v1.0-ja/topics/topics.miracl-v1.0-ja-{dev,train}.tsv` (id, question),
`miracl-v1.0-ja/qrels/qrels.miracl-v1.0-ja-{dev,train}.tsv` (TREC) and
`miracl-corpus-v1.0-ja/docs-*.jsonl.gz` with `docid, title, text` (6.95 million passages).

Without a run a question's candidates are its judged passages, which the loading script calls
`positive_passages` and `negative_passages`. The published figures of the Japanese rerankers do not
say which candidates they are over. Real first-stage candidates come from a run: Anserini's BM25
for one (docs/regressions/regressions-miracl-v1.0-ja.md of github.com/castorini/anserini).
"""

from __future__ import annotations

from collections.abc import Iterator

from rankmill.errors import InputError
from rankmill.recipes.documents import Document, Documents
from rankmill.recipes.files import find, find_one, json_lines, text_lines, text_of
from rankmill.recipes.first_stage import Ranking, read_run
from rankmill.recipes.judged import judgements_of
from rankmill.recipes.table import Candidate, CandidateList, without_order


def read(source: str, split: str, depth: int, run: str | None) -> Iterator[CandidateList]:
    """The judged questions' lists; the corpus is streamed.

    source: a folder that holds both data sets, however deep. run: a TREC run, of which the first
    `depth` are taken; without it the judged passages, in no order. Raises `InputError`.
    """
    topics = find_one(source, f"**/topics.miracl-v1.0-ja-{split}.tsv")
    qrels = find_one(source, f"**/qrels.miracl-v1.0-ja-{split}.tsv")
    corpus = find(source, "**/miracl-corpus-v1.0-ja/docs-*.jsonl.gz", "**/docs-*.jsonl.gz")
    judged = judgements_of(qrels)
    queries = _topics(topics)
    if run is None:
        candidates: dict[str, Ranking] = {
            query_id: [(doc_id, 0.0) for doc_id in grades] for query_id, grades in judged.items()
        }
    else:
        candidates = read_run(run, judged, depth)
    wanted = {doc_id for ranking in candidates.values() for doc_id, _ in ranking}
    with Documents(_passages(corpus), wanted) as documents:
        for query_id, grades in judged.items():
            if query_id not in queries:
                raise InputError(f"{topics} lacks the judged question {query_id}.")
            ranking = candidates.get(query_id, [])
            found = [
                Candidate(*document, score)
                for document, (_, score) in zip(documents.take([i for i, _ in ranking]), ranking)
            ]
            ordered = without_order(query_id, found) if run is None else found
            yield CandidateList(query_id, queries[query_id], ordered, grades)


def _topics(path: str) -> dict[str, str]:
    found = {}
    for line, where in text_lines([path]):
        query_id, tab, query = line.partition(b"\t")
        try:
            found[query_id.decode()] = query.decode()
        except UnicodeDecodeError:
            tab = b""
        if not tab:
            raise InputError(f"{where} is not an id, a tab and a question in UTF-8.")
    return found


def _passages(files: list[str]) -> Iterator[Document]:
    for row, where in json_lines(files):
        yield Document(
            text_of(row, "docid", where),
            text_of(row, "title", where) or None,
            text_of(row, "text", where),
        )
