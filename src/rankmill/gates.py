"""Gates: what a run must reach, once all shards are committed, to count as complete.

- Rates come from the run's counters.
- nDCG@k is trec_eval's, over the golden queries that the judgements name, by query and document
  id, on what was written (`output.top_k` may cut below k).
- Overlap and score shift are those of `rankmill compare`: the mean share of the first k documents
  in common, the root mean square of the score drift.
- What cannot be measured, because two runs share no query, has failed. Where there is no previous
  run yet (no `previous`, and nothing in `reuse`), its gates pass with a warning: a first night has
  none.

Parts are read by tasks; the driver holds the golden queries' rows, and a hash a query.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from rankmill.compare.comparison import MapShared, changes_by_tasks
from rankmill.config import RunConfig
from rankmill.errors import ConfigError, GatesFailed, InputError
from rankmill.evaluate import evaluate
from rankmill.export.ranked import Ranked, open_ranked
from rankmill.markers import Counters
from rankmill.output import refuse_overlap
from rankmill.qrels import ids_of, read_judgements, read_qrels

log = logging.getLogger("rankmill")


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


def check(config: RunConfig, url: str, counters: Counters, map_shared: MapShared) -> list[Gate]:
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
            found["min_ndcg"] = _ndcg(ranked, qrels, wanted.k, map_shared)
        previous = _previous(config)
        if previous is not None:
            other = open_ranked(previous, config.storage, allow_incomplete=True)
            changes = changes_by_tasks(ranked, other, wanted.k, map_shared)
            found["min_overlap"] = changes.spreads[f"overlap@{wanted.k}"].mean
            found["max_score_shift"] = changes.spreads["drift"].rms
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


def _ndcg(ranked: Ranked, qrels: pa.Table, k: int, map_shared: MapShared) -> float | None:
    golden = read_judgements(qrels).queries
    parts = range(len(ranked.parts))
    rows = pa.concat_tables(map_shared(_judged_rows, (ranked, golden), parts))
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
