"""The plan: which rows make up which shard. A pure function of input and settings.

A shard is a run of whole candidate lists, consecutive in the input. The planner sees one column
(the candidate key) and the footers; it keeps a hash and an offset a query, nothing a row.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from rankmill import rows
from rankmill.errors import InputError
from rankmill.listing import RowGroup
from rankmill.load import Load
from rankmill.source import Source

# A shard's work: about a minute on one worker of the slow kind (a core of a 2-core AVX512-BF16
# machine did 110 GFLOP/s on cranfield, MiniLM-L6 shape, bf16 through torch). A small input is cut
# into SMALL_PLAN shards, so that a laptop's cores all have work, but not into shards of a second or
# two: batches of few pairs are padded (of the demo's 130 pairs 13 %, of 600 pairs 4 %).
SHARD_OPERATIONS = 5e12
SHARD_OPERATIONS_LEAST = 1e12
# Where the configuration asks for GPUs: each does more than a hundred such workers, in batches that
# are full and next to unpadded only when drawn from many pairs.
GPU_TIMES = 100
SMALL_PLAN = 16
SHARD_PAIRS = 16_384
SHARD_BYTES = 64 << 20
# Bytes of UTF-8 a token: 4 to 5 in English, 4 to 6 in Japanese (3 bytes a character).
_BYTES_PER_TOKEN = 4.0
_SAMPLE_ROWS = 1024
# Runs that are gathered before they are first looked through for a list that comes again.
_RUNS_UNCHECKED = 1 << 20
# Lists that are cut into shards at once, so that memory for it does not grow with them.
_LISTS_AT_ONCE = 1 << 18


class ListsApart(InputError):
    """Rows of one candidate list lie apart: it must be sorted before shards can be cut."""


@dataclass(frozen=True)
class QueryRuns:
    """Runs of equal candidate keys in one row group.

    key: uint64 [runs], a hash of the key; start: int64 [runs], the run's first row in the group.
    Rows without a key belong to the run before them, or to the first. repeated_bytes: of texts
    that the footer does not count because they repeat, measured on the group's first rows.
    """

    key: npt.NDArray[np.uint64]
    start: npt.NDArray[np.int64]
    repeated_bytes: int = 0


@dataclass(frozen=True)
class Piece:
    """Rows `first` to `stop` of one row group."""

    group: int
    first: int
    stop: int


@dataclass(frozen=True)
class Shard:
    """Consecutive table rows `start` to `stop` of the whole input, `queries` candidate lists."""

    index: int
    start: int
    stop: int
    queries: int


@dataclass(frozen=True)
class Plan:
    """All shards of a run.

    bounds: int64 [shards + 1], table rows; queries: int64 [shards]. `pairs` and `tokens` are
    estimates from the footers unless the layout is `pairs` (then `pairs` is exact). tokens_a_pair:
    as each of the run's models sees them.
    """

    groups: tuple[RowGroup, ...]
    bounds: npt.NDArray[np.int64]
    queries: npt.NDArray[np.int64]
    pairs: int
    tokens: int
    tokens_a_pair: tuple[float, ...] = ()

    def __len__(self) -> int:
        return len(self.queries)

    def shard(self, index: int) -> Shard:
        """The shard of that number, from 0."""
        start, stop = self.bounds[index : index + 2]
        return Shard(index, int(start), int(stop), int(self.queries[index]))

    @cached_property
    def group_starts(self) -> npt.NDArray[np.int64]:
        """int64 [groups + 1]: the first table row of each row group."""
        return _cumulative([group.rows for group in self.groups])

    def pieces(self, shard: Shard) -> list[Piece]:
        """The row-group runs that hold a shard's rows, in order."""
        starts = self.group_starts
        first = int(np.searchsorted(starts, shard.start, side="right")) - 1
        pieces = []
        for group in range(max(first, 0), len(self.groups)):
            low, high = int(starts[group]), int(starts[group + 1])
            if low >= shard.stop:
                break
            begin, end = max(shard.start, low), min(shard.stop, high)
            if end > begin:
                pieces.append(Piece(group, begin - low, end - low))
        return pieces

    @property
    def digest(self) -> str:
        """SHA-256 over the shards' borders: equal plans, equal digests."""
        return hashlib.sha256(self.bounds.tobytes() + self.queries.tobytes()).hexdigest()


def find_runs(source: Source, group: RowGroup) -> QueryRuns:
    """Read the candidate key of one row group and find its runs."""
    keys: list[npt.NDArray[np.uint64]] = []
    starts: list[npt.NDArray[np.int64]] = []
    offset, last = 0, None
    for table in source.batches(group, [source.query_key], rows=1 << 16):
        key = rows.candidate_key(table, source.columns, source.has_query_id)
        present, values = None, key
        if key.null_count:
            present = np.flatnonzero(pc.is_valid(key).to_numpy(zero_copy_only=False))
            values = key.drop_null()
        if len(values):
            changed = np.ones(len(values), bool)
            changed[1:] = pc.not_equal(values[1:], values[:-1]).to_numpy(zero_copy_only=False)
            hashes = _hashes(values.filter(pa.array(changed)))
            where = np.flatnonzero(changed) if present is None else present[changed]
            where = where + offset
            if last is not None and hashes[0] == last:
                hashes, where = hashes[1:], where[1:]
            keys.append(hashes)
            starts.append(where)
            last = hashes[-1] if len(hashes) else last
        offset += table.num_rows
    repeated = _sampled_bytes(source, group) if group.repeating else 0
    if not keys:
        return QueryRuns(np.empty(0, np.uint64), np.empty(0, np.int64), repeated)
    return QueryRuns(np.concatenate(keys), np.concatenate(starts), repeated)


def _sampled_bytes(source: Source, group: RowGroup) -> int:
    """Bytes of a row group's repeating texts, of which the footer knows only the dictionaries'."""
    stored = source.table_schema.names
    names = [n if n in stored else source.columns.candidates for n in group.repeating]
    try:
        table = next(source.batches(group, list(dict.fromkeys(names)), rows=_SAMPLE_ROWS))
    except InputError:
        return 0  # a broken page is found when its shard is read
    if source.layout == "nested" and source.columns.candidates in names:
        table, _ = rows.flatten(table, source.columns.candidates)
    if not table.num_rows:
        return 0
    lengths = (pc.sum(pc.binary_length(rows.plain(table[name]))) for name in group.repeating)
    mean = sum(length.as_py() or 0 for length in lengths) / table.num_rows
    return int(mean * group.pairs)


def _hashes(values: pa.Array) -> npt.NDArray[np.uint64]:
    digests = b"".join(
        hashlib.blake2b(str(value).encode(), digest_size=8).digest() for value in values.to_pylist()
    )
    return np.frombuffer(digests, np.uint64)


def make_plan(
    source: Source,
    runs: Iterable[QueryRuns],
    loads: Sequence[Load],
    limit: int | None = None,
    times: float = 1.0,
) -> Plan:
    """Cut the input into shards.

    runs: one item a row group, in order; no more are taken than `limit` queries need.
    loads: of the models, in the order in which they score; they turn bytes into work. times: how
    many slow workers' work one of the run's is to have.

    Raises `ListsApart` when a query's rows lie apart, as soon as that is seen: where they do, there
    may be as many runs as rows.
    """
    found = _Found()
    enough = _RUNS_UNCHECKED
    for run, group in zip(_until(runs, limit), source.row_groups):
        found.add(run, group)
        if found.runs > enough:
            _refuse_apart(source, *found.lists())
            enough = 2 * found.runs
    repeated_bytes = found.repeated_bytes
    groups = source.row_groups[: len(repeated_bytes)]
    keys, starts = found.lists()
    _refuse_apart(source, keys, starts)
    del keys, found  # what is left to do takes as much memory as they
    total, lists = sum(group.rows for group in groups), len(starts)
    if limit is not None and limit < len(starts):
        total, starts = int(starts[limit]), starts[:limit]
    work = Work(Weights.of_groups(groups, repeated_bytes), loads, lists, times)
    bounds, queries = work.cut(np.append(starts, total))
    return Plan(groups, bounds, queries, *work.size(bounds), work.tokens_a_pair)


def _until(runs: Iterable[QueryRuns], limit: int | None) -> Iterator[QueryRuns]:
    """The row groups that hold the first `limit` queries, and what shows where the last ends."""
    queries = 0
    for run in runs:
        yield run
        # A list may go on from one group to the next, so a group's runs may be one fewer.
        queries += max(len(run.key) - 1, 0)
        if limit is not None and queries > limit:
            return


class _Found:
    """The runs of the row groups so far, as the whole input's. `runs`: how many there are."""

    def __init__(self) -> None:
        self.repeated_bytes: list[int] = []
        self.runs = 0
        self._keys: list[npt.NDArray[np.uint64]] = []
        self._starts: list[npt.NDArray[np.int64]] = []
        self._rows = 0
        self._last: np.uint64 | None = None

    def add(self, run: QueryRuns, group: RowGroup) -> None:
        """Take the next row group's; a list may go on from one group to the next."""
        key, start = run.key, run.start + self._rows
        if len(key):
            if key[0] == self._last:
                key, start = key[1:], start[1:]
            self._last = run.key[-1]
            self._keys.append(key)
            self._starts.append(start)
        self.runs += len(key)
        self.repeated_bytes.append(run.repeated_bytes)
        self._rows += group.rows

    def lists(self) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.int64]]:
        """uint64 [lists], int64 [lists]: each list's key and first row."""
        if not self._keys:  # no row has a key: all of them are one run for quarantine
            return np.empty(0, np.uint64), np.zeros(min(self._rows, 1), np.int64)
        self._keys, self._starts = [np.concatenate(self._keys)], [np.concatenate(self._starts)]
        self._starts[0][0] = 0  # rows without a key that lead the input go with its first list
        return self._keys[0], self._starts[0]


def _refuse_apart(
    source: Source, keys: npt.NDArray[np.uint64], starts: npt.NDArray[np.int64]
) -> None:
    ordered = np.sort(keys)  # several times as fast as to find their order too
    if not np.any(ordered[1:] == ordered[:-1]):
        return
    order = np.argsort(keys, kind="stable")
    again = np.flatnonzero(keys[order][1:] == keys[order][:-1])
    earliest = again[np.argmin(starts[order[again + 1]])]
    first, second = int(starts[order[earliest]]), int(starts[order[earliest + 1]])
    raise ListsApart(
        f"The rows of a candidate list lie apart: the {source.query_key} of row {first} comes "
        f"again at row {second} (counted from 0 over all files in name order).",
        f"Sort the input by {source.query_key} and run again.",
    )


@dataclass(frozen=True)
class Weights:
    """What stretches of consecutive table rows weigh: float64 [stretches] each, rows int64.

    text_bytes: of what is scored; total_bytes: of all columns.
    """

    rows: npt.NDArray[np.int64]
    pairs: npt.NDArray[np.float64]
    text_bytes: npt.NDArray[np.float64]
    total_bytes: npt.NDArray[np.float64]

    @classmethod
    def of_groups(cls, groups: Sequence[RowGroup], repeated_bytes: Sequence[int]) -> Weights:
        """A stretch a row group. repeated_bytes: see `QueryRuns`."""
        text = [group.text_bytes + more for group, more in zip(groups, repeated_bytes)]
        return cls(
            np.array([group.rows for group in groups], np.int64),
            np.array([group.pairs for group in groups], np.float64),
            np.array(text, np.float64),
            np.array([group.total_bytes for group in groups], np.float64),
        )


class Work:
    """Cumulative pairs, tokens, bytes and operations before a table row (piecewise linear).

    lists: candidate lists of the whole input; times: see `make_plan`.
    """

    def __init__(self, weights: Weights, loads: Sequence[Load], lists: int, times: float) -> None:
        per_pair = weights.text_bytes / np.maximum(weights.pairs, 1) / _BYTES_PER_TOKEN
        self._rows = _before(weights.rows)
        self._pairs = _before(weights.pairs)
        self._tokens = np.zeros(len(self._rows))
        self._operations = np.zeros(len(self._rows))
        pairs = float(self._pairs[-1])
        a_pair = []
        for load in loads:
            seen = _before(weights.pairs * load.seen_tokens(per_pair))
            a_pair.append(float(seen[-1]) / max(pairs, 1.0))
            seen = seen * load.share(pairs, lists)
            self._tokens += seen
            self._operations += seen * (load.operations_per_token / times)
        # By model: tokens that it sees of a pair, on the average.
        self.tokens_a_pair = tuple(a_pair)
        # What a shard holds in memory: all columns, and text that a dictionary does not share.
        self._bytes = _before(np.maximum(weights.total_bytes, weights.text_bytes))

    def size(self, bounds: npt.NDArray[np.int64]) -> tuple[int, int]:
        """Pairs and tokens before the last of some rows."""
        pairs, tokens = (np.interp(bounds[-1], self._rows, m) for m in (self._pairs, self._tokens))
        return int(pairs.round()), int(tokens.round())

    def _stops(self, borders: npt.NDArray[np.int64], most: float) -> npt.NDArray[np.int64]:
        """int64 [borders]: the last border that every cap allows a shard that begins at each.

        most: operations of a shard.
        """
        measures = (
            (self._operations, most),
            (self._pairs, SHARD_PAIRS),
            (self._bytes, SHARD_BYTES),
        )
        stops = np.full(len(borders), len(borders) - 1)
        for measure, cap in measures:
            share = np.interp(borders, self._rows, measure) / cap
            stops = np.minimum(stops, np.searchsorted(share, share + 1.0, side="right") - 1)
        return stops

    def cut(
        self, borders: npt.NDArray[np.int64]
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Bounds of shards, and how many lists each holds; borders: the lists', and the end.

        Greedy: each shard takes as many whole lists as every cap allows, and at least one.
        """
        operations = float(np.interp(borders[-1], self._rows, self._operations))
        most = min(SHARD_OPERATIONS, max(operations / SMALL_PLAN, SHARD_OPERATIONS_LEAST))
        taken, last, window = [0], len(borders) - 1, _LISTS_AT_ONCE
        while taken[-1] < last:
            low = taken[-1]
            end = min(window, last - low)
            stops = self._stops(borders[low : low + end + 1], most).tolist()
            first = 0
            # Where a shard's last border is the window's, the next may be its too.
            while first < end and (stops[first] < end or low + end == last):
                first = max(stops[first], first + 1)
                taken.append(low + first)
            if first == 0:
                window *= 2
        if len(taken) == 1:  # no rows: one empty shard, so that there is one part with the schema
            return np.zeros(2, np.int64), np.zeros(1, np.int64)
        cuts = np.array(taken, np.int64)
        return borders[cuts], np.diff(cuts)


def _before(measure: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """float64 [stretches + 1]: the sums before each stretch, and in all."""
    return np.concatenate([[0.0], np.cumsum(measure)])


def _cumulative(counts: Sequence[int]) -> npt.NDArray[np.int64]:
    return np.concatenate([[0], np.cumsum(np.array(counts, np.int64))]).astype(np.int64)
