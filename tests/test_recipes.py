"""The field's benchmarks: local copies in their public layouts become candidates and judgements.

Every file here is made up; the layouts are those that `rankmill.recipes` describes.
"""

from __future__ import annotations

import gzip
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import rankmill
from rankmill.errors import ConfigError, InputError
from rankmill.models import presets
from rankmill.recipes import BENCHMARKS, prepare, table
from rankmill.recipes.first_stage import Lexical, bigrams, words

ROOT = Path(__file__).parents[1]


def write_json(path: Path, content: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")


def write_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    data = text.encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)


def write_text(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def write_table(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), path)


def read(path: str) -> Any:
    return pq.read_table(path).to_pandas()


def judged(found: Any) -> dict[str, dict[str, int]]:
    grouped: dict[str, dict[str, int]] = {}
    for row in read(found.qrels).itertuples():
        grouped.setdefault(row.query_id, {})[row.doc_id] = row.relevance
    return grouped


def metrics_of(name: str, found: Any, scores: Any) -> dict[str, float]:
    """The benchmark's published metrics, its candidates ranked by some scores."""
    ranked = read(found.candidates).assign(rerank_score=scores)
    result = rankmill.evaluate(ranked, found.qrels, metrics=BENCHMARKS[name].metrics)
    assert result.queries_judged == found.queries
    return result.metrics


# JQaRA


def jqara_rows(question: str, text: str, right: set[int], passages: int) -> list[dict[str, Any]]:
    return [
        {
            "id": f"{question}-{n}",
            "q_id": question,
            "passage_row_id": str(1000 + n),
            "label": int(n in right),
            "text": f"{n}番目の文章です。",
            "title": f"記事{n}",
            "question": text,
            "answers": ["山"],
        }
        for n in range(passages)
    ]


@pytest.fixture
def jqara(tmp_path: Path) -> Path:
    first = jqara_rows("QA-1", "日本で一番高い山は何ですか", {0, 1}, 100)
    second = jqara_rows("QA-2", "日本で一番長い川は何ですか", {7}, 100)
    mixed = [row for pair in zip(first, second) for row in pair]  # the questions lie apart
    write_table(tmp_path / "JQaRA/data/test-00000-of-00001.parquet", mixed)
    write_table(
        tmp_path / "JQaRA/data/dev-00000-of-00001.parquet", jqara_rows("QA-3", "?", {3}, 50)
    )
    return tmp_path / "JQaRA"


def test_jqara_has_the_passages_of_the_test_questions(jqara: Path, tmp_path: Path) -> None:
    found = prepare("jqara", jqara, tmp_path / "out")
    assert (found.queries, found.pairs, found.relevant, found.relevant_found) == (2, 200, 3, 3)
    rows = read(found.candidates)
    assert rows["query_id"].tolist() == ["QA-1"] * 100 + ["QA-2"] * 100
    right = rows[(rows["query_id"] == "QA-2") & (rows["doc_id"] == "1007")].iloc[0]
    assert right["query"] == "日本で一番長い川は何ですか"
    assert (right["title"], right["text"]) == ("記事7", "7番目の文章です。")
    assert judged(found)["QA-1"] == {str(1000 + n): int(n < 2) for n in range(100)}


def test_jqara_is_judged_by_ndcg_and_mrr(jqara: Path, tmp_path: Path) -> None:
    found = prepare("jqara", jqara, tmp_path / "out")
    rows = read(found.candidates)
    # Passage 1000 first in both lists: right for the first question, which has another, and wrong
    # for the second, whose answer is at rank 8.
    metrics = metrics_of("jqara", found, -rows["doc_id"].astype(int))
    assert metrics["ndcg@10"] == pytest.approx((1 + 1 / 3.1699250014423126) / 2)  # log2(9)
    assert metrics["mrr@10"] == pytest.approx((1 + 1 / 8) / 2)


def test_another_split_has_its_own_questions(jqara: Path, tmp_path: Path) -> None:
    found = prepare("jqara", jqara, tmp_path / "out", split="dev")
    assert (found.queries, found.pairs) == (1, 50)


def test_lists_without_an_order_do_not_start_with_what_is_right(
    jqara: Path, tmp_path: Path
) -> None:
    found = prepare("jqara", jqara, tmp_path / "out")
    # A model without an opinion must not score by the order of the rows.
    assert metrics_of("jqara", found, 0.0)["mrr@10"] < 0.5
    again = prepare("jqara", jqara, tmp_path / "again")
    assert Path(found.candidates).read_bytes() == Path(again.candidates).read_bytes()


# JaCWIR


@pytest.fixture
def jacwir(tmp_path: Path) -> Path:
    ids = [f"doc_id#{n:04d}" for n in range(300)]
    pages = [
        {"doc_id": i, "title": f"題{n}", "description": f"説明{n}", "link": "", "date": ""}
        for n, i in enumerate(ids)
    ]
    folder = tmp_path / "JaCWIR"
    write_table(folder / "collection/collection-00000-of-00002.parquet", pages[:150])
    write_table(folder / "collection/collection-00001-of-00002.parquet", pages[150:])
    questions = [
        {"query": "問い一", "positive": ids[5], "negatives": ids[100:199]},
        {"query": "問い二", "positive": ids[150], "negatives": ids[200:299]},
    ]
    write_table(folder / "eval/eval-00000-of-00001.parquet", questions)
    return folder


def test_jacwir_has_one_positive_and_99_negatives(jacwir: Path, tmp_path: Path) -> None:
    found = prepare("jacwir", jacwir, tmp_path / "out")
    assert (found.queries, found.pairs, found.relevant, found.relevant_found) == (2, 200, 2, 2)
    rows = read(found.candidates)
    first = rows[rows["query_id"] == "q_id##doc_id#0005"]
    assert len(first) == 100
    page = first[first["doc_id"] == "doc_id#0005"].iloc[0]
    assert (page["query"], page["title"], page["text"]) == ("問い一", "題5", "説明5")
    assert sum(judged(found)["q_id##doc_id#0150"].values()) == 1


def test_jacwir_is_judged_by_map_and_hit_rate(jacwir: Path, tmp_path: Path) -> None:
    found = prepare("jacwir", jacwir, tmp_path / "out")
    numbers = read(found.candidates)["doc_id"].str[-4:].astype(int)
    # Lowest id first: the right page of each question. Highest first: the last of 100.
    assert metrics_of("jacwir", found, -numbers) == {"map@10": 1.0, "hit@10": 1.0}
    assert metrics_of("jacwir", found, numbers) == {"map@10": 0.0, "hit@10": 0.0}


def test_a_page_that_the_collection_lacks_is_named(jacwir: Path, tmp_path: Path) -> None:
    (jacwir / "collection/collection-00001-of-00002.parquet").unlink()
    with pytest.raises(InputError, match="lacks 49 of 100 candidates, doc_id#0150 the first"):
        prepare("jacwir", jacwir, tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())


# JSQuAD

WEATHER = ["梅の実は六月に熟します", "台風は南の海で生まれます", "雪は北の国で深く積もります"]


@pytest.fixture
def jsquad(tmp_path: Path) -> Path:
    def paragraph(article: int, n: int, text: str, *questions: str) -> dict[str, Any]:
        asked = [
            {
                "question": question,
                "id": f"a{article}p{n}q{q}",
                "answers": [{"text": "?", "answer_start": 0}],
                "is_impossible": False,
            }
            for q, question in enumerate(questions)
        ]
        return {"context": f"天気 [SEP] {text}", "qas": asked}

    first = [
        paragraph(1, 0, WEATHER[0], "梅の実はいつ熟しますか"),
        paragraph(1, 1, WEATHER[1], "台風はどこで生まれますか"),
        paragraph(1, 2, WEATHER[2], "ゐゑ"),
    ]
    more = [paragraph(2, n, f"{n}番目の話") for n in range(30)]
    data = [{"title": "天気", "paragraphs": first}, {"title": "話", "paragraphs": more}]
    write_json(tmp_path / "JGLUE/datasets/jsquad-v1.3/valid-v1.3.json", {"data": data})
    return tmp_path / "JGLUE"


def test_jsquad_has_the_paragraph_and_19_like_it(jsquad: Path, tmp_path: Path) -> None:
    found = prepare("jsquad", jsquad, tmp_path / "out")
    assert (found.queries, found.pairs, found.relevant, found.relevant_found) == (3, 60, 3, 3)
    rows = read(found.candidates)
    first = rows[rows["query_id"] == "a1p0q0"]
    assert first["first_stage_rank"].tolist() == list(range(1, 21))
    # The separator is no part of a passage.
    assert (first["title"].iloc[0], first["text"].iloc[0]) == ("天気", WEATHER[0])


def test_jsquad_is_judged_by_map(jsquad: Path, tmp_path: Path) -> None:
    found = prepare("jsquad", jsquad, tmp_path / "out")
    # BM25 has two paragraphs first. It knows no character of the third question, and leaves all
    # paragraphs in their order.
    scores = -read(found.candidates)["first_stage_rank"]
    assert metrics_of("jsquad", found, scores) == {"map@10": pytest.approx((1 + 1 + 1 / 3) / 3)}


def test_a_right_paragraph_that_bm25_does_not_find_takes_the_last_place(
    jsquad: Path, tmp_path: Path
) -> None:
    found = prepare("jsquad", jsquad, tmp_path / "out", depth=2)
    rows = read(found.candidates)
    lost = rows[rows["query_id"] == "a1p2q0"]
    assert lost["text"].tolist() == [WEATHER[0], WEATHER[2]]
    assert lost["first_stage_score"].tolist() == [0.0, 0.0]


# MIRACL


@pytest.fixture
def miracl(tmp_path: Path) -> Path:
    folder = tmp_path / "miracl"
    topics = "0#0\t富士山の高さは\n3#0\t琵琶湖の広さは\n9#0\t判定のない問い\n"
    write_text(folder / "miracl-v1.0-ja/topics/topics.miracl-v1.0-ja-dev.tsv", topics)
    qrels = "0#0\tQ0\t10#1\t1\n0#0\tQ0\t10#2\t0\n3#0\tQ0\t20#0\t1\n3#0\tQ0\t10#1\t0\n"
    write_text(folder / "miracl-v1.0-ja/qrels/qrels.miracl-v1.0-ja-dev.tsv", qrels)
    passages = [
        {"docid": f"{page}#{n}", "title": f"頁{page}", "text": f"本文{page}の{n}"}
        for page in (10, 20)
        for n in range(4)
    ]
    corpus = folder / "miracl-corpus-v1.0-ja"
    write_lines(corpus / "docs-0.jsonl.gz", passages[:5])
    write_lines(corpus / "docs-1.jsonl.gz", passages[5:])
    return folder


def test_miracl_has_the_judged_passages(miracl: Path, tmp_path: Path) -> None:
    found = prepare("miracl-ja", miracl, tmp_path / "out")
    assert (found.queries, found.pairs, found.relevant, found.relevant_found) == (2, 4, 2, 2)
    rows = read(found.candidates)
    assert "first_stage_rank" not in rows
    assert set(rows.loc[rows["query_id"] == "3#0", "doc_id"]) == {"20#0", "10#1"}
    assert rows.loc[rows["doc_id"] == "20#0", "text"].tolist() == ["本文20の0"]
    # Page 20 above page 10: right for the second question only.
    metrics = metrics_of("miracl-ja", found, rows["doc_id"].str.replace("#", ".").astype(float))
    assert metrics["ndcg@10"] == pytest.approx((1 + 1 / 1.584962500721156) / 2)  # log2(3)


def test_miracl_takes_candidates_from_a_run(miracl: Path, tmp_path: Path) -> None:
    wanted = ["10#3", "10#1", "20#3", "20#2", "10#0"]
    lines = [f"0#0 Q0 {doc_id} {n} {9 - n} bm25\n" for n, doc_id in enumerate(wanted, 1)]
    write_text(tmp_path / "bm25.trec", "".join(lines) + "9#0 Q0 10#0 1 3.0 bm25\n")
    found = prepare("miracl-ja", miracl, tmp_path / "out", run=tmp_path / "bm25.trec", depth=4)
    rows = read(found.candidates)
    assert rows["doc_id"].tolist() == wanted[:4]
    assert rows["first_stage_score"].tolist() == [8, 7, 6, 5]
    # The question that the run does not have counts 0.
    metrics = metrics_of("miracl-ja", found, -rows["first_stage_rank"])
    assert metrics["ndcg@10"] == pytest.approx(1 / 1.584962500721156 / 2)


# BEIR

FACTS = {
    "d1": ("Bees", "Bees find the way back to their hive by the sun and by landmarks."),
    "d2": ("Honey", "Honey is sold in jars; bees make it from nectar."),
    "d3": ("", "Sourdough is bread raised by wild yeast and lactic bacteria."),
    "d4": ("Dough", "A hook kneads bread dough in a mixer."),
    "q2": ("Bread", "what is sourdough bread"),
}


@pytest.fixture
def beir(tmp_path: Path) -> Path:
    folder = tmp_path / "tinyfact"
    rows = [{"_id": i, "title": t, "text": x, "metadata": {}} for i, (t, x) in FACTS.items()]
    write_lines(folder / "corpus.jsonl", rows)
    queries = {
        "q1": "how do bees find the way to their hive",
        "q2": "what is sourdough bread",
        "q3": "of another split",
    }
    write_lines(folder / "queries.jsonl", [{"_id": i, "text": x} for i, x in queries.items()])
    header = "query-id\tcorpus-id\tscore\n"
    write_text(folder / "qrels/test.tsv", f"{header}q1\td1\t2\nq1\td2\t1\nq2\td3\t1\n")
    write_text(folder / "qrels/dev.tsv", f"{header}q3\td1\t1\n")
    return folder


def test_beir_candidates_are_found_by_bm25(beir: Path, tmp_path: Path) -> None:
    found = prepare("beir", beir, tmp_path / "out")
    rows = read(found.candidates)
    assert set(rows["query_id"]) == {"q1", "q2"}
    first = rows[rows["query_id"] == "q1"]
    assert first["doc_id"].tolist()[:2] == ["d1", "d2"]
    assert first["first_stage_score"].is_monotonic_decreasing
    # A document without a title has none, so that no space is put for it.
    assert rows.loc[rows["doc_id"] == "d3", "title"].isna().all()
    assert judged(found) == {"q1": {"d1": 2, "d2": 1}, "q2": {"d3": 1}}


def test_beir_ignores_the_document_that_is_the_query(beir: Path, tmp_path: Path) -> None:
    found = prepare("beir", beir, tmp_path / "out", depth=2)
    rows = read(found.candidates)
    assert rows.loc[rows["query_id"] == "q2", "doc_id"].tolist() == ["d3", "d4"]


def test_beir_is_reranked_and_judged_as_configured(
    beir: Path, tmp_path: Path, ray_cluster: None
) -> None:
    found = prepare("beir", beir, tmp_path / "out")
    config = rankmill.load_config(
        ROOT / "configs/benchmarks/beir.yaml",
        {
            "input.path": found.candidates,
            "output.path": str(tmp_path / "ranked"),
            "model.name": "demo",
            "compute.workers": 1,
        },
    )
    result = rankmill.rerank(config)
    assert result.counters.rows_out == found.pairs
    metrics = rankmill.evaluate(
        tmp_path / "ranked",
        found.qrels,
        metrics=BENCHMARKS["beir"].metrics,
        baseline="first_stage_rank",
    )
    assert metrics.queries_judged == 2
    assert metrics.documents_unjudged > 0
    assert metrics.metrics["ndcg@10"] > 0.9


# LlamaIndex


@pytest.fixture
def llamaindex(tmp_path: Path) -> Path:
    names = {name: f"node-{name}" for name in FACTS if name != "q2"}
    dataset = {
        "queries": {"u1": "how do bees find the way to their hive", "u2": "what is sourdough"},
        "corpus": {names[n]: text for n, (_, text) in FACTS.items() if n in names},
        "relevant_docs": {"u1": ["node-d1"], "u2": ["node-d3"]},
        "mode": "text",
    }
    write_json(tmp_path / "llama/dataset.json", dataset)
    return tmp_path / "llama/dataset.json"


def test_llamaindex_is_judged_by_hit_rate(llamaindex: Path, tmp_path: Path) -> None:
    found = prepare("llamaindex", llamaindex, tmp_path / "out")
    rows = read(found.candidates)
    assert rows["title"].isna().all()
    scorer = rankmill.Scorer("demo", device="cpu", precision="fp32", max_length=64)
    scores = scorer.score(list(zip(rows["query"], rows["text"])))
    assert metrics_of("llamaindex", found, scores) == {"hit@5": 1.0, "mrr@5": 1.0}


def test_llamaindex_takes_candidates_from_a_run(llamaindex: Path, tmp_path: Path) -> None:
    write_text(tmp_path / "run.trec", "u1 Q0 node-d2 1 0.9 e\nu1 Q0 node-d1 2 0.8 e\n")
    found = prepare("llamaindex", llamaindex, tmp_path / "out", run=tmp_path / "run.trec")
    assert (found.queries, found.pairs, found.relevant, found.relevant_found) == (2, 2, 2, 1)
    scores = -read(found.candidates)["first_stage_rank"]
    # Nothing that reorders a list finds what is not in it.
    assert metrics_of("llamaindex", found, scores) == {"hit@5": 0.5, "mrr@5": 0.25}


# First stages


def test_bm25_prefers_rare_words_and_leaves_out_what_shares_none() -> None:
    bm25 = Lexical([("a", "the cat"), ("b", "the dog"), ("c", "the the owl")], words)
    assert [doc_id for doc_id, _ in bm25.search("The dog!", 3)] == ["b", "c", "a"]
    assert [doc_id for doc_id, _ in bm25.search("dog", 3)] == ["b"]
    assert bm25.search("zebra", 3) == []


def test_equal_bm25_scores_keep_the_order_of_the_collection_at_any_depth() -> None:
    bm25 = Lexical([(str(n), "same words here") for n in range(9)], words)
    whole = bm25.search("words", 9)
    assert [doc_id for doc_id, _ in whole] == [str(n) for n in range(9)]
    assert bm25.search("words", 4) == whole[:4]


def test_japanese_is_searched_by_pairs_of_characters() -> None:
    assert bigrams("東京都、島") == ["東京", "京都", "島"]
    bm25 = Lexical([("a", "大阪の城"), ("b", "東京の塔")], bigrams)
    assert bm25.search("東京はどこ", 1)[0][0] == "b"


def test_a_run_is_ordered_as_trec_eval_orders_it(beir: Path, tmp_path: Path) -> None:
    # By score whatever the rank says; of equal scores the higher id first; lines lie apart.
    run = "q1 Q0 d4 1 1.0 x\nq2 Q0 d3 1 5 x\nq1 Q0 d1 9 2.0 x\nq1 Q0 d2 3 1.0 x\n"
    write_text(tmp_path / "run.trec", run)
    found = prepare("beir", beir, tmp_path / "out", run=tmp_path / "run.trec", depth=2)
    rows = read(found.candidates)
    assert rows["doc_id"].tolist() == ["d1", "d4", "d3"]


# Configurations and figures


@pytest.mark.parametrize("name", sorted(BENCHMARKS))
def test_a_benchmark_has_a_configuration_that_reads_what_it_writes(name: str) -> None:
    config = rankmill.load_config(ROOT / f"configs/benchmarks/{name}.yaml")
    known = presets.find(config.model.name)
    assert known is not None
    assert config.model.max_length == known.recommended_length
    assert config.model.truncation == known.truncation
    schema = table.schema_of(ordered=BENCHMARKS[name].ordered)
    assert {*config.input.columns.document_parts, *config.output.columns} <= {*schema.names}


@pytest.mark.parametrize(
    ("heading", "place", "dataset", "metric"),
    [
        ("JQaRA", 1, "JQaRA", "ndcg@10"),
        ("JaCWIR", 1, "JaCWIR", "map@10"),
        ("JSQuAD and MIRACL (ja)", 1, "JSQuAD", "map@10"),
        ("JSQuAD and MIRACL (ja)", 3, "MIRACL (ja)", "ndcg@10"),
        ("BEIR", 1, "BEIR", "ndcg@10"),
        ("LlamaIndex", 1, "LlamaIndex RAG", "hit rate"),
    ],
)
def test_the_documented_figures_are_those_of_the_presets(
    heading: str, place: int, dataset: str, metric: str
) -> None:
    section = (ROOT / "docs/benchmarks.md").read_text().partition(f"### {heading}\n")[2]
    rows = re.findall(r"^\| (\S+/\S+) \|(.*)\|$", section.partition("\n###")[0], re.MULTILINE)
    written = {(name, cells.split("|")[place - 1].strip()) for name, cells in rows}
    assert written == {
        (preset.name, f"{figure.value:.4f}")
        for preset in presets.presets()
        for figure in preset.figures
        if (figure.dataset, figure.metric) == (dataset, metric)
    }


# What is wrong is named


@pytest.mark.parametrize("name", sorted(BENCHMARKS))
def test_an_empty_folder_says_what_it_lacks(name: str, tmp_path: Path) -> None:
    (tmp_path / "nothing").mkdir()
    with pytest.raises(InputError, match=r"holds no .*(parquet|json|tsv)"):
        prepare(name, tmp_path / "nothing", tmp_path / "out")


def test_a_broken_line_is_named(beir: Path, tmp_path: Path) -> None:
    with (beir / "corpus.jsonl").open("a") as corpus:
        corpus.write('{"_id": "d9", "text": \n')
    with pytest.raises(InputError, match=r"line 6 of .*corpus.jsonl does not hold a JSON object"):
        prepare("beir", beir, tmp_path / "out")


def test_a_field_of_the_wrong_kind_is_named(beir: Path, tmp_path: Path) -> None:
    write_lines(beir / "corpus.jsonl", [{"_id": 7, "text": "a"}])
    with pytest.raises(InputError, match=r"field _id in line 1 .* must hold text, found int"):
        prepare("beir", beir, tmp_path / "out")


def test_answers_that_are_no_list_are_named(llamaindex: Path, tmp_path: Path) -> None:
    dataset = json.loads(llamaindex.read_text())
    dataset["relevant_docs"]["u1"] = "node-d1"
    write_json(llamaindex, dataset)
    with pytest.raises(InputError, match=r"u1 in relevant_docs of .* must hold a list of ids"):
        prepare("llamaindex", llamaindex, tmp_path / "out")


def test_a_run_that_is_none_is_named(beir: Path, tmp_path: Path) -> None:
    write_text(tmp_path / "run.trec", "q1 Q0 d1 1 high x\n")
    with pytest.raises(InputError, match=r"line 1 of .* is not a line of a TREC run"):
        prepare("beir", beir, tmp_path / "out", run=tmp_path / "run.trec")


@pytest.mark.parametrize(
    ("name", "choice"),
    [("jqara", {"depth": 20}), ("jacwir", {"split": "dev"}), ("jsquad", {"run": "a.trec"})],
)
def test_a_choice_that_a_benchmark_does_not_leave_is_refused(
    name: str, choice: dict[str, Any], tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=f"no {next(iter(choice))} to choose"):
        prepare(name, tmp_path, tmp_path / "out", **choice)


# The job


@pytest.fixture
def run_job() -> Callable[..., subprocess.CompletedProcess[str]]:
    def call(*arguments: object) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, ROOT / "jobs/prepare_benchmark.py", *map(str, arguments)]
        return subprocess.run(
            command, env=dict(os.environ), capture_output=True, text=True, timeout=120
        )

    return call


def test_the_job_prints_what_it_wrote(
    beir: Path, tmp_path: Path, run_job: Callable[..., Any]
) -> None:
    done = run_job("beir", "--source", beir, "--output", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    counts = json.loads(done.stdout.splitlines()[-1])
    assert counts["pairs"] == pq.read_metadata(counts["candidates"]).num_rows
    assert counts["relevant_found"] == 3


def test_the_job_ends_with_2_and_no_traceback(tmp_path: Path, run_job: Callable[..., Any]) -> None:
    done = run_job("beir", "--source", tmp_path / "nothing", "--output", tmp_path / "out")
    assert done.returncode == 2
    assert "There is nothing at" in done.stderr
    assert "Traceback" not in done.stderr
