"""Commit by shard: pure, balanced, invisible until it is whole."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st

from rankmill import commit, integrity, markers, output, plan, rows, schema, tokens
from rankmill.attempts import ATTEMPTS, MOST_ATTEMPTS, Attempts
from rankmill.commit import CommitSettings, FinishedShard, ShardSink, commit_shard, finish_shard
from rankmill.config import ColumnNames, InputConfig
from rankmill.envelope import Envelope
from rankmill.errors import OutputError
from rankmill.load import Load
from rankmill.markers import Counters, WrittenFile
from rankmill.read import ShardPieces, read_shards
from rankmill.schema import ORIGIN_ROW
from rankmill.source import open_source
from rankmill.store import Store
from rankmill.tokens import PairRules

COLUMNS = ("query_id", "query", "doc_id", "document")
MODEL = {"rankmill.model.name": "tiny", "rankmill.run": "f" * 64}


def commit_settings(folder: str | Path = "/nowhere", **changed: object) -> CommitSettings:
    fixed = CommitSettings(
        store=Store(str(folder)),
        fingerprint="f" * 64,
        shards=3,
        columns=COLUMNS,
        prefix="rerank_",
        top_k=None,
        min_score=None,
        metadata=MODEL,
    )
    return replace(fixed, **changed)


def read_rows(table: pa.Table, url: str = "/input/a.parquet") -> pa.Table:
    """A table as a read task hands it on."""
    table = table.append_column(ORIGIN_ROW, pa.array(range(table.num_rows), pa.int64()))
    places = json.dumps([[url, 0, table.num_rows]])
    return table.replace_schema_metadata(
        {"places": places, "rows": str(table.num_rows), "seconds": "0.1"}
    )


def scored(
    table: pa.Table,
    score_of: dict[tuple[str, str], float],
    depth: int | None = None,
    shard: int = 0,
) -> Envelope:
    """A shard as it leaves the scoring actor, with given scores in place of a model's.

    Facts and pairs are those that the real checks of the rows lead to.
    """
    checked = rows.check(table, ColumnNames(), True, 1 << 20)
    wanted = np.array(checked.reason.is_null()) & (
        np.full(table.num_rows, True) if depth is None else checked.position < depth
    )
    queries, documents = checked.query_text.to_pylist(), checked.document_text.to_pylist()
    texts = list(zip(queries, documents))
    distinct = list(dict.fromkeys(text for text, want in zip(texts, wanted) if want))
    pair = [distinct.index(text) if want else -1 for text, want in zip(texts, wanted)]
    count = len(distinct)
    digests = tokens.pair_digests(
        [query for query, _ in distinct],
        [document for _, document in distinct],
        np.arange(count, dtype=np.int32),
        np.arange(count, dtype=np.int32),
    )
    zeros = pa.array(np.zeros(count, np.int32))
    cost = {
        "windows": 2 * count,
        "tokens": 7 * count,
        "padded_tokens": 8 * count,
        "degraded": False,
        "seconds": 0.5,
    }
    return Envelope(
        shard,
        rows=table,
        facts=pa.table(
            {
                "query": checked.query,
                "pair": pa.array(pair, pa.int32()),
                "reason": checked.reason,
            }
        ).replace_schema_metadata({"several_texts": str(checked.several_texts), "seconds": "0.2"}),
        pairs=pa.table(
            {
                "digest": pa.array(digests, pa.binary(16)),
                "query_key": tokens.query_keys([query for query, _ in distinct]),
                "reused": pa.nulls(count, pa.float32()).fill_null(np.nan),
                **dict.fromkeys(("tokens", "dropped"), zeros),
            }
        ),
        scores=pa.table(
            {
                "score": pa.array([score_of.get(text, 0.0) for text in distinct], pa.float32()),
                "reason": pa.nulls(len(distinct), pa.string()),
            }
        ).replace_schema_metadata({"cost": json.dumps(cost)}),
    )


def pairs_table(*found: tuple[str | None, str | None, str | None, str | None]) -> pa.Table:
    columns = list(zip(*found)) or [()] * 4
    return pa.table({n: pa.array(c, pa.string()) for n, c in zip(COLUMNS, columns)})


def part_of(envelope: Envelope, settings: CommitSettings) -> pa.Table:
    finished = finish_shard(envelope, settings)
    return pq.read_table(pa.BufferReader(finished.contents[finished.marker.part.name]))


def quarantine_of(envelope: Envelope, settings: CommitSettings) -> pa.Table:
    name = f"_rankmill/quarantine/{envelope.shard:05d}.arrow"
    return pa.ipc.open_file(finish_shard(envelope, settings).contents[name]).read_all()


TWO_LISTS = read_rows(
    pairs_table(
        ("q1", "first", "a", "one"),
        ("q1", "first", "b", "two"),
        ("q1", "first", "c", "three"),
        ("q2", "second", "a", "one"),
        ("q2", "second", "d", None),
    )
)
SCORES = {
    ("first", "one"): -1.0,
    ("first", "two"): 2.0,
    ("first", "three"): 2.0,
    ("second", "one"): 0.5,
}

# The same bytes


def test_equal_shards_give_equal_bytes():
    first = finish_shard(scored(TWO_LISTS, SCORES), commit_settings())
    second = finish_shard(scored(TWO_LISTS, SCORES), commit_settings())
    assert first == second


def test_another_process_gives_the_same_bytes(tmp_path):
    envelope = scored(TWO_LISTS, SCORES)
    handed_over = tmp_path / "shard.pickle"
    handed_over.write_bytes(pickle.dumps((envelope.to_block(), commit_settings())))
    program = (
        "import pickle, sys\n"
        "from rankmill.commit import finish_shard\n"
        "from rankmill.envelope import Envelope\n"
        "block, settings = pickle.load(open(sys.argv[1], 'rb'))\n"
        "sys.stdout.write(finish_shard(Envelope.from_block(block)[0], settings).marker"
        ".to_bytes().decode())"
    )
    environment = os.environ | {"PYTHONHASHSEED": "7"}
    there = subprocess.run(
        [sys.executable, "-c", program, handed_over],
        env=environment,
        capture_output=True,
        check=True,
    )
    # The marker carries the checksum of every file.
    assert there.stdout == finish_shard(envelope, commit_settings()).marker.to_bytes()


def test_a_shard_that_was_sliced_out_of_a_larger_table_gives_the_same_bytes():
    table = TWO_LISTS.replace_schema_metadata(None)
    padded = pa.concat_tables([table, table, table]).slice(5, 5)
    padded = padded.replace_schema_metadata(TWO_LISTS.schema.metadata)
    whole = finish_shard(scored(TWO_LISTS, SCORES), commit_settings())
    assert finish_shard(scored(padded, SCORES), commit_settings()).contents == whole.contents


# The part


def test_a_part_is_ordered_by_query_then_score_and_ties_keep_their_order():
    part = part_of(scored(TWO_LISTS, SCORES), commit_settings())
    assert part.select(["query_id", "doc_id", "rerank_rank"]).to_pylist() == [
        {"query_id": "q1", "doc_id": "b", "rerank_rank": 1},
        {"query_id": "q1", "doc_id": "c", "rerank_rank": 2},
        {"query_id": "q1", "doc_id": "a", "rerank_rank": 3},
        {"query_id": "q2", "doc_id": "a", "rerank_rank": 1},
    ]


def test_a_part_has_the_columns_and_types_of_the_contract():
    part = part_of(scored(TWO_LISTS, SCORES), commit_settings(prefix="ce_"))
    assert part.schema.names[:4] == list(COLUMNS)
    assert {field.name: field.type for field in part.schema if field.name.startswith("ce_")} == {
        "ce_score": pa.float32(),
        "ce_sigmoid": pa.float32(),
        "ce_rank": pa.int32(),
        "ce_tokens_dropped": pa.int32(),
    }


def test_only_the_wanted_columns_are_written():
    part = part_of(scored(TWO_LISTS, SCORES), commit_settings(columns=("doc_id",)))
    assert part.column_names == ["doc_id", *("rerank_" + name for name in schema.RESULT_COLUMNS)]


def test_the_metadata_names_the_model_and_nothing_of_the_input():
    pandas = TWO_LISTS.replace_schema_metadata(TWO_LISTS.schema.metadata | {b"pandas": b"{}"})
    metadata = part_of(scored(pandas, SCORES), commit_settings()).schema.metadata
    assert metadata == {key.encode(): value.encode() for key, value in MODEL.items()}


def test_rows_beyond_the_depth_keep_their_order_below_the_scored_ones_without_a_score():
    part = part_of(scored(TWO_LISTS, SCORES, depth=1), commit_settings()).slice(0, 3)
    assert part.column("doc_id").to_pylist() == ["a", "b", "c"]
    assert part.column("rerank_rank").to_pylist() == [1, 2, 3]
    for name in ("rerank_score", "rerank_sigmoid", "rerank_tokens_dropped"):
        assert part.column(name).is_null().to_pylist() == [False, True, True]


def test_a_shard_without_rows_is_a_part_with_the_schema():
    part = part_of(scored(read_rows(pairs_table()), {}), commit_settings())
    assert part.num_rows == 0
    assert part.schema.equals(part_of(scored(TWO_LISTS, SCORES), commit_settings()).schema)


EXTRA = {
    "dictionary": pa.array(["x", "y", "x", None, "y"]).dictionary_encode(),
    "lists": pa.array([[1, 2], [], None, [3], [4]], pa.list_(pa.int16())),
    "struct": pa.array([{"a": 1, "b": "x"}] * 5),
    "large": pa.array(["l"] * 5, pa.large_string()),
    "time": pa.array([1] * 5, pa.timestamp("us", "UTC")),
    "map": pa.array([[("k", 1)]] * 5, pa.map_(pa.string(), pa.int64())),
    "decimal": pa.array([1] * 5, pa.decimal128(9, 2)),
    "vector": pa.array([[1.0, 2.0]] * 5, pa.list_(pa.float32(), 2)),
}


@pytest.mark.parametrize("name", EXTRA)
def test_other_columns_pass_with_their_types_and_values(name):
    table = TWO_LISTS.append_column(name, EXTRA[name])
    settings = commit_settings(columns=("doc_id", name))
    part = part_of(scored(table, SCORES), settings)
    assert part.schema.field(name).type == EXTRA[name].type
    values = dict(zip(["a", "b", "c"], EXTRA[name].to_pylist()))
    assert part.column(name).to_pylist()[:3] == [values[doc] for doc in ("b", "c", "a")]
    quarantined = quarantine_of(scored(table, SCORES), settings)
    assert quarantined.schema.field(name).type == EXTRA[name].type
    assert quarantined.column(name).to_pylist() == [EXTRA[name].to_pylist()[4]]


# The counters

TEXTS = st.sampled_from([None, "", "one", "two", "three"])
VALUES = st.sampled_from([float("nan"), float("inf"), -3.0, 0.0, 0.0, 2.5])


@st.composite
def shards(draw: st.DrawFn) -> Envelope:
    """Whole candidate lists with null, empty, repeated and unscorable rows."""
    found = []
    for number in range(draw(st.integers(0, 4))):
        query_id = draw(st.sampled_from([f"q{number}", f"q{number}", None]))
        for row in draw(st.lists(TEXTS, max_size=6)):
            query = draw(st.sampled_from(["first", "first", "second", None]))
            found.append((query_id, query, draw(st.sampled_from(["d", None])), row))
    pairs = {(query, document) for _, query, _, document in found}
    values = {pair: draw(VALUES) for pair in sorted(pairs, key=str)}
    depth = draw(st.sampled_from([None, 1, 3]))
    return scored(read_rows(pairs_table(*found)), values, depth)


@examples(max_examples=150, deadline=None)
@given(
    envelope=shards(),
    top_k=st.sampled_from([None, 1, 2]),
    min_score=st.sampled_from([None, 0.0, 9.0]),
)
def test_every_row_is_written_or_below_the_cut_or_in_quarantine(envelope, top_k, min_score):
    settings = commit_settings(top_k=top_k, min_score=min_score)
    finished = finish_shard(envelope, settings)
    counters, contents = finished.marker.counters, finished.contents
    part = pq.read_table(pa.BufferReader(contents[finished.marker.part.name]))
    name = "_rankmill/quarantine/00000.arrow"
    bad = pa.ipc.open_file(contents[name]).read_all() if name in contents else None
    stored = pa.ipc.open_file(contents["_rankmill/scores/00000.arrow"]).read_all()

    assert counters.rows_in == envelope.rows.num_rows
    assert counters.rows_out == part.num_rows
    assert counters.rows_quarantined == (0 if bad is None else bad.num_rows)
    assert counters.rows_in == (
        counters.rows_out + counters.rows_below_cut + counters.rows_quarantined
    )
    assert counters.pairs_scored == stored.num_rows
    assert stored.schema.equals(schema.SCORES)
    assert np.isfinite(stored.column("score").to_numpy()).all()
    assert counters.quarantine == ({} if bad is None else Counter(bad["reason"].to_pylist()))

    before = Counter(map(str, envelope.rows.select(COLUMNS).to_pylist()))
    after = Counter(map(str, part.select(COLUMNS).to_pylist()))
    if bad is not None:
        after += Counter(map(str, bad.select(COLUMNS).to_pylist()))
    assert after <= before
    assert (before - after).total() == counters.rows_below_cut
    assert [file.rows for file in finished.marker.files[:2]] == [part.num_rows, stored.num_rows]


def test_lost_rows_are_noticed():
    balanced = Counters(rows_in=3, rows_out=2, rows_quarantined=1, pairs_scored=2)
    balanced.refuse_imbalance()
    with pytest.raises(AssertionError, match="4 rows came in, 3 are accounted for"):
        replace(balanced, rows_in=4).refuse_imbalance()
    with pytest.raises(AssertionError, match="3 rows came in, 2 were dealt with"):
        replace(balanced, pairs_scored=1).refuse_imbalance()


# Quarantine


def test_quarantine_holds_whole_rows_with_reason_and_origin():
    table = read_rows(
        pairs_table(
            ("q1", "first", "a", "one"),
            (None, "first", "b", "two"),
            ("q1", "", "c", "three"),
            ("q1", "first", "d", None),
            ("q1", "first", "e", "nan"),
        )
    )
    envelope = scored(table, {("first", "nan"): float("nan")}, shard=2)
    assert quarantine_of(envelope, commit_settings()).to_pylist() == [
        {
            "query_id": query_id,
            "query": query,
            "doc_id": doc_id,
            "document": document,
            "reason": reason,
            "origin_file": "/input/a.parquet",
            "origin_row": row,
        }
        for row, query_id, query, doc_id, document, reason in [
            (1, None, "first", "b", "two", rows.NO_QUERY_ID),
            (2, "q1", "", "c", "three", rows.NO_QUERY),
            (3, "q1", "first", "d", None, rows.NO_DOCUMENT),
            (4, "q1", "first", "e", "nan", rows.BAD_SCORE),
        ]
    ]


def test_columns_of_the_input_named_like_an_origin_stay_beside_it():
    table = TWO_LISTS.append_column("reason", pa.array(list("vwxyz")))
    found = quarantine_of(scored(table, SCORES), commit_settings())
    assert found.column("reason").to_pylist() == ["z"]
    assert found.column("quarantine_reason").to_pylist() == [rows.NO_DOCUMENT]


def test_rows_that_an_attempt_which_died_has_set_aside_are_not_there_twice(tmp_path):
    settings = commit_settings(tmp_path)
    stale = tmp_path / "_rankmill/quarantine/00000.arrow"
    stale.parent.mkdir(parents=True)
    stale.write_bytes(b"of an attempt that was killed before its marker")
    healthy = read_rows(pairs_table(("q1", "first", "a", "one")))
    commit_shard(scored(healthy, {("first", "one"): 1.0}), settings)
    assert not stale.exists()


def test_a_shard_whose_files_cannot_be_made_leaves_a_note_and_the_others_are_committed(
    tmp_path, monkeypatch
):
    made = commit.finish_shard

    def finish(envelope: Envelope, settings: CommitSettings) -> FinishedShard:
        if envelope.shard == 0:
            raise pa.ArrowInvalid("offset overflow while concatenating arrays")
        return made(envelope, settings)

    monkeypatch.setattr(commit, "finish_shard", finish)
    settings = commit_settings(tmp_path)
    blocks = [scored(TWO_LISTS, SCORES, shard=number).to_block() for number in (0, 1)]
    assert ShardSink(settings).write(blocks, None) == 2
    assert list(markers.read_failures(settings.store)) == [0]
    assert list(markers.read_all(settings.store)[0]) == [1]


def test_a_shard_over_which_committing_processes_died_is_given_up(tmp_path):
    settings = commit_settings(tmp_path)
    settings.store.write(f"{ATTEMPTS}/00000.committing", b"%d" % MOST_ATTEMPTS)
    ShardSink(settings).write([scored(TWO_LISTS, SCORES).to_block()], None)
    assert "processes died while they were committing" in markers.read_failures(settings.store)[0]


def test_a_shard_over_which_reading_processes_died_is_given_up(tmp_path, monkeypatch):
    table = pairs_table(*[(f"q{n // 6}", "first", "d", "x") for n in range(24)])
    (tmp_path / "in").mkdir()
    pq.write_table(table, tmp_path / "in/a.parquet")
    monkeypatch.setattr(plan, "SHARD_PAIRS", 6)
    Store(str(tmp_path)).write(f"{ATTEMPTS}/00001.reading", b"%d" % MOST_ATTEMPTS)
    found = read_input(tmp_path / "in", tmp_path)
    assert [one.shard for one in found if one.error is None] == [0, 2, 3]
    assert "processes died while they were reading" in found[1].error


def read_input(folder: Path, notes: Path | None = None) -> list[Envelope]:
    source = open_source(InputConfig(path=str(folder)))
    runs = [plan.find_runs(source, group) for group in source.row_groups]
    whole = plan.make_plan(source, runs, [Load(1.0, PairRules(512, "document"))])
    shards = map(whole.shard, range(len(whole)))
    pieces = [ShardPieces(shard, tuple(whole.pieces(shard))) for shard in shards]
    noted = Store(str(notes or folder.parent / "notes"))
    return list(read_shards(source, pieces, Attempts(noted, "reading")))


def test_the_origin_is_the_row_of_the_file_for_lists_that_cross_files(tmp_path, monkeypatch):
    table = pairs_table(
        *[(f"q{n // 6}", "first", "d", None if n % 5 == 3 else "x") for n in range(24)]
    )
    for name, start, stop in (("a", 0, 10), ("b", 10, 14), ("c", 14, 24)):
        pq.write_table(
            table.slice(start, stop - start), tmp_path / f"{name}.parquet", row_group_size=3
        )
    monkeypatch.setattr(plan, "SHARD_PAIRS", 6)
    found = [
        quarantine_of(scored(e.rows, {}, shard=e.shard), commit_settings())
        for e in read_input(tmp_path)
    ]
    assert len(found) == 4
    places = [
        (Path(row["origin_file"]).stem, row["origin_row"])
        for bad in found
        for row in bad.to_pylist()
    ]
    assert places == [("a", 3), ("a", 8), ("b", 3), ("c", 4), ("c", 9)]


def test_the_origin_of_a_nested_candidate_is_the_row_of_its_query(tmp_path):
    nested = pa.table(
        {
            "query_id": ["q0", "q1", "q2", "q3"],
            "query": ["first"] * 4,
            "candidates": [
                [{"doc_id": "a", "document": "one"}, {"doc_id": "b", "document": None}],
                [],
                None,
                [{"doc_id": "c", "document": ""}, {"doc_id": "d", "document": "two"}],
            ],
        }
    )
    pq.write_table(nested, tmp_path / "n.parquet", row_group_size=2)
    [envelope] = read_input(tmp_path)
    shard = scored(envelope.rows, {})
    bad = quarantine_of(shard, commit_settings())
    found = bad.select(["query_id", "doc_id", "origin_row"]).to_pylist()
    assert [tuple(row.values()) for row in found] == [("q0", "b", 0), ("q3", "c", 3)]
    counters = finish_shard(shard, commit_settings()).marker.counters
    assert (counters.rows_in, counters.queries, counters.queries_empty) == (4, 2, 2)


# Files and markers


def test_a_committed_shard_is_its_part_scores_quarantine_and_marker(tmp_path):
    commit_shard(scored(TWO_LISTS, SCORES, shard=1), commit_settings(tmp_path))
    assert {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.*")} == {
        "part-00001.parquet",
        "_rankmill/scores/00001.arrow",
        "_rankmill/quarantine/00001.arrow",
        "_rankmill/shards/00001.json",
    }


def test_markers_survive_being_stored(tmp_path):
    settings = commit_settings(tmp_path)
    envelope = scored(TWO_LISTS, SCORES, shard=2)
    commit_shard(envelope, settings)
    found, expected = (
        markers.read_markers(settings.store)[2],
        finish_shard(envelope, settings).marker,
    )
    assert found.stages.keys() == {"read", "tokenize", "rank", "write", "ended"}
    assert replace(found, stages=expected.stages) == expected, "all but the times of the commit"
    assert markers.read_markers(settings.store, known=[2]) == {}


@pytest.mark.parametrize("content", [b"", b"null", b"{}", b"[1]", b"\xff", b'{"files": 3}'])
def test_a_file_that_is_no_marker_vouches_for_nothing(tmp_path, content):
    store = Store(str(tmp_path))
    store.write(markers.marker_name(4), content)
    assert markers.read_markers(store) == {}
    with pytest.raises(OutputError, match="is not a shard marker"):
        markers.Marker.from_bytes("00004.json", content)


def test_a_failed_shard_leaves_a_note_and_no_marker(tmp_path):
    settings = commit_settings(tmp_path)
    commit_shard(Envelope(1, error="the row group cannot be decoded"), settings)
    assert markers.read_failures(settings.store) == {1: "the row group cannot be decoded"}
    assert markers.read_markers(settings.store) == {}


def test_markers_of_shards_that_will_be_computed_are_removed_first(tmp_path):
    settings = commit_settings(tmp_path)
    for shard in (0, 1):
        commit_shard(scored(TWO_LISTS, SCORES, shard=shard), settings)
    output.begin(settings.store, None, pending=[1, 2])
    assert list(markers.read_markers(settings.store)) == [0]


def test_a_written_file_is_described_by_its_content():
    content = b"any bytes"
    described = WrittenFile.of("part-00000.parquet", content, rows=2)
    assert described.size == len(content)
    assert described.sha256 == hashlib.sha256(content).hexdigest()


# Crashes

COMMIT_MANY = """
import pickle, sys
from dataclasses import replace
from rankmill.commit import commit_shard
from rankmill.envelope import Envelope
block, settings = pickle.load(open(sys.argv[1], "rb"))
[envelope] = Envelope.from_block(block)
print("ready", flush=True)
for shard in range(10_000):
    commit_shard(replace(envelope, shard=shard), settings)
"""


def test_a_process_killed_while_committing_leaves_whole_files_or_none(tmp_path):
    output = tmp_path / "output"
    settings = commit_settings(output)
    envelope = scored(TWO_LISTS, SCORES)
    handed_over = tmp_path / "shard.pickle"
    handed_over.write_bytes(pickle.dumps((envelope.to_block(), settings)))
    process = subprocess.Popen(
        [sys.executable, "-c", COMMIT_MANY, handed_over], stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    time.sleep(0.4)
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()

    found = markers.read_markers(settings.store)
    assert found
    listed = integrity.listed(settings.store, settings.store.listing())
    for shard, marker in found.items():
        assert integrity.glance(marker, settings.fingerprint, shard + 1, listed) is None
        expected = finish_shard(replace(envelope, shard=shard), settings).marker
        assert replace(marker, stages=expected.stages) == expected
    visible = list(output.rglob("*.parquet"))
    assert len(found) <= len(visible) <= len(found) + 1
    for path in visible:
        assert pq.read_table(path).num_rows == found[0].part.rows
