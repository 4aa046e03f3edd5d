"""Evaluation: trec_eval's numbers, the rules for what is missing, and the paired comparison."""

import gzip
import json
import math
import os
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import pytrec_eval
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from rankmill.errors import ConfigError, InputError
from rankmill.evaluate import evaluate, measures
from rankmill.evaluate.significance import COLUMNS, compare

DATA = Path(os.environ.get("RANKMILL_TEST_DATA", Path(__file__).parents[2] / "shared" / "data"))


PAIR = ["query_id", "doc_id"]


def ranked_frame(*rows):
    return pd.DataFrame(rows, columns=["query_id", "doc_id", "rerank_rank"])


def qrels_frame(*rows):
    return pd.DataFrame(rows, columns=["query_id", "doc_id", "relevance"])


COLLECTIONS = {"cranfield": (0.3503, 0.2152), "jaquad": (0.9225, None)}

# Our names and trec_eval's.
NAMES = {
    **{
        f"{ours}@{k}": f"{theirs}_{k}"
        for k in (1, 3, 10, 100)
        for ours, theirs in (
            ("ndcg", "ndcg_cut"),
            ("map", "map_cut"),
            ("hit", "success"),
            ("recall", "recall"),
            ("precision", "P"),
        )
    },
    "ndcg": "ndcg",
    "map": "map",
    "mrr": "recip_rank",
    "recall": "set_recall",
    "precision": "set_P",
}


@pytest.fixture(scope="module", params=list(COLLECTIONS))
def collection(request):
    folder = DATA / request.param
    if not folder.is_dir():
        pytest.skip(f"the test collection is not at {folder}; set RANKMILL_TEST_DATA")
    columns = ["query_id", "doc_id", "bm25_score", "bm25_rank"]
    candidates = pd.read_parquet(folder / "candidates.parquet", columns=columns)
    return request.param, candidates, pd.read_parquet(folder / "qrels.parquet")


def by_pytrec_eval(ranked, qrels, order, names=NAMES):
    """Every query's values by pytrec_eval itself, which wants a score for each place."""
    judged = {
        query: dict(zip(rows["doc_id"], rows["relevance"].clip(0).astype(int), strict=True))
        for query, rows in qrels.groupby("query_id")
    }
    run = {
        query: dict(zip(rows["doc_id"], rows[order].astype(float), strict=True))
        for query, rows in ranked.groupby("query_id")
    }
    return pytrec_eval.RelevanceEvaluator(judged, set(names.values())).evaluate(run)


# Equality with trec_eval


def test_bm25_on_a_collection(collection):
    name, candidates, qrels = collection
    result = evaluate(candidates.rename(columns={"bm25_rank": "rerank_rank"}), qrels)
    ndcg, average_precision = COLLECTIONS[name]
    assert result.metrics["ndcg@10"] == pytest.approx(ndcg, abs=5e-5)
    if average_precision is not None:
        assert result.metrics["map@10"] == pytest.approx(average_precision, abs=5e-5)
    assert result.queries_judged == len(result.per_query) == qrels["query_id"].nunique()
    assert result.queries_missing == result.queries_unjudged == 0
    assert result.documents_judged + result.documents_unjudged == len(candidates)


def test_every_query_equals_pytrec_eval_called_directly(collection):
    _, candidates, qrels = collection
    shuffled = candidates.sample(frac=1, random_state=7)
    shuffled["rerank_score"] = np.random.default_rng(3).permutation(len(candidates))
    result = evaluate(shuffled, qrels, metrics=list(NAMES))
    direct = by_pytrec_eval(shuffled, qrels, "rerank_score")
    theirs = pd.DataFrame(
        [[direct[query][name] for name in NAMES.values()] for query in result.per_query["query_id"]]
    )
    np.testing.assert_allclose(result.per_query[list(NAMES)], theirs, rtol=0, atol=1e-6)
    assert list(result.metrics.values()) == pytest.approx(list(theirs.mean()), abs=1e-6)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_random_tables_equal_pytrec_eval(seed):
    rng = np.random.default_rng(seed)
    queries, documents = rng.integers(1, 6), rng.integers(1, 12)
    pairs = [(f"q{q}", f"d{d}") for q in range(queries) for d in range(documents)]
    kept = rng.random(len(pairs)) < 0.7
    ranked = pd.DataFrame([pair for pair, keep in zip(pairs, kept) if keep], columns=PAIR)
    ranked["rerank_score"] = rng.permutation(len(ranked))
    qrels = pd.DataFrame(pairs, columns=PAIR).assign(relevance=rng.integers(-1, 4, len(pairs)))
    qrels = qrels[rng.random(len(pairs)) < 0.5]
    # One that is found, so that there is something to judge.
    qrels = pd.concat([qrels_frame(("found", "d", 1)), qrels])
    ranked = pd.concat([ranked, pd.DataFrame([("found", "d", 1)], columns=[*PAIR, "rerank_score"])])
    result = evaluate(ranked, qrels, metrics=list(NAMES))
    direct = by_pytrec_eval(ranked, qrels, "rerank_score")
    assert "found" in set(result.per_query["query_id"])
    for row in result.per_query.to_dict("records"):
        theirs = direct.get(row["query_id"], {})
        for ours, name in NAMES.items():
            assert row[ours] == pytest.approx(theirs.get(name, 0.0), abs=1e-6), ours


def test_queries_are_measured_some_at_a_time_with_the_same_result(monkeypatch):
    ranked = ranked_frame(*[(f"q{q}", f"d{d}", d) for q in range(7) for d in range(5)])
    ranked = ranked[ranked["query_id"] != "q3"]
    qrels = qrels_frame(*[(f"q{q}", f"d{(q + d) % 6}", d + 1) for q in range(7) for d in range(2)])
    whole = evaluate(ranked, qrels, metrics=list(NAMES)).per_query
    monkeypatch.setattr(measures, "_CHUNK", 2)
    pd.testing.assert_frame_equal(evaluate(ranked, qrels, metrics=list(NAMES)).per_query, whole)


# The measures, by hand


def test_measures_by_hand():
    ranked = ranked_frame(*[("q", f"d{rank}", rank) for rank in range(1, 6)])
    qrels = qrels_frame(("q", "d2", 2), ("q", "d4", 1), ("q", "elsewhere", 3), ("q", "d1", 0))
    metrics = "ndcg@5,map@5,mrr@5,hit@1,hit@2,recall@5,recall@3,precision@4"
    ideal = 3 + 2 / math.log2(3) + 1 / math.log2(4)
    assert evaluate(ranked, qrels, metrics=metrics).metrics == pytest.approx(
        {
            "ndcg@5": (2 / math.log2(3) + 1 / math.log2(5)) / ideal,
            "map@5": (1 / 2 + 2 / 4) / 3,
            "mrr@5": 1 / 2,
            "hit@1": 0.0,
            "hit@2": 1.0,
            "recall@5": 2 / 3,
            "recall@3": 1 / 3,
            "precision@4": 2 / 4,
        }
    )


def test_map_divides_by_all_relevant_documents_even_beyond_the_cut():
    ranked = ranked_frame(("q", "d0", 1), ("q", "d1", 2))
    qrels = qrels_frame(*[("q", f"d{n}", 1) for n in range(4)])
    assert evaluate(ranked, qrels, metrics=["map@2"]).metrics["map@2"] == pytest.approx(2 / 4)


@pytest.mark.parametrize(("cut", "expected"), [(2, 0.0), (3, 1 / 3), (10, 1 / 3)])
def test_mrr_is_cut_at_its_rank(cut, expected):
    ranked = ranked_frame(("q", "a", 1), ("q", "b", 2), ("q", "c", 3))
    result = evaluate(ranked, qrels_frame(("q", "c", 1)), metrics=[f"mrr@{cut}", "recall@100"])
    assert result.metrics[f"mrr@{cut}"] == pytest.approx(expected)


def test_default_metrics_and_their_order():
    result = evaluate(ranked_frame(("q", "a", 1)), qrels_frame(("q", "a", 1)))
    assert list(result.metrics) == ["ndcg@10", "map@10", "mrr@10", "hit@10", "recall@100"]
    assert set(result.metrics.values()) == {1.0}
    assert list(result.per_query.columns) == ["query_id", *result.metrics]


# Order


def test_rank_is_preferred_to_score():
    ranked = ranked_frame(("q", "a", 2), ("q", "b", 1)).assign(rerank_score=[9.0, 1.0])
    assert evaluate(ranked, qrels_frame(("q", "b", 1)), metrics="hit@1").metrics["hit@1"] == 1.0


def test_scores_order_descending_and_ties_by_input_order():
    ranked = ranked_frame(("q", "z", 0), ("q", "m", 0), ("q", "a", 0), ("q", "top", 0))
    ranked = ranked.drop(columns="rerank_rank").assign(rerank_score=[1.0, 1.0, 1.0, 2.0])
    # trec_eval alone would break the ties by document id.
    for place, doc in enumerate(["top", "z", "m", "a"], 1):
        result = evaluate(ranked, qrels_frame(("q", doc, 1)), metrics="mrr@10")
        assert result.metrics["mrr@10"] == pytest.approx(1 / place)


def test_scores_that_differ_in_float64_alone_are_no_ties():
    ranked = ranked_frame(("q", "a", 0), ("q", "b", 0)).drop(columns="rerank_rank")
    ranked["rerank_score"] = [1.0, 1.0 + 1e-12]
    assert evaluate(ranked, qrels_frame(("q", "b", 1)), metrics="hit@1").metrics["hit@1"] == 1.0


def test_column_prefix():
    ranked = ranked_frame(("q", "a", 1)).rename(columns={"rerank_rank": "ce_rank"})
    result = evaluate(ranked, qrels_frame(("q", "a", 1)), metrics="hit@1", prefix="ce_")
    assert result.metrics["hit@1"] == 1.0


def test_rows_of_a_query_may_lie_apart():
    ranked = ranked_frame(("q1", "a", 2), ("q2", "a", 1), ("q1", "b", 1))
    result = evaluate(ranked, qrels_frame(("q1", "b", 1), ("q2", "a", 1)), metrics="hit@1")
    assert result.metrics["hit@1"] == 1.0


# What is missing, unjudged, repeated


def test_judged_queries_missing_from_the_ranked_table_count_zero():
    ranked = ranked_frame(("q1", "a", 1), ("other", "a", 1), ("other", "b", 2))
    qrels = qrels_frame(("q1", "a", 1), ("q2", "a", 1), ("q3", "a", 1), ("q4", "a", 1))
    result = evaluate(ranked, qrels, metrics="ndcg@10")
    assert result.metrics["ndcg@10"] == pytest.approx(1 / 4)
    assert (result.queries_judged, result.queries_missing, result.queries_unjudged) == (4, 3, 1)
    assert dict(result.per_query.to_numpy()) == {"q1": 1.0, "q2": 0.0, "q3": 0.0, "q4": 0.0}


def test_a_query_without_a_relevant_document_counts_zero_as_in_trec_eval():
    ranked = ranked_frame(("q1", "a", 1), ("q2", "a", 1), ("q3", "a", 1), ("other", "a", 1))
    qrels = qrels_frame(("q1", "a", 1), ("q2", "a", 0), ("q3", "a", -2))
    result = evaluate(ranked, qrels, metrics=list(NAMES))
    score = ranked.assign(score=-ranked["rerank_rank"])
    theirs = pd.DataFrame(by_pytrec_eval(score, qrels, "score")).T.mean()
    assert result.metrics == pytest.approx({ours: theirs[name] for ours, name in NAMES.items()})
    assert result.metrics["hit@1"] == pytest.approx(1 / 3)
    assert (result.queries_judged, result.queries_unjudged) == (3, 1)


def test_negative_relevance_is_not_relevant():
    ranked = ranked_frame(("q", "spam", 1), ("q", "a", 2))
    result = evaluate(ranked, qrels_frame(("q", "spam", -2), ("q", "a", 1)))
    assert result.metrics["ndcg@10"] == pytest.approx(1 / math.log2(3))
    assert result.documents_judged == 2


def test_duplicates_keep_their_best_rank_and_the_rest_moves_up():
    ranked = ranked_frame(("q", "a", 3), ("q", "a", 1), ("q", "a", 2), ("q", "b", 4))
    result = evaluate(ranked, qrels_frame(("q", "b", 1)), metrics="mrr@10")
    assert result.metrics["mrr@10"] == pytest.approx(1 / 2)
    assert result.duplicates == 2
    assert (result.documents_judged, result.documents_unjudged) == (1, 1)


def test_null_documents_are_unjudged_and_keep_their_places():
    ranked = ranked_frame(("q", None, 1), ("q", None, 2), ("q", "a", 3))
    result = evaluate(ranked, qrels_frame(("q", "a", 1)), metrics="mrr@10")
    assert result.metrics["mrr@10"] == pytest.approx(1 / 3)
    assert (result.documents_unjudged, result.duplicates) == (2, 0)


def test_rows_without_an_order_are_left_out_and_counted():
    ranked = ranked_frame(("q", "a", None), ("q", "b", 2), ("q2", "a", None))
    result = evaluate(ranked, qrels_frame(("q", "b", 1), ("q2", "a", 1)), metrics="mrr@10")
    assert list(result.per_query["mrr@10"]) == [1.0, 0.0]
    assert (result.not_ranked, result.queries_missing) == (2, 1)


def test_a_document_judged_for_another_query_is_unjudged_here():
    ranked = ranked_frame(("q1", "a", 1), ("q1", "b", 2))
    result = evaluate(ranked, qrels_frame(("q1", "a", 1), ("q2", "b", 1)), metrics="recall@10")
    assert (result.documents_judged, result.documents_unjudged) == (1, 1)


# Ids


@pytest.mark.parametrize(
    ("ranked_ids", "qrels_ids"),
    [
        ([1, 2], ["1", "2"]),
        (["1", "2"], [1, 2]),
        (np.array([1, 2], np.uint8), np.array([1, 2], np.int64)),
        ([1, "2"], ["1", 2]),
        (pd.Categorical(["1", "2"]), ["1", "2"]),
        (pd.Categorical([1, 2]), ["1", "2"]),
        (pd.array(["1", "2"], dtype="string"), pd.array([1, 2], dtype="Int64")),
        ([1.0, 2.0], ["1", "2"]),
    ],
    ids=[
        "int-str",
        "str-int",
        "widths",
        "mixed",
        "categorical",
        "categorical-int",
        "pandas",
        "nan",
    ],
)
def test_ids_are_compared_as_text(ranked_ids, qrels_ids):
    ranked = pd.DataFrame({"query_id": ranked_ids, "doc_id": ranked_ids, "rerank_rank": [1, 1]})
    qrels = pd.DataFrame({"query_id": qrels_ids, "doc_id": qrels_ids, "relevance": [1, 1]})
    result = evaluate(ranked, qrels, metrics="hit@1")
    assert result.metrics["hit@1"] == 1.0
    assert list(result.per_query["query_id"]) == ["1", "2"]


def test_integer_documents_that_pandas_made_floats_for_a_null():
    ranked = ranked_frame(("q", 7, 1), ("q", None, 2))
    assert ranked["doc_id"].dtype == float
    assert evaluate(ranked, qrels_frame(("q", "7", 1)), metrics="hit@1").metrics["hit@1"] == 1.0


@pytest.mark.parametrize(
    "data_type",
    [
        pa.string(),
        pa.large_string(),
        pa.string_view(),
        pa.dictionary(pa.int32(), pa.string()),
        pa.dictionary(pa.int8(), pa.large_string()),
    ],
    ids=str,
)
def test_arrow_tables_of_every_text_type(data_type):
    # An id with a NUL in it would end early in C.
    ids = pa.array(["é", "q\x001", "q\x002"], data_type)
    ranked = pa.table({"query_id": ids, "doc_id": ids, "rerank_rank": [1, 1, 1]})
    qrels = pa.table({"query_id": ids, "doc_id": ids, "relevance": [1, 1, 1]})
    result = evaluate(ranked, qrels, metrics="hit@1")
    assert (result.metrics["hit@1"], result.queries_judged) == (1.0, 3)


# Files


def write_ranked(path, *rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pandas(ranked_frame(*rows), preserve_index=False), path)


def test_ranked_folder_file_glob_and_list_of_files(tmp_path):
    first, second = tmp_path / "out" / "part-0.parquet", tmp_path / "out" / "part-1.parquet"
    write_ranked(first, ("q1", "a", 1))
    write_ranked(second, ("q2", "b", 1))
    qrels = qrels_frame(("q1", "a", 1), ("q2", "b", 1))
    for source in (first.parent, str(first.parent / "*.parquet"), [first, str(second)]):
        assert evaluate(source, qrels, metrics="hit@1").metrics["hit@1"] == 1.0
    assert evaluate(first, qrels, metrics="hit@1").metrics["hit@1"] == 0.5


QRELS_FILES = {
    "trec": "q1 0 a 1\nq1 0 b 0\nq2\tQ0\tb  2\n",
    "crlf.qrels": "q1 0 a 1\r\n\r\nq2 0 b 2\r\n",
    "beir.tsv": "query-id\tcorpus-id\tscore\nq1\ta\t1\nq2\tb\t2\n",
    "beir-crlf.tsv": "\ufeffquery-id\tcorpus-id\tscore\r\nq1\ta\t1\r\nq2\tb\t2\r\n",
    "headless.tsv": "q1\ta\t1\nq2\tb\t2\n",
}


@pytest.mark.parametrize("name", QRELS_FILES)
def test_text_qrels_are_told_apart_by_content(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(QRELS_FILES[name].encode())
    ranked = ranked_frame(("q1", "a", 1), ("q2", "x", 1), ("q2", "b", 2))
    result = evaluate(ranked, path, metrics="mrr@10")
    assert list(result.per_query["mrr@10"]) == [1.0, 0.5]


@pytest.mark.parametrize("name", QRELS_FILES)
def test_text_qrels_may_be_compressed(tmp_path, name):
    path = tmp_path / f"{name}.gz"
    path.write_bytes(gzip.compress(QRELS_FILES[name].encode()))
    found = evaluate(ranked_frame(("q1", "a", 1), ("q2", "b", 1)), path, metrics="mrr")
    assert found.metrics["mrr"] == 1.0


def test_damaged_gzip_is_named(tmp_path):
    path = tmp_path / "qrels.tsv.gz"
    path.write_bytes(gzip.compress(QRELS_FILES["trec"].encode())[:-12])
    with pytest.raises(InputError, match=r"qrels.tsv.gz are damaged"):
        evaluate(ranked_frame(("q1", "a", 1)), path)


def test_parquet_qrels_with_the_columns_of_beir(tmp_path):
    path = tmp_path / "qrels.parquet"
    pq.write_table(pa.table({"query-id": ["q"], "corpus-id": ["a"], "score": [1]}), path)
    assert evaluate(ranked_frame(("q", "a", 1)), path, metrics="hit@1").metrics["hit@1"] == 1.0


def test_beir_ids_may_contain_spaces(tmp_path):
    path = tmp_path / "test.tsv"
    path.write_text("query-id\tcorpus-id\tscore\nq 1\tdoc one\t1\n")
    result = evaluate(ranked_frame(("q 1", "doc one", 1)), path, metrics="hit@1")
    assert result.metrics["hit@1"] == 1.0


def test_parquet_qrels_whatever_their_name(tmp_path):
    path = tmp_path / "qrels"
    pq.write_table(pa.table({"doc_id": ["a"], "relevance": [1.0], "query_id": [5]}), path)
    assert evaluate(ranked_frame((5, "a", 1)), path, metrics="hit@1").metrics["hit@1"] == 1.0


# Baseline


def judged_runs(queries, better):
    """A run that finds the relevant document first, and another order that does for some."""
    rows = [
        (f"q{q}", f"d{d}", d + 1, 2 - d if better(q) else d + 1)
        for q in range(queries)
        for d in range(2)
    ]
    ranked = pd.DataFrame(rows, columns=["query_id", "doc_id", "rerank_rank", "bm25_rank"])
    return ranked, qrels_frame(*[(f"q{q}", "d0", 1) for q in range(queries)])


def test_a_clear_difference():
    ranked, qrels = judged_runs(60, better=lambda q: q % 3 != 0)
    row = evaluate(ranked, qrels, metrics="mrr@10", baseline="bm25_rank").baseline.iloc[0]
    assert (row["metric"], row["ranked"]) == ("mrr@10", 1.0)
    assert row["baseline"] == pytest.approx(1 - 40 * 0.5 / 60)
    assert row["difference"] == pytest.approx(row["ranked"] - row["baseline"])
    # The interval of a mean of 60 values, 40 of 0.5 and 20 of 0: mean +- 1.96 standard errors.
    error = 0.5 * math.sqrt(2 / 3 * 1 / 3 / 60)
    assert row["low"] == pytest.approx(row["difference"] - 1.96 * error, abs=0.01)
    assert row["high"] == pytest.approx(row["difference"] + 1.96 * error, abs=0.01)
    assert row["p_value"] == pytest.approx(1 / 10_001)


def test_no_difference():
    ranked, qrels = judged_runs(50, better=lambda q: False)
    row = evaluate(ranked, qrels, metrics="mrr@10", baseline="bm25_rank").baseline.iloc[0]
    assert (row["difference"], row["low"], row["high"], row["p_value"]) == (0, 0, 0, 1)


def test_a_difference_by_chance():
    rng = np.random.default_rng(11)
    ranked = pd.DataFrame(
        {
            "query_id": np.repeat(np.arange(200), 10),
            "doc_id": np.tile(np.arange(10), 200),
            "rerank_score": rng.random(2000),
            "first_stage": rng.random(2000),
        }
    )
    qrels = qrels_frame(*[(query, 0, 1) for query in range(200)])
    row = evaluate(ranked, qrels, baseline="first_stage").baseline.iloc[0]
    assert row["low"] < 0 < row["high"]
    assert row["p_value"] > 0.05


def test_p_value_against_all_sign_flips():
    # Three queries, differences 0.5 each: of 8 sign patterns, 2 are as extreme.
    ranked, qrels = judged_runs(3, better=lambda q: True)
    row = evaluate(ranked, qrels, metrics="mrr@10", baseline="bm25_rank").baseline.iloc[0]
    assert row["p_value"] == 2 / 8


def test_a_baseline_score_is_descending_and_its_nulls_were_not_retrieved():
    ranked = ranked_frame(("q", "a", 1), ("q", "b", 2), ("q", "c", 3))
    ranked["bm25_score"] = [None, 1.0, 5.0]
    qrels = qrels_frame(("q", "a", 1), ("q", "b", 1))
    found = evaluate(ranked, qrels, metrics="mrr@10,recall@10", baseline="bm25_score").baseline
    assert list(found["baseline"]) == [1 / 2, 1 / 2]
    assert list(found["ranked"]) == [1.0, 1.0]


def test_comparisons_repeat_exactly(collection):
    _, candidates, qrels = collection
    candidates = candidates.assign(rerank_score=-candidates["bm25_rank"] % 7)
    one, two = (evaluate(candidates, qrels, baseline="bm25_rank").baseline for _ in range(2))
    pd.testing.assert_frame_equal(one, two)
    p_values = one.set_index("metric")["p_value"]
    # Another order of the same 100 documents has the same recall.
    assert p_values.pop("recall@100") == 1.0
    assert (p_values < 0.05).all()


def test_ties_of_a_baseline_do_not_follow_the_run():
    # The rows stand in the run's order, best first; a baseline that knows nothing is at chance.
    rows = [(f"q{q}", f"d{q}-{d}", d + 1, 0.0) for q in range(300) for d in range(10)]
    ranked = pd.DataFrame(rows, columns=[*PAIR, "rerank_rank", "first_stage"])
    qrels = qrels_frame(*[(f"q{q}", f"d{q}-0", 1) for q in range(300)])
    row = evaluate(ranked, qrels, metrics="hit@1", baseline="first_stage").baseline.iloc[0]
    assert row["ranked"] == 1.0
    assert row["baseline"] == pytest.approx(0.1, abs=0.06)


def test_the_bootstrap_test_agrees_with_the_t_test_where_there_are_many_queries():
    rng = np.random.default_rng(5)
    reference = rng.random((400, 1))
    values = reference + rng.normal(0.02, 0.2, (400, 1))
    found = compare(values, reference).iloc[0]
    expected = scipy.stats.ttest_rel(values[:, 0], reference[:, 0])
    assert found["p_bootstrap"] == pytest.approx(expected.pvalue, abs=0.02)
    assert found["p_value"] == pytest.approx(expected.pvalue, abs=0.02)
    low, high = expected.confidence_interval()
    assert (found["low"], found["high"]) == pytest.approx((low, high), abs=0.003)
    difference = (values - reference)[:, 0]
    assert found[["better", "equal", "worse"]].sum() == 400
    assert found["better"] == (difference > 0).sum()


def test_the_bootstrap_says_nothing_of_differences_that_do_not_vary():
    found = compare(np.ones((3, 1)), np.zeros((3, 1))).iloc[0]
    assert math.isnan(found["p_bootstrap"])


def test_of_a_single_query_nothing_is_tested():
    ranked, qrels = judged_runs(1, better=lambda q: True)
    row = evaluate(ranked, qrels, metrics="mrr", baseline="bm25_rank").to_json()["baseline"]["mrr"]
    assert (row["difference"], row["better"]) == (0.5, 1)
    assert {row[name] for name in ("low", "high", "p_value", "p_bootstrap")} == {None}


# Several runs


def three_runs():
    first, qrels = judged_runs(40, better=lambda q: q % 2 == 0)
    second = first.assign(rerank_rank=first["bm25_rank"])
    partial = first[first["query_id"] != "q1"]
    return {"first": first, "second": second, "partial": partial}, qrels


def test_runs_stand_side_by_side_against_the_first():
    runs, qrels = three_runs()
    found = evaluate(runs, qrels, metrics="mrr,hit@1")
    rows = found.runs.set_index(["metric", "run"])
    assert found.reference == "first"
    assert found.metrics == {"mrr": 1.0, "hit@1": 1.0}
    assert list(rows.loc["mrr", "value"]) == pytest.approx([1.0, 0.75, 39 / 40])
    assert list(rows.loc["hit@1", "difference"])[1:] == pytest.approx([-0.5, -1 / 40])
    assert math.isnan(rows.loc[("mrr", "first"), "difference"])
    assert rows.loc[("mrr", "second"), "worse"] == 20
    assert list(found.per_query) == [
        *("query_id", "mrr", "hit@1", "mrr:second", "hit@1:second", "mrr:partial", "hit@1:partial")
    ]
    document = found.to_json()
    assert json.loads(json.dumps(document, allow_nan=False)) == document
    assert document["metrics"] == document["runs"]["first"]["metrics"] == found.metrics
    assert document["runs"]["first"]["differences"] == {}
    assert document["runs"]["partial"]["counts"]["queries_missing"] == 1
    assert document["runs"]["second"]["differences"]["mrr"]["difference"] == -0.25


def test_a_difference_between_runs_is_the_one_against_a_baseline():
    runs, qrels = three_runs()
    beside = evaluate(runs, qrels, metrics="mrr").runs.set_index("run").loc["second"]
    alone = evaluate(
        runs["second"]
        .assign(base=runs["first"]["rerank_rank"])
        .rename(columns={"base": "base_rank"}),
        qrels,
        metrics="mrr",
        baseline="base_rank",
    ).baseline.iloc[0]
    assert list(beside[list(COLUMNS)]) == pytest.approx(list(alone[list(COLUMNS)]), abs=1e-12)


def test_with_a_baseline_every_run_is_compared_with_it():
    runs, qrels = three_runs()
    found = evaluate(runs, qrels, metrics="mrr", baseline="bm25_rank")
    assert found.reference == "bm25_rank"
    assert list(found.runs["difference"]) == pytest.approx([0.25, 0.0, 0.225])
    assert found.baseline["difference"][0] == 0.25
    assert list(found.per_query)[:3] == ["query_id", "mrr", "mrr:bm25_rank"]


# Slices


def sliced(ranked, qrels, by, **options):
    return evaluate(ranked, qrels, metrics="mrr", by=by, **options).slices.set_index("slice")


def test_slices_of_a_text_column_and_their_means():
    ranked, qrels = judged_runs(10, better=lambda q: True)
    number = ranked["query_id"].str[1:].astype(int)
    ranked["rerank_rank"] = np.where(number < 4, ranked["bm25_rank"], ranked["rerank_rank"])
    ranked["language"] = pd.Categorical(np.where(number < 4, "ja", "en"))
    found = sliced(ranked, qrels, "language", baseline="bm25_rank")
    assert dict(found["queries"]) == {"en": 6, "ja": 4}
    assert dict(found["value"]) == {"en": 1.0, "ja": 0.5}
    assert dict(found["difference"]) == {"en": 0.5, "ja": 0.0}
    assert found.loc["ja", "p_value"] == 1.0


def test_numbers_are_cut_at_quartiles_and_equal_ones_are_not_parted():
    ranked, qrels = judged_runs(16, better=lambda q: True)
    number = ranked["query_id"].str[1:].astype(int)
    ranked["length"] = np.where(number < 6, 1, number)
    found = sliced(ranked, qrels, ["length"])
    assert dict(found["queries"]) == {"1": 6, "6 to 7": 2, "8 to 11": 4, "12 to 15": 4}


def test_few_numbers_and_booleans_are_slices_themselves():
    ranked, qrels = judged_runs(6, better=lambda q: True)
    number = ranked["query_id"].str[1:].astype(int)
    ranked = ranked.assign(hops=number % 3, long=number > 1)
    found = evaluate(ranked, qrels, metrics="mrr", by=["hops", "long"]).slices
    assert list(found["by"] + "=" + found["slice"]) == [
        *("hops=0", "hops=1", "hops=2", "long=False", "long=True")
    ]
    assert list(found["queries"]) == [2, 2, 2, 2, 4]


def test_queries_without_a_value_are_a_slice_of_their_own():
    ranked, qrels = judged_runs(3, better=lambda q: True)
    ranked = ranked[ranked["query_id"] != "q2"].assign(topic=["x", "x", None, None])
    assert dict(sliced(ranked, qrels, "topic")["queries"]) == {"x": 1, "(no value)": 2}


def test_columns_of_a_table_of_queries(tmp_path):
    ranked, qrels = judged_runs(4, better=lambda q: True)
    table = pa.table({"query_id": ["q0", "q1", "q3", "other"], "kind": ["a", "a", "b", "b"]})
    pq.write_table(table, tmp_path / "queries.parquet")
    found = sliced(ranked.assign(kind="not this"), qrels, "kind", queries=tmp_path)
    assert dict(found["queries"]) == {"a": 2, "b": 1, "(no value)": 1}


def test_a_column_that_is_not_the_querys_is_no_slice():
    ranked, qrels = judged_runs(3, better=lambda q: True)
    ranked = pd.concat([ranked, ranked.assign(doc_id="d9", rerank_rank=3)])
    with pytest.raises(InputError, match=r"doc_id is not one to slice by: 3 queries"):
        evaluate(ranked, qrels, by="doc_id")
    with pytest.raises(InputError, match="no column colour to slice by"):
        evaluate(ranked, qrels, by="colour")


# Depth


def test_quality_against_depth_on_a_table_made_by_hand():
    rows = [("q", f"d{d}", rank, d + 1) for d, rank in enumerate([4, 3, 2, 1])]
    ranked = pd.DataFrame(rows, columns=[*PAIR, "rerank_rank", "bm25_rank"])
    found = evaluate(
        ranked, qrels_frame(("q", "d2", 1)), metrics="mrr", baseline="bm25_rank", depths="1,3,9"
    ).depths
    # d2 is third; among the first three it is best; of all four it is second.
    assert list(found["depth"]) == ["0", "1", "3", "9", "all"]
    assert list(found["value"]) == [1 / 3, 1 / 3, 1.0, 1 / 2, 1 / 2]
    assert list(found["pairs"]) == [0, 1, 3, 4, 4]


def test_depths_equal_a_run_that_reranked_no_more(collection):
    _, candidates, qrels = collection
    candidates = candidates.assign(
        rerank_score=np.random.default_rng(1).random(len(candidates)) - candidates["bm25_rank"] / 50
    )
    candidates["rerank_rank"] = candidates.groupby("query_id")["rerank_score"].rank(ascending=False)
    found = evaluate(
        candidates, qrels, metrics="ndcg@10", baseline="bm25_rank", depths=[5, 20]
    ).depths.set_index("depth")
    for depth in (5, 20):
        below = candidates["bm25_rank"] > depth
        cut = candidates.assign(
            rerank_rank=candidates["rerank_rank"] + below * 1e6 * candidates["bm25_rank"]
        )
        expected = evaluate(cut, qrels, metrics="ndcg@10").metrics["ndcg@10"]
        assert found.loc[str(depth), "value"] == pytest.approx(expected)


def test_depths_need_the_first_stage_and_are_numbers():
    ranked, qrels = judged_runs(3, better=lambda q: True)
    with pytest.raises(ConfigError, match="order of the first stage"):
        evaluate(ranked, qrels, depths=[5])
    with pytest.raises(ConfigError, match="0, x are not numbers"):
        evaluate(ranked, qrels, baseline="bm25_rank", depths=[0, "x"])


# Output


def test_to_json_is_plain_json():
    ranked, qrels = judged_runs(4, better=lambda q: q == 0)
    result = evaluate(ranked, qrels, baseline="bm25_rank")
    document = result.to_json()
    assert json.loads(json.dumps(document, allow_nan=False)) == document
    assert document["metrics"] == result.metrics
    assert document["counts"]["queries_judged"] == 4
    assert document["baseline"]["mrr@10"]["ranked"] == 1.0
    plain = evaluate(ranked, qrels).to_json()
    assert {plain[name] for name in ("baseline", "runs", "slices", "depths", "tests")} == {None}


# Errors

QRELS = qrels_frame(("q", "a", 1))


@pytest.mark.parametrize(
    ("ranked", "qrels", "named"),
    [
        (ranked_frame(("q", "a", 1)).drop(columns="doc_id"), QRELS, ["doc_id", "rerank_rank"]),
        (
            pd.DataFrame({"query_id": ["q"], "doc_id": ["a"], "text": ["t"]}),
            QRELS,
            ["rerank_rank or rerank_score", "text"],
        ),
        (ranked_frame(("q", "a", 1)), QRELS.drop(columns="relevance"), ["relevance", "doc_id"]),
        (ranked_frame(("q", "a", 1)), QRELS[:0], ["None of the 0 qrels"]),
        (ranked_frame(("q", "a", 1)), qrels_frame(("q", "a", 0)), ["above 0"]),
        (ranked_frame(("q", "a", 1)), qrels_frame(("q", "a", 0.5)), ["relevance", "double"]),
        (ranked_frame(("q", "a", 1)), qrels_frame(("q", "a", None)), ["relevance"]),
        (ranked_frame(("q", "a", 1)), qrels_frame(("q", "a", 2**40)), ["relevance", "1000000"]),
        (ranked_frame(("q", "a", 1)), qrels_frame((None, "a", 1)), ["null"]),
        (
            ranked_frame(("q", "a", 1)),
            qrels_frame(("q", "a", 1), ("q", "a", 2)),
            ["document a of query q", "twice"],
        ),
        (ranked_frame(("q-1", "a", 1)), QRELS, ["'q-1'", "'q'"]),
        (
            ranked_frame(("question number one", "a", 1)),
            qrels_frame(("17", "a", 1)),
            ["'ques…' (19 characters)", "'17'"],
        ),
        (
            ranked_frame(("q", "document/1", 1), ("q", "document/2", 2)),
            qrels_frame(("q", "DOC-1", 1)),
            ["None of the 2 ranked documents", "'docu…' (10 characters)", "'DOC-…' (5 characters)"],
        ),
        (ranked_frame()[:0], QRELS, ["0 ranked queries"]),
        (ranked_frame(("q", "a", "first")), QRELS, ["rerank_rank", "string"]),
        (ranked_frame(("q", 0.5, 1)), QRELS, ["doc_id", "double"]),
        (ranked_frame(("q", 1e300, 1)), QRELS, ["doc_id", "double"]),
        (ranked_frame((b"q", "a", 1)), QRELS, ["query_id", "binary"]),
    ],
)
def test_unusable_input_is_named(ranked, qrels, named):
    with pytest.raises(InputError) as caught:
        evaluate(ranked, qrels)
    for part in named:
        assert part in str(caught.value)


def test_a_missing_baseline_column_is_named():
    with pytest.raises(InputError, match="bm25_rank"):
        evaluate(ranked_frame(("q", "a", 1)), QRELS, baseline="bm25_rank")


@pytest.mark.parametrize("metric", ["hit", "ndcg@", "ndcg@0", "ndcg@-1", "bleu@10", "", "map@1.5"])
def test_an_unknown_metric_names_the_accepted_ones(metric):
    with pytest.raises(ConfigError, match="ndcg@10, map@10, mrr@10, hit@10, recall@10"):
        evaluate(ranked_frame(("q", "a", 1)), QRELS, metrics=[metric])


def test_a_mistyped_metric_is_told_the_nearest():
    with pytest.raises(ConfigError, match=r"Did you mean ndcg@10\?"):
        evaluate(ranked_frame(("q", "a", 1)), QRELS, metrics=["nDCG@10"])


@pytest.mark.parametrize(
    ("metric", "meant"),
    [
        ("ndcg_cut_10", "ndcg@10"),
        ("P@5", "precision@5"),
        ("success@3", "hit@3"),
        ("recip_rank", "mrr"),
        ("MAP", "map"),
        ("recal@100", "recall@100"),
        ("hit", "hit@10"),
    ],
)
def test_names_of_other_tools_are_told_ours(metric, meant):
    with pytest.raises(ConfigError, match=rf"Did you mean {meant}\?"):
        evaluate(ranked_frame(("q", "a", 1)), QRELS, metrics=metric)


def test_no_metric():
    with pytest.raises(ConfigError, match="No metric"):
        evaluate(ranked_frame(("q", "a", 1)), QRELS, metrics=[])


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (b"q 0 a 1\nq 0 b\n", "Line 2"),
        (b"q 0 a high\n", "Line 1"),
        (b"q 0 a 99999999999999999999\n", "Line 1"),
        (b"query-id\tcorpus-id\tscore\n\nq\ta\t1\nq\tb\n", "Line 4"),
        (b"query_id,doc_id,relevance\nq,a,1\n", "Line 1"),
        (b"\xff\xfe\x00\x01", "neither Parquet nor UTF-8"),
        (b"", "None of the 0 qrels"),
    ],
)
def test_unreadable_qrels_files_are_named(tmp_path, content, named):
    path = tmp_path / "qrels.txt"
    path.write_bytes(content)
    with pytest.raises(InputError, match=named):
        evaluate(ranked_frame(("q", "a", 1)), path)


def test_files_that_are_not_there_or_not_parquet(tmp_path):
    with pytest.raises(InputError, match="missing"):
        evaluate(ranked_frame(("q", "a", 1)), tmp_path / "missing.tsv")
    with pytest.raises(InputError, match="missing"):
        evaluate(tmp_path / "missing", QRELS)
    text = tmp_path / "ranked.csv"
    text.write_text("query_id,doc_id\n")
    with pytest.raises(InputError, match="not a Parquet file"):
        evaluate(text, QRELS)
