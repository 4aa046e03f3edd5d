"""rerank_dataset: a Dataset in, the same rows scored and ranked out, on whatever CPUs there are."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray
from ray.data import DataContext, Dataset
from ray.exceptions import RayError

import rankmill
from conftest import make_pairs
from rankmill import dataset, fusion
from rankmill.calibration import Calibration, Platt, ScoredBy
from rankmill.config import ModelConfig
from rankmill.errors import ConfigError, InputError, ModelError
from rankmill.rank_settings import FuseConfig

EXACT = {"device": "cpu", "precision": "fp32"}
ADDED = {
    "rerank_score": pa.float32(),
    "rerank_sigmoid": pa.float32(),
    "rerank_tokens_dropped": pa.int32(),
    "rerank_error": pa.string(),
    "rerank_rank": pa.int32(),
}
NO_ID, NO_QUERY, NO_DOCUMENT = (
    "query_id is null",
    "query is null or empty",
    "document is null or empty",
)


@pytest.fixture(scope="module", autouse=True)
def quiet(ray_cluster):
    context = DataContext.get_current()
    shown = context.enable_progress_bars
    context.enable_progress_bars = False
    yield
    context.enable_progress_bars = shown


def collect(ds: Dataset) -> pa.Table:
    """All rows, in Ray's order."""
    tables = [table for table in ray.get(ds.to_arrow_refs()) if table.num_rows]
    return pa.concat_tables(tables, promote_options="permissive")


def lists(table: pa.Table, key: str) -> dict[object, list[dict[str, object]]]:
    """The rows of each query, in the table's order."""
    found: dict[object, list[dict[str, object]]] = {}
    for row in table.to_pylist():
        found.setdefault(row[key], []).append(row)
    return found


def ordinary_and_bad_rows() -> pa.Table:
    """Seven ordinary lists; in two of them rows that cannot be scored; a row of no list."""
    pairs = make_pairs(7, 5).select(["query_id", "query", "doc_id", "document"])
    query = "what is shard 3"
    bad = pa.table(
        {
            "query_id": ["q0003", "q0003", "q0004", None],
            "query": [query, query, "", query],
            "doc_id": ["bad-0", "bad-1", "bad-2", "bad-3"],
            "document": [None, "", "a shard", "a shard"],
        }
    )
    whole = pa.concat_tables([pairs.slice(0, 17), bad, pairs.slice(17)])
    numbers = range(whole.num_rows)
    whole = whole.append_column("tags", pa.array([[str(i), "x"] for i in numbers]))
    return whole.append_column("meta", pa.array([{"a": i, "b": None} for i in numbers]))


@dataclass(frozen=True)
class Ranked:
    given: pa.Table
    table: pa.Table
    ran_before_it_was_consumed: bool
    scorer: rankmill.Scorer


@pytest.fixture(scope="module")
def ranked(quiet, tiny_model, tmp_path_factory) -> Ranked:
    """Three files, read and mapped by tasks that ask for a whole CPU each, two actors."""
    folder = tmp_path_factory.mktemp("dataset")
    touched = folder / "touched"
    given = ordinary_and_bad_rows()
    (folder / "input").mkdir()
    for start in (0, 13, 26):
        pq.write_table(given.slice(start, 13), folder / "input" / f"{start}.parquet")

    def touch(table: pa.Table) -> pa.Table:
        touched.touch()
        return table

    ds = ray.data.read_parquet(str(folder / "input"))
    ds = ds.map_batches(touch, batch_format="pyarrow", batch_size=None)
    lazy = rankmill.rerank_dataset(ds, tiny_model("bert"), workers=2, **EXACT)
    early = touched.exists()
    table = collect(lazy)
    assert touched.exists()
    return Ranked(given, table, early, rankmill.Scorer(tiny_model("bert"), **EXACT))


def test_nothing_is_executed_until_the_dataset_is_consumed(ranked):
    assert not ranked.ran_before_it_was_consumed


def test_every_row_comes_back_once_with_all_its_columns(ranked):
    columns = ranked.given.column_names
    assert ranked.table.column_names == [*columns, *ADDED]
    assert (
        ranked.table.select(columns)
        .sort_by("doc_id")
        .cast(ranked.given.schema)
        .equals(ranked.given.sort_by("doc_id"))
    )


def test_the_added_columns_have_the_types_of_the_contract(ranked):
    assert {name: ranked.table.schema.field(name).type for name in ADDED} == ADDED


def test_ranks_within_a_query_are_the_order_of_the_scorer(ranked):
    given = lists(ranked.given, "query_id")
    for query_id in ("q0000", "q0001", "q0002", "q0005", "q0006"):
        rows = lists(ranked.table, "query_id")[query_id]
        texts = [row["document"] for row in given[query_id]]
        order = ranked.scorer.rank(rows[0]["query"], texts)
        assert [row["document"] for row in rows] == [texts[i] for i in order]
        assert [row["rerank_rank"] for row in rows] == [1, 2, 3, 4, 5]


def test_scores_are_those_of_the_scorer(ranked):
    rows = [row for row in ranked.table.to_pylist() if row["rerank_error"] is None]
    assert len(rows) == 35
    scores = ranked.scorer.score([(row["query"], row["document"]) for row in rows])
    np.testing.assert_allclose([row["rerank_score"] for row in rows], scores, atol=1e-5)
    sigmoid = 1 / (1 + np.exp(-scores.astype(np.float64)))
    np.testing.assert_allclose([row["rerank_sigmoid"] for row in rows], sigmoid, atol=1e-5)
    assert {row["rerank_tokens_dropped"] for row in rows} == {0}


def test_rows_that_cannot_be_scored_say_why_and_have_neither_score_nor_rank(ranked):
    bad = {r["doc_id"]: r for r in ranked.table.to_pylist() if r["rerank_error"] is not None}
    reasons = {doc_id: row["rerank_error"] for doc_id, row in bad.items()}
    assert reasons == {
        "bad-0": NO_DOCUMENT,
        "bad-1": NO_DOCUMENT,
        "bad-2": NO_QUERY,
        "bad-3": NO_ID,
    }
    values = {row[name] for row in bad.values() for name in ADDED if name != "rerank_error"}
    assert values == {None}


def test_rows_that_cannot_be_scored_leave_no_gap_in_the_ranks_of_their_list(ranked):
    rows = lists(ranked.table, "query_id")
    assert [row["rerank_rank"] for row in rows["q0003"]] == [1, 2, 3, 4, 5, None, None]
    assert [row["rerank_rank"] for row in rows["q0004"]] == [1, 2, 3, 4, 5, None]


def test_mapped_columns_several_document_parts_and_lists_by_query_text(tiny_model):
    pairs = pa.table(
        {
            "question": ["what is a shard", "what is a list", "what is a shard"],
            "title": ["Shards", "Lists", None],
            "text": ["whole lists", None, "flow past a plate"],
        }
    )
    columns = {"query": "question", "document": ["title", "text"]}
    model = tiny_model("bert")
    ranked = rankmill.rerank_dataset(
        ray.data.from_arrow(pairs),
        model,
        columns=columns,
        column_prefix="ce_",
        workers=1,
        **EXACT,
    )
    joined = {
        "what is a shard": ["Shards whole lists", "flow past a plate"],
        "what is a list": ["Lists"],
    }
    scorer = rankmill.Scorer(model, **EXACT)
    rows = lists(collect(ranked), "question")
    assert rows.keys() == joined.keys()
    for query, documents in joined.items():
        best_first = np.sort(scorer.score([(query, text) for text in documents]))[::-1]
        np.testing.assert_allclose([r["ce_score"] for r in rows[query]], best_first, atol=1e-5)
        assert [r["ce_rank"] for r in rows[query]] == list(range(1, len(documents) + 1))


def fitted_to(model: str, digest: str | None = None) -> Calibration:
    """A curve for the scores of a model, as `rerank_dataset` makes them here."""
    return Calibration(
        curve=Platt(slope=2.0, intercept=-0.5),
        scored_by=ScoredBy(
            model=digest or rankmill.Scorer(model, **EXACT).description.digest,
            precision="fp32",
            settings=ModelConfig(name=model).scoring_settings(),
        ),
        fitted={},
    )


def test_the_first_stage_joins_the_order_and_scores_become_probabilities(tiny_model, tmp_path):
    model, file = tiny_model("bert"), tmp_path / "calibration.json"
    file.write_bytes(fitted_to(model).to_bytes())
    given = make_pairs(2, 5)
    rule = {"column": "bm25_rank", "weight": 0.2}
    ds = rankmill.rerank_dataset(
        ray.data.from_arrow(given), model, fuse=rule, calibration=str(file), workers=1, **EXACT
    )
    found = collect(ds)
    assert found.column_names[-2:] == ["rerank_fused", "rerank_probability"]
    for rows in lists(found, "query_id").values():
        score = np.array([row["rerank_score"] for row in rows], np.float32)
        first = -np.array([row["bm25_rank"] for row in rows], np.float64)
        fused = fusion.fuse(np.zeros(5, np.int32), score, first, FuseConfig(**rule))
        assert [row["rerank_fused"] for row in rows] == sorted(fused.tolist(), reverse=True)
        assert [row["rerank_rank"] for row in rows] == [1, 2, 3, 4, 5]
        likely = [row["rerank_probability"] for row in rows]
        np.testing.assert_allclose(likely, 1 / (1 + np.exp(0.5 - 2 * score)), rtol=1e-6)


def test_a_row_without_a_score_has_neither_fused_score_nor_probability():
    table = pa.table(
        {
            "bm25_rank": [1, 2, 3],
            "rerank_score": pa.array([0.1, None, 0.9], pa.float32()),
        }
    )
    ranked = dataset.rank_group(
        table, "rerank_", FuseConfig(column="bm25_rank", weight=1.0), Platt(slope=1, intercept=0)
    )
    assert ranked["rerank_rank"].to_pylist() == [1, 2, None]
    assert ranked["rerank_fused"].to_pylist() == [1.0, 0.0, None]
    assert ranked["rerank_probability"][2].as_py() is None


def test_a_column_or_calibration_that_does_not_fit_is_refused_at_once(tiny_model, tmp_path):
    ds, model, file = ray.data.from_arrow(make_pairs(1, 2)), tiny_model("bert"), tmp_path / "c.json"
    with pytest.raises(InputError, match="names bm25, which the input does not have"):
        rankmill.rerank_dataset(ds, model, fuse={"column": "bm25"}, **EXACT)
    file.write_bytes(fitted_to(model, digest="f" * 64).to_bytes())
    with pytest.raises(ConfigError, match="was fitted to scores of"):
        rankmill.rerank_dataset(ds, model, calibration=str(file), **EXACT)


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"query_id": "1", "query": "q", "text": "d"}, "no column document"),
        ({"query_id": "1", "query": "q", "document": 5}, "document must hold text, found int64"),
        ({"query_id": 0.5, "query": "q", "document": "d"}, "query_id must hold text or integers"),
        (
            {"query_id": "1", "query": "q", "document": "d", "rerank_rank": 1},
            "already has the column rerank_rank",
        ),
    ],
)
def test_unfit_columns_are_refused_at_once_where_the_schema_is_known(tiny_model, row, said):
    ds = ray.data.from_arrow(pa.Table.from_pylist([row]))
    with pytest.raises(InputError, match=said):
        rankmill.rerank_dataset(ds, tiny_model("bert"), **EXACT)


def test_a_query_id_that_was_asked_for_must_be_there(tiny_model):
    ds = ray.data.from_arrow(make_pairs(1, 2).drop_columns(["query_id"]))
    with pytest.raises(InputError, match="no column query_id"):
        rankmill.rerank_dataset(ds, tiny_model("bert"), columns={"query_id": "query_id"}, **EXACT)


def test_a_missing_column_that_ray_cannot_foresee_fails_the_execution_by_name(tiny_model):
    ds = ray.data.from_arrow(make_pairs(1, 2)).map_batches(
        lambda table: table.drop_columns(["document"]), batch_format="pyarrow"
    )
    ranked = rankmill.rerank_dataset(ds, tiny_model("bert"), workers=1, **EXACT)
    with pytest.raises(RayError, match="no column document"):
        ranked.materialize()


def test_a_wrong_setting_or_model_is_refused_at_once():
    ds = ray.data.from_arrow(make_pairs(1, 2))
    with pytest.raises(ConfigError, match="max_length"):
        rankmill.rerank_dataset(ds, "demo", max_length=0)
    with pytest.raises(ConfigError, match="Unknown setting documents"):
        rankmill.rerank_dataset(ds, "demo", columns={"documents": "text"})
    with pytest.raises(ConfigError, match="workers"):
        rankmill.rerank_dataset(ds, "demo", workers=0)
    with pytest.raises(ModelError, match="no model"):
        rankmill.rerank_dataset(ds, "no-such-model")


ONE_CPU = """
import sys
import ray
import rankmill
from ray.data import DataContext

model, folder = sys.argv[1:]
ray.init(
    address="local",
    num_cpus=1,
    include_dashboard=False,
    log_to_driver=False,
    _node_ip_address="127.0.0.1",
)
DataContext.get_current().enable_progress_bars = False
ds = ray.data.read_parquet(folder)  # its tasks ask for a whole CPU each
ranked = rankmill.rerank_dataset(ds, model, device="cpu", precision="fp32")
print("RANKS", sorted(row["rerank_rank"] for row in ranked.take_all()))
"""


def test_one_cpu_is_enough_to_read_score_and_shuffle(tiny_model, write_pairs, tmp_path):
    pairs = make_pairs(2, 4)
    for half in (0, 4):
        write_pairs(pairs.slice(half, 4), f"input/{half}.parquet")
    environment = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
    done = subprocess.run(
        [sys.executable, "-c", ONE_CPU, tiny_model("bert"), str(tmp_path / "input")],
        capture_output=True,
        text=True,
        timeout=180,
        env=environment,
    )
    assert "RANKS [1, 1, 2, 2, 3, 3, 4, 4]" in done.stdout, done.stderr[-2000:]
