"""Scores of other runs for the same pairs: where they lie, and joining them on.

Another run's shards are cut elsewhere, so it is indexed first: eight bytes a query say which of
its parts holds that query's list. A part is then joined with the few that it needs.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from rankmill.export.ranked import Ranked
from rankmill.qrels import hash_ids, ids_of, match_pairs
from rankmill.rank import Float32

Hashes = npt.NDArray[np.uint64]


@dataclass(frozen=True, eq=False)
class OtherRun:
    """An indexed run. hashes: uint64 [queries], ascending; part: int64 [queries], parallel."""

    ranked: Ranked
    hashes: Hashes
    part: npt.NDArray[np.int64]


def query_hashes(ranked: Ranked, part: int) -> Hashes:
    """uint64, a hash of each query in a part; the same in every process and on every machine."""
    return hashes(_ids(ranked, ranked.read(part, [ranked.query_key]), ranked.query_key))


def _ids(ranked: Ranked, table: pa.Table, name: str) -> pa.Array:
    return ids_of(table, name, f"run {ranked.url}")


def hashes(queries: pa.Array) -> Hashes:
    """uint64, a hash of each distinct query id (or text)."""
    return hash_ids(pc.unique(queries))


def index(ranked: Ranked, by_part: Iterable[Hashes]) -> OtherRun:
    """Put together the hashes of a run's parts, one item a part, in order."""
    found = list(by_part)
    part = np.repeat(np.arange(len(found)), [len(each) for each in found])
    whole = np.concatenate(found)
    order = np.argsort(whole, kind="stable")
    return OtherRun(ranked, whole[order], part[order])


def scores_of(other: OtherRun, query_id: pa.Array, doc_id: pa.Array) -> Float32:
    """float32 [pairs]: another run's score for each pair, NaN where it has none.

    query_id, doc_id: large_string [pairs]. Of a pair that the other run holds twice, the better
    score counts.
    """
    ranked, score = other.ranked, f"{other.ranked.prefix}score"
    assert ranked.columns.doc_id is not None, "runs that must agree have document ids"
    parts = np.unique(other.part[np.isin(other.hashes, hashes(query_id))])
    names = [ranked.query_key, ranked.columns.doc_id, score]
    tables = [ranked.read(int(part), names) for part in parts]
    if not tables:
        return np.full(len(query_id), np.nan, np.float32)
    table = pa.concat_tables(tables)
    known = (_ids(ranked, table, names[0]), _ids(ranked, table, names[1]))
    values = np.append(table.column(score).cast(pa.float32()).to_numpy(), np.float32(np.nan))
    # Place -1, "not there", is the NaN at the end.
    return values[match_pairs((query_id, doc_id), known)]
