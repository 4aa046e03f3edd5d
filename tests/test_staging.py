"""What is brought into order before a run: lists that lie apart, and texts that come by id."""

from __future__ import annotations

import io
import logging
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import hypothesis
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from rich.console import Console

from conftest import make_pairs
from rankmill import (
    apart,
    commit,
    console,
    exchange,
    lookup,
    partitions,
    plan,
    runs,
    staging_progress,
    storage,
)
from rankmill.config import InputConfig, RunConfig, load_config
from rankmill.envelope import Envelope
from rankmill.errors import ConfigError, InputError, OutputBusy, OutputError
from rankmill.job import RunResult, rerank
from rankmill.lease import Lease
from rankmill.load import Load
from rankmill.plan import Plan
from rankmill.prepared import prepare
from rankmill.read import ShardSource
from rankmill.schema import ORIGIN_ROW
from rankmill.source import open_source
from rankmill.status import read_status
from rankmill.status_tables import status_table
from rankmill.store import Store
from rankmill.tokens import PairRules

pytestmark = pytest.mark.usefixtures("ray_cluster", "small")
QUERIES, CANDIDATES = 12, 8
PAIRS = make_pairs(QUERIES, CANDIDATES)
RESULTS = ["rerank_score", "rerank_sigmoid", "rerank_rank", "rerank_tokens_dropped"]


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several shards, several files of sorted rows; all of it is decided on the driver."""
    monkeypatch.setattr(plan, "SHARD_PAIRS", 2 * CANDIDATES)
    monkeypatch.setattr(apart, "FILE_BYTES", 3_000)
    monkeypatch.setattr(exchange, "CHUNK_BYTES", 2_000)


@pytest.fixture
def by_join(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every table of texts counts as large."""
    monkeypatch.setattr(partitions, "BROADCAST_BYTES", 100)
    monkeypatch.setattr(partitions, "PARTITION_BYTES", 1_500)


@dataclass(frozen=True)
class Site:
    """A folder with inputs and outputs, and a tiny model."""

    folder: Path
    model: str

    def write(self, name: str, table: pa.Table, **options: Any) -> str:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table, path, **options)
        return str(path)

    def config(self, output: str, settings: dict[str, Any]) -> RunConfig:
        fixed = {
            "output.path": str(self.folder / output),
            "model.name": self.model,
            "model.precision": "fp32",
            "model.backend": "torch",
            "compute.workers": 1,
        }
        return load_config(overrides=fixed | settings)

    def run(self, output: str, settings: dict[str, Any]) -> tuple[RunResult, pa.Table]:
        result = rerank(self.config(output, settings))
        return result, pq.read_table(result.output)

    def pairs(self, table: pa.Table = PAIRS, **options: Any) -> dict[str, Any]:
        return {"input.path": self.write("pairs/a.parquet", table, **options)}

    def ids(
        self,
        candidates: pa.Table | None = None,
        queries: pa.Table | None = None,
        documents: pa.Table | None = None,
    ) -> dict[str, Any]:
        """The settings of an input whose texts lie in tables of their own."""
        chosen = PAIRS.select(["query_id", "doc_id", "bm25_rank"])
        tables = {
            "input.path": ("candidates.parquet", chosen if candidates is None else candidates),
            "input.queries": ("queries.parquet", QUERY_TABLE if queries is None else queries),
            "input.documents": ("corpus", DOCUMENTS if documents is None else documents),
        }
        settings: dict[str, Any] = {"input.layout": "ids"}
        for setting, (name, table) in tables.items():
            path = name if name != "corpus" else "corpus/a.parquet"
            self.write(path, table, row_group_size=30)
            settings[setting] = str(self.folder / name)
        return settings

    def beside(self) -> list[str]:
        """Staging folders."""
        return sorted(path.name for path in self.folder.glob("_*"))

    def quarantine(self, output: str) -> pa.Table:
        files = sorted((self.folder / output / "_rankmill/quarantine").glob("*.arrow"))
        return pa.concat_tables([pa.ipc.open_file(file).read_all() for file in files])


QUERY_TABLE = PAIRS.select(["query_id", "query"]).group_by("query_id").aggregate([("query", "min")])
QUERY_TABLE = QUERY_TABLE.rename_columns(["query_id", "query"])
DOCUMENTS = PAIRS.select(["doc_id", "document"]).sort_by([("doc_id", "descending")])


@pytest.fixture
def site(tmp_path: Path, tiny_model: Callable[[str], str]) -> Site:
    return Site(tmp_path, tiny_model("bert"))


@pytest.fixture(scope="module")
def plain_run(
    tmp_path_factory: pytest.TempPathFactory, tiny_model: Callable[[str], str], ray_cluster: None
) -> pa.Table:
    """The ranked table of the pairs as they are, in their own order."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plan, "SHARD_PAIRS", 2 * CANDIDATES)
        site = Site(tmp_path_factory.mktemp("plain"), tiny_model("bert"))
        return site.run("out", site.pairs())[1]


def staged(site: Site, settings: dict[str, Any], output: str = "out") -> list[Envelope]:
    """The shards of an input as they are read, after all that comes before."""
    ready = prepare(site.config(output, settings))
    with Lease(ready.store) as lease:
        source, lookups = ready.staging.carry_out(lease)
        shards = ShardSource(source, ready.plan, ready.pending, ready.store, lookups)
        tasks = shards.get_read_tasks(1)
        blocks = [block for task in tasks for block in task()]
    found = [one for block in blocks for one in Envelope.from_block(block)]
    assert [one.error for one in found] == [None] * len(ready.plan)
    return found


def rows_of(shards: list[Envelope], columns: list[str]) -> list[dict[str, Any]]:
    return [row for one in shards for row in one.rows.select(columns).to_pylist()]


def shuffled(table: pa.Table, seed: int = 0) -> pa.Table:
    return table.take(np.random.default_rng(seed).permutation(len(table)))


def by_first_row(table: pa.Table) -> pa.Table:
    """The queries in the order of their first rows, the rows of each in theirs."""
    queries = list(dict.fromkeys(table["query_id"].to_pylist()))
    place = [queries.index(query) for query in table["query_id"].to_pylist()]
    return table.take(np.argsort(place, kind="stable"))


# Whole runs


def test_lists_that_lie_apart_are_ranked_as_sorted_ones(site: Site, plain_run: pa.Table) -> None:
    bad = PAIRS.slice(5, 1).set_column(3, "document", pa.array([""]))
    table = shuffled(pa.concat_tables([PAIRS, bad]))
    first, second = table.slice(0, 40), table.slice(40)
    site.write("in/b.parquet", second, row_group_size=9)
    settings = {"input.path": str(site.folder / "in")}
    site.write("in/a.parquet", first, row_group_size=11)
    result, ranked = site.run("out", settings)

    queries = list(dict.fromkeys(table["query_id"].to_pylist()))
    assert list(dict.fromkeys(ranked["query_id"].to_pylist())) == queries
    expected = pa.concat_tables(
        [plain_run.filter(pc.equal(plain_run["query_id"], q)) for q in queries]
    )
    # Other shards, other batches: scores move by 1e-6.
    scores = ["rerank_score", "rerank_sigmoid"]
    assert ranked.drop_columns(scores).equals(expected.drop_columns(scores))
    for name in scores:
        np.testing.assert_allclose(ranked[name], expected[name], atol=1e-5)
    assert result.manifest["staging"]["sorted"]["rows"] == 97
    assert site.beside() == [], "the staging folder is gone"

    lost = site.quarantine("out")
    row = table["document"].to_pylist().index("")
    here = ("a.parquet", row) if row < 40 else ("b.parquet", row - 40)
    assert lost["origin_file"].to_pylist() == [str(site.folder / "in" / here[0])]
    assert lost["origin_row"].to_pylist() == [here[1]]
    assert lost.column_names == [*PAIRS.column_names, "reason", "origin_file", "origin_row"]

    assert rerank(site.config("out", settings)).manifest == result.manifest


def test_pairs_that_come_by_id_are_ranked_as_pairs(
    site: Site, plain_run: pa.Table, by_join: None
) -> None:
    more = pa.table(
        {
            "query_id": ["silent", "silent", "nobody", None],
            "doc_id": ["nowhere", None, "d0000-001", "nowhere"],
            "bm25_rank": pa.array([9, 10, 1, 2], pa.int32()),
        }
    )
    candidates = pa.concat_tables([PAIRS.select(more.column_names), more])
    silent = pa.table({"query_id": ["silent"], "query": ["what has no document"]})
    settings = site.ids(candidates, pa.concat_tables([QUERY_TABLE, silent]))
    settings |= {"output.columns": [*more.column_names, "document"]}
    result, ranked = site.run("out", settings)

    assert ranked.column_names == [*more.column_names, "document", *RESULTS]
    assert ranked.equals(plain_run.select(ranked.column_names))
    strategies = {name: facts["strategy"] for name, facts in result.manifest["staging"].items()}
    assert strategies == {
        "queries": "hash join in 1 partition(s)",
        "documents": "hash join in 9 partition(s)",
    }
    lost = site.quarantine("out").to_pylist()
    assert {(row["query_id"], row["doc_id"]): row["reason"] for row in lost} == {
        ("silent", "nowhere"): "doc_id is not in the documents",
        ("silent", None): "doc_id is null",
        ("nobody", "d0000-001"): "query_id is not in the queries",
        (None, "nowhere"): "query_id is null",
    }
    assert lost[0].keys() == {*more.column_names, "reason", "origin_file", "origin_row"}
    assert site.beside() == []

    # Half of it is lost, and then the corpus changes.
    (site.folder / "out/_SUCCESS").unlink()
    (site.folder / "out/_rankmill/shards/00001.json").unlink()
    before = (site.folder / "out/part-00001.parquet").read_bytes()
    _, again = site.run("out", settings)
    assert again.equals(ranked)
    assert (site.folder / "out/part-00001.parquet").read_bytes() == before
    (site.folder / "out/_SUCCESS").unlink()
    site.write("corpus/a.parquet", DOCUMENTS.slice(1))
    with pytest.raises(OutputError, match="documents"):
        rerank(site.config("out", settings))


# The sort

KEYS = st.lists(st.one_of(st.none(), st.sampled_from("abcdefgh")), min_size=1, max_size=60)


@hypothesis.settings(max_examples=40, deadline=None)
@given(keys=KEYS, group_rows=st.integers(1, 20), limit=st.one_of(st.none(), st.integers(1, 9)))
def test_every_row_lies_once_in_its_list_and_lists_in_order_of_their_first_rows(
    keys: list[str | None], group_rows: int, limit: int | None
) -> None:
    assume(any(keys))
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(apart, "FILE_BYTES", 500)
        patch.setattr(exchange, "SPILL_BYTES", 300)
        table = PAIRS.slice(0, len(keys)).set_column(0, "query_id", pa.array(keys, pa.string()))
        pq.write_table(table, f"{folder}/in.parquet", row_group_size=group_rows)
        found, whole = sort(Path(folder), limit)

    order = list(dict.fromkeys(filter(None, keys)))[:limit]
    kept = [key for key in found["query_id"].to_pylist() if key is not None]
    assert kept == [key for each in order for key in keys if key == each]
    rows = found[ORIGIN_ROW].to_pylist()
    assert found.drop_columns([ORIGIN_ROW]).equals(table.take(rows))
    assert limit is not None or sorted(rows) == list(range(len(keys)))
    for key in order:
        own = [row for row, each in zip(rows, found["query_id"].to_pylist()) if each == key]
        assert own == sorted(own)
    assert whole.bounds[-1] == len(rows)
    assert int(whole.queries.sum()) == len(order)


def sort(folder: Path, limit: int | None = None) -> tuple[pa.Table, Plan]:
    """Both passes without Ray; the sorted rows as the run will read them, and their plan."""
    source = open_source(InputConfig(path=str(folder / "in.parquet")))
    runs = [plan.find_runs(source, group) for group in source.row_groups]
    lists = apart.find_lists(source.row_groups, runs)
    costly = plan.SHARD_OPERATIONS_LEAST / 3  # three pairs a shard
    whole, arrangement = apart.arrange(lists, [Load(costly, PairRules(1, "document"))], limit)
    sorting = apart.Sorting(source, arrangement, Store(str(folder / "staging")))
    handed = [
        name
        for number, chunk in enumerate(exchange.chunks(source.row_groups))
        for name in apart.hand_out(sorting, f"rows/{number:05d}", chunk)
    ]
    sorting = replace(sorting, handed=tuple(handed))
    for file in range(arrangement.files):
        apart.put_in_order(sorting, f"sorted/{file:06d}", file)
    files = storage.list_files([str(folder / "staging/sorted")])
    found = apart.sorted_source(source, whole, files)
    read = [table for group in found.row_groups for table in found.batches(group)]
    assert [group.rows for group in found.row_groups] == np.diff(whole.bounds).tolist()
    return pa.concat_tables(read), whole


def test_columns_of_any_type_are_sorted_unchanged(tmp_path: Path) -> None:
    carried = {
        "dictionary": pa.array(["a", None, "a", "b"]).dictionary_encode(),
        "dictionary of numbers": pa.array([1, None, 1, 2]).dictionary_encode(),
        "bytes": pa.array([b"\xff", b"", None, b"\0"]),
        "duration": pa.array([0, -1, None, 2], pa.duration("us")),
        "half": pa.array(np.array([1, -1, 2, 3], np.float16)),
        "struct": pa.array([{"a": 1, "b": ["x"]}, None, {"a": None, "b": None}, {"a": 2, "b": []}]),
        "map": pa.array([[("k", 1)], [], None, [("k", None)]], pa.map_(pa.string(), pa.int8())),
        "fixed list": pa.array([[1, 2], None, [3, 4], [5, 6]], pa.list_(pa.int8(), 2)),
        "nulls": pa.nulls(4),
    }
    texts = PAIRS.slice(0, 4).set_column(0, "query_id", pa.array(["a", "b", "a", "b"]))
    table = pa.table({**dict(zip(texts.column_names, texts.columns)), **carried})
    pq.write_table(table, tmp_path / "in.parquet")
    found, _ = sort(tmp_path)
    expected = open_source(InputConfig(path=str(tmp_path / "in.parquet")))
    (read,) = expected.batches(expected.row_groups[0])
    assert found.drop_columns([ORIGIN_ROW]).to_pylist() == read.take([0, 2, 1, 3]).to_pylist()
    assert found.drop_columns([ORIGIN_ROW]).schema == read.schema


def test_nested_rows_that_lie_apart_are_sorted_whole(site: Site) -> None:
    candidates = [
        [{"doc_id": f"{row}-{n}", "document": f"text {n}"} for n in range(2)] for row in range(4)
    ]
    candidates[1] = []
    table = pa.table(
        {"query_id": ["a", "b", "a", "c"], "query": ["x", "y", "x", "z"], "candidates": candidates}
    )
    shards = staged(site, {"input.path": site.write("in.parquet", table, row_group_size=2)})
    assert [row["doc_id"] for row in rows_of(shards, ["doc_id"])] == [
        "0-0", "0-1", "2-0", "2-1", "3-0", "3-1"
    ]  # fmt: skip
    origins = [commit._origins(one.rows, one.rows[ORIGIN_ROW].to_numpy())[1] for one in shards]
    assert [row for each in origins for row in each] == [0, 0, 2, 2, 3, 3]


# The staging folder


def test_a_dry_run_says_what_would_be_done_and_writes_nothing(site: Site, by_join: None) -> None:
    chosen = shuffled(PAIRS.select(["query_id", "doc_id"]))
    ready = prepare(site.config("out", site.ids(chosen)))
    facts = console.plan_facts(ready, None)
    assert facts["staging"]["sorted"]["rows"] == len(PAIRS)
    assert facts["staging"]["documents"]["strategy"] == "hash join in 9 partition(s)"
    assert facts["pairs"] == len(PAIRS)
    out = Console(width=200, record=True, file=io.StringIO())
    out.print(console.plan_table(facts))
    shown = out.export_text()
    assert "96 rows" in shown
    assert "are sorted by query first" in shown
    assert "_staging-out-" in shown
    assert site.beside() == []


def test_a_staging_that_was_cut_off_goes_on_and_a_whole_one_is_used_again(site: Site) -> None:
    settings = site.pairs(shuffled(PAIRS), row_group_size=10)
    ready = prepare(site.config("out", settings))
    lease = Lease(ready.store)
    with lease:
        lease.lost = True  # as if another run had taken over
        with pytest.raises(OutputBusy):
            ready.staging.carry_out(lease)
    (folder,) = site.folder.glob("_staging-out-*")
    assert not (folder / "sorted").exists()
    done = {path: path.stat().st_mtime_ns for path in folder.glob("rows/*")}
    assert done
    progress = read_status(str(site.folder / "out")).staging
    assert progress is not None
    assert (progress.url, progress.step) == (str(folder), "rows")
    assert 0 < progress.done <= progress.of

    one = rows_of(staged(site, settings), PAIRS.column_names)
    assert one == by_first_row(shuffled(PAIRS)).to_pylist()
    assert not (folder / "rows").exists(), "nothing is left but what is read"
    written = {path: path.stat().st_mtime_ns for path in folder.glob("sorted/*")}
    assert len(written) > 2
    assert rows_of(staged(site, settings), PAIRS.column_names) == one
    assert {path: path.stat().st_mtime_ns for path in folder.glob("sorted/*")} == written


def test_a_first_start_that_stages_or_plans_says_so_in_its_status(tmp_path: Path) -> None:
    output, folder = Store(str(tmp_path / "out")), "_staging-out-0123456789abcdef"
    with pytest.raises(InputError, match="There is no run"):
        read_status(output.url)
    with Lease(output):
        assert "first shards are not planned yet" in told(status_table(read_status(output.url)))
        staging = Store(str(tmp_path / folder))
        staging_progress.tell_step(staging, [f"documents/{n}.done" for n in range(3)])
        for name in ("0.done", "0.arrow"):
            staging.write(f"documents/{name}", b"")
        shown = told(status_table(read_status(output.url)))
        assert "running: the input is brought into order first" in shown
        assert folder in shown
        assert "documents, 1 of 3 files" in shown
    assert "stopped" in told(status_table(read_status(output.url)))


def test_an_export_is_no_run_that_is_still_planned(tmp_path: Path) -> None:
    output = Store(str(tmp_path / "export"))
    output.write(runs.EXPORT, b"{}")
    with Lease(output), pytest.raises(InputError, match="There is no run"):
        read_status(output.url)


def told(table: Any) -> str:
    with io.StringIO() as text:
        Console(file=text, width=200).print(table)
        return " ".join(text.getvalue().split())


def test_staging_for_another_input_replaces_its_own_and_no_others(site: Site) -> None:
    old, others = "_staging-out-0123456789abcdef", "_staging-out-2-0123456789abcdef"
    for name in (old, others, "_staging-out-notes"):
        (site.folder / name).mkdir()
    staged(site, site.pairs(shuffled(PAIRS)))
    assert old not in site.beside()
    assert {others, "_staging-out-notes"} < set(site.beside())
    prepare(site.config("out", site.pairs(shuffled(PAIRS)))).staging.remove()
    assert site.beside() == ["_staging-out-2-0123456789abcdef", "_staging-out-notes"]


def test_nothing_is_staged_while_another_run_holds_the_output(site: Site) -> None:
    config = site.config("out", site.pairs(shuffled(PAIRS)))
    with Lease(Store(str(site.folder / "out"))), pytest.raises(OutputBusy):
        rerank(config)
    assert site.beside() == []


def test_an_output_that_is_a_whole_bucket_has_no_place_for_a_staging_folder() -> None:
    assert staging_progress.parent_and_name("s3://bucket/out") == ("s3://bucket", "out")
    with pytest.raises(ConfigError, match="nothing beside it"):
        staging_progress.parent_and_name("s3://bucket")


# Texts by id


@pytest.fixture(params=["broadcast", "join"])
def either_way(request: pytest.FixtureRequest) -> None:
    if request.param == "join":
        request.getfixturevalue("by_join")


def test_texts_come_to_candidates_in_any_order(site: Site, either_way: None) -> None:
    chosen = shuffled(PAIRS.select(["query_id", "doc_id"]))
    shards = staged(site, site.ids(chosen))
    columns = ["query_id", "query", "doc_id", "document"]
    assert rows_of(shards, columns) == by_first_row(shuffled(PAIRS)).select(columns).to_pylist()


@pytest.mark.parametrize("twice", ["queries", "documents"])
def test_an_id_that_stands_twice_is_named_before_anything_starts(
    site: Site,
    either_way: None,
    twice: str,
    request: pytest.FixtureRequest,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(logging.getLogger("rankmill"), "propagate", True)
    caplog.set_level(logging.INFO, "rankmill")
    tables = {"queries": QUERY_TABLE, "documents": DOCUMENTS}
    tables[twice] = pa.concat_tables([tables[twice], tables[twice].slice(3, 1)])
    doubled = str(tables[twice].column(0)[3].as_py())
    # Its rows lie apart, too.
    chosen = shuffled(PAIRS.select(["query_id", "doc_id"]))
    ready = prepare(site.config("out", site.ids(chosen, **tables)))
    with Lease(ready.store) as lease, pytest.raises(InputError) as caught:
        ready.staging.carry_out(lease)
    # Nothing is left, and no sort was paid for where the table could be looked at before.
    assert site.beside() == []
    assert ("sorting 96 rows" in caplog.text) == (
        request.node.callspec.params["either_way"] == "join"
    )
    assert f"input.{twice}" in caught.value.message
    assert doubled in caught.value.message
    assert "Keep one row" in str(caught.value.remedy)


@pytest.mark.parametrize("limit", [None, 2])
def test_integers_of_any_width_are_one_id(site: Site, either_way: None, limit: int | None) -> None:
    number = pa.array(range(len(PAIRS)))
    wide = PAIRS.set_column(2, "doc_id", number)
    documents = wide.select(["doc_id", "document"]).set_column(0, "doc_id", number.cast(pa.int16()))
    settings = site.ids(wide.select(["query_id", "doc_id"]), documents=documents)
    shards = staged(site, settings | {"input.limit": limit})
    expected = wide["document"].to_pylist()[: len(PAIRS) if limit is None else limit * CANDIDATES]
    assert [row["document"] for row in rows_of(shards, ["document"])] == expected


def test_several_columns_make_a_document(site: Site) -> None:
    titled = DOCUMENTS.append_column("title", DOCUMENTS["doc_id"])
    settings = site.ids(documents=titled) | {"input.columns.document": ["title", "document"]}
    ready = prepare(site.config("out", settings))
    assert ready.source.joined == ("query", "title", "document")
    shards = staged(site, settings)
    assert all(row["title"] == row["doc_id"] for row in rows_of(shards, ["title", "doc_id"]))


def test_the_plan_knows_the_texts_weight_however_they_come(site: Site) -> None:
    by_id = prepare(site.config("a", site.ids()))
    by_pair = prepare(site.config("b", site.pairs()))
    assert by_id.plan.bounds.tolist() == by_pair.plan.bounds.tolist()
    assert by_id.plan.tokens == pytest.approx(by_pair.plan.tokens, rel=0.2)


def test_ids_of_one_hash_are_told_apart(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lookup, "id_digests", lambda ids: np.zeros(len(ids), np.uint64))
    _, documents = prepare(site.config("out", site.ids())).source.texts
    index = lookup.index(documents, [DOCUMENTS.cast(lookup.texts_schema(documents))])
    wanted = pa.array(["d0003-001", "nowhere", None, "d0000-000"])
    found = index.find(wanted)
    assert found[[1, 2]].tolist() == [-1, -1]
    assert DOCUMENTS["doc_id"].take(found[[0, 3]]).to_pylist() == ["d0003-001", "d0000-000"]


NUMBERED = DOCUMENTS.set_column(0, "doc_id", pa.array(range(len(DOCUMENTS))))
REFUSED = [
    ({"documents": NUMBERED}, ["doc_id is string", "int64", "corpus"]),
    ({"documents": DOCUMENTS.select(["doc_id"])}, ["document (document) is missing", "corpus"]),
    ({"queries": QUERY_TABLE.select(["query"])}, ["query_id (query_id) is missing", "queries"]),
    ({"candidates": PAIRS.select(["doc_id"])}, ["query_id (query_id) is missing", "candidates"]),
    ({"candidates": PAIRS}, ["The column query of input.queries", "in the candidates"]),
]


@pytest.mark.parametrize(("tables", "words"), REFUSED)
def test_tables_that_do_not_fit_together_are_refused_by_name(
    site: Site, tables: dict[str, pa.Table], words: list[str]
) -> None:
    with pytest.raises(InputError) as caught:
        prepare(site.config("out", site.ids(**tables)))
    for word in words:
        assert word in caught.value.message


@pytest.mark.parametrize(
    ("settings", "word"),
    [
        ({"input.queries": "q"}, "queries belongs to layout: ids"),
        ({"input.layout": "pairs", "input.documents": "d"}, "documents belongs to layout: ids"),
        ({"input.layout": "ids"}, "needs queries and documents"),
        ({"input.layout": "ids", "input.queries": "q"}, "needs documents"),
        (
            {"input.layout": "ids", "input.queries": "q", "input.documents": "d"}
            | {"input.columns.doc_id": None},
            "columns.doc_id cannot be null",
        ),
        (
            {"input.layout": "ids", "input.documents": "d"}
            | {"input.queries": "https://me:secret@host/q"},
            "input.queries carries credentials",
        ),
    ],
)
def test_settings_of_the_layout_go_together(
    site: Site, settings: dict[str, Any], word: str
) -> None:
    with pytest.raises(ConfigError, match=word) as caught:
        site.config("out", {"input.path": "x"} | settings)
    assert "secret" not in str(caught.value)
