"""Comparing runs: every figure against pandas and scipy, and the same answer here and on Ray."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

import rankmill
from ranked_runs import candidates, commit_run, ranked_part
from rankmill.compare import changes, comparison, spread
from rankmill.compare.changes import Changes, find_changes
from rankmill.compare.lists import SCHEMA
from rankmill.compare.page import render
from rankmill.compare.spread import QUANTILES, Spread
from rankmill.comparison_tables import print_comparison
from rankmill.errors import ConfigError, InputError

TOP = (1, 3, 10)


def random_run(rng: np.random.Generator) -> pa.Table:
    """Some queries with lists of some documents, in any order of rows."""
    rows = []
    for query in rng.permutation(6)[: rng.integers(1, 7)]:
        documents = rng.permutation(14)[: rng.integers(1, 15)].tolist()
        documents += rng.choice(documents, rng.integers(0, 3)).tolist()
        ids = [f"d{document}" if document else None for document in documents]
        ranks = rng.permutation(len(ids)) + 1
        scores = np.where(rng.random(len(ids)) < 0.1, np.nan, rng.normal(size=len(ids)))
        last = rng.random(len(ids)) < 0.9
        columns = (ids, ranks.tolist(), scores.tolist(), last.tolist())
        rows += [(f"q{query}", *row) for row in zip(*columns)]
    rng.shuffle(rows)
    at = [(0, row) for row in range(len(rows))]
    return pa.table(list(zip(*((*row, *where) for row, where in zip(rows, at)))), schema=SCHEMA)


def deduplicated(table: pa.Table) -> pd.DataFrame:
    """By the rules, in pandas: repeated documents out, then ranks without gaps."""
    frame = table.to_pandas().sort_values(["query", "rank"])
    frame = frame[~frame.duplicated(["query", "document"]) | frame["document"].isna()]
    return frame.assign(rank=frame.groupby("query").cumcount() + 1)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_random_runs_by_brute_force(seed):
    rng = np.random.default_rng(seed)
    tables = random_run(rng), random_run(rng)
    found = find_changes(*tables, TOP, 100)
    a, b = (deduplicated(table) for table in tables)
    queries_a, queries_b = set(a["query"]), set(b["query"])
    both = sorted(queries_a & queries_b)
    pairs = a.dropna(subset="document").merge(
        b.dropna(subset="document"), on=["query", "document"], suffixes=("_a", "_b")
    )
    lists = {q: [list(run[run["query"] == q]["document"]) for run in (a, b)] for q in both}
    correlations = {
        query: scipy.stats.spearmanr(rows["rank_a"], rows["rank_b"]).statistic
        for query, rows in pairs.groupby("query")
        if len(rows) > 1
    }
    counts = found.counts
    assert counts["queries_common"] == len(both)
    assert counts["queries_gone"] == len(queries_a - queries_b)
    assert counts["queries_new"] == len(queries_b - queries_a)
    assert counts["queries_unchanged"] == sum(
        one == other and None not in one and not pd.isna(one).any() for one, other in lists.values()
    )
    assert counts["documents_common"] == len(pairs)
    assert counts["documents_moved"] == (pairs["rank_a"] != pairs["rank_b"]).sum()
    for side, run, other in (("gone", a, b), ("new", b, a)):
        here = run[run["query"].isin(both)].dropna(subset="document")
        there = set(zip(other["query"], other["document"]))
        alone = np.array([pair not in there for pair in zip(here["query"], here["document"])], bool)
        assert counts[f"documents_{side}"] == alone.sum()
        listed = found.examples[f"{side}_documents"]
        assert [one.told["rank"] for one in listed] == sorted(here[alone]["rank"])
    for side, run, table in (("a", a, tables[0]), ("b", b, tables[1])):
        assert counts[f"duplicates_{side}"] == len(table) - len(run)
        assert counts[f"without_id_{side}"] == run["document"].isna().sum()
    assert found.spreads["correlation"].count == len(correlations)
    assert found.spreads["correlation"].total == pytest.approx(sum(correlations.values()), abs=1e-9)
    if both:
        known = [
            [[d if isinstance(d, str) else None for d in one] for one in lists[q]] for q in both
        ]
        for k in TOP:
            shares = [
                len(set(one[:k]) & set(other[:k]) - {None}) / min(k, max(len(one), len(other)))
                for one, other in known
            ]
            assert mean(found, f"overlap@{k}") == pytest.approx(np.mean(shares))
    alike = pairs[pairs["last_a"] & pairs["last_b"]]
    drift = (alike["score_b"] - alike["score_a"]).dropna()
    assert found.spreads["drift"].count == len(drift)
    if len(drift):
        assert mean(found, "drift") == pytest.approx(drift.mean())
        rms = found.spreads["drift"].to_json()["rms"]
        assert rms == pytest.approx((drift**2).mean() ** 0.5)
    moves = [abs(one.told["rank_b"] - one.told["rank_a"]) for one in found.examples["documents"]]
    change = (pairs["rank_b"] - pairs["rank_a"]).abs()
    assert moves == sorted(change[change > 0], reverse=True)[:100]
    worst = {one.told["query"]: one.told["correlation"] for one in found.examples["queries"]}
    assert worst == pytest.approx(
        {query: rho for query, rho in correlations.items() if rho < 1 - 1e-12}
    )
    assert list(worst.values()) == sorted(worst.values())


def mean(found: Changes, name: str) -> float:
    one = found.spreads[name]
    return one.total / one.count


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_changes_of_some_queries_add_up_to_those_of_all(seed):
    rng = np.random.default_rng(seed)
    a, b = random_run(rng), random_run(rng)
    whole = find_changes(a, b, TOP, 4)
    parted = [
        find_changes(
            *(t.filter(pa.array(np.isin(t["query"].to_pylist(), some))) for t in (a, b)), TOP, 4
        )
        for some in (["q0", "q3"], ["q1"], ["q2", "q4", "q5"])
    ]
    found = changes.add(parted, 4)
    assert found.counts == whole.counts
    assert told(found) == told(whole)
    for name, one in found.spreads.items():
        assert one.to_json() == approx_json(whole.spreads[name].to_json())


def told(found: Changes) -> dict[str, list[dict[str, object]]]:
    return {name: [one.told for one in every] for name, every in found.examples.items()}


def approx_json(values: dict) -> dict:
    """Sums in another order differ in the last bits."""
    return {
        name: approx_json(value)
        if isinstance(value, dict)
        else pytest.approx(value, rel=1e-9, abs=1e-12)
        if isinstance(value, float)
        else value
        for name, value in values.items()
    }


@given(
    numbers=st.lists(st.floats(-1e6, 1e6, allow_subnormal=False), min_size=1, max_size=200),
    cut=st.integers(0, 200),
)
def test_quantiles_are_right_to_one_in_two_thousand(numbers, cut):
    found = spread.add([Spread.of(np.array(numbers[:cut])), Spread.of(np.array(numbers[cut:]))])
    expected = np.quantile(numbers, QUANTILES, method="inverted_cdf")
    quantiles = found.to_json()["quantiles"]
    assert list(quantiles.values()) == pytest.approx(list(expected), rel=1 / 2000, abs=1e-30)


# Runs


def scores(queries: int, seed: int) -> list[list[float]]:
    rng = np.random.default_rng(seed)
    return [rng.normal(size=5 + q % 4).round(3).tolist() for q in range(queries)]


def commit(
    folder: Path, of: Sequence[Sequence[float]], order: Sequence[int], size: int, **options: object
) -> str:
    """A run whose queries lie in some order, so many a part."""
    table = candidates(of)
    query = np.array([int(q[1:]) for q in table["query_id"].to_pylist()])
    parts = []
    for at in range(0, len(order), size):
        rows = np.concatenate([np.flatnonzero(query == q) for q in order[at : at + size]])
        parts.append(ranked_part(table.take(pa.array(rows))))
    return commit_run(folder, parts, **options)


@pytest.fixture
def two(tmp_path: Path) -> tuple[str, str]:
    """Queries 0 to 29 with other scores than queries 5 to 34, cut elsewhere."""
    before, after = scores(35, 1), scores(35, 2)
    return (
        commit(tmp_path / "a", before, range(30), 4),
        commit(tmp_path / "b", after, range(5, 35), 7),
    )


def test_a_run_compared_with_itself_has_not_changed(two):
    found = rankmill.compare(two[0], two[0]).changes
    assert found.counts["queries_unchanged"] == found.counts["queries_a"] == 30
    assert (
        found.counts["scores_equal"] == found.counts["documents_common"] == found.counts["rows_a"]
    )
    assert [mean(found, name) for name in ("correlation", "overlap@1", "drift")] == [1, 1, 0]
    assert not any(found.examples.values())


def test_settings_that_differ_are_told(two, tmp_path):
    assert rankmill.compare(*two).settings() == {}
    table = candidates(scores(3, 1))
    other = commit_run(tmp_path / "ce", [ranked_part(table, prefix="ce_")], prefix="ce_")
    settings = rankmill.compare(two[0], other).to_json()["settings"]
    assert settings == {"output.column_prefix": ["rerank_", "ce_"]}


def test_a_setting_that_says_none_is_one_that_is_not_there(two, tmp_path):
    part = ranked_part(candidates(scores(30, 1)))
    more = {"output": {"top_k": None, "min_score": 0.5}}
    other = commit_run(tmp_path / "told", [part], settings=more)
    found = rankmill.compare(two[0], other).settings()
    assert found == {"output.min_score": ("none", "0.5")}


def test_new_and_gone_queries_and_movers_are_named(two):
    found = rankmill.compare(*two, most=3, top=[2])
    counts = found.changes.counts
    assert [counts[f"queries_{name}"] for name in ("common", "gone", "new")] == [25, 5, 5]
    shown = found.to_json()
    assert json.loads(json.dumps(shown, allow_nan=False)) == shown
    assert {one["query"] for one in shown["examples"]["gone_queries"]} <= {
        f"q{n}" for n in range(5)
    }
    assert len(shown["examples"]["documents"]) == 3
    assert set(shown["overlap"]) == {"2"}
    assert shown["run_a"]["output"] == two[0]


@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.parametrize("order", ["aligned", "scattered"])
def test_large_runs_are_compared_on_ray_with_the_same_result(two, tmp_path, monkeypatch, order):
    a, b = two
    if order == "scattered":
        rng = np.random.default_rng(0)
        b = commit(tmp_path / "scattered", scores(35, 2), (5 + rng.permutation(30)).tolist(), 2)
    here = rankmill.compare(a, b).changes
    monkeypatch.setattr(comparison, "ON_DRIVER_ROWS", 0)
    monkeypatch.setattr(comparison, "_ROWS_A_TASK", 60)
    there = rankmill.compare(a, b).changes
    assert there.counts == here.counts
    assert told(there) == told(here)
    for name, one in there.spreads.items():
        assert one.to_json() == approx_json(here.spreads[name].to_json())


@pytest.mark.usefixtures("ray_cluster")
def test_a_part_that_cannot_be_read_on_ray_is_named(two, monkeypatch):
    monkeypatch.setattr(comparison, "ON_DRIVER_ROWS", 0)
    part = Path(two[1]) / "part-00002.parquet"
    content = bytearray(part.read_bytes())
    content[4:1000] = bytes(996)
    part.write_bytes(content)
    with pytest.raises(InputError, match=r"part-00002.parquet cannot be read"):
        rankmill.compare(*two)


# Texts, and the page


def test_texts_are_read_only_when_asked_for(two):
    plain = rankmill.compare(*two).changes
    assert "question" not in json.dumps(told(plain))
    found = told(rankmill.compare(*two, texts=True).changes)
    for one in found["documents"]:
        query, number = one["query"][1:], one["document"].partition("-")[2]
        assert one["query_text"] == f"question {query}"
        assert one["document_text"] == f"answer {number} to {query}"
    assert all(one["query_text"] == f"question {one['query'][1:]}" for one in found["gone_queries"])
    assert "document_text" not in found["queries"][0]


def test_a_query_that_is_only_a_text_is_named_only_when_asked_for(tmp_path):
    runs = [
        commit_run(
            tmp_path / name, [ranked_part(candidates(of).drop_columns("query_id"), key="query")]
        )
        for name, of in (("a", [[1.0, 2.0]]), ("b", [[2.0, 1.0]]))
    ]
    assert {one["query"] for one in told(rankmill.compare(*runs).changes)["documents"]} == {None}
    found = told(rankmill.compare(*runs, texts=True).changes)
    assert {one["query"] for one in found["documents"]} == {"question 0"}


def test_on_a_narrow_terminal_texts_leave_the_ids_readable(tmp_path):
    runs = []
    for name, of in (("a", [[1.0, 2.0]]), ("b", [[2.0, 1.0]])):
        table = candidates(of, [["what is known of cascades " * 9] * 2])
        runs.append(commit_run(tmp_path / name, [ranked_part(table)]))
    found = rankmill.compare(*runs, texts=True)
    shown = io.StringIO()
    print_comparison(Console(file=shown, width=80), found)
    moved = shown.getvalue().partition("Documents that moved most")[2].partition("\n\n")[0]
    assert re.findall(r"q0: question 0 +(d0-\d): what is", moved) == ["d0-0", "d0-1"]


def test_the_page_shows_the_figures_and_names_both_runs(two):
    html = render(rankmill.compare(*two)).decode()
    assert html.count("<svg") == 4
    assert "25" in html
    assert "<bdi>a</bdi> → <bdi>b</bdi>" in html
    assert "question" not in html.partition("</style>")[2]
    assert "question 12" in render(rankmill.compare(*two, texts=True, most=200)).decode()


def test_the_page_of_equal_runs_is_drawn(two):
    html = render(rankmill.compare(two[0], two[0])).decode()
    assert "All 30 queries in both runs have the same lists." in html


def test_nothing_on_the_page_runs_or_asks_for_anything(tmp_path):
    hostile = "<script src=//x>alert(1)</script><img src=//x onerror=alert(1)>"
    runs = []
    for name, of in (("a", [[1.0, 2.0, 3.0]]), ("b", [[3.0, 2.0, 1.0]])):
        table = candidates(of, [[hostile] * 3])
        table = table.set_column(0, "query_id", pa.array([hostile] * 3))
        runs.append(commit_run(tmp_path / name, [ranked_part(table)]))
    html = render(rankmill.compare(*runs, texts=True)).decode()
    assert "&lt;script src=//x&gt;" in html
    assert not re.search(r"<(script|img|iframe|link|object|base)\b", html)
    assert "default-src 'none'" in html


# Refused


def test_what_is_no_complete_run_is_refused(two, tmp_path):
    with pytest.raises(InputError, match="There is no run"):
        rankmill.compare(two[0], tmp_path)
    half = commit(tmp_path / "half", scores(6, 1), range(6), 2, missing=[1])
    with pytest.raises(InputError, match="2 of 3 shards"):
        rankmill.compare(two[0], half)
    found = rankmill.compare(two[0], half, allow_incomplete=True)
    assert found.changes.counts["queries_common"] == 4


def test_runs_without_document_ids_are_refused(two, tmp_path):
    bare = commit(tmp_path / "bare", scores(3, 1), range(3), 3, columns={"doc_id": None})
    with pytest.raises(InputError, match=r"bare has no document ids"):
        rankmill.compare(two[0], bare)


def test_runs_of_other_queries_are_refused(two, tmp_path):
    table = candidates(scores(2, 1))
    renamed = table.set_column(
        0, "query_id", pa.array([f"question {q}" for q in table["query_id"].to_pylist()])
    )
    other = commit_run(tmp_path / "other", [ranked_part(renamed)])
    with pytest.raises(InputError, match=r"30 queries of .* like 'q0' and like 'ques…'"):
        rankmill.compare(two[0], other)


def test_ids_and_texts_of_queries_are_not_compared(two, tmp_path):
    table = candidates(scores(2, 1)).drop_columns("query_id")
    other = commit_run(tmp_path / "texts", [ranked_part(table, key="query")])
    with pytest.raises(InputError, match=r"by query_id, .* by query"):
        rankmill.compare(two[0], other)


@pytest.mark.parametrize("settings", [{"top": []}, {"top": [0]}, {"most": -1}])
def test_impossible_settings_are_refused(two, settings):
    with pytest.raises(ConfigError, match="ranks are from 1"):
        rankmill.compare(*two, **settings)


def test_another_prefix_is_found_in_the_run(two, tmp_path):
    table = candidates(scores(3, 1))
    other = commit_run(tmp_path / "ce", [ranked_part(table, prefix="ce_")], prefix="ce_")
    found = rankmill.compare(two[0], other).changes
    assert found.counts["documents_moved"] == 0
    assert found.counts["queries_gone"] == 27
