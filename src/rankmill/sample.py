"""A seeded sample of an input's candidate lists: some pairs to calibrate with, others to judge by.

Which lists are taken depends on their ids and the seed alone, not on how files are cut. No list
is on both sides. The driver holds a hash a list, and the texts of those that are taken.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from rankmill import plan, rows
from rankmill.config import InputConfig
from rankmill.errors import InputError
from rankmill.source import Source
from rankmill.tokens import Int32

Keys = npt.NDArray[np.uint64]

# Calibration: a few pairs of many lists.
CALIBRATION_PAIRS = 300
_CALIBRATION_PAIRS_A_LIST = 10
# Held out: the heads of lists, which is what reranking orders.
HELD_OUT_PAIRS = 1000
_HELD_OUT_PAIRS_A_LIST = 25
# Of all lists, held-out ones at most.
_HELD_OUT_SHARE = 1 / 3
LEAST_PAIRS = 32


@dataclass(frozen=True)
class Pairs:
    """Pairs of texts; list: int32 [pairs], the candidate list of each, from 0."""

    queries: list[str]
    documents: list[str]
    list: Int32

    def __len__(self) -> int:
        return len(self.queries)


@dataclass(frozen=True)
class Sample:
    """What was drawn."""

    calibration: Pairs
    held_out: Pairs


@dataclass(frozen=True)
class _Lists:
    """Candidate lists by their keys. Runs of one list may lie in several row groups.

    group, start, stop: int64 [runs]; list: int64 [runs], indices into pairs. pairs: float64
    [lists], exact unless the layout is nested. priority: int64, the lists in an order by chance.
    """

    group: npt.NDArray[np.int64]
    start: npt.NDArray[np.int64]
    stop: npt.NDArray[np.int64]
    list: npt.NDArray[np.int64]
    pairs: npt.NDArray[np.float64]
    priority: npt.NDArray[np.int64]


def draw(source: Source, asked: InputConfig, seed: int) -> Sample:
    """Draw a sample from an input; rows that a run would put into quarantine are left out.

    Raises `InputError` when too little of it can be scored, or a file cannot be decoded.
    """
    lists = _lists(source, asked.limit, seed)
    depth = np.inf if asked.depth is None else asked.depth
    most = int(len(lists.priority) * _HELD_OUT_SHARE)
    sizes = np.minimum(lists.pairs[lists.priority], depth)
    held_out = _first(sizes[:most], _HELD_OUT_PAIRS_A_LIST, HELD_OUT_PAIRS)
    a_list = max(_CALIBRATION_PAIRS_A_LIST, -(-CALIBRATION_PAIRS // max(len(sizes) - held_out, 1)))
    calibration = _first(sizes[held_out:], a_list, CALIBRATION_PAIRS)
    chosen = (
        _read(source, asked, lists, lists.priority[held_out : held_out + calibration]),
        _read(source, asked, lists, lists.priority[:held_out]),
    )
    random = np.random.default_rng(seed)
    found = Sample(
        _taken(chosen[0], random, a_list),
        _taken(chosen[1], None, _HELD_OUT_PAIRS_A_LIST),
    )
    for what, pairs in (("calibrate with", found.calibration), ("judge by", found.held_out)):
        if len(pairs) < LEAST_PAIRS:
            raise InputError(
                f"The sample has too few pairs that can be scored: {len(pairs)} to {what}, of "
                f"{len(lists.priority)} candidate lists; at least {LEAST_PAIRS} are needed.",
                "Give candidates of more queries: 60 lists of 25 pairs are plenty.",
            )
    return found


def _lists(source: Source, limit: int | None, seed: int) -> _Lists:
    keys, groups, starts, stops, sizes = [], [], [], [], []
    for number, group in enumerate(source.row_groups):
        runs = plan.find_runs(source, group)
        if len(runs.key):
            keys.append(runs.key)
            groups.append(np.full(len(runs.key), number))
            starts.append(np.append(0, runs.start[1:]))
            stops.append(np.append(runs.start[1:], group.rows))
            sizes.append((stops[-1] - starts[-1]) * (group.pairs / max(group.rows, 1)))
    if not keys:
        raise InputError(
            "The sample has no candidate lists: it is empty, or no row has a query.",
            "Give a table of pairs as `rankmill rerank` takes them.",
        )
    distinct, first, list_ = np.unique(np.concatenate(keys), return_index=True, return_inverse=True)
    pairs = np.bincount(list_, np.concatenate(sizes)).astype(np.float64)
    among = np.argsort(first)[:limit]
    order = among[np.argsort(_shuffled(distinct[among], seed), kind="stable")]
    return _Lists(
        group=np.concatenate(groups).astype(np.int64),
        start=np.concatenate(starts),
        stop=np.concatenate(stops),
        list=list_,
        pairs=pairs,
        priority=order,
    )


def _shuffled(keys: Keys, seed: int) -> Keys:
    """uint64 [lists]: a hash of each key under a seed."""
    digests = (
        hashlib.blake2b(key.tobytes(), digest_size=8, key=str(seed).encode()).digest()
        for key in keys
    )
    return np.frombuffer(b"".join(digests), np.uint64)


def _first(sizes: npt.NDArray[np.float64], a_list: int, wanted: int) -> int:
    """How many of the first lists give that many pairs, when each gives `a_list` at most."""
    given = np.cumsum(np.minimum(sizes, a_list))
    return min(int(np.searchsorted(given, wanted)) + 1, len(sizes))


def _read(
    source: Source, asked: InputConfig, lists: _Lists, wanted: npt.NDArray[np.int64]
) -> Pairs:
    """All pairs of some lists that can be scored, in input order."""
    tables = []
    for number in np.unique(lists.group[np.isin(lists.list, wanted)]):
        runs = np.flatnonzero((lists.group == number) & np.isin(lists.list, wanted))
        offset = 0
        for table in source.batches(source.row_groups[number]):
            row = np.arange(offset, offset + table.num_rows)
            run = np.searchsorted(lists.start[runs], row, side="right") - 1
            inside = (run >= 0) & (row < lists.stop[runs][run])
            tables.append(table.filter(pa.array(inside)))
            offset += table.num_rows
    table = pa.concat_tables(tables) if tables else source.table_schema.empty_table()
    if source.layout == "nested":
        table, _ = rows.flatten(table, source.columns.candidates)
    checked = rows.check(table, source.columns, source.has_query_id, asked.max_text_bytes)
    good = pc.is_null(checked.reason).to_numpy(zero_copy_only=False)
    if asked.depth is not None:
        good &= checked.position < asked.depth
    kept = pa.array(good)
    return Pairs(
        checked.query_text.filter(kept).to_pylist(),
        checked.document_text.filter(kept).to_pylist(),
        checked.query[good],
    )


def _taken(pairs: Pairs, random: np.random.Generator | None, a_list: int) -> Pairs:
    """At most so many pairs of each list: the first ones, or some by chance."""
    chosen = []
    for number in np.unique(pairs.list):
        places = np.flatnonzero(pairs.list == number)
        if random is not None:
            places = random.permutation(places)
        chosen.append(np.sort(places[:a_list]))
    taken = np.concatenate([np.empty(0, np.int64), *chosen]).tolist()
    return Pairs(
        [pairs.queries[one] for one in taken],
        [pairs.documents[one] for one in taken],
        np.unique(pairs.list[taken], return_inverse=True)[1].astype(np.int32),
    )
