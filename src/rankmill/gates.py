"""Gates: what a run must reach, once all shards are committed, to count as complete.

- Rates come from the run's counters.
- nDCG@k is trec_eval's, over the golden queries that the judgements name, by query and document
  id, on what was written (`output.top_k` may cut below k).
- Overlap is the share of the first k documents that two runs have in common, the mean over the
  queries in both; of lists that are both shorter than k, of the longer one's length.
- Score shift is the root mean square of the differences of the scores of pairs of ids that both
  runs wrote; of a cascade those of its last stage alone, for stages share no scale.
- Overlap and shift are taken over the queries of at most some two million rows, drawn by a hash of
  the id: the same queries in both runs, whatever their order.
- What cannot be measured, because two runs share no query, has failed. Where there is no previous
  run yet (no `previous`, and nothing in `reuse`), its gates pass with a warning: a first night has
  none.

Parts are read one a task; the driver holds the golden queries' rows and those that were drawn.
"""

from __future__ import annotations

import hashlib
import logging
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from rankmill.config import RunConfig
from rankmill.errors import ConfigError, GatesFailed, InputError
from rankmill.evaluate import evaluate
from rankmill.export.ranked import Ranked, open_ranked
from rankmill.markers import Counters
from rankmill.output import refuse_overlap
from rankmill.qrels import ids_of, read_judgements, read_qrels
from rankmill.results import Results

log = logging.getLogger("rankmill")

S = TypeVar("S")
R = TypeVar("R")

# 24 bytes each on the driver. With 100 rows a query the mean of 20,000 overlaps is still exact to
# 0.002 (one standard error, for overlaps that vary by 0.3).
ROWS_COMPARED = 2_000_000


@dataclass(frozen=True)
class Gate:
    """A limit and what was found; None: it could not be measured. name: of the setting."""

    name: str
    limit: float
    found: float | None
    passed: bool

    def line(self) -> str:
        """`min_ndcg: 0.31, at least 0.4 was asked`."""
        found = "not measured" if self.found is None else f"{self.found:.4g}"
        bound = "at most" if self.name.startswith("max_") else "at least"
        return f"{self.name}: {found}, {bound} {self.limit:g} was asked"

    def to_json(self) -> dict[str, Any]:
        """As stored in the manifest."""
        return asdict(self)


class MapParts(Protocol):
    """Applies a function to the same object and every item, as `pipeline.map_shared` does."""

    def __call__(
        self, function: Callable[[S, int], R], shared: S, items: Sequence[int]
    ) -> Iterable[R]:
        """The results, in order."""
        ...


def refuse_unmeasurable(config: RunConfig, written: Sequence[str]) -> None:
    """Raise what would make a gate fail for no fault of the scores, before anything is scored.

    written: the columns of the output. Raises `ConfigError` for ids that are not written and for
    a previous run that is this one, `InputError` for judgements or a run that cannot be read.
    """
    wanted, columns = config.gates, config.input.columns
    if wanted.qrels is None and not wanted.compares:
        return
    for name, column in (("query_id", columns.query_id), ("doc_id", columns.doc_id)):
        if column is None or column not in written:
            raise ConfigError(
                f"The gates match queries and documents by id, but {name} is not written.",
                f"Name its column in input.columns.{name} and let output.columns write it.",
            )
    if wanted.qrels is not None:
        read_judgements(wanted.qrels, config.storage)
    previous = _previous(config)
    if previous is not None:
        # A run is always like itself.
        refuse_overlap([previous], config.output.path, "previous output")
        _require_ids(open_ranked(previous, config.storage, allow_incomplete=True))


def check(config: RunConfig, url: str, counters: Counters, map_parts: MapParts) -> list[Gate]:
    """Measure every gate of a run whose shards are all committed. url: of its output."""
    wanted = config.gates
    scored = counters.pairs_scored + counters.pairs_reused + counters.pairs_duplicate
    found: dict[str, float | None] = {
        "max_quarantine_rate": counters.rows_quarantined / max(counters.rows_in, 1),
        "max_truncation_rate": counters.pairs_truncated / max(scored, 1),
    }
    excused: tuple[str, ...] = ()
    if wanted.qrels is not None or wanted.compares:
        ranked = open_ranked(url, config.storage, allow_incomplete=True)
        if wanted.qrels is not None:
            qrels = read_qrels(wanted.qrels, config.storage)
            found["min_ndcg"] = _ndcg(ranked, qrels, wanted.k, map_parts)
        previous = _previous(config)
        if previous is not None:
            other = open_ranked(previous, config.storage, allow_incomplete=True)
            found |= _changes(ranked, other, wanted.k, map_parts)
        elif wanted.compares:
            log.warning("There is no previous run: its gates pass without being measured.")
            excused = ("min_overlap", "max_score_shift")
    return [
        _gate(name, limit, found.get(name), name in excused)
        for name, limit in limits(config).items()
    ]


def refuse_failed(gates: Sequence[Gate], url: str, manifest: dict[str, Any]) -> None:
    """Raise `GatesFailed` with what was found when a gate of a run has failed."""
    failed = [gate.line() for gate in gates if not gate.passed]
    if failed:
        raise GatesFailed(
            f"{len(failed)} of {len(gates)} gates failed:\n" + "\n".join(f"  {f}" for f in failed),
            f"All parts lie in {url}, without _SUCCESS. If they are good enough, change the "
            "limits and run the same command again: nothing is scored anew.",
            manifest,
        )


def limits(config: RunConfig) -> dict[str, float]:
    """The limits that are set, by the names of their settings."""
    values = config.gates.model_dump()
    named = ((n, v) for n, v in values.items() if n.startswith(("min_", "max_")))
    return {name: value for name, value in named if value is not None}


def _gate(name: str, limit: float, found: float | None, excused: bool) -> Gate:
    if found is None:
        return Gate(name, limit, None, excused)
    return Gate(name, limit, found, found <= limit if name.startswith("max_") else found >= limit)


def _previous(config: RunConfig) -> str | None:
    """The run to compare with, where a gate asks for one."""
    asked = config.gates.previous or next(iter(config.reuse), None)
    return asked if config.gates.compares else None


def _require_ids(ranked: Ranked) -> tuple[str, str]:
    columns = ranked.columns
    if columns.query_id is None or columns.doc_id is None:
        raise InputError(
            f"The run at {ranked.url} has no ids, by which gates match queries and documents.",
            "Compare with a run whose input names query_id and doc_id.",
        )
    ranked.require([columns.query_id, columns.doc_id], "a gate")
    return columns.query_id, columns.doc_id


# nDCG


def _ndcg(ranked: Ranked, qrels: pa.Table, k: int, map_parts: MapParts) -> float | None:
    golden = read_judgements(qrels).queries
    parts = range(len(ranked.parts))
    rows = pa.concat_tables(map_parts(_judged_rows, (ranked, golden), parts))
    if not rows.num_rows:
        return None
    return evaluate(rows, qrels, metrics=[f"ndcg@{k}"], prefix="").metrics[f"ndcg@{k}"]


def _judged_rows(shared: tuple[Ranked, pa.Array], part: int) -> pa.Table:
    """query_id, doc_id, rank of a part's golden queries."""
    ranked, golden = shared
    query, document = _require_ids(ranked)
    table = ranked.read(part, [query, document, f"{ranked.prefix}rank"])
    columns = {
        "query_id": ids_of(table, query, "ranked table"),
        "doc_id": ids_of(table, document, "ranked table"),
        "rank": table.column(f"{ranked.prefix}rank"),
    }
    return pa.table(columns).filter(pc.is_in(columns["query_id"], golden))


# Overlap and shift


@dataclass(frozen=True)
class _Rows:
    """Ranked rows. query, pair: uint64, hashes of ids; rank: int32; score: float32."""

    query: npt.NDArray[np.uint64]
    pair: npt.NDArray[np.uint64]
    rank: npt.NDArray[np.int32]
    score: npt.NDArray[np.float32]


def _changes(one: Ranked, other: Ranked, k: int, map_parts: MapParts) -> dict[str, float | None]:
    rows = max(sum(part.rows for part in run.parts) for run in (one, other))
    every = max(math.ceil(rows / ROWS_COMPARED), 1)
    a, b = (_drawn(run, every, map_parts) for run in (one, other))
    _, at_a, at_b = np.intersect1d(a.pair, b.pair, return_indices=True)
    shift = a.score[at_a].astype(np.float64) - b.score[at_b]
    shift = shift[np.isfinite(shift)]
    return {
        "min_overlap": _overlap(a, b, k),
        "max_score_shift": float(np.sqrt(np.mean(shift**2))) if len(shift) else None,
    }


def _overlap(a: _Rows, b: _Rows, k: int) -> float | None:
    queries = np.intersect1d(a.query, b.query)
    if not len(queries):
        return None
    top_a, top_b = (run.pair[run.rank <= k] for run in (a, b))
    in_both = np.isin(a.pair, np.intersect1d(top_a, top_b))
    shared = _counts(a.query[in_both], queries)
    longest = np.maximum(_counts(a.query, queries), _counts(b.query, queries))
    return float(np.mean(shared / np.minimum(longest, k)))


def _counts(values: npt.NDArray[np.uint64], of: npt.NDArray[np.uint64]) -> npt.NDArray[np.int64]:
    """How often each of some ascending values stands among others."""
    values = np.sort(values)
    low, high = (np.searchsorted(values, of, side) for side in ("left", "right"))
    return high - low


def _drawn(run: Ranked, every: int, map_parts: MapParts) -> _Rows:
    """The rows of one query in `every`; of equal pairs the best ranked."""
    tables = map_parts(_drawn_rows, (run, every), range(len(run.parts)))
    table = pa.concat_tables(tables).sort_by("rank")
    columns = {name: table.column(name).to_numpy() for name in table.column_names}
    _, best = np.unique(columns["pair"], return_index=True)
    return _Rows(**{name: values[best] for name, values in columns.items()})


def _drawn_rows(shared: tuple[Ranked, int], part: int) -> pa.Table:
    run, every = shared
    query, document = _require_ids(run)
    rank, score = f"{run.prefix}rank", f"{run.prefix}score"
    stages = Results.of_stored(run.record["config"]).stages
    stage = [f"{run.prefix}stage"] if stages else []
    table = run.read(part, [query, document, rank, score, *stage])
    scores = table.column(score).cast(pa.float32())
    if stages:
        scores = pc.if_else(pc.equal(table.column(*stage), stages), scores, np.float32(np.nan))
    queries, documents = (ids_of(table, name, "ranked table") for name in (query, document))
    encoded = pc.dictionary_encode(queries)
    hashes = np.array([_hash(one) for one in encoded.dictionary.to_pylist()], np.uint64)
    drawn = pc.and_(
        pc.is_in(encoded.indices, pa.array(np.flatnonzero(hashes % np.uint64(every) == 0))),
        pc.is_valid(documents),
    )
    key = hashes[encoded.indices.filter(drawn).to_numpy()] if len(hashes) else hashes
    document_hash = [_hash(one) for one in documents.filter(drawn).to_pylist()]
    pair = key * np.uint64(0x9E3779B97F4A7C15) ^ np.array(document_hash, np.uint64)
    return pa.table(
        {
            "query": key,
            "pair": pair,
            "rank": table.column(rank).filter(drawn).cast(pa.int32()),
            "score": scores.filter(drawn),
        }
    )


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")
