"""What lies in an output is what was committed: seen at a glance, or found by reading all of it."""

from __future__ import annotations

import io
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rankmill import integrity, markers, output, runs
from rankmill.commit import commit_shard
from rankmill.errors import OutputError
from rankmill.integrity import Expected
from rankmill.markers import Marker, WrittenFile
from rankmill.store import Store
from test_commit import SCORES, TWO_LISTS, commit_settings, scored

SHARDS = 3
FINGERPRINT = "f" * 64
EXPECTED = Expected(FINGERPRINT, SHARDS, "rerank_")


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A complete output of three shards, each with a part, scores and quarantine."""
    folder = tmp_path / "out"
    settings = commit_settings(folder)
    for shard in range(SHARDS):
        commit_shard(scored(TWO_LISTS, SCORES, shard=shard), settings)
    files = [f"part-{shard:05d}.parquet" for shard in range(SHARDS)]
    manifest = {"fingerprint": FINGERPRINT, "files": files}
    settings.store.write(runs.MANIFEST, json.dumps(manifest).encode())
    settings.store.write(runs.RUN, b"{}")
    settings.store.write(runs.SUCCESS, b"")
    return folder


def glance(folder: Path) -> tuple[list[int], list[str]]:
    good, wrong = output.committed(Store(str(folder)), FINGERPRINT)
    return sorted(good), wrong


def examine(folder: Path, running: bool = False) -> list[str]:
    return integrity.examine(Store(str(folder)), EXPECTED, running)


def test_an_undamaged_output_has_no_damage(run):
    assert glance(run) == ([0, 1, 2], [])
    assert examine(run) == []


def marker_of(folder: Path, shard: int) -> dict[str, object]:
    return json.loads((folder / markers.marker_name(shard)).read_text())


def with_marker(change: Callable[[dict], object]) -> Callable[[Path], object]:
    """Change the marker of shard 1."""

    def act(folder: Path) -> None:
        values = marker_of(folder, 1)
        change(values)
        (folder / markers.marker_name(1)).write_text(json.dumps(values))

    return act


def flip(name: str) -> Callable[[Path], object]:
    def act(folder: Path) -> None:
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[:-9] + bytes([content[-9] ^ 1]) + content[-8:])

    return act


def rewritten(change: Callable[[pa.Table], pa.Table]) -> Callable[[Path], object]:
    """Another table in the place of part 1, with a marker that vouches for its bytes."""

    def act(folder: Path) -> None:
        sink = io.BytesIO()
        pq.write_table(change(pq.read_table(folder / "part-00001.parquet")), sink)
        replace_file(folder, 0, "part-00001.parquet", sink.getvalue())

    return act


def replace_file(folder: Path, number: int, name: str, content: bytes) -> None:
    (folder / name).write_bytes(content)
    values = marker_of(folder, 1)
    rows = values["files"][number]["rows"]
    values["files"][number] = WrittenFile.of(name, content, rows).__dict__
    (folder / markers.marker_name(1)).write_text(json.dumps(values))


PART = "part-00001.parquet"
SCORES_FILE = "_rankmill/scores/00001.arrow"
QUARANTINE_FILE = "_rankmill/quarantine/00001.arrow"
MARKER = "_rankmill/shards/00001.json"

# What happens to shard 1, what the glance says of it and, where the glance sees nothing, what the
# full check says.
DAMAGE = {
    "part cut short": (lambda f: os.truncate(f / PART, 10), f"{PART} has 10 bytes, its marker"),
    "part removed": (lambda f: (f / PART).unlink(), f"{PART} is missing"),
    "scores cut short": (lambda f: os.truncate(f / SCORES_FILE, 9), f"{SCORES_FILE} has 9 bytes"),
    "scores removed": (lambda f: (f / SCORES_FILE).unlink(), f"{SCORES_FILE} is missing"),
    "quarantine removed": (
        lambda f: (f / QUARANTINE_FILE).unlink(),
        f"{QUARANTINE_FILE} is missing",
    ),
    "marker of another run": (
        with_marker(lambda values: values.update(fingerprint="0" * 64)),
        "shard 1 is of another run",
    ),
    **{
        f"marker that is {what}": (with_marker(change), f"{MARKER} is not a shard marker")
        for what, change in {
            "another shard's": lambda values: values.update(shard=2),
            "of no shard": lambda values: values.update(shard="one"),
            "without files": lambda values: values.update(files=[]),
            "without a part": lambda values: values.update(files=values["files"][1:]),
            "of another shard's part": lambda values: values["files"][0].update(
                name="part-00002.parquet"
            ),
            "of a file elsewhere": lambda values: values["files"][0].update(name="/etc/passwd"),
            "of a file above": lambda values: values["files"][1].update(name="../a.arrow"),
            "of a file twice": lambda values: values.update(files=[values["files"][0]] * 2),
            "of sizes that are none": lambda values: values["files"][0].update(size="many"),
            "without counters": lambda values: values.pop("counters"),
            "of counters that are none": lambda values: values["counters"].update(rows_in=[]),
        }.items()
    },
    "marker of no JSON": (
        lambda f: (f / MARKER).write_bytes(b"\xff{"),
        f"{MARKER} is not a shard marker",
    ),
}
DEEP_DAMAGE = {
    "a flipped byte in the part": (flip(PART), f"{PART} is not what was committed (checksum)"),
    "a flipped byte in the scores": (flip(SCORES_FILE), f"{SCORES_FILE} is not what was"),
    "a flipped byte in the quarantine": (flip(QUARANTINE_FILE), f"{QUARANTINE_FILE} is not what"),
    "a row less": (
        rewritten(lambda table: table.slice(1)),
        f"{PART} holds 3 rows, its marker says 4 and counts 4",
    ),
    "no scores in the part": (
        rewritten(lambda table: table.drop_columns(["rerank_score"])),
        f"{PART} lacks rerank_score",
    ),
    "scores of another type": (
        rewritten(
            lambda table: table.set_column(
                table.schema.get_field_index("rerank_score"),
                "rerank_score",
                table["rerank_score"].cast(pa.float64()),
            )
        ),
        f"{PART} lacks rerank_score",
    ),
    "a part of another run": (
        rewritten(lambda table: table.replace_schema_metadata({"rankmill.run": "0"})),
        f"{PART} is of another run",
    ),
    "a part with another column": (
        rewritten(lambda table: table.append_column("x", pa.nulls(table.num_rows))),
        f"{PART} has other columns than part-00000.parquet",
    ),
    "a part that is no Parquet": (
        lambda f: replace_file(f, 0, PART, b"PAR1 no Parquet PAR1"),
        f"{PART} cannot be read",
    ),
    "scores that are no Arrow file": (
        lambda f: replace_file(f, 1, SCORES_FILE, b"ARROW1 no Arrow"),
        f"{SCORES_FILE} cannot be read",
    ),
    "counters that do not add up": (
        with_marker(lambda values: values["counters"].update(rows_in=99)),
        f"{MARKER}: 99 rows came in",
    ),
    "a part without a marker": (
        lambda f: shutil.copy(f / PART, f / "part-00007.parquet"),
        "part-00007.parquet has no marker",
    ),
    "scores without a marker": (
        lambda f: shutil.copy(f / SCORES_FILE, f / "_rankmill/scores/00007.arrow"),
        "_rankmill/scores/00007.arrow has no marker",
    ),
    "somebody's file": (
        lambda f: shutil.copy(f / PART, f / "mine.parquet"),
        "mine.parquet is not of this run",
    ),
    "somebody's folder": (
        lambda f: ((f / "below").mkdir(), shutil.copy(f / PART, f / "below/mine.parquet")),
        "below/mine.parquet is not of this run",
    ),
    "a missing shard": (
        lambda f: (f / MARKER).unlink(),
        "_SUCCESS is there, but 1 of 3 shards are not committed",
    ),
    "a shard beyond the plan": (
        lambda f: commit_shard(scored(TWO_LISTS, SCORES, shard=7), commit_settings(f)),
        "_rankmill/shards/00007.json: the run has 3 shards",
    ),
    "another run's manifest": (
        lambda f: (f / runs.MANIFEST).write_text('{"fingerprint": "0", "files": []}'),
        "_rankmill/manifest.json is not that of the committed shards",
    ),
    "no manifest": (
        lambda f: (f / runs.MANIFEST).unlink(),
        "_rankmill/manifest.json is not that of the committed shards",
    ),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_what_a_listing_shows_is_seen_at_a_glance(name, run):
    damage, words = DAMAGE[name]
    damage(run)
    good, wrong = glance(run)
    assert good == [0, 2]
    assert len(wrong) == 1
    assert words in wrong[0]
    assert any(words in problem for problem in examine(run))


@pytest.mark.parametrize("name", DEEP_DAMAGE)
def test_everything_else_is_found_by_the_full_check(name, run):
    damage, words = DEEP_DAMAGE[name]
    damage(run)
    found = examine(run)
    assert any(words in problem for problem in found), found


def test_a_shard_that_is_being_written_is_no_damage_while_a_run_is_at_work(run):
    (run / runs.SUCCESS).unlink()
    (run / MARKER).unlink()
    assert examine(run, running=True) == []
    assert len(examine(run)) == 3


def test_a_marker_that_is_none_does_not_outlive_the_next_start(run):
    (run / MARKER).write_text("{}")
    output.begin(Store(str(run)), None, pending=[1])
    assert not (run / MARKER).exists()
    assert glance(run) == ([0, 2], [])


def test_a_run_does_not_go_on_beside_what_is_not_its_own(run):
    store = Store(str(run))
    output.refuse_strangers(store, SHARDS)
    with pytest.raises(OutputError, match="which is not of its run"):
        output.refuse_strangers(store, SHARDS - 1)
    (run / "below").mkdir()
    for refuse in (
        lambda: output.refuse_strangers(store, SHARDS),
        lambda: output.refuse_foreign(store, overwrite=True),
    ):
        with pytest.raises(OutputError, match="below/"):
            refuse()


def test_a_note_that_is_none_tells_nothing(tmp_path):
    store = Store(str(tmp_path))
    for shard, content in enumerate([b"", b"[]", b'{"shard": "x"}', b'{"shard": 3, "error": "e"}']):
        store.write(markers.failure_name(shard), content)
    assert markers.read_failures(store) == {3: "e"}


def test_markers_are_read_as_they_were_written(run):
    name = markers.marker_name(0)
    content = (run / name).read_bytes()
    assert Marker.from_bytes(name, content).to_bytes() == content
