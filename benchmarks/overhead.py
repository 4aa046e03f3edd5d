"""What the job costs beside scoring: start, shards, planning, the driver's memory, scaling.

    python benchmarks/overhead.py [--shards 200] [--row-groups 200 2000 20000]

On a cluster that is already up, with the stand-in scorer (`stand_in.py`), so that nothing but
rankmill and Ray is measured; scaling with one that waits as for an accelerator, so that the
machine's cores do not bound it. Two things more: how long the first pair of a new cluster takes
with the embedded model, which was converted before; and what it costs a scoring actor that a
shard's texts pass it on their way to the writer.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import ray

from machine import describe_machine, own_memory
from rankmill import cluster, job
from rankmill.config import ComputeConfig, load_config
from rankmill.envelope import Envelope
from rankmill.models import Description
from rankmill.prepared import prepare
from rankmill.profile import Profile
from rankmill.tokens import TokenBatch
from stand_in import StandIn, StandInModel

_BATCH_SECONDS = 0.25
_TEXT_BYTES = 1_500
_PASSED_ROWS = (1_300, 130_000)  # of a shard for two cores with MiniLM-L6's shape; for a GPU


def write_lists(path: Path, lists: int, candidates: int, row_group: int) -> None:
    """A table of `lists` candidate lists of short documents."""
    path.parent.mkdir(parents=True, exist_ok=True)
    number = [q for q in range(lists) for _ in range(candidates)]
    table = pa.table(
        {
            "query_id": number,
            "query": [f"query {q}" for q in number],
            "doc_id": list(range(len(number))),
            "document": [f"document {n} of its list" for n in range(len(number))],
        }
    )
    pq.write_table(table, path, row_group_size=row_group)


def run(source: Path, output: Path, model: Description | None, workers: int | None = None) -> float:
    """Seconds of one run. model: None for the embedded one."""
    overrides: dict[str, str | int | None] = {
        "input.path": str(source),
        "output.path": str(output),
        "model.name": "demo" if model is None else "stand-in",
    }
    if workers is not None:
        overrides["compute.workers"] = workers
    started = time.perf_counter()
    job.rerank(load_config(overrides=overrides), model=model)
    return time.perf_counter() - started


@dataclass(frozen=True)
class SlowStandIn(StandIn):
    """Seems to cost so much that every list is a shard of its own."""

    digest: str = "stand-in-slow"
    operations_per_token: float = 1e12


class WaitingModel(StandInModel):
    """Takes as long as an accelerator would, without using a core."""

    def score(self, batch: TokenBatch) -> npt.NDArray[np.float32]:
        """float32 [batch]."""
        time.sleep(_BATCH_SECONDS)
        return super().score(batch)


@dataclass(frozen=True)
class WaitingStandIn(SlowStandIn):
    """Loads a model that waits."""

    digest: str = "stand-in-waiting"

    def load(self, profile: Profile) -> StandInModel:
        """The double's model."""
        return WaitingModel()


def plan(source: Path, output: Path) -> float:
    """Seconds of planning a run."""
    config = load_config(
        overrides={
            "input.path": str(source),
            "output.path": str(output),
            "model.name": "stand-in",
        }
    )
    started = time.perf_counter()
    prepare(config, model=StandIn())
    return time.perf_counter() - started


def pass_on(rows: int, with_rows: bool, rounds: int = 9) -> float:
    """Seconds (median) that a scoring actor needs to take a shard and to hand it on, scored.

    with_rows: the shard's rows ride along, as they do in a run.
    """
    table = pa.table({"document": [f"{row:08d}" + "x" * (_TEXT_BYTES - 8) for row in range(rows)]})
    scores = pa.table({"score": np.zeros(rows, np.float32)})
    given = Envelope(0, rows=table if with_rows else None, facts=scores)
    block = ray.put(given.to_block())
    seconds = []
    for _ in range(rounds):
        started = time.perf_counter()
        taken = Envelope.from_block(ray.get(block))[0]
        handed = ray.put(replace(taken, scores=scores).to_block())
        seconds.append(time.perf_counter() - started)
        del taken, handed
    return statistics.median(seconds)


def measure_shards(root: Path, shards: int) -> None:
    """Start, cost of a shard, workers."""
    first = run(root / "one", root / "out-first", StandIn())
    second = run(root / "one", root / "out-second", StandIn())
    print(f"a run of one pair: {first:.1f} s, again {second:.1f} s")
    before = own_memory(os.getpid())
    many = run(root / "many", root / "out-many", SlowStandIn())
    cost = (many - second) / (shards - 1)
    print(
        f"{shards} shards: {many:.1f} s, {1000 * cost:.0f} ms a shard; driver's memory "
        f"{before:.0f} MiB before, {own_memory(os.getpid()):.0f} after"
    )
    for workers in (1, 2, 4):
        seconds = run(root / "many", root / f"out-{workers}", WaitingStandIn(), workers)
        took = seconds - second
        print(
            f"  {workers} worker(s), {_BATCH_SECONDS} s a shard: {seconds:.1f} s, less "
            f"start {took:.1f} s; {shards * _BATCH_SECONDS / took:.2f} at once"
        )


def main() -> None:
    """Measure and print a line a question."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shards", type=int, default=200)
    parser.add_argument("--row-groups", type=int, nargs="+", default=[200, 2_000, 20_000])
    arguments = parser.parse_args()
    root = Path(tempfile.mkdtemp(prefix="rankmill-overhead-"))
    try:
        print(describe_machine())
        write_lists(root / "one" / "c.parquet", 1, 1, 1)
        write_lists(root / "many" / "c.parquet", arguments.shards, 10, 1000)
        for cached in (False, True):
            with cluster.connected(ComputeConfig()):
                seconds = run(root / "one", root / f"out-demo-{cached}", None)
        print(
            f"first pair of a cluster, embedded model, scored and committed after {seconds:.1f} s"
        )
        with cluster.connected(ComputeConfig()):
            measure_shards(root, arguments.shards)
            for groups in arguments.row_groups:
                write_lists(root / f"groups-{groups}" / "c.parquet", groups, 4, 4)
                before = own_memory(os.getpid())
                seconds = plan(root / f"groups-{groups}", root / f"out-plan-{groups}")
                print(
                    f"planning {groups:,} row groups: {seconds:.2f} s, "
                    f"{1000 * seconds / groups:.2f} ms each; driver's memory {before:.0f} MiB "
                    f"before, {own_memory(os.getpid()):.0f} after"
                )
            for rows in _PASSED_ROWS:
                alone, whole = (1000 * pass_on(rows, with_rows) for with_rows in (False, True))
                mib = rows * _TEXT_BYTES / 2**20
                print(
                    f"texts of {rows:,} rows ({mib:.0f} MiB) pass an actor in "
                    f"{whole - alone:.1f} ms (the shard without them: {alone:.1f} ms)"
                )
    finally:
        shutil.rmtree(root)


if __name__ == "__main__":
    main()
