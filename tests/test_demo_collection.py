"""The demo's collection and questions hold on the interpreter that runs the tests."""

from __future__ import annotations

import os
import subprocess
import sys

import pyarrow as pa
import pyarrow.compute as pc
import pytest

from rankmill.demo.collection import MODULES, SCHEMA, build_collection


@pytest.fixture(scope="module")
def collection() -> pa.Table:
    return build_collection()


def test_collection_is_several_thousand_documents(collection: pa.Table) -> None:
    assert collection.schema == SCHEMA
    assert 4000 < collection.num_rows < 8000
    assert sum(column.null_count for column in collection.columns) == 0


def test_every_document_has_its_own_id_and_text(collection: pa.Table) -> None:
    for column in ("doc_id", "text"):
        assert pc.count_distinct(collection[column]).as_py() == collection.num_rows


def test_collection_is_the_same_in_every_process() -> None:
    """In fresh ones: what other tests do to this process may show in it."""
    program = (
        "import hashlib; from rankmill.demo.collection import build_collection\n"
        "print(hashlib.sha256(repr(build_collection().to_pylist()).encode()).hexdigest())"
    )

    def digest(seed: str) -> str:
        environment = os.environ | {"PYTHONHASHSEED": seed}
        command = [sys.executable, "-c", program]
        return subprocess.run(command, env=environment, capture_output=True, text=True).stdout

    assert len(digest("1")) == 65
    assert digest("1") == digest("2")


def test_titles_carry_signatures_and_no_addresses(collection: pa.Table) -> None:
    titles = dict(
        zip(collection["doc_id"].to_pylist(), collection["title"].to_pylist(), strict=True)
    )
    assert titles["textwrap.dedent"] == "textwrap.dedent(text)"
    assert titles["itertools"] == "itertools"
    assert not [title for title in titles.values() if " at 0x" in title]


def test_no_module_with_side_effects_is_read() -> None:
    assert not {"antigravity", "this", "idlelib", "turtle", "tkinter", "test"} & set(MODULES)


def test_stripped_docstrings_are_named_as_the_cause() -> None:
    program = "from rankmill.demo.collection import build_collection; build_collection()"
    result = subprocess.run([sys.executable, "-OO", "-c", program], capture_output=True, text=True)
    assert "strips them (-OO" in result.stderr


def test_every_label_names_a_document(collection: pa.Table) -> None:
    pytest.importorskip("bm25s")
    from rankmill.demo.candidates import read_questions

    queries, qrels = read_questions()
    assert queries.num_rows >= 100
    assert set(qrels["query_id"].to_pylist()) == set(queries["query_id"].to_pylist())
    assert not set(qrels["doc_id"].to_pylist()) - set(collection["doc_id"].to_pylist())
    assert len(
        set(zip(*qrels.select(["query_id", "doc_id"]).to_pydict().values(), strict=True))
    ) == (qrels.num_rows)


def test_candidates_are_ranked_lists_of_fifty(collection: pa.Table) -> None:
    pytest.importorskip("bm25s")
    from rankmill.demo.candidates import CANDIDATES_SCHEMA, build_demo

    candidates, qrels = build_demo(depth=50)
    assert candidates.schema == CANDIDATES_SCHEMA
    lists = candidates.group_by("query_id").aggregate(
        [("bm25_rank", "max"), ("bm25_rank", "count")]
    )
    assert pc.all(pc.equal(lists["bm25_rank_max"], lists["bm25_rank_count"])).as_py()
    assert pc.max(lists["bm25_rank_max"]).as_py() == 50
    assert set(qrels["query_id"].to_pylist()) >= set(candidates["query_id"].to_pylist())
