"""Two runs compared: here where they are small, by tasks on Ray where they are large.

A task takes some parts of run A and, of run B, the rows of their queries, a part after the other.
Runs of one input have their queries in one order, so that each part of B is read about once, and
nothing has to be shuffled; of runs in other orders each task reads many parts of B, four narrow
columns of them. The driver holds a hash a query.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from rankmill import storage
from rankmill.compare import changes
from rankmill.compare.changes import Changes, find_changes
from rankmill.compare.examples import Example, with_texts
from rankmill.compare.lists import SCHEMA, needed_columns, read_rows, refuse_unlike
from rankmill.config import ComputeConfig
from rankmill.errors import ConfigError, InputError
from rankmill.export.agreement import OtherRun, index, query_hashes
from rankmill.export.ranked import Ranked, open_ranked
from rankmill.output import refuse_relative
from rankmill.progress import Listener, Progress
from rankmill.qrels import Ints, hash_ids, masked
from rankmill.report.page import settings
from rankmill.storage_settings import of_profile

Hashes = npt.NDArray[np.uint64]
S = TypeVar("S")
T = TypeVar("T")
R = TypeVar("R")

TOP = (1, 5, 10, 20)
MOST = 10
# Runs of fewer rows together are compared in this process: seconds, as Ray's start alone takes.
ON_DRIVER_ROWS = 2_000_000
# Rows of run A that one task compares; with those of run B some 200 bytes each.
_ROWS_A_TASK = 2_000_000
_TASK_CPUS = 1.0


@dataclass(frozen=True, eq=False)
class Comparison:
    """What `compare` found: the two runs, and what changed from the first (a) to the second (b)."""

    run_a: Ranked
    run_b: Ranked
    changes: Changes

    def settings(self) -> dict[str, tuple[str, str]]:
        """What the runs were told and found differently, without credentials: both values by name.

        Where a run lies, and how that is reached, is left out.
        """
        a, b = (
            {one.name: one.value for one in settings(run.record["config"])}
            | {f"profile.{name}": str(value) for name, value in run.record["profile"].items()}
            for run in (self.run_a, self.run_b)
        )
        # A section that one run does not have, and one without its setting, say the same.
        found = {
            name: (a.get(name, "none"), b.get(name, "none")) for name in dict.fromkeys((*a, *b))
        }
        return {
            name: values
            for name, values in found.items()
            if values[0] != values[1] and name != "output.path" and not name.startswith("storage.")
        }

    def to_json(self) -> dict[str, object]:
        """Numbers, text, lists, dicts and None only."""
        found = self.changes
        spreads = {name: one.to_json() for name, one in found.spreads.items()}
        overlaps = {name: one for name, one in spreads.items() if name.startswith("overlap@")}
        return {
            "run_a": facts(self.run_a),
            "run_b": facts(self.run_b),
            "settings": {name: list(values) for name, values in self.settings().items()},
            "counts": dict(found.counts),
            "rank_correlation": spreads["correlation"],
            "overlap": {name.removeprefix("overlap@"): one for name, one in overlaps.items()},
            "rank_change": spreads["rank_change"],
            "score_drift": spreads["drift"],
            "examples": {
                name: [example.told for example in examples]
                for name, examples in found.examples.items()
            },
        }


def facts(run: Ranked) -> dict[str, object]:
    """What names a run; the model is None where the part files do not name it."""
    metadata = {k.decode(): v.decode() for k, v in (run.schema.metadata or {}).items()}
    return {
        "output": run.url,
        "model": metadata.get("rankmill.model.name"),
        "model_digest": metadata.get("rankmill.model.digest"),
        "fingerprint": run.fingerprint,
        "parts": len(run.parts),
    }


class MapShared(Protocol):
    """Applies a function to the same object and every item, as `pipeline.map_shared` does."""

    def __call__(self, function: Callable[[S, T], R], shared: S, items: Sequence[T]) -> Iterable[R]:
        """The results, in order."""
        ...


@dataclass(frozen=True, eq=False)
class _Work:
    """What every task reads."""

    runs: tuple[Ranked, Ranked]
    top: tuple[int, ...]
    most: int

    @property
    def rows(self) -> int:
        """Of both runs."""
        return sum(part.rows for run in self.runs for part in run.parts)


@dataclass(frozen=True, eq=False)
class _Piece:
    """Parts of both runs that are compared by one task. keep: uint64, the hashes of the queries of
    run B that belong to it; None: all."""

    parts_a: Sequence[int]
    parts_b: Sequence[int]
    keep: Hashes | None = None


def compare(
    run_a: str | Path,
    run_b: str | Path,
    *,
    top: Sequence[int] = TOP,
    most: int = MOST,
    texts: bool = False,
    allow_incomplete: bool = False,
    address: str | None = None,
    profile: str | None = None,
    listener: Listener | None = None,
) -> Comparison:
    """Say what changed from one run to another, by the rules of `rankmill.compare`.

    run_a, run_b: output folders of runs, local or URLs. top: the k of the overlaps. most: examples
    of each kind. texts: read the texts of the examples; without, a query that has no id but its
    text is not named. allow_incomplete: take what is committed of runs that have not finished.
    address: of a Ray cluster, as `compute.address`, which is used from two million rows on;
    profile: of AWS.

    Raises `ConfigError` for impossible settings, `InputError` for what is not a complete run, lacks
    ids, or has no query in common with the other.
    """
    if not top or min(top) < 1 or most < 0:
        raise ConfigError(
            f"top is {list(top)} and most {most}; ranks are from 1, examples from 0.",
            "Give for example 1,5,10 and 10.",
        )
    access = of_profile(profile)
    one, other = (
        open_ranked(storage.absolute(str(path)), access, allow_incomplete=allow_incomplete)
        for path in (run_a, run_b)
    )
    refuse_unlike(one, other)
    for run in (one, other):
        needed_columns(run)
    work = _Work((one, other), tuple(sorted(set(top))), most)
    if work.rows <= ON_DRIVER_ROWS:
        found = _compare_piece(work, _Piece(range(len(one.parts)), range(len(other.parts))))
    else:
        found = _on_ray(work, ComputeConfig(address=address), (str(run_a), str(run_b)), listener)
    if not found.counts["queries_common"]:
        like = [masked(read_rows(run, 0)["query"].combine_chunks()) for run in work.runs]
        raise InputError(
            f"None of the {found.counts['queries_a']:,} queries of {one.url} is among the "
            f"{found.counts['queries_b']:,} of {other.url}: their ids are like {like[0]} and like "
            f"{like[1]}.",
            "Compare runs over one set of queries.",
        )
    examples = found.examples
    if texts:
        examples = with_texts(work.runs, examples)
    elif one.query_key == one.columns.query:
        examples = {name: [_unnamed(each) for each in some] for name, some in examples.items()}
    return Comparison(one, other, replace(found, examples=examples))


def _unnamed(example: Example) -> Example:
    return example._replace(told=example.told | {"query": None})


def _on_ray(
    work: _Work, compute: ComputeConfig, paths: Sequence[str], listener: Listener | None
) -> Changes:
    from rankmill import cluster, pipeline

    if cluster.is_foreign_cluster(compute):
        refuse_relative(paths)
    with cluster.connected(compute):
        return _by_tasks(work, partial(pipeline.map_shared, cpus=_TASK_CPUS), listener)


def changes_by_tasks(run_a: Ranked, run_b: Ranked, top: int, map_shared: MapShared) -> Changes:
    """What changed from one run to another, without examples; raises as `compare` does.

    top: the k of the overlap. map_shared: on the cluster that is up.
    """
    refuse_unlike(run_a, run_b)
    return _by_tasks(_Work((run_a, run_b), (top,), most=0), map_shared)


def _by_tasks(work: _Work, map_shared: MapShared, listener: Listener | None = None) -> Changes:
    one, other = (
        index(run, map_shared(query_hashes, run, range(len(run.parts)))) for run in work.runs
    )
    pieces = list(_pieces(one, other)) or [_Piece((), ())]
    found = map_shared(_compare_piece, work, pieces)
    return changes.add(_followed(found, len(pieces), work.rows, listener), work.most)


def _followed(
    found: Iterable[Changes], tasks: int, rows: int, listener: Listener | None
) -> Iterator[Changes]:
    """The same, telling a listener how far it is."""
    started = time.monotonic()
    for done, one in enumerate(found, 1):
        if listener is not None:
            seconds = time.monotonic() - started
            compared = rows * done // tasks
            listener(Progress(tasks, done, rows, compared, compared / seconds, seconds))
        yield one


def _pieces(a: OtherRun, b: OtherRun) -> Iterator[_Piece]:
    """Parts of run A with those of B that hold their queries; then what B has alone."""
    for parts, keep in _grouped(a.ranked, a.hashes, a.part):
        at = np.searchsorted(b.hashes, keep)
        at = at[at < len(b.hashes)]
        holders = b.part[at[np.isin(b.hashes[at], keep)]]
        yield _Piece(parts, np.unique(holders).tolist(), keep)
    alone = ~np.isin(b.hashes, a.hashes)
    for parts, keep in _grouped(b.ranked, b.hashes[alone], b.part[alone]):
        yield _Piece((), parts, keep)


def _grouped(run: Ranked, hashes: Hashes, part: Ints) -> Iterator[tuple[list[int], Hashes]]:
    """The parts that hold some queries, as many together as a task takes, and those queries.

    hashes: uint64 [queries]; part: int64 [queries], parallel.
    """
    if not len(part):
        return
    order = np.argsort(part, kind="stable")
    numbers, starts = np.unique(part[order], return_index=True)
    ends = np.append(starts[1:], len(order))
    task = np.cumsum([run.parts[number].rows for number in numbers]) // _ROWS_A_TASK
    for group in np.split(np.arange(len(numbers)), np.flatnonzero(np.diff(task)) + 1):
        yield numbers[group].tolist(), hashes[order[starts[group[0]] : ends[group[-1]]]]


def _compare_piece(work: _Work, piece: _Piece) -> Changes:
    a, b = (
        pa.concat_tables([SCHEMA.empty_table(), *tables])
        for tables in (
            (read_rows(work.runs[0], part) for part in piece.parts_a),
            (_belonging(read_rows(work.runs[1], part), piece.keep) for part in piece.parts_b),
        )
    )
    return find_changes(a, b, work.top, work.most)


def _belonging(table: pa.Table, keep: Hashes | None) -> pa.Table:
    if keep is None:
        return table
    return table.filter(pa.array(np.isin(hash_ids(table["query"].combine_chunks()), keep)))
