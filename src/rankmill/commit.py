"""Commit by shard: rank, write the part, its scores, its quarantined rows, then its marker.

Whatever was written before a crash is either complete under its final name or invisible; a shard
without a marker is computed again and overwrites the same names with the same bytes.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from ray.data.block import Block
from ray.data.datasource import Datasink

from rankmill import calibration, fusion, markers, outcome, rank, schema, score_files, summary
from rankmill.attempts import Attempts
from rankmill.calibration import Curve
from rankmill.envelope import Envelope, Scored
from rankmill.errors import OutputBusy, RunFailed
from rankmill.markers import QUARANTINE, SCORES, Counters, Marker, ModelCost, WrittenFile
from rankmill.outcome import Outcome
from rankmill.rank_settings import FuseConfig
from rankmill.results import ONE_MODEL, Results
from rankmill.schema import MISSING, ORIGIN_ROW
from rankmill.store import Store

if TYPE_CHECKING:
    from ray.data._internal.execution.interfaces import TaskContext

# A store that answers slowly or with an error now and then is asked again, after 1, 2 and 4 s.
_WRITE_ATTEMPTS = 4


@dataclass(frozen=True)
class CommitSettings:
    """What every commit of a run needs.

    columns: the input columns that are written; results: those that the run adds; fuse, curve: how
    two of them are made, where it adds them. joined: those that other tables gave, by id.
    """

    store: Store
    fingerprint: str
    shards: int
    columns: tuple[str, ...]
    prefix: str
    top_k: int | None
    min_score: float | None
    metadata: Mapping[str, str]
    results: Results = ONE_MODEL
    fuse: FuseConfig | None = None
    curve: Curve | None = None
    joined: tuple[str, ...] = ()


class ShardSink(Datasink[int]):
    """Commits every envelope that reaches it."""

    def __init__(self, settings: CommitSettings) -> None:
        self._settings = settings

    def get_name(self) -> str:
        """The name that Ray shows."""
        return "Commit"

    def write(self, blocks: Iterable[Block], ctx: TaskContext) -> int:
        """Commit the shards in some blocks; how many there were."""
        count = 0
        for block in blocks:
            for envelope in Envelope.from_block(block):
                self._commit(envelope)
                count += 1
        return count

    def _commit(self, envelope: Envelope) -> None:
        """Commit, again if the store fails; a shard that cannot be committed leaves a note.

        Raises `RunFailed` when not even that can be written: then the output is out of reach.
        """
        try:
            with Attempts(self._settings.store, "committing").attempt(envelope.shard):
                failed = self._try_to_commit(envelope)
        except OutputBusy:  # no shard's fault: the output is another run's
            raise
        except Exception as error:  # noqa: BLE001 - one shard's failure must not end the run
            failed = envelope.failed(error)
        if failed is None:
            return
        try:
            commit_shard(failed, self._settings)
        except OSError as error:
            raise RunFailed(
                f"{self._settings.store.url} cannot be written to any more: {error}.",
                "What is committed stays. Once it can be, the same command resumes.",
            ) from error

    def _try_to_commit(self, envelope: Envelope) -> Envelope | None:
        """Commit; what is left of the envelope when the store fails again and again."""
        for attempt in range(_WRITE_ATTEMPTS):
            try:
                commit_shard(envelope, self._settings)
                return None
            except OSError as error:
                why = f"its files cannot be written: {error}"
                if attempt + 1 < _WRITE_ATTEMPTS:
                    time.sleep(2**attempt)
        return envelope.failed(why)


def commit_shard(envelope: Envelope, settings: CommitSettings) -> None:
    """Write all files of a shard, its marker last; a failed shard leaves a note instead."""
    store = settings.store
    if envelope.error is not None:
        note = {"shard": envelope.shard, "error": envelope.error}
        store.write(markers.failure_name(envelope.shard), json.dumps(note).encode())
        return
    ended, started = time.time(), time.perf_counter()
    finished = finish_shard(envelope, settings)
    ranked = time.perf_counter()
    for name, content in finished.contents.items():
        store.write(name, content)
    if (quarantine := quarantine_name(envelope.shard)) not in finished.contents:
        store.withdraw(quarantine)  # an attempt that died may have set rows aside
    written = time.perf_counter()
    times = {"ended": ended, "rank": ranked - started, "write": written - ranked}
    marker = replace(finished.marker, stages=finished.marker.stages | times)
    store.write(markers.marker_name(envelope.shard), marker.to_bytes())


def quarantine_name(shard: int) -> str:
    """Where a shard's quarantined rows lie, if it has any."""
    return f"{QUARANTINE}/{shard:05d}.arrow"


@dataclass(frozen=True)
class FinishedShard:
    """A shard's files, in the order in which they are written, and its marker."""

    contents: dict[str, bytes]
    marker: Marker


def finish_shard(envelope: Envelope, settings: CommitSettings) -> FinishedShard:
    """Rank a scored shard and make its files. A pure function: equal shards, equal bytes."""
    assert envelope.rows is not None, "only scored shards are finished"
    done = envelope.scored
    found = outcome.of_rows(done, settings.results)
    query, pair, reason, score = found.query, found.pair, found.reason, found.score
    missed = settings.results.models - found.stage if settings.results.stages else None

    is_bad = np.array([why is not None for why in reason], bool)
    kept, bad = np.flatnonzero(~is_bad), np.flatnonzero(is_bad)
    missed_by_kept = None if missed is None else missed[kept]
    # Of a cascade, the scores of the last stage; what it did not see has others, on their scale.
    final = score if missed is None else np.where(missed == 0, score, np.float32(np.nan))
    fused = None
    if settings.fuse is not None:
        first = fusion.first_stage(envelope.rows.column(settings.fuse.column), settings.fuse.column)
        fused = fusion.fuse(query[kept], final[kept], first[kept], settings.fuse)
    ranking = rank.rank_rows(
        query[kept], score[kept], settings.top_k, settings.min_score, missed_by_kept, fused
    )
    added = {} if fused is None else {"fused": fused[ranking.rows]}
    if settings.curve is not None:
        chosen = final[kept[ranking.rows]]
        added["probability"] = calibration.probabilities(settings.curve, chosen)
    part = _part(envelope.rows, kept[ranking.rows], found, ranking.rank, settings, added)
    stored = outcome.scored_pairs(done)

    number = f"{envelope.shard:05d}"
    files = [
        (schema.part_name(envelope.shard, settings.shards), part.num_rows, _parquet(part)),
        (f"{SCORES}/{number}.arrow", len(stored.digest), score_files.to_bytes(stored)),
    ]
    if len(bad):
        quarantined = _quarantine(envelope.rows, bad, reason[bad], settings.joined)
        files.append((quarantine_name(envelope.shard), len(bad), _arrow(quarantined)))

    is_scored = pair[kept] >= 0
    scored_rows = int(np.sum(is_scored))
    distinct = len(np.unique(pair[kept][is_scored]))
    pairs_scored = len(np.unique(pair[kept][is_scored & found.fresh[kept]]))
    costs, degraded = outcome.costs(done)
    whole = sum(costs, ModelCost())
    counters = Counters(
        rows_in=envelope.rows.num_rows,
        rows_out=part.num_rows,
        rows_below_cut=ranking.below_cut,
        rows_quarantined=len(bad),
        queries=len(np.unique(query[query >= 0])),
        queries_empty=_queries_empty(envelope.rows),
        queries_with_several_texts=int(done[0].facts.schema.metadata[b"several_texts"]),
        pairs_scored=pairs_scored,
        pairs_reused=distinct - pairs_scored,
        pairs_duplicate=scored_rows - distinct,
        pairs_beyond_depth=len(kept) - scored_rows,
        pairs_truncated=int(np.sum(found.dropped[kept] > 0)),
        windows=whole.windows,
        tokens=whole.tokens,
        padded_tokens=whole.padded_tokens,
        quarantine=dict(sorted(Counter(reason[bad]).items())),
    )
    counters.refuse_imbalance()
    marker = Marker(
        shard=envelope.shard,
        fingerprint=settings.fingerprint,
        files=tuple(WrittenFile.of(name, content, count) for name, count, content in files),
        counters=counters,
        degraded=degraded,
        seconds=whole.seconds,
        stages=outcome.seconds_before_scoring(envelope),
        models=costs if len(costs) > 1 else (),
        summary=summary.summarize(
            envelope.shard,
            query[kept],
            score[kept],
            ranking.rows,
            *_lengths(_read_by(done, settings.results).pairs),
            missed_by_kept,
            fused,
        ).to_text(),
    )
    return FinishedShard({name: content for name, _, content in files}, marker)


def _read_by(done: Sequence[Scored], results: Results) -> Scored:
    """What the model left whose pairs are the shard's: the first of a cascade, or what ranks."""
    return done[0] if results.stages else done[results.deciding - 1]


def _lengths(pairs: pa.Table) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]:
    """Tokens of each distinct pair before it was cut, and those of them that were cut."""
    return pairs.column("tokens").to_numpy(), pairs.column("dropped").to_numpy()


def _part(
    table: pa.Table,
    chosen: npt.NDArray[np.int64],
    found: Outcome,
    places: npt.NDArray[np.int32],
    settings: CommitSettings,
    added: Mapping[str, npt.NDArray[np.float32]],
) -> pa.Table:
    """The rows to be written. added: float32 [rows], NaN for null, by the column's name."""
    scores = found.score[chosen]
    unscored = np.isnan(scores)
    results: dict[str, pa.Array] = {
        "score": pa.array(scores, mask=unscored),
        "sigmoid": pa.array(rank.sigmoid(scores), mask=unscored),
        "rank": pa.array(places),
        "tokens_dropped": pa.array(found.dropped[chosen], mask=unscored),
        "stage": pa.array(found.stage[chosen], mask=unscored),
    }
    for name, beside in zip(settings.results.names, found.beside, strict=True):
        results[f"score_{name}"] = pa.array(beside[chosen], mask=unscored)
    results |= {name: pa.array(values, mask=np.isnan(values)) for name, values in added.items()}
    part = table.select(list(settings.columns)).take(pa.array(chosen))
    for name, data_type in settings.results.columns.items():
        part = part.append_column(pa.field(settings.prefix + name, data_type), results[name])
    return part.replace_schema_metadata(dict(settings.metadata))


def _quarantine(
    table: pa.Table,
    bad: npt.NDArray[np.int64],
    reason: npt.NDArray[Any],
    joined: tuple[str, ...],
) -> pa.Table:
    """The rows as they came, with `reason`, `origin_file` and `origin_row` (in that file)."""
    chosen = table.take(pa.array(bad))
    origin = chosen.column(ORIGIN_ROW).to_numpy()
    urls, numbers = _origins(table, origin)
    added = {ORIGIN_ROW, MISSING, *joined}
    chosen = chosen.select([name for name in chosen.column_names if name not in added])
    chosen = chosen.replace_schema_metadata(None)
    for name, values in (
        ("reason", pa.array(reason.tolist(), pa.string())),
        ("origin_file", pa.array(urls, pa.string())),
        ("origin_row", pa.array(numbers, pa.int64())),
    ):
        free = name if name not in chosen.column_names else f"quarantine_{name}"
        chosen = chosen.append_column(free, values)
    return chosen


def _origins(table: pa.Table, origin: npt.NDArray[np.int64]) -> tuple[list[str], list[int]]:
    places = json.loads(table.schema.metadata[b"places"])
    starts = np.concatenate([[0], np.cumsum([count for _, _, count in places])])
    piece = np.searchsorted(starts, origin, side="right") - 1
    urls = [places[p][0] for p in piece]
    numbers = [int(places[p][1] + row - starts[p]) for p, row in zip(piece, origin)]
    return urls, numbers


def _queries_empty(table: pa.Table) -> int:
    """Stored rows that hold no pair (an empty candidate list in the nested layout)."""
    stored = int(table.schema.metadata[b"rows"])
    return stored - len(np.unique(table.column(ORIGIN_ROW).to_numpy()))


def _parquet(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    return sink.getvalue().to_pybytes()


def _arrow(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    # The file format allows one dictionary a column.
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table.unify_dictionaries())
    return sink.getvalue().to_pybytes()
