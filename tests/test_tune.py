"""A tuned weight: what a run with it would give, and folds that do not see their own queries."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from typer.testing import CliRunner

from rankmill import evaluate
from rankmill.cli import app
from rankmill.errors import ConfigError, InputError
from rankmill.tune import WEIGHTS, tune

QUERIES, DOCUMENTS = 24, 12


def ranked(seed: int = 3) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Lists of a model and a first stage that each know something of what is relevant."""
    rng = np.random.default_rng(seed)
    query, document = np.divmod(np.arange(QUERIES * DOCUMENTS), DOCUMENTS)
    relevant = (rng.random(len(query)) < 0.2) | (document == 3)
    frame = pd.DataFrame(
        {
            "query_id": [f"q{number}" for number in query],
            "doc_id": [f"d{number}" for number in document],
            "bm25": np.where(document == 5, np.nan, rng.normal(relevant, 1)),
            "rerank_score": rng.normal(relevant, 0.8).astype(np.float32),
        }
    )
    qrels = frame.loc[relevant, ["query_id", "doc_id"]].assign(relevance=1)
    order = frame.sort_values(["query_id", "rerank_score"], ascending=[True, False])
    order["rerank_rank"] = order.groupby("query_id").cumcount() + 1
    return order.reset_index(drop=True), qrels


def by_hand(frame: pd.DataFrame, qrels: pd.DataFrame, weight: float) -> pd.DataFrame:
    """nDCG@10 of each query, fused with pandas."""

    def scale(values: pd.Series) -> pd.Series:
        values = values.fillna(values.min())
        return (values - values.min()) / (values.max() - values.min())

    by_query = frame.groupby("query_id")
    model = by_query["rerank_score"].transform(scale)
    first = by_query["bm25"].transform(scale)
    fused = (weight * model + (1 - weight) * first).astype(np.float32)
    whole = frame.assign(rerank_rank=fused.groupby(frame["query_id"]).rank(ascending=False))
    return evaluate(whole, qrels, metrics="ndcg@10").per_query


def test_each_weight_has_the_mean_that_its_order_would_have() -> None:
    frame, qrels = ranked()
    found = tune(frame, qrels, "bm25").weights
    assert found["weight"].tolist() == list(WEIGHTS)
    assert [WEIGHTS[0], WEIGHTS[-1]] == [0, 1]
    for weight, value in found.iloc[[0, 7, 20]].itertuples(index=False):
        assert value == pytest.approx(by_hand(frame, qrels, weight)["ndcg@10"].mean())


def test_a_fold_has_the_weight_that_is_best_on_the_others() -> None:
    frame, qrels = ranked()
    found = tune(frame, qrels, "bm25", folds=QUERIES)  # each query alone
    assert found.folds["queries"].tolist() == [1] * QUERIES
    values = np.array([by_hand(frame, qrels, weight)["ndcg@10"] for weight in WEIGHTS])
    others = (values.sum(axis=1)[:, None] - values) / (QUERIES - 1)
    tied = others >= others.max(axis=0) - 1e-9
    apart = np.where(tied, np.abs(np.array(WEIGHTS)[:, None] - 0.5), 1)
    chosen = apart.argmin(axis=0)
    assert sorted(found.folds["weight"]) == sorted(WEIGHTS[place] for place in chosen)
    held_out = values[chosen, np.arange(QUERIES)]
    assert found.cross_validated == pytest.approx(held_out.mean())
    differences = found.against.set_index("part")["difference"]
    assert differences["model"] == pytest.approx((held_out - values[-1]).mean())
    assert differences["first stage"] == pytest.approx((held_out - values[0]).mean())


def test_of_equally_good_weights_the_one_nearest_to_half_is_chosen() -> None:
    frame, qrels = ranked()
    assert tune(frame.assign(bm25=frame["rerank_score"]), qrels, "bm25").rule.weight == 0.5


def test_rows_below_the_depth_stay_below() -> None:
    frame, qrels = ranked()
    deep = frame["rerank_rank"] > 8
    frame.loc[deep, "rerank_score"] = np.nan
    frame.loc[deep, "bm25"] = 100.0  # would set every scale and lead every list
    found = tune(frame, qrels, "bm25", metric="recall@8").weights["value"]
    assert found.nunique() == 1


def test_equal_seeds_give_equal_figures() -> None:
    frame, qrels = ranked()
    one, two = (tune(frame, qrels, "bm25", seed=5).to_json() for _ in range(2))
    assert one == two
    assert one["folds"] != tune(frame, qrels, "bm25", seed=6).to_json()["folds"]


def test_what_cannot_be_tuned_on_is_refused() -> None:
    frame, qrels = ranked()
    with pytest.raises(ConfigError, match="24 judged queries cannot be parted into 25 folds"):
        tune(frame, qrels, "bm25", folds=25)
    with pytest.raises(InputError, match="no column bm42"):
        tune(frame, qrels, "bm42")
    with pytest.raises(InputError, match="doc_id is "):
        tune(frame, qrels, "doc_id")


def test_the_command_tells_the_rule_for_a_configuration(tmp_path) -> None:
    frame, qrels = ranked()
    frame.to_parquet(tmp_path / "ranked.parquet")
    qrels.to_parquet(tmp_path / "qrels.parquet")
    asked = ["tune", str(tmp_path / "ranked.parquet"), "--qrels", str(tmp_path / "qrels.parquet")]
    asked += ["--column", "bm25", "--method", "rrf"]
    told = CliRunner().invoke(app, asked)
    found = json.loads(CliRunner().invoke(app, [*asked, "--json"]).stdout)
    weight = found["fuse"]["weight"]
    assert f"{{fuse: {{column: bm25, method: rrf, weight: {weight}, k: 60}}}}" in told.stdout
    assert found["against"]["model"]["value"] == pytest.approx(found["weights"][-1]["value"])
    assert pa.array([row["weight"] for row in found["weights"]]).to_pylist() == list(WEIGHTS)
