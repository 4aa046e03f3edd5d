"""Which rows of ranked candidate lists become positives and negatives, and why others do not.

Pure functions over numpy arrays. Every row has one fate: positive, negative, or dropped by the
first rule that it breaks, in the order of the reasons below. Rules look at one list at a time, so
how lists are spread over shards changes nothing.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from rankmill.export.counts import Counts
from rankmill.export.recipe import ExportConfig
from rankmill.qrels import Ints

Floats = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]

UNSCORED = "has no score"
OTHER_QUERY = "scored with another query text than the best of its list"
DUPLICATE = "repeats a better-ranked document of its list"
WEAK_POSITIVE = "relevant, but outside the bounds for positives"
NO_POSITIVE = "its query has no positive"
OUTSIDE_RANKS = "outside the ranks for negatives"
TOO_LOW = "below negative_min_score"
TOO_HIGH = "above negative_max_score"
TOO_CLOSE = "within the margin to its query's lowest positive"
NOT_SCORED_BY_ALL = "not scored by every model that must agree"
NOT_AGREED = "too relevant by another model"
SURPLUS = "beyond the number of negatives"
TOO_FEW = "its query has too few negatives left"


@dataclass(frozen=True)
class RankedRows:
    """`n` rows of whole candidate lists, each list in rank order.

    lists: int64 [n], the number of each row's list, ascending from 0; keys: each list's query, as
    text. rank: int64 [n], from 1. scores: float64 [n] each, NaN where there is none; the first is
    of the model whose scores count, the others must agree. query_text, text, document: int64 [n]
    each, equal where the query texts, document texts, document ids are. grade: int64 [n],
    relevance by judgements, 0 without; None where there are no judgements.
    """

    lists: Ints
    keys: list[str]
    rank: Ints
    scores: tuple[Floats, ...]
    query_text: Ints
    text: Ints
    document: Ints
    grade: Ints | None


@dataclass(frozen=True)
class Mined:
    """The rows that are used: bool [n] each, never both. grade: of a document's best duplicate."""

    positive: Mask
    negative: Mask
    grade: Ints | None
    counts: Counts


class _Sieve:
    """The rows that no rule has dropped yet, and how many each has."""

    def __init__(self, rows: int) -> None:
        self.left: Mask = np.ones(rows, bool)
        self.dropped: dict[str, int] = {}

    def drop(self, rows: Mask, why: str) -> None:
        hit = self.left & rows
        if hit.any():
            self.dropped[why] = self.dropped.get(why, 0) + int(hit.sum())
            self.left &= ~hit


def mine(rows: RankedRows, config: ExportConfig, needed: int) -> Mined:
    """Find the positives and negatives of every list.

    A list with fewer negatives than `needed`, or without the positives that a rule asks for, is
    left out whole.
    """
    sieve, lists, score = _Sieve(len(rows.lists)), rows.lists, rows.scores[0]
    sieve.drop(np.isnan(score), UNSCORED)
    first = np.searchsorted(lists, lists)
    sieve.drop(rows.query_text != rows.query_text[first], OTHER_QUERY)
    _drop_duplicates(rows, sieve)

    grade = _best_grade(rows)
    positive = np.zeros(len(lists), bool)
    without = np.zeros(len(rows.keys), bool)
    if grade is not None or config.positives_by_score:
        positive = sieve.left & _within_positive_bounds(score, rows.rank, config)
        if grade is not None:
            positive &= grade > 0
            sieve.drop(~positive & (grade > 0), WEAK_POSITIVE)
        without = np.bincount(lists[positive], minlength=len(rows.keys)) == 0
        sieve.drop(without[lists], NO_POSITIVE)
    _drop_unfit(rows, positive, config, sieve)
    if config.negatives is not None:
        _drop_surplus(rows, positive, config, sieve)

    found = np.bincount(lists[sieve.left & ~positive], minlength=len(rows.keys))
    few = ~without & (found < needed)
    sieve.drop(few[lists], TOO_FEW)
    positive &= sieve.left
    counts = Counts(
        queries=len(rows.keys),
        queries_used=int((~without & ~few).sum()),
        queries_without_positive=int(without.sum()),
        queries_with_too_few_negatives=int(few.sum()),
        rows=len(lists),
        rows_used=int(sieve.left.sum()),
        positives=int(positive.sum()),
        dropped=sieve.dropped,
    )
    counts.refuse_imbalance()
    return Mined(positive, sieve.left & ~positive, grade, counts)


def _best_grade(rows: RankedRows) -> Ints | None:
    """Each row's grade, or a better one that the same text has in its list under another id."""
    if rows.grade is None:
        return None
    _, group = np.unique(_in_list(rows.lists, rows.text), return_inverse=True)
    best = np.zeros(len(rows.lists), np.int64)
    np.maximum.at(best, group, rows.grade)
    return best[group]


def _drop_duplicates(rows: RankedRows, sieve: _Sieve) -> None:
    """Keep the best ranked of a list's equal documents.

    Equal by text or by id: otherwise a positive's double would pass for a negative.
    """
    left = np.flatnonzero(sieve.left)
    again = np.zeros(len(rows.lists), bool)
    for code in (rows.text, rows.document):
        _, first = np.unique(_in_list(rows.lists[left], code[left]), return_index=True)
        again[np.delete(left, first)] = True
    sieve.drop(again, DUPLICATE)


def _in_list(lists: Ints, code: Ints) -> Ints:
    """A code for each (list, code)."""
    return lists * (code.max(initial=0) + 1) + code


def _within_positive_bounds(score: Floats, rank: Ints, config: ExportConfig) -> Mask:
    fits = np.ones(len(score), bool)
    if config.positive_min_score is not None:
        fits &= score >= config.positive_min_score
    if config.positive_max_rank is not None:
        fits &= rank <= config.positive_max_rank
    return fits


def _drop_unfit(rows: RankedRows, positive: Mask, config: ExportConfig, sieve: _Sieve) -> None:
    """Drop candidates by rank, by score, by margin, and where another model would."""
    score = rows.scores[0]
    if config.negative_min_rank is not None:
        sieve.drop(~positive & (rows.rank < config.negative_min_rank), OUTSIDE_RANKS)
    if config.negative_max_rank is not None:
        sieve.drop(~positive & (rows.rank > config.negative_max_rank), OUTSIDE_RANKS)
    if config.negative_min_score is not None:
        sieve.drop(~positive & (score < config.negative_min_score), TOO_LOW)
    if config.negative_max_score is not None:
        sieve.drop(~positive & (score > config.negative_max_score), TOO_HIGH)
    if config.has_margin:
        floor = _lowest_positive(rows, positive, score)
        sieve.drop(~positive & _too_close(score, floor, config), TOO_CLOSE)
    for other in rows.scores[1:]:
        floor = _lowest_positive(rows, positive, other)
        unknown = np.isnan(other) | (config.has_margin & np.isnan(floor))
        sieve.drop(~positive & unknown, NOT_SCORED_BY_ALL)
        refused = _too_close(other, floor, config)
        if config.negative_max_score is not None:
            refused |= other > config.negative_max_score
        sieve.drop(~positive & refused, NOT_AGREED)


def _lowest_positive(rows: RankedRows, positive: Mask, score: Floats) -> Floats:
    """float64 [n]: the lowest score of the positives of each row's list, NaN where none has one."""
    known = positive & ~np.isnan(score)
    lowest = np.full(len(rows.keys), np.inf)
    np.minimum.at(lowest, rows.lists[known], score[known])
    return np.where(np.isinf(lowest), np.nan, lowest)[rows.lists]


def _too_close(score: Floats, floor: Floats, config: ExportConfig) -> Mask:
    close = np.zeros(len(score), bool)
    if config.margin is not None:
        close |= score > floor - config.margin
    if config.relative_margin is not None:
        # Less a share of the magnitude: a factor would raise the bar where scores are negative.
        close |= score > floor - np.abs(floor) * config.relative_margin
    return close


def _drop_surplus(rows: RankedRows, positive: Mask, config: ExportConfig, sieve: _Sieve) -> None:
    """Keep `negatives` candidates of each list."""
    left = np.flatnonzero(sieve.left & ~positive)
    lists = rows.lists[left]
    draws = [_draw(rows, row, config.seed) for row in left.tolist() if config.sampling == "random"]
    order_by = np.array(draws, np.uint64) if draws else -rows.scores[0][left]
    order = np.lexsort((left, order_by, lists))
    ordered = lists[order]
    place = np.arange(len(order)) - np.searchsorted(ordered, ordered)
    surplus = np.zeros(len(rows.lists), bool)
    surplus[left[order[place >= (config.negatives or 0)]]] = True
    sieve.drop(surplus, SURPLUS)


def _draw(rows: RankedRows, row: int, seed: int) -> int:
    """A number from the seed, a row's query and its rank.

    The same in any shard, with any other rule, and in any version of a library's generator.
    """
    name = f"{seed}\0{rows.rank[row]}\0{rows.keys[rows.lists[row]]}".encode()
    return int.from_bytes(hashlib.blake2b(name, digest_size=8).digest(), "big")
