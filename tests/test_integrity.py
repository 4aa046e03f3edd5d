"""What lies in an output is what was committed: seen at a glance, or found by reading all of it."""

from __future__ import annotations

import io
import json
import math
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rankmill import checksum, integrity, markers, output, runs
from rankmill.commit import commit_shard
from rankmill.errors import ConfigError, OutputError
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
    good, wrong = output.committed(Store(str(folder)), FINGERPRINT, SHARDS)
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
    **{
        f"marker of {what}": (with_marker(change), f"{MARKER}: {words}")
        for what, change, words in (
            (
                "counters that do not add up",
                lambda values: values["counters"].update(rows_in=99),
                "99 rows came in",
            ),
            (
                "counters below zero",
                lambda values: values["counters"].update(rows_in=-5),
                "rows_in is below zero",
            ),
            (
                "a reason below zero",
                lambda values: values["counters"].update(quarantine={"empty": -1}),
                "empty is below zero",
            ),
            (
                "more reasons than rows",
                lambda values: values["counters"].update(quarantine={"empty": 7}),
                "it has reasons for 7 rows",
            ),
            (
                "a part of other rows",
                lambda values: values["files"][0].update(rows=3),
                "its part holds 3 rows, its counters say 4",
            ),
            (
                "a quarantine of other rows",
                lambda values: values["files"][2].update(rows=3),
                "its quarantine holds 3 rows, its counters say 1",
            ),
            (
                "a time that is none",
                lambda values: values["stages"].update(ended=math.nan),
                "a time or a cost",
            ),
            (
                "endless scoring",
                lambda values: values.update(seconds=math.inf),
                "a time or a cost",
            ),
        )
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


@pytest.mark.parametrize("name", ["ranked[v2]", "ranked*", "ranked?"])
def test_an_output_is_never_a_glob(name, tmp_path):
    output.refuse_overlap([str(tmp_path / "in")], str(tmp_path / name))
    (tmp_path / name / "in").mkdir(parents=True)
    with pytest.raises(ConfigError, match="lie inside each other"):
        output.refuse_overlap([str(tmp_path / name / "in")], str(tmp_path / name))


def test_an_output_under_another_name_of_its_protocol_is_found_too(tmp_path):
    for here, there in (
        ("s3a://bucket/in/*.parquet", "s3://bucket/in"),
        ("s3://bucket/in", "s3a://bucket/in/out"),
        (f"file://{tmp_path}/in", f"local://{tmp_path}/in/out"),
        (f"local://{tmp_path}/in", f"{tmp_path}/in"),
        ("gcs://bucket/in", "gs://bucket/in/out"),
        ("az://container/in/out", "abfs://container/in"),
    ):
        with pytest.raises(ConfigError, match="lie inside each other") as refused:
            output.refuse_overlap([here], there)
        assert here in refused.value.message


# What a start takes over


def resume(folder: Path) -> list[int]:
    return sorted(output.resume(Store(str(folder)), FINGERPRINT, SHARDS))


FLIPPED = [name for name in DEEP_DAMAGE if name.startswith("a flipped byte")]


@pytest.mark.parametrize("name", FLIPPED)
def test_a_start_takes_over_no_shard_whose_bytes_have_changed(name, run, caplog):
    damage, words = DEEP_DAMAGE[name]
    damage(run)
    assert resume(run) == [0, 2]
    assert f"Computed again: {words}" in caplog.text


def test_a_start_reads_no_more_than_its_bound_and_says_so(run, caplog, monkeypatch):
    flip("part-00002.parquet")(run)
    monkeypatch.setattr(checksum, "DISK_BYTES", (run / "part-00000.parquet").stat().st_size)
    assert resume(run) == [0, 1, 2]
    assert "8 of 9 files" in caplog.text


BEGUN = {
    "before its end": lambda f: (f / runs.SUCCESS).unlink(),
    "while a shard is missing": DAMAGE["part removed"][0],
}


@pytest.mark.parametrize("when", BEGUN)
@pytest.mark.parametrize(
    ("place", "named"),
    [
        (lambda f: shutil.copy(f / PART, f / "other.parquet"), "other.parquet"),
        (lambda f: (f / "other.parquet").symlink_to(f / PART), "other.parquet"),
        (lambda f: shutil.copy(f / PART, f / "part-00007.parquet"), "part-00007.parquet"),
        (DEEP_DAMAGE["a shard beyond the plan"][0], "_rankmill/shards/00007.json"),
    ],
)
def test_a_start_goes_on_beside_nothing_that_is_not_its_own(when, place, named, run):
    place(run)
    BEGUN[when](run)
    with pytest.raises(OutputError, match="which is not of its run") as refused:
        resume(run)
    assert named in refused.value.message


def test_what_lies_in_a_complete_output_and_is_not_its_own_is_named(run, caplog):
    shutil.copy(run / PART, run / "other.parquet")
    assert resume(run) == [0, 1, 2]
    assert "is complete, but holds other.parquet" in caplog.text


def test_a_marker_beyond_the_plan_counts_for_nothing(run):
    (run / MARKER).unlink()
    commit_shard(scored(TWO_LISTS, SCORES, shard=7), commit_settings(run))
    good, wrong = glance(run)
    assert good == [0, 2]
    assert wrong == ["_rankmill/shards/00007.json: the run has 3 shards"]


# Links


PRIVATE_FOLDERS = ("tmp", "shards", "scores", "quarantine", "failed", "attempts")


@pytest.mark.parametrize("name", ["", *PRIVATE_FOLDERS])
@pytest.mark.parametrize(
    "clear_away",
    [
        output.remove_scraps,
        output.remove_old,
        lambda store: output.begin(store, None, pending=[0, 1, 2]),
    ],
    ids=["remove_scraps", "remove_old", "begin"],
)
def test_nothing_is_cleared_away_through_a_link(name, clear_away, run, tmp_path):
    place = run / "_rankmill" / name
    if place.exists():
        shutil.rmtree(place)
    victim = tmp_path / "victim"
    for file in ("notes.json", "shards/00000.json", "tmp/notes.json"):
        (victim / file).parent.mkdir(parents=True, exist_ok=True)
        (victim / file).write_text("precious")
    place.symlink_to(victim)
    before = sorted(path for path in (*run.rglob("*"), *victim.rglob("*")))
    with pytest.raises(OutputError, match="is a symbolic link") as refused:
        clear_away(Store(str(run)))
    assert str(place) in refused.value.message
    assert sorted(path for path in (*run.rglob("*"), *victim.rglob("*"))) == before


def test_a_note_that_is_none_tells_nothing(tmp_path):
    store = Store(str(tmp_path))
    for shard, content in enumerate([b"", b"[]", b'{"shard": "x"}', b'{"shard": 3, "error": "e"}']):
        store.write(markers.failure_name(shard), content)
    assert markers.read_failures(store) == {3: "e"}


def test_markers_are_read_as_they_were_written(run):
    name = markers.marker_name(0)
    content = (run / name).read_bytes()
    assert Marker.from_bytes(name, content).to_bytes() == content
