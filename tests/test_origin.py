"""What judging takes from the run whose output a table is, and what it warns of."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from ranked_runs import candidates, commit_run, ranked_part
from rankmill import evaluate, runs
from rankmill.cli import app
from rankmill.errors import InputError
from rankmill.tune import tune

LISTS = [[3.0, 1.0, 2.0, 0.0], [0.0, 1.0, 2.0, 3.0]]
LIMITS = {"output": {"top_k": 2, "min_score": -9.0}}
QRELS = pa.table({"query_id": ["q0", "q1"], "doc_id": ["d0-0", "d1-0"], "relevance": [1, 1]})


@pytest.fixture
def warned(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    """Commands take the messages to themselves."""
    log = logging.getLogger("rankmill")
    kept, log.propagate = log.propagate, True
    yield caplog
    log.propagate = kept


def commit(folder: Path, prefix: str = "rerank_", **run: Any) -> str:
    """A run of two lists, a part each, with the place in the input as `bm25_rank`."""
    parts = []
    for query in range(2):
        table = candidates(LISTS)
        table = table.filter(pa.compute.equal(table["query_id"], f"q{query}"))
        first = pa.array(range(1, 5), pa.int32())
        parts.append(ranked_part(table.append_column("bm25_rank", first), prefix))
    return commit_run(folder, parts, prefix=prefix, **run)


def cut(folder: Path) -> str:
    return commit(folder, settings=LIMITS, below_cut=1)


# Cuts


def test_a_baseline_of_a_run_that_was_cut_comes_with_a_warning(tmp_path, warned):
    ranked = cut(tmp_path / "ranked")
    evaluate(ranked, QRELS, baseline="bm25_rank")
    (record,) = warned.records
    assert record.levelno == logging.WARNING
    assert f"{ranked} was cut by output.top_k and output.min_score" in record.getMessage()
    assert "not the first stage's" in record.getMessage()


@pytest.mark.parametrize("pattern", ["part-*.parquet", "*", "part-00000.parquet"])
def test_parts_are_of_the_run_in_whose_folder_they_lie(tmp_path, warned, pattern):
    ranked = cut(tmp_path / "ranked")
    evaluate(f"{ranked}/{pattern}", QRELS, metrics="mrr", baseline="bm25_rank")
    assert f"{ranked} was cut by" in warned.text
    warned.clear()
    evaluate(sorted(Path(ranked).glob("part-*")), QRELS, metrics="mrr", baseline="bm25_rank")
    assert f"{ranked} was cut by" in warned.text


def test_of_several_runs_the_one_that_gives_the_baseline_is_looked_at(tmp_path, warned):
    pair = {"whole": commit(tmp_path / "whole"), "cut": cut(tmp_path / "cut")}
    evaluate(pair, QRELS, metrics="mrr", baseline="bm25_rank")
    assert warned.records == []
    evaluate(pair, QRELS, metrics="mrr", baseline="bm25_rank", depths=[2])
    assert f"{pair['cut']} was cut by" in warned.text


def test_a_limit_that_left_nothing_out_is_no_cut(tmp_path, warned):
    whole = commit(tmp_path / "whole", settings=LIMITS)
    evaluate(whole, QRELS, metrics="mrr", baseline="bm25_rank")
    ranked = cut(tmp_path / "cut")
    evaluate(ranked, QRELS, metrics="mrr")
    assert warned.records == [], "what a run wrote is measured as it is"
    evaluate(ranked, QRELS, metrics="mrr", baseline="bm25_rank")
    assert "was cut by" in warned.text


def test_without_a_manifest_that_can_be_read_a_limit_may_have_been_reached(tmp_path, warned):
    ranked = commit(tmp_path / "ranked", settings=LIMITS)
    Path(ranked, runs.MANIFEST).write_text("{}")
    evaluate(ranked, QRELS, metrics="mrr", baseline="bm25_rank")
    assert "was cut by" in warned.text
    warned.clear()
    running = commit(tmp_path / "running", settings=LIMITS, missing=[1])
    evaluate(running, QRELS, metrics="mrr", baseline="bm25_rank")
    assert "was cut by" in warned.text


def test_a_weight_is_tuned_on_a_cut_run_with_a_warning(tmp_path, warned):
    tune(cut(tmp_path / "ranked"), QRELS, "bm25_rank", folds=2)
    assert "Tune on a run without that" in warned.text


# Completeness


def test_a_run_that_is_not_complete_is_judged_with_a_warning(tmp_path, warned):
    ranked = commit(tmp_path / "ranked", missing=[1])
    assert evaluate(ranked, QRELS, metrics="mrr").metrics == {"mrr": 0.5}
    assert f"{ranked} has no _SUCCESS" in warned.text
    warned.clear()
    evaluate(commit(tmp_path / "whole"), QRELS, metrics="mrr")
    assert warned.records == []


def test_a_record_that_cannot_be_read_leaves_a_plain_table(tmp_path, warned):
    ranked = commit(tmp_path / "ranked", missing=[1])
    Path(ranked, runs.RUN).write_text("{}")
    assert evaluate(ranked, QRELS, metrics="mrr").metrics == {"mrr": 0.5}
    assert "run.json is damaged" in warned.text


# The prefix


def test_each_run_has_the_prefix_of_its_own_columns(tmp_path):
    pair = {"a": commit(tmp_path / "a"), "b": commit(tmp_path / "b", prefix="demo_")}
    found = evaluate(pair, QRELS, metrics="mrr").runs
    assert found["value"].tolist() == [0.625, 0.625]
    assert tune(pair["b"], QRELS, "bm25_rank", folds=2).queries == 2


def test_a_prefix_that_is_given_counts_before_the_runs_own(tmp_path):
    ranked = commit(tmp_path / "a")
    with pytest.raises(InputError, match="no column ce_rank or ce_score"):
        evaluate(ranked, QRELS, prefix="ce_")


def test_the_command_finds_the_prefix_and_names_the_option_where_nothing_tells_it(tmp_path):
    ranked = commit(tmp_path / "demo", prefix="demo_")
    plain, qrels = tmp_path / "plain.parquet", tmp_path / "qrels.parquet"
    pq.write_table(pq.read_table(ranked), plain)
    pq.write_table(QRELS, qrels)
    judged = ["--qrels", str(qrels), "--metrics", "mrr"]
    assert CliRunner().invoke(app, ["evaluate", ranked, *judged]).exit_code == 0
    assert (
        CliRunner().invoke(app, ["evaluate", str(plain), *judged, "--prefix", "demo_"]).exit_code
        == 0
    )
    refused = CliRunner().invoke(app, ["evaluate", ranked, str(plain), *judged]).exception
    assert isinstance(refused, InputError)
    assert "ranked table plain has no column rerank_rank or rerank_score" in refused.message
    assert "--prefix" in str(refused.remedy)
    with pytest.raises(InputError, match="--prefix"):
        tune(str(plain), QRELS, "bm25_rank")
