"""Several models in one run: a cascade's stages, each on what the one before found best, and models
side by side. How they share a cluster is in test_portions.py."""

from __future__ import annotations

import io
import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray
from hypothesis import given
from hypothesis import strategies as st
from ray.data import DataContext
from ray.data._internal.logical.optimizers import get_execution_plan
from rich.console import Console
from transformers import AutoTokenizer

from conftest import make_pairs
from rankmill import Scorer, console, evaluate, export, pipeline, plan, stages
from rankmill.commit import FinishedShard, finish_shard
from rankmill.config import load_config
from rankmill.envelope import Envelope
from rankmill.errors import ConfigError, InputError, OutputError
from rankmill.job import RunResult, _stage_settings, rerank
from rankmill.pipeline import Step
from rankmill.pool import Pool
from rankmill.prepared import prepare
from rankmill.rank import among_best, rank_rows
from rankmill.read import ShardSource
from rankmill.results import Results
from rankmill.rows import BAD_SCORE
from rankmill.stages import StageSettings
from rankmill.status import read_status
from rankmill.store import Store
from rankmill.worker import Bounds, ScoringWorker
from test_commit import commit_settings, read_rows
from test_poison import make_settings

KEEP = 4
Folder = Callable[..., str]


@pytest.fixture
def folder(tiny_model: Callable[[str], str], tmp_path: Path) -> Folder:
    """A model's folder whose scorer costs nothing; words may have faults: `folder(plate="nan")`.

    switch: a file without which there are no faults; it is gone after the first.
    """
    tokenizer = AutoTokenizer.from_pretrained(tiny_model("bert"))

    def make(name: str = "model", switch: Path | None = None, **faults: str) -> str:
        there = tmp_path / name
        tokenizer.save_pretrained(there)
        tokens = {word: tokenizer.convert_tokens_to_ids(word) for word in faults}
        poison: dict[str, Any] = {str(tokens[word]): fault for word, fault in faults.items()}
        poison |= {} if switch is None else {"switch": str(switch), "once": True}
        (there / "poison.json").write_text(json.dumps(poison))
        return str(there)

    return make


def asked(name: str, **settings: Any) -> dict[str, Any]:
    return {"name": name, "scorer": "own_scorers:Poisoned", **settings}


def config(folder: Path, path: str, **settings: Any) -> Any:
    """A run's; the first model reads only a word of each query, so that the two do not agree."""
    values = {"input.path": path, "output.path": str(folder / "out"), "compute.workers": 1}
    return load_config(overrides=values | {k.replace("__", "."): v for k, v in settings.items()})


def scores(model: str, table: pa.Table, **settings: Any) -> np.ndarray:
    pairs = list(zip(table["query"].to_pylist(), table["document"].to_pylist()))
    return Scorer(model, scorer="own_scorers:Poisoned", device="cpu", **settings).score(pairs)


# Runs


def test_a_cascade_scores_again_what_its_first_stage_found_best(
    folder: Folder,
    ray_cluster: None,
    write_pairs: Callable[..., str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(plan, "SHARD_PAIRS", 20)
    table, model, switch = make_pairs(6, 10), folder(), tmp_path / "switch"
    documents = [f"{document} plate" for document in table["document"].to_pylist()]
    table = table.set_column(3, "document", pa.array(documents))
    path = write_pairs(table)
    deadly = folder("second", switch, plate="exit")
    both = [asked(model, max_query_tokens=1, keep=KEEP), asked(deadly)]
    wanted = config(tmp_path, path, stages=both)
    estimates = prepare(wanted).estimates
    assert [one.pairs for one in estimates] == [60, 6 * KEEP]

    result = rerank(wanted)
    ranked = pq.read_table(result.output)
    first, second = scores(model, table, max_query_tokens=1), scores(model, table)
    expected = []
    for query in range(6):
        rows = np.arange(10 * query, 10 * query + 10)
        by_first = rows[np.argsort(-first[rows], kind="stable")]
        best, rest = by_first[:KEEP], by_first[KEEP:]
        expected += [*((row, 2) for row in best[np.argsort(-second[best], kind="stable")])]
        expected += [(row, 1) for row in rest]
    assert ranked["doc_id"].to_pylist() == [table["doc_id"][row].as_py() for row, _ in expected]
    assert ranked["rerank_stage"].to_pylist() == [stage for _, stage in expected]
    assert ranked["rerank_rank"].to_pylist() == list(range(1, 11)) * 6
    np.testing.assert_allclose(
        ranked["rerank_score"].to_numpy(),
        [(first, second)[stage - 1][row] for row, stage in expected],
        atol=1e-4,
    )

    private = Path(result.output) / "_rankmill"
    stored = [pa.ipc.open_file(f).read_all() for f in sorted((private / "scores").iterdir())]
    assert len(stored) == 3
    numbers = Counter(pa.concat_tables(stored)["stage"].to_pylist())
    assert numbers == {1: 60, 2: 6 * KEEP}
    counters, by_model = result.counters, result.manifest["models"]
    assert (counters.pairs_scored, counters.rows_out) == (60, 60)
    assert [one["pairs"] for one in by_model.values()] == [60, 6 * KEEP]
    assert sum(one["tokens"] for one in by_model.values()) == counters.tokens
    assert read_status(result.output, verify=True).damaged == ()
    report = (private / "report.html").read_text()
    assert "score, stage 1" in report
    assert "score, stage 2" in report

    # Without its second shard it goes on, with more workers, one of which dies, to the same bytes.
    parts = [Path(file).read_bytes() for file in result.files]
    (Path(result.output) / "_SUCCESS").unlink()
    (private / "shards/00001.json").unlink()
    switch.touch()
    again = rerank(config(tmp_path, path, stages=both, compute__workers=3))
    assert not switch.exists(), "the second stage's process died"
    assert again.manifest["shards_resumed"] == 2
    assert [Path(file).read_bytes() for file in again.files] == parts
    facts = console.plan_facts(prepare(wanted), None)
    assert [one["pairs_estimated"] for one in facts["models"]] == [60, 6 * KEEP]
    assert sum(one["share"] for one in facts["models"]) == pytest.approx(1)
    shown = io.StringIO()
    Console(file=shown, width=200).print(console.plan_table(facts))
    assert f"about {6 * KEEP} pairs of up to 512 tokens" in shown.getvalue()

    # A change of any stage makes another run.
    other = [both[0] | {"keep": 5}, both[1]]
    with pytest.raises(OutputError, match=r"settings\.stages\.0\.keep: 4 -> 5"):
        prepare(config(tmp_path, path, stages=other))

    # What comes after a run takes it.
    judged = pa.table({"query_id": ["q0000"], "doc_id": ["d0000-003"], "relevance": [1]})
    place = 1 + ranked["doc_id"].to_pylist().index("d0000-003")
    found = evaluate(ranked, judged.to_pandas(), metrics="mrr@10")
    assert found.metrics["mrr@10"] == pytest.approx(1 / place)
    with pytest.raises(ConfigError, match="several stages"):
        export(result.output, tmp_path / "pairs", format="labeled-pair")
    last = export(result.output, tmp_path / "pairs", format="labeled-pair", stage=2)
    assert last.counts.examples == 6 * KEEP
    with pytest.raises(InputError, match="scores of several stages, which do not compare"):
        export(
            result.output,
            tmp_path / "agreeing",
            format="triplet",
            stage=2,
            positive_max_rank=1,
            margin=0,
            agree_runs=[result.output],
        )


def test_models_side_by_side_score_every_pair_and_one_ranks(
    folder: Folder, ray_cluster: None, write_pairs: Callable[..., str], tmp_path: Path
) -> None:
    table, model = make_pairs(3, 6), folder()
    models = {"short": asked(model, max_query_tokens=1), "whole": asked(model)}
    result = rerank(config(tmp_path, write_pairs(table), models=models, rank_by="whole"))
    ranked = pq.read_table(result.output)
    assert ranked.column_names[-3:] == [
        "rerank_tokens_dropped",
        "rerank_score_short",
        "rerank_score_whole",
    ]
    assert ranked["rerank_score"].equals(ranked["rerank_score_whole"])
    for name, settings in (("short", {"max_query_tokens": 1}), ("whole", {})):
        found = ranked.sort_by([("query_id", "ascending"), ("bm25_rank", "ascending")])
        expected = scores(model, table, **settings)
        np.testing.assert_allclose(found[f"rerank_score_{name}"].to_numpy(), expected, atol=1e-4)
    falling = np.diff(ranked["rerank_score"].to_numpy().reshape(3, 6))
    assert (falling <= 0).all()
    assert [one["pairs"] for one in result.manifest["models"].values()] == [18, 18]
    assert read_status(result.output, verify=True).damaged == ()
    labels = export(
        result.output, tmp_path / "pairs", format="labeled-pair", model="short", label="score"
    )
    made = pq.read_table(labels.files[0])["score"].to_pylist()
    assert made == ranked["rerank_score_short"].to_pylist()


def test_each_model_takes_over_the_scores_of_its_own_kind_whatever_its_number_was(
    folder: Folder, ray_cluster: None, write_pairs: Callable[..., str], tmp_path: Path
) -> None:
    table, model = make_pairs(3, 6), folder()
    path, short = write_pairs(table), asked(model, max_query_tokens=1)

    def run(name: str, *old: str, **settings: Any) -> RunResult:
        reused = [str(tmp_path / one) for one in old]
        there = {"output__path": str(tmp_path / name), "reuse": reused}
        return rerank(config(tmp_path, path, **there, **settings))

    def given(result: RunResult) -> list[tuple[int, int]]:
        return [(one["pairs"], one["reused"]) for one in result.manifest["models"].values()]

    def told(result: RunResult) -> list[str]:
        text = io.StringIO()
        Console(file=text, width=300).print(console.manifest_table(result.manifest, "out"))
        return [" ".join(line.split()) for line in text.getvalue().splitlines()]

    def rows(name: str) -> list[dict[str, Any]]:
        order = [("query_id", "ascending"), ("doc_id", "ascending")]
        return pq.read_table(tmp_path / name).sort_by(order).to_pylist()

    run("alone", model=asked(model))
    # The first stage has nothing to take over, and scores all that the second does not.
    gates = {"gates.max_score_shift": 0.0, "gates.min_overlap": 0.1, "gates.k": 2}
    both = run("both", "alone", stages=[short | {"keep": 2}, asked(model)], **gates)
    assert given(both) == [(18, 0), (6, 6)]
    assert (both.counters.pairs_scored, both.counters.pairs_reused) == (18, 0)
    # What models were given is told apart from what became of the pairs, which adds up to all.
    name = both.manifest["model"]["name"]
    assert told(both)[9:14] == [
        "pairs scored 18",
        "pairs reused 0",
        "pairs given to",
        f"stage 1 18 by {name}",
        f"stage 2 6 by {name}, 6 of them reused",
    ]
    pairs = list(zip(rows("both"), rows("alone"), strict=True))
    of_last = [(b["rerank_score"], a["rerank_score"]) for b, a in pairs if b["rerank_stage"] == 2]
    assert len(of_last) == 6
    assert all(b == a for b, a in of_last)
    # Scores of the first stage, on another scale, are no shift; overlap goes by the last ranks.
    first_two = [{r["doc_id"] for r in rows(n) if r["rerank_rank"] <= 2} for n in ("both", "alone")]
    overlap = len(first_two[0] & first_two[1]) / 6
    measured = {gate["name"]: gate["found"] for gate in both.manifest["gates"]}
    assert measured == {"max_score_shift": 0.0, "min_overlap": pytest.approx(overlap)}

    wider = run("wider", "both", stages=[short | {"keep": 3}, asked(model)])
    assert given(wider) == [(18, 18), (9, 6)]
    assert (wider.counters.pairs_scored, wider.counters.pairs_reused) == (3, 15)
    beside = run("beside", "wider", models={"x": asked(model), "y": short}, rank_by="x")
    assert given(beside) == [(18, 9), (18, 18)]
    assert beside.counters.pairs_scored == 9
    last = run("last", "beside", model=short)
    assert (last.counters.pairs_scored, last.counters.pairs_reused) == (0, 18)
    assert last.counters.tokens == 0
    assert [row["rerank_score"] for row in rows("last")] == [
        row["rerank_score_y"] for row in rows("beside")
    ]


def test_nothing_is_fused_and_every_model_has_its_own_pool(
    folder: Folder, ray_cluster: None, write_pairs: Callable[..., str], tmp_path: Path
) -> None:
    model = folder()
    both = [asked(model, max_query_tokens=1, keep=KEEP), asked(model)]
    ready = prepare(config(tmp_path, write_pairs(make_pairs(2, 6)), stages=both))
    profile = make_settings(Path(model)).profile
    steps = [Step(one, Pool(1, 0.5, 0, None)) for one in _stage_settings(ready, [profile, profile])]
    source = ShardSource(ready.source, ready.plan, ready.pending, ready.store)
    with DataContext.current(pipeline.run_context()):
        dataset: ray.data.Dataset = pipeline.graph(source, steps, Bounds(ready.store, 60))
        physical, _ = get_execution_plan(dataset._logical_plan)
    names, operator = [], physical.dag
    while operator is not None:
        names.append(operator.name)
        operator = operator.input_dependencies[0] if operator.input_dependencies else None
    one = ["MapBatches(ScoreBlocks)", "MapBatches(tokenize_block)"]
    assert names == [*one, *one, "ReadShardSource", "Input"]


# A shard, without Ray


def shard(table: pa.Table, *models: StageSettings, **settings: Any) -> FinishedShard:
    """What is committed of a table that these models score, one after the other."""
    envelope = Envelope(0, rows=read_rows(table))
    for one in models:
        (envelope,) = Envelope.from_block(envelope.to_block())
        envelope = stages.tokenize(envelope, one, one.description.tokenizer(one.rules))
        envelope = ScoringWorker(one, Bounds(Store("/nowhere"), 60)).score(envelope)
    columns = tuple(table.column_names)
    return finish_shard(envelope, commit_settings(columns=columns, **settings))


def part_of(made: FinishedShard) -> pa.Table:
    return pq.read_table(pa.BufferReader(next(iter(made.contents.values()))))


def reasons(made: FinishedShard) -> dict[str, str]:
    content = made.contents["_rankmill/quarantine/00000.arrow"]
    bad = pa.ipc.open_file(content).read_all()
    return dict(zip(bad["doc_id"].to_pylist(), bad["reason"].to_pylist()))


def cascade(first: StageSettings, second: StageSettings, keep: int) -> tuple[StageSettings, ...]:
    short = replace(first, rules=replace(first.rules, max_query_tokens=1))
    return short, replace(second, number=2, best=keep)


def with_documents(documents: Sequence[str], lists: Sequence[int] | None = None) -> pa.Table:
    count = len(documents)
    return pa.table(
        {
            "query_id": list(lists or [0] * count),
            "query": ["what is a shard"] * count,
            "doc_id": [f"d{number}" for number in range(count)],
            "document": list(documents),
        }
    )


TWO = {"results": Results(stages=2)}


def test_rows_that_a_later_stage_fails_on_go_to_quarantine_with_its_name(folder: Folder) -> None:
    words = ["reads shards", "of lists", "a plate", "the boundary", "whole lists"]
    table = with_documents([f"{word} {number}" for number, word in enumerate(words * 2)])
    sound = make_settings(Path(folder("sound")))
    bad = make_settings(Path(folder("bad", plate="error", boundary="nan")))
    first = part_of(shard(table, *cascade(sound, sound, 5), **TWO))
    seen = dict(zip(first["doc_id"].to_pylist(), first["rerank_stage"].to_pylist()))
    made = shard(table, *cascade(sound, bad, 5), **TWO)
    faulty = {f"d{place}": words[place % 5] for place in (2, 3, 7, 8)}
    lost = {doc for doc in faulty if seen[doc] == 2}
    assert 0 < len(lost) < 4, "some of them did not reach the second stage"
    assert {doc: why.partition(":")[0] for doc, why in reasons(made).items()} == dict.fromkeys(
        lost, "stage 2"
    )
    assert {why for why in reasons(made).values() if BAD_SCORE in why} <= {f"stage 2: {BAD_SCORE}"}
    part = part_of(made)
    assert part["doc_id"].to_pylist() == [d for d in first["doc_id"].to_pylist() if d not in lost]
    assert made.marker.counters.rows_quarantined == len(lost)


def test_a_row_without_a_score_of_the_first_stage_takes_no_place_in_the_next(
    folder: Folder,
) -> None:
    table = with_documents([f"{'a plate' if n < 4 else 'a list'} {n}" for n in range(8)])
    bad = make_settings(Path(folder("bad", plate="nan")))
    sound = make_settings(Path(folder("sound")))
    made = shard(table, *cascade(bad, sound, 3), **TWO)
    assert reasons(made) == {f"d{n}": f"stage 1: {BAD_SCORE}" for n in range(4)}
    assert part_of(made)["rerank_stage"].to_pylist() == [2, 2, 2, 1]


def test_any_of_several_models_without_a_score_sends_a_row_to_quarantine(folder: Folder) -> None:
    table = with_documents(["a plate", "a list", "whole lists"])
    bad = make_settings(Path(folder("bad", plate="nan")))
    sound = make_settings(Path(folder("sound")))
    results = Results(names=("sound", "bad"), ranked_by=1)
    made = shard(table, sound, replace(bad, number=2), results=results)
    assert reasons(made) == {"d0": f"bad: {BAD_SCORE}"}
    part = part_of(made)
    assert part["rerank_score"].equals(part["rerank_score_sound"])
    assert part.num_rows == 2


def test_copies_of_a_pair_take_one_place_together_and_lists_do_not_share(folder: Folder) -> None:
    # The same texts in another list, where two better ones stand above.
    documents = ["lists", "shards", "lists", "reads", "lists"]
    sound = make_settings(Path(folder()))
    table = with_documents([*documents, "lists"], lists=[0, 0, 0, 0, 0, 1])
    made = shard(table, *cascade(sound, sound, 2), **TWO)
    part = part_of(made)
    stage = dict(zip(part["doc_id"].to_pylist(), part["rerank_stage"].to_pylist()))
    assert stage["d0"] == stage["d2"] == stage["d4"]
    assert Counter(stage[f"d{n}"] for n in (0, 1, 3)) == {2: 2, 1: 1}
    assert stage["d5"] == 2
    assert made.marker.counters.pairs_duplicate == 3


def test_rows_beyond_the_depth_have_neither_score_nor_stage(folder: Folder) -> None:
    sound = replace(make_settings(Path(folder())), depth=3)
    table = with_documents([f"list {n}" for n in range(5)])
    part = part_of(shard(table, *cascade(sound, sound, 2), **TWO))
    assert part["rerank_stage"].to_pylist() == [2, 2, 1, None, None]
    assert part["doc_id"].to_pylist()[3:] == ["d3", "d4"]


def test_the_lowest_score_is_on_the_last_stages_scale(folder: Folder) -> None:
    sound = make_settings(Path(folder()))
    table = with_documents([f"list {n}" for n in range(6)])
    both = cascade(sound, sound, 3)
    whole = part_of(shard(table, *both, **TWO))
    lowest = whole["rerank_score"][1].as_py()
    cut = part_of(shard(table, *both, min_score=lowest, **TWO))
    assert cut.equals(whole.slice(0, 2))


def test_a_stage_after_one_that_left_nothing_scores_nothing(folder: Folder) -> None:
    bad = make_settings(Path(folder("bad", plate="nan")))
    made = shard(with_documents(["a plate"]), *cascade(bad, bad, 2), **TWO)
    assert part_of(made).num_rows == 0
    assert [one.pairs for one in made.marker.models] == [1, 0]


# Choosing and ordering


@given(
    rows=st.lists(st.tuples(st.integers(0, 2), st.integers(-1, 4)), max_size=30),
    keep=st.integers(1, 4),
    data=st.data(),
)
def test_the_best_of_each_list_are_chosen_by_pair(
    rows: list[tuple[int, int]], keep: int, data: st.DataObject
) -> None:
    rows.sort(key=lambda row: row[0])
    lists = np.array([row[0] for row in rows], np.int32)
    pair = np.array([row[1] for row in rows], np.int32)
    of_pair = data.draw(st.lists(st.sampled_from([0.5, 1.0, 2.0, np.nan]), min_size=5, max_size=5))
    score = np.array([of_pair[p] if p >= 0 else np.nan for p in pair], np.float32)
    chosen = among_best(lists, pair, score, keep)
    expected = set()
    for number in set(lists.tolist()):
        places = {p: n for n, (q, p) in reversed([*enumerate(rows)]) if q == number and p >= 0}
        finite = [p for p in places if not np.isnan(of_pair[p])]
        best = sorted(finite, key=lambda p: (-of_pair[p], places[p]))[:keep]
        expected |= {(number, p) for p in best}
    assert [bool(c) for c in chosen] == [row in expected for row in rows]


def test_a_later_stage_ranks_above_an_earlier_one_whatever_the_scores() -> None:
    query = np.zeros(4, np.int32)
    score = np.array([9.0, 1.0, 2.0, np.nan], np.float32)
    missed = np.array([1, 0, 0, 2], np.int32)
    assert rank_rows(query, score, missed=missed).rows.tolist() == [2, 1, 0, 3]


# Settings

TWO_STAGES = [{"name": "a", "keep": 9}, {"name": "b"}]
TWO_MODELS = {"a": {"name": "a"}, "b": {"name": "b"}}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "model is missing"),
        ({"model": {"name": "a"}, "stages": TWO_STAGES}, "model and stages are set"),
        ({"stages": TWO_STAGES[:1]}, "stages holds one model"),
        ({"stages": [{"name": "a"}, {"name": "b"}]}, r"stages\.0\.keep is missing"),
        ({"stages": [*TWO_STAGES[:1], TWO_STAGES[0]]}, r"stages\.1\.keep is 9, but nothing"),
        ({"stages": [TWO_STAGES[0], *TWO_STAGES]}, r"stages\.1\.keep is 9, but no more than 9"),
        ({"stages": [{"name": "a", "keep": 0}, {"name": "b"}]}, r"stages\.0\.keep: .* found 0"),
        ({"stages": [{"name": "a", "kep": 1}, {"name": "b"}]}, r"setting stages\.0\.kep"),
        ({"models": TWO_MODELS}, r"rank_by is missing: which of models \(a, b\)"),
        ({"models": TWO_MODELS, "rank_by": "c"}, r"one of models \(a, b\), found c"),
        ({"models": {"x": {"name": "a"}, "X": {"name": "b"}}, "rank_by": "x"}, "case alone"),
        ({"models": {"a b": {"name": "a"}, "c": {"name": "b"}}, "rank_by": "c"}, r"models\.a b"),
        ({"models": {"a": {"name": "a"}}, "rank_by": "a"}, "models holds one model"),
        ({"models": {"a": {"nam": "a"}}}, r"setting models\.a\.nam"),
        ({"model": {"name": "a"}, "rank_by": "a"}, "rank_by is set, but there are no models"),
        ({"stages": [{"name": "s3://u:p@h/x", "keep": 3}, {"name": "b"}]}, r"stages\.0\.name carr"),
        ({"stages": TWO_STAGES, "stages.2.name": "c"}, "a list of 2, which has no 2"),
    ],
)
def test_settings_that_make_no_run_are_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(overrides={"input.path": "in", "output.path": "out"} | settings)


def test_one_setting_of_a_stage_can_be_overridden() -> None:
    base = {"input.path": "in", "output.path": "out", "stages": TWO_STAGES}
    assert load_config(overrides=base | {"stages.1.max_length": 64}).stages[1].max_length == 64


def test_an_input_that_has_a_column_of_the_results_is_refused(
    folder: Folder, write_pairs: Callable[..., str], tmp_path: Path
) -> None:
    table = make_pairs(1, 2).append_column("rerank_score_b", pa.array([1.0, 2.0]))
    models = {"a": asked(folder()), "b": asked(folder())}
    with pytest.raises(InputError, match="rerank_score_b"):
        prepare(config(tmp_path, write_pairs(table), models=models, rank_by="a"))
