"""Two runs compared: here where they are small, on Ray where they are large.

On Ray each part of run A meets the parts of run B that hold its queries. Runs of one input have
their queries in one order, so those are few; where they are many, the rows of both are brought
together by a hash of the query instead. The driver holds a hash a query.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from rankmill import storage
from rankmill.compare import changes
from rankmill.compare.agreement import PERSISTENCE
from rankmill.compare.changes import Changes, find_changes
from rankmill.compare.lists import SCHEMA, needed_columns, read_rows, refuse_unlike
from rankmill.config import ComputeConfig
from rankmill.errors import ConfigError, InputError
from rankmill.export.agreement import OtherRun, index, query_hashes
from rankmill.export.ranked import Ranked, open_ranked
from rankmill.output import refuse_relative
from rankmill.progress import Listener, Progress
from rankmill.qrels import hash_ids, masked

Hashes = npt.NDArray[np.uint64]

TOP = (1, 5, 10, 20)
MOST = 10
# Runs of fewer rows together are compared in this process: seconds, as Ray's start alone takes.
ON_DRIVER_ROWS = 2_000_000
# Reading a part so many times over, in the mean, costs less than moving its rows.
_READS_A_PART = 3
# Rows of both runs that one task compares; some 100 bytes each.
_ROWS_A_PARTITION = 4_000_000
_TASK_CPUS = 1.0


@dataclass(frozen=True, eq=False)
class Comparison:
    """What `compare` found: the two runs, and what changed from the first (a) to the second (b)."""

    run_a: Ranked
    run_b: Ranked
    changes: Changes

    def to_json(self) -> dict[str, object]:
        """Numbers, text, lists, dicts and None only."""
        found = self.changes
        spreads = {name: one.to_json() for name, one in found.spreads.items()}
        overlaps = {name: one for name, one in spreads.items() if name.startswith("overlap@")}
        return {
            "run_a": _facts(self.run_a),
            "run_b": _facts(self.run_b),
            "counts": dict(found.counts),
            "rank_correlation": {
                "kendall_tau_b": spreads["tau"],
                "rank_biased_overlap": spreads["rbo"] | {"p": PERSISTENCE},
            },
            "overlap": {name.removeprefix("overlap@"): one for name, one in overlaps.items()},
            "rank_change": spreads["rank_change"],
            "score_drift": spreads["drift"],
            "examples": {
                name: [example.told for example in examples]
                for name, examples in found.examples.items()
            },
        }


def _facts(run: Ranked) -> dict[str, object]:
    metadata = {k.decode(): v.decode() for k, v in (run.schema.metadata or {}).items()}
    return {
        "output": run.url,
        "fingerprint": run.fingerprint,
        "parts": len(run.parts),
        "model": metadata.get("rankmill.model.name"),
        "model_digest": metadata.get("rankmill.model.digest"),
    }


@dataclass(frozen=True, eq=False)
class _Work:
    """What every task reads."""

    runs: tuple[Ranked, Ranked]
    top: tuple[int, ...]
    most: int
    partitions: int = 1


@dataclass(frozen=True, eq=False)
class _Piece:
    """Parts of both runs that are compared by one task. keep: uint64, the hashes of the queries of
    run B that belong to it, ascending."""

    parts_a: tuple[int, ...]
    parts_b: tuple[int, ...]
    keep: Hashes


def compare(
    run_a: str | Path,
    run_b: str | Path,
    *,
    top: Sequence[int] = TOP,
    most: int = MOST,
    allow_incomplete: bool = False,
    address: str | None = None,
    profile: str | None = None,
    listener: Listener | None = None,
) -> Comparison:
    """Say what changed from one run to another, by the rules of `rankmill.compare`.

    run_a, run_b: output folders of runs, local or URLs. top: the k of the overlaps. most: examples
    of each kind. allow_incomplete: take what is committed of runs that have not finished. address:
    of a Ray cluster, as `compute.address`, which is used from two million rows on; profile: of AWS.

    Raises `ConfigError` for impossible settings, `InputError` for what is not a complete run, lacks
    ids, or has no query in common with the other.
    """
    if not top or min(top) < 1 or most < 0:
        raise ConfigError(
            f"top is {list(top)} and most {most}; ranks are from 1, examples from 0.",
            "Give for example 1,5,10 and 10.",
        )
    one, other = (
        open_ranked(storage.absolute(str(path)), profile, allow_incomplete=allow_incomplete)
        for path in (run_a, run_b)
    )
    refuse_unlike(one, other)
    for run in (one, other):
        needed_columns(run)
    work = _Work((one, other), tuple(sorted(set(top))), most)
    rows = sum(part.rows for run in work.runs for part in run.parts)
    if rows <= ON_DRIVER_ROWS:
        tables = [
            pa.concat_tables([read_rows(run, part) for part in range(len(run.parts))])
            for run in work.runs
        ]
        found = find_changes(*tables, work.top, most)
    else:
        compute = ComputeConfig(address=address)
        found = _on_ray(work, rows, compute, (str(run_a), str(run_b)), listener)
    if not found.counts["queries_common"]:
        like = [masked(read_rows(run, 0)["query"].combine_chunks()) for run in work.runs]
        raise InputError(
            f"None of the {found.counts['queries_a']:,} queries of {one.url} is among the "
            f"{found.counts['queries_b']:,} of {other.url}: their ids are like {like[0]} and like "
            f"{like[1]}.",
            "Compare runs over one set of queries.",
        )
    return Comparison(one, other, found)


def _on_ray(
    work: _Work,
    rows: int,
    compute: ComputeConfig,
    paths: Sequence[str],
    listener: Listener | None,
) -> Changes:
    from rankmill import exchange, pipeline

    if pipeline.is_foreign_cluster(compute):
        refuse_relative(paths)
    with pipeline.connected(compute):
        one, other = (
            index(run, pipeline.map_shared(query_hashes, run, range(len(run.parts))))
            for run in work.runs
        )
        pieces = _pieces(one, other)
        parts = [
            (side, part) for side, run in enumerate(work.runs) for part in range(len(run.parts))
        ]
        reads = sum(len(piece.parts_a) + len(piece.parts_b) for piece in pieces)
        if reads <= _READS_A_PART * len(parts):
            tasks = len(pieces)
            found = pipeline.map_shared(_compare_piece, work, pieces, _TASK_CPUS)
        else:
            tasks = max(2, -(-rows // _ROWS_A_PARTITION))
            work = replace(work, partitions=tasks)
            found = exchange.exchange(_cut, _compare_cut, work, parts, tasks, _TASK_CPUS)
        return changes.add(_followed(found, tasks, rows, listener), work.most)


def _followed(
    found: Iterator[Changes], tasks: int, rows: int, listener: Listener | None
) -> Iterator[Changes]:
    """The same, telling a listener how far it is."""
    started = time.monotonic()
    for done, one in enumerate(found, 1):
        if listener is not None:
            seconds = time.monotonic() - started
            compared = rows * done // tasks
            listener(Progress(tasks, done, rows, compared, compared / seconds, seconds))
        yield one


def _pieces(a: OtherRun, b: OtherRun) -> list[_Piece]:
    """Each part of run A with those of B that hold its queries; then what B has alone."""
    pieces = []
    for part in range(len(a.ranked.parts)):
        keep = np.unique(a.hashes[a.part == part])
        pieces.append(_Piece((part,), _holders(b, keep), keep))
    for part in range(len(b.ranked.parts)):
        alone = np.unique(b.hashes[(b.part == part) & ~np.isin(b.hashes, a.hashes)])
        if len(alone):
            pieces.append(_Piece((), (part,), alone))
    return pieces


def _holders(run: OtherRun, queries: Hashes) -> tuple[int, ...]:
    return tuple(np.unique(run.part[np.isin(run.hashes, queries)]).tolist())


def _compare_piece(work: _Work, piece: _Piece) -> Changes:
    a, b = (
        pa.concat_tables([SCHEMA.empty_table(), *(read_rows(run, part) for part in parts)])
        for run, parts in zip(work.runs, (piece.parts_a, piece.parts_b))
    )
    belongs = np.isin(hash_ids(b["query"].combine_chunks()), piece.keep)
    return find_changes(a, b.filter(pa.array(belongs)), work.top, work.most)


def _cut(work: _Work, item: tuple[int, int]) -> list[pa.Table]:
    """A part's rows, parted by a hash of the query, with the run that they are of."""
    side, part = item
    table = read_rows(work.runs[side], part)
    table = table.append_column("side", pa.array(np.full(len(table), side, np.int8)))
    at = hash_ids(table["query"].combine_chunks()) % np.uint64(work.partitions)
    return [table.filter(pa.array(at == number)) for number in range(work.partitions)]


def _compare_cut(work: _Work, tables: Iterator[pa.Table]) -> Changes:
    whole = pa.concat_tables(tables)
    a, b = (whole.filter(pc.equal(whole["side"], side)).drop_columns(["side"]) for side in (0, 1))
    return find_changes(a, b, work.top, work.most)
