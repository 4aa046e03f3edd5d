"""Agreement of two orders of one list, for the lists of many queries at once."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from rankmill.qrels import Ints

Floats = npt.NDArray[np.float64]

# Of the weight of rank-biased overlap, 86 % lies on the first ten ranks (Webber et al. 2010).
PERSISTENCE = 0.9


def kendall_tau(query: Ints, rank_a: Ints, rank_b: Ints, queries: int) -> Floats:
    """float64 [queries]: Kendall's tau-b of the documents that both lists have.

    query, rank_a, rank_b: int64 [common documents]. Ranks of a list differ, so that tau-b is
    1 - 4 x inversions / (n (n - 1)). NaN for queries with fewer than two common documents.
    """
    count = np.bincount(query, minlength=queries)
    order = np.lexsort((rank_a, query))
    inversions = _inversions(query[order], rank_b[order], queries)
    pairs = count * (count - 1) / 2
    return np.where(pairs > 0, 1 - 2 * inversions / np.maximum(pairs, 1), np.nan)


def _inversions(query: Ints, value: Ints, queries: int) -> Floats:
    """float64 [queries]: how many pairs of a query's values, in order, descend.

    Merge sort from below, all queries in each of its log2(longest list) steps: of two neighbouring
    blocks, each value on the right is inverted with the larger ones on the left.
    """
    inversions = np.zeros(queries)
    starts = np.flatnonzero(np.diff(query, prepend=-1))
    lengths = np.diff(starts, append=len(query))
    place = np.arange(len(query)) - np.repeat(starts, lengths)
    width = 1
    while width < lengths.max(initial=0):
        block = place // (2 * width)
        order = np.lexsort((value, block, query))
        left = (place // width % 2 == 0)[order]
        fresh = np.diff(block[order], prepend=-1) != 0
        fresh |= np.diff(query[order], prepend=-1) != 0
        sizes = np.diff(np.flatnonzero(fresh), append=len(order))
        smaller = np.cumsum(left)
        smaller -= np.repeat((smaller - left)[fresh], sizes)
        all_left = np.repeat(np.add.reduceat(left, np.flatnonzero(fresh)), sizes)
        larger = np.where(left, 0, all_left - smaller)
        inversions += np.bincount(query[order], larger, minlength=queries)
        width *= 2
    return inversions


def rank_biased_overlap(
    query: Ints, rank_a: Ints, rank_b: Ints, length_a: Ints, length_b: Ints
) -> Floats:
    """float64 [queries]: extrapolated rank-biased overlap at p = 0.9, lists of unequal length too.

    Equation 32 of Webber, Moffat and Zobel, "A similarity measure for indefinite rankings" (TOIS
    2010). query, rank_a, rank_b: int64 [common documents], ranks from 1; length_a, length_b: int64
    [queries], at least 1.
    """
    p = PERSISTENCE
    short, long = np.minimum(length_a, length_b), np.maximum(length_a, length_b)
    starts = np.cumsum(long) - long
    # A common document is in both prefixes from the deeper of its ranks on.
    at = starts[query] + np.maximum(rank_a, rank_b) - 1
    overlap = np.cumsum(np.bincount(at, minlength=long.sum())).astype(np.float64)
    overlap -= np.repeat(overlap[starts] - np.bincount(at, minlength=long.sum())[starts], long)
    depth = np.arange(long.sum()) - np.repeat(starts, long) + 1.0
    at_short, at_long = overlap[starts + short - 1], overlap[starts + long - 1]
    agreement = overlap / depth
    # Below the shorter list's end, its unseen documents are taken to agree as the seen ones did.
    s, x_s = np.repeat(short, long), np.repeat(at_short, long)
    agreement += np.where(depth > s, x_s * (depth - s) / (s * depth), 0.0)
    series = np.add.reduceat(agreement * p**depth, starts)
    tail = (at_long - at_short) / long + at_short / short
    return (1 - p) / p * series + tail * p**long


def overlap_at(
    k: int, query: Ints, rank_a: Ints, rank_b: Ints, length_a: Ints, length_b: Ints
) -> Floats:
    """float64 [queries]: documents that both have among their first k, divided by k, or by the
    longer list's length where that is less."""
    both = (rank_a <= k) & (rank_b <= k)
    shared = np.bincount(query[both], minlength=len(length_a))
    return np.asarray(shared / np.minimum(np.maximum(length_a, length_b), k), np.float64)
