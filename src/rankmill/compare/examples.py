"""The most telling documents and queries of a comparison; those of parts can be merged."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from rankmill.compare.lists import Side
from rankmill.qrels import Ints, hash_ids

Array = npt.NDArray[Any]


class Example(NamedTuple):
    """What it is sorted by, and what is told of it."""

    place: tuple[float, ...]
    told: dict[str, object]


class Ids:
    """The ids behind numbers, and their hashes: examples that are alike otherwise are ordered by
    these, so that the same ones come out however queries are parted."""

    def __init__(self, queries: pa.Array, documents: pa.Array) -> None:
        self._texts = {"query": queries, "document": documents}
        self._hashes = {name: hash_ids(texts) for name, texts in self._texts.items()}

    def pick(self, keys: Sequence[Array], columns: Mapping[str, Array], most: int) -> list[Example]:
        """The first `most` rows of parallel columns by some keys; numbers become ids."""
        keys = [
            *keys,
            *(self._hashes[name][columns[name]] for name in self._texts if name in columns),
        ]
        order = np.lexsort(tuple(reversed(keys)))[:most]
        return [
            Example(
                tuple(key[at].item() for key in keys),
                {name: self._plain(name, values[at]) for name, values in columns.items()},
            )
            for at in order
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
    return ids.pick([-np.abs(rank_b - rank_a), np.minimum(rank_a, rank_b)], columns, most)


def in_one(ids: Ids, side: Side, rows: Ints, most: int) -> list[Example]:
    """Documents that one run has alone, by their ranks there."""
    columns = {
        "query": side.query[rows],
        "document": side.document[rows],
        "rank": side.rank[rows],
        "score": side.score[rows],
    }
    return ids.pick([side.rank[rows]], columns, most)
