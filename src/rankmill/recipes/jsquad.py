"""JSQuAD as a search for the paragraph that a question was written about.

Layout, of JGLUE (README.md of github.com/yahoojapan/JGLUE): `datasets/jsquad-v1.*/
{valid,train}-v1.*.json` in the form of SQuAD 1.1, `data` -> `paragraphs` -> `qas`, a paragraph's
`context` being its article's title, ` [SEP] ` and its text. Published reranking figures take 1
positive and 19 negatives and MAP@10; how their author chose the negatives is not published. Here
they are the 19 best other paragraphs by BM25 over pairs of characters.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from rankmill.errors import InputError
from rankmill.recipes.documents import Document
from rankmill.recipes.files import find_one, read_json, text_of
from rankmill.recipes.first_stage import Lexical, bigrams
from rankmill.recipes.table import Candidate, CandidateList

_SEPARATOR = " [SEP] "


def read(source: str, split: str, depth: int) -> Iterator[CandidateList]:
    """Lists of `depth` paragraphs in BM25's order, the right one always among them.

    The split (some MB) is in memory. source: the folder that holds `valid-v1.*.json` (there or two
    folders below), or that file. Raises `InputError`, `ConfigError` without bm25s.
    """
    name = f"{split}-v*.json"
    path = find_one(source, name, f"jsquad-v*/{name}", f"datasets/jsquad-v*/{name}")
    paragraphs: dict[str, Document] = {}  # by context: one that stands there twice is one
    questions: list[tuple[str, str, Document]] = []
    for number, context, asked in _paragraphs(path):
        paragraph = paragraphs.setdefault(context, _document(number, context))
        where = f"paragraph {number} of {path}"
        questions += [
            (text_of(q, "id", where), text_of(q, "question", where), paragraph) for q in asked
        ]
    collection = list(paragraphs.values())
    bm25 = Lexical([(each.doc_id, each.passage) for each in collection], bigrams)
    places = {each.doc_id: place for place, each in enumerate(collection)}
    for query_id, query, right in questions:
        scores = bm25.scores(query)
        found = np.argsort(-scores, kind="stable")[:depth].tolist()
        if (place := places[right.doc_id]) not in found:
            found[-1] = place
        yield CandidateList(
            query_id,
            query,
            [_candidate(collection[at], float(scores[at])) for at in found],
            {collection[at].doc_id: int(at == place) for at in found},
        )


def _candidate(paragraph: Document, score: float) -> Candidate:
    return Candidate(paragraph.doc_id, paragraph.title, paragraph.text, score)


def _paragraphs(path: str) -> Iterator[tuple[str, str, list[Mapping[str, Any]]]]:
    """Number, context and questions of each paragraph."""
    try:
        for article, entry in enumerate(_list(read_json(path), "data")):
            for paragraph, content in enumerate(_list(entry, "paragraphs")):
                number = f"a{article}p{paragraph}"
                yield number, text_of(content, "context", number), _list(content, "qas")
    except (AttributeError, KeyError, TypeError):
        raise InputError(
            f"{path} does not have the form of SQuAD 1.1: data, paragraphs, qas."
        ) from None


def _list(values: Mapping[str, object], name: str) -> list[Mapping[str, Any]]:
    found = values[name]
    if not isinstance(found, list):
        raise TypeError
    return found


def _document(number: str, context: str) -> Document:
    # The separator is a special token to some of the models.
    title, separator, text = context.partition(_SEPARATOR)
    return Document(number, title, text) if separator else Document(number, None, context)
