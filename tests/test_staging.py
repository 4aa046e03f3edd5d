"""What is brought into order before a run: lists that lie apart, and texts that come by id."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from conftest import make_pairs
from rankmill import apart, exchange, partitions, pipeline, plan
from rankmill.config import RunConfig, load_config
from rankmill.errors import ConfigError, InputError, OutputBusy, OutputError, RunFailed
from rankmill.job import RunResult, rerank
from rankmill.lease import Lease
from rankmill.prepared import prepare
from rankmill.store import Store

pytestmark = pytest.mark.usefixtures("ray_cluster", "small")
QUERIES, CANDIDATES = 12, 8
PAIRS = make_pairs(QUERIES, CANDIDATES)
RESULTS = ["rerank_score", "rerank_sigmoid", "rerank_rank", "rerank_tokens_dropped"]


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several shards, several files of sorted rows; all of it is decided on the driver."""
    monkeypatch.setattr(plan, "SHARD_PAIRS", 2 * CANDIDATES)
    monkeypatch.setattr(apart, "FILE_BYTES", 3_000)
    monkeypatch.setattr(exchange, "CHUNK_BYTES", 2_000)


@pytest.fixture
def by_join(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every table of texts counts as large."""
    monkeypatch.setattr(partitions, "BROADCAST_BYTES", 100)
    monkeypatch.setattr(partitions, "PARTITION_BYTES", 1_500)


@dataclass(frozen=True)
class Site:
    """A folder with inputs and outputs, and a tiny model."""

    folder: Path
    model: str

    def write(self, name: str, table: pa.Table, **options: Any) -> str:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table, path, **options)
        return str(path)

    def config(self, output: str, settings: dict[str, Any]) -> RunConfig:
        fixed = {
            "output.path": str(self.folder / output),
            "model.name": self.model,
            "model.precision": "fp32",
            "model.backend": "torch",
            "compute.workers": 1,
        }
        return load_config(overrides=fixed | settings)

    def run(self, output: str, settings: dict[str, Any]) -> tuple[RunResult, pa.Table]:
        result = rerank(self.config(output, settings))
        return result, pq.read_table(result.output)

    def pairs(self, table: pa.Table = PAIRS, **options: Any) -> dict[str, Any]:
        return {"input.path": self.write("pairs/a.parquet", table, **options)}

    def ids(
        self,
        candidates: pa.Table | None = None,
        queries: pa.Table | None = None,
        documents: pa.Table | None = None,
    ) -> dict[str, Any]:
        """The settings of an input whose texts lie in tables of their own."""
        chosen = PAIRS.select(["query_id", "doc_id", "bm25_rank"])
        tables = {
            "input.path": ("candidates.parquet", chosen if candidates is None else candidates),
            "input.queries": ("queries.parquet", QUERY_TABLE if queries is None else queries),
            "input.documents": ("corpus", DOCUMENTS if documents is None else documents),
        }
        settings: dict[str, Any] = {"input.layout": "ids"}
        for setting, (name, table) in tables.items():
            path = name if name != "corpus" else "corpus/a.parquet"
            self.write(path, table, row_group_size=30)
            settings[setting] = str(self.folder / name)
        return settings

    def beside(self) -> list[str]:
        """Staging folders."""
        return sorted(path.name for path in self.folder.glob("_*"))

    def quarantine(self, output: str) -> pa.Table:
        files = sorted((self.folder / output / "_rankmill/quarantine").glob("*.arrow"))
        return pa.concat_tables([pa.ipc.open_file(file).read_all() for file in files])


QUERY_TABLE = PAIRS.select(["query_id", "query"]).group_by("query_id").aggregate([("query", "min")])
QUERY_TABLE = QUERY_TABLE.rename_columns(["query_id", "query"])
DOCUMENTS = PAIRS.select(["doc_id", "document"]).sort_by([("doc_id", "descending")])


@pytest.fixture
def site(tmp_path: Path, tiny_model: Callable[[str], str]) -> Site:
    return Site(tmp_path, tiny_model("bert"))


@pytest.fixture(scope="module")
def plain_run(
    tmp_path_factory: pytest.TempPathFactory, tiny_model: Callable[[str], str], ray_cluster: None
) -> pa.Table:
    """The ranked table of the pairs as they are, in their own order."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plan, "SHARD_PAIRS", 2 * CANDIDATES)
        site = Site(tmp_path_factory.mktemp("plain"), tiny_model("bert"))
        return site.run("out", site.pairs())[1]


def test_smoke(site, plain_run):
    shuffled = PAIRS.take(np.random.default_rng(0).permutation(len(PAIRS)))
    result, ranked = site.run("out", site.pairs(shuffled, row_group_size=20))
    print(result.manifest["staging"], site.beside())
    result, ranked = site.run("ids", site.ids())
    print(result.manifest["staging"], site.beside())
    assert ranked.column_names == ["query_id", "doc_id", "bm25_rank", *RESULTS]
    assert ranked.equals(plain_run.select(ranked.column_names))


def test_smoke2(site, plain_run, by_join):
    result, ranked = site.run("ids", site.ids())
    print(result.manifest["staging"], site.beside())
    assert ranked.equals(plain_run.select(ranked.column_names))
