"""One part of an export: what its task is told, and what it does.

A pure function makes the file; equal parts give equal bytes, wherever the task runs.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from rankmill import runs
from rankmill.errors import RunFailed
from rankmill.export import examples, lists, mining
from rankmill.export.agreement import OtherRun
from rankmill.export.counts import Counts
from rankmill.export.ranked import Ranked
from rankmill.export.recipe import ExportConfig
from rankmill.qrels import Judgements, ids_of
from rankmill.store import Store

# A task decodes and encodes Parquet all the time.
TASK_CPUS = 1.0


@dataclass(frozen=True, eq=False)
class Work:
    """What every task of an export reads. columns: of the run's parts; others: the runs that must
    agree; identity: what names the export."""

    store: Store
    ranked: Ranked
    config: ExportConfig
    columns: tuple[str, ...]
    judged: Judgements | None
    others: tuple[OtherRun, ...]
    identity: dict[str, Any]

    @property
    def fingerprint(self) -> str:
        """SHA-256 over the identity."""
        canonical = json.dumps(self.identity, sort_keys=True, ensure_ascii=False)
        return hashlib.sha256(canonical.encode()).hexdigest()

    @property
    def has_positives(self) -> bool:
        """Whether there is a rule for positives."""
        return self.judged is not None or self.config.positives_by_score

    def file_name(self, part: int) -> str:
        """`part-00007.parquet`, as the run's own part; `.trec` for runs in that format."""
        name = self.ranked.parts[part].name
        return name.replace(".parquet", ".trec") if self.config.format == "trec" else name

    @property
    def file_names(self) -> list[str]:
        """All of them, in the order of the run's parts."""
        return [self.file_name(part) for part in range(len(self.ranked.parts))]


def export_part(work: Work, part: int) -> Counts:
    """Make the file of one part and write it. Equal parts, equal bytes.

    Raises `InputError` for a part that cannot be read, `RunFailed` for a file that cannot be
    written, `OutputBusy` when another export has taken the folder over.
    """
    table = work.ranked.read(part, work.columns)
    if work.config.format == "trec":
        content, counts = _trec(table, work, work.ranked.parts[part].name)
    else:
        content, counts = _training(table, work)
    try:
        work.store.write(work.file_name(part), content)
    except OSError as error:
        raise out_of_reach(work.store, error) from error
    return counts


def _training(table: pa.Table, work: Work) -> tuple[bytes, Counts]:
    config = work.config
    found = lists.read_lists(table, work.ranked, config, work.judged, work.others)
    mined = mining.mine(found.rows, config, config.needed_negatives(work.has_positives))
    label = examples.labels(found.score, mined.positive, mined.grade, config)
    made = examples.arrange(found.rows, mined, label, config)
    sink = pa.BufferOutputStream()
    schema = examples.columns(config)
    # Without Arrow's own schema readers take plain strings, which mix with other data sets.
    with pq.ParquetWriter(sink, schema, compression="zstd", store_schema=False) as writer:
        for group in examples.tables(made, found.query, found.document, label, config):
            writer.write_table(group)
        writer.add_key_value_metadata(_metadata(work))
    counts = replace(mined.counts, examples=len(made), positives_missing=found.positives_missing)
    return sink.getvalue().to_pybytes(), counts


def _trec(table: pa.Table, work: Work, name: str) -> tuple[bytes, Counts]:
    ranked, numbers = work.ranked, lists.list_numbers(table, work.ranked)
    (column,) = lists.score_columns(ranked, work.config)
    query_id, doc_id = (
        ids_of(table, ids, f"run {ranked.url}")
        for ids in (ranked.query_key, lists.doc_id_column(ranked))
    )
    tag = f"rankmill-{ranked.fingerprint[:12]}"
    score = lists.raw_scores(table, column)
    lines = examples.trec_lines(numbers, query_id, doc_id, score, tag, name)
    queries, rows = int(numbers.max(initial=-1)) + 1, len(numbers)
    counts = Counts(queries=queries, queries_used=queries, rows=rows, rows_used=rows, examples=rows)
    return lines.encode(), counts


def model_of(ranked: Ranked) -> dict[str, str]:
    """What the run's parts say of their model, run and version: keys that begin with rankmill."""
    found = ranked.schema.metadata or {}
    return {k.decode(): v.decode() for k, v in found.items() if k.startswith(b"rankmill.")}


def _metadata(work: Work) -> dict[str, str]:
    """Provenance, for the Parquet metadata: no paths, no times."""
    made_by = {"version": runs.versions().get("rankmill", "unknown"), **work.identity}
    return model_of(work.ranked) | {"rankmill.export": json.dumps(made_by, ensure_ascii=False)}


def out_of_reach(store: Store, error: OSError) -> RunFailed:
    """What to raise when an output cannot be written."""
    return RunFailed(f"{store.url} cannot be written: {error}.", "Run the same command again.")
