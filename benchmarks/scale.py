"""How far do plans go? Ten thousand files, a hundred million pairs, a billion; what a run keeps.

    python benchmarks/scale.py [--pairs 100000000] [--files 10000] [--candidates 100]
        [--integer-ids] [--on-driver] [--records]

Real files, small for what they hold (few texts and runs of ids, all in dictionaries), planned as a
run plans them, in a process of its own: files listed and their footers read, then the id column
scanned and shards cut. Time is told as it passed and as processors worked, the latter of the
driver and of its local cluster. --records adds what a run of so many shards keeps: run.json of this
very plan, markers and manifest of a small real run times the shards, and what reading them takes.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import resource
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil  # type: ignore[import-untyped]
import pyarrow as pa
import pyarrow.parquet as pq

from ceiling import make_input
from machine import describe_machine
from rankmill import cluster, job, markers, plan, profile, runs, scan
from rankmill.config import ComputeConfig, ModelConfig, RunConfig, load_config
from rankmill.load import Load
from rankmill.plan import Plan
from rankmill.source import Source, open_source
from rankmill.store import Store
from rankmill.tokens import PairRules
from stand_in import StandIn

# MiniLM-L6's shape, and documents of Cranfield's length: they decide how many shards there are.
_OPERATIONS = 2.1e7
_TEXTS, _WORDS = 8, 150
# Enough pairs for shards of full size.
_SAMPLE_ROWS = 18_000
_MARKERS_READ = 5_000
# Costs nothing, and is planned as if it cost that.
_MODEL = StandIn("stand-in-minilm", _OPERATIONS)


def write_files(folder: Path, pairs: int, files: int, candidates: int, integers: bool) -> None:
    """`files` tables of one row group; the list at a file's end goes on in the next."""
    folder.mkdir(parents=True)
    rows = pairs // files
    place = pa.array((np.arange(rows) % _TEXTS).astype(np.int8))
    of_text = [f"{n} " + "lorem " * _WORDS for n in range(_TEXTS)]
    document = pa.DictionaryArray.from_arrays(place, pa.array(of_text))
    query = pa.DictionaryArray.from_arrays(place, pa.array([f"what is {n}" for n in range(_TEXTS)]))
    for number in range(files):
        ids = np.arange(number * rows, (number + 1) * rows) // candidates
        distinct, first = range(ids[0], ids[-1] + 1), ids[0]
        names = pa.array(ids)
        if not integers:
            texts = pa.array([f"query-{one:012d}" for one in distinct])
            names = pa.DictionaryArray.from_arrays(pa.array((ids - first).astype(np.int32)), texts)
        columns = {"query_id": names, "query": query, "doc_id": place, "document": document}
        path = folder / f"{number:05d}.parquet"
        pq.write_table(pa.table(columns), path, row_group_size=rows, store_schema=False)


def _peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _worked() -> tuple[float, float]:
    """Processor seconds so far: of this process, and of those that it started."""
    others = 0.0
    for process in psutil.Process().children(recursive=True):
        try:
            spent = process.cpu_times()
            others += spent.user + spent.system
        except psutil.NoSuchProcess:
            continue
    return time.process_time(), others


@contextmanager
def _timed(name: str, found: dict[str, Any]) -> Iterator[None]:
    started, (own, others) = time.perf_counter(), _worked()
    yield
    now = _worked()
    found[name] = {
        "seconds": round(time.perf_counter() - started, 1),
        "driver_cpu_seconds": round(now[0] - own, 1),
        "cluster_cpu_seconds": round(now[1] - others, 1),
        "driver_peak_mib": round(_peak_mib()),
    }


def measure_plan(folder: str, on_driver: bool, records: bool) -> None:
    """Plan once and print what it took, as JSON."""
    config = load_config(
        overrides={"input.path": folder, "output.path": "no-output", "model.name": "stand-in"}
    )
    found: dict[str, Any] = {}
    if not on_driver:
        cluster.connect(ComputeConfig(address="local"))
    else:
        scan.ON_DRIVER_ROWS = 1 << 60
    found["driver_mib_before"] = round(_peak_mib())
    with _timed("files and footers", found):
        source = open_source(config.input)
    with _timed("scan and plan", found):
        load = Load(_OPERATIONS, PairRules(512, "document"))
        made = plan.make_plan(source, scan.scan(source, config.compute), [load])
    found |= {
        "files": len(source.files),
        "pairs": made.pairs,
        "queries": int(made.queries.sum()),
        "shards": len(made),
        "digest": made.digest[:16],
        "load": round(os.getloadavg()[0], 1),
    }
    if records:
        found["run.json, MB"] = round(_run_json(config, source, made) / 1e6, 2)
    print(json.dumps(found, indent=1), flush=True)


def _run_json(config: RunConfig, source: Source, made: Plan) -> int:
    """Bytes of the record of a run of this plan."""
    hardware = profile.probe("cpu")
    found = profile.make_profile(
        ModelConfig(name="x"),
        ComputeConfig(),
        "cpu",
        hardware,
        operations_per_token=_MODEL.operations_per_token,
    )
    run = runs.make_run(config, source, [_MODEL], made, [found], {})
    return len(run.to_bytes())


def write_records(root: str) -> None:
    """A small real run, whose markers are copied under other numbers; prints their sizes."""
    folder = Path(root)
    make_input(folder / "sample", _SAMPLE_ROWS, 600)
    overrides = {
        "input.path": str(folder / "sample"),
        "output.path": str(folder / "out"),
        "model.name": "stand-in",
        "model.backend": "torch",
    }
    result = job.rerank(load_config(overrides=overrides), model=_MODEL)
    store = Store(str(folder / "out"))
    found = list(markers.read_markers(store).values())
    sizes = [len(marker.to_bytes()) for marker in found]
    print(f"{len(found)} real shards of {_SAMPLE_ROWS // len(found):,} pairs on the average:")
    print(f"  a marker {np.mean(sizes) / 1e3:.2f} kB, at most {max(sizes) / 1e3:.2f}")
    lacking = {**result.manifest, "files": []}
    name = len(json.dumps([found[0].part.name], indent=1)) - len("[]")
    print(f"  the manifest {len(json.dumps(lacking, indent=1)) / 1e3:.2f} kB and {name} B a shard")
    copies = Store(str(folder / "copies"))
    for number in range(_MARKERS_READ):
        copy = _renumbered(found[number % len(found)], number)
        copies.write(markers.marker_name(number), copy.to_bytes())


def _renumbered(marker: markers.Marker, number: int) -> markers.Marker:
    files = [replace(file, name=_other(file.name, marker.shard, number)) for file in marker.files]
    return replace(marker, shard=number, files=tuple(files))


def _other(name: str, old: int, new: int) -> str:
    return name.replace(f"{old:05d}", f"{new:05d}")


def read_records(root: str) -> None:
    """Read the markers as status and a resumed run do; prints what each takes."""
    before, started, worked = _peak_mib(), time.perf_counter(), time.process_time()
    found = markers.read_markers(Store(str(Path(root) / "copies")))
    seconds, cpu = time.perf_counter() - started, time.process_time() - worked
    held = (_peak_mib() - before) / len(found)
    print(
        f"  reading {len(found):,} markers: {seconds:.1f} s ({cpu:.1f} s of a processor), "
        f"{1000 * cpu / len(found):.2f} ms and {1024 * held:.1f} KiB of memory each",
        flush=True,
    )


def main() -> None:
    """Write the input, plan it, and look at records if asked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=100_000_000)
    parser.add_argument("--files", type=int, default=10_000)
    parser.add_argument("--candidates", type=int, default=100)
    parser.add_argument("--integer-ids", action="store_true")
    parser.add_argument("--on-driver", action="store_true", help="no cluster, one process")
    parser.add_argument("--records", action="store_true")
    parser.add_argument("--input", help="keep the input here, and take it if it is there")
    given = parser.parse_args()
    print(describe_machine())
    root = Path(tempfile.mkdtemp(prefix="rankmill-scale-"))
    folder = Path(given.input) if given.input else root / "in"
    spawn = multiprocessing.get_context("spawn")
    steps: list[tuple[Any, tuple[Any, ...]]] = [
        (measure_plan, (str(folder), given.on_driver, given.records))
    ]
    if given.records:
        steps += [(write_records, (str(root),)), (read_records, (str(root),))]
    if not folder.exists():
        wanted = (folder, given.pairs, given.files, given.candidates, given.integer_ids)
        steps.insert(0, (write_files, wanted))
    try:
        for target, arguments in steps:
            process = spawn.Process(target=target, args=arguments)
            process.start()
            process.join()
            assert process.exitcode == 0, f"{target.__name__} failed"
    finally:
        shutil.rmtree(root)


if __name__ == "__main__":
    main()
