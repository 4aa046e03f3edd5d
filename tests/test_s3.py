"""Input, output and models on S3, against two real servers on loopback: moto's and nanio.

nanio checks every signature and ignores conditional writes; moto checks none and knows them.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import s3fs
from peft import LoraConfig, get_peft_model
from sentence_transformers import CrossEncoder
from transformers import AutoModelForSequenceClassification
from typer.testing import CliRunner

from conftest import make_pairs
from fault_proxy import FaultProxy
from ranked_runs import candidates, commit_run, ranked_part
from rankmill import Scorer, cli, job, lease, listing, output, plan, reuse, s3_session, storage
from rankmill.commit import commit_shard
from rankmill.compare import compare
from rankmill.config import ModelConfig, load_config
from rankmill.errors import InputError, ModelError, OutputBusy
from rankmill.export import export
from rankmill.lease import Lease, Owner
from rankmill.models import Description
from rankmill.models.describe import describe
from rankmill.profile import Profile
from rankmill.storage_settings import EncryptionConfig, StorageConfig
from rankmill.store import Fence, Store
from rankmill.tokens import PairRules, pair_digests, query_keys
from test_commit import SCORES, TWO_LISTS, commit_settings, scored
from test_reuse import here

KEY, SECRET = "RANKMILLKEY", "kept-out-of-everything/that+is=shown"
PROFILE_KEYS = f"aws_access_key_id = {KEY}\naws_secret_access_key = {SECRET}\n"
QUERIES, CANDIDATES, SHARD_PAIRS = 24, 5, 40

# Only the driver plans.
DRIVER = f"from rankmill import cli, plan; plan.SHARD_PAIRS = {SHARD_PAIRS}; cli.main()"
# Every table counts as large.
JOIN = "from rankmill import partitions as p; p.BROADCAST_BYTES, p.PARTITION_BYTES = 100, 3000"


@dataclass(frozen=True)
class Server:
    """A running server. `conditional`: whether it honours `If-None-Match`."""

    name: str
    endpoint: str
    conditional: bool

    def filesystem(self) -> s3fs.S3FileSystem:
        return s3fs.S3FileSystem(
            key=KEY, secret=SECRET, endpoint_url=self.endpoint, use_listings_cache=False
        )

    def environment(self, folder: Path, **changed: str) -> dict[str, str]:
        """What a user sets for it, and nothing of this machine's own AWS set-up."""
        kept = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("AWS_", "RAY_"))
        }
        return kept | {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_CONFIG_FILE": str(folder / "config"),
            "AWS_SHARED_CREDENTIALS_FILE": str(folder / "credentials"),
            "AWS_EC2_METADATA_DISABLED": "true",
            **changed,
        }


# moto checks no signature, and what does not depend on the server is asked of one.
only_nanio = pytest.mark.parametrize("server", ["nanio"], indirect=True)
only_moto = pytest.mark.parametrize("server", ["moto"], indirect=True)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module", params=["moto", "nanio"])
def server(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    folder, port = tmp_path_factory.mktemp(request.param), free_port()
    if request.param == "moto":
        pytest.importorskip("moto.server")
        command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    else:
        pytest.importorskip("nanio")
        command = [sys.executable, "-m", "nanio", "serve", "--no-access-log"]
        command += ["--host", "127.0.0.1", "--port", str(port), "--data-dir", str(folder / "data")]
    environment = os.environ | {"NANIO_ACCESS_KEY": KEY, "NANIO_SECRET_KEY": SECRET}
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
    try:
        found = Server(request.param, f"http://127.0.0.1:{port}", request.param == "moto")
        deadline = time.monotonic() + 60
        while True:
            try:
                found.filesystem().mkdir("bucket")
                break
            except Exception:  # noqa: BLE001 - whatever a server that is not up yet leads to
                assert process.poll() is None, (folder / "log").read_text()
                assert time.monotonic() < deadline, (folder / "log").read_text()
                s3fs.S3FileSystem.clear_instance_cache()
                time.sleep(0.2)
        yield found
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=20)


@pytest.fixture
def reached(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., None]]:
    """This process with the server's environment; calling it changes the environment."""

    def change(**changed: str) -> None:
        for name in [name for name in os.environ if name.startswith("AWS_")]:
            monkeypatch.delenv(name)
        for name, value in server.environment(tmp_path, **changed).items():
            if name.startswith("AWS_"):
                monkeypatch.setenv(name, value)
        storage._filesystem.cache_clear()
        s3fs.S3FileSystem.clear_instance_cache()

    change()
    yield change
    storage._filesystem.cache_clear()
    s3fs.S3FileSystem.clear_instance_cache()


@pytest.fixture(scope="module")
def local_run(
    tiny_model: Callable[[str], str],
    ray_cluster: None,
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Path, Path]:
    """The same input on disk, and its output."""
    folder = tmp_path_factory.mktemp("local")
    source, output = folder / "source", folder / "output"
    source.mkdir()
    table = make_pairs(QUERIES, CANDIDATES)
    pq.write_table(table.slice(0, 63), source / "a.parquet", row_group_size=20)
    pq.write_table(table.slice(63), source / "b.parquet", row_group_size=20)
    paths = {"input.path": str(source), "output.path": str(output)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plan, "SHARD_PAIRS", SHARD_PAIRS)
        job.rerank(
            load_config(None, paths | {"model.name": tiny_model("bert"), "compute.workers": 1})
        )
    return source, output


def rankmill(
    environment: dict[str, str], *arguments: object, driver: str = DRIVER
) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, "-c", driver, *map(str, arguments)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert SECRET not in done.stdout + done.stderr
    return done


class S3Run(NamedTuple):
    """What a run printed, and every file it left behind."""

    command: list[str]
    manifest: dict[str, Any]
    stored: dict[str, bytes]


@pytest.fixture(scope="module")
def s3_run(
    server: Server,
    local_run: tuple[Path, Path],
    tiny_model: Callable[[str], str],
    tmp_path_factory: pytest.TempPathFactory,
) -> S3Run:
    """The local run's input reranked from bucket to bucket, with nothing but the environment."""
    fs = server.filesystem()
    fs.put(f"{local_run[0]}/", "bucket/in/", recursive=True)
    fs.pipe_file("bucket/in/_SUCCESS", b"")
    fs.pipe_file("bucket/in/.hidden.parquet", b"not parquet")
    fs.pipe_file("bucket/in/_tmp/x.parquet", b"not parquet")
    command = ["rerank", "--input", "s3://bucket/in", "--output", "s3://bucket/out", "--json"]
    command += ["--model", tiny_model("bert"), "--set", "compute.workers=1"]
    done = rankmill(server.environment(tmp_path_factory.mktemp("home")), *command)
    assert done.returncode == 0, done.stderr[-3000:]
    stored = {path.removeprefix("bucket/out/"): fs.cat_file(path) for path in fs.find("bucket/out")}
    return S3Run(command, json.loads(done.stdout), stored)


def test_a_run_on_s3_accounts_for_every_row(s3_run):
    manifest = s3_run.manifest
    assert manifest["rows_in"] == manifest["rows_out"] == QUERIES * CANDIDATES
    assert manifest["pairs_scored"] == QUERIES * CANDIDATES
    assert manifest == json.loads(s3_run.stored["_rankmill/manifest.json"])
    assert "_SUCCESS" in s3_run.stored
    assert lease.LEASE not in s3_run.stored


def test_a_run_on_s3_writes_the_parts_of_a_run_on_disk(s3_run, local_run):
    here = {path.name: pq.read_table(path) for path in sorted(local_run[1].glob("*.parquet"))}
    there = {
        name: pq.read_table(pa.BufferReader(content))
        for name, content in s3_run.stored.items()
        if name.endswith(".parquet")
    }
    assert sorted(there) == list(here) == s3_run.manifest["files"]
    for name, table in there.items():
        assert table.equals(here[name])
        # The run's name stands for its files, and so for where they are; all else is the same.
        ours, theirs = (dict(t.schema.metadata) for t in (table, here[name]))
        assert ours.pop(b"rankmill.run") != theirs.pop(b"rankmill.run")
        assert ours == theirs


@only_nanio
def test_an_export_from_bucket_to_bucket_is_the_one_on_disk(server, s3_run, local_run, tmp_path):
    settings = ["--format", "triplet", "--positive-max-rank", "1", "--json"]
    done = rankmill(
        server.environment(tmp_path), "export", "s3://bucket/out", "s3://bucket/training", *settings
    )
    assert done.returncode == 0, done.stderr[-3000:]
    report, fs = json.loads(done.stdout), server.filesystem()
    here = export(local_run[1], tmp_path / "training", format="triplet", positive_max_rank=1)
    assert report["counts"] == here.report["counts"]
    for name in report["files"]:
        there = pq.read_table(pa.BufferReader(fs.cat_file(f"bucket/training/{name}")))
        assert there.equals(pq.read_table(tmp_path / "training" / name))
    assert fs.exists("bucket/training/_SUCCESS")


@only_nanio
def test_texts_come_by_id_to_lists_that_lie_apart(server, local_run, tiny_model, tmp_path):
    fs, pairs = server.filesystem(), make_pairs(QUERIES, CANDIDATES)
    queries = pairs.group_by(["query_id", "query"]).aggregate([])
    random = np.random.default_rng(0).permutation(len(pairs))
    tables = {
        "candidates": pairs.select(["query_id", "doc_id"]).take(random),
        "queries": queries.rename_columns(["query_id", "query"]),
        "corpus": pairs.select(["doc_id", "document"]),
    }
    for name, table in tables.items():
        with fs.open(f"bucket/ids/{name}/a.parquet", "wb") as file:
            pq.write_table(table, file, row_group_size=50)
    url = "s3://bucket/ids"
    texts = {"layout": "ids", "queries": f"{url}/queries", "documents": f"{url}/corpus"}
    command = ["rerank", "--input", f"{url}/candidates", "--output", f"{url}/out", "--json"]
    command += ["--model", tiny_model("bert"), "--set", "compute.workers=1"]
    for name, value in texts.items():
        command += ["--set", f"input.{name}={value}"]
    done = rankmill(server.environment(tmp_path), *command, driver=f"{JOIN}; {DRIVER}")
    assert done.returncode == 0, done.stderr[-3000:]

    found = json.loads(done.stdout)
    assert found["rows_out"] == found["staging"]["sorted"]["rows"] == QUERIES * CANDIDATES
    assert found["staging"]["documents"]["strategy"] == "hash join in 6 partition(s)"
    folders = {path.removeprefix("bucket/ids/").split("/")[0] for path in fs.find("bucket/ids")}
    assert folders == {"candidates", "queries", "corpus", "out"}, "the staging folder is gone"
    columns = ["query_id", "doc_id", "rerank_score"]
    there = [
        pq.read_table(pa.BufferReader(fs.cat_file(f"bucket/ids/out/{n}"))) for n in found["files"]
    ]
    ranked = [pa.concat_tables(there), pq.read_table(local_run[1])]
    here, there = (t.select(columns).sort_by("doc_id").to_pandas() for t in ranked)
    assert here["doc_id"].tolist() == there["doc_id"].tolist()
    # Other shards, other batches: in bf16 a score moves with the pairs beside it.
    np.testing.assert_allclose(here["rerank_score"], there["rerank_score"], atol=0.02)


@only_nanio
def test_tables_and_judgements_on_s3_are_measured_and_runs_compared(server, reached, tmp_path):
    runs = [
        commit_run(tmp_path / name, [ranked_part(candidates(scores))])
        for name, scores in (("old", [[1.0, 2.0], [1.0, 2.0]]), ("new", [[2.0, 1.0], [1.0, 2.0]]))
    ]
    fs = server.filesystem()
    for run in runs:
        fs.put(f"{run}/", f"bucket/{Path(run).name}/", recursive=True)
    judged = b"query-id\tcorpus-id\tscore\nq0\td0-0\t1\nq1\td1-0\t1\n"
    fs.pipe_file("bucket/qrels.tsv.gz", gzip.compress(judged))
    command = ["evaluate", "s3://bucket/old", "s3://bucket/new", "--metrics", "hit@1", "--json"]
    command += ["--qrels", "s3://bucket/qrels.tsv.gz", "--per-query", "s3://bucket/queries.parquet"]
    done = CliRunner().invoke(cli.app, command)
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)["runs"]
    assert [found[name]["metrics"]["hit@1"] for name in ("old", "new")] == [0.0, 0.5]
    table = pq.read_table(pa.BufferReader(fs.cat_file("bucket/queries.parquet")))
    assert table.column_names == ["query_id", "hit@1", "hit@1:new"]
    changed = compare("s3://bucket/old", "s3://bucket/new").changes.counts
    assert changed["queries_unchanged"] == 1


def test_no_credential_is_stored(s3_run):
    assert {"_rankmill/run.json", "_rankmill/shards/00000.json"} <= s3_run.stored.keys()
    for name, content in s3_run.stored.items():
        assert SECRET.encode() not in content, name
        assert KEY.encode() not in content, name


@only_nanio
def test_settings_and_a_profile_resume_what_the_environment_started(server, s3_run, tmp_path):
    """Keys of a profile, the rest from settings, against an environment that leads nowhere."""
    fs = server.filesystem()
    fs.rm_file("bucket/out/part-00001.parquet")
    judged = b"query-id\tcorpus-id\tscore\nq0000\td0000-000\t1\n"
    fs.pipe_file("bucket/golden.tsv", judged)
    (tmp_path / "credentials").write_text(f"[batch]\n{PROFILE_KEYS}")
    (tmp_path / "config").write_text("[profile batch]\n")
    environment = server.environment(tmp_path, AWS_ENDPOINT_URL="http://127.0.0.1:9")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_DEFAULT_REGION"):
        del environment[name]
    settings = {
        "storage.profile": "batch",
        "storage.endpoint_url": server.endpoint,
        "storage.region": "eu-west-1",
        "storage.path_style": "true",
        "gates.qrels": "s3://bucket/golden.tsv",
        "gates.min_ndcg": "0",
    }
    given = [text for name, value in settings.items() for text in ("--set", f"{name}={value}")]
    done = rankmill(environment, *s3_run.command, *given)
    assert done.returncode == 0, done.stderr[-3000:]
    manifest = json.loads(done.stdout)
    assert manifest["shards_resumed"] == s3_run.manifest["shards"] - 1
    assert manifest["gates"][0]["found"] > 0
    again = {path.removeprefix("bucket/out/"): fs.cat_file(path) for path in fs.find("bucket/out")}
    assert again.keys() == s3_run.stored.keys()
    for name, content in again.items():
        assert SECRET.encode() not in content, name
        if name.endswith((".parquet", ".arrow")):
            assert content == s3_run.stored[name], name


@only_nanio
def test_a_profile_may_hold_all_that_readers_need(server, s3_run, tmp_path):
    write_profile(tmp_path, server, "batch")
    environment = server.environment(tmp_path)
    for name in ("AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        del environment[name]
    status = rankmill(environment, "status", "s3://bucket/out", "--verify", "--profile", "batch")
    assert (status.returncode, "not complete" in status.stdout) == (0, False)


def write_profile(folder: Path, server: Server, name: str) -> None:
    (folder / "config").write_text(
        f"[profile {name}]\nregion = us-east-1\nendpoint_url = {server.endpoint}\n"
    )
    (folder / "credentials").write_text(f"[{name}]\n{PROFILE_KEYS}")


# What cannot be reached


@pytest.fixture
def refused(server: Server, tiny_model: Callable[[str], str], tmp_path: Path) -> Callable[..., str]:
    """Run a command that must exit with 2 within seconds; what it says."""

    def run(command: str, source: str, output: str, *more: str, **environment: str) -> str:
        arguments = [command, "--input", source, "--output", output, *more]
        started = time.monotonic()
        done = rankmill(
            server.environment(tmp_path, **environment),
            *arguments,
            *("--model", tiny_model("bert")),
        )
        assert time.monotonic() - started < 60
        assert (done.returncode, done.stdout) == (2, ""), done.stderr
        assert "Traceback" not in done.stderr
        return " ".join(done.stderr.split())

    return run


@pytest.fixture
def one_file(server: Server) -> str:
    fs = server.filesystem()
    with fs.open("bucket/one/a.parquet", "wb") as sink:
        pq.write_table(make_pairs(2, 2), sink)
    return "s3://bucket/one"


def test_a_missing_bucket_or_folder_is_named(refused, one_file):
    shown = refused("plan", "s3://no-such-bucket/in", "s3://bucket/elsewhere")
    assert "There is nothing at s3://no-such-bucket/in" in shown
    shown = refused("plan", "s3://bucket/nothing-here", "s3://bucket/elsewhere")
    assert "There is nothing at s3://bucket/nothing-here" in shown
    shown = refused("rerank", one_file, "s3://no-such-bucket/out")
    assert "The bucket of s3://no-such-bucket/out does not exist" in shown


@only_nanio
def test_wrong_credentials_are_named_and_never_shown(refused, one_file):
    wrong = "another-secret-that-is-wrong"
    for command in ("plan", "rerank"):
        shown = refused(command, one_file, "s3://bucket/x", AWS_SECRET_ACCESS_KEY=wrong)
        assert "s3://bucket/one cannot be read" in shown
        assert "signature" in shown
        assert "credentials" in shown
        assert wrong not in shown


@only_nanio
def test_wrong_credentials_for_the_output_alone_are_named(refused, local_run):
    shown = refused("rerank", str(local_run[0]), "s3://bucket/x", AWS_SECRET_ACCESS_KEY="wrong")
    assert "s3://bucket/x cannot be read" in shown


@only_nanio
def test_an_endpoint_where_nobody_listens_is_named(refused, local_run):
    nobody = f"http://127.0.0.1:{free_port()}"
    dead = {"AWS_ENDPOINT_URL": nobody, "AWS_MAX_ATTEMPTS": "2"}
    shown = refused("plan", "s3://bucket/one", "s3://bucket/x", **dead)
    assert "s3://bucket/one cannot be read: Could not connect to the endpoint" in shown
    assert nobody in shown
    assert "AWS_ENDPOINT_URL" in shown


@only_nanio
def test_an_unknown_profile_is_named(refused, one_file):
    shown = refused("plan", one_file, "s3://bucket/x", "--set", "storage.profile=nightly")
    assert "The config profile (nightly) could not be found" in shown


# The store


@pytest.fixture
def store(reached: Callable[..., None], request: pytest.FixtureRequest) -> Store:
    return Store(f"s3://bucket/{request.node.originalname}")


@only_moto  # nanio takes no such names
def test_the_placeholder_of_a_folder_is_no_file(store, server):
    bucket, key = store.url.removeprefix("s3://").split("/", 1)
    server.filesystem().call_s3("put_object", Bucket=bucket, Key=f"{key}/", Body=b"")
    assert store.listing().visible == []
    output.refuse_foreign(store, overwrite=False)


def test_files_are_written_read_listed_and_removed(store):
    assert store.sizes() == {}
    assert store.read("a") is None
    store.write("a", b"one")
    store.write("below/b", b"three")
    assert store.sizes() == {"a": 3}
    assert store.sizes("below") == {"b": 5}
    assert store.read_many(["a", "below/b", "not there"]) == {"a": b"one", "below/b": b"three"}
    store.delete(["a", "not there"])
    assert store.read("a") is None
    store.delete_folder("below")
    store.delete_folder("never there")
    assert store.sizes("below") == {}


def test_a_file_is_exchanged_only_for_what_was_expected(store):
    assert not store.exchange("a", b"one", b"two")
    assert store.exchange("a", None, b"one")
    assert not store.exchange("a", None, b"two")
    assert not store.exchange("a", b"two", None)
    assert store.exchange("a", b"one", b"two")
    assert store.read("a") == b"two"
    assert store.exchange("a", b"two", None)
    assert store.read("a") is None


def test_of_two_writers_who_have_seen_the_same_file_one_wins_where_the_store_takes_conditions(
    server, store
):
    store.write("lease", b"dead")
    seen = store._tag("lease")
    assert store._put_if("lease", b"first", seen)
    assert store._put_if("lease", b"second", seen) is not server.conditional
    store.delete(["lease"])
    assert store._put_if("lease", b"third", seen) is not server.conditional
    assert store._put_if("lease", b"fourth", None) or server.conditional


@pytest.mark.parametrize("removes", [False, True], ids=["writes", "removes"])
def test_who_slept_before_a_write_or_a_removal_cannot_touch_what_another_run_wrote(
    server, store, monkeypatch, removes
):
    store.write("run", b"ours")
    fenced = replace(store, fence=Fence("run", hashlib.sha256(b"ours").hexdigest()))
    fenced.write("part", b"ours")
    check = Store._refuse_fallen

    def act() -> None:
        fenced.withdraw("part") if removes else fenced.write("part", b"ours again")

    def sleep_afterwards(writer: Store) -> None:
        check(writer)
        store.write("run", b"theirs")
        store.write("part", b"theirs")

    monkeypatch.setattr(Store, "_refuse_fallen", sleep_afterwards)
    if server.conditional:
        with pytest.raises(OutputBusy, match="Another run has taken over"):
            act()
    else:
        act()
    harmed = None if removes else b"ours again"
    assert store.read("part") == (b"theirs" if server.conditional else harmed)
    # Once it looks again it is refused anywhere.
    with pytest.raises(OutputBusy):
        act()


@contextmanager
def requests_to(store: Store) -> Iterator[list[str]]:
    """The names of the requests that this process makes meanwhile."""
    calls: list[str] = []
    fs, _ = store._at("")
    asked = fs._call_s3

    async def note(method: str, *arguments: Any, **options: Any) -> Any:
        calls.append(method)
        return await asked(method, *arguments, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fs, "_call_s3", note)
        yield calls


@pytest.mark.parametrize("own", [True, False], ids=["of a run", "of the user's"])
def test_a_large_file_is_one_upload_of_which_nothing_can_be_left(store, own):
    large = bytes(101 << 20)
    with requests_to(store) as calls:
        if own:
            store.write("large", large)
        else:
            storage.write_file(f"{store.url}/large", large)
    assert calls == ["put_object"]
    assert store.sizes() == {"large": 101 << 20}
    store.delete(["large"])


@only_nanio
def test_a_file_of_a_run_is_read_in_one_request(store):
    store.write("a", b"one")
    with requests_to(store) as calls:
        assert store.read("a") == b"one"
        assert store.read_many(["a", "b"]) == {"a": b"one"}
    assert calls == ["get_object"] * 3


@only_nanio
def test_a_folder_is_listed_once_and_a_footer_is_one_request(store):
    for name in "abc":
        with store._at(name)[0].open(f"{store.url}/{name}.parquet", "wb") as sink:
            pq.write_table(make_pairs(1, 1), sink)
    with requests_to(store) as calls:
        found = listing.list_tables([store.url])
    assert [file.size > 0 for file in found.files] == [True] * 3
    assert sorted(calls) == ["get_object"] * 3 + ["list_objects_v2"]


@only_nanio
def test_a_start_reads_no_file_whose_tag_is_its_checksum(store):
    settings = commit_settings(store.url)
    for shard in range(3):
        commit_shard(scored(TWO_LISTS, SCORES, shard=shard), settings)
    with requests_to(store) as calls:
        assert sorted(output.resume(store, settings.fingerprint, 3)) == [0, 1, 2]
    assert calls.count("get_object") == 3, "the markers"
    assert set(calls) == {"get_object", "list_objects_v2"}


def test_a_start_takes_over_no_shard_whose_object_has_changed(store, caplog):
    settings = commit_settings(store.url)
    for shard in range(2):
        commit_shard(scored(TWO_LISTS, SCORES, shard=shard), settings)
    content = bytearray(store.read("part-00001.parquet") or b"")
    content[20] ^= 1
    store.write("part-00001.parquet", bytes(content))
    assert sorted(output.resume(store, settings.fingerprint, 2)) == [0]
    assert "part-00001.parquet is not what was committed (checksum)" in caplog.text


@only_moto
def test_an_object_with_another_kind_of_tag_is_read(store):
    settings = commit_settings(store.url)
    commit_shard(scored(TWO_LISTS, SCORES), settings)
    content = store.read("part-00000.parquet")
    fs, path = store._at("part-00000.parquet")
    bucket, key, _ = fs.split_path(path)
    place = {"Bucket": bucket, "Key": key}
    upload = fs.call_s3("create_multipart_upload", **place)["UploadId"]
    part = fs.call_s3("upload_part", **place, UploadId=upload, PartNumber=1, Body=content)
    parts = {"Parts": [{"PartNumber": 1, "ETag": part["ETag"]}]}
    fs.call_s3("complete_multipart_upload", **place, UploadId=upload, MultipartUpload=parts)
    assert store.listing().files["part-00000.parquet"].tag.endswith("-1")
    assert list(output.resume(store, settings.fingerprint, 1)) == [0]


def test_an_output_whose_name_reads_like_a_wildcard_stands_alone(store):
    odd, other = Store(f"{store.url}/r[a2]*"), Store(f"{store.url}/ra")
    for each in (odd, other):
        each.write("below/b", b"one")
        each.write("a", b"one")
    assert odd.read_many(["a", "c"]) == {"a": b"one"}
    odd.delete(["a", "c"])
    odd.delete_folder("below")
    assert (odd.sizes(), odd.sizes("below")) == ({}, {})
    assert (other.sizes(), other.sizes("below")) == ({"a": 3}, {"b": 3})


def test_what_another_process_wrote_is_seen_at_once(server, store):
    assert store.sizes() == {}
    server.filesystem().pipe_file(f"{store.url.removeprefix('s3://')}/new", b"x")
    assert store.sizes() == {"new": 1}


def test_a_lease_on_s3_refuses_a_second_run_and_outlives_no_dead_one(store):
    with Lease(store, 0.1, 1.0) as held:
        with pytest.raises(OutputBusy):
            Lease(store, 0.1, 1.0).__enter__()
        assert not held.lost
    assert store.read(lease.LEASE) is None
    silent = Owner("theirs", "node-7", "another kernel", 4242, "1")
    store.write(lease.LEASE, json.dumps(silent.__dict__).encode())
    with Lease(store, 0.1, 1.0):
        assert Owner(**json.loads(store.read(lease.LEASE))).pid == os.getpid()


@only_nanio
def test_an_unreachable_store_fails_with_an_os_error_that_names_no_secret(reached):
    reached(AWS_ENDPOINT_URL=f"http://127.0.0.1:{free_port()}", AWS_MAX_ATTEMPTS="1")
    store = Store("s3://bucket/out")
    for ask in (
        lambda: store.read("a"),
        lambda: store.read_many(["a", "b"]),
        lambda: store.write("a", b""),
        lambda: store.exchange("a", None, b""),
        store.sizes,
        lambda: store.delete(["a"]),
    ):
        with pytest.raises(OSError, match="Could not connect to the endpoint") as failed:
            ask()
        assert SECRET not in str(failed.value)


@only_nanio
def test_a_silent_endpoint_is_given_up_within_seconds(reached):
    with socket.socket() as silent, socket.socket() as first:
        # A full backlog: further connections are neither accepted nor refused.
        silent.bind(("127.0.0.1", 0))
        silent.listen(0)
        first.connect(silent.getsockname())
        port = silent.getsockname()[1]
        reached(AWS_ENDPOINT_URL=f"http://127.0.0.1:{port}", AWS_MAX_ATTEMPTS="1")
        started = time.monotonic()
        with pytest.raises(InputError, match="s3://bucket/in cannot be read"):
            storage.list_files(["s3://bucket/in"])
        assert time.monotonic() - started < 30


@only_nanio
def test_a_store_that_takes_requests_and_never_answers_is_given_up(reached, monkeypatch):
    monkeypatch.setattr(s3_session, "READ_TIMEOUT", 0.2)
    monkeypatch.setattr(s3_session, "CONNECT_TIMEOUT", 0.2)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen(50)  # the kernel takes connections, and nobody reads from them
        port = silent.getsockname()[1]
        reached(AWS_ENDPOINT_URL=f"http://127.0.0.1:{port}", AWS_MAX_ATTEMPTS="2")
        store = Store("s3://bucket/out")
        for ask in (lambda: store.write("a", b"1"), lambda: store.read("a"), store.sizes):
            with pytest.raises(OSError, match="did not answer within"):
                ask()


# What is asked of the store


def client(access: StorageConfig) -> Any:
    fs, _ = storage.filesystem("s3://bucket/key", access)
    fs.connect()
    return fs


@only_moto
@pytest.mark.parametrize(
    ("asked", "url", "region"),
    [
        ({"path_style": True}, "http://store.example/bucket/key?", "us-east-1"),
        ({"path_style": False}, "http://bucket.store.example/key?", "us-east-1"),
        ({"region": "eu-west-1"}, "http://store.example/bucket/key?", "eu-west-1"),
    ],
)
def test_settings_say_how_the_bucket_is_named_and_where_it_lies(reached, asked, url, region):
    fs = client(StorageConfig(endpoint_url="http://store.example", **asked))
    signed = fs.sign("bucket/key")
    assert signed.startswith(url)
    assert fs.s3.meta.region_name == region


@only_moto
@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ({"algorithm": "AES256"}, ("AES256", None)),
        ({"algorithm": "aws:kms", "key_id": "ours"}, ("aws:kms", "ours")),
    ],
)
def test_settings_ask_for_encryption_by_the_server(server, store, asked, expected):
    wanted = replace(store, access=StorageConfig(encryption=EncryptionConfig(**asked)))
    wanted.write("part", b"rows")
    path = store.url.removeprefix("s3://bucket/")
    head = server.filesystem().call_s3("head_object", Bucket="bucket", Key=f"{path}/part")
    assert (head["ServerSideEncryption"], head.get("SSEKMSKeyId")) == expected


@only_nanio
def test_an_anonymous_request_is_not_signed(store):
    store.write("part", b"rows")
    with pytest.raises(OSError, match="missing Authorization header"):
        replace(store, access=StorageConfig(anonymous=True)).read("part")


@only_moto
def test_a_refused_request_is_repeated_unless_the_environment_says_how_often(reached):
    assert client(StorageConfig()).s3.meta.config.retries == {
        "mode": "legacy",
        "total_max_attempts": 6,
    }
    reached(AWS_MAX_ATTEMPTS="2")
    assert client(StorageConfig()).s3.meta.config.retries["total_max_attempts"] == 2


class Throttling(FaultProxy):
    """Refuses every ninth request, and passes on what comes again."""

    def __init__(self, port: int) -> None:
        super().__init__(port, seed=0)
        self.refused: Counter[str] = Counter()

    def _draw(self) -> tuple[str, float]:
        with self._lock:
            self.requests += 1
            fault = "" if self.requests % 9 else ("503", "429")[self.requests % 2]
            self.refused[fault] += 1
            return fault, 0.0


@only_moto
def test_a_store_that_throttles_is_waited_for(server, local_run, tiny_model, monkeypatch):
    """In a public bucket: workers of the shared cluster have no keys."""
    monkeypatch.setattr(plan, "SHARD_PAIRS", SHARD_PAIRS)
    fs = server.filesystem()
    fs.mkdir("open", acl="public-read-write")
    fs.put(f"{local_run[0]}/", "open/busy/", recursive=True)
    with Throttling(int(server.endpoint.rpartition(":")[2])) as proxy:
        settings = {
            "input.path": "s3://open/busy",
            "output.path": "s3://open/throttled",
            "model.name": tiny_model("bert"),
            "compute.workers": 1,
            "storage.endpoint_url": proxy.endpoint,
            "storage.region": "us-east-1",
            "storage.anonymous": True,
        }
        result = job.rerank(load_config(None, settings))
    assert min(proxy.refused["503"], proxy.refused["429"]) > 3
    assert (result.manifest["complete"], result.manifest["degraded"]) == (True, [])
    for part in sorted(local_run[1].glob("*.parquet")):
        there = fs.cat_file(f"open/throttled/{part.name}")
        assert pq.read_table(pa.BufferReader(there)).equals(pq.read_table(part))


# What else s3fs can be told, each node by its own environment


def by_another_process(environment: dict[str, str], program: str) -> str:
    program = f"from rankmill.store import Store; {program}"
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@only_moto
def test_the_environment_asks_for_encryption_by_the_server(server, tmp_path):
    asked = {
        "s3_additional_kwargs": {"ServerSideEncryption": "aws:kms", "SSEKMSKeyId": "ours"},
        "config_kwargs": {"max_pool_connections": 3},
    }
    environment = server.environment(tmp_path, FSSPEC_S3=json.dumps(asked))
    program = "store = Store('s3://bucket/kms'); store.write('part', b'rows'); "
    program += "print(store._at('')[0].s3.meta.config.max_pool_connections)"
    assert by_another_process(environment, program) == "3"
    head = server.filesystem().call_s3("head_object", Bucket="bucket", Key="kms/part")
    assert (head["ServerSideEncryption"], head["SSEKMSKeyId"]) == ("aws:kms", "ours")


@only_moto
def test_the_environment_asks_without_credentials(server, tmp_path):
    server.filesystem().pipe_file("bucket/public/part", b"rows", ACL="public-read")
    environment = server.environment(tmp_path, FSSPEC_S3='{"anon": true}')
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        del environment[name]
    asked = "print(Store('s3://bucket/public').read('part').decode())"
    assert by_another_process(environment, asked) == "rows"


# Models


MODEL = "s3://bucket/models/mine"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A node's cache of models, empty."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "rankmill" / "models"


@pytest.fixture
def uploaded(server: Server, tiny_model: Callable[[str], str]) -> Iterator[Callable[..., None]]:
    """A tiny model in the bucket; calling it puts another file beside the model's."""
    fs = server.filesystem()
    fs.put(f"{tiny_model('bert')}/", f"{MODEL.removeprefix('s3://')}/", recursive=True)

    def put(name: str, content: bytes) -> None:
        fs.pipe_file(f"{MODEL}/{name}", content)

    yield put
    fs.rm(list(fs.find("bucket/models")))


def described(name: str, **options: Any) -> Description:
    return describe(ModelConfig(name=name), **options)


def test_a_model_on_s3_scores_as_its_folder_does(reached, uploaded, cache, tiny_model):
    pairs = [("what is a shard", "A shard is a run of whole lists."), ("x", "heat transfer")]
    there, here = (
        Scorer(name, device="cpu", precision="fp32") for name in (f"{MODEL}/", tiny_model("bert"))
    )
    assert there.description.digest == here.description.digest
    assert there.score(pairs).tolist() == here.score(pairs).tolist()


def test_only_the_files_that_make_scores_are_fetched(reached, uploaded, cache, tiny_model):
    others = ("README.md", "pytorch_model.bin", "checkpoint-5/model.safetensors", "_tmp/a.json")
    for name in (*others, "1_LogitScore/config.json"):
        uploaded(name, b"{}")
    described(MODEL)
    (fetched,) = cache.iterdir()
    names = {path.relative_to(fetched).as_posix() for path in fetched.rglob("*") if path.is_file()}
    wanted = {path.name for path in Path(tiny_model("bert")).iterdir()}
    assert names == wanted | {"1_LogitScore/config.json"}


@only_nanio
def test_a_node_that_has_the_files_needs_the_store_no_more(reached, uploaded, cache):
    description = described(MODEL)
    reached(AWS_ENDPOINT_URL=f"http://127.0.0.1:{free_port()}", AWS_MAX_ATTEMPTS="1")
    description.fetch()
    assert description.tokenizer(PairRules(64, "document")).encode(["x"]).lengths.tolist() == [1]


def test_a_model_that_changed_since_the_plan_is_refused(reached, uploaded, cache):
    description = described(MODEL)
    uploaded("config.json", json.dumps(json.loads(description.config) | {"a": 1}).encode())
    description.fetch()  # this node has the version of the plan
    shutil.rmtree(cache)
    with pytest.raises(
        ModelError, match=f"files in {MODEL} have changed since the run was planned"
    ):
        description.fetch()
    assert list(cache.iterdir()) == []
    assert described(MODEL).digest != description.digest


@only_nanio
def test_a_fetched_file_that_is_not_the_runs_is_refused(reached, uploaded, cache):
    description = described(MODEL)
    (config,) = cache.glob("*/config.json")
    config.write_text(config.read_text() + " ")
    with pytest.raises(ModelError, match=r"has the digest \w{12}, the run's is"):
        description.load(Profile("torch", "fp32", "cpu", "any", threads=1, token_budget=512))


def test_a_model_that_is_not_there_is_named(reached, uploaded, cache):
    uploaded("below/vocab.txt", b"x")
    for name, said in (
        ("s3://no-such-bucket/mine", "There is nothing at s3://no-such-bucket/mine"),
        ("s3://bucket/models/other", "There is nothing at s3://bucket/models/other"),
        ("s3://bucket/models", r"The model folder s3://bucket/models has no config\.json"),
        (f"{MODEL}/below", r"The model folder .*/below has no config\.json"),
        (f"{MODEL}/config.json", "is not the folder of one model"),
        ("s3://bucket/models/m*", "is not the folder of one model"),
        ("s3://bucket/models/../models/mine", "climbs with"),
    ):
        with pytest.raises(ModelError, match=said) as refused:
            described(name)
        assert refused.value.exit_code == 2
    assert not cache.exists()


def test_a_name_that_leads_out_of_the_folder_is_refused(server, reached, uploaded, cache):
    if server.name == "nanio":
        pytest.skip("nanio takes no such names")
    uploaded("/outside/config.json", b"{}")
    with pytest.raises(ModelError, match=r"mine//outside/config\.json is no file below it"):
        described(MODEL)
    assert not cache.exists()


@only_nanio
def test_a_model_that_may_not_be_read_is_named(reached, uploaded, cache):
    reached(AWS_SECRET_ACCESS_KEY="wrong")
    with pytest.raises(
        ModelError, match=f"model {MODEL} cannot be fetched: .*signature"
    ) as refused:
        described(MODEL)
    assert "credentials" in str(refused.value)


@only_nanio
def test_a_model_is_fetched_with_the_profile_of_the_run(
    server, reached, uploaded, cache, tmp_path, monkeypatch
):
    write_profile(tmp_path, server, "batch")
    for name in ("AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    assert described(MODEL, access=StorageConfig(profile="batch")).digest
    with pytest.raises(ModelError, match="cannot be fetched"):
        described(MODEL)


@only_nanio
@pytest.mark.parametrize("named", ["mine", "../mine", MODEL])
def test_an_adapter_on_s3_finds_its_base_beside_it(
    server, reached, uploaded, cache, tiny_model, tmp_path, named
):
    base = AutoModelForSequenceClassification.from_pretrained(tiny_model("bert"))
    lora = LoraConfig(r=2, task_type="SEQ_CLS", init_lora_weights=False)
    get_peft_model(base, lora).save_pretrained(tmp_path / "adapter")
    pairs = [("what is a shard", "A shard is a run of whole lists."), ("x", "heat transfer")]
    here = Scorer(str(tmp_path / "adapter"), device="cpu", precision="fp32").score(pairs)
    config = tmp_path / "adapter" / "adapter_config.json"
    named_base = {"base_model_name_or_path": named}
    config.write_text(json.dumps(json.loads(config.read_text()) | named_base))
    server.filesystem().put(f"{tmp_path}/adapter/", "bucket/models/lora/", recursive=True)
    there = Scorer("s3://bucket/models/lora", device="cpu", precision="fp32").score(pairs)
    assert there.tolist() == here.tolist()


@only_nanio
def test_a_folder_of_sentence_transformers_on_s3_brings_its_prompt(
    server, reached, cache, tiny_model, tmp_path
):
    text = '{{ (messages | selectattr("role", "eq", ROLE) | first).content }}'
    query, document = (text.replace("ROLE", f'"{role}"') for role in ("query", "document"))
    template = f"Query: {query}\nText: {document}\nSo:"
    CrossEncoder(
        tiny_model("qwen3"), device="cpu", processor_kwargs={"chat_template": template}
    ).save_pretrained(str(tmp_path / "saved"))
    names = {file.name for file in (tmp_path / "saved").rglob("*")}
    assert {"chat_template.jinja", "modules.json", "1_LogitScore"} <= names
    fs = server.filesystem()
    fs.put(f"{tmp_path}/saved/", "bucket/models/saved/", recursive=True)
    pairs = [("what is a shard", "A shard is a run of whole lists."), ("x", "heat transfer")]
    there, here = (
        Scorer(name, device="cpu", precision="fp32").score(pairs)
        for name in ("s3://bucket/models/saved", str(tmp_path / "saved"))
    )
    fs.rm(list(fs.find("bucket/models/saved")))
    assert there.tolist() == here.tolist()
    assert abs(there[0] - there[1]) > 0.01


@only_nanio
def test_a_run_with_a_model_on_s3_writes_the_parts_of_a_run_with_its_folder(
    server, uploaded, local_run, tmp_path
):
    command = ["rerank", "--input", local_run[0], "--output", tmp_path / "output", "--json"]
    command += ["--model", MODEL, "--set", "compute.workers=1"]
    cache = {"XDG_CACHE_HOME": str(tmp_path / "cache")}
    done = rankmill(server.environment(tmp_path, **cache), *command)
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads(done.stdout)["model"]["name"] == MODEL
    for part in sorted(local_run[1].glob("*.parquet")):
        assert pq.read_table(tmp_path / "output" / part.name).equals(pq.read_table(part))
    for file in tmp_path.rglob("*"):
        if file.is_file() and file.suffix not in (".safetensors", ".parquet"):
            assert SECRET.encode() not in file.read_bytes(), file


def test_scores_are_found_again_on_s3(s3_run: S3Run, reached: Callable[..., None]) -> None:
    (earlier,) = reuse.look_at(["s3://bucket/out"])
    known = reuse.known([earlier], earlier.scorings[0], here)
    assert known is not None
    pairs = make_pairs(QUERIES, CANDIDATES)
    queries, documents = (pairs[name].to_pylist() for name in ("query", "document"))
    place = np.arange(len(queries), dtype=np.int32)
    digests = pa.array(pair_digests(queries, documents, place, place), pa.binary(16))
    assert np.isfinite(known.find(query_keys(queries), digests).score).all()
