"""Evaluation: trec_eval's numbers, the rules for what is missing, and the paired comparison."""

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

from rankmill.errors import ConfigError, InputError
from rankmill.evaluate import evaluate

DATA = Path(os.environ.get("RANKMILL_TEST_DATA", Path(__file__).parents[2] / "shared" / "data"))


def ranked_frame(*rows):
    return pd.DataFrame(rows, columns=["query_id", "doc_id", "rerank_rank"])


def qrels_frame(*rows):
    return pd.DataFrame(rows, columns=["query_id", "doc_id", "relevance"])


@pytest.fixture(scope="module")
def cranfield():
    folder = DATA / "cranfield"
    if not folder.is_dir():
        pytest.skip(f"the test collection is not at {folder}; set RANKMILL_TEST_DATA")
    columns = ["query_id", "doc_id", "bm25_score", "bm25_rank"]
    candidates = pd.read_parquet(folder / "candidates.parquet", columns=columns)
    return candidates, pd.read_parquet(folder / "qrels.parquet")


# Equality with trec_eval


def test_bm25_on_cranfield(cranfield):
    candidates, qrels = cranfield
    result = evaluate(candidates.rename(columns={"bm25_rank": "rerank_rank"}), qrels)
    assert result.metrics["ndcg@10"] == pytest.approx(0.3503, abs=5e-5)
    assert result.metrics["map@10"] == pytest.approx(0.2152, abs=5e-5)
    assert result.queries_judged == len(result.per_query) == qrels["query_id"].nunique()
    assert result.queries_missing == result.queries_unjudged == 0
    assert result.documents_judged + result.documents_unjudged == len(candidates)


def test_every_query_equals_pytrec_eval_called_directly(cranfield):
    candidates, qrels = cranfield
    shuffled = candidates.sample(frac=1, random_state=7)
    shuffled["rerank_score"] = np.random.default_rng(3).permutation(len(candidates))
    names = {
        "ndcg@10": "ndcg_cut_10",
        "ndcg@3": "ndcg_cut_3",
        "map@10": "map_cut_10",
        "map@100": "map_cut_100",
        "hit@1": "success_1",
        "hit@10": "success_10",
        "recall@100": "recall_100",
        "precision@5": "P_5",
        "mrr@100": "recip_rank",
    }
    result = evaluate(shuffled, qrels, metrics=list(names))
    judged = {
        query: dict(zip(rows["doc_id"], rows["relevance"], strict=True))
        for query, rows in qrels.groupby("query_id")
    }
    run = {
        query: dict(zip(rows["doc_id"], rows["rerank_score"].astype(float), strict=True))
        for query, rows in shuffled.groupby("query_id")
    }
    direct = pytrec_eval.RelevanceEvaluator(judged, set(names.values())).evaluate(run)
    for _, row in result.per_query.iterrows():
        for ours, theirs in names.items():
            assert row[ours] == pytest.approx(direct[row["query_id"]][theirs], abs=1e-6)
    for ours, theirs in names.items():
        mean = np.mean([found[theirs] for found in direct.values()])
        assert result.metrics[ours] == pytest.approx(mean, abs=1e-6)


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


def test_a_query_without_a_relevant_document_is_not_judged():
    ranked = ranked_frame(("q1", "a", 1), ("q2", "a", 1), ("q3", "a", 1))
    qrels = qrels_frame(("q1", "a", 1), ("q2", "a", 0), ("q3", "a", -2))
    result = evaluate(ranked, qrels, metrics="hit@1")
    assert result.metrics["hit@1"] == 1.0
    assert (result.queries_judged, result.queries_unjudged) == (1, 2)


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
    assert row["p_value"] == pytest.approx(2 / 8, abs=0.02)


def test_a_baseline_score_is_descending_and_its_nulls_were_not_retrieved():
    ranked = ranked_frame(("q", "a", 1), ("q", "b", 2), ("q", "c", 3))
    ranked["bm25_score"] = [None, 1.0, 5.0]
    qrels = qrels_frame(("q", "a", 1), ("q", "b", 1))
    found = evaluate(ranked, qrels, metrics="mrr@10,recall@10", baseline="bm25_score").baseline
    assert list(found["baseline"]) == [1 / 2, 1 / 2]
    assert list(found["ranked"]) == [1.0, 1.0]


def test_comparisons_repeat_exactly(cranfield):
    candidates, qrels = cranfield
    candidates = candidates.assign(rerank_score=-candidates["bm25_rank"] % 7)
    one, two = (evaluate(candidates, qrels, baseline="bm25_rank").baseline for _ in range(2))
    pd.testing.assert_frame_equal(one, two)
    p_values = one.set_index("metric")["p_value"]
    # Another order of the same 100 documents has the same recall.
    assert p_values.pop("recall@100") == 1.0
    assert (p_values < 0.01).all()


# Output


def test_to_json_is_plain_json():
    ranked, qrels = judged_runs(4, better=lambda q: q == 0)
    result = evaluate(ranked, qrels, baseline="bm25_rank")
    document = result.to_json()
    assert json.loads(json.dumps(document, allow_nan=False)) == document
    assert document["metrics"] == result.metrics
    assert document["counts"]["queries_judged"] == 4
    assert document["baseline"]["mrr@10"]["ranked"] == 1.0
    assert evaluate(ranked, qrels).to_json()["baseline"] is None


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
