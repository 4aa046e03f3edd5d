"""What a shard looked like, in a few hundred numbers: scores, lengths, and how ranks moved.

Made where the shard is committed and kept in its marker; a run's summary is the sum of its
shards'. So a report of any run costs kilobytes a shard, and no row is read again.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from pydantic import TypeAdapter, ValidationError
from pydantic_core import to_json

from rankmill.rank import rank_rows

Ints = npt.NDArray[np.int64]

# Places in a list, from 1, are counted in groups; these are their first places.
PLACES = (1, 2, 3, 4, 6, 11, 21, 51, 101, 201, 501, 1001)
# Scores are kept apart for ranks from 1, from 2 and from 11 on.
RANKS = (1, 2, 11)
TOP = 10
CORRELATION_BINS = 20
# Bins of a histogram: enough for a curve; a marker stays near 4 kB.
_BINS = 48
# float32 has 24 bits, and no score is told apart from another by less than this.
_DIGITS, _FINEST = 24, -20
# The strongest moves that a summary keeps, each way.
MOVES = 12


@dataclass(frozen=True)
class Histogram:
    """Counts in bins of equal width. Bin i goes from (first + i) * width to the next.

    The width, 2**exponent, is the finest with which all values fit into few bins: so histograms
    of any values add up exactly, in whatever order they are added.
    """

    exponent: int = 0
    first: int = 0
    counts: tuple[int, ...] = ()

    @classmethod
    def of(cls, values: npt.NDArray[np.generic]) -> Histogram:
        """Count finite values."""
        if not len(values):
            return cls()
        wide = values.astype(np.float64)
        low, high = float(wide.min()), float(wide.max())
        spread = math.frexp((high - low) / _BINS)[1]
        size = math.frexp(max(abs(low), abs(high)))[1] - _DIGITS
        exponent = max(spread - 1, size, _FINEST)
        while math.floor(high / 2.0**exponent) - math.floor(low / 2.0**exponent) >= _BINS:
            exponent += 1
        number = np.floor(wide / 2.0**exponent).astype(np.int64)
        first = int(number.min())
        return cls(exponent, first, tuple(np.bincount(number - first).tolist()))

    @property
    def total(self) -> int:
        """How many values were counted."""
        return sum(self.counts)

    @property
    def edges(self) -> npt.NDArray[np.float64]:
        """float64 [bins + 1]."""
        places = np.arange(len(self.counts) + 1, dtype=np.float64)
        return np.ldexp(self.first + places, self.exponent)

    def coarsened(self, exponent: int) -> Histogram:
        """The same values in wider bins."""
        if exponent <= self.exponent or not self.counts:
            return self
        shift = exponent - self.exponent
        first = self.first >> shift
        counts = [0] * (((self.first + len(self.counts) - 1) >> shift) - first + 1)
        for number, count in enumerate(self.counts, self.first):
            counts[(number >> shift) - first] += count
        return Histogram(exponent, first, tuple(counts))

    def __add__(self, other: Histogram) -> Histogram:
        if not (self.counts and other.counts):
            return self if self.counts else other
        exponent = max(self.exponent, other.exponent)
        while True:
            one, two = self.coarsened(exponent), other.coarsened(exponent)
            first = min(one.first, two.first)
            stop = max(one.first + len(one.counts), two.first + len(two.counts))
            if stop - first <= _BINS:
                break
            exponent += 1
        counts = [0] * (stop - first)
        for each in (one, two):
            for number, count in enumerate(each.counts, each.first - first):
                counts[number] += count
        return Histogram(exponent, first, tuple(counts))


class Move(NamedTuple):
    """A written row and its places in its list, from 1: `before` in the input, `after` by rank.

    query: the list's number in the shard; row: of the shard's part.
    """

    shard: int
    query: int
    row: int
    before: int
    after: int

    @property
    def strength(self) -> float:
        """The ratio of both places as a logarithm: from 20 to 1 is more than from 100 to 50."""
        return abs(math.log2(self.before / self.after))


@dataclass(frozen=True)
class Summary:
    """What some shards looked like. Only rows with a score of their own count.

    scores: of rows by rank, in the groups RANKS. fitting, cut: tokens of distinct pairs, both
    texts together, before any was cut: of those of which the model saw all, and of the others.
    moves: rows by place in the input, then by rank, in the groups PLACES. correlation: queries
    by Spearman's correlation of both orders, in CORRELATION_BINS bins from -1 to 1. compared:
    those queries; they have two scored rows at least. first_kept: queries whose first document
    stayed first. top_places, top_kept: places among the first TOP of longer lists, and those of
    them whose document was among the first TOP before.
    """

    scores: tuple[Histogram, ...] = (Histogram(),) * len(RANKS)
    fitting: Histogram = Histogram()
    cut: Histogram = Histogram()
    moves: tuple[tuple[int, int, int], ...] = ()
    correlation: tuple[int, ...] = (0,) * CORRELATION_BINS
    compared: int = 0
    first_kept: int = 0
    top_places: int = 0
    top_kept: int = 0
    gains: tuple[Move, ...] = ()
    losses: tuple[Move, ...] = ()

    def to_text(self) -> str:
        """As kept in a marker."""
        return to_json({field.name: getattr(self, field.name) for field in fields(self)}).decode()

    @classmethod
    def from_text(cls, text: str) -> Summary | None:
        """Read what a marker keeps; None where it is no summary."""
        try:
            found = _SUMMARY.validate_json(text)
        except ValidationError:
            return None
        sound = len(found.scores) == len(RANKS) and len(found.correlation) == CORRELATION_BINS
        places = all(0 <= place < len(PLACES) for move in found.moves for place in move[:2])
        lists = (found.gains, found.losses)
        rows = all(min(move.before, move.after) > 0 for moves in lists for move in moves)
        return found if sound and places and rows else None

    def __add__(self, other: Summary) -> Summary:
        moves: Counter[tuple[int, int]] = Counter()
        for before, after, count in (*self.moves, *other.moves):
            moves[before, after] += count
        return Summary(
            scores=tuple(one + two for one, two in zip(self.scores, other.scores)),
            fitting=self.fitting + other.fitting,
            cut=self.cut + other.cut,
            moves=tuple((*places, count) for places, count in sorted(moves.items())),
            correlation=tuple(map(sum, zip(self.correlation, other.correlation))),
            compared=self.compared + other.compared,
            first_kept=self.first_kept + other.first_kept,
            top_places=self.top_places + other.top_places,
            top_kept=self.top_kept + other.top_kept,
            gains=strongest((*self.gains, *other.gains)),
            losses=strongest((*self.losses, *other.losses)),
        )


_SUMMARY = TypeAdapter(Summary)


def strongest(moves: Iterable[Move]) -> tuple[Move, ...]:
    """The MOVES strongest: each query's strongest, then, while there is room, its second, …"""
    seen: Counter[tuple[int, int]] = Counter()
    turns = []
    for move in sorted(moves, key=_strongest_first):
        turns.append((seen[move.shard, move.query], move))
        seen[move.shard, move.query] += 1
    turns.sort(key=lambda turn: (turn[0], *_strongest_first(turn[1])))
    return tuple(move for _, move in turns[:MOVES])


def _strongest_first(move: Move) -> tuple[float, int, int, int]:
    return -move.strength, -abs(move.before - move.after), move.shard, move.row


def summarize(
    shard: int,
    query: npt.NDArray[np.int32],
    score: npt.NDArray[np.float32],
    written: Ints,
    lengths: npt.NDArray[np.int32],
    dropped: npt.NDArray[np.int32],
    missed: npt.NDArray[np.int32] | None = None,
    fused: npt.NDArray[np.float32] | None = None,
) -> Summary:
    """Sum up a shard.

    query: int32 [rows], the list of each row, in input order; score: float32 [rows], NaN where a
    row was not scored. written: int64 [part rows], the row that each row of the part is. lengths,
    dropped: int32 [distinct pairs], tokens before the cut, and those of them that were cut. missed:
    int32 [rows], as `rank_rows` takes it; scores of a cascade's last stage alone are counted.
    fused: float32 [rows], as `rank_rows` takes it.
    """
    part_row = np.full(len(query), -1, np.int64)
    part_row[written] = np.arange(len(written))
    scored = ~np.isnan(score)
    query, score, part_row = query[scored], score[scored], part_row[scored]
    missed = np.zeros(len(query), np.int32) if missed is None else missed[scored]
    fused = None if fused is None else fused[scored]
    ranking = rank_rows(query, score, missed=missed, fused=fused)
    after = np.empty(len(query), np.int64)
    after[ranking.rows] = ranking.rank
    before = np.empty(len(query), np.int64)
    # Without differences in score the order is that of the input.
    given = rank_rows(query, np.zeros_like(score))
    before[given.rows] = given.rank
    _, number, size = np.unique(query, return_inverse=True, return_counts=True)

    group = np.searchsorted(RANKS, after, side="right") - 1
    places = [np.searchsorted(PLACES, each, side="right") - 1 for each in (before, after)]
    cells, counts = np.unique(np.stack(places), axis=1, return_counts=True)
    several, long = size > 1, size > TOP
    rho = rank_correlations(number, before - after, size)[several]
    stays = np.bincount(number[(before == 1) & (after == 1)], minlength=len(size))
    in_both = np.bincount(number[(before <= TOP) & (after <= TOP)], minlength=len(size))
    return Summary(
        scores=tuple(
            Histogram.of(score[(group == each) & (missed == 0)]) for each in range(len(RANKS))
        ),
        fitting=Histogram.of(lengths[dropped == 0]),
        cut=Histogram.of(lengths[dropped > 0]),
        moves=tuple((int(b), int(a), int(n)) for (b, a), n in zip(cells.T, counts)),
        correlation=tuple(np.histogram(rho, CORRELATION_BINS, (-1.0, 1.0))[0].tolist()),
        compared=int(several.sum()),
        first_kept=int(stays[several].sum()),
        top_places=int(long.sum()) * TOP,
        top_kept=int(in_both[long].sum()),
        gains=_moved(shard, query, part_row, before, after, after < before),
        losses=_moved(shard, query, part_row, before, after, after > before),
    )


def rank_correlations(number: Ints, difference: Ints, size: Ints) -> npt.NDArray[np.float64]:
    """float64 [lists]: Spearman's rho without ties, 1 - 6 * sum(d^2) / (n * (n^2 - 1)).

    number: int64 [documents], the list of each; difference: int64 [documents], of its two ranks;
    size: int64 [lists]. NaN for lists of fewer than two documents.
    """
    squares = np.bincount(number, difference.astype(np.float64) ** 2, len(size))
    n = np.where(size > 1, size, np.nan)
    return 1 - 6 * squares / (n * (n**2 - 1))


def _moved(
    shard: int,
    query: npt.NDArray[np.int32],
    part_row: Ints,
    before: Ints,
    after: Ints,
    chosen: npt.NDArray[np.bool_],
) -> tuple[Move, ...]:
    ratio, distance = np.abs(np.log2(before / after)), np.abs(before - after)
    rows = np.flatnonzero(chosen & (part_row >= 0))
    # A query's strongest come first; more of one than can be kept need no look.
    order = rows[np.lexsort((-distance[rows], -ratio[rows], query[rows]))]
    turn = np.arange(len(order)) - np.searchsorted(query[order], query[order], side="left")
    best = order[np.lexsort((-distance[order], -ratio[order], turn))][:MOVES]
    columns = (query, part_row, before, after)
    return strongest(Move(shard, *(int(column[row]) for column in columns)) for row in best)
