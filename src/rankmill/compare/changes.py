"""What changed in some of the queries of two runs; the changes of all add up."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from rankmill.compare import examples, spread
from rankmill.compare.agreement import kendall_tau, overlap_at, rank_biased_overlap
from rankmill.compare.examples import Example, Ids
from rankmill.compare.lists import Side, side_by_side
from rankmill.compare.spread import Spread
from rankmill.qrels import Ints


@dataclass(frozen=True, eq=False)
class Changes:
    """Counts, spreads and examples by name; examples are in order, the most telling first.

    Spreads over common queries: `tau` (those with two common documents), `rbo`, `overlap@k`; over
    common documents: `rank_change` (absolute), `drift` (score in b less that in a, where both have
    one).
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
    lengths = length_a[both], length_b[both]
    at_a, at_b = _common(one, other, len(documents))
    rank_a, rank_b = one.rank[at_a], other.rank[at_b]
    # Agreement is of the common queries alone, numbered anew.
    query = (np.cumsum(both) - 1)[one.query[at_a]]
    tau = kendall_tau(query, rank_a, rank_b, len(lengths[0]))
    drift = other.score[at_b] - one.score[at_a]
    drift = drift[np.isfinite(drift)]
    in_place = np.bincount(query[rank_a == rank_b], minlength=len(tau))
    unchanged = (in_place == lengths[0]) & (in_place == lengths[1])
    gone, new = _alone(one, at_a, both), _alone(other, at_b, both)
    found = {
        "tau": tau[~np.isnan(tau)],
        "rbo": rank_biased_overlap(query, rank_a, rank_b, *lengths),
        "rank_change": np.abs(rank_b - rank_a).astype(np.float64),
        "drift": drift,
    }
    found |= {f"overlap@{k}": overlap_at(k, query, rank_a, rank_b, *lengths) for k in top}
    only = {
        "new_queries": np.flatnonzero(in_b & ~in_a),
        "gone_queries": np.flatnonzero(in_a & ~in_b),
    }
    return Changes(
        counts={
            "queries_a": int(in_a.sum()),
            "queries_b": int(in_b.sum()),
            "queries_common": len(tau),
            "queries_unchanged": int(unchanged.sum()),
            "queries_gone": len(only["gone_queries"]),
            "queries_new": len(only["new_queries"]),
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
            "queries": _worst(ids, both, query, tau, most),
            "new_documents": examples.in_one(ids, other, new, most),
            "gone_documents": examples.in_one(ids, one, gone, most),
        }
        | {name: ids.pick([], {"query": which}, most) for name, which in only.items()},
    )


def _common(one: Side, other: Side, documents: int) -> tuple[Ints, Ints]:
    """The rows of each side that hold the documents of both, parallel."""
    rows, keys = [], []
    for side in (one, other):
        rows.append(np.flatnonzero(side.document >= 0))
        keys.append(side.query[rows[-1]] * documents + side.document[rows[-1]])
    _, at_a, at_b = np.intersect1d(*keys, assume_unique=True, return_indices=True)
    return rows[0][at_a], rows[1][at_b]


def _alone(side: Side, common: Ints, both: npt.NDArray[np.bool_]) -> Ints:
    """The rows of documents that the other side lacks, in queries that it has."""
    alone = (side.document >= 0) & both[side.query]
    alone[common] = False
    return np.flatnonzero(alone)


def _worst(
    ids: Ids, both: npt.NDArray[np.bool_], query: Ints, tau: npt.NDArray[np.float64], most: int
) -> list[Example]:
    """Queries by tau, lowest first; of equal ones those with more common documents."""
    changed = np.flatnonzero(tau < 1)
    common = np.bincount(query, minlength=len(tau))[changed]
    columns = {"query": np.flatnonzero(both)[changed], "tau": tau[changed], "documents": common}
    return ids.pick([tau[changed], -common], columns, most)
