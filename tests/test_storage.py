"""Local files: which are listed, how they are written, and when their version changes."""

import asyncio
import os
import stat
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from botocore.awsrequest import AWSPreparedRequest, HTTPHeaders

from rankmill import s3, s3_session, storage
from rankmill.errors import ConfigError, InputError
from rankmill.s3_session import CONNECT_TIMEOUT, READ_TIMEOUT, PatientSession
from rankmill.storage_settings import StorageConfig
from rankmill.store import Store

STRANGE = ["with space", "日本語", "quote'\"", "hash#1", "per%20cent", "[1]", "a=b", "semi;colon&"]


@pytest.fixture
def tree(tmp_path):
    """Make files below a folder; list paths below it as names below it."""

    class Tree:
        root = tmp_path

        def add(self, *names):
            for name in names:
                path = tmp_path / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(name.encode())

        def list(self, *paths):
            found = storage.list_files([str(tmp_path / path) for path in paths])
            return [os.path.relpath(file.url, tmp_path) for file in found]

    return Tree()


# S3


@pytest.mark.parametrize("named", ["Content-Length", "X-Amz-Decoded-Content-Length"])
def test_a_request_has_time_for_its_body(named, monkeypatch):
    """Of a PUT over https botocore names the length otherwise, and by bytes."""
    limits = []

    async def nothing(answer, seconds):
        answer.close()
        limits.append(seconds)

    monkeypatch.setattr(s3_session.asyncio, "wait_for", nothing)
    request = AWSPreparedRequest("PUT", "https://b/k", HTTPHeaders(), None, False)
    request.headers[named] = b"25000000"
    asyncio.run(PatientSession().send(request))
    assert limits == [READ_TIMEOUT + 100 + CONNECT_TIMEOUT]


def test_what_the_environment_tells_s3fs_is_joined(monkeypatch):
    given = {"config_kwargs": {"s3": {"use_accelerate_endpoint": True}, "read_timeout": 7}}
    monkeypatch.setitem(fsspec.config.conf, "s3", given)
    config = s3.options(StorageConfig(path_style=True))["config_kwargs"]
    assert config["s3"] == {"use_accelerate_endpoint": True, "addressing_style": "path"}
    assert config["read_timeout"] == 7


# Paths


def test_a_local_path_becomes_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert storage.absolute("a/../b") == str(tmp_path / "b")
    assert storage.absolute("~/b") == str(tmp_path / "home" / "b")
    assert storage.absolute(f"file://{tmp_path}/b/") == str(tmp_path / "b")


def test_a_url_stays_as_it_is():
    assert storage.absolute("s3://bucket/a//b c/") == "s3://bucket/a//b c"


@pytest.mark.parametrize("url", ["s3://bucket/../other", "s3://bucket/a/../b", "s3://bucket/a/.."])
def test_a_url_that_climbs_is_refused(url):
    with pytest.raises(ConfigError, match=r"climbs with '\.\.'"):
        storage.absolute(url)


def test_dots_within_a_name_do_not_climb():
    assert storage.absolute("s3://bucket/a..b/..c") == "s3://bucket/a..b/..c"


@pytest.mark.parametrize(
    ("path", "remote"), [("s3://b/k", True), ("/a/b", False), ("a:b", False), ("file:///a", False)]
)
def test_only_urls_are_remote(path, remote):
    assert storage.is_remote(path) is remote


def test_an_unknown_protocol_is_refused_by_name():
    with pytest.raises(ConfigError, match="nosuch://"):
        storage.list_files(["nosuch://bucket/key"])


# Listing


def test_a_folder_is_listed_whole_and_sorted_by_name(tree):
    tree.add("in/b.parquet", "in/a/2.parquet", "in/a/10.parquet", "in/B.parquet")
    assert tree.list("in") == ["in/B.parquet", "in/a/10.parquet", "in/a/2.parquet", "in/b.parquet"]


def test_hidden_names_are_skipped_at_every_level(tree):
    tree.add("in/a.parquet", "in/_SUCCESS", "in/.crc", "in/_tmp/a.parquet", "in/x/.h/a.parquet")
    assert tree.list("in") == ["in/a.parquet"]


def test_hidden_names_above_the_given_folder_do_not_matter(tree):
    tree.add("_lake/.v1/in/a.parquet")
    assert tree.list("_lake/.v1/in") == ["_lake/.v1/in/a.parquet"]


def test_a_hidden_file_named_itself_is_read(tree):
    tree.add("_a.parquet")
    assert tree.list("_a.parquet") == ["_a.parquet"]


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("in/*.parquet", ["in/a.parquet", "in/b.parquet"]),
        ("in/[b-z].parquet", ["in/b.parquet"]),
        ("in/?.parquet", ["in/a.parquet", "in/b.parquet"]),
        ("in/*", ["in/a.parquet", "in/b.parquet", "in/day=1/c.parquet", "in/day=2/d.parquet"]),
        ("in/day=*/c.parquet", ["in/day=1/c.parquet"]),
        ("*/day=2", ["in/day=2/d.parquet"]),
        (
            "in/**/*.parquet",
            ["in/a.parquet", "in/b.parquet", "in/day=1/c.parquet", "in/day=2/d.parquet"],
        ),
    ],
)
def test_a_glob_lists_the_files_and_folders_it_matches(tree, pattern, expected):
    tree.add("in/a.parquet", "in/b.parquet", "in/day=1/c.parquet", "in/day=2/d.parquet")
    tree.add("in/_rankmill/run.parquet", "in/.h/e.parquet", "in/_f.parquet", "_old/day=2/x.parquet")
    assert tree.list(pattern) == expected


def test_paths_keep_their_order_and_a_file_named_twice_is_read_once(tree):
    tree.add("in/a.parquet", "in/b.parquet", "z.parquet")
    named = ["z.parquet", "in/b.parquet", "in", "in/../z.parquet", "in/*.parquet"]
    assert tree.list(*named) == ["z.parquet", "in/b.parquet", "in/a.parquet"]


@pytest.mark.parametrize("name", STRANGE)
def test_strange_names_are_listed_and_opened(tree, name):
    tree.add(f"{name}/{name}.parquet")
    assert tree.list(name) == tree.list(f"{name}/{name}.parquet") == [f"{name}/{name}.parquet"]
    with storage.open_input(str(tree.root / name / f"{name}.parquet")) as file:
        assert file.read() == f"{name}/{name}.parquet".encode()


@pytest.mark.parametrize("path", ["in", "in/*", "in/**"])
def test_symbolic_links_are_followed(tree, path):
    tree.add("real.bin", "folder/a.bin", "in/b.bin")
    (tree.root / "in" / "link.bin").symlink_to(tree.root / "real.bin")
    (tree.root / "in" / "day=1").symlink_to(tree.root / "folder")
    found = storage.list_files([str(tree.root / path)])
    assert {os.path.basename(file.url): file.size for file in found} == {
        "a.bin": len(b"folder/a.bin"),
        "b.bin": len(b"in/b.bin"),
        "link.bin": len(b"real.bin"),
    }


@pytest.mark.parametrize("target", ["gone", "in"])
def test_a_link_that_leads_nowhere_or_in_circles_is_refused(tree, target):
    tree.add("in/b.bin")
    (tree.root / "in" / "link.bin").symlink_to(tree.root / target)
    with pytest.raises(InputError, match="in"):
        tree.list("in")


@pytest.mark.parametrize("path", ["nothing", "nothing/*.parquet", "empty", "hidden"])
def test_a_path_that_holds_nothing_is_named(tree, path):
    (tree.root / "empty").mkdir()
    tree.add("hidden/_a.parquet")
    with pytest.raises(InputError, match=path.replace("*", r"\*")):
        tree.list(path)


def test_a_file_that_cannot_be_opened_is_named(tmp_path):
    with (
        pytest.raises(InputError, match=r"nothing at .*gone"),
        storage.open_input(f"{tmp_path}/gone"),
    ):
        pass


# Versions


def test_a_version_changes_when_the_content_changes(tree):
    tree.add("a.parquet")
    (file,) = storage.list_files([str(tree.root / "a.parquet")])
    assert storage.current_version(file) == file.version
    path = tree.root / "a.parquet"
    before = path.stat().st_mtime_ns
    path.write_bytes(b"other bytes")
    os.utime(path, ns=(before, before))
    assert storage.current_version(file) != file.version


def test_a_version_changes_when_equal_bytes_are_written_again(tree):
    tree.add("a.parquet")
    path = tree.root / "a.parquet"
    (file,) = storage.list_files([str(path)])
    later = path.stat().st_mtime_ns + 1
    os.utime(path, ns=(later, later))
    assert storage.current_version(file) != file.version


def test_a_file_that_vanished_is_named(tree):
    tree.add("a.parquet")
    (file,) = storage.list_files([str(tree.root / "a.parquet")])
    (tree.root / "a.parquet").unlink()
    with pytest.raises(InputError, match=r"a\.parquet"):
        storage.current_version(file)


# Writing


@pytest.fixture
def store(tmp_path):
    return Store(str(tmp_path / "out"))


def files_below(path):
    return sorted(str(p.relative_to(path)) for p in path.rglob("*") if p.is_file())


def test_a_written_file_stands_alone_under_its_name(store, tmp_path):
    store.write("sub/a.bin", b"one")
    store.write("sub/a.bin", b"two")
    assert store.read("sub/a.bin") == b"two"
    assert files_below(tmp_path / "out") == ["sub/a.bin"]


def test_a_failed_write_leaves_nothing_behind(store, tmp_path):
    (tmp_path / "out" / "taken").mkdir(parents=True)
    with pytest.raises(OSError, match="taken"):
        store.write("taken", b"content")
    assert files_below(tmp_path / "out") == []


def test_files_get_the_permissions_that_the_umask_leaves(store, tmp_path):
    old = os.umask(0o027)
    try:
        store.write("a.bin", b"")
        store.exchange("b.bin", None, b"")
    finally:
        os.umask(old)
    for path in filter(Path.is_file, (tmp_path / "out").rglob("*")):
        assert stat.S_IMODE(path.stat().st_mode) == 0o640


def test_only_the_first_creates_a_file(store, tmp_path):
    assert store.exchange("lock", None, b"first") is True
    assert store.exchange("lock", None, b"second") is False
    assert store.read("lock") == b"first"
    assert files_below(tmp_path / "out") == ["_rankmill/lease.lock", "lock"]


def test_reading_what_is_not_there_is_no_error(store):
    assert store.read("none") is None
    assert store.read_many(["none", "neither"]) == {}
    assert store.sizes("none") == {}
    store.delete(["none"])
    store.delete_folder("none")


def test_many_files_are_read_by_name(store):
    for name in ("a", "sub/b"):
        store.write(name, name.encode())
    assert store.read_many(["a", "sub/b", "none"]) == {"a": b"a", "sub/b": b"sub/b"}


def test_sizes_are_of_the_files_directly_in_a_folder(store):
    store.write("a", b"123")
    store.write("sub/b", b"12")
    assert store.sizes() == {"a": 3}
    assert store.sizes("sub") == {"b": 2}


def test_deleting_takes_what_is_named_and_no_more(store, tmp_path):
    for name in ("a", "b", "sub/c", "sub/deep/d", "other/e"):
        store.write(name, b"")
    store.delete(["a", "none"])
    store.delete_folder("sub")
    assert files_below(tmp_path / "out") == ["b", "other/e"]


@pytest.mark.parametrize("name", STRANGE)
def test_a_folder_of_a_strange_name_can_be_written_and_read(tmp_path, name):
    store = Store(str(tmp_path / name))
    store.write("sub/a", b"content")
    assert store.read_many(["sub/a"]) == {"sub/a": b"content"}
    assert store.sizes("sub") == {"a": 7}
    store.delete_folder("sub")
    assert files_below(tmp_path) == []


# Whole tables


def test_a_table_is_read_in_listing_order(tmp_path):
    for name, value in (("b", 2), ("a", 1), ("_skipped", 3)):
        pq.write_table(pa.table({"x": [value], "y": ["é"]}), tmp_path / f"{name}.parquet")
    assert storage.read_table(str(tmp_path), ["x"]).to_pydict() == {"x": [1, 2]}


def test_a_missing_column_of_a_table_is_named_with_those_there(tmp_path):
    pq.write_table(pa.table({"x": [1]}), tmp_path / "a.parquet")
    with pytest.raises(InputError, match=r"no column z[\s\S]*columns are x"):
        storage.read_table(str(tmp_path), ["z"])


def test_a_table_that_is_not_parquet_or_of_two_types_is_an_input_error(tmp_path):
    pq.write_table(pa.table({"x": [1]}), tmp_path / "a.parquet")
    pq.write_table(pa.table({"x": [[1]]}), tmp_path / "b.parquet")
    with pytest.raises(InputError, match="cannot be read as Parquet"):
        storage.read_table(str(tmp_path))
    (tmp_path / "b.parquet").write_bytes(b"not Parquet")
    with pytest.raises(InputError, match="cannot be read as Parquet"):
        storage.read_table(str(tmp_path / "b.parquet"))


# Copies


def test_a_file_that_does_not_arrive_whole_is_an_error(tree, tmp_path):
    tree.add("source")
    (file,) = storage.list_files([str(tmp_path / "source")])
    storage.download(file, tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == b"source"
    longer = storage.StoredFile(file.url, 99, file.version)
    with pytest.raises(InputError, match="source cannot be read: 6 of 99 bytes arrived"):
        storage.download(longer, tmp_path / "copy")
