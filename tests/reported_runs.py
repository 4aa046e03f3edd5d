"""Committed outputs for reports, by the real commit, without a model or Ray."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from ranked_runs import PROFILE, complete
from rankmill import runs
from rankmill.commit import CommitSettings, commit_shard
from rankmill.config import load_config
from rankmill.store import Store
from test_commit import read_rows, scored

FINGERPRINT = "f" * 64


def pairs(lists: Sequence[int], document: str = "answer {c} to {q}", **columns: str) -> pa.Table:
    """A table with so many candidates of each query. columns: patterns of the other columns."""
    patterns = {
        "query_id": "q{q}",
        "query": "question {q}",
        "doc_id": "d{q}-{c}",
        "document": document,
    } | columns
    places = [(q, c) for q, size in enumerate(lists) for c in range(size)]
    return pa.table(
        {
            name: pa.array([pattern.format(q=q, c=c) for q, c in places], pa.string())
            for name, pattern in patterns.items()
        }
    )


def commit_report_run(
    url: str,
    tables: Sequence[pa.Table],
    *,
    scores: dict[tuple[str, str], float] | None = None,
    missing: Sequence[int] = (),
    settings: dict[str, Any] | None = None,
    model: dict[str, str] | None = None,
    commit: dict[str, Any] | None = None,
) -> Store:
    """Commit tables as the shards of a run. scores: by query and document; later rows win."""
    store = Store(url)
    config = load_config(
        overrides={"input.path": "in", "output.path": url, "model.name": "tiny"} | (settings or {})
    )
    named = {"name": "tiny", "architecture": "bert", "digest": "ab" * 32} | (model or {})
    record = {
        "fingerprint": FINGERPRINT,
        "identity": {"settings": {}},
        "config": config.model_dump(mode="json"),
        "model": named,
        "profile": PROFILE.to_json(),
        "versions": {"rankmill": "0"},
        "plan": {
            "shards": len(tables),
            "pairs": sum(table.num_rows for table in tables),
            "digest": "",
        },
    }
    store.write(runs.RUN, json.dumps(record).encode())
    for shard, table in enumerate(tables):
        if shard not in missing:
            given = scores or {
                (query, document): float(row % 7 + row / 1000)
                for row, (query, document) in enumerate(
                    zip(table["query"].to_pylist(), table["document"].to_pylist())
                )
            }
            commit_shard(
                scored(read_rows(table), given, shard=shard),
                CommitSettings(
                    **{
                        "store": store,
                        "fingerprint": FINGERPRINT,
                        "shards": len(tables),
                        "columns": tuple(table.column_names),
                        "prefix": "rerank_",
                        "top_k": None,
                        "min_score": None,
                        "metadata": {},
                    }
                    | (commit or {})
                ),
            )
    if not missing:
        complete(store, named)
    return store
