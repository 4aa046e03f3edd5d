"""The fused order: one scale for both scores, by hand; what is not known; and a run's."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from conftest import make_pairs
from rankmill import plan
from rankmill.calibration import Platt
from rankmill.commit import CommitSettings, finish_shard
from rankmill.config import load_config
from rankmill.envelope import Envelope
from rankmill.errors import ConfigError, InputError
from rankmill.fusion import first_stage, fuse, refuse_unfit
from rankmill.job import rerank
from rankmill.rank import rank_rows
from rankmill.rank_settings import FuseConfig
from rankmill.results import Results
from rankmill.status import read_status
from test_commit import commit_settings, read_rows, scored

METHODS = ("minmax", "zscore", "rrf")


def rule(method: str = "minmax", weight: float = 0.5, **changed: Any) -> FuseConfig:
    return FuseConfig(column="bm25", method=method, weight=weight, **changed)


def fused(
    score: list[float], first: list[float], wanted: FuseConfig, query: list[int] | None = None
) -> list[float]:
    lists = np.array(query or [0] * len(score), np.int32)
    found = fuse(lists, np.array(score, np.float32), np.array(first, np.float64), wanted)
    assert found.dtype == np.float32
    return found.tolist()


# One scale


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        ("minmax", [0.75 * 1 + 0, 0.75 * 0.5 + 0.25 * 1, 0 + 0.25 * 0.25]),
        ("zscore", [0.75 * math.sqrt(1.5) - 0.25 * 0.9805807, 0.25 * 1.3728129, -1.0166180]),
        ("rrf", [0.75 / 61 + 0.25 / 63, 0.75 / 62 + 0.25 / 61, 0.75 / 63 + 0.25 / 62]),
    ],
)
def test_each_method_by_hand(method: str, expected: list[float]) -> None:
    found = fused([3.0, 1.0, -1.0], [10.0, 18.0, 12.0], rule(method, 0.75))
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_reciprocal_ranks_are_damped_by_k_and_equal_values_share_the_better_place() -> None:
    found = fused([5.0, 5.0, 1.0], [0.0, 0.0, 0.0], rule("rrf", 1.0, k=1))
    np.testing.assert_allclose(found, [1 / 2, 1 / 2, 1 / 4])


@pytest.mark.parametrize("method", METHODS)
def test_each_query_has_a_scale_of_its_own(method: str) -> None:
    alone = fused([3.0, 1.0], [1.0, 2.0], rule(method, 0.6))
    others = fused([70.0, 80.0, 99.0], [9.0, 0.0, 0.0], rule(method, 0.6))
    apart = fused(
        [70.0, 3.0, 80.0, 1.0, 99.0],
        [9.0, 1.0, 0.0, 2.0, 0.0],
        rule(method, 0.6),
        [4, 7, 4, 7, 4],
    )
    assert apart == [others[0], alone[0], others[1], alone[1], others[2]]


VALUE = st.floats(-1e308, 1e308) | st.sampled_from([0.0, 1.0, math.nan, math.inf, -math.inf])
ROWS = st.lists(st.tuples(st.floats(-50, 50, width=32) | st.just(math.nan), VALUE), max_size=12)


@given(ROWS, st.sampled_from(METHODS), st.floats(0, 1))
def test_every_scored_row_has_a_finite_fused_score(rows, method, weight):
    found = fused([s for s, _ in rows], [v for _, v in rows], rule(method, weight))
    assert [math.isfinite(f) for f in found] == [not math.isnan(s) for s, _ in rows]


@given(ROWS, st.sampled_from(METHODS))
def test_the_whole_weight_leaves_the_models_order(rows, method):
    score = np.array([s for s, _ in rows], np.float32)
    lists = np.zeros(len(rows), np.int32)
    whole = fuse(lists, score, np.array([v for _, v in rows], np.float64), rule(method, 1.0))
    assert (
        rank_rows(lists, score, fused=whole).rows.tolist() == rank_rows(lists, score).rows.tolist()
    )


@given(st.lists(st.tuples(st.integers(-5, 5), st.integers(-5, 5)), max_size=12))
def test_no_weight_leaves_the_first_stages_order_and_ties_to_the_model(rows):
    score, first = (np.array([row[at] for row in rows], np.float32) for at in (0, 1))
    lists = np.zeros(len(rows), np.int32)
    none = fuse(lists, score, first.astype(np.float64), rule("zscore", 0.0))
    expected = sorted(range(len(rows)), key=lambda row: (-rows[row][1], -rows[row][0]))
    assert rank_rows(lists, score, fused=none).rows.tolist() == expected


def test_a_difference_beyond_float64_has_a_scale_all_the_same() -> None:
    assert fused([1.0, 1.0, 1.0], [-1.5e308, 0.0, 1.5e308], rule(weight=0.0)) == [0.0, 0.5, 1.0]


# What the first stage does not know


@pytest.mark.parametrize("method", METHODS)
def test_a_row_that_the_first_stage_does_not_know_counts_as_its_worst(method: str) -> None:
    known = fused([1.0, 2.0, 3.0, 4.0], [5.0, 2.0, 9.0, 2.0], rule(method))
    assert fused([1.0, 2.0, 3.0, 4.0], [5.0, 2.0, 9.0, math.nan], rule(method)) == known


@pytest.mark.parametrize("method", METHODS)
def test_where_the_first_stage_knows_nothing_the_model_decides(method: str) -> None:
    found = fused([1.0, 3.0, 2.0], [math.nan] * 3, rule(method, 0.1))
    assert np.argsort(found).tolist() == [0, 2, 1]


def test_unscored_rows_do_not_set_the_scale() -> None:
    found = fused([1.0, 2.0, math.nan], [1.0, 2.0, 1000.0], rule(weight=0.0))
    np.testing.assert_array_equal(found, [0, 1, math.nan])


def test_a_column_of_ranks_is_better_where_it_is_lower() -> None:
    ranks = pa.chunked_array([pa.array([1, 2, None], pa.int32())])
    np.testing.assert_array_equal(first_stage(ranks, "bm25_rank"), [-1, -2, np.nan])
    np.testing.assert_array_equal(first_stage(ranks, "bm25"), [1, 2, np.nan])


def test_a_column_that_is_not_there_or_not_of_numbers_is_refused() -> None:
    with pytest.raises(InputError, match="names bm25, which the input does not have"):
        refuse_unfit(pa.schema([("bm42", pa.float32())]), rule())
    with pytest.raises(InputError, match=r"column bm25, .* is string"):
        refuse_unfit(pa.schema([("bm25", pa.string())]), rule())


# Settings


def settings_of(**rank: Any) -> dict[str, Any]:
    base = {"input.path": "in", "output.path": "out", "model.name": "demo"}
    changed = {key.replace("__", "."): value for key, value in rank.items()}
    return load_config(overrides=base | changed).result_settings()


def test_the_rule_names_a_run_and_runs_without_one_keep_their_names() -> None:
    plain, half = settings_of(), settings_of(rank__fuse__column="bm25")
    assert set(plain) == {"input", "output", "model"}
    assert half["rank"] == {"fuse": {"column": "bm25", "method": "minmax", "weight": 0.5, "k": 60}}
    assert {key: half[key] for key in plain} == plain


def test_a_weight_is_not_tuned_inside_a_run() -> None:
    with pytest.raises(ConfigError, match="rankmill tune"):
        settings_of(rank__fuse={"column": "bm25", "weight": "tune"})


# Commits and runs


def part_of(envelope: Envelope, wanted: CommitSettings) -> pa.Table:
    made = finish_shard(envelope, wanted)
    return pq.read_table(pa.BufferReader(made.contents["part-00000.parquet"]))


def test_what_a_cascades_last_stage_did_not_see_stands_below_without_a_fused_score() -> None:
    table = make_pairs(1, 4).append_column("bm25", pa.array([5.0, 7.0, 3.0, 99.0]))
    texts = list(zip(table["query"].to_pylist(), table["document"].to_pylist()))
    first = scored(read_rows(table), dict(zip(texts, [9.0, 8.0, 6.0, 7.0])))
    last = scored(read_rows(table), dict(zip(texts, [1.0, 2.0])), depth=2)
    both = replace(first.for_next_model(), facts=last.facts, pairs=last.pairs, scores=last.scores)
    wanted = commit_settings(
        results=Results(stages=2, fused=True, probability=True),
        fuse=rule(weight=0.2),
        curve=Platt(slope=1.0, intercept=0.0),
    )
    part = part_of(both, wanted)
    assert part["doc_id"].to_pylist() == ["d0000-001", "d0000-000", "d0000-003", "d0000-002"]
    assert part["rerank_fused"].to_pylist() == [1.0, 0.0, None, None]
    assert part["rerank_score"].to_pylist() == [2.0, 1.0, 7.0, 6.0]
    assert part["rerank_probability"].null_count == 2


def test_cuts_are_by_the_fused_order_and_by_the_models_score() -> None:
    table = make_pairs(1, 4).append_column("bm25", pa.array([9.0, None, 1.0, 8.0]))
    texts = zip(table["query"].to_pylist(), table["document"].to_pylist())
    envelope = scored(read_rows(table), dict(zip(texts, [-3.0, 2.0, 1.0, 0.0])))
    wanted = commit_settings(results=Results(fused=True), fuse=rule(weight=0.4), top_k=3)
    part = part_of(envelope, wanted)
    # Fused: 0.6, 0.4, 0.32, 0.24 + 0.525; the last of the four is cut.
    assert part["rerank_fused"].to_pylist() == pytest.approx([0.765, 0.6, 0.4])
    assert part["rerank_score"].to_pylist() == [0.0, -3.0, 2.0]
    wanted = commit_settings(results=Results(fused=True), fuse=rule(weight=0.4), min_score=0.0)
    assert part_of(envelope, wanted)["rerank_rank"].to_pylist() == [1, 3, 4]


def test_a_run_writes_the_fused_order_its_rule_and_after_a_loss_the_same_bytes(
    free_model: str,
    ray_cluster: None,
    write_pairs: Callable[..., str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(plan, "SHARD_PAIRS", 12)
    table = make_pairs(4, 6)
    asked = {
        "input.path": write_pairs(table),
        "input.depth": 4,
        "output.path": str(tmp_path / "out"),
        "output.column_prefix": "r_",
        "model.name": free_model,
        "model.scorer": "own_scorers:Poisoned",
        "compute.workers": 1,
        "rank.fuse": {"column": "bm25_rank", "method": "rrf", "weight": 0.3},
    }
    result = rerank(load_config(overrides=asked))
    ranked = pq.read_table(result.output)
    assert ranked["r_fused"].type == pa.float32()
    for query in range(4):
        rows = ranked.slice(query * 6, 6).to_pylist()
        assert [row["r_rank"] for row in rows] == [1, 2, 3, 4, 5, 6]
        # Below the depth the order is the input's, and nothing is fused.
        assert [(row["bm25_rank"], row["r_fused"]) for row in rows[4:]] == [(5, None), (6, None)]
        top = rows[:4]
        places = {row["doc_id"]: sum(o["r_score"] > row["r_score"] for o in top) for row in top}
        expected = [
            0.3 / (61 + places[row["doc_id"]]) + 0.7 / (60 + row["bm25_rank"]) for row in top
        ]
        assert [row["r_fused"] for row in top] == pytest.approx(expected)
        assert expected == sorted(expected, reverse=True)
    told = {"column": "bm25_rank", "method": "rrf", "weight": 0.3, "k": 60}
    assert result.manifest["rank"] == {"fuse": told}
    assert json.loads(ranked.schema.metadata[b"rankmill.rank.fuse"]) == told
    assert read_status(result.output, verify=True).damaged == ()

    part = Path(result.files[1])
    before = part.read_bytes()
    for lost in (part, tmp_path / "out/_SUCCESS", tmp_path / "out/_rankmill/shards/00001.json"):
        lost.unlink()
    rerank(load_config(overrides=asked))
    assert part.read_bytes() == before
