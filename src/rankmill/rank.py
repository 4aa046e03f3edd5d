"""Order within each query: by score, ties by input order, unscored rows last.

Where a fused score is given (see `fusion`), rows stand by that, ties by score.

In a cascade what a later stage scored stands above what it did not see, which keeps its order.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Int32 = npt.NDArray[np.int32]
Float32 = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Ranking:
    """Rows in output order.

    rows: int64 [ranked], indices into the rows given; rank: int32 [ranked], from 1 within each
    query. `below_cut` rows were ranked but are not written.
    """

    rows: npt.NDArray[np.int64]
    rank: Int32
    below_cut: int


def rank_rows(
    query: Int32,
    score: Float32,
    top_k: int | None = None,
    min_score: float | None = None,
    missed: Int32 | None = None,
    fused: Float32 | None = None,
) -> Ranking:
    """Rank the rows of whole candidate lists.

    query: int32 [rows], the list of each row, numbered in input order; score: float32 [rows],
    NaN where a row was not scored (it keeps its input order below the scored rows). Ranks are
    given before `top_k` and `min_score` cut; a row without a score falls below any `min_score`.
    missed: int32 [rows], how many of a cascade's last stages did not see the row, whose score is
    that of the stage before those; rows that missed any fall below any `min_score`, too, which is
    on the last stage's scale. fused: float32 [rows], NaN for rows that missed a stage.
    """
    if missed is None:
        missed = np.zeros(len(query), np.int32)
    unscored = np.isnan(score)
    by_score = _descending(score)
    by_fused = by_score if fused is None else _descending(fused)
    # lexsort is stable and sorts by its last key first: list, scored rows, their stage, scores.
    order = np.lexsort((by_score, by_fused, missed, unscored, query))
    ordered = query[order]
    first = np.searchsorted(ordered, ordered, side="left")
    rank = (np.arange(len(order)) - first + 1).astype(np.int32)
    keep = np.ones(len(order), bool)
    if top_k is not None:
        keep &= rank <= top_k
    if min_score is not None:
        keep &= ~unscored[order] & (missed[order] == 0) & (score[order] >= min_score)
    return Ranking(order[keep], rank[keep], int(np.sum(~keep)))


def _descending(score: Float32) -> npt.NDArray[np.float64]:
    return np.where(np.isnan(score), 0, -score.astype(np.float64))


def among_best(query: Int32, pair: Int32, score: Float32, keep: int) -> npt.NDArray[np.bool_]:
    """bool [rows]: whether a row holds one of the `keep` best distinct pairs of its list.

    query: int32 [rows], the list of each row; pair: int32 [rows], equal for equal pairs, -1 where
    there is none; score: float32 [rows], equal for equal pairs. Ties go by input order. Copies of a
    pair take one place together; rows without a finite score take none.
    """
    scored = np.flatnonzero((pair >= 0) & np.isfinite(score))
    order = scored[rank_rows(query[scored], score[scored]).rows]
    numbers = query[order].astype(np.int64) * (int(pair.max(initial=0)) + 1) + pair[order]
    _, first, copy_of = np.unique(numbers, return_index=True, return_inverse=True)
    is_first = np.zeros(len(order), bool)
    is_first[first] = True
    pairs_before = np.cumsum(is_first) - is_first
    lists = query[order]
    place = pairs_before - pairs_before[np.searchsorted(lists, lists, side="left")]
    chosen = np.zeros(len(query), bool)
    chosen[order] = place[first][copy_of] < keep
    return chosen


def places(query: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """int64 [rows], the place of each row in its query's list, from 0.

    query: int64 [rows], with the rows of a query together.
    """
    starts = np.flatnonzero(np.diff(query, prepend=-1))
    return np.arange(len(query)) - np.repeat(starts, np.diff(starts, append=len(query)))


def sigmoid(score: Float32) -> Float32:
    """1 / (1 + e^-score), computed in float64 and rounded once; NaN stays NaN."""
    wide = score.astype(np.float64)
    small = np.exp(-np.abs(wide))
    return np.where(wide >= 0, 1 / (1 + small), small / (1 + small)).astype(np.float32)
