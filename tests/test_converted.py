"""The cache of converted models: whole entries or none, whatever happens beside or before."""

from __future__ import annotations

import os
import stat
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from rankmill.models import converted
from rankmill.models.converted import FILES, Check
from rankmill.profile import Profile

KEY = "0123456789abcdef"
FP32 = Profile("openvino", "fp32", "cpu", "avx2", threads=2, token_budget=2048, streams=2)


def writing(text: str) -> Callable[[Path], None]:
    def convert(folder: Path) -> None:
        for name in FILES:
            (folder / name).write_text(f"{text} {name}")

    return convert


def listed(cache: Path) -> list[str]:
    return sorted(path.name for path in cache.iterdir() if path.name != ".lock")


def test_an_entry_is_found_again(tmp_path):
    assert converted.find(tmp_path, KEY) is None
    entry = converted.build(tmp_path / "cache", KEY, writing("one"))
    assert converted.find(tmp_path / "cache", KEY) == entry
    assert (entry / "body.xml").read_text() == "one body.xml"
    assert listed(tmp_path / "cache") == [KEY]


def test_the_key_changes_with_the_model():
    assert converted.key_of("one") == converted.key_of("one") != converted.key_of("other")


@pytest.mark.parametrize("name", [*FILES, "files.json"])
@pytest.mark.parametrize("damage", ["changed", "cut", "gone"])
def test_a_damaged_entry_is_none_and_is_built_again(tmp_path, name, damage):
    entry = converted.build(tmp_path, KEY, writing("one"))
    content = (entry / name).read_bytes()
    if damage == "gone":
        (entry / name).unlink()
    else:
        (entry / name).write_bytes(content[:-1] + (b"?" if damage == "changed" else b""))
    assert converted.find(tmp_path, KEY) is None
    assert converted.build(tmp_path, KEY, writing("two")) == entry
    assert (entry / "head.bin").read_text() == "two head.bin"
    assert listed(tmp_path) == [KEY]


def test_a_whole_entry_that_came_first_stays(tmp_path):
    def slow(folder: Path) -> None:
        converted.build(tmp_path, KEY, writing("first"))
        writing("last")(folder)

    entry = converted.build(tmp_path, KEY, slow)
    assert (entry / "body.bin").read_text() == "first body.bin"
    assert listed(tmp_path) == [KEY]


@pytest.mark.parametrize("damaged", [False, True])
def test_those_who_build_at_the_same_time_all_get_a_whole_entry(tmp_path, damaged):
    if damaged:
        (converted.build(tmp_path, KEY, writing("old")) / "body.bin").write_text("?")
    together = threading.Barrier(8)
    found: list[str] = []

    def build(number: int) -> None:
        def convert(folder: Path) -> None:
            writing(str(number))(folder)
            together.wait()

        entry = converted.build(tmp_path, KEY, convert)
        assert converted.find(tmp_path, KEY) == entry
        found.append((entry / "body.xml").read_text())

    threads = [threading.Thread(target=build, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8
    assert len(set(found)) == 1
    assert listed(tmp_path) == [KEY]


def test_what_fails_to_convert_leaves_nothing(tmp_path):
    def failing(folder: Path) -> None:
        (folder / "body.xml").write_text("half")
        raise RuntimeError("no such operation")

    with pytest.raises(RuntimeError, match="no such operation"):
        converted.build(tmp_path, KEY, failing)
    assert listed(tmp_path) == []


def test_what_a_killed_process_left_is_removed_after_a_day(tmp_path):
    for name, days in ((".one-abc", 2), (".two-abc", 0)):
        (tmp_path / name).mkdir()
        stamp = (tmp_path / name).stat().st_mtime - days * 86_400
        os.utime(tmp_path / name, (stamp, stamp))
    converted.build(tmp_path, KEY, writing("one"))
    assert listed(tmp_path) == [".two-abc", KEY]


def test_a_folder_that_cannot_be_written_is_an_os_error(tmp_path):
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(OSError, match="cache"):
        converted.build(tmp_path / "cache", KEY, writing("one"))


def test_checks_are_kept_for_each_precision_and_processor(tmp_path):
    entry = converted.build(tmp_path, KEY, writing("one"))
    assert converted.checked(entry, FP32) is None
    converted.keep_check(entry, FP32, Check(1e-6, 1e-4))
    assert converted.checked(entry, FP32) == Check(1e-6, 1e-4)
    assert converted.checked(entry, replace(FP32, streams=4, threads=4)) == Check(1e-6, 1e-4)
    assert converted.checked(entry, replace(FP32, precision="bf16")) is None
    assert converted.checked(entry, replace(FP32, instructions="avx512f")) is None
    assert converted.find(tmp_path, KEY) == entry


def test_a_damaged_check_counts_as_none(tmp_path):
    entry = converted.build(tmp_path, KEY, writing("one"))
    converted.keep_check(entry, FP32, Check(1e-6, 1e-4))
    (entry / "check-fp32-avx2.json").write_text("{")
    assert converted.checked(entry, FP32) is None


def test_entries_and_checks_have_the_permissions_that_the_umask_leaves(tmp_path):
    old = os.umask(0o027)
    try:
        entry = converted.build(tmp_path, KEY, writing("one"))
        converted.keep_check(entry, FP32, Check(1e-6, 1e-4))
    finally:
        os.umask(old)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in [entry, *entry.iterdir()]}
    assert modes == {KEY: 0o750} | dict.fromkeys(
        [*FILES, "files.json", "check-fp32-avx2.json"], 0o640
    )


@pytest.mark.parametrize("difference", [float("nan"), float("inf"), 2e-4])
def test_a_difference_that_is_too_large_or_no_number_does_not_agree(difference):
    assert not Check(difference, 1e-4).agrees
    assert Check(1e-4, 1e-4).agrees
