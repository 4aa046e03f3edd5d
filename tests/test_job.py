"""The job end to end on small tables: DESIGN's table of cases, layouts, cuts, counters."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from conftest import make_pairs
from rankmill import Scorer, cluster, markers, pipeline, plan
from rankmill.backend import Resolved
from rankmill.config import load_config
from rankmill.errors import ConfigError, InputError, OutputError, RunFailed
from rankmill.job import RunResult, rerank
from rankmill.pool import Capacity
from rankmill.prepared import prepare
from rankmill.progress import Progress
from rankmill.store import Store

pytestmark = pytest.mark.usefixtures("ray_cluster")
Write = Callable[..., str]


class Job:
    """Runs jobs below a test's folder with a tiny model."""

    def __init__(self, folder: Path, model: str) -> None:
        self.folder, self.model = folder, model

    def config(self, path: str | list[str], **settings: Any) -> Any:
        return load_config(
            overrides={
                "input.path": path,
                "output.path": str(self.folder / "out"),
                "model.name": self.model,
                "model.precision": "fp32",
                "compute.workers": 1,  # each worker takes seconds to import torch
            }
            | {key.replace("__", "."): value for key, value in settings.items()}
        )

    def run(self, path: str | list[str], **settings: Any) -> tuple[RunResult, pa.Table]:
        result = rerank(self.config(path, **settings))
        return result, pq.read_table(result.output)

    def quarantine(self) -> pa.Table:
        files = sorted((self.folder / "out/_rankmill/quarantine").glob("*.arrow"))
        return pa.concat_tables([pa.ipc.open_file(file).read_all() for file in files])


@pytest.fixture
def job(tmp_path: Path, tiny_model: Callable[[str], str]) -> Job:
    return Job(tmp_path, tiny_model("bert"))


def test_a_table_comes_back_scored_and_ranked(job: Job, write_pairs: Write) -> None:
    table = make_pairs(5, 7)
    result, ranked = job.run(write_pairs(table))

    assert ranked.column_names == [
        *table.column_names,
        *(f"rerank_{name}" for name in ("score", "sigmoid", "rank", "tokens_dropped")),
    ]
    assert (Path(result.output) / "_SUCCESS").exists()
    assert result.counters.rows_in == result.counters.rows_out == result.counters.pairs_scored == 35
    assert result.counters.queries == 5
    # Queries in input order, ranks 1..n within each, scores falling.
    assert ranked["query_id"].to_pylist() == sorted(table["query_id"].to_pylist())
    assert ranked["rerank_rank"].to_pylist() == list(range(1, 8)) * 5
    scores = ranked["rerank_score"].to_numpy().reshape(5, 7)
    assert (np.diff(scores) <= 0).all()

    by_doc = dict(zip(ranked["doc_id"].to_pylist(), ranked["rerank_score"].to_pylist()))
    pairs = list(zip(table["query"].to_pylist(), table["document"].to_pylist()))
    expected = Scorer(job.model, precision="fp32", device="cpu").score(pairs)
    found = np.array([by_doc[doc] for doc in table["doc_id"].to_pylist()])
    np.testing.assert_allclose(found, expected, atol=1e-5)
    raw = ranked["rerank_score"].to_numpy().astype(np.float64)
    np.testing.assert_allclose(ranked["rerank_sigmoid"].to_numpy(), 1 / (1 + np.exp(-raw)), 1e-6)


def test_bad_rows_go_to_quarantine_and_good_ones_come_out(job: Job, write_pairs: Write) -> None:
    table = pa.table(
        {
            "query_id": ["a", "a", None, "a", "b", "b", "b"],
            "query": ["q", "q", "q", None, "r", "r", "r"],
            "doc_id": ["1", None, "3", "4", "5", "6", "6"],
            "document": ["one", "two", "three", "four", "", "six", "six"],
        }
    )
    result, ranked = job.run(write_pairs(table))
    counters = result.counters
    assert (counters.rows_in, counters.rows_out, counters.rows_quarantined) == (7, 4, 3)
    assert counters.pairs_duplicate == 1, "equal pairs are scored once and both come out"
    assert ranked["doc_id"].to_pylist().count("6") == 2
    assert None in ranked["doc_id"].to_pylist()
    bad = job.quarantine()
    assert dict(zip(bad["doc_id"].to_pylist(), bad["reason"].to_pylist())) == {
        "3": "query_id is null",
        "4": "query is null or empty",
        "5": "document is null or empty",
    }
    assert bad["origin_row"].to_pylist() == [2, 3, 4]
    assert counters.quarantine == {
        "document is null or empty": 1,
        "query is null or empty": 1,
        "query_id is null": 1,
    }


def test_without_a_query_id_equal_texts_are_one_query(job: Job, write_pairs: Write) -> None:
    table = make_pairs(3, 4).drop_columns(["query_id"])
    result, ranked = job.run(write_pairs(table))
    assert result.counters.queries == 3
    assert ranked["rerank_rank"].to_pylist() == [1, 2, 3, 4] * 3


def test_one_id_with_two_texts_is_scored_by_each_and_counted(job: Job, write_pairs: Write) -> None:
    table = pa.table(
        {
            "query_id": [1, 1, 1],
            "query": ["heat transfer", "slip flow", "slip flow"],
            "doc_id": [1, 2, 3],
            "document": ["a plate", "a plate", "shear"],
        }
    )
    result, ranked = job.run(write_pairs(table))
    assert result.counters.queries_with_several_texts == 1
    by_doc = dict(zip(ranked["doc_id"].to_pylist(), ranked["rerank_score"].to_pylist()))
    alone = Scorer(job.model, precision="fp32").score([("slip flow", "a plate")])[0]
    assert by_doc[2] == pytest.approx(alone, abs=1e-5)
    assert by_doc[1] != pytest.approx(by_doc[2], abs=1e-5)


def test_nested_lists_are_flattened_and_empty_ones_counted(job: Job, write_pairs: Write) -> None:
    candidate = pa.struct([("doc_id", pa.int64()), ("document", pa.string()), ("n", pa.int8())])
    table = pa.table(
        {
            "query_id": ["a", "b", "c"],
            "query": ["first query", "second query", "third query"],
            "candidates": pa.array(
                [
                    [
                        {"doc_id": 1, "document": "one", "n": 1},
                        {"doc_id": 2, "document": None, "n": 2},
                    ],
                    [],
                    [{"doc_id": 3, "document": "three", "n": 3}],
                ],
                pa.list_(candidate),
            ),
            "tags": [["x"], [], ["y", "z"]],
        }
    )
    result, ranked = job.run(write_pairs(table))
    counters = result.counters
    assert (counters.rows_in, counters.rows_out, counters.rows_quarantined) == (3, 2, 1)
    assert counters.queries_empty == 1
    assert ranked.column_names[:6] == ["query_id", "query", "tags", "doc_id", "document", "n"]
    assert ranked["tags"].to_pylist() == [["x"], ["y", "z"]]
    assert job.quarantine()["origin_row"].to_pylist() == [0]


def test_other_columns_pass_with_their_types(job: Job, write_pairs: Write) -> None:
    extra = {
        "list": pa.array([[1, 2], None], pa.list_(pa.int16())),
        "struct": pa.array([{"a": 1, "b": ["x"]}, None]),
        "map": pa.array([[("k", 1)], None], pa.map_(pa.string(), pa.int32())),
        "dictionary": pa.array(["x", "y"]).dictionary_encode(),
        "decimal": pa.array([1, 2], pa.decimal128(12, 2)),
        "time": pa.array([0, 1], pa.timestamp("us", "UTC")),
        "large": pa.array(["x", "y"], pa.large_string()),
        "bytes": pa.array([b"\x00", b"\xff"], pa.binary()),
        "a name with spaces é": pa.array([1.5, None]),
    }
    table = make_pairs(1, 2)
    for name, values in extra.items():
        table = table.append_column(name, values)
    _, ranked = job.run(write_pairs(table))
    again = ranked.sort_by("bm25_rank")
    for name, values in extra.items():
        assert ranked.schema.field(name).type == values.type, name
        assert again[name].to_pylist() == values.to_pylist(), name


def test_cuts_limit_what_is_written_not_what_is_scored(job: Job, write_pairs: Write) -> None:
    path = write_pairs(make_pairs(4, 6))
    full, everything = job.run(path)
    middle = float(np.median(everything["rerank_score"].to_numpy()))
    result, ranked = job.run(
        path,
        output__path=str(job.folder / "cut"),
        output__top_k=3,
        output__min_score=middle,
        output__columns=["doc_id"],
        output__column_prefix="x_",
    )
    assert ranked.column_names == ["doc_id", "x_score", "x_sigmoid", "x_rank", "x_tokens_dropped"]
    assert result.counters.pairs_scored == full.counters.pairs_scored == 24
    assert result.counters.rows_out + result.counters.rows_below_cut == 24
    kept = [
        (doc, score)
        for doc, score, rank in zip(
            everything["doc_id"].to_pylist(),
            everything["rerank_score"].to_pylist(),
            everything["rerank_rank"].to_pylist(),
        )
        if rank <= 3 and score >= middle
    ]
    assert list(zip(ranked["doc_id"].to_pylist(), ranked["x_score"].to_pylist())) == kept


def test_depth_scores_the_first_and_keeps_the_rest_below(job: Job, write_pairs: Write) -> None:
    result, ranked = job.run(write_pairs(make_pairs(2, 5)), input__depth=3)
    assert result.counters.pairs_scored == 6
    assert result.counters.pairs_beyond_depth == 4
    assert ranked["rerank_rank"].to_pylist() == [1, 2, 3, 4, 5] * 2
    below = ranked.slice(3, 2)
    assert below["bm25_rank"].to_pylist() == [4, 5]
    assert below["rerank_score"].null_count == below["rerank_sigmoid"].null_count == 2


def test_limit_takes_the_first_queries(job: Job, write_pairs: Write) -> None:
    result, ranked = job.run(write_pairs(make_pairs(9, 3)), input__limit=2)
    assert result.counters.queries == 2
    assert set(ranked["query_id"].to_pylist()) == {"q0000", "q0001"}


def test_lists_cross_files_and_row_groups(
    job: Job, write_pairs: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plan, "SHARD_PAIRS", 30)
    table = make_pairs(12, 9)
    whole = write_pairs(table, "whole/all.parquet")
    for number, (start, length) in enumerate([(0, 40), (40, 1), (41, 50), (91, 17)]):
        write_pairs(table.slice(start, length), f"parts/{number}.parquet", row_group_size=7)
    one, first = job.run(whole)
    many, second = job.run(str(job.folder / "parts"), output__path=str(job.folder / "out2"))
    assert len(one.files) == len(many.files) == 4
    assert first.equals(second)


def test_files_with_more_columns_and_wider_integers_are_unified(
    job: Job, write_pairs: Write
) -> None:
    first, second = make_pairs(1, 3), make_pairs(1, 3)
    second = second.set_column(0, "query_id", pa.array(["z"] * 3)).append_column(
        "extra", pa.array([1, 2, 3])
    )
    second = second.set_column(4, "bm25_rank", second["bm25_rank"].cast(pa.int64()))
    write_pairs(first, "many/a.parquet")
    write_pairs(second, "many/b.parquet")
    _, ranked = job.run(str(job.folder / "many"))
    assert ranked.schema.field("bm25_rank").type == pa.int64()
    assert ranked["extra"].null_count == 3


def test_zero_rows_give_one_empty_part(job: Job, write_pairs: Write) -> None:
    result, ranked = job.run(write_pairs(make_pairs(1, 1).slice(0, 0)))
    assert len(result.files) == 1
    assert ranked.num_rows == 0
    assert "rerank_score" in ranked.column_names
    assert (Path(result.output) / "_SUCCESS").exists()


def test_only_bad_rows_give_an_empty_part_and_full_quarantine(job: Job, write_pairs: Write) -> None:
    table = make_pairs(1, 3).set_column(0, "query_id", pa.nulls(3, pa.string()))
    result, ranked = job.run(write_pairs(table))
    assert ranked.num_rows == 0
    assert result.counters.rows_quarantined == 3


def test_manifest_and_run_record(job: Job, write_pairs: Write) -> None:
    result, _ = job.run(write_pairs(make_pairs(3, 3)))
    folder = Path(result.output) / "_rankmill"
    assert json.loads((folder / "manifest.json").read_text()) == result.manifest
    record = json.loads((folder / "run.json").read_text())
    assert record["fingerprint"] == result.manifest["fingerprint"]
    assert record["plan"]["pairs"] == 9
    assert {"contract_version", "seconds", "pairs_per_second", "tokens", "padded_tokens"} <= set(
        result.manifest
    )
    assert not list(Path(result.output).glob("_rankmill/**/*.parquet"))
    metadata = pq.read_schema(result.files[0]).metadata
    assert metadata[b"rankmill.model.digest"].decode() == record["model"]["digest"]
    scores = pa.ipc.open_file(folder / "scores/00000.arrow").read_all()
    assert scores.num_rows == 9
    assert scores.schema.field("pair").type == pa.binary(16)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"input__columns__document": "body"}, "column body"),
        ({"output__columns": ["nope"]}, "nope"),
        ({"output__column_prefix": "bm25_"}, "bm25_rank"),
        ({"input__layout": "nested"}, "candidates"),
    ],
)
def test_what_the_input_does_not_have_is_named(
    job: Job, write_pairs: Write, settings: dict[str, Any], message: str
) -> None:
    path = write_pairs(make_pairs(1, 1))
    with pytest.raises((InputError, ConfigError), match=message):
        prepare(job.config(path, **settings))


@pytest.mark.parametrize(("asked", "told"), [("auto", True), ("cuda", False)])
def test_gpus_that_the_shards_were_not_cut_for_are_told_of(
    asked: str,
    told: bool,
    job: Job,
    write_pairs: Write,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    one = Capacity((4.0,), (1.0,), ("a node",), (float(1 << 34),), ({},))
    monkeypatch.setattr(cluster, "scoring_capacity", lambda _: one)

    def stop(*_: object) -> Resolved:
        raise ConfigError("far enough")

    monkeypatch.setattr(pipeline, "resolve", stop)
    with pytest.raises(ConfigError, match="far enough"):
        rerank(job.config(write_pairs(make_pairs(2, 3)), compute__device=asked))
    assert ("With compute.device: cuda a new output gets larger ones" in caplog.text) is told


def test_output_inside_input_is_refused(job: Job, write_pairs: Write) -> None:
    write_pairs(make_pairs(1, 1))
    folder = job.folder / "input"
    for inside in (folder / "out", folder, job.folder):
        with pytest.raises(ConfigError, match="inside each other"):
            prepare(job.config(str(folder), output__path=str(inside)))


def test_a_folder_with_other_files_is_not_written_to(job: Job, write_pairs: Write) -> None:
    path = write_pairs(make_pairs(1, 1))
    (job.folder / "out").mkdir()
    (job.folder / "out" / "precious.parquet").write_bytes(b"x")
    with pytest.raises(Exception, match=r"precious\.parquet"):
        prepare(job.config(path))


def test_a_damaged_part_that_cannot_be_computed_again_is_no_success(
    job: Job, write_pairs: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plan, "SHARD_PAIRS", 30)
    path = write_pairs(make_pairs(10, 6), row_group_size=30)
    done, _ = job.run(path)
    assert len(done.files) == 2
    Path(done.files[1]).write_bytes(b"damaged")
    stat = Path(path).stat()
    content = bytearray(Path(path).read_bytes())
    first = pq.read_metadata(path).row_group(1).column(3)
    start = first.dictionary_page_offset or first.data_page_offset
    content[start : start + 40] = b"\xff" * 40
    Path(path).write_bytes(bytes(content))
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))  # rotten, not replaced

    with pytest.raises(RunFailed, match="1 of 2 shards failed"):
        rerank(job.config(path))
    assert not (job.folder / "out" / "_SUCCESS").exists()
    assert list(markers.read_markers(Store(str(job.folder / "out")))) == [0]
    report = (job.folder / "out" / "_rankmill" / "report.html").read_text()
    assert "1 of 2 shards are committed" in report


def test_an_output_that_takes_no_more_files_ends_the_run_in_words(
    job: Job, write_pairs: Write, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(plan, "SHARD_PAIRS", 6)
    path = write_pairs(make_pairs(10, 6))
    temporary = job.folder / "out/_rankmill/tmp"

    def fill(progress: Progress) -> None:
        """As a full disk does, it lets nothing be written from now on."""
        if temporary.is_dir():
            shutil.rmtree(temporary)
            temporary.write_bytes(b"")

    with pytest.raises(RunFailed, match=r"out cannot be written to any more: .*tmp") as refused:
        rerank(job.config(path), listener=fill)
    assert "the same command resumes" in str(refused.value)
    assert "Traceback" not in "".join(capfd.readouterr())
    temporary.unlink()
    assert job.run(path)[1].num_rows == 60


def test_the_order_of_the_inputs_names_the_run(job: Job, write_pairs: Write) -> None:
    table = make_pairs(4, 3)
    paths = [write_pairs(table.slice(6 * n, 6), f"{n}/{n}.parquet") for n in range(2)]
    job.run(paths)
    (job.folder / "out" / "_SUCCESS").unlink()
    with pytest.raises(OutputError, match="order"):
        prepare(job.config(paths[::-1]))
