"""What the job costs beside scoring: start, shards, planning, the driver's memory, scaling.

    python benchmarks/overhead.py [--shards 200] [--row-groups 2000]

All with the stand-in scorer (`stand_in.py`) and on a cluster that is already up, so that nothing
but rankmill and Ray is measured; scaling with one that waits as for an accelerator, so that the
machine's cores do not bound it.
"""

from __future__ import annotations

import argparse
import resource
import shutil
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from machine import describe_machine
from rankmill import cluster, job
from rankmill.config import ComputeConfig, load_config
from rankmill.prepared import prepare
from rankmill.profile import Profile
from rankmill.tokens import TokenBatch
from stand_in import StandIn, StandInModel

_BATCH_SECONDS = 0.25


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


def run(source: Path, output: Path, model: StandIn, workers: int | None = None) -> float:
    """Seconds of one run."""
    overrides: dict[str, str | int | None] = {
        "input.path": str(source),
        "output.path": str(output),
        "model.name": "stand-in",
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


def main() -> None:
    """Measure and print a line a question."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shards", type=int, default=200)
    parser.add_argument("--row-groups", type=int, default=2000)
    arguments = parser.parse_args()
    root = Path(tempfile.mkdtemp(prefix="rankmill-overhead-"))
    try:
        print(describe_machine())
        write_lists(root / "one" / "c.parquet", 1, 1, 1)
        write_lists(root / "many" / "c.parquet", arguments.shards, 10, 1000)
        write_lists(root / "groups" / "c.parquet", arguments.row_groups, 4, 4)
        with cluster.connected(ComputeConfig()):
            first = run(root / "one", root / "out-first", StandIn())
            second = run(root / "one", root / "out-second", StandIn())
            print(f"a run of one pair: {first:.1f} s, again {second:.1f} s")
            many = run(root / "many", root / "out-many", SlowStandIn())
            cost = (many - second) / (arguments.shards - 1)
            print(f"{arguments.shards} shards: {many:.1f} s, {1000 * cost:.0f} ms a shard")
            for workers in (1, 2, 4):
                seconds = run(root / "many", root / f"out-{workers}", WaitingStandIn(), workers)
                took = seconds - second
                print(
                    f"  {workers} worker(s), {_BATCH_SECONDS} s a shard: {seconds:.1f} s, less "
                    f"start {took:.1f} s; {arguments.shards * _BATCH_SECONDS / took:.2f} at once"
                )
            started = time.perf_counter()
            config = load_config(
                overrides={
                    "input.path": str(root / "groups"),
                    "output.path": str(root / "out-plan"),
                    "model.name": "stand-in",
                }
            )
            prepare(config, model=StandIn())
            seconds = time.perf_counter() - started
            print(
                f"planning {arguments.row_groups} row groups: {seconds:.1f} s, "
                f"{1000 * seconds / arguments.row_groups:.2f} ms a row group"
            )
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(f"driver's peak memory: {peak:.0f} MiB")
    finally:
        shutil.rmtree(root)


if __name__ == "__main__":
    main()
