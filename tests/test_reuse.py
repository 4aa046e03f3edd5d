"""Reuse: what an earlier run has scored is taken over as it was stored, and nothing else is."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st

from conftest import make_pairs
from rankmill import Scorer, job, markers, plan, reuse, runs, score_files, stages
from rankmill.commit import commit_shard
from rankmill.config import ColumnNames, ModelConfig, load_config
from rankmill.envelope import Envelope
from rankmill.errors import ConfigError, OutputError
from rankmill.known_scores import KnownScores
from rankmill.markers import Marker
from rankmill.prepared import prepare
from rankmill.profile import Profile
from rankmill.score_files import ScoredPairsOfShard
from rankmill.stages import StageSettings
from rankmill.store import Store
from rankmill.tokens import pair_digests, query_keys
from test_commit import commit_settings, pairs_table, read_rows, scored

SCORING: dict[str, Any] = {"model": "tiny"}
TWO_LISTS = pairs_table(
    ("q1", "slip flow", "a", "a plate in a stream"),
    ("q1", "slip flow", "b", "shear " * 70),
    ("q2", "heat transfer", "a", "a plate in a stream"),
)
# No model gives such scores.
STORED = {
    ("slip flow", "a plate in a stream"): 1234.5,
    ("slip flow", "shear " * 70): -0.1,
    ("heat transfer", "a plate in a stream"): 77.25,
}


# Shards, without Ray


@dataclass(frozen=True)
class Shards:
    """Computes single shards with a tiny model."""

    scorer: Scorer

    def compute(
        self, folder: Path, table: pa.Table, known: KnownScores | None = None, **changed: Any
    ) -> Marker:
        """Compute and commit a table as shard 0 of an output."""
        scorer = self.scorer
        settings = StageSettings(
            scorer.description,
            scorer.profile,
            scorer.tokenizer.rules,
            scorer.tokenizer.template,
            ColumnNames(),
            has_query_id=True,
            max_text_bytes=1 << 20,
            depth=None,
        )
        envelope = Envelope(0, rows=read_rows(table))
        tokenized = stages.tokenize(envelope, settings, scorer.tokenizer, known)
        travelled = Envelope.from_block(tokenized.to_block())[0]
        done = stages.score(
            travelled, settings.rules, settings.template, settings.profile, scorer.model
        )
        commit_shard(done, commit_settings(folder, **changed))
        return markers.read_markers(Store(str(folder)))[0]


@pytest.fixture(scope="module")
def shards(tiny_model: Callable[[str], str]) -> Shards:
    return Shards(
        Scorer(tiny_model("bert"), precision="fp32", device="cpu", threads=1, max_length=64)
    )


def record(folder: Path, scoring: Sequence[dict[str, Any]] = (SCORING,), shards: int = 3) -> None:
    """The run.json of an output that `commit_shard` has written to."""
    stored = {
        "fingerprint": "f" * 64,
        "profile": Profile("torch", "fp32", "cpu", "avx2", 1, 1024).to_json(),
        "identity": {"settings": {}},
        "config": {
            "input": {"columns": {}},
            "output": {"column_prefix": "rerank_"},
            "compute": {"gpus_per_worker": 1.0},
        },
        "model": {"name": "tiny", "digest": "ab" * 32},
        "versions": {},
        "plan": {"shards": shards, "pairs": 3, "digest": ""},
        "scoring": list(scoring),
    }
    Store(str(folder)).write(runs.RUN, json.dumps(stored).encode())


def store_scores(
    folder: Path, *tables: pa.Table, scores: dict[tuple[str, str], float] | None = None, **cut: Any
) -> Path:
    """An earlier output with given scores, a shard a table."""
    for shard, table in enumerate(tables):
        done = scored(read_rows(table), STORED if scores is None else scores, shard=shard)
        commit_shard(done, commit_settings(folder, **cut))
    record(folder)
    return folder


def here(function: Any, shared: Any, items: Any) -> Any:
    """What `pipeline.map_shared` does, in this process."""
    return (function(shared, item) for item in items)


def known_of(*folders: Path) -> KnownScores:
    known = reuse.known(reuse.look_at([str(folder) for folder in folders]), SCORING, here)
    assert known is not None
    return known


def scores_of(folder: Path) -> dict[tuple[str, str], float]:
    rows = pq.read_table(folder).to_pylist()
    return {(row["query"], row["document"]): row["rerank_score"] for row in rows}


def test_stored_scores_come_out_as_they_are(shards, tmp_path):
    known = known_of(store_scores(tmp_path / "old", TWO_LISTS))
    counters = shards.compute(tmp_path / "new", TWO_LISTS, known).counters
    assert scores_of(tmp_path / "new") == {
        pair: float(np.float32(score)) for pair, score in STORED.items()
    }
    assert (counters.pairs_scored, counters.pairs_reused, counters.tokens) == (0, 3, 0)


@pytest.mark.parametrize(
    ("column", "text"), [("document", "a plate in a stream."), ("query", "Slip flow")]
)
def test_a_changed_text_is_scored(shards, tmp_path, column, text):
    known = known_of(store_scores(tmp_path / "old", TWO_LISTS))
    rows = TWO_LISTS.to_pylist()
    rows[0][column] = text
    changed = pa.Table.from_pylist(rows)
    marker = shards.compute(tmp_path / "new", changed, known)
    assert marker.counters.pairs_scored == marker.counters.windows == 1
    assert marker.counters.pairs_reused == 2
    found = scores_of(tmp_path / "new")
    pair = rows[0]["query"], rows[0]["document"]
    assert found[pair] == pytest.approx(shards.scorer.score([pair])[0], abs=1e-5)


def test_query_and_document_do_not_change_places(shards, tmp_path):
    known = known_of(store_scores(tmp_path / "old", TWO_LISTS))
    turned = pairs_table(("q1", "a plate in a stream", "a", "slip flow"))
    assert shards.compute(tmp_path / "new", turned, known).counters.pairs_scored == 1


def test_a_copy_of_a_reused_pair_is_a_duplicate(shards, tmp_path):
    known = known_of(store_scores(tmp_path / "old", TWO_LISTS))
    twice = pa.concat_tables([TWO_LISTS, TWO_LISTS.slice(2)])
    counters = shards.compute(tmp_path / "new", twice, known).counters
    assert (counters.pairs_scored, counters.pairs_reused, counters.pairs_duplicate) == (0, 3, 1)


def test_what_was_reused_is_the_next_runs_to_reuse(shards, tmp_path):
    known = known_of(store_scores(tmp_path / "one", TWO_LISTS))
    shards.compute(tmp_path / "two", TWO_LISTS, known)
    record(tmp_path / "two")
    shards.compute(tmp_path / "three", TWO_LISTS, known_of(tmp_path / "two"))
    assert scores_of(tmp_path / "three") == scores_of(tmp_path / "one")


def test_all_of_a_part_but_who_scored_it_is_the_same(shards, tmp_path):
    """Tokens that were dropped, too, though nothing is tokenized again."""
    first = shards.compute(tmp_path / "old", TWO_LISTS)
    record(tmp_path / "old")
    assert first.counters.pairs_truncated == 1
    second = shards.compute(tmp_path / "new", TWO_LISTS, known_of(tmp_path / "old"))
    assert second.counters.pairs_reused == 3
    assert second.files == first.files
    assert second.summary == first.summary


def test_the_old_runs_order_shards_cut_and_columns_do_not_matter(shards, tmp_path):
    lists = [TWO_LISTS.slice(2), TWO_LISTS.slice(0, 2).take([1, 0])]
    old = store_scores(tmp_path / "old", *lists, top_k=1, columns=("doc_id",))
    counters = shards.compute(tmp_path / "new", TWO_LISTS, known_of(old)).counters
    assert (counters.pairs_scored, counters.pairs_reused) == (0, 3)


def test_a_pair_that_had_no_score_is_scored_again(shards, tmp_path):
    scores = STORED | {("heat transfer", "a plate in a stream"): np.nan}
    old = store_scores(tmp_path / "old", TWO_LISTS, scores=scores)
    counters = shards.compute(tmp_path / "new", TWO_LISTS, known_of(old)).counters
    assert (counters.pairs_scored, counters.pairs_reused) == (1, 2)


def test_the_first_output_that_holds_a_pair_counts(shards, tmp_path):
    one = store_scores(tmp_path / "one", TWO_LISTS.slice(0, 1))
    other = store_scores(tmp_path / "two", TWO_LISTS, scores=dict.fromkeys(STORED, 5.0))
    shards.compute(tmp_path / "new", TWO_LISTS, known_of(one, other))
    assert sorted(scores_of(tmp_path / "new").values()) == [5.0, 5.0, 1234.5]


def test_scores_of_another_stage_are_not_taken(shards, tmp_path):
    old = store_scores(tmp_path / "old", TWO_LISTS)
    record(old, [{"model": "cheap"}, SCORING])
    counters = shards.compute(tmp_path / "new", TWO_LISTS, known_of(old)).counters
    assert counters.pairs_reused == 0


@pytest.mark.parametrize("damage", ["gone", "changed"])
def test_a_score_file_that_goes_meanwhile_costs_time_and_is_told(shards, tmp_path, damage):
    known = known_of(store_scores(tmp_path / "old", TWO_LISTS))
    file = tmp_path / "old/_rankmill/scores/00000.arrow"
    content = bytearray(file.read_bytes())
    content[-200] ^= 1
    file.unlink() if damage == "gone" else file.write_bytes(content)
    marker = shards.compute(tmp_path / "new", TWO_LISTS, known)
    assert marker.counters.pairs_scored == 3
    assert marker.degraded


WORDS = st.sampled_from("abcde")


@examples(deadline=None, max_examples=25)
@given(
    st.lists(st.lists(st.tuples(WORDS, WORDS), min_size=1, unique=True), min_size=1, max_size=4),
    st.lists(st.tuples(WORDS, WORDS), min_size=1, unique=True),
)
def test_the_index_finds_what_a_search_of_all_files_would(tmp_path_factory, files, asked):
    folder = tmp_path_factory.mktemp("files")
    expected: dict[tuple[str, str], float] = {}
    for shard, pairs in enumerate(files):
        tables = pairs_table(*((q, q, d, d) for q, d in pairs))
        given_scores = {pair: float(10 * shard + n) for n, pair in enumerate(pairs)}
        done = scored(read_rows(tables), given_scores, shard=shard)
        commit_shard(done, commit_settings(folder))
        expected = given_scores | expected
    record(folder, shards=len(files))
    queries, documents = ([pair[side] for pair in asked] for side in (0, 1))
    place = np.arange(len(asked), dtype=np.int32)
    digests = pa.array(pair_digests(queries, documents, place, place), pa.binary(16))
    found = known_of(folder).find(query_keys(queries), digests)
    assert not found.damaged
    np.testing.assert_array_equal(found.score, [expected.get(pair, np.nan) for pair in asked])


def test_a_score_file_names_its_queries_in_its_footer(tmp_path):
    texts = ["two", "one", "two"]
    place = np.arange(3, dtype=np.int32)
    pairs = ScoredPairsOfShard(
        pa.array(pair_digests(texts, ["a", "b", "c"], place, place), pa.binary(16)),
        query_keys(texts),
        np.zeros(3, np.float32),
        np.ones(3, np.int8),
        np.ones(3, np.int32),
        np.zeros(3, np.int32),
    )
    file = tmp_path / "scores.arrow"
    file.write_bytes(score_files.to_bytes(pairs))
    assert score_files.read_query_keys(str(file), None).tolist() == sorted(
        query_keys(["one", "two"]).tolist()
    )
    sound = file.read_bytes()
    for place in range(len(sound) - 60, len(sound)):
        damaged = bytearray(sound)
        damaged[place] ^= 0xFF
        file.write_bytes(damaged)
        score_files.read_query_keys(str(file), None)  # nothing is raised, whatever is read
    for length in (5, 40, len(sound) - 3):
        file.write_bytes(sound[:length])
        assert score_files.read_query_keys(str(file), None) is None
    file.write_bytes(b"nothing of the kind")
    assert score_files.read_query_keys(str(file), None) is None


# What must be the same


CPU = Profile("openvino", "bf16", "cpu", "avx512_bf16", 2, 2048, 2)


def scoring_of(profile: Profile = CPU, digest: str = "d" * 64, **model: Any) -> dict[str, Any]:
    given_settings = {"input.path": "in", "output.path": "out", "model.name": "demo"}
    config = load_config(overrides=given_settings | {f"model.{k}": v for k, v in model.items()})
    return runs.scoring(config.one_model, digest, profile)


OTHER_SETTINGS: dict[str, Any] = {
    "max_length": 256,
    "max_query_tokens": 64,
    "max_document_tokens": 64,
    "truncation": "longest_first",
    "overflow": "windows",
    "window": {"stride": 64, "pool": "mean"},
    "instruction": "find the answer",
    "alibi_slopes": "standard",
    "prompt": "query",
}


@pytest.mark.parametrize("setting", OTHER_SETTINGS)
def test_another_setting_of_the_model_is_another_scoring(setting):
    assert scoring_of(**{setting: OTHER_SETTINGS[setting]}) != scoring_of()


def test_no_setting_of_the_model_is_left_out():
    """name, revision and scorer are in the digest; backend and precision in the profile."""
    elsewhere = {"name", "revision", "scorer", "backend", "precision"}
    assert set(ModelConfig.model_fields) - elsewhere == set(OTHER_SETTINGS)


def test_another_model_is_another_scoring():
    assert scoring_of(digest="e" * 64) != scoring_of()


@pytest.mark.parametrize(
    "changed",
    [
        {"backend": "torch"},
        {"precision": "fp32"},
        {"device": "cuda"},
        {"instructions": "amx_bf16"},
        {"scoring_version": CPU.scoring_version + 1},
    ],
    ids=lambda changed: next(iter(changed)),
)
def test_another_way_to_compute_is_another_scoring(changed):
    assert scoring_of(replace(CPU, **changed)) != scoring_of()


def test_batches_and_threads_are_not():
    """They move a score by less than its precision, as its neighbours in a batch do."""
    assert scoring_of(replace(CPU, token_budget=512, threads=8, streams=4)) == scoring_of()


def test_an_output_that_was_scored_otherwise_is_passed_over_by_name(tmp_path, caplog):
    store_scores(tmp_path / "old", TWO_LISTS)
    record(tmp_path / "old", [{"model": "another"}])
    with caplog.at_level(logging.WARNING, "rankmill"):
        reuse.warn_unfit(reuse.look_at([str(tmp_path / "old")]), {"": SCORING})
    assert f'{tmp_path}/old is reused. What differs: model: "another" -> "tiny"' in caplog.text


# What may serve


def test_of_an_incomplete_output_whole_shards_serve_and_damaged_ones_are_named(tmp_path, caplog):
    folder = store_scores(tmp_path / "old", TWO_LISTS.slice(0, 2), TWO_LISTS.slice(2))
    (folder / "_rankmill/scores/00000.arrow").write_bytes(b"short")
    (found,) = reuse.look_at([str(folder)])
    assert [file.name for file in found.files] == ["_rankmill/scores/00001.arrow"]
    assert found.pairs == 1
    with caplog.at_level(logging.WARNING, "rankmill"):
        reuse.warn_unfit([found], {"": SCORING})
    assert "scores/00000.arrow has 5 bytes" in caplog.text


def test_a_damaged_footer_is_named_and_the_others_serve(shards, tmp_path, caplog):
    folder = store_scores(tmp_path / "old", TWO_LISTS.slice(0, 2), TWO_LISTS.slice(2))
    file = folder / "_rankmill/scores/00000.arrow"
    file.write_bytes(b"x" * file.stat().st_size)
    with caplog.at_level(logging.WARNING, "rankmill"):
        known = known_of(folder)
    assert "scores/00000.arrow is damaged" in caplog.text
    assert shards.compute(tmp_path / "new", TWO_LISTS, known).counters.pairs_reused == 1


def asked_to_reuse(folder: Path, path: str, source: str = "in.parquet") -> Any:
    return load_config(
        overrides={
            "input.path": str(folder / source),
            "output.path": str(folder / "out"),
            "model.name": "demo",
            "reuse": [path],
        }
    )


def test_a_path_without_a_run_is_refused(tmp_path):
    pq.write_table(TWO_LISTS, tmp_path / "in.parquet")
    with pytest.raises(ConfigError, match=r"reuse names .*/typo, where there is no run"):
        prepare(asked_to_reuse(tmp_path, str(tmp_path / "typo")))


@pytest.mark.parametrize("path", ["out", "other/../out", "out/yesterday"])
def test_an_output_cannot_reuse_itself(tmp_path, path):
    pq.write_table(TWO_LISTS, tmp_path / "in.parquet")
    with pytest.raises(ConfigError, match=r"the reused output .* lie inside each other"):
        prepare(asked_to_reuse(tmp_path, str(tmp_path / path)))


def test_a_damaged_record_is_refused(tmp_path):
    pq.write_table(TWO_LISTS, tmp_path / "in.parquet")
    Store(str(tmp_path / "old")).write(runs.RUN, b"{}")
    with pytest.raises(ConfigError, match=r"reuse names .*run.json is damaged") as caught:
        prepare(asked_to_reuse(tmp_path, str(tmp_path / "old")))
    assert caught.value.remedy == "Leave it out of reuse."


# Whole runs


@pytest.fixture
def cluster(ray_cluster: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "SHARD_PAIRS", 16)


def run(
    folder: Path, name: str, source: Path, model: str, old: Sequence[Path] = (), **changed: Any
) -> job.RunResult:
    overrides = {
        "input.path": str(source),
        "output.path": str(folder / name),
        "model.name": model,
        "model.precision": "fp32",
        "compute.workers": 1,
        "reuse": [str(path) for path in old],
    }
    dotted = {key.replace("__", "."): value for key, value in changed.items()}
    return job.rerank(load_config(overrides=overrides | dotted))


def test_a_run_scores_what_has_changed_and_the_same_command_gives_the_same(
    cluster, tmp_path, tiny_model
):
    model = tiny_model("bert")
    table = make_pairs(6, 8)
    pq.write_table(table, tmp_path / "monday.parquet")
    old = run(tmp_path, "monday", tmp_path / "monday.parquet", model, output__top_k=2)

    changed = table.to_pylist()[::-1]
    for row in changed[::10]:
        row["document"] = "changed " + row["document"]
    pq.write_table(pa.Table.from_pylist(changed), tmp_path / "tuesday.parquet")
    source, monday = tmp_path / "tuesday.parquet", tmp_path / "monday"
    new = run(tmp_path, "tuesday", source, model, [monday])
    assert (new.counters.pairs_scored, new.counters.pairs_reused) == (5, 43)
    assert new.manifest["pairs_reused"] == 43
    kept = scores_of(monday)
    assert len(kept) == 12
    today = scores_of(tmp_path / "tuesday")
    assert all(today[pair] == score for pair, score in kept.items() if pair in today)

    parts = {path.name: path.read_bytes() for path in sorted((tmp_path / "tuesday").glob("part*"))}
    assert len(parts) == 3
    # Half of it is lost, and done again.
    for lost in ("_SUCCESS", "part-00001.parquet", "_rankmill/shards/00001.json"):
        (tmp_path / "tuesday" / lost).unlink()
    again = run(tmp_path, "tuesday", source, model, [monday])
    assert again.manifest["shards_resumed"] == 2
    assert {p.name: p.read_bytes() for p in (tmp_path / "tuesday").glob("part*")} == parts
    assert json.loads((tmp_path / "tuesday/_rankmill/run.json").read_text())["identity"]["reuse"]

    # A complete run needs its sources no more; one that is to go on does.
    shutil.rmtree(monday / "_rankmill/scores")
    assert run(tmp_path, "tuesday", source, model, [monday]).counters == new.counters
    (tmp_path / "tuesday/_SUCCESS").unlink()
    (tmp_path / "tuesday/_rankmill/shards/00001.json").unlink()
    with pytest.raises(OutputError, match=r"reuses scores of .*/monday, which has changed since"):
        run(tmp_path, "tuesday", source, model, [monday])
    with pytest.raises(OutputError, match=r"reuse: .* -> nothing"):
        run(tmp_path, "tuesday", source, model)
    assert old.counters.pairs_scored == 48


def test_scores_of_pairs_serve_candidates_by_id_and_a_fused_order(
    cluster: None, tmp_path: Path, free_model: str
) -> None:
    """Scores are kept by texts: whence these come, and what is made of scores, does not matter."""
    table, scorer = make_pairs(4, 5), {"model__scorer": "own_scorers:Poisoned"}
    columns = {
        "pairs": table.column_names,
        "candidates": ["query_id", "doc_id", "bm25_rank"],
        "documents": ["doc_id", "document"],
    }
    tables = {name: table.select(wanted) for name, wanted in columns.items()}
    tables["queries"] = (
        table.select(["query_id", "query"]).group_by(table.column_names[:2]).aggregate([])
    )
    files = {name: tmp_path / f"{name}.parquet" for name in tables}
    for name, content in tables.items():
        pq.write_table(content, files[name])
    monday = run(tmp_path, "monday", files["pairs"], free_model, **scorer)
    texts = {f"input__{name}": str(files[name]) for name in ("queries", "documents")}
    tuesday = run(
        tmp_path,
        "tuesday",
        files["candidates"],
        free_model,
        [tmp_path / "monday"],
        input__layout="ids",
        **scorer,
        **texts,
        rank__fuse={"column": "bm25_rank", "weight": 0.0},
    )
    assert (tuesday.counters.pairs_scored, tuesday.counters.pairs_reused) == (0, 20)
    before, after = (
        {row["doc_id"]: row for row in pq.read_table(done.output).to_pylist()}
        for done in (monday, tuesday)
    )
    assert {doc: row["rerank_score"] for doc, row in after.items()} == {
        doc: row["rerank_score"] for doc, row in before.items()
    }
    assert all(row["rerank_rank"] == row["bm25_rank"] for row in after.values())
