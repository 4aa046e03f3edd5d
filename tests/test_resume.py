"""Kill it at any moment, run the same command again: the same bytes, each row once."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray

from conftest import make_pairs
from rankmill import job, markers, plan, runs
from rankmill.attempts import Attempts
from rankmill.config import InputConfig, RunConfig, load_config
from rankmill.errors import OutputBusy, OutputError, RunFailed, StartError
from rankmill.job import RunResult
from rankmill.load import Load
from rankmill.prepared import prepare
from rankmill.progress import Listener, Progress
from rankmill.read import ShardPieces, read_shards
from rankmill.source import open_source
from rankmill.store import Store
from rankmill.tokens import PairRules

SHARD_PAIRS = 80
QUERIES, CANDIDATES = 96, 10
SHARDS = QUERIES * CANDIDATES // SHARD_PAIRS

# The command line with smaller shards: the plan is made in the driver and nowhere else.
DRIVER = f"""
from rankmill import cli, plan
plan.SHARD_PAIRS = {SHARD_PAIRS}
cli.main()
"""


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "SHARD_PAIRS", SHARD_PAIRS)


@pytest.fixture(scope="module")
def candidates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Several files whose row groups and files end inside candidate lists."""
    folder = tmp_path_factory.mktemp("candidates")
    table = make_pairs(QUERIES, CANDIDATES)
    for number, start in enumerate(range(0, table.num_rows, 325)):
        part = table.slice(start, 325)
        pq.write_table(part, folder / f"{number}.parquet", row_group_size=65, compression="zstd")
    return folder


@pytest.fixture(scope="module")
def undisturbed(
    candidates: Path,
    tiny_model: Callable[[str], str],
    ray_cluster: None,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """The output of a run that nothing happened to, with two workers."""
    output = tmp_path_factory.mktemp("undisturbed") / "output[v2]"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plan, "SHARD_PAIRS", SHARD_PAIRS)
        run(candidates, output, tiny_model("bert"), **{"compute.workers": 2})
    assert len(parts(output)) == SHARDS
    return output


def settings(source: Path, output: Path, model: str, **changed: object) -> RunConfig:
    paths = {"input.path": str(source), "output.path": str(output), "model.name": model}
    return load_config(None, paths | changed)


def run(
    source: Path,
    output: Path,
    model: str,
    overwrite: bool = False,
    listener: Listener | None = None,
    **changed: object,
) -> RunResult:
    # One worker, where it does not matter: each of them imports torch.
    config = settings(source, output, model, **({"compute.workers": 1} | changed))
    return job.rerank(config, overwrite=overwrite, listener=listener)


def parts(output: Path) -> dict[str, bytes]:
    """What any Parquet reader would take for data, by name."""
    return {path.name: path.read_bytes() for path in sorted(output.rglob("*.parquet"))}


def assert_complete(output: Path, source: Path) -> None:
    """Every input row came out once, the counters add up, and nothing else can be read."""
    assert (output / "_SUCCESS").exists()
    found = pa.concat_tables(pq.read_table(path) for path in sorted(output.glob("*.parquet")))
    wanted = pa.concat_tables(pq.read_table(path) for path in sorted(source.glob("*.parquet")))
    order = [("query_id", "ascending"), ("doc_id", "ascending")]
    assert found.select(wanted.column_names).sort_by(order).equals(wanted.sort_by(order))
    manifest = json.loads((output / "_rankmill/manifest.json").read_bytes())
    assert manifest["rows_in"] == manifest["rows_out"] == wanted.num_rows
    assert manifest["pairs_scored"] == wanted.num_rows
    assert {path.parent for path in output.rglob("*.parquet")} == {output}
    assert not list((output / "_rankmill/failed").glob("*"))


# Kills


@dataclass(frozen=True)
class Driver:
    """`rankmill rerank` in a process of its own, with a Ray cluster of its own."""

    process: subprocess.Popen[bytes]
    log: Path

    def descendants(self) -> set[tuple[int, str]]:
        """All processes below it, each with its start time: a number may be given out again."""
        return below(self.process.pid)

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def finish(self, seconds: float = 120) -> int:
        return self.process.wait(timeout=seconds)


def processes() -> dict[int, tuple[int, str]]:
    """Parent and start time of every process."""
    found = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                fields = (entry / "stat").read_text(errors="replace").rsplit(")", 1)[1].split()
            except OSError:
                continue
            if fields[0] not in "ZX":
                found[int(entry.name)] = (int(fields[1]), fields[19])
    return found


def below(pid: int) -> set[tuple[int, str]]:
    known = processes()
    found: set[tuple[int, str]] = set()
    parents = {pid}
    while parents:
        children = {(p, start) for p, (parent, start) in known.items() if parent in parents}
        parents = {p for p, _ in children - found}
        found |= children
    return found


def living(of: set[tuple[int, str]]) -> set[tuple[int, str]]:
    known = processes()
    return {(pid, start) for pid, start in of if known.get(pid, (0, ""))[1] == start}


@pytest.fixture
def start(
    candidates: Path, tiny_model: Callable[[str], str], tmp_path: Path
) -> Iterator[Callable[[Path], Driver]]:
    """Start drivers; whatever they and their clusters leave behind is ended afterwards."""
    if not Path("/proc/self/stat").exists():
        pytest.skip("needs /proc to find what a killed driver leaves behind")
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    started: list[Driver] = []
    seen: set[tuple[int, str]] = set()
    over = threading.Event()

    def look() -> None:
        while not over.wait(0.2):
            for driver in started:
                seen.update(driver.descendants())

    def start_driver(output: Path) -> Driver:
        log = tmp_path / f"driver-{len(started)}.log"
        with log.open("wb") as sink:
            arguments = ["rerank", "--input", candidates, "--output", output]
            process = subprocess.Popen(
                [sys.executable, "-c", DRIVER, *arguments, "--model", tiny_model("bert")],
                env=environment,
                stdout=sink,
                stderr=sink,
            )
        started.append(Driver(process, log))
        return started[-1]

    watcher = threading.Thread(target=look)
    watcher.start()
    yield start_driver
    for driver in started:
        if driver.process.poll() is None:
            driver.kill()
    over.set()
    watcher.join()
    for pid, _ in living(seen):  # Ray's agents outlive a killed driver by a minute
        os.kill(pid, signal.SIGKILL)


def committed(output: Path) -> int:
    return len(list((output / markers.SHARDS).glob("*.json")))


def wait_for(condition: Callable[[], bool], driver: Driver, seconds: float = 90) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert driver.process.poll() is None, driver.log.read_text()[-3000:]
        assert time.monotonic() < deadline, driver.log.read_text()[-3000:]
        time.sleep(0.002)


def test_a_driver_killed_at_random_moments_completes_with_the_same_bytes(
    start, candidates, undisturbed, tmp_path
):
    output = tmp_path / "output"
    moments = random.Random(7)

    driver = start(output)
    wait_for((output / "_rankmill/run.json").exists, driver)
    driver.kill()
    assert not (output / "_SUCCESS").exists()

    driver = start(output)
    wait_for(lambda: committed(output) >= moments.randint(1, SHARDS // 2), driver)
    time.sleep(moments.uniform(0, 0.2))
    driver.kill()
    half = parts(output)
    for name, content in half.items():
        assert content == (undisturbed / name).read_bytes()

    driver = start(output)
    assert driver.finish() == 0, driver.log.read_text()[-3000:]
    assert parts(output) == parts(undisturbed)
    assert_complete(output, candidates)
    manifest = json.loads((output / "_rankmill/manifest.json").read_bytes())
    assert manifest["shards_resumed"] >= len(half) - 1
    assert driver.log.read_text().count("Computed again") == 0


def test_a_killed_scoring_process_changes_nothing(
    candidates, undisturbed, tiny_model, ray_cluster, tmp_path
):
    output = tmp_path / "output"
    killed: list[int] = []

    def kill_once(progress: Progress) -> None:
        if progress.shards_done and not killed:
            killed.append(next(pid for pid in scoring_processes()))
            os.kill(killed[0], signal.SIGKILL)

    run(candidates, output, tiny_model("bert"), listener=kill_once, **{"compute.workers": 2})
    assert killed
    assert parts(output) == parts(undisturbed)
    assert_complete(output, candidates)


def scoring_processes() -> Iterator[int]:
    for pid, _ in below(os.getpid()):
        if b"ScoreBlocks" in Path(f"/proc/{pid}/cmdline").read_bytes():
            yield pid


def taken_over(source: Path, output: Path, model: str) -> tuple[OutputBusy, dict[str, bytes]]:
    """The error of a run whose output becomes another's, and the parts that were there then."""
    seen: list[dict[str, bytes]] = []

    def take_over(progress: Progress) -> None:
        if progress.shards_done and not seen:
            store = Store(str(output))
            with store.locked():
                store.write(runs.RUN, b"{}")
                seen.append(parts(output))

    with pytest.raises(OutputBusy, match="Another run has taken over") as refused:
        run(source, output, model, listener=take_over)
    return refused.value, seen[0]


def test_a_run_whose_output_has_become_another_runs_writes_no_more(
    candidates, tiny_model, ray_cluster, tmp_path
):
    output = tmp_path / "output"
    error, seen = taken_over(candidates, output, tiny_model("bert"))
    assert error.exit_code == 4
    assert parts(output) == seen
    assert not (output / "_SUCCESS").exists()


def test_a_failed_run_leaves_its_cpus_to_the_next_though_its_error_is_kept(
    candidates, tiny_model, ray_cluster, tmp_path
):
    """A notebook keeps the last error; the next cell's run would wait for ever."""
    kept = []
    for number in range(3):  # an actor that has nothing in flight would end by itself
        kept.append(taken_over(candidates, tmp_path / f"{number}", tiny_model("bert")))
        deadline = time.monotonic() + 30
        while (free := ray.available_resources().get("CPU")) != 2 and time.monotonic() < deadline:
            time.sleep(0.1)
        assert free == 2


# Resuming


def test_one_worker_gives_the_same_bytes_as_two(candidates, undisturbed, tiny_model, tmp_path):
    run(candidates, tmp_path / "output", tiny_model("bert"), **{"compute.workers": 1})
    assert parts(tmp_path / "output") == parts(undisturbed)
    assert_complete(tmp_path / "output", candidates)


def test_parts_that_were_cut_short_or_deleted_are_computed_again(
    candidates, undisturbed, tiny_model, tmp_path, caplog
):
    output = tmp_path / "output"
    shutil.copytree(undisturbed, output)
    (output / "part-00002.parquet").unlink()
    with (output / "part-00005.parquet").open("r+b") as file:
        file.truncate(100)
    content = bytearray((output / "part-00007.parquet").read_bytes())
    content[100] ^= 1
    (output / "part-00007.parquet").write_bytes(bytes(content))
    result = run(candidates, output, tiny_model("bert"))
    assert result.manifest["shards_resumed"] == SHARDS - 3
    assert "Computed again: part-00005.parquet has 100 bytes" in caplog.text
    assert "Computed again: part-00007.parquet is not what was committed" in caplog.text
    assert parts(output) == parts(undisturbed)
    assert_complete(output, candidates)


def test_what_came_into_the_output_during_a_run_is_named_before_it_is_called_complete(
    candidates, half_finished, tiny_model
):
    def bring(progress: Progress) -> None:
        shutil.copy(half_finished / "part-00000.parquet", half_finished / "other.parquet")

    with pytest.raises(RunFailed, match=r"holds other\.parquet, which is not of its run"):
        run(candidates, half_finished, tiny_model("bert"), listener=bring)
    assert not (half_finished / "_SUCCESS").exists()
    (half_finished / "other.parquet").unlink()
    result = run(candidates, half_finished, tiny_model("bert"))
    assert result.manifest["shards_resumed"] == SHARDS
    assert_complete(half_finished, candidates)


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("name", ["", "tmp", "shards", "scores", "lease.json"])
def test_a_run_through_a_link_is_not_started(
    candidates, half_finished, tiny_model, tmp_path, name, overwrite
):
    (tmp_path / "victim/tmp").mkdir(parents=True)
    place = half_finished / "_rankmill" / name
    if place.exists():
        place.rename(tmp_path / "aside")
    place.symlink_to(tmp_path / "victim")
    with pytest.raises(OutputError, match="is a symbolic link"):
        run(candidates, half_finished, tiny_model("bert"), overwrite=overwrite)
    assert list((tmp_path / "victim").rglob("*")) == [tmp_path / "victim/tmp"]


def test_a_finished_run_does_nothing_again(candidates, undisturbed, tiny_model):
    def stamps() -> dict[str, int]:
        return {str(path): path.stat().st_mtime_ns for path in undisturbed.rglob("*")}

    before = stamps()
    result = run(candidates, undisturbed, tiny_model("bert"))
    assert stamps() == before
    assert result.counters.rows_out == QUERIES * CANDIDATES
    assert [Path(file).name for file in result.files] == sorted(parts(undisturbed))


def test_a_run_whose_input_cannot_be_read_in_one_place_does_the_rest(
    candidates, tiny_model, ray_cluster, tmp_path
):
    source, output = tmp_path / "source", tmp_path / "output"
    shutil.copytree(candidates, source)
    damaged = source / "1.parquet"
    whole, stat = damaged.read_bytes(), damaged.stat()
    broken_rows = damage_documents(damaged, group=2)
    os.utime(damaged, ns=(stat.st_atime_ns, stat.st_mtime_ns))

    with pytest.raises(RunFailed, match=r"1\.parquet, row group 2, cannot be decoded") as failed:
        run(source, output, tiny_model("bert"))
    assert failed.value.exit_code == 1
    assert not (output / "_SUCCESS").exists()
    lost = {row // SHARD_PAIRS for row in (325 + row for row in broken_rows)}
    missing = set(range(SHARDS)) - {int(name[5:10]) for name in parts(output)}
    assert missing == lost
    assert set(markers.read_failures(Store(str(output)))) == lost

    # Put back as it was, it is the same input, and only what failed is done.
    damaged.write_bytes(whole)
    os.utime(damaged, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    result = run(source, output, tiny_model("bert"))
    assert result.manifest["shards_resumed"] == SHARDS - len(lost)
    assert_complete(output, source)

    # Written anew it is another input, whatever it holds.
    damaged.write_bytes(whole)
    with pytest.raises(OutputError, match=r"files\..*1\.parquet"):
        run(source, output, tiny_model("bert"))


def damage_documents(path: Path, group: int) -> range:
    """Flip the first bytes of a column; the rows of the file whose row group it belongs to."""
    metadata = pq.read_metadata(path)
    names = metadata.schema.to_arrow_schema().names
    column = metadata.row_group(group).column(names.index("document"))
    content = bytearray(path.read_bytes())
    start = column.dictionary_page_offset or column.data_page_offset
    for place in range(start, start + 64):
        content[place] ^= 0xFF
    path.write_bytes(content)
    first = sum(metadata.row_group(number).num_rows for number in range(group))
    return range(first, first + metadata.row_group(group).num_rows)


def test_a_file_replaced_after_planning_fails_its_shards_by_name(candidates, tmp_path):
    source = tmp_path / "source"
    shutil.copytree(candidates, source)
    opened = open_source(InputConfig(path=str(source)))
    runs = [plan.find_runs(opened, group) for group in opened.row_groups]
    whole = plan.make_plan(opened, runs, [Load(1.0, PairRules(512, "document"))])
    pieces = [ShardPieces(s, tuple(whole.pieces(s))) for s in map(whole.shard, range(SHARDS))]

    replaced = pq.read_table(source / "1.parquet")
    pq.write_table(replaced, source / "1.parquet", row_group_size=65, compression="snappy")
    envelopes = list(read_shards(opened, pieces, Attempts(Store(str(tmp_path)), "reading")))

    touching = {
        s.shard.index for s in pieces if any(whole.groups[p.group].file == 1 for p in s.pieces)
    }
    failed = {envelope.shard: envelope.error for envelope in envelopes if envelope.error}
    assert set(failed) == touching
    assert all("1.parquet" in error and "changed" in error for error in failed.values())


# Another run


@pytest.mark.parametrize(
    ("changed", "shown"),
    [
        ({"output.top_k": 3}, "settings.output.top_k: nothing -> 3"),
        ({"input.depth": 5}, "settings.input.depth: nothing -> 5"),
        ({"model.max_length": 64}, "settings.model.max_length: 512 -> 64"),
        ({"compute.cpus_per_worker": 2}, 'asked.cpus_per_worker: "auto" -> 2'),
        ({"model.precision": "fp32"}, 'asked.precision: "auto" -> "fp32"'),
    ],
)
def test_another_setting_under_a_half_finished_output_is_refused(
    candidates, half_finished, tiny_model, changed, shown
):
    with pytest.raises(OutputError, match=re.escape(shown)) as refused:
        run(candidates, half_finished, tiny_model("bert"), **changed)
    assert refused.value.exit_code == 2
    assert "--overwrite" in str(refused.value)


def test_another_model_under_a_half_finished_output_is_refused(
    candidates, half_finished, tiny_model
):
    with pytest.raises(OutputError, match=r'model: "[0-9a-f]{64}" -> "[0-9a-f]{64}"') as refused:
        run(candidates, half_finished, tiny_model("modernbert"))
    names = (tiny_model(kind) for kind in ("bert", "modernbert"))
    assert 'model.name: "{}" -> "{}"'.format(*names) in str(refused.value)


@pytest.mark.parametrize(
    ("changed", "shown"),
    [
        ({"instructions": "another"}, "started on processors with another; these have "),
        ({"scoring_version": 0}, "begun with version 0 of the scoring code; this one is "),
    ],
)
def test_another_profile_under_a_half_finished_output_is_refused(
    candidates, half_finished, tiny_model, changed, shown
):
    record = half_finished / "_rankmill/run.json"
    stored = json.loads(record.read_bytes())
    stored["profile"] |= changed
    record.write_text(json.dumps(stored))
    with pytest.raises(StartError, match=shown) as refused:
        run(candidates, half_finished, tiny_model("bert"))
    assert refused.value.exit_code == 2
    assert "--overwrite" in str(refused.value)
    assert str(half_finished) in str(refused.value)
    assert len(parts(half_finished)) == SHARDS - 2


def test_another_input_under_a_half_finished_output_is_refused(
    candidates, half_finished, tiny_model, tmp_path
):
    fewer = tmp_path / "fewer"
    shutil.copytree(candidates, fewer)
    (fewer / "2.parquet").unlink()
    with pytest.raises(OutputError, match=r"files\..*2\.parquet: .* -> nothing"):
        run(fewer, half_finished, tiny_model("bert"))


@pytest.mark.parametrize("unimportant", [{"compute.workers": 1}, {"report.texts": True}])
def test_how_much_of_the_cluster_a_run_takes_is_not_part_of_it(
    candidates, half_finished, tiny_model, unimportant
):
    config = settings(candidates, half_finished, tiny_model("bert"), **unimportant)
    assert prepare(config).pending == [1, 4]


@pytest.fixture
def half_finished(undisturbed: Path, tmp_path: Path) -> Path:
    output = tmp_path / "half"
    shutil.copytree(undisturbed, output)
    for name in ("_SUCCESS", "_rankmill/manifest.json"):
        (output / name).unlink()
    for shard in (1, 4):
        (output / f"part-{shard:05d}.parquet").unlink()
        (output / markers.marker_name(shard)).unlink()
    return output


def test_overwrite_leaves_nothing_of_the_old_run(candidates, half_finished, tiny_model):
    # The new plan has fewer shards, so the old run's last parts would stay if nobody cared.
    few = candidates / "0.parquet"
    result = run(few, half_finished, tiny_model("bert"), overwrite=True, **{"output.top_k": 3})
    names = [Path(file).name for file in result.files]
    assert sorted(parts(half_finished)) == names
    assert len(names) < SHARDS
    found = pa.concat_tables(pq.read_table(half_finished / name) for name in names)
    assert set(found.column("rerank_rank").to_pylist()) == {1, 2, 3}
    markers_left = list((half_finished / markers.SHARDS).glob("*"))
    scores_left = list((half_finished / "_rankmill/scores").glob("*"))
    assert len(markers_left) == len(scores_left) == len(names)
