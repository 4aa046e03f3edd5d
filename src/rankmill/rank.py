"""Order within each query: by score, ties by input order, unscored rows last."""

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
    query: Int32, score: Float32, top_k: int | None = None, min_score: float | None = None
) -> Ranking:
    """Rank the rows of whole candidate lists.

    query: int32 [rows], the list of each row, numbered in input order; score: float32 [rows],
    NaN where a row was not scored (it keeps its input order below the scored rows). Ranks are
    given before `top_k` and `min_score` cut; a row without a score falls below any `min_score`.
    """
    unscored = np.isnan(score)
    descending = np.where(unscored, 0, -score.astype(np.float64))
    # lexsort is stable and sorts by its last key first: list, then scored rows, then score.
    order = np.lexsort((descending, unscored, query))
    ordered = query[order]
    first = np.searchsorted(ordered, ordered, side="left")
    rank = (np.arange(len(order)) - first + 1).astype(np.int32)
    keep = np.ones(len(order), bool)
    if top_k is not None:
        keep &= rank <= top_k
    if min_score is not None:
        keep &= ~unscored[order] & (score[order] >= min_score)
    return Ranking(order[keep], rank[keep], int(np.sum(~keep)))


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
