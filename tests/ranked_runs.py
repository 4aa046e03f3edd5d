"""Committed runs without a model: given scores are ranked and committed as a run's would be."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from rankmill import markers, rank, runs, schema
from rankmill.markers import Counters, Marker, WrittenFile
from rankmill.profile import Profile
from rankmill.store import Store

PROFILE = Profile("torch", "fp32", "cpu", "avx2", 1, 1024)


def candidates(
    scores: Sequence[Sequence[float | None]], texts: Sequence[Sequence[str]] | None = None
) -> pa.Table:
    """A candidate table with a column of scores: a list a query; document 3 of query 0 is d0-3."""
    rows = [(q, c) for q, of_query in enumerate(scores) for c in range(len(of_query))]
    return pa.table(
        {
            "query_id": pa.array([f"q{q}" for q, _ in rows], pa.string()),
            "query": pa.array([f"question {q}" for q, _ in rows], pa.string()),
            "doc_id": pa.array([f"d{q}-{c}" for q, c in rows], pa.string()),
            "document": pa.array(
                [texts[q][c] if texts else f"answer {c} to {q}" for q, c in rows], pa.string()
            ),
            "given": pa.array([scores[q][c] for q, c in rows], pa.float32()),
        }
    )


def ranked_part(table: pa.Table, prefix: str = "rerank_", key: str = "query_id") -> pa.Table:
    """Rank whole lists by the column `given`, which is taken out."""
    numbers = table[key].combine_chunks().dictionary_encode().indices.to_numpy()
    score = table["given"].to_numpy(zero_copy_only=False).astype(np.float32)
    ranking = rank.rank_rows(numbers.astype(np.int32), score)
    score = score[ranking.rows]
    unscored = np.isnan(score)
    part = table.drop_columns(["given"]).take(pa.array(ranking.rows))
    values = {
        "score": pa.array(score, mask=unscored),
        "sigmoid": pa.array(rank.sigmoid(score), mask=unscored),
        "rank": pa.array(ranking.rank),
        "tokens_dropped": pa.array(np.zeros(len(score), np.int32), mask=unscored),
    }
    for name, data_type in schema.RESULT_COLUMNS.items():
        part = part.append_column(pa.field(prefix + name, data_type), values[name])
    return part


def commit_run(
    folder: Path,
    parts: Sequence[pa.Table],
    *,
    columns: dict[str, Any] | None = None,
    prefix: str = "rerank_",
    fingerprint: str = "f" * 64,
    missing: Sequence[int] = (),
    settings: dict[str, dict[str, Any]] | None = None,
    below_cut: int = 0,
) -> str:
    """Commit ranked parts as a run's shards; without those `missing` it is not complete.

    settings: more of `input` and `output`. below_cut: rows that each shard left out.
    """
    more = settings or {}
    store = Store(str(folder))
    model = {"name": "tiny", "digest": "ab" * 32}
    record = {
        "fingerprint": fingerprint,
        "identity": {"settings": {}},
        "config": {
            "input": {"columns": columns or {}, **more.get("input", {})},
            "output": {"path": str(folder), "column_prefix": prefix, **more.get("output", {})},
            "compute": {"gpus_per_worker": 1.0},
        },
        "model": model,
        "versions": {"rankmill": "0"},
        "profile": PROFILE.to_json(),
        "plan": {"shards": len(parts), "pairs": sum(part.num_rows for part in parts), "digest": ""},
    }
    store.write(runs.RUN, json.dumps(record).encode())
    for shard, part in enumerate(parts):
        if shard in missing:
            continue
        sink = io.BytesIO()
        pq.write_table(
            part.replace_schema_metadata({"rankmill.model.name": "tiny", "other": "x"}), sink
        )
        name, content = schema.part_name(shard, len(parts)), sink.getvalue()
        store.write(name, content)
        rows = part.num_rows
        counters = Counters(
            rows_in=rows + below_cut,
            rows_out=rows,
            rows_below_cut=below_cut,
            pairs_scored=rows + below_cut,
        )
        file = WrittenFile.of(name, content, part.num_rows)
        marker = Marker(shard, fingerprint, (file,), counters, False, 0.0)
        store.write(markers.marker_name(shard), marker.to_bytes())
    if not missing:
        complete(store, model)
    return str(folder)


def complete(store: Store, model: dict[str, str]) -> None:
    """Write the manifest of the committed shards and `_SUCCESS`. model: its name and digest."""
    found = markers.read_markers(store)
    manifest = {
        **asdict(markers.add(marker.counters for marker in found.values())),
        "seconds": 12.0,
        "pairs_per_second": 3.0,
        "workers": {"workers": 2},
        "max_length": 512,
        "shards_resumed": 0,
        "model": model,
        "profile": PROFILE.to_json(),
        "files": [found[shard].part.name for shard in sorted(found)],
    }
    store.write(runs.MANIFEST, json.dumps(manifest).encode())
    store.write(runs.SUCCESS, b"")
