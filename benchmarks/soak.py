"""Does anything grow? The embedded model, for an hour or as long as is said.

    python benchmarks/soak.py [--minutes 60]

Most of the time one long run, so that its scoring actors grow old; then short runs one after the
other in the same driver. Samples memory, open files, threads and temporary files, fits a line to
each series without its first quarter (at least a minute, at most half), and calls a series steady
when the line rises by no more than its bound from the first sample that counts to the last. Exits
with 1 if one is not. Ray Data keeps something of every execution while a driver is connected: the
driver's bound over the short runs is that much wider (`executions.py` measures it at the end,
without rankmill). Needs /proc.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from machine import describe_machine, own_memory
from rankmill import cluster, job
from rankmill.config import ComputeConfig, load_config

_CANDIDATES = 20
_LONG_SHARE = 0.6
# A scoring actor's memory rises while it warms up, and then stands.
_WARM_UP, _WARM_UP_SECONDS = 0.25, 60.0
_SAMPLE_SECONDS = 1.0
_DRIVER = "driver, MiB"
# Of a series of memory: allocators settle to within some per cent, a leak does not stop there.
_RISE_SHARE, _RISE_MIB = 0.03, 8.0
# Of a series of counts.
_RISE_COUNT = 2.0


@dataclass
class Series:
    """Values over time. seconds, values: one each a sample. allowed: to rise beside the bound."""

    is_memory: bool
    allowed: float = 0.0
    seconds: list[float] = field(default_factory=list)
    values: list[float] = field(default_factory=list)

    def line(self) -> tuple[float, float, float]:
        """Slope an hour, its standard error, and the rise over the samples that count."""
        x, y = np.array(self.seconds), np.array(self.values)
        age = x - x[0]
        left_out = min(max(_WARM_UP * age[-1], _WARM_UP_SECONDS), age[-1] / 2)
        x, y = x[age >= left_out], y[age >= left_out]
        centred = x - x.mean()
        spread = float((centred**2).sum()) or 1.0
        slope = float((centred * y).sum()) / spread
        rest = y - y.mean() - slope * centred
        error = float(np.sqrt((rest**2).sum() / max(len(x) - 2, 1) / spread))
        return slope * 3600, error * 3600, slope * float(x[-1] - x[0])

    @property
    def bound(self) -> float:
        """How far the line may rise."""
        if not self.is_memory:
            return _RISE_COUNT
        return self.allowed + max(_RISE_MIB, _RISE_SHARE * float(np.mean(self.values)))


class Sampler:
    """Looks at this process, its scoring actors and the temporary files once a second."""

    def __init__(self, temporary: Path) -> None:
        self.series: dict[str, Series] = defaultdict(lambda: Series(is_memory=False))
        self._temporary, self._started = temporary, time.monotonic()
        self._output: Path | None = None
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def watch(self, output: Path) -> None:
        """Sample in the background until `pause`."""
        self._output = output
        self._stop.clear()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def pause(self) -> None:
        """Sample no more."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()

    def look(self, phase: str) -> None:
        """One sample of this process and the temporary files."""
        self._note(f"{phase}: {_DRIVER}", own_memory(os.getpid()), True)
        self._note(f"{phase}: driver, open files", _open_files(os.getpid()))
        self._note(f"{phase}: driver, threads", threading.active_count())
        self._note(f"{phase}: temporary files", _files(self._temporary))

    def _run(self) -> None:
        while not self._stop.wait(_SAMPLE_SECONDS):
            self.look("long run")
            actors = scoring_processes()
            # While they start or end, their memory is no sign of anything.
            if actors:
                self._note("long run: scoring actors, MiB", sum(map(own_memory, actors)), True)
                self._note("long run: scoring actors, open files", sum(map(_open_files, actors)))
            if self._output is not None:
                scraps = _files(self._output / "_rankmill" / "tmp")
                self._note("long run: unfinished files in the output", scraps)

    def _note(self, name: str, value: float, is_memory: bool = False) -> None:
        series = self.series[name]
        series.is_memory = is_memory
        series.seconds.append(time.monotonic() - self._started)
        series.values.append(value)


def scoring_processes() -> list[int]:
    """Scoring actors below this process."""
    parents: dict[int, int] = {}
    scoring = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            with suppress(OSError, IndexError):
                stat = (entry / "stat").read_text(errors="replace").rsplit(")", 1)[1].split()
                parents[int(entry.name)] = int(stat[1])
                if b"ScoreBlocks" in (entry / "cmdline").read_bytes():
                    scoring.append(int(entry.name))
    return [pid for pid in scoring if _is_below(pid, parents)]


def _is_below(pid: int, parents: dict[int, int]) -> bool:
    while pid > 1:
        pid = parents.get(pid, 0)
        if pid == os.getpid():
            return True
    return False


def _open_files(pid: int) -> int:
    with suppress(OSError):
        return len(os.listdir(f"/proc/{pid}/fd"))
    return 0


def _files(folder: Path) -> int:
    return sum(len(files) for _, _, files in os.walk(folder))


def make_input(path: Path, queries: int) -> None:
    """A table of candidate lists with documents of 10 to 70 words."""
    sentence = "the run reads whole lists from a file and scores every pair of them"
    vocabulary = sentence.split(" ")
    generator = np.random.default_rng(0)
    with pq.ParquetWriter(path, _SCHEMA) as writer:
        for first in range(0, queries, 500):
            ids = [q for q in range(first, min(first + 500, queries)) for _ in range(_CANDIDATES)]
            lengths = generator.integers(10, 70, len(ids))
            texts = [" ".join(generator.choice(vocabulary, n)) for n in lengths]
            columns = {
                "query_id": ids,
                "query": [f"which rows does list {q} hold" for q in ids],
                "doc_id": list(range(len(ids))),
                "document": texts,
            }
            writer.write_table(pa.table(columns, schema=_SCHEMA))


_SCHEMA = pa.schema(
    [
        ("query_id", pa.int64()),
        ("query", pa.string()),
        ("doc_id", pa.int64()),
        ("document", pa.string()),
    ]
)


def run(source: Path, output: Path, queries: int) -> float:
    """One run; its seconds."""
    started = time.monotonic()
    config = load_config(
        overrides={
            "input.path": str(source),
            "input.limit": queries,
            "output.path": str(output),
            "model.name": "demo",
        }
    )
    result = job.rerank(config)
    assert result.counters.rows_out == queries * _CANDIDATES, "every row must come out"
    return time.monotonic() - started


def ray_keeps() -> float:
    """MiB that a driver keeps of an execution of Ray Data, measured in a process of its own."""
    program = Path(__file__).with_name("executions.py")
    # Not below this run's folder: Ray's sockets have short paths.
    there = {k: v for k, v in os.environ.items() if k not in ("TMPDIR", "RAY_TMPDIR")}
    done = subprocess.run(
        [sys.executable, program], env=there, stdout=subprocess.PIPE, text=True, check=True
    )
    return float(done.stdout.split()[-1])


def print_table(series: dict[str, Series]) -> bool:
    """A row a series, as Markdown; whether all are steady."""
    print(
        "\n| series | samples | first, at each eighth, last | slope an hour (standard error) ",
        end="",
    )
    print("| rise of the line | bound | |")
    print("|---|---|---|---|---|---|---|")
    is_steady = True
    for name, one in series.items():
        slope, error, rise = one.line()
        steady = rise <= one.bound
        is_steady &= steady
        eighths = np.linspace(0, len(one.values) - 1, 9).astype(int)
        seen = ", ".join(f"{one.values[place]:.0f}" for place in eighths)
        print(
            f"| {name} | {len(one.values)} | {seen} "
            f"| {slope:+.1f} ({error:.1f}) | {rise:+.2f} | {one.bound:.1f} "
            f"| {'steady' if steady else 'GROWS'} |"
        )
    return is_steady


def main() -> None:
    """A long run, then short ones."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=60.0)
    seconds = parser.parse_args().minutes * 60
    root = Path(tempfile.mkdtemp(prefix="rm-soak-"))
    temporary = root / "temporary"
    temporary.mkdir()
    # Whatever driver and workers put down for a while, they put here.
    os.environ["TMPDIR"] = tempfile.tempdir = str(temporary)
    # Ray keeps a log or two of every process that it starts; they are its session's, not the run's.
    os.environ["RAY_TMPDIR"] = str(root)
    # A shell that started this in the background has turned it off.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sampler = Sampler(temporary)
    started = time.monotonic()
    try:
        with cluster.connected(ComputeConfig()):
            make_input(root / "first.parquet", 100)
            run(root / "first.parquet", root / "warm", 20)
            few, many = (run(root / "first.parquet", root / f"first-{n}", n) for n in (20, 100))
            # What a run costs beside its pairs is in both.
            rate = 80 / max(many - few, 1.0)
            queries = max(int(rate * seconds * _LONG_SHARE), 100)
            make_input(root / "long.parquet", queries)
            sampler.watch(root / "long")
            spent = run(root / "long.parquet", root / "long", queries)
            sampler.pause()
            pairs = queries * _CANDIDATES
            shards = len([*(root / "long").glob("part-*.parquet")])
            print(
                f"long run: {pairs:,} pairs in {shards} shards and {spent:.0f} s, "
                f"{pairs / spent:.0f} pairs/s"
            )
            runs = 0
            while time.monotonic() - started < seconds or runs < 8:
                run(root / "first.parquet", root / "short", 20)
                shutil.rmtree(root / "short")
                sampler.look("short runs")
                runs += 1
        kept = ray_keeps()
        sampler.series[f"short runs: {_DRIVER}"].allowed = kept * runs * (1 - _WARM_UP)
        print(f"short runs: {runs}; Ray Data alone keeps {kept:.3f} MiB an execution")
    except KeyboardInterrupt:
        print("cut short")
    finally:
        sampler.pause()
        shutil.rmtree(root, ignore_errors=True)
    is_steady = print_table(sampler.series)
    print(f"\n{time.monotonic() - started:.0f} s; {describe_machine()}")
    sys.exit(not is_steady)


if __name__ == "__main__":
    main()
