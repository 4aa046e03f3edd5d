"""The most telling documents and queries of a comparison; those of parts can be merged."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from rankmill.compare.lists import Side
from rankmill.export.ranked import Ranked
from rankmill.qrels import Ints, hash_ids

Array = npt.NDArray[Any]
# Characters of a text that are shown.
_LONGEST = 2_000


class Example(NamedTuple):
    """What it is sorted by, what is told of it, and where a row of it lies: side, part, row."""

    place: tuple[float, ...]
    told: dict[str, object]
    at: tuple[int, int, int]


class Ids:
    """The ids behind numbers, and their hashes: examples that are alike otherwise are ordered by
    these, so that the same ones come out however queries are parted."""

    def __init__(self, queries: pa.Array, documents: pa.Array) -> None:
        self._texts = {"query": queries, "document": documents}
        self._hashes = {name: hash_ids(texts) for name, texts in self._texts.items()}

    def pick(
        self,
        keys: Sequence[Array],
        columns: Mapping[str, Array],
        most: int,
        where: tuple[int, Side, Ints],
    ) -> list[Example]:
        """The first `most` rows of parallel columns by some keys; numbers become ids.

        where: a side of the comparison, by number (0 or 1), and its row of each.
        """
        keys = [
            *keys,
            *(self._hashes[name][columns[name]] for name in self._texts if name in columns),
        ]
        number, side, rows = where
        return [
            Example(
                tuple(key[at].item() for key in keys),
                {name: self._plain(name, values[at]) for name, values in columns.items()},
                (number, int(side.part[rows[at]]), int(side.row[rows[at]])),
            )
            for at in np.lexsort(tuple(reversed(keys)))[:most]
        ]

    def _plain(self, name: str, value: Any) -> object:  # noqa: ANN401 - a numpy scalar
        if name in self._texts:
            return str(self._texts[name][int(value)])
        return None if value != value else value.item()


def merge(found: Iterable[list[Example]], most: int) -> list[Example]:
    """The first `most` of several lists."""
    every = [example for examples in found for example in examples]
    return sorted(every, key=lambda example: example.place)[:most]


def movers(ids: Ids, a: Side, b: Side, at_a: Ints, at_b: Ints, most: int) -> list[Example]:
    """Common documents by the size of their rank change, then by their better rank.

    at_a, at_b: the rows of the common documents in each side.
    """
    moved = a.rank[at_a] != b.rank[at_b]
    at_a, at_b = at_a[moved], at_b[moved]
    rank_a, rank_b = a.rank[at_a], b.rank[at_b]
    columns = {
        "query": a.query[at_a],
        "document": a.document[at_a],
        "rank_a": rank_a,
        "rank_b": rank_b,
        "score_a": a.score[at_a],
        "score_b": b.score[at_b],
    }
    keys = [-np.abs(rank_b - rank_a), np.minimum(rank_a, rank_b)]
    return ids.pick(keys, columns, most, (1, b, at_b))


def in_one(ids: Ids, number: int, side: Side, rows: Ints, most: int) -> list[Example]:
    """Documents that one run has alone, by their ranks there."""
    columns = {
        "query": side.query[rows],
        "document": side.document[rows],
        "rank": side.rank[rows],
        "score": side.score[rows],
    }
    return ids.pick([side.rank[rows]], columns, most, (number, side, rows))


def queries_of(
    ids: Ids,
    keys: Sequence[Array],
    columns: Mapping[str, Array],
    most: int,
    where: tuple[int, Side],
) -> list[Example]:
    """Queries by some keys; of each, its first row of a side is known."""
    rows = np.searchsorted(where[1].query, columns["query"])
    return ids.pick(keys, columns, most, (*where, rows))


def with_texts(
    runs: Sequence[Ranked], examples: Mapping[str, list[Example]]
) -> dict[str, list[Example]]:
    """The same, with `query_text` and, of documents, `document_text`: None where the run did not
    write them. Raises `InputError` naming a part that cannot be read."""
    texts: dict[tuple[int, int, int], tuple[str | None, str | None]] = {}
    wanted = sorted({example.at for found in examples.values() for example in found})
    for number, part in sorted({at[:2] for at in wanted}):
        run = runs[number]
        parts = run.columns.document_parts
        names = [name for name in (run.columns.query, *parts) if name in run.schema.names]
        table = run.read(part, names)
        for at in (at for at in wanted if at[:2] == (number, part)):
            row = table.slice(at[2], 1).to_pylist()[0]
            document = [str(row[name]) for name in parts if row.get(name) is not None]
            texts[at] = _cut(row.get(run.columns.query)), _cut(" ".join(document) or None)
    return {
        name: [example._replace(told=example.told | _named(example, texts)) for example in found]
        for name, found in examples.items()
    }


def _named(
    example: Example, texts: Mapping[tuple[int, int, int], tuple[str | None, str | None]]
) -> dict[str, object]:
    query, document = texts[example.at]
    named: dict[str, object] = {"query_text": query}
    return named | {"document_text": document} if "document" in example.told else named


def _cut(text: object) -> str | None:
    if text is None:
        return None
    whole = str(text)
    return whole if len(whole) <= _LONGEST else whole[:_LONGEST] + " …"
