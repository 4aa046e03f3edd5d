"""Training data from ranked runs: what each format holds, where it comes from, what is refused."""

from __future__ import annotations

import json
import logging
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import pytrec_eval
import ray
import ray.data

import rankmill
from conftest import make_pairs
from ranked_runs import candidates, commit_run, ranked_part
from rankmill import plan
from rankmill.errors import ConfigError, InputError, OutputBusy, OutputError, RunFailed
from rankmill.export import counts as counting
from rankmill.export import mining
from rankmill.export.part import export_part
from rankmill.export.recipe import ExportConfig
from rankmill.export.run import _begin, _finish, _prepare
from rankmill.lease import LEASE, Lease
from rankmill.progress import Progress
from rankmill.store import Store

pytestmark = pytest.mark.usefixtures("ray_cluster")

SCORES = [[2.0, 4.0, 1.0, 3.0], [-1.0, -3.0, -2.0, -4.0], [0.5, 0.25, 0.75, 0.0]]
Export = Callable[..., rankmill.ExportResult]


@pytest.fixture
def run(tmp_path: Path) -> str:
    """Three queries in two parts."""
    table = candidates(SCORES)
    parts = [ranked_part(table.slice(0, 8)), ranked_part(table.slice(8))]
    return commit_run(tmp_path / "ranked", parts)


@pytest.fixture
def export(run: str, tmp_path: Path) -> Export:
    def call(format: str, **settings: Any) -> rankmill.ExportResult:
        settings = {"ranked": run, "output": tmp_path / "out"} | settings
        return rankmill.export(
            settings.pop("ranked"), settings.pop("output"), format=format, **settings
        )

    return call


def rows_of(result: rankmill.ExportResult) -> list[dict[str, Any]]:
    return [row for file in result.files for row in pq.read_table(file).to_pylist()]


def probability(score: float) -> float:
    return float(1 / (1 + np.exp(-score)))


# Formats


def test_labeled_pairs_are_all_scored_pairs_by_rank(export: Export) -> None:
    found = rows_of(export("labeled-pair"))
    assert len(found) == 12
    assert list(found[0]) == ["query", "document", "score"]
    assert [row["document"] for row in found[:4]] == [f"answer {n} to 0" for n in (1, 3, 0, 2)]
    assert {row["query"] for row in found[4:8]} == {"question 1"}
    assert [row["score"] for row in found[:4]] == pytest.approx(
        [probability(score) for score in (4, 3, 2, 1)], abs=1e-7
    )


def test_labeled_lists_hold_a_query_with_its_documents_and_their_labels(export: Export) -> None:
    found = rows_of(export("labeled-list", negatives=3))
    assert list(found[0]) == ["query", "documents", "scores"]
    assert [row["query"] for row in found] == ["question 0", "question 1", "question 2"]
    assert found[2]["documents"] == ["answer 2 to 2", "answer 0 to 2", "answer 1 to 2"]
    assert found[2]["scores"] == pytest.approx([probability(s) for s in (0.75, 0.5, 0.25)])


def test_documents_of_a_list_stand_by_label(export: Export) -> None:
    qrels = pa.table({"query_id": ["q0"] * 2, "doc_id": ["d0-0", "d0-2"], "relevance": [1, 3]})
    (found,) = rows_of(export("labeled-list", qrels=qrels, label="relevance"))
    assert found["documents"] == [f"answer {n} to 0" for n in (2, 0, 1, 3)]
    assert found["scores"] == [3, 1, 0, 0]


def test_triplets_are_each_positive_with_each_negative(export: Export) -> None:
    found = rows_of(export("triplet", positive_max_rank=2))
    assert list(found[0]) == ["query", "positive", "negative"]
    assert [tuple(row.values()) for row in found[:4]] == [
        ("question 0", f"answer {positive} to 0", f"answer {negative} to 0")
        for positive in (1, 3)
        for negative in (0, 2)
    ]
    assert len(found) == 12


def test_tuples_have_a_column_a_negative(export: Export) -> None:
    found = rows_of(export("n-tuple", positive_max_rank=1, negatives=2))
    assert list(found[0]) == ["query", "positive", "negative_1", "negative_2"]
    assert list(found[1].values()) == [
        "question 1",
        *(f"answer {number} to 1" for number in (0, 2, 1)),
    ]


def test_the_scores_of_a_tuple_are_raw_and_begin_with_the_positive(export: Export) -> None:
    found = rows_of(export("n-tuple", positive_max_rank=1, negatives=2, scores=True))
    assert list(found[0]) == ["query", "positive", "negative_1", "negative_2", "scores"]
    assert [row["scores"] for row in found] == [[4, 3, 2], [-1, -2, -3], [0.75, 0.5, 0.25]]


@pytest.mark.parametrize(
    ("label", "expected"),
    [
        ("score", [4, 3, 2, 1]),
        ("sigmoid", [probability(score) for score in (4, 3, 2, 1)]),
        ("binary", [1, 0, 0, 0]),
    ],
)
def test_the_label_is_what_was_asked(export: Export, label: str, expected: list[float]) -> None:
    found = rows_of(export("labeled-pair", label=label, positive_max_rank=1))
    assert [row["score"] for row in found[:4]] == pytest.approx(expected)


def test_a_trec_run_is_read_in_the_order_of_the_ranking(export: Export, tmp_path: Path) -> None:
    scores = [[1.0, 1.0, 1.0, None, None, 1.5]]
    run = commit_run(tmp_path / "ties", [ranked_part(candidates(scores))])
    (file,) = export("trec", ranked=run).files
    lines = [line.split() for line in Path(file).read_text().splitlines()]
    assert [line[2] for line in lines] == ["d0-5", "d0-0", "d0-1", "d0-2", "d0-3", "d0-4"]
    assert [line[3] for line in lines] == ["1", "2", "3", "4", "5", "6"]
    assert {(line[0], line[1], line[5]) for line in lines} == {("q0", "Q0", "rankmill-" + "f" * 12)}
    assert float(lines[0][4]) == 1.5
    assert float(lines[4][4]) == pytest.approx(1.0, abs=1e-6)
    with open(file) as opened:
        parsed = pytrec_eval.parse_run(opened)
    # trec_eval breaks ties by document id, last first: "d0-2" would come before "d0-0".
    found = pytrec_eval.RelevanceEvaluator({"q0": {"d0-0": 1}}, {"recip_rank"}).evaluate(parsed)
    assert found["q0"]["recip_rank"] == pytest.approx(1 / 2)


def test_ids_that_trec_cannot_express_are_refused(export: Export, tmp_path: Path) -> None:
    table = candidates([[1.0, 2.0]])
    table = table.set_column(2, "doc_id", pa.array(["a b", "c"]))
    run = commit_run(tmp_path / "spaces", [ranked_part(table)])
    with pytest.raises(RunFailed, match=r"1 document ids in part-00000\.parquet are empty or hold"):
        export("trec", ranked=run)


# What readers see


def test_readers_see_examples_and_nothing_else(export: Export) -> None:
    result = export("labeled-list")
    assert pq.read_table(result.output).num_rows == 3
    dataset = ray.data.read_parquet(result.output)
    assert dataset.schema().names == ["query", "documents", "scores"]
    assert dataset.count() == 3
    cache = f"{result.output}/../cache"
    loaded = datasets.load_dataset(
        "parquet", data_files=f"{result.output}/*.parquet", split="train", cache_dir=cache
    )
    assert loaded.column_names == ["query", "documents", "scores"]
    # Plain strings, as other data sets have them: large ones cannot be concatenated with those.
    assert str(loaded.features["query"]) == "Value('string')"
    assert len(datasets.load_dataset(result.output, split="train", cache_dir=cache)) == 3


def test_the_metadata_says_where_the_examples_come_from(export: Export, tmp_path: Path) -> None:
    result = export("triplet", positive_max_rank=1, margin=1.0)
    metadata = pq.read_schema(result.files[0]).metadata
    assert metadata[b"rankmill.model.name"] == b"tiny"
    made_by = json.loads(metadata[b"rankmill.export"])
    assert made_by["settings"]["margin"] == 1.0
    assert made_by["ranked"]["fingerprint"] == "f" * 64
    assert made_by["version"] == result.report["versions"]["rankmill"]
    assert str(tmp_path).encode() not in b"".join(metadata.values())


def test_a_part_without_examples_has_the_columns_all_the_same(
    export: Export, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("rankmill"), "propagate", True)
    result = export("triplet", positive_min_score=100.0)
    assert [pq.read_table(file).num_rows for file in result.files] == [0, 0]
    assert pq.read_schema(result.files[0]).names == ["query", "positive", "negative"]
    assert "No example came out of 12 rows" in caplog.text


def test_a_large_part_is_written_in_groups_that_can_be_streamed(
    export: Export, tmp_path: Path
) -> None:
    run = commit_run(tmp_path / "large", [ranked_part(candidates([list(range(100))] * 100))])
    (file,) = export("labeled-pair", ranked=run).files
    assert pq.read_metadata(file).num_row_groups == 2
    assert pq.read_table(file).num_rows == 10_000


# Columns of the run


def test_the_runs_own_column_names_and_prefix_are_used(export: Export, tmp_path: Path) -> None:
    table = candidates([[1.0, 2.0]]).rename_columns(["qid", "question", "id", "body", "given"])
    table = table.append_column("title", pa.array(["First", None]))
    run = commit_run(
        tmp_path / "named",
        [ranked_part(table, prefix="mini_", key="qid")],
        columns={
            "query_id": "qid",
            "query": "question",
            "doc_id": "id",
            "document": ["title", "body"],
        },
        prefix="mini_",
    )
    found = rows_of(export("labeled-pair", ranked=run, label="score"))
    assert [tuple(row.values()) for row in found] == [
        ("question 0", "answer 1 to 0", 2.0),
        ("question 0", "First answer 0 to 0", 1.0),
    ]


def test_a_run_without_ids_goes_by_texts(export: Export, tmp_path: Path) -> None:
    table = candidates([[1.0, 2.0], [4.0, 3.0]])
    part = ranked_part(table).drop_columns(["query_id", "doc_id"])
    run = commit_run(tmp_path / "texts", [part], columns={"query_id": None, "doc_id": None})
    found = rows_of(export("triplet", ranked=run, positive_max_rank=1))
    assert [tuple(row.values()) for row in found] == [
        ("question 0", "answer 1 to 0", "answer 0 to 0"),
        ("question 1", "answer 0 to 1", "answer 1 to 1"),
    ]


def test_rows_without_a_score_are_left_out(export: Export, tmp_path: Path) -> None:
    run = commit_run(tmp_path / "deep", [ranked_part(candidates([[1.0, None, 2.0]]))])
    result = export("labeled-pair", ranked=run)
    assert result.counts.dropped == {mining.UNSCORED: 1}
    assert len(rows_of(result)) == 2


def test_one_model_of_several_side_by_side_is_taken(export: Export, tmp_path: Path) -> None:
    part = ranked_part(candidates([[3.0, 2.0, 1.0]]))
    part = part.append_column("rerank_score_small", pa.array([5.0, 7.0, 6.0], pa.float32()))
    run = commit_run(tmp_path / "models", [part])
    settings = {"positive_max_rank": 1, "negatives": 1, "scores": True}
    (found,) = rows_of(export("n-tuple", ranked=run, model="small", **settings))
    assert found["negative_1"] == "answer 1 to 0", "the hardest by that model"
    assert found["scores"] == [5.0, 7.0]
    with pytest.raises(InputError, match="no column rerank_score_large"):
        export("n-tuple", ranked=run, model="large", output=tmp_path / "other", **settings)


def test_scores_of_several_stages_never_mix(export: Export, tmp_path: Path) -> None:
    part = ranked_part(candidates([[3.0, 2.0, 9.0, 8.0]]))
    part = part.append_column("rerank_stage", pa.array([2, 2, 1, 1], pa.int8()))
    run = commit_run(tmp_path / "cascade", [part])
    with pytest.raises(ConfigError, match="several stages, which do not compare"):
        export("labeled-pair", ranked=run)
    found = rows_of(export("labeled-pair", ranked=run, stage=2, label="score"))
    assert [row["score"] for row in found] == [9.0, 8.0]


@pytest.mark.parametrize(
    ("dropped", "settings", "named"),
    [
        (["document"], {}, "no column document, which the format labeled-pair needs"),
        (["rerank_score"], {}, "no column rerank_score, which an export needs"),
        (["doc_id"], {"qrels": True}, "no column doc_id, which finding rows by id needs"),
        ([], {"stage": 1}, "no column rerank_stage, which stage needs"),
    ],
)
def test_a_column_that_the_run_lacks_is_named(
    export: Export, tmp_path: Path, dropped: list[str], settings: dict[str, Any], named: str
) -> None:
    part = ranked_part(candidates(SCORES)).drop_columns(dropped)
    run = commit_run(tmp_path / "lacking", [part])
    if "qrels" in settings:
        settings["qrels"] = pa.table({"query_id": ["q0"], "doc_id": ["d"], "relevance": [1]})
    with pytest.raises(InputError, match=named):
        export("labeled-pair", ranked=run, **settings)
    assert not (tmp_path / "out").exists()


def test_texts_that_came_by_id_are_to_be_named(export: Export, tmp_path: Path) -> None:
    part = ranked_part(candidates(SCORES)).drop_columns(["query", "document"])
    by_id = {"input": {"layout": "ids"}}
    run = commit_run(tmp_path / "by-id", [part], settings=by_id)
    with pytest.raises(InputError) as caught:
        export("labeled-pair", ranked=run)
    assert "output.columns: [query_id, doc_id, query, document]" in str(caught.value.remedy)
    assert "all" not in str(caught.value.remedy)


# Judgements and other runs


def test_positives_come_from_judgements(export: Export, tmp_path: Path) -> None:
    qrels = tmp_path / "qrels.tsv"
    qrels.write_text(
        "query-id\tcorpus-id\tscore\nq0\td0-0\t1\nq1\td1-1\t1\nq1\tgone\t1\nq9\td0-1\t1\n"
    )
    result = export("triplet", qrels=str(qrels), negatives=1)
    assert [row["positive"] for row in rows_of(result)] == ["answer 0 to 0", "answer 1 to 1"]
    assert [row["negative"] for row in rows_of(result)] == ["answer 1 to 0", "answer 0 to 1"]
    counts = result.counts
    assert (counts.queries, counts.queries_used, counts.queries_without_positive) == (3, 2, 1)
    assert counts.positives_missing == 1, "q1's document that its list lacks"
    assert counts.dropped == {mining.NO_POSITIVE: 4, mining.SURPLUS: 4}


def test_integer_ids_match_judgements_in_text(export: Export, tmp_path: Path) -> None:
    table = candidates([[1.0, 2.0, 3.0]])
    table = table.set_column(0, "query_id", pa.array([7] * 3)).set_column(
        2, "doc_id", pa.array([1, 2, 3])
    )
    run = commit_run(tmp_path / "integers", [ranked_part(table)])
    qrels = pa.table({"query_id": ["7"], "doc_id": ["2"], "relevance": [1]})
    found = rows_of(export("triplet", ranked=run, qrels=qrels))
    assert {row["positive"] for row in found} == {"answer 1 to 0"}


def test_another_run_with_other_shards_must_agree(export: Export, tmp_path: Path) -> None:
    # The other run's lists lie in other parts, and one pair is missing there.
    theirs = candidates([[9.0, 9.0, 0.0, 0.0], [9.0, 0.0, 0.0, 9.0], [9.0, 0.0, 9.0, 9.0]])
    theirs = theirs.filter(pa.compute.not_equal(theirs["doc_id"], "d0-2"))
    parts = [ranked_part(theirs.slice(0, 3)), ranked_part(theirs.slice(3))]
    other = commit_run(tmp_path / "other", parts, fingerprint="a" * 64)
    result = export("triplet", positive_max_rank=1, margin=0.5, agree_runs=[other])
    assert {(row["positive"], row["negative"]) for row in rows_of(result)} == {
        ("answer 1 to 0", "answer 3 to 0"),
        ("answer 0 to 1", "answer 1 to 1"),
        ("answer 0 to 1", "answer 2 to 1"),
        ("answer 2 to 2", "answer 1 to 2"),
    }
    assert result.counts.dropped == {
        mining.NOT_AGREED: 3,  # d0-0, d1-3 and d2-3
        mining.NOT_SCORED_BY_ALL: 1,  # d0-2
        mining.TOO_CLOSE: 1,  # d2-0, by the run's own scores
    }
    assert result.report["agree_runs"][0]["fingerprint"] == "a" * 64


def test_a_column_of_another_model_must_agree(export: Export, tmp_path: Path) -> None:
    part = ranked_part(candidates([[3.0, 2.0, 1.0]]))
    part = part.append_column("rerank_score_small", pa.array([5.0, 7.0, 4.0], pa.float32()))
    run = commit_run(tmp_path / "models", [part])
    rules = {"positive_max_rank": 1, "margin": 0, "agree_models": ["small"]}
    (found,) = rows_of(export("triplet", ranked=run, **rules))
    assert found["negative"] == "answer 2 to 0"


def test_bounds_can_be_on_probabilities(export: Export) -> None:
    result = export("labeled-pair", bounds_on="sigmoid", negative_max_score=0.5, label="score")
    assert [row["score"] for row in rows_of(result)] == [-1, -2, -3, -4, 0]


# Equal bytes


def contents(result: rankmill.ExportResult) -> dict[str, bytes]:
    return {Path(file).name: Path(file).read_bytes() for file in result.files}


def test_the_same_export_gives_the_same_bytes(export: Export, run: str, tmp_path: Path) -> None:
    settings = {"positive_max_rank": 1, "negatives": 2, "sampling": "random", "seed": 3}
    first = contents(export("triplet", **settings))
    moved = shutil.copytree(run, tmp_path / "moved")
    assert contents(export("triplet", ranked=moved, output=tmp_path / "b", **settings)) == first
    # One worker, parts in another order, no Ray.
    store = Store(str(tmp_path / "c"))
    config = ExportConfig(format="triplet", **settings)
    work, _ = _prepare(store, config, [run], None, False)
    for part in (1, 0):
        export_part(work, part)
    assert {name: store.read(name) for name in first} == first


def test_examples_do_not_depend_on_how_the_run_was_cut(export: Export, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    table = candidates([list(rng.normal(size=12)) for _ in range(9)])
    settings = {"positive_max_rank": 2, "negatives": 3, "sampling": "random", "margin": 0.1}
    found = []
    for cuts in ([0, 9], [0, 1, 2, 9], [0, 4, 5, 8, 9]):
        parts = [
            ranked_part(table.slice(12 * start, 12 * (stop - start)))
            for start, stop in pairwise(cuts)
        ]
        run = commit_run(tmp_path / f"ranked-{len(cuts)}", parts)
        output = tmp_path / f"out-{len(cuts)}"
        found.append(rows_of(export("triplet", ranked=run, output=output, **settings)))
    assert found[0] == found[1] == found[2]
    assert len(found[0]) > 30


# The output


def test_the_same_export_is_found_complete(export: Export) -> None:
    first = export("triplet", positive_max_rank=1)
    stamps = {file: Path(file).stat().st_mtime_ns for file in first.files}
    again = export("triplet", positive_max_rank=1)
    assert again == first
    assert {file: Path(file).stat().st_mtime_ns for file in again.files} == stamps


def test_another_export_is_refused_with_the_difference(export: Export) -> None:
    first = export("triplet", positive_max_rank=1)
    with pytest.raises(OutputError, match=r"another export.*\n.*settings.margin: nothing -> 1"):
        export("triplet", positive_max_rank=1, margin=1.0)
    replaced = export("trec", overwrite=True)
    assert {Path(file).suffix for file in replaced.files} == {".trec"}
    assert not any(Path(file).exists() for file in first.files)
    assert (Path(replaced.output) / "_SUCCESS").exists()


def test_other_judgements_or_other_rows_make_another_export(
    export: Export, run: str, tmp_path: Path
) -> None:
    qrels = pa.table({"query_id": ["q0"], "doc_id": ["d0-0"], "relevance": [1]})
    export("triplet", qrels=qrels)
    assert export("triplet", qrels=qrels.to_pandas()).counts.examples == 3
    changed = pa.table({"query_id": ["q0"], "doc_id": ["d0-1"], "relevance": [1]})
    with pytest.raises(OutputError, match=r"qrels: \"\w+\" -> \"\w+\""):
        export("triplet", qrels=changed)
    other = commit_run(tmp_path / "other", [ranked_part(candidates(SCORES))])
    with pytest.raises(OutputError, match=r"ranked\.parts"):
        export("triplet", qrels=qrels, ranked=other)


def test_an_export_that_was_stopped_is_made_again(export: Export) -> None:
    first = export("labeled-pair")
    whole = contents(first)
    (Path(first.output) / "_SUCCESS").unlink()
    Path(first.files[1]).write_bytes(b"half")
    assert contents(export("labeled-pair")) == whole
    assert (Path(first.output) / "_SUCCESS").exists()


def test_an_export_that_was_killed_halfway_is_made_again_whole(
    export: Export, run: str, tmp_path: Path
) -> None:
    whole = contents(export("labeled-pair", output=tmp_path / "undisturbed"))
    program = (
        "import os, sys, rankmill\n"
        "kill = lambda progress: os.kill(os.getpid(), 9)\n"
        "ranked, output, address = sys.argv[1:]\n"
        "rankmill.export(ranked, output, format='labeled-pair', address=address, listener=kill)\n"
    )
    address = ray.get_runtime_context().gcs_address
    command = [sys.executable, "-c", program, run, str(tmp_path / "out"), address]
    assert subprocess.run(command, capture_output=True).returncode == -signal.SIGKILL
    assert (tmp_path / "out/_rankmill/export.json").exists()
    assert not (tmp_path / "out/_SUCCESS").exists()

    assert contents(export("labeled-pair")) == whole
    assert (tmp_path / "out/_SUCCESS").exists()
    assert Store(str(tmp_path / "out")).sizes("_rankmill/tmp") == {}


def test_whoever_slept_while_another_export_took_the_folder_writes_nothing(
    export: Export, run: str, tmp_path: Path
) -> None:
    store, config = Store(str(tmp_path / "out")), ExportConfig(format="labeled-pair")
    work, _ = _prepare(store, config, [run], None, False)
    with Lease(store) as lease:
        slept = _begin(work, lease, overwrite=False)
        counts = [export_part(slept, part) for part in (0, 1)]
    theirs = contents(export("labeled-pair", label="score", overwrite=True))
    with pytest.raises(OutputBusy, match="Another run has taken over"):
        export_part(slept, 0)
    (tmp_path / "out/_SUCCESS").unlink()
    with pytest.raises(OutputBusy, match="Another run took over"):
        _finish(slept, lease, counting.add(counts), 1.0)
    assert {name: store.read(name) for name in theirs} == theirs
    assert not (tmp_path / "out/_SUCCESS").exists()


def test_an_export_that_lost_its_lease_does_not_say_that_it_is_complete(
    export: Export, tmp_path: Path
) -> None:
    store = Store(str(tmp_path / "out"))
    with pytest.raises(OutputBusy, match="Another run took over"):
        export("trec", listener=lambda progress: store.delete([LEASE]))
    assert not (tmp_path / "out/_SUCCESS").exists()


def test_a_part_of_another_export_that_came_late_is_gone_at_the_end(
    export: Export, tmp_path: Path
) -> None:
    store = Store(str(tmp_path / "out"))
    found = export("trec", listener=lambda progress: store.write("part-00000.parquet", b"late"))
    assert sorted(store.sizes()) == ["_SUCCESS", *sorted(contents(found))]


def test_an_export_of_which_a_file_is_gone_at_the_end_fails(export: Export, tmp_path: Path) -> None:
    store = Store(str(tmp_path / "out"))

    def remove(progress: Progress) -> None:
        if progress.shards_done == progress.shards:
            store.delete(["part-00001.trec"])

    with pytest.raises(RunFailed, match=r"1 files of the export .* are gone: part-00001\.trec"):
        export("trec", listener=remove)
    assert not (tmp_path / "out/_SUCCESS").exists()


def test_a_folder_of_somebody_elses_is_refused(export: Export, run: str, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/notes.txt").write_text("mine")
    with pytest.raises(OutputError, match=r"not of an export: notes\.txt"):
        export("trec", output=tmp_path / "mine", overwrite=True)
    other = shutil.copytree(run, tmp_path / "ranked too")
    with pytest.raises(OutputError, match=r"not of an export: part-00000\.parquet"):
        export("trec", output=other, overwrite=True)
    with pytest.raises(ConfigError, match="lie inside each other"):
        export("trec", output=f"{run}/trec")
    assert (tmp_path / "mine/notes.txt").read_text() == "mine"


def test_nothing_is_exported_through_a_link(export: Export, tmp_path: Path) -> None:
    (tmp_path / "victim/tmp").mkdir(parents=True)
    (tmp_path / "victim/tmp/notes.json").write_text("precious")
    (tmp_path / "out").mkdir()
    (tmp_path / "out/_rankmill").symlink_to(tmp_path / "victim")
    with pytest.raises(OutputError, match="_rankmill is a symbolic link"):
        export("trec", output=tmp_path / "out")
    assert (tmp_path / "victim/tmp/notes.json").read_text() == "precious"


def test_two_exports_never_write_to_one_folder(export: Export, tmp_path: Path) -> None:
    with Lease(Store(str(tmp_path / "out"))), pytest.raises(OutputBusy):
        export("trec")


def test_a_run_that_is_not_complete_is_refused_unless_asked(export: Export, tmp_path: Path) -> None:
    parts = [ranked_part(candidates(SCORES).slice(4 * n, 4)) for n in range(3)]
    run = commit_run(tmp_path / "half", parts, missing=[1])
    with pytest.raises(InputError, match="2 of 3 shards") as refused:
        export("labeled-pair", ranked=run)
    assert "allow_incomplete" in (refused.value.remedy or "")
    result = export("labeled-pair", ranked=run, allow_incomplete=True)
    assert [Path(file).name for file in result.files] == [
        "part-00000.parquet",
        "part-00002.parquet",
    ]
    assert {row["query"] for row in rows_of(result)} == {"question 0", "question 2"}


def test_a_damaged_run_is_refused(export: Export, run: str) -> None:
    Path(run, "part-00001.parquet").write_bytes(b"PAR1")
    with pytest.raises(InputError, match=r"damaged: part-00001.parquet has 4 bytes"):
        export("labeled-pair")


def test_a_folder_without_a_run_is_refused(export: Export, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="There is no run at"):
        export("labeled-pair", ranked=tmp_path / "nothing")


def test_a_part_that_cannot_be_decoded_fails_the_export(export: Export, run: str) -> None:
    part = Path(run, "part-00001.parquet")
    content = bytearray(part.read_bytes())
    start = pq.read_metadata(part).row_group(0).column(3).data_page_offset
    content[start : start + 40] = bytes(40)
    part.write_bytes(content)
    with pytest.raises(RunFailed, match=r"part-00001.parquet cannot be read") as failed:
        export("labeled-pair")
    assert "status --verify" in (failed.value.remedy or "")


# Settings


@pytest.mark.parametrize(
    ("format", "settings", "named"),
    [
        ("labeled-par", {}, "format: Input should be 'labeled-pair'"),
        ("labeled-pair", {"negative": 3}, "Unknown setting negative"),
        ("labeled-pair", {"negatives": 0}, "negatives: Input should be greater than 0"),
        ("triplet", {}, "format triplet needs positives"),
        ("labeled-pair", {"margin": 1.0}, "A margin needs positives"),
        ("labeled-pair", {"label": "binary"}, "label: binary needs positives"),
        ("labeled-pair", {"label": "relevance"}, "no judgements"),
        ("n-tuple", {"positive_max_rank": 1}, "needs the number of negatives"),
        ("triplet", {"positive_max_rank": 1, "scores": True}, "takes no scores"),
        ("triplet", {"positive_max_rank": 1, "label": "score"}, "has no label"),
        ("labeled-pair", {"agree_models": ["x"]}, "only agree on a bound"),
        ("labeled-pair", {"agree_runs": ["x"]}, "only agree on a bound"),
        ("labeled-pair", {"sampling": "random"}, "all negatives are taken"),
        ("labeled-pair", {"negative_min_rank": 9, "negative_max_rank": 3}, "above the upper"),
        ("trec", {"negatives": 3, "qrels": "q.tsv"}, "does not use negatives, qrels"),
    ],
)
def test_settings_that_do_not_go_together_are_refused_with_a_remedy(
    export: Export, tmp_path: Path, format: str, settings: dict[str, Any], named: str
) -> None:
    with pytest.raises(ConfigError, match=named):
        export(format, **settings)
    assert not (tmp_path / "out").exists()


# From a run of the job


def test_a_run_of_the_job_is_exported(
    export: Export,
    tiny_model: Callable[[str], str],
    write_pairs: Callable[..., str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(plan, "SHARD_PAIRS", 20)
    config = rankmill.load_config(
        overrides={
            "input.path": write_pairs(make_pairs(6, 10)),
            "output.path": str(tmp_path / "reranked"),
            "model.name": tiny_model("bert"),
            "compute.workers": 1,
        }
    )
    ranked = rankmill.rerank(config)
    result = export("labeled-pair", ranked=ranked.output, label="score")
    assert len(result.files) == len(ranked.files) > 1
    expected = pq.read_table(ranked.output, columns=["query", "document", "rerank_score"])
    assert pq.read_table(result.output).to_pydict() == dict(
        zip(["query", "document", "score"], expected.to_pydict().values())
    )
    metadata = pq.read_schema(result.files[0]).metadata
    assert metadata[b"rankmill.run"].decode() == ranked.manifest["fingerprint"]
