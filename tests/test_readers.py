"""Readers pointed at OUTPUT see ranked pairs and nothing else."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import duckdb
import pandas as pd
import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.parquet as pq
import pytest
import ray

from conftest import make_pairs
from rankmill import plan
from rankmill.config import load_config
from rankmill.job import rerank

COLUMNS = ["query_id", "doc_id", "rerank_score", "rerank_rank"]


@pytest.fixture(scope="module")
def output(
    ray_cluster: None,
    tmp_path_factory: pytest.TempPathFactory,
    tiny_model: Callable[[str], str],
) -> Path:
    """A finished run of four shards with quarantined rows."""
    folder = tmp_path_factory.mktemp("readers")
    table = make_pairs(8, 5)
    documents = table["document"].to_pylist()
    documents[3] = None
    table = table.set_column(3, "document", pa.array(documents))
    pq.write_table(table, folder / "candidates.parquet")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plan, "SHARD_PAIRS", 10)
        result = rerank(
            load_config(
                overrides={
                    "input.path": str(folder / "candidates.parquet"),
                    "output.path": str(folder / "out"),
                    "model.name": tiny_model("bert"),
                    "compute.workers": 1,
                }
            )
        )
    assert len(result.files) == 4
    assert list((folder / "out/_rankmill/quarantine").iterdir())
    return folder / "out"


@pytest.fixture(scope="module")
def expected(output: Path) -> list[dict[str, object]]:
    """The rows of the part files, read one by one."""
    parts = [pq.read_table(part) for part in sorted(output.glob("part-*.parquet"))]
    return sorted_rows(pa.concat_tables(parts).select(COLUMNS).to_pylist())


def sorted_rows(rows: list[dict[str, object]]) -> list[dict[str, object]]:
    assert len(rows) == 39, "40 rows, one of them in quarantine"
    return sorted(rows, key=lambda row: (str(row["query_id"]), row["rerank_rank"]))


def test_pyarrow(output: Path, expected: list[dict[str, object]]) -> None:
    assert sorted_rows(pq.read_table(output, columns=COLUMNS).to_pylist()) == expected
    dataset = pads.dataset(output).to_table(columns=COLUMNS)
    assert sorted_rows(dataset.to_pylist()) == expected


def test_pandas(output: Path, expected: list[dict[str, object]]) -> None:
    frame = pd.read_parquet(output, columns=COLUMNS)
    assert sorted_rows(frame.to_dict("records")) == expected
    assert list(frame.columns) == COLUMNS


def test_duckdb_folder_and_glob(output: Path, expected: list[dict[str, object]]) -> None:
    for path in (f"{output}", f"{output}/*.parquet", f"{output}/**/*.parquet"):
        query = f"select {', '.join(COLUMNS)} from read_parquet('{path}')"
        assert sorted_rows(duckdb.sql(query).to_arrow_table().to_pylist()) == expected, path


@pytest.mark.parametrize("datasource_v2", [True, False])
def test_ray_data_with_both_readers(
    output: Path, expected: list[dict[str, object]], datasource_v2: bool
) -> None:
    context = ray.data.DataContext.get_current().copy()
    context.use_datasource_v2 = datasource_v2
    with ray.data.DataContext.current(context):
        rows = ray.data.read_parquet(str(output)).select_columns(COLUMNS).take_all()
    assert sorted_rows(rows) == expected
