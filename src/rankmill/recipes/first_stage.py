"""Candidates where a benchmark comes without them: by BM25, or from a TREC run made elsewhere."""

from __future__ import annotations

import re
from collections.abc import Callable, Container, Iterable, Mapping
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from rankmill.errors import ConfigError, InputError
from rankmill.recipes.files import text_lines

# Document ids with the first stage's scores, best first.
Ranking = list[tuple[str, float]]

# Anserini's, with which BEIR's and MIRACL's published BM25 runs are made.
_K1, _B = 0.9, 0.4
_WORD = re.compile(r"\w+")


def words(text: str) -> list[str]:
    """Lower-cased words, for languages that write spaces between them."""
    return _WORD.findall(text.lower())


def bigrams(text: str) -> list[str]:
    """Pairs of neighbouring characters within words, for languages without spaces."""
    return [
        a + b
        for word in _WORD.findall(text.lower())
        for a, b in (pairwise(word) if len(word) > 1 else [(word, "")])
    ]


class Lexical:
    """BM25 (Lucene's variant, k1 0.9, b 0.4) over a collection, which is read once.

    Building the index takes most memory, some 40 bytes a token (300,000 documents of 100 words:
    1.3 GB). Raises `ConfigError` without bm25s, `InputError` for a collection without words.
    """

    def __init__(
        self, passages: Iterable[tuple[str, str]], tokenize: Callable[[str], list[str]]
    ) -> None:
        """passages: (document id, text)."""
        try:
            import bm25s
        except ImportError:
            raise ConfigError(
                "BM25 needs the package bm25s.", "pip install 'rankmill[demo]', or give a run."
            ) from None
        self._tokenize = tokenize
        self._vocabulary: dict[str, int] = {}
        self.ids: list[str] = []
        tokens: list[npt.NDArray[np.int32]] = []
        known = self._vocabulary
        for doc_id, text in passages:
            self.ids.append(doc_id)
            found = [known.setdefault(token, len(known)) for token in tokenize(text)]
            tokens.append(np.array(found, np.int32))
        if not known:
            raise InputError("The collection holds no words to search for.")
        self._index = bm25s.BM25(method="lucene", k1=_K1, b=_B)
        self._index.index((tokens, dict(known)), show_progress=False)

    def scores(self, query: str) -> npt.NDArray[np.float32]:
        """float32 [documents]: each document's score; 0 where no word is shared."""
        known = [self._vocabulary.get(token) for token in self._tokenize(query)]
        tokens = [token for token in known if token is not None]
        if not tokens:
            return np.zeros(len(self.ids), np.float32)
        return np.asarray(self._index.get_scores(tokens), np.float32)

    def search(self, query: str, depth: int) -> Ranking:
        """The best documents that share a word with the query, ties in the collection's order."""
        scores = self.scores(query)
        lowest = np.partition(scores, -depth)[-depth] if depth < len(scores) else 0
        best = np.flatnonzero((scores >= lowest) & (scores > 0))
        best = best[np.argsort(-scores[best], kind="stable")][:depth]
        return [(self.ids[at], float(scores[at])) for at in best.tolist()]


def rank(
    queries: Mapping[str, str], passages: Iterable[tuple[str, str]], depth: int, run: str | None
) -> dict[str, Ranking]:
    """Candidates of each query: from a TREC run, or without one by BM25 over words.

    A query that the run lacks has none. passages: (document id, text), read only for BM25. Raises
    as `read_run` and `Lexical` do.
    """
    if run is not None:
        return read_run(run, queries, depth)
    bm25 = Lexical(passages, words)
    return {query_id: bm25.search(query, depth) for query_id, query in queries.items()}


def read_run(path: str, queries: Container[str], depth: int) -> dict[str, Ranking]:
    """The first `depth` documents of some queries in a TREC run, by score as trec_eval orders them.

    A line is query, iteration, document, rank, score, tag. Of equal scores trec_eval puts the
    higher document id first. A query's lines may lie apart. Raises `InputError` naming a line that
    is none.
    """
    found: dict[str, Ranking] = {}
    current, lines = "", Ranking()

    def keep() -> None:
        ranking = sorted(found.get(current, []) + lines, key=lambda row: row[0], reverse=True)
        found[current] = sorted(ranking, key=lambda row: row[1], reverse=True)[:depth]

    for line, where in text_lines([path]):
        fields = line.decode("utf-8", "replace").split()
        score = _number(fields[4]) if len(fields) == 6 else None
        if score is None:
            raise InputError(
                f"{where} is not a line of a TREC run.",
                "Write: query, iteration, document, rank, score, tag.",
            )
        if fields[0] not in queries:
            continue
        if fields[0] != current:
            if lines:
                keep()
            current, lines = fields[0], []
        lines.append((fields[2], score))
    if lines:
        keep()
    if not found:
        raise InputError(f"The run {path} holds none of the judged queries.", "Check its ids.")
    return found


def _number(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return number if np.isfinite(number) else None
