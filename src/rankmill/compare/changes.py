"""What changed in some of the queries of two runs; the changes of all add up."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from rankmill.compare import examples, spread
from rankmill.compare.examples import Example, Ids
from rankmill.compare.lists import Side, side_by_side
from rankmill.compare.spread import Floats, Spread
from rankmill.qrels import Ints
from rankmill.rank import places
from rankmill.summary import rank_correlations


@dataclass(frozen=True, eq=False)
class Changes:
    """Counts, spreads and examples by name; examples are in order, the most telling first.

    Spreads over common queries: `correlation` (Spearman's, of the documents that both lists have,
    where there are two), `overlap@k` (documents that both have among their first k, divided by k,
    or by the longer list's length where that is less); over common documents: `rank_change`
    (absolute), `drift` (score in b less that in a, where both have one, of their last stages).
    """

    counts: dict[str, int]
    spreads: dict[str, Spread]
    examples: dict[str, list[Example]]


def add(found: Iterable[Changes], most: int) -> Changes:
    """The changes of all their queries, with the first `most` examples of each kind."""
    every = list(found)
    counts: Counter[str] = Counter()
    for one in every:
        counts.update(one.counts)
    names = (every[0].spreads, every[0].examples)
    return Changes(
        dict(counts),
        {name: spread.add(one.spreads[name] for one in every) for name in names[0]},
        {name: examples.merge((one.examples[name] for one in every), most) for name in names[1]},
    )


def find_changes(a: pa.Table, b: pa.Table, top: Sequence[int], most: int) -> Changes:
    """Compare the lists of some queries: tables by `lists.SCHEMA` with all rows of theirs.

    top: the k of the overlaps. most: examples of each kind.
    """
    queries, documents, one, other = side_by_side(a, b)
    ids = Ids(queries, documents)
    length_a, length_b = one.lengths(len(queries)), other.lengths(len(queries))
    in_a, in_b = length_a > 0, length_b > 0
    both = in_a & in_b
    at_a, at_b = _in_both(one, other, len(documents))
    rank_a, rank_b, query = one.rank[at_a], other.rank[at_b], one.query[at_a]
    correlation = _correlations(query, rank_a, rank_b, len(queries))
    drift = other.score[at_b] - one.score[at_a]
    drift = drift[np.isfinite(drift) & one.last[at_a] & other.last[at_b]]
    in_place = np.bincount(query[rank_a == rank_b], minlength=len(queries))
    unchanged = both & (in_place == length_a) & (in_place == length_b)
    gone, new = _alone(one, at_a, both), _alone(other, at_b, both)
    found = {
        "correlation": correlation[~np.isnan(correlation)],
        "rank_change": np.abs(rank_b - rank_a).astype(np.float64),
        "drift": drift,
    }
    longest = np.maximum(length_a, length_b)
    for k in top:
        shared = np.bincount(query[(rank_a <= k) & (rank_b <= k)], minlength=len(queries))
        found[f"overlap@{k}"] = shared[both] / np.minimum(longest[both], k)
    queries_new, queries_gone = np.flatnonzero(in_b & ~in_a), np.flatnonzero(in_a & ~in_b)
    changed = np.flatnonzero(correlation < 1)
    size = np.bincount(query, minlength=len(queries))[changed]
    worst = {"query": changed, "correlation": correlation[changed], "documents": size}
    return Changes(
        counts={
            "queries_a": int(in_a.sum()),
            "queries_b": int(in_b.sum()),
            "queries_common": int(both.sum()),
            "queries_unchanged": int(unchanged.sum()),
            "queries_gone": len(queries_gone),
            "queries_new": len(queries_new),
            "rows_a": len(a),
            "rows_b": len(b),
            "documents_common": len(at_a),
            "documents_moved": int((rank_a != rank_b).sum()),
            "documents_gone": len(gone),
            "documents_new": len(new),
            "duplicates_a": one.duplicates,
            "duplicates_b": other.duplicates,
            "without_id_a": int((one.document < 0).sum()),
            "without_id_b": int((other.document < 0).sum()),
            "scores_equal": int((drift == 0).sum()),
        },
        spreads={name: Spread.of(values) for name, values in found.items()},
        examples={
            "documents": examples.movers(ids, one, other, at_a, at_b, most),
            "queries": examples.queries_of(
                ids, [correlation[changed], -size], worst, most, (1, other)
            ),
            "new_documents": examples.in_one(ids, 1, other, new, most),
            "gone_documents": examples.in_one(ids, 0, one, gone, most),
            "new_queries": examples.queries_of(ids, [], {"query": queries_new}, most, (1, other)),
            "gone_queries": examples.queries_of(ids, [], {"query": queries_gone}, most, (0, one)),
        },
    )


def _in_both(one: Side, other: Side, documents: int) -> tuple[Ints, Ints]:
    """The rows of each side that hold the documents of both, parallel."""

    def keyed(side: Side) -> tuple[Ints, Ints]:
        rows = np.flatnonzero(side.document >= 0)
        return rows, side.query[rows] * documents + side.document[rows]

    (rows_a, keys_a), (rows_b, keys_b) = keyed(one), keyed(other)
    _, at_a, at_b = np.intersect1d(keys_a, keys_b, assume_unique=True, return_indices=True)
    return rows_a[at_a], rows_b[at_b]


def _alone(side: Side, common: Ints, both: npt.NDArray[np.bool_]) -> Ints:
    """The rows of documents that the other side lacks, in queries that it has."""
    alone = (side.document >= 0) & both[side.query]
    alone[common] = False
    return np.flatnonzero(alone)


def _correlations(query: Ints, rank_a: Ints, rank_b: Ints, queries: int) -> Floats:
    """float64 [queries]: of the common documents, ranked anew among themselves."""

    def anew(rank: Ints) -> Ints:
        order = np.lexsort((rank, query))
        found = np.empty(len(order), np.int64)
        found[order] = places(query[order])
        return found

    size = np.bincount(query, minlength=queries)
    return rank_correlations(query, anew(rank_a) - anew(rank_b), size)
