"""Gates: measured on what was committed, before a run counts as complete."""

from __future__ import annotations

import json
import logging
import math
import pickle
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from conftest import make_pairs
from rankmill import cli, evaluate, gates, job
from rankmill.config import load_config
from rankmill.errors import ConfigError, GatesFailed, InputError
from rankmill.gates import Gate
from rankmill.markers import Counters
from rankmill.report import draw_report
from rankmill.status import read_status
from reported_runs import commit_report_run, pairs
from test_reuse import here

RANKED = [("q1", d) for d in ("a", "b", "c", "d")] + [("q2", d) for d in ("a", "b")] + [("q3", "a")]


def table(*rows: tuple[str, str]) -> pa.Table:
    """Rows in the order in which they will be ranked."""
    query, doc = zip(*rows)
    return pa.table({"query_id": query, "query": query, "doc_id": doc, "document": doc})


def run_of(folder: Path, *tables: pa.Table, first: float = 10.0) -> str:
    """A committed run. A query's rows have the scores first, first - 1, …"""
    scores: dict[tuple[str, str], float] = {}
    for one in tables:
        last, place = None, 0
        for query, doc in zip(one["query"].to_pylist(), one["document"].to_pylist()):
            last, place = query, place + 1 if query == last else 0
            scores[query, doc] = first - place
    commit_report_run(str(folder), tables, scores=scores)
    return str(folder)


def config(tmp_path: Path, **asked: Any) -> Any:
    return load_config(
        overrides={
            "input.path": str(tmp_path / "in.parquet"),
            "output.path": str(tmp_path / "new"),
            "model.name": "demo",
        }
        | {f"gates.{name}": value for name, value in asked.items()}
    )


def measured(tmp_path: Path, counters: Counters | None = None, **asked: Any) -> dict[str, Gate]:
    wanted = config(tmp_path, **asked)
    found = gates.check(wanted, str(tmp_path / "new"), counters or Counters(), here)
    return {gate.name: gate for gate in found}


# Rates


def test_rates_are_of_all_rows_and_of_those_scored(tmp_path):
    counters = Counters(
        rows_in=200, rows_quarantined=2, pairs_scored=90, pairs_reused=9, pairs_truncated=25,
        pairs_duplicate=1,
    )  # fmt: skip
    found = measured(tmp_path, counters, max_quarantine_rate=0.01, max_truncation_rate=0.2)
    assert found["max_quarantine_rate"] == Gate("max_quarantine_rate", 0.01, 0.01, True)
    assert found["max_truncation_rate"] == Gate("max_truncation_rate", 0.2, 0.25, False)


def test_an_empty_run_has_no_rates_above_none(tmp_path):
    found = measured(tmp_path, max_quarantine_rate=0.0, max_truncation_rate=0.0)
    assert all(gate.passed for gate in found.values())


def test_without_limits_nothing_is_measured(tmp_path):
    assert measured(tmp_path) == {}


# nDCG


def test_ndcg_is_that_of_the_golden_queries(tmp_path):
    run_of(tmp_path / "new", table(*RANKED[:4]), table(*RANKED[4:]))
    qrels = tmp_path / "qrels.tsv"
    qrels.write_text("query-id\tcorpus-id\tscore\nq1\tb\t1\nq3\ta\t1\n")
    found = measured(tmp_path, min_ndcg=0.9, qrels=str(qrels))["min_ndcg"]
    assert found.found == pytest.approx((1 / math.log2(3) + 1) / 2)
    assert not found.passed
    whole = evaluate(str(tmp_path / "new"), str(qrels), metrics=["ndcg@10"])
    assert found.found == whole.metrics["ndcg@10"]


def test_ndcg_of_a_run_without_golden_queries_has_failed(tmp_path):
    run_of(tmp_path / "new", table(*RANKED))
    (tmp_path / "qrels.tsv").write_text("query-id\tcorpus-id\tscore\nq9\tb\t1\n")
    found = measured(tmp_path, min_ndcg=0.0, qrels=str(tmp_path / "qrels.tsv"))
    assert found["min_ndcg"] == Gate("min_ndcg", 0.0, None, False)


# Overlap and shift


def test_overlap_is_the_mean_share_of_the_first_k(tmp_path):
    """q1 shares one of two, q2 both; q4 is new. The order of shards does not matter."""
    old = [*RANKED[4:6], ("q1", "b"), ("q1", "x"), ("q1", "y")]
    previous = run_of(tmp_path / "old", table(*old[:2]), table(*old[2:]))
    run_of(tmp_path / "new", table(*RANKED[:6], ("q4", "a")))
    found = measured(tmp_path, min_overlap=0.75, previous=previous, k=2)
    assert found["min_overlap"] == Gate("min_overlap", 0.75, 0.75, True)


def test_a_list_that_has_become_shorter_than_k_has_lost_documents(tmp_path):
    previous = run_of(tmp_path / "old", table(*RANKED[:4]))
    run_of(tmp_path / "new", table(*RANKED[:3]))
    assert measured(tmp_path, min_overlap=1.0, previous=previous)["min_overlap"].found == 0.75


def test_the_shift_is_over_pairs_of_both_runs(tmp_path):
    previous = run_of(tmp_path / "old", table(*RANKED[:2], ("q9", "a")))
    run_of(tmp_path / "new", table(*RANKED), first=12.0)
    found = measured(tmp_path, max_score_shift=1.0, previous=previous)
    assert found["max_score_shift"] == Gate("max_score_shift", 1.0, 2.0, False)


def test_runs_without_a_common_query_cannot_be_compared(tmp_path):
    previous = run_of(tmp_path / "old", table(("q9", "z")))
    run_of(tmp_path / "new", table(*RANKED))
    found = measured(tmp_path, min_overlap=0.0, max_score_shift=9.0, previous=previous)
    assert [(gate.found, gate.passed) for gate in found.values()] == [(None, False)] * 2


def test_without_a_previous_run_its_gates_pass_with_a_warning(tmp_path, caplog):
    run_of(tmp_path / "new", table(*RANKED))
    with caplog.at_level(logging.WARNING, "rankmill"):
        found = measured(tmp_path, min_overlap=1.0)
    assert found["min_overlap"] == Gate("min_overlap", 1.0, None, True)
    assert "There is no previous run" in caplog.text


def test_the_first_reused_output_is_the_previous_run(tmp_path):
    previous = run_of(tmp_path / "old", table(*RANKED))
    run_of(tmp_path / "new", table(*RANKED))
    wanted = config(tmp_path, min_overlap=1.0).model_copy(update={"reuse": [previous]})
    assert gates.check(wanted, str(tmp_path / "new"), Counters(), here)[0].found == 1.0


def test_runs_whose_shards_are_cut_elsewhere_are_compared_whole(tmp_path):
    whole = pairs([5] * 40)
    previous = run_of(tmp_path / "old", *(whole.slice(at, 100) for at in (100, 0)))
    run_of(tmp_path / "new", whole)
    found = measured(tmp_path, min_overlap=1.0, max_score_shift=0.0, previous=previous)
    assert [gate.found for gate in found.values()] == [1.0, 0.0]


def test_runs_without_a_row_cannot_be_compared(tmp_path):
    nothing = table(*RANKED).slice(0, 0)
    previous = run_of(tmp_path / "old", nothing)
    run_of(tmp_path / "new", nothing)
    found = measured(tmp_path, min_overlap=0.0, max_score_shift=9.0, previous=previous)
    assert [(gate.found, gate.passed) for gate in found.values()] == [(None, False)] * 2


# Before a run


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"min_ndcg": 0.4}, "min_ndcg and qrels need each other"),
        ({"qrels": "qrels.tsv"}, "min_ndcg and qrels need each other"),
        ({"previous": "old"}, "previous is for min_overlap or max_score_shift"),
        ({"max_quarantine_rate": 1.5}, "gates.max_quarantine_rate"),
        ({"min_ndgc": 0.4}, "Unknown setting gates.min_ndgc"),
    ],
)
def test_gates_that_say_nothing_are_refused(tmp_path, asked, said):
    with pytest.raises(ConfigError, match=said):
        config(tmp_path, **asked)


def test_ids_must_be_written(tmp_path):
    with pytest.raises(ConfigError, match="by id, but doc_id is not written"):
        gates.refuse_unmeasurable(config(tmp_path, min_overlap=0.5), ["query_id", "document"])
    gates.refuse_unmeasurable(config(tmp_path, max_quarantine_rate=0.5), [])


def test_what_a_gate_reads_must_be_there_at_the_start(tmp_path):
    ids = ["query_id", "doc_id"]
    golden = config(tmp_path, min_ndcg=0.4, qrels=str(tmp_path / "qrels.tsv"))
    with pytest.raises(InputError, match="qrels"):
        gates.refuse_unmeasurable(golden, ids)
    compared = config(tmp_path, min_overlap=0.4, previous=str(tmp_path / "old"))
    with pytest.raises(InputError, match="There is no run at"):
        gates.refuse_unmeasurable(compared, ids)


def test_a_run_is_not_compared_with_itself(tmp_path):
    asked = {"min_overlap": 0.4, "previous": str(tmp_path / "new")}
    with pytest.raises(ConfigError, match=r"the previous output .* lie inside each other"):
        gates.refuse_unmeasurable(config(tmp_path, **asked), ["query_id", "doc_id"])


# A whole run


def test_a_failed_gate_keeps_the_parts_and_changed_limits_score_nothing(
    ray_cluster, tmp_path, tiny_model, capfd
):
    rows = make_pairs(3, 4).to_pylist()
    rows[0]["document"] = ""
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "in.parquet")
    (tmp_path / "qrels.tsv").write_text("query-id\tcorpus-id\tscore\nq0001\td0001-000\t1\n")
    out = tmp_path / "out"

    overrides = {
        "input.path": str(tmp_path / "in.parquet"),
        "output.path": str(out),
        "model.name": tiny_model("bert"),
        "compute.workers": 1,
        "gates.max_quarantine_rate": 0.01,
        "gates.min_ndcg": 0.1,
        "gates.qrels": str(tmp_path / "qrels.tsv"),
    }
    given = [text for name, value in overrides.items() for text in ("--set", f"{name}={value}")]
    failed = CliRunner().invoke(cli.app, ["rerank", *given, "--json"]).exception
    assert isinstance(failed, GatesFailed)
    assert failed.exit_code == 3
    assert pickle.loads(pickle.dumps(failed)).manifest == failed.manifest
    assert "max_quarantine_rate: 0.08333, at most 0.01 was asked" in failed.message
    assert pq.read_table(out).num_rows == 11
    assert not (out / "_SUCCESS").exists()
    manifest = json.loads((out / "_rankmill/manifest.json").read_text())
    assert json.loads(capfd.readouterr().out) == manifest
    assert not manifest["complete"]
    assert manifest["gates"][0] == {
        "name": "max_quarantine_rate", "limit": 0.01, "found": 1 / 12, "passed": False,
    }  # fmt: skip
    assert [gate["passed"] for gate in manifest["gates"]] == [False, True]
    status = read_status(str(out))
    assert [gate["passed"] for gate in status.gates] == [False, True]
    assert not status.complete
    page = Path(draw_report(str(out))).read_text()
    assert "Gates: not all were passed" in page
    assert "0.08333, failed" in page

    written = {path: path.stat().st_mtime_ns for path in (out / "_rankmill/shards").iterdir()}
    found = job.rerank(load_config(overrides=overrides | {"gates.max_quarantine_rate": 0.1}))
    assert (out / "_SUCCESS").exists()
    assert found.manifest["complete"]
    assert {path: path.stat().st_mtime_ns for path in written} == written
    assert "Gates: not" not in Path(draw_report(str(out))).read_text()
